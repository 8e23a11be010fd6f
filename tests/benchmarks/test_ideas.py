"""What options from related work do on the demo: which models are trained, with which flags, and what of them is in the table."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import ideas
from benchmarks.cli import main
from benchmarks.options import IdeasOptions
from lugpi_core.files import make_folder, write_json


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[list[str]]]:
    """The commands, by batch, each of which writes a record in place of what it computes; a smaller subset of a run is refused."""
    given: list[list[list[str]]] = []
    largest: dict[str, int] = {}

    def run(commands: Sequence[Sequence[str]]) -> None:
        given.append([list(command) for command in commands])
        for words in given[-1]:
            if words[0] == "featurize":
                if "--subset" in words:
                    run_dir, count = (words[words.index(flag) + 1] for flag in ("--run-dir", "--subset"))
                    assert int(count) >= largest.get(run_dir, 0), f"--subset {count} after {largest[run_dir]} in {run_dir}"
                    largest[run_dir] = int(count)
                continue
            folder = Path(words[words.index("--run-dir") + 1]) / words[words.index("--name") + 1]
            write_json(make_folder(folder) / "metrics.json", {"accuracy": {"test": 0.5 + 0.01 * int(words[words.index("--seed") + 1])}})

    monkeypatch.setattr(ideas, "run_commands", run)
    # A new student answers two of four texts otherwise, an anchored one one of them.
    answers = {"student": [0, 1, 2, 3], "student-new": [0, 1, 3, 2], "student-anchored": [0, 1, 2, 0]}
    monkeypatch.setattr(
        ideas,
        "read_predictions",
        lambda path: {"test": SimpleNamespace(predicted=np.array(answers[path.parent.name.rpartition("-")[0]]))},
    )
    return given


def test_every_idea_is_trained_with_every_seed_once(batches: list[list[list[str]]], tmp_path: Path) -> None:
    options = IdeasOptions(runs=tmp_path, processes=2)
    rows = ideas.measure(options)["figures"]["rows"]
    assert rows["none"] == {"accuracy": 0.51, "sd": 0.01, "each": [0.5, 0.51, 0.52]}
    assert list(rows)[1:] == [
        *("clip-demo", "clip-demo-pool-2x2", "clip-demo-pool-1", "clip-demo-pool-cls", "clip-demo-pca32"),
        *(f"{rule}-{count}" for rule in ("k-centre", "herding", "random") for count in (60, 240)),
        *("student", "student-bss", "student-new", "student-anchored"),
    ]
    assert (rows["student-new"]["churn"], rows["student-anchored"]["churn"]) == (0.5, 0.25)
    trained = [[command for command in several if command[0] == "train"] for several in batches]
    assert [len(several) for several in trained if several] == [2, 1] * len(rows)
    assert ideas.measure(options)["figures"]["rows"] == rows
    assert not any(command[0] == "train" for several in batches[len(trained) :] for command in several)
    begun = len(batches)
    more = ideas.measure(IdeasOptions(runs=tmp_path, processes=2, seeds=5))["figures"]["rows"]
    assert more["none"]["each"] == more["herding-60"]["each"] == [0.5, 0.51, 0.52, 0.53, 0.54]
    assert [len(several) for several in batches[begun:] if several[0][0] == "train"] == [2] * len(rows)


def test_a_model_learns_from_its_own_seed_and_the_images_of_its_row(batches: list[list[list[str]]], tmp_path: Path) -> None:
    ideas.measure(IdeasOptions(runs=tmp_path, seeds=1))
    words = {command[command.index("--name") + 1]: command for several in batches for command in several if "--name" in command}
    assert words["clip-demo-pca32-0"][-2:] == ["--image-tokens", "clip-demo-pca32"]
    assert words["student-0"][-2:] == ["--teachers", "clip-demo-0"]
    assert words["student-anchored-0"][-4:] == ["--teachers", "clip-demo-0", "--anchor", str(tmp_path / "ideas" / "whole" / "student-0")]
    assert [words[name][words[name].index("--seed") + 1] for name in ("student-0", "student-new-0", "student-anchored-0")] == [
        *("0", "100", "100"),
    ]
    # Each number of texts has a run of its own.
    for count in ("60", "240"):
        run = str(tmp_path / "ideas" / f"herding-{count}")
        order = [command for several in batches for command in several if run in command]
        assert [command[0] for command in order] == ["featurize", "train"]
        assert order[0][-4:] == ["--subset", count, "--subset-by", "herding"]
        assert words[f"herding-{count}-0"] == order[1]


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ideas", "--processes", "0"]) == 2
    assert "got --processes 0; expected at least 1" in capsys.readouterr().err
