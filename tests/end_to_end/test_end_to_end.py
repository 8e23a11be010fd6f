"""The whole line as the README types it, each command in a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import DATA, ROOT, Command


def figures(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


def test_the_embedded_default_runs_from_text_to_table(command: Command, tmp_path: Path) -> None:
    common = ("--dataset", "demo", "--limit", "240", "--run-dir", tmp_path)
    training = ("--text-model", "demo", "--epochs", "1")
    store = figures(command("featurize", *common, "--generator", "demo", "--encoders", "demo"))
    assert store["examples"] == {"train": 37, "validation": 18, "test": 185}
    assert store["rows"]["drawn"] == store["drawings"] == 240
    figures(command("train", "baseline", *common, *training))
    teacher = figures(command("train", "teacher", *common, *training, "--image-tokens", "clip-demo"))
    assert teacher["notice"]
    figures(command("train", "student", *common, *training))
    table = command("train", "tables", *common, "--no-train")
    there = {model["folder"]: row for row, found in figures(table)["rows"].items() for model in found["models"]}
    assert there == {"baseline": "baseline", "teacher": "teacher-clip-demo", "student": "student-clip-demo"}
    assert "draws emoji" in table.stdout


@pytest.mark.skipif(not (DATA / "cwishareddataset.zip").is_file(), reason="the CWI archive is not beside the checkout")
def test_a_real_corpus_goes_from_archive_to_teacher(command: Command, tmp_path: Path) -> None:
    common = ("--dataset", "cwi-wikinews", "--data-dir", DATA, "--limit", "120", "--run-dir", tmp_path)
    store = figures(command("featurize", *common, "--generator", "demo", "--encoders", "clip-demo"))
    assert store["examples"] == {"train": 94, "validation": 10, "test": 16}
    assert store["drawings"] + store["drawings_spared"] == 120
    teacher = figures(command("train", "teacher", *common, "--text-model", "demo", "--epochs", "1"))
    assert set(teacher["accuracy"]) == {"train", "validation", "test"}


@pytest.mark.parametrize("arguments", [("featurize",), ("train",), ("train", "student"), ("benchmarks",)])
def test_help_is_there_within_half_a_second(arguments: tuple[str, ...]) -> None:
    seconds = []
    for _ in range(5):
        start_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start_s)
        assert done.returncode == 0
        assert done.stderr == ""
        assert "usage: python -m" in done.stdout
    assert min(seconds) < 0.5, "the least disturbed of five"
