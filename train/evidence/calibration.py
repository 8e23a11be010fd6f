"""Calibration of a model's probabilities, fidelity of a student to its teacher, and churn compared with the baseline: pure functions of
logits.

Shapes: N examples, K classes, M bins, T teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15

Floats = NDArray[np.float64]
Classes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram (Guo et al. 2017, arXiv 1706.04599, §2): examples by the confidence of their answers.

    Attributes:
        counts: int64 [M], number of examples in each bin; bin m has confidences in (m / M, (m + 1) / M].
        confidence: float64 [M], their mean confidence; 0 for an empty bin.
        accuracy: float64 [M], share of them that was classified correctly; 0 for an empty bin.
    """

    counts: Classes
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


def answers(scores_NK: Floats) -> Classes:
    """Return the class of the highest score, int64 [N], the first where several are equal."""
    best_N: Classes = scores_NK.argmax(axis=1)
    return best_N


def probabilities(logits_NK: Floats) -> Floats:
    """Return softmax, float64 [N, K]."""
    return np.exp(log_probabilities(logits_NK))


def log_probabilities(logits_NK: Floats) -> Floats:
    """Return log-softmax, float64 [N, K]; finite for all finite float32 logits."""
    shifted_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    logs_NK: Floats = shifted_NK - np.log(np.exp(shifted_NK).sum(axis=1, keepdims=True))
    return logs_NK


def nll(logits_NK: Floats, labels_N: Classes) -> float:
    """Return the mean negative log-likelihood of the labels, in nats."""
    return float(-log_probabilities(logits_NK)[np.arange(len(labels_N)), labels_N].mean())


def reliability(logits_NK: Floats, labels_N: Classes, *, bins: int = BINS) -> Reliability:
    """Return the reliability diagram of the answers (the class of the highest logit), in bins of equal width.

    Args:
        logits_NK: at least one example.
        labels_N: the right classes.
        bins: M.
    """
    confidence_N, hits_N = probabilities(logits_NK).max(axis=1), answers(logits_NK) == labels_N
    bin_N = np.digitize(confidence_N, np.arange(1, bins) / bins, right=True)
    counts_M = np.bincount(bin_N, minlength=bins)
    each_M = np.maximum(counts_M, 1)
    return Reliability(
        counts=counts_M,
        confidence=np.bincount(bin_N, weights=confidence_N, minlength=bins) / each_M,
        accuracy=np.bincount(bin_N, weights=hits_N, minlength=bins) / each_M,
    )


def teachers_answers(logits_TNK: Sequence[Floats], shares_T: Sequence[float]) -> Classes:
    """Return the joint answers of a student's teachers, int64 [N]: the most likely class by their probabilities, weighted by their shares
    in its loss; for one teacher, its own answer."""
    if len(logits_TNK) == 1:
        return answers(logits_TNK[0])  # not by the softmax, whose rounding could make two classes equal
    mixed_NK = sum(share * probabilities(logits_NK) for share, logits_NK in zip(shares_T, logits_TNK, strict=True))
    return answers(np.asarray(mixed_NK))


def agreement(answers_N: Classes, others_N: Classes) -> float:
    """Return the share of examples with the same answer, right or wrong (fidelity: Stanton et al. 2021, arXiv 2106.05945, §3)."""
    return float((answers_N == others_N).mean())


def churn(answers_N: Classes, before_N: Classes, labels_N: Classes) -> Churn:
    """Return how answers differ from earlier ones.

    Args:
        answers_N: of the model.
        before_N: of the model it is compared with, on the same examples.
        labels_N: the right classes.
    """
    changed_N = answers_N != before_N
    return Churn(
        examples=len(labels_N),
        changed=int(changed_N.sum()),
        repaired=int((changed_N & (answers_N == labels_N)).sum()),
        broken=int((changed_N & (before_N == labels_N)).sum()),
    )
