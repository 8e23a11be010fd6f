"""Membership inference: from the answers of a model and of its shadows to how well an attacker tells its train texts from other texts.

The attacks score each text; a higher score says that the model has seen it. Pure functions.

Shapes: N texts, K classes, P pairs of shadows, M members, O non-members, R draws, S seeds, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.options import Task
from train.evidence.statistics import LEVEL

Floats = NDArray[np.float64]
Attack = Literal["loss", "shadow", "lira"]
# False positive rates at which the true positive rate is told, and the non-members that each needs: one of them is then the whole rate.
RATES: Mapping[float, int] = {0.01: 100, 0.001: 1_000}
RESAMPLES = 1_000
# Carlini et al. (2022) estimate a variance for each text from 64 shadows on, of which half have not seen it.
OWN_VARIANCE_FROM = 32
_CLASSES, _LARGEST = 9, 30.0
_HIDDEN, _EPOCHS = 64, 20
# Numbers in memory at a time.
_AT_ONCE = 4_000_000


def confidence(task: Task, targets_N: NDArray[Any], logits_NK: Floats) -> Floats:
    """Return the logit-scaled confidence ``log(p / (1 - p))`` of each text's label (Carlini et al. 2022), float64 [N].

    Of a single class, p is its softmax, and this is its logit less the log of the sum of the others' exponentials. Of several labels, p is
    the probability of the whole set of them, the product over the classes.
    """
    from scipy.special import logsumexp

    if task == "single-label":
        label_N, others_NK = _label_first(targets_N, logits_NK)
        return np.asarray(label_N - logsumexp(others_NK, axis=1))
    log_p_N = np.minimum(-np.logaddexp(0, -_signed(targets_N, logits_NK)).sum(axis=1), -np.finfo(np.float64).tiny)
    return np.asarray(log_p_N - np.log(-np.expm1(log_p_N)))


def negative_loss(confidence_N: Floats) -> Floats:
    """Return the log of the label's probability, from its logit-scaled confidence: the attack by a threshold on the loss (Yeom, Giacomelli,
    Fredrikson & Jha 2018, arXiv 1709.01604)."""
    return np.asarray(-np.logaddexp(0, -confidence_N))


def features(task: Task, targets_N: NDArray[Any], logits_NK: Floats) -> Floats:
    """Return what the shadow attack reads of an answer, float64 [N, F]: the label's logit-scaled confidence, then the log-probabilities of
    the other classes, the largest first, nine at most. Of several labels, the logits of the right answer to each class, the smallest
    first."""
    own_N = confidence(task, targets_N, logits_NK)
    if task == "single-label":
        from scipy.special import logsumexp

        _, others_NK = _label_first(targets_N, logits_NK)
        rest_NK = -np.sort(-(others_NK - logsumexp(logits_NK, axis=1, keepdims=True)), axis=1)
    else:
        rest_NK = np.sort(_signed(targets_N, logits_NK), axis=1)
    return np.asarray(np.clip(np.column_stack([own_N, rest_NK[:, :_CLASSES]]), -_LARGEST, _LARGEST))


def _label_first(targets_N: NDArray[Any], logits_NK: Floats) -> tuple[Floats, Floats]:
    """Return the logit of each label, and those of the other classes, [N, K - 1]."""
    is_label_NK = np.arange(logits_NK.shape[1]) == targets_N[:, None]
    return logits_NK[is_label_NK], logits_NK[~is_label_NK].reshape(len(logits_NK), -1)


def _signed(targets_NK: NDArray[Any], logits_NK: Floats) -> Floats:
    return np.asarray(np.where(targets_NK > 0, logits_NK, -logits_NK))


def shadow_attack(seen: Sequence[tuple[Floats, NDArray[np.bool_]]], asked_NF: Floats, *, seed: int) -> Floats:
    """Return the log-odds that a model has seen each text, by a classifier that learns them from shadows (Shokri et al. 2017, arXiv
    1610.05820: one hidden layer of 64 units), float64 [N]. One classifier for all classes; theirs are one for each.

    Args:
        seen: for each shadow the features of texts, and which of them it has seen.
        asked_NF: features of the audited model's answers.
        seed: of the classifier.
    """
    from sklearn.neural_network import MLPClassifier

    learnt_NF, is_seen_N = np.concatenate([one for one, _ in seen]), np.concatenate([one for _, one in seen])
    mean_F, spread_F = learnt_NF.mean(axis=0), learnt_NF.std(axis=0)
    spread_F[spread_F == 0] = 1
    classifier = MLPClassifier(hidden_layer_sizes=(_HIDDEN,), random_state=seed)
    for _ in range(_EPOCHS):
        classifier.partial_fit((learnt_NF - mean_F) / spread_F, is_seen_N, classes=[False, True])
    p_N = np.clip(classifier.predict_proba((asked_NF - mean_F) / spread_F)[:, 1], 1e-15, 1 - 1e-15)
    return np.asarray(np.log(p_N) - np.log1p(-p_N))


def lira(observed_N: Floats, unseen_NP: Floats) -> Floats:
    """Return the score of the offline likelihood-ratio attack (Carlini, Chien, Nasr, Song, Terzis & Tramèr 2022, arXiv 2112.03570),
    float64 [N]: by how many standard deviations the model is more confident of a label than shadows that have not seen the text.

    Their score is the normal distribution function of this one, which has the same order. The deviation is that of each text from 32
    unseen shadows on, else one for all texts; 1 where it is 0.

    Args:
        observed_N: logit-scaled confidences of the audited model.
        unseen_NP: of P shadows for each text.
    """
    variance_N = unseen_NP.var(axis=1, ddof=1)
    if unseen_NP.shape[1] < OWN_VARIANCE_FROM:
        variance_N = np.full(len(observed_N), variance_N.mean())
    return np.asarray((observed_N - unseen_NP.mean(axis=1)) / np.sqrt(np.where(variance_N > 0, variance_N, 1.0)))


class Ranking:
    """Members and non-members ranked by their scores; equal scores cannot be told apart."""

    def __init__(self, members_M: Floats, others_O: Floats) -> None:
        self._size = len(members_M)
        _, place_N = np.unique(-np.concatenate([members_M, others_O]), return_inverse=True)
        is_member_N = np.arange(len(place_N)) < self._size
        self._members, self._others = (_Groups(place_N[is_one_N], int(place_N.max()) + 1) for is_one_N in (is_member_N, ~is_member_N))

    def figures(self, weights_RM: Floats, weights_RO: Floats) -> dict[str, Floats]:
        """Return the area under the ROC curve, ``auc``, and the true positive rates at the false positive rates that there are enough
        non-members for, such as ``tpr_at_0.01``, float64 [R] each, in samples with so many of each text.

        The area is the Mann–Whitney probability that a member scores higher than a non-member, equal scores counting half. The rate is the
        largest of a threshold whose false positive rate is at most that.
        """
        found_RG, false_RG = self._members.sums(weights_RM), self._others.sums(weights_RO)
        found_R, false_R = found_RG.sum(axis=1), false_RG.sum(axis=1)
        above_RG = np.cumsum(false_RG, axis=1)
        below_RG = false_R[:, None] - above_RG + false_RG / 2
        result = {"auc": (found_RG * below_RG).sum(axis=1) / (found_R * false_R)}
        caught_RG = np.cumsum(found_RG, axis=1)
        for rate, needed in RATES.items():
            if weights_RO.shape[1] >= needed:
                groups_R = (above_RG <= rate * false_R[:, None] + 1e-9).sum(axis=1)
                last_R = caught_RG[np.arange(len(groups_R)), np.maximum(groups_R - 1, 0)]
                result[rate_name(rate)] = np.where(groups_R > 0, last_R, 0.0) / found_R
        return result


class _Groups:
    """Sums of weights over texts of equal scores."""

    def __init__(self, place_N: NDArray[np.int64], groups: int) -> None:
        self._order_N = np.argsort(place_N, kind="stable")
        self._there, self._starts = np.unique(place_N[self._order_N], return_index=True)
        self._groups = groups

    def sums(self, weights_RN: Floats) -> Floats:
        sums_RG = np.zeros((len(weights_RN), self._groups))
        sums_RG[:, self._there] = np.add.reduceat(weights_RN[:, self._order_N], self._starts, axis=1)
        return sums_RG


def rate_name(rate: float) -> str:
    """Return the name of the true positive rate at a false positive rate."""
    return f"tpr_at_{rate:g}"


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A figure of S models, and in R draws of texts.

    Attributes:
        values_S: of all texts.
        drawn_SR: of each draw; the draws are the same for all figures.
    """

    values_S: Floats
    drawn_SR: Floats

    def minus(self, other: "Sampled") -> "Sampled":
        """Return the difference from another figure of as many models."""
        return Sampled(values_S=self.values_S - other.values_S, drawn_SR=self.drawn_SR - other.drawn_SR)

    def take(self, places: Sequence[int]) -> "Sampled":
        """Return the figure of some of the models."""
        return Sampled(values_S=self.values_S[list(places)], drawn_SR=self.drawn_SR[list(places)])


def sampled(scores: Sequence[tuple[Floats, Floats]], masks_SM: Sequence[NDArray[np.bool_]] | None = None) -> dict[str, Sampled]:
    """Return every figure of ``Ranking`` for S models on the same texts, over draws with replacement of members and, apart from them, of
    non-members (the stratified bootstrap).

    Args:
        scores: for each model those of the members and of the non-members.
        masks_SM: for each model which of the members count; None = all.
    """
    rankings = [Ranking(*one) for one in scores]
    masks = [np.ones(len(scores[0][0]), np.bool_)] * len(scores) if masks_SM is None else masks_SM
    members, others = (len(one) for one in scores[0])
    whole = [
        ranking.figures(mask_M[None].astype(np.float64), np.ones((1, others))) for ranking, mask_M in zip(rankings, masks, strict=True)
    ]
    drawn: dict[str, list[list[Floats]]] = {name: [[] for _ in scores] for name in whole[0]}
    for weights_RM, weights_RO in _draws(members, others):
        for number, (ranking, mask_M) in enumerate(zip(rankings, masks, strict=True)):
            for name, values_R in ranking.figures(weights_RM * mask_M, weights_RO).items():
                drawn[name][number].append(values_R)
    return {
        name: Sampled(
            values_S=np.array([of_model[name][0] for of_model in whole]),
            drawn_SR=np.stack([np.concatenate(of_model) for of_model in of_name]),
        )
        for name, of_name in drawn.items()
    }


def _draws(members: int, others: int) -> Iterator[tuple[Floats, Floats]]:
    """Yield how often each member and each non-member is drawn, float64 [R, M] and [R, O] in parts of R: the same for every model."""
    generator = np.random.default_rng(0)
    step = max(1, _AT_ONCE // (members + others))
    for first in range(0, RESAMPLES, step):
        draws = min(step, RESAMPLES - first)
        yield _counts(generator, draws, members), _counts(generator, draws, others)


def _counts(generator: np.random.Generator, draws: int, texts: int) -> Floats:
    places = generator.integers(texts, size=(draws, texts)) + texts * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * texts).reshape(draws, texts).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {"value": round(self.value, 6), "interval": [round(self.low, 6), round(self.high, 6)]}

    def times(self, factor: float) -> "Estimate":
        """Return it in another unit, such as points."""
        return Estimate(value=factor * self.value, low=factor * self.low, high=factor * self.high)


def estimate(figure: Sampled, *, texts: int, lowest: float = 0.0) -> Estimate:
    """Return the mean over the models with its 95 % interval: of one model the percentile interval over draws of texts, of several over
    seeds and texts.

    Seeds and texts are crossed random effects, as in ``statistics.interval_over_seeds``, with variances from the draws, because a rate at
    a threshold has no useful derivative: ``V = V_N + max(V_S, V_SN) - V_SN`` with V_N the variance over draws of the mean, V_S that of the
    seeds' figures divided by S, and V_SN the mean variance over draws of a seed's distance from the mean, divided by S - 1. Student's t
    takes Satterthwaite's (1946) degrees of freedom.

    Args:
        figure: of the models.
        texts: in the smaller of the two samples.
        lowest: that a figure can be; the largest is 1.
    """
    from scipy.stats import t

    mean, seeds = float(figure.values_S.mean()), len(figure.values_S)
    if seeds == 1:
        low, high = np.quantile(figure.drawn_SR[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(value=mean, low=float(low), high=float(high))
    of_texts = float(figure.drawn_SR.mean(axis=0).var())
    of_both = float((figure.drawn_SR - figure.drawn_SR.mean(axis=0)).var(axis=1).sum() / (seeds * (seeds - 1)))
    of_seeds = max(float(figure.values_S.var(ddof=1)) / seeds, of_both)
    variance, freedom_N, freedom_S = of_texts + of_seeds - of_both, max(texts - 1, 1), seeds - 1
    if variance == 0:
        return Estimate(value=mean, low=mean, high=mean)
    parts = of_texts**2 / freedom_N + of_seeds**2 / freedom_S + of_both**2 / (freedom_S * freedom_N)
    half = float(t.ppf((1 + LEVEL) / 2, variance**2 / parts)) * variance**0.5
    return Estimate(value=mean, low=max(mean - half, lowest), high=min(mean + half, 1.0))


def pooled(figure: Sampled) -> Sampled:
    """Return the mean over the models as the figure of one."""
    return Sampled(values_S=figure.values_S.mean(keepdims=True), drawn_SR=figure.drawn_SR.mean(axis=0, keepdims=True))
