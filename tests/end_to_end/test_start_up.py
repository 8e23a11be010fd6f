"""What a command imports before it does anything: no more of the libraries than it needs. Modules are counted, not seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

from lugpi_core.runtime.pretrained import embedded_model
from tests.support.checkout import ROOT
from tests.support.small_report import corpus_of, hostile_csv, write_run

LISTING = """
import importlib, json, sys
listed = []
for package, *arguments in json.loads(sys.argv[1]):
    assert importlib.import_module(package + ".cli").main(arguments) == 0, arguments
    listed.append(sorted(sys.modules))
print(json.dumps(listed))
"""
NEVER = {"diffusers", "open_clip", "timm", "sklearn", "pandas", "matplotlib", "datasets", "torchvision", "onnx", "optuna", "IPython"}


def modules_of(*commands: list[str]) -> list[set[str]]:
    """Run commands, one after another, in a fresh interpreter; return the modules that there are after each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LISTING, json.dumps(commands)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    listed: list[list[str]] = json.loads(done.stdout.splitlines()[-1])
    return [set(names) for names in listed]


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_what_only_reads_records_imports_no_model_library(small_run: Path, tmp_path: Path) -> None:
    path = hostile_csv(tmp_path)
    write_run(tmp_path / "run", corpus_of(path))
    report = ["train", "report", "--dataset", str(path), "--split-column", "split", "--run-dir", str(tmp_path / "run")]
    after_info, after_report = modules_of(["featurize", "info", "--dataset", "topics", "--run-dir", str(small_run)], report)
    assert packages(after_info) & {*NEVER, "torch", "transformers", "scipy", "jinja2"} == set()
    assert packages(after_report) & {*NEVER, "torch", "transformers"} == set()
    assert len(after_info) < 700


def test_evaluate_imports_what_a_classifier_needs_once(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, source = tmp_path / "model", embedded_model("text")
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=3).save_pretrained(model)
    AutoTokenizer.from_pretrained(source).save_pretrained(model)
    (tmp_path / "texts.txt").write_text("one word\nthree words here\n")
    command = ["train", "evaluate", "--model", str(model), "--input", str(tmp_path / "texts.txt"), "--device", "cpu"]
    first, second = modules_of(command, command)
    # transformers itself imports accelerate, jinja2, scipy and sympy with its first model.
    assert packages(first) & {*NEVER, "h5py"} == set()
    assert "transformers.pipelines" not in first
    assert [name for name in first if name.startswith(("train.evidence", "train.report"))] == []
    assert second == first, "a second model in a process imports nothing again"
