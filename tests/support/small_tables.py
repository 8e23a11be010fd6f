"""For the tests of tables: finished models with made-up predictions, and the options of small real ones."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from train.file_names import METRICS, PREDICTIONS, TRAINING, WEIGHTS

PAPER_LOSS = {"hard": 1.0, "alpha": 3.0, "beta": 1.0, "temperature": 8.0, "soften_student": False, "embedding_loss": "mse"}


def fake_model(run: Path, name: str, hits: Mapping[str, Sequence[bool]], *, seed: int = 0, **training: Any) -> Path:
    """Write a finished model's folder.

    Args:
        run: the run's folder.
        name: of the model's folder.
        hits: which examples of validation and test it classifies correctly; example n has label n % 2.
        seed: the model's.
        training: further keys of ``training.json``, including ``command``. Of a student, ``teacher_names`` are its teachers' folders, and
            ``kd_preset``, ``terms`` and ``dataset``, the corpus's name, go into ``metrics.json``.
    """
    folder = run / name
    folder.mkdir(parents=True)
    teacher_names = training.pop("teacher_names", [])
    config, terms = {"kd_preset": training.pop("kd_preset", "paper")}, training.pop("terms", None)
    recorded = {"dataset": training.pop("dataset")} if "dataset" in training else {}
    recorded |= {"shots": training["shots"]} if "shots" in training else {}
    flags = {"epochs": 2, "seed": seed} | training.pop("flags", {})
    (folder / TRAINING).write_text(json.dumps({"flags": flags, "corpus": "abc", **training}))
    (folder / WEIGHTS).write_bytes(b"weights")
    accuracy = {"train": 1.0, **{split: sum(right) / len(right) for split, right in hits.items()}}
    metrics = {
        "command": training["command"],
        **recorded,
        "accuracy": accuracy,
        "history": [{"seconds": 1800.0}, {"seconds": 1800.0}],
        "peak_memory": {"host_bytes": 2_500_000_000},
        "teachers": [{"name": teacher} for teacher in teacher_names],
        "terms": terms,
        "config": config,
        "examples": {"train": 2, **{split: len(right) for split, right in hits.items()}},
        "notice": None,
        "seed": seed,
    }
    (folder / METRICS).write_text(json.dumps(metrics))
    with (folder / PREDICTIONS).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label", "logit_0", "logit_1"])
        for split, right in {"train": [True, True], **hits}.items():
            for n, is_right in enumerate(right):
                best = n % 2 if is_right else 1 - n % 2
                writer.writerow([f"{split}/{n}", split, n % 2, 1.5 - best, best + 0.25])
    return folder


def fake_teacher(run: Path, name: str, hits: Mapping[str, Sequence[bool]], *, privileged: str = "images", **more: Any) -> Path:
    """Write a teacher's folder; unless ``more`` has ``image_tokens``, it has read clip-demo, or nothing."""
    column = None if privileged == "none" else more.pop("image_tokens", "clip-demo")
    return fake_model(run, name, hits, command="teacher", privileged=privileged, image_tokens=column, **more)


def fake_student(run: Path, name: str, hits: Mapping[str, Sequence[bool]], *, teacher_names: Sequence[str], **more: Any) -> Path:
    """Write a student's folder; ``more`` may have weights of its loss, layers and unlabelled texts."""
    loss = PAPER_LOSS | {name: more.pop(name) for name in list(more) if name in (*PAPER_LOSS, "predict_image")}
    shares = more.pop("shares", [1 / len(teacher_names)] * len(teacher_names))
    rest = {"layers": None, "unlabelled": None, "shares": shares, "distillation": loss} | more
    return fake_model(run, name, hits, command="student", teacher_names=teacher_names, **rest)


def right(count: int, of: int, *, first: int = 0) -> list[bool]:
    """``count`` hits among ``of`` examples, from number ``first`` on."""
    return [first <= n < first + count for n in range(of)]


def scores(count: int, of: int = 400, *, first: int = 0) -> dict[str, list[bool]]:
    """Hits of validation, of which half are right, and of test."""
    return {"validation": right(5, 10), "test": right(count, of, first=first)}


def recorded_answers(folder: Path, split: str) -> tuple[list[int], list[int]]:
    """Labels and predicted classes of a split, from the logits."""
    with (folder / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    classes = sum(name.startswith("logit_") for name in rows[0])
    return [int(row["label"]) for row in rows], [max(range(classes), key=lambda k: float(row[f"logit_{k}"])) for row in rows]


def assert_recomputed(run: Path, report: dict[str, Any]) -> None:
    """Compare every figure of ``tables.json`` with one computed here from the predictions."""
    assert json.loads((run / "tables.json").read_text()) == report
    hits: dict[tuple[str, int], list[bool]] = {}
    for name, row in report["rows"].items():
        for model in row["models"]:
            for split in ("validation", "test"):
                labels, predicted = recorded_answers(run / model["folder"], split)
                right = [label == best for label, best in zip(labels, predicted, strict=True)]
                assert model[split]["accuracy"] == pytest.approx(sum(right) / len(right))
                expected = f1_score(labels, predicted, average="macro", zero_division=0.0)
                assert model[split]["macro_f1"] == pytest.approx(expected)
            hits[name, model["seed"]] = right
        for split in ("validation", "test") if row["models"] else ():
            for score in ("accuracy", "macro_f1"):
                values = [model[split][score] for model in row["models"]]
                mean = sum(values) / len(values)
                spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else None
                assert row[split][score]["mean"] == pytest.approx(mean)
                assert row[split][score]["sd"] == (None if spread is None else pytest.approx(spread, abs=1e-12))
    by_pair: dict[tuple[str, str], Any] = {}
    for table in report["tables"]:
        for test in table["comparisons"]:
            pairs = [(hits[test["row"], seed], hits[test["reference"], seed]) for seed in test["seeds"]]
            only_first = sum(one and not other for first, second in pairs for one, other in zip(first, second, strict=True))
            only_second = sum(other and not one for first, second in pairs for one, other in zip(first, second, strict=True))
            assert (test["pooled"]["only_first"], test["pooled"]["only_second"]) == (only_first, only_second)
            assert test["difference"] == pytest.approx((only_first - only_second) / sum(len(first) for first, _ in pairs))
            assert (test["interval_over_seeds"] is None) is (len(pairs) == 1)
            assert by_pair.setdefault((test["row"], test["reference"]), test) == test, "one finding per pair, whatever the table"


def flags(small_csv: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """Options of a model or of tables on the small corpus: the embedded text model, one epoch, on the CPU."""
    own = {"dataset": str(small_csv), "split_column": "split", "run_dir": folder, "text_model": "demo", "epochs": 1, "device": "cpu"}
    return {**own, "optimizer": "adamw", "learning_rate": 1e-3, **more}


def words(given: dict[str, Any]) -> list[str]:
    """Return options as a command line."""
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
