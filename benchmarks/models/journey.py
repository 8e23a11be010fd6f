"""One architecture through lugpi's commands, and what a plain transformers pipeline and onnxruntime say to its student.

Shapes: N texts, K classes.
"""

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.models.tiny_models import write_tiny_model
from lugpi_core.command_line import Command, run
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import EXIT_BAD_INPUT, EXIT_OK
from train.models.commands import baseline, student, teacher
from train.options.distillation import StudentOptions
from train.options.tools import EvaluateOptions, OnnxOptions
from train.options.training import BaselineOptions, TeacherOptions
from train.tools.evaluate import evaluate
from train.tools.onnx_export import onnx

# Of probabilities: the order of additions differs with the length of a batch.
EQUAL = 1e-6
# Up to here the library's own answers to a text alone and in a batch differ by rounding; evaluate reads batches, so its answers may too.
ROUNDING = 1e-5
LABELS = ("animal", "food", "sky")
_COMMANDS: dict[str, tuple[Command, type]] = {
    "baseline": (baseline, BaselineOptions),
    "teacher": (teacher, TeacherOptions),
    "student": (student, StudentOptions),
    "evaluate": (evaluate, EvaluateOptions),
    "onnx": (onnx, OnnxOptions),
}


class Refused(Exception):
    """A command ended with its one line."""

    def __init__(self, command: str, line: str) -> None:
        super().__init__(line)
        self.command = command


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one architecture.

    Attributes:
        architecture: transformers' model type.
        classifier: its class.
        tokenizer: class and algorithm of the tokenizer.
        refused: command: line, if one of them refused the model.
        evaluated: largest difference of a probability, ``train evaluate`` against a plain pipeline that reads each text alone; None if
            refused.
        batched: the same, the pipeline in batches of four against itself; above ``EQUAL`` the library's own answers depend on the batch.
        exported: largest difference of a logit, onnxruntime against torch; None if refused.
        export_refused: the line, if the student has no ONNX form.
        fault: the last line of a traceback, or what differs.
    """

    architecture: str
    classifier: str
    tokenizer: str = ""
    refused: str | None = None
    evaluated: float | None = None
    batched: float | None = None
    exported: float | None = None
    export_refused: str | None = None
    fault: str | None = None


def travel(architecture: str, classifier: str, folder: Path) -> Row:
    """Take a tiny model from its folder to a student and its ONNX file, in a new folder; return what was seen.

    Any exception of a command or of transformers, but for a command's one line, is a fault of ours and is not caught.
    """
    texts = [example.text for example in load_corpus("demo").examples[:48]]
    row = Row(architecture=architecture, classifier=classifier, tokenizer=write_tiny_model(architecture, texts, folder / "model").kind)
    asked = _questions(texts)
    try:
        trained = _train(folder, texts)
        evaluated_NK = _evaluate(trained, folder, asked)
    except Refused as refused:
        return replace(row, refused=f"{refused.command}: {_without_folder(refused, folder)}")
    alone_NK, batched_NK = _pipeline(trained, asked)
    evaluated, batched = _difference(evaluated_NK, alone_NK), _difference(batched_NK, alone_NK)
    limit = 2 * batched if EQUAL < batched <= ROUNDING else EQUAL
    fault = None if evaluated <= limit else f"evaluate differs from the pipeline by {evaluated:g}"
    row = replace(row, evaluated=evaluated, batched=batched, fault=fault)
    try:
        return replace(row, exported=float(_command("onnx", "--model", trained)["max_logit_difference"]))
    except Refused as refused:
        return replace(row, export_refused=_without_folder(refused, folder))


def _without_folder(refused: Refused, folder: Path) -> str:
    return str(refused).replace(f"{folder}{os.sep}", "")


def _train(folder: Path, texts: Sequence[str]) -> Path:
    """Train a baseline, a teacher and a student for two steps each; return the student's folder."""
    _write_texts(folder / "corpus.csv", texts)
    corpus = ("--dataset", folder / "corpus.csv", "--split-column", "split", "--run-dir", folder / "run")
    model = ("--text-model", folder / "model", "--epochs", 1, "--batch-size", 12, "--learning-rate", 1e-3, "--device", "cpu")
    _command("baseline", *corpus, *model)
    _command("teacher", *corpus, *model, "--privileged", "none", "--name", "teacher")
    _command("student", *corpus, *model, "--teachers", "teacher")
    return folder / "run" / "student"


def _evaluate(classifier: Path, folder: Path, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the probabilities [N, K] of ``train evaluate``."""
    _write_texts(folder / "new.csv", texts)
    written = folder / "new.predictions.csv"
    _command("evaluate", "--model", classifier, "--input", folder / "new.csv", "--output", written, "--device", "cpu")
    with written.open(newline="", encoding="utf-8") as file:
        return np.array([[float(row[name]) for name in LABELS] for row in csv.DictReader(file)])


def _pipeline(classifier: Path, texts: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores [N, K] of a plain transformers pipeline: each text alone, and in batches of four."""
    from transformers import pipeline

    classify: Callable[..., Any] = pipeline("text-classification", model=str(classifier), top_k=None, device="cpu")
    alone = [classify(text, truncation=True)[0] for text in texts]
    return _scores(alone), _scores(classify(list(texts), truncation=True, batch_size=4))


def _scores(answers: Sequence[Sequence[dict[str, Any]]]) -> NDArray[np.float64]:
    by_label = [{one["label"]: one["score"] for one in answer} for answer in answers]
    return np.array([[scores[name] for name in LABELS] for scores in by_label])


def _command(name: str, *arguments: object) -> dict[str, Any]:
    """Run ``python -m train NAME`` in this process; return its final JSON.

    Raises:
        Refused: its exit status is 2.
    """
    command, options = _COMMANDS[name]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(command, options, list(map(str, arguments)), prog=f"python -m train {name}")
    if status == EXIT_BAD_INPUT:
        (line,) = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
        raise Refused(name, line.removeprefix("error: "))
    assert status == EXIT_OK, err.getvalue()
    figures: dict[str, Any] = json.loads(out.getvalue())
    return figures


def _questions(texts: Sequence[str]) -> list[str]:
    """Return texts of unequal length: one word (CANINE reads no text of one letter), sentences, several of them, and one longer than any of
    the models reads."""
    return [max(texts[0].split(), key=len), *texts[:5], " ".join(texts[5:8]), " ".join(texts), *texts[8:11]]


def _write_texts(path: Path, texts: Sequence[str]) -> None:
    splits = ["train"] * (len(texts) // 2) + ["validation"] * (len(texts) // 4)
    splits += ["test"] * (len(texts) - len(splits))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label", "split"))
        writer.writerows((text, LABELS[n % len(LABELS)], split) for n, (text, split) in enumerate(zip(texts, splits, strict=True)))


def _difference(one_NK: NDArray[np.float64], other_NK: NDArray[np.float64]) -> float:
    return float(f"{np.abs(one_NK - other_NK).max():.2g}")
