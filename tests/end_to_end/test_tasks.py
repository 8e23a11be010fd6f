"""Corpora of several labels, of numbers and of pairs, from a file to the report and a plain pipeline, by the commands that a user types."""

import csv
import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
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
print(json.dumps([pipeline("text-classification", model=model, top_k=None)(texts) for model, texts in json.loads(sys.argv[1])]))
"""


METRICS = {"several": "macro_f1", "numbers": "spearman", "pairs": "accuracy"}
# Of each split; the classes of the texts alternate, so that each split has all of them.
EXAMPLES = {"train": 12, "validation": 6, "test": 6}


def figures(package: str, *words: str | Path) -> dict[str, Any]:
    """Run a command in this process, and return its last line."""
    main = {"featurize": featurize.cli.main, "train": train.cli.main}[package]
    with redirect_stdout(StringIO()) as printed:
        assert main([str(word) for word in words]) == 0
    last: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
    return last


def written(folder: Path, task: str) -> tuple[Path, list[str]]:
    """Write a corpus as CSV; return the file and the flags that describe it."""
    corpus = {"several": multi_label_corpus, "numbers": regression_corpus, "pairs": pairs_corpus}[task]()
    path = folder / f"{task}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "second", "label", "split"])
        for example in (corpus.examples[row] for split, count in EXAMPLES.items() for row in corpus.rows(split)[:count]):
            label: Any = example.target if example.target is not None else corpus.label_names[example.label]
            label = ";".join(corpus.label_names[k] for k in label) if isinstance(label, tuple) else label
            writer.writerow([example.text, example.pair, label, example.split])
    flags = {
        "several": ["--task", "multi-label", "--label-separator", ";"],
        "numbers": ["--task", "regression"],
        "pairs": ["--text-pair-column", "second"],
    }[task]
    return path, ["--dataset", str(path), "--split-column", "split", *flags]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[str], dict[str, Any]]]:
    """By task: its file, the flags that describe it, and the figures of its tables. The run is next to the file."""
    found = {}
    for task in METRICS:
        path, corpus = written(tmp_path_factory.mktemp(task), task)
        common = [*corpus, "--run-dir", str(path.with_name("run"))]
        figures("featurize", *common, "--generator", "demo", "--encoders", "clip-demo")
        rows = ["baseline", "teacher-clip-demo", "student-clip-demo"]
        training = ["--text-model", "demo", "--epochs", "1", "--seeds", "1", "--learning-rate", "1e-3", "--device", "cpu"]
        found[task] = path, corpus, figures("train", "tables", *common, *training, "--rows", *rows)
    return found


@pytest.mark.parametrize(("task", "metric"), METRICS.items())
def test_every_task_goes_from_a_file_to_the_report(runs: dict[str, tuple[Path, list[str], dict[str, Any]]], task: str, metric: str) -> None:
    path, corpus, tables = runs[task]
    run = path.with_name("run")
    assert tables["missing"] == []
    assert {next(iter(row["test"])) for row in tables["rows"].values()} == {metric}
    report = figures("train", "report", *corpus, "--run-dir", run)
    assert Path(report["report"]).is_file()
    columns = [word for flag in ("--text-pair-column", "--label-separator") if flag in corpus for word in corpus[corpus.index(flag) :][:2]]
    student = run / "student-clip-demo"
    evaluated = figures("train", "evaluate", "--model", student, "--input", path, "--label-column", "label", *columns)
    assert np.isfinite(evaluated[metric])


def test_a_plain_pipeline_answers_as_the_predictions_say(runs: dict[str, tuple[Path, list[str], dict[str, Any]]], tmp_path: Path) -> None:
    asked: list[tuple[str, list[Any]]] = []
    for task, (path, _, _) in runs.items():
        with path.open(encoding="utf-8") as file:
            texts: list[Any] = [
                row["text"] if task != "pairs" else {"text": row["text"], "text_pair": row["second"]} for row in csv.DictReader(file)
            ]
        asked.append((str(path.with_name("run") / "student-clip-demo"), texts))
    # One process for all tasks: most of its time is the import of transformers.
    words = [sys.executable, "-I", "-c", PLAIN, json.dumps(asked)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for task, (student, texts), found in zip(runs, asked, json.loads(done.stdout.splitlines()[-1]), strict=True):
        config = json.loads((Path(student) / "config.json").read_text())
        with (Path(student) / "predictions.csv").open(encoding="utf-8") as file:
            predicted = list(csv.DictReader(file))
        assert len(found) == len(texts)
        for answers, row in zip(found, predicted, strict=False):
            scores = {answer["label"]: answer["score"] for answer in answers}
            if task == "numbers":
                assert list(scores.values()) == pytest.approx([float(row["prediction"])], abs=1e-5)
                continue
            logits = np.array([float(row[f"logit_{k}"]) for k in range(len(config["id2label"]))])
            shares = 1 / (1 + np.exp(-logits)) if task == "several" else np.exp(logits) / np.exp(logits).sum()
            assert [scores[config["id2label"][str(k)]] for k in range(len(logits))] == pytest.approx(shares, abs=1e-5)
