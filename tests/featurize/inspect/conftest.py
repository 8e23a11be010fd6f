"""Planted stores, and the command that inspects them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from featurize.cli import main
from featurize.inspect import inspect_store
from featurize.inspect.inspect_store import inspect
from featurize.inspect.inspection import Inspection
from featurize.options import InspectSettings
from tests.support.planted_store import Planted, Run, plant_latents, plant_telling


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Inspect a planted store."""

    def run_command(planted: Planted, *flags: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        status = main(["inspect", *planted.flags, *flags])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if captured.out else {}, captured.err

    return run_command


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A store with a column that predicts the class, ``telling``, and one that does not, ``silent``. It has no latents."""
    return plant_telling(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def planted(original: Planted, tmp_path: Path) -> Planted:
    """A copy of it."""
    return _copy(original, tmp_path)


@pytest.fixture(scope="session")
def original_with_latents(original: Planted, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The same with latents that are similar within a class."""
    copy = _copy(original, tmp_path_factory.mktemp("latents"))
    plant_latents(copy, by_class=True)
    return copy


@pytest.fixture
def with_latents(original_with_latents: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planted:
    """A copy of it. Few images are decoded for the similarity of classes."""
    monkeypatch.setattr(inspect_store, "MOST_CLASS_IMAGES", 12)
    return _copy(original_with_latents, tmp_path)


def _copy(planted: Planted, folder: Path) -> Planted:
    run_dir = Path(shutil.copytree(planted.run_dir, folder / "run"))
    return Planted(table=planted.table, run_dir=run_dir, corpus=planted.corpus, drawings=planted.drawings)


@pytest.fixture(scope="session")
def found(original: Planted) -> Inspection:
    """The inspection of the store without latents."""
    return inspect(original.run_dir / "tokens", original.corpus, settings=InspectSettings(device="cpu"))
