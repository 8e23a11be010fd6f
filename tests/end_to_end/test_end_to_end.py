"""The whole line as README types it, each command in its own process; one of each package imports what it needs itself."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import DATA, Command


def figures(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """Return the last line of a command that succeeded."""
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_the_embedded_default_runs_from_text_to_table(new_command: Command, command: Command, tmp_path: Path) -> None:
    common = ("--dataset", "demo", "--limit", "60", "--run-dir", tmp_path)
    training = ("--text-model", "demo", "--epochs", "1")
    store = figures(command("featurize", *common, "--generator", "demo", "--encoders", "demo"))
    assert sum(store["examples"].values()) == store["rows"]["drawn"] == store["drawings"] == 60
    next((tmp_path / "tokens" / "clip-demo").glob("shard-*.h5")).unlink()
    repair = figures(new_command("-m", "featurize", "verify", "--dataset", "demo", "--run-dir", tmp_path, "--repair"))
    assert (repair["complete"], repair["made_again"][0]["encoded"]) == (True, 60), "the libraries are prepared there, too"
    figures(new_command("-m", "train", "baseline", *common, *training))
    teacher = figures(command("train", "teacher", *common, *training, "--image-tokens", "clip-demo"))
    assert teacher["notice"]
    figures(command("train", "student", *common, *training))
    table = command("train", "tables", *common, "--no-train")
    row_of_folder = {model["folder"]: name for name, row in figures(table)["rows"].items() for model in row["models"]}
    assert row_of_folder == {"baseline": "baseline", "teacher": "teacher-clip-demo", "student": "student-clip-demo"}
    assert teacher["notice"] in table.stdout


@pytest.mark.skipif(not (DATA / "cwishareddataset.zip").is_file(), reason="the CWI archive is not next to the checkout")
def test_a_real_corpus_goes_from_archive_to_teacher(command: Command, tmp_path: Path) -> None:
    common = ("--dataset", "cwi-wikinews", "--data-dir", DATA, "--limit", "120", "--run-dir", tmp_path)
    store = figures(command("featurize", *common, "--generator", "demo", "--encoders", "clip-demo"))
    assert store["examples"] == {"train": 94, "validation": 10, "test": 16}
    assert store["drawings"] + store["drawings_spared"] == 120
    teacher = figures(command("train", "teacher", *common, "--text-model", "demo", "--epochs", "1"))
    assert set(teacher["accuracy"]) == {"train", "validation", "test"}
