"""The rules of the house: which room may import which, where options and heavy libraries enter, and how long code may grow."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

OURS = {"lugpi", "lugpi_core", "featurize", "train", "benchmarks", "dev", "tests"}
# Package → the other packages that it may import. Nobody imports tests; lugpi, benchmarks and dev are imported by tests alone.
ALLOWED = {
    "lugpi_core": set[str](),
    "featurize": {"lugpi_core"},
    "train": {"lugpi_core"},
    "lugpi": {"lugpi_core", "featurize", "train"},
    "benchmarks": {"lugpi", "lugpi_core", "featurize", "train"},
    "dev": {"lugpi_core", "featurize", "train"},
}
# The rooms of a package on their floors, from the ground up. A room may import itself and the floors below it.
FLOORS = {
    "lugpi_core": (
        ("errors",),
        ("fields", "files", "fingerprint"),
        ("runtime",),
        ("remote",),
        ("corpora",),
        ("store",),
        ("command_line", "thumbnails"),
        ("cluster",),
    ),
    "featurize": (
        ("options",),
        ("generate", "encode"),
        ("plan",),
        ("cost",),
        ("fill",),
        ("run",),
        ("unit",),
        ("on_ray",),
        ("inspect", "maintain"),
        ("cli",),
    ),
    "train": (("options", "file_names"), ("data",), ("learning",), ("models",), ("evidence", "tools"), ("report",), ("cli",)),
}
MOST_ARROWS = {"lugpi_core": 25, "featurize": 37, "train": 35}
# Flags end here: the only files of the three packages, besides the options' own rooms, that import option dataclasses.
OPTION_DOORS = {
    "featurize/cli.py",
    "featurize/run.py",
    "featurize/unit.py",
    "featurize/on_ray.py",
    "featurize/maintain.py",
    "featurize/inspect/command.py",
    "featurize/inspect/info.py",
    "lugpi/cli.py",
    "lugpi/see.py",
    "train/cli.py",
    "train/models/commands.py",
    "train/evidence/audit.py",
    "train/evidence/tables.py",
    "train/report/command.py",
    "train/tools/evaluate.py",
    "train/tools/onnx_export.py",
    "train/tools/sweep.py",
}
# The only files of the three packages that import a heavy library.
LIBRARY_DOORS = {
    "diffusers": {
        "featurize/cost/stage_cost.py",
        "featurize/generate/acceleration.py",
        "featurize/generate/decoders.py",
        "featurize/generate/downloads.py",
        "featurize/generate/lora.py",
        "featurize/generate/single_file.py",
        "featurize/generate/sampler_settings.py",
        "featurize/generate/schedulers.py",
    },
    "open_clip": {"featurize/encode/open_clip_models.py"},
    "timm": {"featurize/encode/timm_models.py"},
    "h5py": {f"lugpi_core/store/{name}.py" for name in ("foreign_files", "layout", "sealed_file", "virtual_view")},
    "tyro": {"lugpi_core/command_line.py"},
    "datasets": {"lugpi_core/corpora/hub.py"},
    "bitsandbytes": {"train/learning/optimizer.py"},
    "ray": {f"lugpi_core/cluster/{name}.py" for name in ("actor", "connection", "crew", "node")},
}
HEAVY = (
    "ray",
    "torch",
    "transformers",
    "diffusers",
    "open_clip",
    "timm",
    "h5py",
    "numpy",
    "sklearn",
    "scipy",
    "pandas",
    "datasets",
    "jinja2",
)
COMMANDS = {
    "featurize": ("", "verify", "info", "inspect", "score", "reduce", "plan", "missing", "merge"),
    "train": ("", "baseline", "images", "teacher", "student", "sweep", "evaluate", "onnx", "tables", "audit", "report"),
    "lugpi": ("", "see"),
    "benchmarks": (
        "",
        "store",
        "featurize",
        "families",
        "train",
        "prefix",
        "memory",
        "evaluate",
        "fidelity",
        "shortcuts",
        "prompts",
        "models",
        "scale",
        "peers",
        "manifest",
        "all",
        "freezing",
        "ray",
        "demo",
        "real",
    ),
}


@dataclass(frozen=True)
class Import:
    """One import: the module, as ``package.room.module``, and the name taken from it, empty for the whole module."""

    module: str
    name: str

    @property
    def package(self) -> str:
        return self.module.split(".")[0]

    @property
    def room(self) -> str:
        return self.module.partition(".")[2].split(".")[0]


class Source:
    """A Python file of the checkout, parsed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix()
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.package, _, inner = self.name.removesuffix(".py").partition("/")
        self.room = inner.split("/")[0]
        self.imports = list(self._imports())

    def _imports(self) -> Iterator[Import]:
        """Yield every import, inside functions and type-checking blocks too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (Import(alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.name}: relative import"
                assert node.module is not None
                for alias in node.names:
                    inner = ROOT.joinpath(*node.module.split("."), alias.name)
                    is_module = node.module.split(".")[0] in OURS and (inner.is_dir() or inner.with_suffix(".py").is_file())
                    yield Import(f"{node.module}.{alias.name}", "") if is_module else Import(node.module, alias.name)


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Every file of the packages."""
    return [Source(path) for package in ALLOWED for path in sorted([*(ROOT / package).rglob("*.py"), *ROOT.glob(f"{package}.py")])]


def test_packages_import_only_what_they_may(sources: list[Source]) -> None:
    for source in sources:
        imported = {one.package for one in source.imports} & OURS
        assert imported <= ALLOWED[source.package] | {source.package}, source.name


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_lower_floors(sources: list[Source], package: str) -> None:
    floor = {room: height for height, rooms in enumerate(FLOORS[package]) for room in rooms}
    arrows = defaultdict(list)
    for source in sources:
        if source.package == package and source.room not in ("__init__", "__main__"):
            for one in source.imports:
                if one.package == package and one.room not in ("", source.room):
                    arrows[source.room, one.room].append(f"{source.name} imports {one.module}")
    upward = [why for (above, below), places in arrows.items() if floor[below] >= floor[above] for why in places]
    assert upward == []
    assert len(arrows) <= MOST_ARROWS[package]


def test_only_an_entry_point_imports_a_command_line(sources: list[Source]) -> None:
    for source in sources:
        imported = {one.module for one in source.imports if one.package in OURS and one.module.endswith(".cli")}
        if imported:
            assert source.path.name == "__main__.py", f"{source.name} imports {imported}"


def test_options_end_at_the_doors(sources: list[Source]) -> None:
    inside = {
        source.name
        for source in sources
        if source.package in {*FLOORS, "lugpi"} and source.room != "options"
        for one in source.imports
        if one.package in OURS and one.name.endswith("Options")
    }
    assert inside == OPTION_DOORS


@pytest.mark.parametrize("library", LIBRARY_DOORS)
def test_a_heavy_library_enters_at_its_doors(sources: list[Source], library: str) -> None:
    inside = {source.name for source in sources if source.package in FLOORS and library in {one.package for one in source.imports}}
    # Every family of generators may ask its library.
    assert {name for name in inside if not name.startswith("featurize/generate/families/")} == LIBRARY_DOORS[library]


def test_files_and_functions_stay_short(sources: list[Source]) -> None:
    for source in sources:
        assert source.text.count("\n") <= 500, source.name
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{source.name}: {node.name}"


def test_public_names_are_documented(sources: list[Source]) -> None:
    for source in sources:
        assert ast.get_docstring(source.tree), source.name
        for node in source.tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{source.name}: {node.name}"


def test_every_room_is_installed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    rooms = {
        path.parent.relative_to(ROOT) for package in (*FLOORS, "benchmarks", "lugpi") for path in (ROOT / package).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(".".join(room.parts) for room in rooms)


def test_constraints_pin_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    requirements = [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["sweep"], *extras["onnx"]]
    names = {re.split(r"[<>=;\s\[]", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    assert names - {"lugpi"} <= pinned


def test_test_folders_mirror_rooms() -> None:
    for folder in (ROOT / "tests").glob("*/**/"):
        mirrored, *rooms = folder.relative_to(ROOT / "tests").parts
        package = {"core": "lugpi_core"}.get(mirrored, mirrored)
        if package in OURS and any(folder.glob("test_*.py")):
            assert ROOT.joinpath(package, *rooms).is_dir(), f"{folder} mirrors nothing"


def test_no_test_module_imports_another() -> None:
    for test in (Source(path) for path in sorted((ROOT / "tests").rglob("*.py"))):
        imported = {one.module for one in test.imports if one.package == "tests" and one.module.rpartition(".")[2].startswith("test_")}
        assert imported == set(), f"{test.name}: what tests share belongs to tests/support"


def test_help_imports_nothing_heavy() -> None:
    program = f"""
import contextlib, importlib, io, json, sys
loaded = {{}}
for package, names in {COMMANDS!r}.items():
    main = importlib.import_module(package + ".cli").main
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()) as help_text:
            assert main([*name.split(), "--help"]) == 0
        assert f"usage: python -m {{package}} {{name}}".strip() in help_text.getvalue(), (package, name)
        loaded[f"{{package}} {{name}}"] = sorted(set({HEAVY!r}) & set(sys.modules))
print(json.dumps([loaded, len(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    heavy_by_command, modules = json.loads(done.stdout)
    assert {command: heavy for command, heavy in heavy_by_command.items() if heavy} == {}
    assert modules <= 400, "of all commands together, the standard library and tyro included"
