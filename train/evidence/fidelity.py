"""Fidelity and calibration of a run's models on the test split, computed from their recorded predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.fingerprint import agree
from train.evidence.calibration import agreement, churn, nll, reliability, teachers_answers
from train.evidence.row_figures import ScoredModel
from train.models.model_folder import is_whole, training_of

# All on the test split: nats for nll, shares for the others; improved and worsened are shares of the changed answers.
FIGURES = ("ece", "nll", "agreement", "churn", "improved", "worsened")
TITLE = "Fidelity and calibration on the test split"
CAPTION = (
    "ECE: expected calibration error of the answer's confidence, 15 bins of equal width. NLL: mean negative log-likelihood of the label, "
    "in nats. Agreement: share of the answers, right or wrong, that equal the teacher's (of several teachers, the answer of their mean "
    "probabilities); empty where the teacher is gone or was trained again. Churn: share of the answers that differ from those of the "
    "baseline of the same seed; of these, improved went from wrong to right, worsened from right to wrong, the rest from wrong to wrong."
)


def fidelity_figures(model: ScoredModel, baseline: ScoredModel | None, read: Callable[[Path], ScoredModel]) -> dict[str, float | None]:
    """Return FIGURES of one model; None where there is nothing to compare it with.

    Args:
        model: which one.
        baseline: of its seed, or None.
        read: returns the finished model of a folder.

    Raises:
        InputError: the predictions of a teacher are missing or damaged.
    """
    test, teachers = model.test, teachers_of(model, read)
    changes = None
    if baseline is not None and baseline.folder != model.folder and baseline.test.examples == test.examples:
        changes = churn(test.predicted, baseline.test.predicted, test.labels)
    return {
        "ece": reliability(test.logits, test.labels).ece,
        "nll": nll(test.logits, test.labels),
        "agreement": None if teachers is None else agreement(test.predicted, teachers.answers),
        "churn": None if changes is None else changes.share,
        "improved": None if changes is None else changes.improved,
        "worsened": None if changes is None else changes.worsened,
    }


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """The teachers that a student was distilled from.

    Attributes:
        models: one or several.
        shares: each one's weight in the student's loss; they sum to 1.
    """

    models: tuple[ScoredModel, ...]
    shares: tuple[float, ...]

    @property
    def answers(self) -> NDArray[np.int64]:
        """Their joint answers to the test examples, int64 [N]."""
        return teachers_answers([teacher.test.logits for teacher in self.models], self.shares)


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
    return Teachers(models=teachers, shares=tuple(training["shares"]))
