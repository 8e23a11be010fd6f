"""The figures of every row: read anew from its models' predictions, over seeds, beside the baseline and the text-only control.

Shapes: S seeds.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import hash_file
from train.data.teacher_outputs import WEIGHTS
from train.evidence.paper_figures import paper_accuracy
from train.evidence.rows import BASELINE, Group, Row
from train.evidence.statistics import Comparison, compare, holm
from train.models.model_folder import METRICS, metrics_of
from train.models.predictions import PREDICTIONS, Predicted, read_predictions

# Of the adjusted p, below which it speaks for a difference.
SIGNIFICANCE = 0.05
SHOWN_SPLITS = ("validation", "test")
# What is written of an accuracy, and rounding of the logits to seven digits, may move it by a tie or two, not by this.
_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One finished model: its folder, its recorded metrics, and what it said of validation and test examples."""

    folder: Path
    metrics: Mapping[str, Any]
    predicted: Mapping[str, Predicted]

    @property
    def test(self) -> Predicted:
        """What it said of the test examples."""
        return self.predicted["test"]

    @cached_property
    def weights_hash(self) -> str:
        """Hash of its weights, by which its students know it."""
        return hash_file(self.folder / WEIGHTS)

    @property
    def train_s(self) -> float:
        """Seconds that its epochs took, those of an interrupted training among them."""
        return float(sum(record["seconds"] for record in self.metrics["history"]))

    @property
    def peak_bytes(self) -> int:
        """Most memory in use: the card's where there was one, else the host's."""
        peak = self.metrics["peak_memory"]
        return int(peak.get("device_bytes", peak["host_bytes"]))


@dataclass(frozen=True, kw_only=True)
class Adjusted:
    """A comparison, with its p adjusted for all others of the report."""

    row: str
    reference: str
    comparison: Comparison
    holm_p: float

    @property
    def finding(self) -> str:
        """``better``, ``worse`` or ``not shown``: shown is what all say, the adjusted p, below 0.05, and the intervals without nought, over
        texts and, with several seeds, over seeds and texts."""
        (low, high), (seeds_low, seeds_high) = (self.comparison.low, self.comparison.high), self.comparison.shown
        if self.holm_p < SIGNIFICANCE and min(low, seeds_low) > 0:
            return "better"
        return "worse" if self.holm_p < SIGNIFICANCE and max(high, seeds_high) < 0 else "not shown"

    def record(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        names = {"row": self.row, "reference": self.reference}
        return {**names, **self.comparison.record(), "holm_p": self.holm_p, "finding": self.finding}


def scored(folder: Path) -> Scored:
    """Read a finished model's predictions; where its recorded accuracies are others, that is said.

    Raises:
        InputError: the predictions are missing or damaged.
    """
    metrics = metrics_of(folder)
    every_split = read_predictions(folder / PREDICTIONS)
    counts = {split: len(one.ids) for split, one in every_split.items()}
    if unlike := {split: (counts[split], count) for split, count in metrics["examples"].items() if counts.get(split, count) != count}:
        split, (found, wanted) = next(iter(unlike.items()))
        raise InputError(
            got=f"{folder / PREDICTIONS} with {found:,} {split} examples",
            expected=f"{wanted:,}, as its {METRICS} say",
            do="remove the model's folder and train it again",
        )
    predicted = {split: every_split[split] for split in SHOWN_SPLITS}
    for split, one in predicted.items():
        if abs(one.accuracy - metrics["accuracy"][split]) > _ROUNDING:
            recorded = f"its {METRICS} say {metrics['accuracy'][split]:.4f}"
            say(f"warning: {folder / PREDICTIONS} gives {split} accuracy {one.accuracy:.4f}, {recorded}; the former is shown")
    return Scored(folder=folder, metrics=metrics, predicted=predicted)


# Figures of one model by their names; None where there is nothing to hold it against.
Figures = Mapping[str, float | None]


def row_record(
    row: Row, models: Mapping[int, Scored], seeds: Sequence[int], dataset: str | None, fidelity: Mapping[Path, Figures]
) -> dict[str, Any]:
    """Return the figures of one row as a JSON value; those over seeds are None where no model is there.

    Args:
        row: the row.
        models: its finished models by seed.
        seeds: those that are wanted.
        dataset: a corpus of the paper, or None.
        fidelity: fidelity and calibration of every model, by its folder.
    """
    each = [models[seed] for seed in seeds if seed in models]
    return {
        "row": row.name,
        "seeds": [seed for seed in seeds if seed in models],
        "missing_seeds": [seed for seed in seeds if seed not in models],
        **{split: _over_seeds([one.predicted[split] for one in each]) for split in SHOWN_SPLITS},
        "fidelity": _figures_over_seeds([fidelity[one.folder] for one in each]),
        "paper": None if dataset is None else paper_accuracy(row, dataset),
        "train_hours": statistics.fmean(one.train_s for one in each) / 3600 if each else None,
        "peak_gb": max(one.peak_bytes for one in each) / 1e9 if each else None,
        "models": [model_record(one, fidelity[one.folder]) for one in each],
    }


def model_record(model: Scored, fidelity: Figures) -> dict[str, Any]:
    """Return the figures of one model as a JSON value."""
    scores = {split: {"accuracy": one.accuracy, "macro_f1": one.macro_f1} for split, one in model.predicted.items()}
    cost = {"train_s": round(model.train_s, 3), "peak_bytes": model.peak_bytes}
    return {"seed": model.metrics["seed"], "folder": model.folder.name, **scores, "fidelity": dict(fidelity), **cost}


def _over_seeds(predicted: Sequence[Predicted]) -> dict[str, Any] | None:
    if not predicted:
        return None
    return {"accuracy": _spread([one.accuracy for one in predicted]), "macro_f1": _spread([one.macro_f1 for one in predicted])}


def _figures_over_seeds(each: Sequence[Figures]) -> dict[str, Any] | None:
    """Return mean and spread of each figure over the models that have it; None for a figure that none has, and without a model."""
    if not each:
        return None
    values = {name: [value for figures in each if (value := figures[name]) is not None] for name in each[0]}
    return {name: _spread(found) if found else None for name, found in values.items()}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; one value has none."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}


def adjusted_comparisons(rows: Sequence[Row], models: Mapping[str, Mapping[int, Scored]], seeds: Sequence[int]) -> list[Adjusted]:
    """Return every comparison of a report: each row with the baseline and with its text-only control, over the seeds that both have, the
    p of all adjusted together by Holm's method.

    Args:
        rows: of all tables, each once.
        models: finished models by the names of their rows, and by seed; the references need not be rows of the table.
        seeds: those that are wanted.
    """
    pairs = [(row.name, reference) for row in rows for reference in (BASELINE, row.control) if reference not in (None, row.name)]
    found = [(name, reference, _compared(models.get(name, {}), models.get(str(reference), {}), seeds)) for name, reference in pairs]
    there = [(name, str(reference), one) for name, reference, one in found if one is not None]
    adjusted = holm([one.pooled.p for _, _, one in there])
    return [
        Adjusted(row=name, reference=reference, comparison=one, holm_p=p) for (name, reference, one), p in zip(there, adjusted, strict=True)
    ]


def _compared(first: Mapping[int, Scored], second: Mapping[int, Scored], seeds: Sequence[int]) -> Comparison | None:
    """Compare two rows; None without a seed that both have on the same test examples."""
    paired = [seed for seed in seeds if seed in first and seed in second and first[seed].test.examples == second[seed].test.examples]
    # Differences are averaged over seeds by example, so the examples have to be the same in all of them.
    paired = [seed for seed in paired if first[seed].test.examples == first[paired[0]].test.examples]
    if not paired:
        return None
    return compare(paired, [first[seed].test.hits for seed in paired], [second[seed].test.hits for seed in paired])


TITLES: Mapping[Group, str] = {
    "table1": "Table 1: baseline, images alone, teachers and students",
    "table2": "Table 2: students without one of the loss's soft terms (ce: without the embeddings' distance, l2: without the soft labels)",
    "controls": "Controls: teachers that see no images, those of other texts or blank ones, and students of each",
    "unlabelled": "More texts: students that their teachers taught of texts without labels too",
}
