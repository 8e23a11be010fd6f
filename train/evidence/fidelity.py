"""Fidelity and calibration of a run's models on the test split, from what is on record of them.
``train.evidence.calibration`` does the counting."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.evidence.calibration import agreement, churn, nll, reliability, teachers_answers
from train.evidence.row_figures import Scored
from train.models.model_folder import is_whole, training_of

# All of the test split: nats for nll, shares for the others; improved and worsened are shares of the answers that changed.
FIGURES = ("ece", "nll", "agreement", "churn", "improved", "worsened")
TITLE = "Fidelity and calibration on the test split"
CAPTION = (
    "ECE: expected calibration error of the answer's confidence, 15 bins of equal width. NLL: mean negative log-likelihood of the label, "
    "in nats. Agreement: share of the answers, right or wrong, that are the teacher's (of several teachers, of their mean probabilities); "
    "empty where the teacher is gone or was trained anew. Churn: share of the answers that are not the baseline's of the same seed; of "
    "these, improved went from wrong to right, worsened from right to wrong, and the rest from wrong to wrong."
)


def fidelity_figures(model: Scored, baseline: Scored | None, read: Callable[[Path], Scored]) -> dict[str, float | None]:
    """Return FIGURES of one model; None where there is nothing to hold it against.

    Args:
        model: which one.
        baseline: of its seed, or None.
        read: gives the finished model of a folder.

    Raises:
        InputError: the predictions of a teacher are missing or damaged.
    """
    test, taught = model.test, taught_by(model, read)
    changes = None
    if baseline is not None and baseline.folder != model.folder and baseline.test.examples == test.examples:
        changes = churn(test.predicted, baseline.test.predicted, test.labels)
    return {
        "ece": reliability(test.logits, test.labels).ece,
        "nll": nll(test.logits, test.labels),
        "agreement": None if taught is None else agreement(test.predicted, taught.answers),
        "churn": None if changes is None else changes.share,
        "improved": None if changes is None else changes.improved,
        "worsened": None if changes is None else changes.worsened,
    }


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What a student learnt from.

    Attributes:
        teachers: one or several.
        shares: each one's weight in the student's loss; they sum to 1.
    """

    teachers: tuple[Scored, ...]
    shares: tuple[float, ...]

    @property
    def answers(self) -> NDArray[np.int64]:
        """What the teachers answer together to the test examples, int64 [n]."""
        return teachers_answers([teacher.test.logits for teacher in self.teachers], self.shares)


def taught_by(model: Scored, read: Callable[[Path], Scored]) -> Taught | None:
    """Return a student's teachers; None for a model without, or where they are no longer there as they were when it was taught.

    Args:
        model: which one.
        read: gives the finished model of a folder.

    Raises:
        InputError: the predictions of a teacher are missing or damaged.
    """
    made_from = training_of(model.folder)
    folders = [model.folder.parent / teacher["name"] for teacher in model.metrics["teachers"]]
    if not folders or not all(is_whole(folder) for folder in folders):
        return None
    teachers = tuple(read(folder) for folder in folders)
    if "teachers" in made_from and made_from["teachers"] != [teacher.weights_hash for teacher in teachers]:
        return None  # other models stand there under their names
    if any(teacher.test.examples != model.test.examples for teacher in teachers):
        return None
    return Taught(teachers=teachers, shares=tuple(made_from["shares"]))
