"""A model's predictions, and its scores by split.

Shapes: N examples of a corpus, n of a split, K logits of each.
"""

import csv
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.corpora.delimited import long_cells
from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError
from lugpi_core.files import read_json, whole_file
from lugpi_core.fingerprint import digest
from train.file_names import METRICS
from train.learning.task_rules import ByMetric, rules_of

if TYPE_CHECKING:
    import torch

THRESHOLDS = "thresholds"
_ROWS_AT_ONCE = 4096


def chosen_thresholds(corpus: Corpus, logits_NK: "torch.Tensor") -> tuple[float, ...] | None:
    """Return the threshold of each class of a multi-label corpus with the highest F1 on its validation examples; None for other tasks."""
    rows = corpus.rows("validation")
    return rules_of(corpus.task).thresholds(corpus.targets()[rows], logits_NK.numpy()[rows])


def scores_by_split(
    corpus: Corpus, logits_NK: "torch.Tensor", thresholds: Sequence[float] | None = None, *, unread: Container[int] = ()
) -> dict[str, dict[str, float | None]]:
    """Return every metric of the task as ``{"accuracy": {split: …}, "macro_f1": {split: …}}`` from the logits of all examples, in the
    corpus's order; None where a metric is undefined. Examples ``unread`` are not counted."""
    rules, targets = rules_of(corpus.task), corpus.targets()
    scores: dict[str, dict[str, float | None]] = {metric: {} for metric in rules.metrics}
    for split in SPLITS:
        rows = [row for row in corpus.rows(split) if row not in unread]
        for metric, value in rounded(rules.scores(targets[rows], logits_NK.numpy()[rows], thresholds)).items():
            scores[metric][split] = value
    return scores


def sharpness_on(corpus: Corpus, logits_NK: "torch.Tensor", rows: Sequence[int]) -> dict[str, float | None]:
    """Return the primary metric and the mean confidence of the answers to some examples, from the logits of all."""
    rules, logits = rules_of(corpus.task), logits_NK.numpy()[rows]
    scores = rounded(rules.scores(corpus.targets()[rows], logits, chosen_thresholds(corpus, logits_NK)))
    return {"score": scores[rules.metrics[0]], "confidence": confidence(corpus.task, logits)}


def confidence(task: Task, logits_NK: NDArray[Any]) -> float | None:
    """Return the mean probability of the answers: of each text's most likely class; of several labels of each class's answer, yes or no, by
    the even threshold. None for a regression."""
    if task == "regression":
        return None
    outputs_NK = rules_of(task).outputs(logits_NK)
    of_answers = outputs_NK.max(axis=1) if task == "single-label" else np.maximum(outputs_NK, 1 - outputs_NK)
    return float(of_answers.mean())


def rounded(scores: ByMetric) -> ByMetric:
    """Return scores with six decimals; the squared error, which is small for small numbers, with seven digits."""
    digits = {metric: value if value is None else float(f"{value:.7g}") for metric, value in scores.items() if metric == "mse"}
    return {metric: value if value is None else round(value, 6) for metric, value in scores.items()} | digits


def write_predictions(path: Path, corpus: Corpus, logits_NK: "torch.Tensor") -> None:
    """Write one line per example: id, split, label, and the logits by class number.

    Of a multi-label corpus ``label_0`` … are 1 for the example's classes and 0 for the others. Of a regression ``target`` is its number,
    and ``prediction`` the model's.
    """
    targets = corpus.targets() if corpus.task == "regression" else corpus.targets().astype(np.int64)
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_header(corpus.task, len(corpus.label_names)))
        ids, splits = iter(corpus.columns.ids), iter(corpus.columns.splits)
        for start in range(0, len(logits_NK), _ROWS_AT_ONCE):
            logits_BK = logits_NK[start : start + _ROWS_AT_ONCE].tolist()
            # The rows of this part go first: zip takes no id after them.
            for logits_K, id_, split, target in zip(logits_BK, ids, splits, targets[start:], strict=False):
                writer.writerow([id_, SPLITS[split], *np.atleast_1d(target), *(f"{logit:.7g}" for logit in logits_K)])


def _header(task: Task, classes: int) -> list[str]:
    match task:
        case "single-label":
            return ["id", "split", "label", *(f"logit_{k}" for k in range(classes))]
        case "multi-label":
            return ["id", "split", *(f"label_{k}" for k in range(classes)), *(f"logit_{k}" for k in range(classes))]
        case "regression":
            return ["id", "split", "target", "prediction"]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A model's predictions for the n examples of a split.

    Attributes:
        ids: of the examples, in the corpus's order.
        labels: as ``Corpus.targets()``: int64 [n], float32 [n, K] or float32 [n].
        logits: float64 [n, K], to seven digits, all of them finite; of a regression [n, 1], the numbers.
        task: what the labels are.
        thresholds: of a multi-label model's classes, from its ``metrics.json``.
    """

    ids: tuple[str, ...]
    labels: NDArray[Any]
    logits: NDArray[np.float64]
    task: Task = "single-label"
    thresholds: tuple[float, ...] | None = None

    @cached_property
    def examples(self) -> str:
        """Hash of ids and labels, in order: equal if two models were scored on the same examples."""
        return digest(list(zip(self.ids, self.labels.tolist(), strict=True)))

    @cached_property
    def predicted(self) -> NDArray[Any]:
        """The answers, in the form of the labels: the class with the highest logit, the first of several; the classes that reach their
        thresholds; or the numbers."""
        return rules_of(self.task).answers(self.logits, self.thresholds)

    @property
    def hits(self) -> NDArray[np.bool_]:
        """bool [n], whether each answer is the label, all of its classes if there are several; of no use for numbers."""
        equal = self.predicted == self.labels
        return np.asarray(equal.all(axis=1) if equal.ndim == 2 else equal)

    @cached_property
    def scores(self) -> ByMetric:
        """Every metric of the task; None where it is undefined."""
        return rules_of(self.task).scores(self.labels, self.logits, self.thresholds)

    @property
    def accuracy(self) -> float:
        """Share of the examples that were classified correctly."""
        return float(self.hits.mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes; of a single-label task, of those that are labels or predictions."""
        macro_f1 = self.scores["macro_f1"]
        assert macro_f1 is not None, self.task
        return macro_f1


def read_predictions(path: Path) -> dict[str, Predicted]:
    """Return what ``write_predictions`` wrote, by split. The thresholds of a multi-label model are read from the ``metrics.json`` beside
    it.

    Raises:
        InputError: the file is missing or damaged, or a split has no example.
    """
    remedy = "remove the model's folder and train it again"
    if not path.is_file():
        raise InputError(got=f"no {path}", expected="the predictions of a finished model", do=remedy)
    rows: dict[str, list[tuple[str, list[str], list[str]]]] = {split: [] for split in SPLITS}
    try:
        with path.open(newline="", encoding="utf-8") as file, long_cells():
            lines = csv.reader(file)
            header = next(lines, [])
            task, labels = _layout(header)
            for cells in lines:
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} columns for {len(header)}")
                rows[cells[1]].append((cells[0], cells[2 : 2 + labels], cells[2 + labels :]))
        thresholds = tuple(map(float, read_json(path.with_name(METRICS))[THRESHOLDS])) if task == "multi-label" else None
        return {split: _predicted(of_split, task, thresholds) for split, of_split in rows.items()}
    except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise InputError(got=f"{path}, damaged ({error})", expected="the file as lugpi wrote it", do=remedy) from None


def _layout(header: list[str]) -> tuple[Task, int]:
    """Return the task that a first line belongs to, and the number of columns with its labels."""
    layouts: tuple[tuple[Task, int, int], ...] = (
        ("single-label", len(header) - 3, 1),
        ("multi-label", (len(header) - 2) // 2, (len(header) - 2) // 2),
        ("regression", 1, 1),
    )
    for task, classes, labels in layouts:
        if header == _header(task, classes) and classes >= (2 if task == "single-label" else 1):
            return task, labels
    raise ValueError(f"a first line {','.join(header)[:80]!r}" if header else "empty")


def _predicted(rows: list[tuple[str, list[str], list[str]]], task: Task, thresholds: tuple[float, ...] | None) -> Predicted:
    if not rows:
        raise ValueError("a split without examples")
    names, labels, logits = zip(*rows, strict=True)
    kind = np.int64 if task == "single-label" else np.float32
    numbers = np.array([[int(cell) if task == "single-label" else float(cell) for cell in cells] for cells in labels], kind)
    predicted = Predicted(
        ids=names,
        labels=numbers if task == "multi-label" else numbers[:, 0],
        logits=np.array([list(map(float, cells)) for cells in logits], np.float64),
        task=task,
        thresholds=thresholds,
    )
    if not np.isfinite(predicted.logits).all() or not np.isfinite(predicted.labels).all():
        raise ValueError("a logit or label that is not finite")
    if task == "single-label" and not 0 <= predicted.labels.min() <= predicted.labels.max() < predicted.logits.shape[1]:
        raise ValueError("a label without a logit")
    if task == "multi-label" and (not np.isin(predicted.labels, (0, 1)).all() or len(thresholds or ()) != predicted.logits.shape[1]):
        raise ValueError("a label other than 0 and 1, or not a threshold for each class")
    return predicted
