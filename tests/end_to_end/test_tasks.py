"""Corpora of several labels, of numbers and of pairs, from a file to the report and a plain pipeline, by the commands that a user types."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featurize.cli
import train.cli
from tests.support.small_tasks import multi_label_corpus, pairs_corpus, regression_corpus

# Only transformers, from a folder without lugpi, whose own modules cannot be imported.
PLAIN = """
import json, sys
for name in ("lugpi", "lugpi_core", "featurize", "train"): sys.modules[name] = None
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], top_k=None)
print(json.dumps(classify(json.loads(sys.argv[2]))))
"""


def figures(capsys: pytest.CaptureFixture[str], package: str, *words: str | Path) -> dict[str, Any]:
    """Run a command in this process, and return its last line."""
    main = {"featurize": featurize.cli.main, "train": train.cli.main}[package]
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    last: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return last


def written(folder: Path, task: str) -> tuple[Path, list[str]]:
    """Write a corpus as CSV; return the file and the flags that describe it."""
    corpus = {"several": multi_label_corpus, "numbers": regression_corpus, "pairs": pairs_corpus}[task]()
    path = folder / f"{task}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "second", "label", "split"])
        for example in corpus.examples:
            label: Any = example.target if example.target is not None else corpus.label_names[example.label]
            label = ";".join(corpus.label_names[k] for k in label) if isinstance(label, tuple) else label
            writer.writerow([example.text, example.pair, label, example.split])
    flags = {
        "several": ["--task", "multi-label", "--label-separator", ";"],
        "numbers": ["--task", "regression"],
        "pairs": ["--text-pair-column", "second"],
    }[task]
    return path, ["--dataset", str(path), "--split-column", "split", *flags]


@pytest.mark.parametrize(("task", "metric"), [("several", "macro_f1"), ("numbers", "spearman"), ("pairs", "accuracy")])
def test_every_task_goes_from_a_file_to_the_report(capsys: pytest.CaptureFixture[str], tmp_path: Path, task: str, metric: str) -> None:
    path, corpus = written(tmp_path, task)
    run = tmp_path / "run"
    common = [*corpus, "--run-dir", str(run)]
    figures(capsys, "featurize", *common, "--generator", "demo", "--encoders", "clip-demo")
    rows = ["baseline", "teacher-clip-demo", "student-clip-demo"]
    training = ["--text-model", "demo", "--epochs", "1", "--seeds", "1", "--learning-rate", "1e-3", "--device", "cpu"]
    tables = figures(capsys, "train", "tables", *common, *training, "--rows", *rows)
    assert tables["missing"] == []
    assert {next(iter(row["test"])) for row in tables["rows"].values()} == {metric}
    report = figures(capsys, "train", "report", *common)
    assert Path(report["report"]).is_file()

    student = run / "student-clip-demo"
    columns = [word for flag in ("--text-pair-column", "--label-separator") if flag in corpus for word in corpus[corpus.index(flag) :][:2]]
    evaluated = figures(capsys, "train", "evaluate", "--model", student, "--input", path, "--label-column", "label", *columns)
    assert np.isfinite(evaluated[metric])
    with path.open(encoding="utf-8") as file:
        texts: list[Any] = [
            row["text"] if task != "pairs" else {"text": row["text"], "text_pair": row["second"]} for row in csv.DictReader(file)
        ]
    words = [sys.executable, "-I", "-c", PLAIN, str(student), json.dumps(texts)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    config = json.loads((student / "config.json").read_text())
    with (student / "predictions.csv").open(encoding="utf-8") as file:
        predicted = list(csv.DictReader(file))
    for answers, row in zip(json.loads(done.stdout.splitlines()[-1]), predicted, strict=False):
        scores = {answer["label"]: answer["score"] for answer in answers}
        if task == "numbers":
            assert list(scores.values()) == pytest.approx([float(row["prediction"])], abs=1e-5)
            continue
        logits = np.array([float(row[f"logit_{k}"]) for k in range(len(config["id2label"]))])
        shares = 1 / (1 + np.exp(-logits)) if task == "several" else np.exp(logits) / np.exp(logits).sum()
        assert [scores[config["id2label"][str(k)]] for k in range(len(logits))] == pytest.approx(shares, abs=1e-5)
