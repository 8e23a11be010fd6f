"""A model's predictions, and its accuracy and macro-F1 by split."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.corpora.user_files import long_cells
from lugpi_core.errors import InputError
from lugpi_core.files import whole_file
from lugpi_core.fingerprint import digest


def scores_by_split(corpus: Corpus, logits_NK: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return ``{"accuracy": {split: …}, "macro_f1": {split: …}}`` from the logits of all examples, in the corpus's order."""
    labels = np.array([example.label for example in corpus.examples])
    predicted = logits_NK.argmax(dim=1).numpy()
    scores: dict[str, dict[str, float]] = {"accuracy": {}, "macro_f1": {}}
    for split in SPLITS:
        rows = corpus.rows(split)
        scores["accuracy"][split] = round(float((predicted[rows] == labels[rows]).mean()), 6)
        scores["macro_f1"][split] = round(macro_f1(labels[rows], predicted[rows]), 6)
    return scores


def write_predictions(path: Path, corpus: Corpus, logits_NK: torch.Tensor) -> None:
    """Write one line per example: id, split, label, and the logits by class number."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_header(len(corpus.label_names)))
        for example, logits_K in zip(corpus.examples, logits_NK.tolist(), strict=True):
            writer.writerow([example.id, example.split, example.label, *(f"{logit:.7g}" for logit in logits_K)])


def _header(classes: int) -> list[str]:
    return ["id", "split", "label", *(f"logit_{k}" for k in range(classes))]


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A model's predictions for the n examples of a split.

    Attributes:
        ids: of the examples, in the corpus's order.
        labels: int64 [n].
        logits: float64 [n, K], to seven digits, all of them finite.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]

    @cached_property
    def examples(self) -> str:
        """Hash of ids and labels, in order: equal if two models were scored on the same examples."""
        return digest(list(zip(self.ids, self.labels.tolist(), strict=True)))

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """int64 [n], the class with the highest logit, the first of several."""
        classes: NDArray[np.int64] = self.logits.argmax(axis=1)
        return classes

    @property
    def hits(self) -> NDArray[np.bool_]:
        """bool [n], whether each example was classified correctly."""
        hits: NDArray[np.bool_] = self.predicted == self.labels
        return hits

    @property
    def accuracy(self) -> float:
        """Share of the examples that were classified correctly."""
        return float(self.hits.mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that are labels or predictions."""
        return macro_f1(self.labels, self.predicted)


def read_predictions(path: Path) -> dict[str, Predicted]:
    """Return what ``write_predictions`` wrote, by split.

    Raises:
        InputError: the file is missing or damaged, or a split has no example.
    """
    remedy = "remove the model's folder and train it again"
    if not path.is_file():
        raise InputError(got=f"no {path}", expected="the predictions of a finished model", do=remedy)
    rows: dict[str, list[tuple[str, int, list[float]]]] = {split: [] for split in SPLITS}
    try:
        with path.open(newline="", encoding="utf-8") as file, long_cells():
            lines = csv.reader(file)
            header = next(lines, [])
            width = len(header)
            if header != _header(width - 3) or width < 5:
                raise ValueError(f"a first line {','.join(header)[:80]!r}" if header else "empty")
            for cells in lines:
                name, split, label, *logits = cells
                if len(cells) != width:
                    raise ValueError(f"{len(cells)} columns for {width}")
                rows[split].append((name, int(label), list(map(float, logits))))
        return {split: _predicted(of_split) for split, of_split in rows.items()}
    except (ValueError, KeyError, OverflowError, csv.Error) as error:
        raise InputError(got=f"{path}, damaged ({error})", expected="the file as lugpi wrote it", do=remedy) from None


def _predicted(rows: list[tuple[str, int, list[float]]]) -> Predicted:
    if not rows:
        raise ValueError("a split without examples")
    names, labels, logits = zip(*rows, strict=True)
    predicted = Predicted(ids=names, labels=np.array(labels, np.int64), logits=np.array(logits, np.float64))
    if not np.isfinite(predicted.logits).all():
        raise ValueError("a logit that is not finite")
    if not 0 <= predicted.labels.min() <= predicted.labels.max() < predicted.logits.shape[1]:
        raise ValueError("a label without a logit")
    return predicted


def macro_f1(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that are labels or predictions; a class that is never both has 0."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))
