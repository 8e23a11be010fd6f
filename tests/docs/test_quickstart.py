"""The notebook runs from top to bottom without a network, shows images and ends with the table."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.checkout import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
# Every line runs, on a quarter of the texts and for a tenth of the epochs.
SHORTER = {"for template in TEMPLATES]": "for template in TEMPLATES[::4]]", "epochs=10": "epochs=1"}
MOST_CELLS, MOST_BYTES = 10, 300_000


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the cells put out, by MIME type, in order."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for long, short in SHORTER.items():
        (cell,) = [cell for cell in notebook.cells if long in cell.source]
        cell.source = cell.source.replace(long, short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # of the kernel
        folder: Path = tmp_path_factory.mktemp("notebook")
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return [output["data"] for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs if "data" in output]


def test_the_notebook_shows_images(outputs: list[dict[str, str]]) -> None:
    assert any("image/png" in data for data in outputs)


def test_the_notebook_ends_with_the_table(outputs: list[dict[str, str]]) -> None:
    table = outputs[-1]["text/html"]
    for row in ("baseline", "teacher-clip-demo", "student-clip-demo", "teacher-none", "student-none"):
        assert row in table


def test_the_notebook_stays_short() -> None:
    assert len(nbformat.read(NOTEBOOK, as_version=4).cells) <= MOST_CELLS
    assert NOTEBOOK.stat().st_size < MOST_BYTES
