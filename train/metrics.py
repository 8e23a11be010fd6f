"""What is measured of a model: accuracy and macro-F1 by split, the predictions themselves, and McNemar's test of two models."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.examples import SPLITS, Corpus
from lugpi_core.files import whole_file

PREDICTIONS = "predictions.csv"


def scores_by_split(corpus: Corpus, logits_NK: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return ``{"accuracy": {split: …}, "macro_f1": {split: …}}`` from the logits of every example, in the corpus's order."""
    from sklearn.metrics import f1_score

    labels = np.array([example.label for example in corpus.examples])
    predicted = logits_NK.argmax(dim=1).numpy()
    scores: dict[str, dict[str, float]] = {"accuracy": {}, "macro_f1": {}}
    for split in SPLITS:
        rows = corpus.rows(split)
        scores["accuracy"][split] = round(float((predicted[rows] == labels[rows]).mean()), 6)
        scores["macro_f1"][split] = round(float(f1_score(labels[rows], predicted[rows], average="macro", zero_division=0.0)), 6)
    return scores


def write_predictions(path: Path, corpus: Corpus, logits_NK: torch.Tensor) -> None:
    """Write one line an example: id, split, label, and the logits by class number."""
    classes = range(len(corpus.label_names))
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label", *(f"logit_{k}" for k in classes)])
        for example, logits_K in zip(corpus.examples, logits_NK.tolist(), strict=True):
            writer.writerow([example.id, example.split, example.label, *(f"{logit:.7g}" for logit in logits_K)])


def read_hits(path: Path, split: str) -> tuple[list[str], NDArray[np.bool_]]:
    """Return the ids of a split's examples and, bool [n], whether each was classified rightly.

    Raises:
        InputError: the file is missing.
    """
    if not path.is_file():
        raise InputError(got=f"no {path}", expected="the predictions of a finished model", do="train the model again")
    ids: list[str] = []
    hits: list[bool] = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] == split:
                logits = [float(value) for name, value in row.items() if name.startswith("logit_")]
                ids.append(row["id"])
                hits.append(int(np.argmax(logits)) == int(row["label"]))
    return ids, np.array(hits, dtype=bool)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """Return McNemar's exact test of two models on the same examples (McNemar 1947): the discordant counts and the two-sided binomial p."""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up in plain text."""
    widths = [max(len(line[n]) for line in (header, *rows)) for n in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)
