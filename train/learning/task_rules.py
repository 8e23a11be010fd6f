"""What differs between the tasks: losses, class weights, answers, thresholds and scores. One class per task; ``rules_of`` finds it.

Shapes: B examples in a batch, N examples, K logits of each (one per class; 1 in a regression). Targets are those of ``Corpus.targets()``:
int64 [N] with UNLABELLED, float [N, K] of 0 and 1, or float [N]; the latter two have NaN where an example is unlabelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.corpora.options import Task
from lugpi_core.errors import InputError

if TYPE_CHECKING:
    import torch  # imported where a loss is computed: reports and tables read scores alone

Metric = Literal["accuracy", "macro_f1", "micro_f1", "subset_accuracy", "spearman", "pearson", "mse"]
Floats = NDArray[np.float64]
# By metric; None where it is undefined.
ByMetric = dict[str, float | None]

# How a metric is written in tables and model cards. Higher is better, except for the mean squared error.
METRIC_NAMES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "micro_f1": "micro-F1",
    "subset_accuracy": "subset accuracy",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "mse": "MSE",
}
# The threshold of a class without positive validation examples, and of a classifier that states none.
EVEN = 0.5


class TaskRules(Protocol):
    """What a task decides.

    Attributes:
        task: its name.
        problem_type: its name in the ``config.json`` of a Hugging Face classifier.
        metrics: of a model, the primary one first.
    """

    task: Task
    problem_type: str
    metrics: tuple[Metric, ...]

    def hard_loss(self, logits_BK: torch.Tensor, targets_B: torch.Tensor, weights_K: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss on the targets, a scalar: summed over the labelled examples and divided by the batch size, so that a labelled
        example has the same weight in any batch. ``weights_K`` are those of ``balanced_weights``."""

    def soft_loss(self, student_BK: torch.Tensor, teacher_BK: torch.Tensor, *, temperature: float, soften_student: bool) -> torch.Tensor:
        """Return the mean loss on a teacher's outputs, a scalar."""

    def balanced_weights(self, targets_N: NDArray[Any], classes: int) -> NDArray[np.float32]:
        """Return the weights of the classes, float32 [K], from the targets of the train examples.

        Raises:
            InputError: the task has no classes.
        """

    def thresholds(self, targets_N: NDArray[Any], logits_NK: NDArray[Any]) -> tuple[float, ...] | None:
        """Return the probability from which on each class is an answer, chosen on validation examples; None unless multi-label."""

    def outputs(self, logits_NK: NDArray[Any]) -> Floats:
        """Return what a Hugging Face pipeline shows, float64 [N, K]: probabilities, or the numbers of a regression."""

    def answers(self, logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> NDArray[Any]:
        """Return the answers, in the form of the targets."""

    def scores(self, targets_N: NDArray[Any], logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> ByMetric:
        """Return every metric for labelled examples, at least one; None where it is undefined."""


class SingleLabel:
    """One class per text: softmax and cross-entropy."""

    task: Task = "single-label"
    problem_type = "single_label_classification"
    metrics: tuple[Metric, ...] = ("accuracy", "macro_f1")

    def hard_loss(self, logits_BK: torch.Tensor, targets_B: torch.Tensor, weights_K: torch.Tensor | None = None) -> torch.Tensor:
        """``1/B · Σ_b -w_y · log softmax(s)_y``. torch's own mean divides by the sum of the weights, which differs between batches."""
        from torch.nn import functional as F

        return F.cross_entropy(logits_BK, targets_B, weight=weights_K, ignore_index=UNLABELLED, reduction="sum") / len(targets_B)

    def soft_loss(self, student_BK: torch.Tensor, teacher_BK: torch.Tensor, *, temperature: float, soften_student: bool) -> torch.Tensor:
        """``-Σ_k softmax(t/τ)_k · log softmax(s)_k``; with ``soften_student`` the student's logits are divided by τ too and the term is
        multiplied by τ²."""
        from torch.nn import functional as F

        target_BK = F.softmax(teacher_BK / temperature, dim=-1)
        if soften_student:
            return F.cross_entropy(student_BK / temperature, target_BK) * temperature**2
        return F.cross_entropy(student_BK, target_BK)

    def balanced_weights(self, targets_N: NDArray[Any], classes: int) -> NDArray[np.float32]:
        """``n / (K · n_c)`` with K the number of classes that occur, as scikit-learn's ``class_weight="balanced"``; 1 for the others."""
        counts_K = np.bincount(targets_N, minlength=classes)
        occurs_K = counts_K > 0
        return np.where(occurs_K, len(targets_N) / (occurs_K.sum() * np.maximum(counts_K, 1)), 1.0).astype(np.float32)

    def thresholds(self, targets_N: NDArray[Any], logits_NK: NDArray[Any]) -> tuple[float, ...] | None:
        """None: the largest probability decides."""
        return None

    def outputs(self, logits_NK: NDArray[Any]) -> Floats:
        """Softmax."""
        from scipy.special import softmax

        probabilities_NK: Floats = softmax(logits_NK.astype(np.float64), axis=1)
        return probabilities_NK

    def answers(self, logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> NDArray[Any]:
        """The class of the highest logit, int64 [N], the first where several are equal."""
        return np.asarray(logits_NK.argmax(axis=1), np.int64)

    def scores(self, targets_N: NDArray[Any], logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> ByMetric:
        """Accuracy, and the mean F1 of the C classes that are labels or answers, as scikit-learn's; a class that is never both has 0."""
        answers_N = self.answers(logits_NK)
        right_N = answers_N == targets_N
        classes = logits_NK.shape[1]
        named_K = np.bincount(targets_N, minlength=classes) + np.bincount(answers_N, minlength=classes)
        found_K = np.bincount(targets_N[right_N], minlength=classes)
        f1_C = 2 * found_K[named_K > 0] / named_K[named_K > 0]
        return {"accuracy": float(right_N.mean()), "macro_f1": float(f1_C.mean())}


class MultiLabel:
    """Any number of classes per text, none included: a sigmoid and a binary cross-entropy for each class."""

    task: Task = "multi-label"
    problem_type = "multi_label_classification"
    metrics: tuple[Metric, ...] = ("macro_f1", "micro_f1", "subset_accuracy")

    def hard_loss(self, logits_BK: torch.Tensor, targets_B: torch.Tensor, weights_K: torch.Tensor | None = None) -> torch.Tensor:
        """``1/B · Σ_b 1/K · Σ_k -(w_k·y_k·log σ(s_k) + (1 - y_k)·log(1 - σ(s_k)))``."""
        import torch
        from torch.nn import functional as F

        labelled_B = ~targets_B[:, 0].isnan()
        entropy_BK = F.binary_cross_entropy_with_logits(logits_BK, targets_B.nan_to_num(), pos_weight=weights_K, reduction="none")
        return torch.where(labelled_B, entropy_BK.mean(dim=1), 0).sum() / len(targets_B)

    def soft_loss(self, student_BK: torch.Tensor, teacher_BK: torch.Tensor, *, temperature: float, soften_student: bool) -> torch.Tensor:
        """The single-label term of each class against its absence, averaged over the classes: softmax of the logits (t, 0) is σ(t)."""
        import torch
        from torch.nn import functional as F

        target_BK = torch.sigmoid(teacher_BK / temperature)
        if soften_student:
            return F.binary_cross_entropy_with_logits(student_BK / temperature, target_BK) * temperature**2
        return F.binary_cross_entropy_with_logits(student_BK, target_BK)

    def balanced_weights(self, targets_N: NDArray[Any], classes: int) -> NDArray[np.float32]:
        """Number of negative over number of positive examples of each class, for its positive ones (``pos_weight`` of torch's
        ``BCEWithLogitsLoss``); 1 where there are none of either."""
        positive_K = targets_N.sum(axis=0)
        negative_K = len(targets_N) - positive_K
        return np.where((positive_K > 0) & (negative_K > 0), negative_K / np.maximum(positive_K, 1), 1.0).astype(np.float32)

    def thresholds(self, targets_N: NDArray[Any], logits_NK: NDArray[Any]) -> tuple[float, ...] | None:
        """For each class the threshold with the highest F1 on these examples: see ``best_threshold``."""
        scores_NK = self.outputs(logits_NK)
        return tuple(best_threshold(targets_N[:, k] > 0, scores_NK[:, k]) for k in range(scores_NK.shape[1]))

    def outputs(self, logits_NK: NDArray[Any]) -> Floats:
        """Sigmoid of each logit."""
        from scipy.special import expit

        probabilities_NK: Floats = expit(logits_NK.astype(np.float64))
        return probabilities_NK

    def answers(self, logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> NDArray[Any]:
        """float32 [N, K]: 1 where a class's probability reaches its threshold (½ if there are none)."""
        reached_NK = self.outputs(logits_NK) >= (EVEN if thresholds is None else np.asarray(thresholds))
        return reached_NK.astype(np.float32)

    def scores(self, targets_N: NDArray[Any], logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> ByMetric:
        """scikit-learn's F1, macro- and micro-averaged, and the share of examples whose classes are all right. F1 is 0 for a class without
        true positives, also for one that is neither a label nor an answer of these examples."""
        right_NK, answers_NK = targets_N > 0, self.answers(logits_NK, thresholds) > 0
        found_K = (right_NK & answers_NK).sum(axis=0)
        named_K = right_NK.sum(axis=0) + answers_NK.sum(axis=0)
        return {
            "macro_f1": float((2 * found_K / np.maximum(named_K, 1)).mean()),
            "micro_f1": float(2 * found_K.sum() / max(named_K.sum(), 1)),
            "subset_accuracy": float((right_NK == answers_NK).all(axis=1).mean()),
        }


class Regression:
    """One number per text: the logit itself, and the squared error."""

    task: Task = "regression"
    problem_type = "regression"
    metrics: tuple[Metric, ...] = ("spearman", "pearson", "mse")

    def hard_loss(self, logits_BK: torch.Tensor, targets_B: torch.Tensor, weights_K: torch.Tensor | None = None) -> torch.Tensor:
        """``1/B · Σ_b (s - y)²``."""
        import torch

        squared_B = (logits_BK[:, 0] - targets_B.nan_to_num()) ** 2
        return torch.where(targets_B.isnan(), 0, squared_B).sum() / len(targets_B)

    def soft_loss(self, student_BK: torch.Tensor, teacher_BK: torch.Tensor, *, temperature: float, soften_student: bool) -> torch.Tensor:
        """``(s - t)²``. There is no distribution to soften, so τ and ``soften_student`` have no effect."""
        from torch.nn import functional as F

        return F.mse_loss(student_BK, teacher_BK)

    def balanced_weights(self, targets_N: NDArray[Any], classes: int) -> NDArray[np.float32]:
        """Refused."""
        raise InputError(
            got="--class-weights balanced for a regression", expected="a task with classes", do="leave it out, or give another --task"
        )

    def thresholds(self, targets_N: NDArray[Any], logits_NK: NDArray[Any]) -> tuple[float, ...] | None:
        """None."""
        return None

    def outputs(self, logits_NK: NDArray[Any]) -> Floats:
        """The numbers."""
        return logits_NK.astype(np.float64)

    def answers(self, logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> NDArray[Any]:
        """The numbers, float64 [N]."""
        numbers_N: Floats = logits_NK[:, 0].astype(np.float64)
        return numbers_N

    def scores(self, targets_N: NDArray[Any], logits_NK: NDArray[Any], thresholds: Sequence[float] | None = None) -> ByMetric:
        """Spearman's and Pearson's correlation, undefined where the targets or the answers are all equal, and the mean squared error."""
        from scipy.stats import rankdata

        right_N, answers_N = targets_N.astype(np.float64), self.answers(logits_NK)
        return {
            "spearman": _correlation(rankdata(right_N), rankdata(answers_N)),  # equal numbers have their mean rank
            "pearson": _correlation(right_N, answers_N),
            "mse": float(((right_N - answers_N) ** 2).mean()),
        }


def in_words(metric: str, value: float | None) -> str:
    """Return a score with four decimals, or four digits of a squared error, whose size depends on the numbers."""
    if value is None:
        return "undefined"
    return plain_number(value) if metric == "mse" else f"{value:.4f}"


def plain_number(value: float, digits: int = 4) -> str:
    """Return a number of any size with at least so many significant digits, without zeros at its end: whole below 1e7, as people write
    it (``20549``, not ``2.055e+04``); with an exponent from there on, and below 1e-4."""
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits}g}"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"


def best_threshold(positive_N: NDArray[np.bool_], scores_N: Floats) -> float:
    """Return the threshold on a class's probabilities with the highest F1 (answers: ``score >= threshold``), the nearest to ½ of several.

    Between two neighbouring scores every threshold gives the same answers: it is ½ if that lies between them, else their middle. ½ for a
    class without positive examples, whose F1 is 0 with any threshold.
    """
    if not positive_N.any():
        return EVEN
    order = np.argsort(-scores_N, kind="stable")
    sorted_N = scores_N[order]
    below_N = np.append(sorted_N[1:], 0.0)
    is_cut_N = np.append(sorted_N[1:] < sorted_N[:-1], True)  # equal scores cannot be told apart
    f1_N = np.where(is_cut_N, 2 * np.cumsum(positive_N[order]) / (np.arange(1, len(order) + 1) + positive_N.sum()), -1)
    middle_N = (sorted_N + below_N) / 2
    middle_N = np.where(middle_N > below_N, middle_N, sorted_N)  # two neighbouring floats have none
    thresholds_N = np.where((below_N < EVEN) & (sorted_N >= EVEN), EVEN, middle_N)
    candidates = thresholds_N[f1_N == f1_N.max()]
    return float(candidates[np.argmin(np.abs(candidates - EVEN))])


def _correlation(first_N: Floats, second_N: Floats) -> float | None:
    first_N, second_N = first_N - first_N.mean(), second_N - second_N.mean()
    lengths = float(np.linalg.norm(first_N) * np.linalg.norm(second_N))
    return float(np.clip(first_N @ second_N / lengths, -1, 1)) if lengths > 0 else None


_RULES: Mapping[Task, TaskRules] = {"single-label": SingleLabel(), "multi-label": MultiLabel(), "regression": Regression()}


def rules_of(task: Task) -> TaskRules:
    """Return the rules of a task."""
    return _RULES[task]


def task_of(problem_type: str) -> Task | None:
    """Return the task that a Hugging Face classifier's ``problem_type`` names, or None if there is no such task."""
    return next((task for task, rules in _RULES.items() if rules.problem_type == problem_type), None)
