"""For the tests of reports: a run with hostile texts and made-up models and images."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.thumbnails import FOLDER, ThumbnailSource, write_thumbnails
from tests.support.small_tables import PAPER_LOSS
from train.file_names import METRICS, PREDICTIONS, TRAINING, WEIGHTS
from train.learning.task_rules import rules_of
from train.models.predictions import chosen_thresholds, scores_by_split, write_predictions

BREAKOUT = "</script></style><img src=x onerror=alert(1)><!--"
HOSTILE = (
    f"{BREAKOUT} & \"quotes\" 'more' <b>bold</b>",
    "\u202eright to left, forced\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "long " * 2000,
    "unbroken" * 1250,
    "javascript:alert(1) {{7*7}} ${7*7} \\u003cscript\\u003e ]]>",
    "a nul \x01 a bell \x07 and a line\u2028separator",
)
LABELS = ("plain", BREAKOUT, "\u05e2\u05d1\u05e8\u05d9\u05ea")


def hostile_csv(folder: Path, tests: int = 24) -> Path:
    """Write a corpus: six train and validation texts, and tests; label n % 3."""
    path = folder / "hostile.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "split"])
        for split, count in (("train", 6), ("validation", 6), ("test", tests)):
            for n in range(count):
                writer.writerow([f"{split} {n}: {HOSTILE[n % len(HOSTILE)]}", LABELS[n % 3], split])
    return path


def corpus_of(path: Path) -> Corpus:
    return load_corpus(path, CorpusSettings(split_column="split"))


def write_model(run: Path, name: str, corpus: Corpus, wrong: Mapping[int, int], **training: Any) -> Path:
    """Write a finished model that is right except on some test examples.

    Args:
        run: the run's folder.
        name: of the model's folder.
        corpus: that it was trained on.
        wrong: by the number of a test example, the distance of its answer from the right class.
        training: keys of ``training.json``, including ``command``; ``teacher_names`` are a student's teachers, ``seed`` is the model's.
    """
    folder = run / name
    folder.mkdir(parents=True)
    seed, teacher_names = training.pop("seed", 0), training.pop("teacher_names", ())
    classes, number = len(corpus.label_names), {row: n for n, row in enumerate(corpus.rows("test"))}
    answered = [(one.label + wrong.get(number.get(row, -1), 0)) % classes for row, one in enumerate(corpus.examples)]
    logits = torch.nn.functional.one_hot(torch.tensor(answered), classes) * (1.0 + torch.arange(len(answered))[:, None] % 4)
    write_predictions(folder / PREDICTIONS, corpus, logits)
    (folder / WEIGHTS).write_bytes(b"weights")
    (folder / TRAINING).write_text(json.dumps({"flags": {"seed": seed}, "corpus": corpus.fingerprint(), **training}))
    history = [{"seconds": 1.0, "loss": 2.0 / (n + 1), "validation_accuracy": n / 4} for n in range(4)]
    metrics = {
        "command": training["command"],
        **scores_by_split(corpus, logits.float()),
        "history": history,
        "peak_memory": {"host_bytes": 1},
        "teachers": [{"name": teacher} for teacher in teacher_names],
        "examples": corpus.counts(),
        "config": {"kd_preset": "paper"},
        "notice": None,
        "seed": seed,
    }
    (folder / METRICS).write_text(json.dumps(metrics))
    return folder


def write_run(run: Path, corpus: Corpus, *, images: int | None = None, generator: str = "fast") -> None:
    """Write baseline, teacher and student, and images of the first test examples (default: of all).

    The baseline is wrong on test examples 0 to 5, the teacher on 0, 1 and 6, the student on 0, 2 and 7.
    """
    write_model(run, "baseline", corpus, dict.fromkeys(range(6), 1), command="baseline")
    write_model(run, "teacher", corpus, {0: 1, 1: 2, 6: 1}, command="teacher", privileged="images", image_tokens="clip-demo")
    loss = {"layers": None, "unlabelled": None, "shares": [1.0], "distillation": PAPER_LOSS}
    write_model(run, "student", corpus, {0: 1, 2: 1, 7: 1}, command="student", teacher_names=["teacher"], **loss)
    rows = corpus.rows("test")[:images]
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    source = ThumbnailSource(corpus=corpus.fingerprint(), generator=generator, notice=None)
    write_thumbnails(run / FOLDER, dict.fromkeys(rows, noise), source)


def flags(path: Path, run: Path) -> dict[str, Any]:
    """Options of the commands on the corpus."""
    return {"dataset": str(path), "split_column": "split", "run_dir": run}


def write_task_run(run: Path, corpus: Corpus, *, seeds: int = 2) -> None:
    """Write baseline, teacher, its text-only control and their students of a multi-label or regression corpus, each with other errors."""
    loss = {"layers": None, "unlabelled": None, "shares": [1.0], "distillation": PAPER_LOSS}
    for seed in range(seeds):
        tail = f"-seed{seed}" if seed else ""
        more: dict[str, dict[str, Any]] = {
            "baseline": {"command": "baseline"},
            "teacher-planted": {"command": "teacher", "privileged": "images", "image_tokens": "planted"},
            "teacher-none": {"command": "teacher", "privileged": "none", "image_tokens": None},
            "student-planted": {"command": "student", "teacher_names": [f"teacher-planted{tail}"], **loss},
            "student-none": {"command": "student", "teacher_names": [f"teacher-none{tail}"], **loss},
        }
        for n, (name, training) in enumerate(more.items()):
            noise = {"baseline": 8.0, "teacher-planted": 0.05, "student-planted": 0.3}.get(name, 0.8)
            write_task_model(run, f"{name}{tail}", corpus, made_up_logits(corpus, noise, number=10 * seed + n), seed=seed, **training)


def made_up_logits(corpus: Corpus, noise: float, *, number: int) -> torch.Tensor:
    """Return right answers with noise, float32 [N, K]; ``number`` is the seed of the noise."""
    targets = corpus.targets().astype(np.float64)
    targets = 4 * targets - 2 if corpus.task == "multi-label" else targets[:, None]
    return torch.from_numpy(targets + 2 * noise * np.random.default_rng(number).normal(size=targets.shape)).float()


def write_task_model(run: Path, name: str, corpus: Corpus, logits: torch.Tensor, **training: Any) -> Path:
    """Write a finished model of a multi-label or regression corpus with these logits of all examples; ``training`` is as for
    ``write_model``."""
    folder = run / name
    folder.mkdir(parents=True)
    seed, teacher_names = training.pop("seed", 0), training.pop("teacher_names", ())
    thresholds, metric = chosen_thresholds(corpus, logits), rules_of(corpus.task).metrics[0]
    write_predictions(folder / PREDICTIONS, corpus, logits)
    (folder / WEIGHTS).write_bytes(name.encode())
    (folder / TRAINING).write_text(json.dumps({"flags": {"seed": seed}, "corpus": corpus.fingerprint(), **training}))
    metrics = {
        "command": training["command"],
        "task": corpus.task,
        "metric": metric,
        **scores_by_split(corpus, logits, thresholds),
        **({} if thresholds is None else {"thresholds": list(thresholds)}),
        "history": [{"seconds": 1.0, "loss": 2.0 / (n + 1), f"validation_{metric}": n / 4} for n in range(4)],
        "peak_memory": {"host_bytes": 1},
        "teachers": [{"name": teacher} for teacher in teacher_names],
        "examples": corpus.counts(),
        "config": {"kd_preset": "paper"},
        "notice": None,
        "seed": seed,
    }
    (folder / METRICS).write_text(json.dumps(metrics))
    return folder
