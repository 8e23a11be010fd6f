"""Calibration of a model's probabilities, fidelity of a student to its teacher, and churn compared with the baseline: pure functions of
logits.

Shapes: N examples, K classes, M bins, T teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.learning.task_rules import rules_of

BINS = 15

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
_SINGLE, _MULTI = rules_of("single-label"), rules_of("multi-label")


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram (Guo et al. 2017, arXiv 1706.04599, §2): examples by the confidence of their answers.

    Attributes:
        counts: int64 [M], number of examples in each bin; bin m has confidences in (m / M, (m + 1) / M].
        confidence: float64 [M], their mean confidence; 0 for an empty bin.
        accuracy: float64 [M], share of them that was classified correctly; 0 for an empty bin.
    """

    counts: Integers
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error, ``Σ_m n_m / N · |accuracy_m - confidence_m|`` (their Eq. 3): 0 where confidence equals accuracy."""
        return float(np.abs(self.accuracy - self.confidence) @ self.counts / self.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Churn:
    """How a model's answers differ from those of another on the same examples (Milani Fard et al. 2016, *Launch and Iterate*).

    ``repaired + broken + moved == changed``, and ``repaired - broken`` is how many more answers are right.

    Attributes:
        examples: N.
        changed: how many answers differ.
        repaired: how many of these went from a wrong answer to the right one.
        broken: how many went from the right answer to a wrong one.
    """

    examples: int
    changed: int
    repaired: int
    broken: int

    @property
    def moved(self) -> int:
        """How many of the changed answers went from one wrong answer to another; always 0 with two classes."""
        return self.changed - self.repaired - self.broken

    @property
    def share(self) -> float:
        """The churn: share of the examples whose answers differ."""
        return self.changed / self.examples

    @property
    def improved(self) -> float | None:
        """Share of the changed answers that were repaired; None where no answer changed."""
        return self.repaired / self.changed if self.changed else None

    @property
    def worsened(self) -> float | None:
        """Share of the changed answers that were broken; None where no answer changed."""
        return self.broken / self.changed if self.changed else None


def nll(logits_NK: Floats, labels_N: Integers) -> float:
    """Return the mean negative log-likelihood of the labels, in nats."""
    from scipy.special import log_softmax

    return float(-log_softmax(logits_NK, axis=1)[np.arange(len(labels_N)), labels_N].mean())


def reliability(logits_NK: Floats, labels_N: Integers, *, bins: int = BINS) -> Reliability:
    """Return the reliability diagram of the answers (the class of the highest logit), in bins of equal width.

    Args:
        logits_NK: at least one example.
        labels_N: the right classes.
        bins: M.
    """
    from scipy.special import log_softmax  # not softmax, whose last digit may differ: recorded errors stay what they are

    return _binned(np.exp(log_softmax(logits_NK, axis=1).max(axis=1)), _SINGLE.answers(logits_NK) == labels_N, bins)


def _binned(confidence_N: Floats, hits_N: NDArray[np.bool_], bins: int) -> Reliability:
    bin_N = np.digitize(confidence_N, np.arange(1, bins) / bins, right=True)
    counts_M = np.bincount(bin_N, minlength=bins)
    each_M = np.maximum(counts_M, 1)
    return Reliability(
        counts=counts_M,
        confidence=np.bincount(bin_N, weights=confidence_N, minlength=bins) / each_M,
        accuracy=np.bincount(bin_N, weights=hits_N, minlength=bins) / each_M,
    )


def class_reliability(logits_NK: Floats, labels_NK: NDArray[Any], *, bins: int = BINS) -> Reliability:
    """Return the reliability diagram of the classes' probabilities of a multi-label model, over all pairs of a text and a class: how often
    a text has a class, by the probability of that."""
    return _binned(_MULTI.outputs(logits_NK).ravel(), labels_NK.ravel() > 0, bins)


def classwise_ece(logits_NK: Floats, labels_NK: NDArray[Any], *, bins: int = BINS) -> float:
    """Return the mean over the classes of each one's calibration error (classwise ECE: Kull et al. 2019, arXiv 1910.12656, Eq. 3), of a
    multi-label model: 0 where of the texts with probability p of a class the share p has it."""
    errors = [class_reliability(logits_NK[:, [k]], labels_NK[:, [k]], bins=bins).ece for k in range(logits_NK.shape[1])]
    return float(np.mean(errors))


def binary_cross_entropy(logits_NK: Floats, labels_NK: NDArray[Any]) -> float:
    """Return the mean over texts and classes of ``-log σ(s)`` where the text has the class, else of ``-log(1 - σ(s))``, in nats."""
    return float(np.logaddexp(0, np.where(labels_NK > 0, -logits_NK, logits_NK)).mean())


def teachers_answers(logits_TNK: Sequence[Floats], shares_T: Sequence[float]) -> Integers:
    """Return the joint answers of a student's teachers, int64 [N]: the most likely class by their probabilities, weighted by their shares
    in its loss; for one teacher, its own answer."""
    if len(logits_TNK) == 1:
        return _SINGLE.answers(logits_TNK[0])  # not by the softmax, whose rounding could make two classes equal
    mixed_NK = sum(share * _SINGLE.outputs(logits_NK) for share, logits_NK in zip(shares_T, logits_TNK, strict=True))
    return _SINGLE.answers(np.asarray(mixed_NK))


def agreement(answers_N: NDArray[Any], others_N: NDArray[Any]) -> float:
    """Return the share of examples with the same answer, right or wrong (fidelity: Stanton et al. 2021, arXiv 2106.05945, §3). A class for
    each, or a row of 0 and 1 for several classes, which must all be equal."""
    return float(same(answers_N, others_N).mean())


def same(answers_N: NDArray[Any], others_N: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each answer, a class or a row of classes, is the other: bool [N]."""
    equal = answers_N == others_N
    return np.asarray(equal.all(axis=1) if equal.ndim == 2 else equal)


def churn(answers_N: NDArray[Any], before_N: NDArray[Any], labels_N: NDArray[Any]) -> Churn:
    """Return how answers differ from earlier ones. Each is a class, or a row of classes, which is right if all of them are.

    Args:
        answers_N: of the model.
        before_N: of the model it is compared with, on the same examples.
        labels_N: the right classes.
    """
    changed_N = ~same(answers_N, before_N)
    return Churn(
        examples=len(labels_N),
        changed=int(changed_N.sum()),
        repaired=int((changed_N & same(answers_N, labels_N)).sum()),
        broken=int((changed_N & same(before_N, labels_N)).sum()),
    )
