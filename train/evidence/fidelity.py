"""Fidelity and calibration of a run's models on the test split, computed from their recorded predictions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.options import Task
from lugpi_core.fingerprint import agree
from train.evidence.calibration import agreement, binary_cross_entropy, churn, classwise_ece, nll, reliability, teachers_answers
from train.evidence.row_figures import ScoredModel
from train.learning.task_rules import rules_of
from train.models.class_shares import ClassShares
from train.models.model_folder import is_whole, training_of
from train.models.predictions import Predicted


@dataclass(frozen=True, kw_only=True)
class FidelityFigures:
    """The figures of fidelity and calibration that a task has.

    Attributes:
        figures: their names in records; ``headings`` those in tables.
        title: of the table; ``caption`` explains the figures.
        own: returns what a model has of itself, from its predictions for the test examples.
        between: returns what it has next to the baseline of its seed, from both predictions.
        agreement: returns how far answers agree with those of the teachers.
    """

    figures: tuple[str, ...]
    headings: tuple[str, ...]
    title: str
    caption: str
    own: Callable[[Predicted], dict[str, float | None]]
    between: Callable[[Predicted, Predicted], dict[str, float | None]]
    agreement: Callable[[NDArray[Any], NDArray[Any]], float | None]


# Figures whose size depends on the unit of a regression's numbers.
OF_ANY_SIZE = frozenset({"mse", "bias", "mae"})
_CHURN = (
    "Churn: share of the answers that differ from those of the baseline of the same seed; of these, improved went from wrong to right, "
    "worsened from right to wrong, the rest from wrong to wrong."
)


def _changes(test: Predicted, baseline: Predicted) -> dict[str, float | None]:
    changes = churn(test.predicted, baseline.predicted, test.labels)
    return {"churn": changes.share, "improved": changes.improved, "worsened": changes.worsened}


def _nearer(test: Predicted, baseline: Predicted) -> dict[str, float | None]:
    error_N, before_N = (np.abs(one.predicted - one.labels) for one in (test, baseline))
    return {"nearer": float((error_N < before_N).mean()), "farther": float((error_N > before_N).mean())}


def _errors(test: Predicted) -> dict[str, float | None]:
    residual_N = test.predicted - test.labels
    return {"bias": float(residual_N.mean()), "mae": float(np.abs(residual_N).mean())}


FIDELITY: Mapping[Task, FidelityFigures] = {
    # nats for nll, shares for the others; improved and worsened are shares of the changed answers
    "single-label": FidelityFigures(
        figures=("ece", "nll", "agreement", "churn", "improved", "worsened"),
        headings=("ECE", "NLL", "agreement", "churn", "improved", "worsened"),
        title="Fidelity and calibration on the test split",
        caption="ECE: expected calibration error of the answer's confidence, 15 bins of equal width. NLL: mean negative log-likelihood of "
        "the label, in nats. Agreement: share of the answers, right or wrong, that equal the teacher's (of several teachers, the answer of "
        f"their mean probabilities); empty where the teacher is gone or was trained again. {_CHURN}",
        own=lambda test: {"ece": reliability(test.logits, test.labels).ece, "nll": nll(test.logits, test.labels)},
        between=_changes,
        agreement=agreement,
    ),
    "multi-label": FidelityFigures(
        figures=("ece", "nll", "agreement", "churn", "improved", "worsened"),
        headings=("ECE", "BCE", "agreement", "churn", "improved", "worsened"),
        title="Fidelity and calibration on the test split",
        caption="ECE: expected calibration error of a class's probability, 15 bins of equal width, mean over the classes. BCE: mean binary "
        "cross-entropy of a class, in nats. An answer is all classes that a text is given, and right if they are all of its classes. "
        "Agreement: share of the answers, right or wrong, that equal the teacher's (of several teachers, the classes whose mean "
        f"probability reaches their mean threshold); empty where the teacher is gone or was trained again. {_CHURN}",
        own=lambda test: {"ece": classwise_ece(test.logits, test.labels), "nll": binary_cross_entropy(test.logits, test.labels)},
        between=_changes,
        agreement=agreement,
    ),
    "regression": FidelityFigures(
        figures=("bias", "mae", "agreement", "nearer", "farther"),
        headings=("bias", "MAE", "agreement", "nearer", "farther"),
        title="Fidelity and errors on the test split",
        caption="Bias: mean of answer less label. MAE: mean absolute error. Agreement: Spearman's correlation with the teacher's answers "
        "(of several teachers, their mean); empty where the teacher is gone or was trained again, or all answers are equal. Nearer and "
        "farther: share of the answers that are nearer to the label, or farther from it, than the answer of the baseline of the same seed. "
        "A regression has no probabilities, so there is no calibration.",
        own=_errors,
        between=_nearer,
        agreement=lambda answers_N, teachers_N: rules_of("regression").scores(teachers_N, answers_N[:, None])["spearman"],
    ),
}


def fidelity_figures(model: ScoredModel, baseline: ScoredModel | None, read: Callable[[Path], ScoredModel]) -> dict[str, float | None]:
    """Return the figures of FIDELITY of one model; None where there is nothing to compare it with.

    Args:
        model: which one.
        baseline: of its seed, or None.
        read: returns the finished model of a folder.

    Raises:
        InputError: the predictions of a teacher are missing or damaged.
    """
    test, teachers = model.test, teachers_of(model, read)
    rules = FIDELITY[test.task]
    found = rules.own(test) | {"agreement": None if teachers is None else rules.agreement(test.predicted, teachers.answers)}
    if baseline is not None and baseline.folder != model.folder and baseline.test.examples == test.examples:
        found |= rules.between(test, baseline.test)
    return {figure: found.get(figure) for figure in rules.figures}


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The teachers that a student was distilled from.

    Attributes:
        models: one or several.
        shares: each one's weight in the student's loss; they sum to 1.
        class_shares: those by group of classes, if they were learnt.
    """

    models: tuple[ScoredModel, ...]
    shares: tuple[float, ...]
    class_shares: ClassShares | None = None

    @property
    def outputs(self) -> NDArray[np.float64]:
        """Their mean probabilities of the test examples, or numbers, weighted by their shares: float64 [N, K]."""
        outputs = [rules_of(teacher.test.task).outputs(teacher.test.logits) for teacher in self.models]
        if self.class_shares is not None:
            return self.class_shares.mixed(np.stack(outputs))
        return np.asarray(sum(share * output for share, output in zip(self.shares, outputs, strict=True)))

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Of multi-label teachers the mean thresholds of the classes, weighted by their shares: float64 [K]."""
        each = [np.array(teacher.test.thresholds) for teacher in self.models]
        return np.asarray(sum(share * one for share, one in zip(self.shares, each, strict=True)))

    @property
    def answers(self) -> NDArray[Any]:
        """Their joint answers to the test examples, in the form of the labels."""
        if len(self.models) == 1:
            return self.models[0].test.predicted
        match self.models[0].test.task:
            case "single-label" if self.class_shares is not None:
                return np.asarray(self.outputs.argmax(axis=1))
            case "single-label":
                return teachers_answers([teacher.test.logits for teacher in self.models], self.shares)
            case "multi-label":
                return np.asarray(self.outputs >= self.thresholds, np.float32)
            case "regression":
                return np.asarray(self.outputs[:, 0])


def teachers_of(model: ScoredModel, read: Callable[[Path], ScoredModel]) -> Teachers | None:
    """Return a student's teachers; None for a model without teachers, or where they are gone or were trained again since.

    Args:
        model: which one.
        read: returns the finished model of a folder.

    Raises:
        InputError: the predictions of a teacher are missing or damaged.
    """
    training = training_of(model.folder)
    folders = [model.folder.parent / teacher["name"] for teacher in model.metrics["teachers"]]
    if not folders or not all(is_whole(folder) for folder in folders):
        return None
    teachers = tuple(read(folder) for folder in folders)
    if "teachers" in training and not agree(training["teachers"], [teacher.weights_hash for teacher in teachers]):
        return None  # the folders have the same names but hold other models
    if any(teacher.test.examples != model.test.examples for teacher in teachers):
        return None
    return Teachers(models=teachers, shares=tuple(training["shares"]), class_shares=ClassShares.of_training(training))
