"""The figures of every row, computed from its models' predictions: over seeds, against the baseline and against the text-only control."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lugpi_core.command_line import say
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import hash_weights_file
from train.evidence.records import UNDEFINED, Fidelity, Finding, ModelResult, RowResult, Scores, ScoreSpreads, Sharpness, Spread
from train.evidence.resampling import MacroF1, Score, Spearman, compare_scores
from train.evidence.rows import BASELINE, Row
from train.evidence.statistics import Comparison, compare_hits, holm
from train.file_names import METRICS, PREDICTIONS, WEIGHTS
from train.learning.task_rules import METRIC_NAMES, Metric, rules_of
from train.models.model_folder import metrics_of
from train.models.predictions import Predicted, confidence, read_predictions

SHOWN_SPLITS = ("validation", "test")
# Rounding of the recorded accuracy, and of the logits to seven digits, may move an accuracy by a tie or two, not by this much.
_ROUNDING = 1e-3

PAPER_DATASETS = ("imdb", "20ng", "cwi-news", "cwi-wikinews")
# Test accuracies of Menadil, Georgescu & Ionescu 2023, arXiv 2309.15238, Tables 1 and 2, in the order of PAPER_DATASETS. Their teacher
# and student 1 see ViT's tokens, teacher and student 2 CLIP's; Table 2 is about student 2.
_PAPER_ACCURACIES: Mapping[tuple[str, str | None], tuple[float, float, float, float]] = {
    ("baseline", None): (0.919, 0.918, 0.861, 0.842),
    ("images", "vit"): (0.559, 0.137, 0.832, 0.754),
    ("images", "clip"): (0.549, 0.523, 0.822, 0.746),
    ("teacher", "vit"): (0.920, 0.919, 0.867, 0.843),
    ("teacher", "clip"): (0.931, 0.926, 0.868, 0.846),
    ("student", "vit"): (0.930, 0.928, 0.869, 0.843),
    ("student", "clip"): (0.931, 0.929, 0.871, 0.848),
    ("student-ce", "clip"): (0.923, 0.926, 0.870, 0.844),
    ("student-l2", "clip"): (0.919, 0.925, 0.865, 0.843),
}


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """One finished model: its folder, its recorded metrics, and its predictions for validation and test examples; of a teacher also how
    right and how sure its predictions for the train examples are, with folds those of the teachers that had not seen them."""

    folder: Path
    metrics: Mapping[str, Any]
    predicted: Mapping[str, Predicted]
    train: Sharpness | None = None

    @property
    def test(self) -> Predicted:
        """Its predictions for the test examples."""
        return self.predicted["test"]

    @cached_property
    def weights_hash(self) -> str:
        """Hash of its weights, by which its students identify it."""
        return hash_weights_file(self.folder / WEIGHTS)

    @property
    def train_s(self) -> float:
        """Seconds that its epochs took, and those of its folds, including those of interrupted trainings."""
        folds = self.metrics.get("folds", {}).get("each", ())
        return float(sum(record["seconds"] for record in (*folds, *self.metrics.get("head_history", ()), *self.metrics["history"])))

    @property
    def peak_bytes(self) -> int:
        """Most memory in use: of the GPU where there was one, else of the host."""
        peak = self.metrics["peak_memory"]
        return int(peak.get("device_bytes", peak["host_bytes"]))

    def result(self, fidelity: Fidelity) -> ModelResult:
        """Return its figures, with those of fidelity and calibration."""
        validation, test = (Scores(_scores_of(one)) for one in (self.predicted["validation"], self.test))
        return ModelResult(
            seed=self.metrics["seed"],
            folder=self.folder.name,
            validation=validation,
            test=test,
            fidelity=dict(fidelity),
            train_s=round(self.train_s, 3),
            peak_bytes=self.peak_bytes,
        )


def scored(folder: Path) -> ScoredModel:
    """Read a finished model's predictions; warn where the recorded values of its primary metric differ from theirs.

    Raises:
        InputError: the predictions are missing or damaged.
    """
    metrics = metrics_of(folder)
    every_split = read_predictions(folder / PREDICTIONS)
    for split, expected in metrics["examples"].items():
        if split in every_split and (count := len(every_split[split].ids)) != expected:
            raise InputError(
                got=f"{folder / PREDICTIONS} with {count:,} {split} examples",
                expected=f"{expected:,}, as its {METRICS} say",
                do="remove the model's folder and train it again",
            )
    predicted = {split: every_split[split] for split in SHOWN_SPLITS}
    for split, of_split in predicted.items():
        metric = rules_of(of_split.task).metrics[0]
        recorded, recomputed = metrics[metric][split], of_split.scores[metric]
        if recorded != recomputed and (recorded is None or recomputed is None or abs(recomputed - recorded) > _ROUNDING):
            shown, said = (UNDEFINED if value is None else f"{value:.4f}" for value in (recomputed, recorded))
            what = f"{split} {METRIC_NAMES[metric]} {shown}"
            say(f"warning: {folder / PREDICTIONS} gives {what}, its {METRICS} say {said}; the former is shown")
    # Of a few shots, a teacher has not seen most train texts, and its students do not read it on them.
    train = sharpness_of(every_split["train"]) if metrics["command"] == "teacher" and "shots" not in metrics else None
    return ScoredModel(folder=folder, metrics=metrics, predicted=predicted, train=train)


def sharpness_of(predicted: Predicted) -> Sharpness:
    """Return how right and how sure predictions are."""
    return Sharpness(score=next(iter(_scores_of(predicted).values())), confidence=confidence(predicted.task, predicted.logits))


def row_result(
    row: Row, models: Mapping[int, ScoredModel], seeds: Sequence[int], dataset: str | None, fidelity: Mapping[Path, Fidelity]
) -> RowResult:
    """Return the figures of one row.

    Args:
        row: the row.
        models: its finished models by seed.
        seeds: the requested ones.
        dataset: a corpus of the paper, or None.
        fidelity: fidelity and calibration of every model, by its folder.
    """
    finished = [models[seed] for seed in seeds if seed in models]
    return RowResult(
        row=row.name,
        seeds=tuple(seed for seed in seeds if seed in models),
        missing_seeds=tuple(seed for seed in seeds if seed not in models),
        validation=_score_spreads([model.predicted["validation"] for model in finished]),
        test=_score_spreads([model.test for model in finished]),
        fidelity=_fidelity_spreads([fidelity[model.folder] for model in finished]),
        paper=None if dataset is None else paper_accuracy(row, dataset),
        train_hours=statistics.fmean(model.train_s for model in finished) / 3600 if finished else None,
        peak_gb=max(model.peak_bytes for model in finished) / 1e9 if finished else None,
        models=tuple(model.result(fidelity[model.folder]) for model in finished),
    )


def _score_spreads(predicted: Sequence[Predicted]) -> ScoreSpreads | None:
    if not predicted:
        return None
    scores = [_scores_of(of_model) for of_model in predicted]
    values = {metric: [value for of_model in scores if (value := of_model[metric]) is not None] for metric in scores[0]}
    return ScoreSpreads({metric: _spread(of_metric) if of_metric else None for metric, of_metric in values.items()})


def _scores_of(predicted: Predicted) -> dict[Metric, float | None]:
    return {metric: predicted.scores[metric] for metric in rules_of(predicted.task).metrics}


def _fidelity_spreads(of_models: Sequence[Fidelity]) -> dict[str, Spread | None] | None:
    if not of_models:
        return None
    values = {name: [value for figures in of_models if (value := figures[name]) is not None] for name in of_models[0]}
    return {name: _spread(of_name) if of_name else None for name, of_name in values.items()}


def _spread(values: Sequence[float]) -> Spread:
    return Spread(mean=statistics.fmean(values), sd=statistics.stdev(values) if len(values) > 1 else None)


def findings_of(rows: Sequence[Row], models: Mapping[str, Mapping[int, ScoredModel]], seeds: Sequence[int]) -> list[Finding]:
    """Return every comparison of a report: each row with the baseline, with its text-only control and, a row of images, with the row of the
    generator's text vectors if there is one; over the seeds that both have, the p of all adjusted together by Holm's method.

    Args:
        rows: of all tables, each once.
        models: finished models by the names of their rows, and by seed; the references need not be rows of a table.
        seeds: the requested ones.
    """
    references = [(row.name, reference) for row in rows for reference in (BASELINE, row.control, row.vectors)]
    pairs = [(row, reference) for row, reference in references if reference not in (None, row)]
    compared = [(row, str(reference), _comparison(models.get(row, {}), models.get(str(reference), {}), seeds)) for row, reference in pairs]
    there = [(row, reference, comparison) for row, reference, comparison in compared if comparison is not None]
    adjusted = holm([comparison.pooled.p for _, _, comparison in there])
    return [
        Finding(row=row, reference=reference, comparison=comparison, holm_p=p)
        for (row, reference, comparison), p in zip(there, adjusted, strict=True)
    ]


def _comparison(first: Mapping[int, ScoredModel], second: Mapping[int, ScoredModel], seeds: Sequence[int]) -> Comparison | None:
    """Compare two rows; None without a seed that both have on the same test examples, and with a primary metric that is defined."""
    paired = [seed for seed in seeds if seed in first and seed in second and first[seed].test.examples == second[seed].test.examples]
    paired = [seed for seed in paired if is_defined(first[seed].test) and is_defined(second[seed].test)]
    # Differences are averaged over seeds by example, so all seeds need the same examples.
    paired = [seed for seed in paired if first[seed].test.examples == first[paired[0]].test.examples]
    if not paired:
        return None
    firsts, seconds = ([of_row[seed].test for seed in paired] for of_row in (first, second))
    if firsts[0].task == "single-label":
        return compare_hits(paired, [one.hits for one in firsts], [one.hits for one in seconds])
    return compare_scores(paired, [score_of(one) for one in firsts], [score_of(one) for one in seconds])


def is_defined(predicted: Predicted) -> bool:
    """Whether the primary metric of predictions has a value."""
    return next(iter(_scores_of(predicted).values())) is not None


def score_of(predicted: Predicted) -> Score:
    """Return the primary metric of a multi-label or regression model."""
    if predicted.task == "multi-label":
        return MacroF1(predicted.labels > 0, predicted.predicted > 0)
    return Spearman(predicted.labels.astype(np.float64), predicted.predicted)


def paper_dataset(dataset: str, settings: CorpusSettings) -> str | None:
    """Return the dataset if it is one of the paper's corpora, whole and split as there, else None: other results are not comparable."""
    return dataset if dataset in PAPER_DATASETS and settings.limit is None and settings.split_by == "seed" else None


def paper_accuracy(row: Row, dataset: str) -> float | None:
    """Return the test accuracy that the paper reports for a row on one of PAPER_DATASETS; None for a row that it lacks."""
    if row.more or row.folds is not None or row.members > 1 or (row.command != BASELINE and row.privileged != "images"):
        return None
    # A row of CLIP's columns: their names have its ViT in them too (clip-vit-b32).
    columns = [row.column] if row.command != "student" else [teacher.removeprefix("teacher-") for teacher in row.teachers]
    encoder = next((name for name in ("clip", "vit") if len(columns) == 1 and name in (columns[0] or "")), None)
    kind = row.command if row.terms == "both" else f"{row.command}-{row.terms}"
    accuracies = _PAPER_ACCURACIES.get((kind, encoder))
    return None if accuracies is None else accuracies[PAPER_DATASETS.index(dataset)]
