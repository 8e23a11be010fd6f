"""The walls of the house: who may import whom, which library enters where, and how large a file or a function may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

OURS = ("lugpi_core", "featurize", "train", "benchmarks", "tests")
ALLOWED = {
    "lugpi_core": {"lugpi_core"},
    "featurize": {"lugpi_core", "featurize"},
    "train": {"lugpi_core", "train"},
    "benchmarks": set(OURS) - {"tests"},
}
# The files where a heavy library enters; nowhere else.
DOORS = {
    "diffusers": {
        f"featurize/{name}.py" for name in ("acceleration", "counted_work", "decoders", "generators", "text_to_image", "emoji/drawing")
    },
    "open_clip": {f"featurize/{name}.py" for name in ("counted_work", "image_encoder", "emoji/vision")},
    "h5py": {f"lugpi_core/store/{name}.py" for name in ("inspection", "layout", "sealed_file", "view")},
    "tyro": {"lugpi_core/command_line.py"},
    "datasets": {"lugpi_core/corpora/user_files.py"},
    "bitsandbytes": {"train/learning/optimizer.py"},
}
SOURCES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in SOURCES]


def imports(path: Path) -> Iterator[str]:
    """Yield the top-level package of every import in a file, inside functions and type-checking blocks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    assert {name for name in imports(path) if name in OURS} <= ALLOWED[package]


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_heavy_library_enters_by_its_own_door(library: str) -> None:
    inside = {
        name for path, name in zip(SOURCES, NAMES, strict=True) if library in set(imports(path)) and not name.startswith("benchmarks/")
    }
    assert inside == DOORS[library]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len([one for one in arguments if one.arg != "self"]) <= 6, node.name


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


@pytest.mark.parametrize(
    "command", ["featurize", "featurize verify", "featurize info", "featurize inspect", "train", "train report", "benchmarks"]
)
def test_help_imports_nothing_heavy(command: str) -> None:
    module, *words = command.split()
    code = (
        f"import sys, runpy; sys.argv = ['x', *{words}, '--help']\n"
        f"try: runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'open_clip', 'h5py', 'numpy', 'sklearn', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
