"""``import lugpi``: which names there are, where they come from, and what importing them costs."""

import ast
import subprocess
import sys

import pytest

import lugpi
from tests.support.checkout import ROOT


def modules_after(code: str) -> set[str]:
    """Return the modules that a fresh interpreter has after ``code``, less those that it starts with."""
    script = f"import sys; before = set(sys.modules)\n{code}\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_loads_this_package_alone() -> None:
    loaded = modules_after("import lugpi")
    assert "lugpi" in loaded
    # `typing` and what it needs; nothing of our own rooms, no library.
    assert not {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} - {"lugpi"}
    assert len(loaded) < 30


@pytest.mark.parametrize("name", ["CorpusSettings", "InputError", "Optimization", "FeaturizeSettings"])
def test_settings_load_no_heavy_library(name: str) -> None:
    loaded = modules_after(f"import lugpi; lugpi.{name}")
    assert not {"torch", "transformers", "diffusers", "open_clip", "h5py", "numpy", "datasets"} & loaded


def test_import_leaves_the_process_as_it_was() -> None:
    code = (
        "import os, signal, warnings, logging\n"
        "before = (dict(os.environ), list(warnings.filters), [signal.getsignal(n) for n in (2, 15)], logging.root.level)\n"
        "import lugpi; [getattr(lugpi, name) for name in ('InputError', 'Optimization', 'featurize')]\n"
        "assert before == (dict(os.environ), list(warnings.filters), [signal.getsignal(n) for n in (2, 15)], logging.root.level)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_every_public_name_is_typed_listed_and_there() -> None:
    tree = ast.parse((ROOT / "lugpi" / "__init__.py").read_text())
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names} - {"import_module"}
    typed -= {"TYPE_CHECKING", "Any"}
    assert typed == set(lugpi.__all__) <= set(dir(lugpi))
    for name in lugpi.__all__:
        value = getattr(lugpi, name)
        assert value.__doc__
        assert value.__name__ == name
    assert lugpi.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        assert lugpi.train  # type: ignore[attr-defined]
