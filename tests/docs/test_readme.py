"""Every command of the documents is one that exists, with flags that exist."""

import re
import shlex

import pytest

from benchmarks.cli import BenchmarkOptions, DemoOptions, DrawingOptions, PicturesOptions, RealOptions, TrainingOptions
from featurize.options import FeaturizeOptions, InfoOptions, InspectOptions, VerifyOptions
from lugpi_core.command_line import parse
from tests.support.checkout import ROOT
from train.options.tools import EvaluateOptions, OnnxOptions, ReportOptions, SweepOptions
from train.options.training import BaselineOptions, ImagesOptions, StudentOptions, TablesOptions, TeacherOptions

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
    "lugpi_core/data/README.md",
    "docs/benchmarks.md",
    "docs/results.md",
)
TRAIN = {
    "baseline": BaselineOptions,
    "images": ImagesOptions,
    "teacher": TeacherOptions,
    "student": StudentOptions,
    "sweep": SweepOptions,
    "evaluate": EvaluateOptions,
    "onnx": OnnxOptions,
    "tables": TablesOptions,
    "report": ReportOptions,
}
FEATURIZE = {"verify": VerifyOptions, "info": InfoOptions, "inspect": InspectOptions}
BENCHMARKS = dict.fromkeys(("store", "fidelity", "memory", "all"), BenchmarkOptions) | {
    "train": TrainingOptions,
    "featurize": DrawingOptions,
    "pictures": PicturesOptions,
    "demo": DemoOptions,
    "real": RealOptions,
}


def commands() -> list[str]:
    """Return every ``-m featurize|train|benchmarks …`` with flags that stands in the documents."""
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"\\\n\s*", "", (ROOT / document).read_text(encoding="utf-8"))
        for line in re.findall(r"-m ((?:featurize|train|benchmarks) [^`#\n|>]*)", text):
            if "--" in line:
                found.append(line.strip())
    return found


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_a_documented_command_parses(line: str) -> None:
    module, *arguments = shlex.split(line)
    options: type = FEATURIZE[arguments.pop(0)] if arguments[0] in FEATURIZE else FeaturizeOptions
    if module == "train":
        options = TRAIN[arguments.pop(0)]
    elif module == "benchmarks":
        options = BENCHMARKS[arguments.pop(0)]
    assert parse(options, arguments, prog=module) is not None


def test_the_documents_show_the_papers_run() -> None:
    found = commands()
    for start in (
        "featurize --dataset 20ng",
        "train baseline",
        "train teacher",
        "train student",
        "train tables",
        "benchmarks real",
        "featurize verify",
        "featurize info",
    ):
        assert any(line.startswith(start) for line in found), start


def test_every_make_target_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        named = {word for line in re.findall(r"(?m)(?:^|`)make ((?:[a-z]+ ?)+)", text) for word in line.split()}
        assert named <= targets, document


def test_every_file_of_the_map_exists() -> None:
    block = re.search(r"## Where things are\n\n```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block is not None
    folder = ""
    for line in block[1].splitlines():
        if line and not line.startswith(" "):
            folder = line.split()[0]
        for name in re.findall(r"\b[a-z_]+\.py\b", line):
            assert (ROOT / folder / name).is_file(), f"{folder}{name}"


def test_no_figure_is_left_to_be_filled_in() -> None:
    assert not re.search(r"@[A-Z]+@", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_constraints_pin_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["sweep"], *extras["onnx"]]
    wanted = [requirement for requirement in wanted if not requirement.startswith("lugpi[")]
    names = {re.split(r"[<>=;\s]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names <= pinned
