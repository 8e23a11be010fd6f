"""Do image tokens predict the class? Nearest neighbours and a linear probe, compared with chance and with shuffled labels.

Shapes: N train examples, V validation examples, F features, K classes, S scored examples, D their distinct images.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.inspect.prototypes import Prototypes, best_temperature, cross_entropy
from featurize.inspect.records import Record, decimal, interval_text
from featurize.inspect.redundancy import FeatureShares, enough_of, importance, shares_of, soft_mask
from featurize.inspect.sample import stratified
from featurize.inspect.set_size import AccuracyCurve, fit_exponential, sizes_up_to

NEIGHBOURS = 10
# Fits on shuffled labels; those of the neighbours cost nothing.
PROBE_SHUFFLES, NEIGHBOUR_SHUFFLES = 5, 50
# Random subsets of each size.
CURVE_DRAWS = 3
# Permutations for the p-value: 1 / 1,000 is the smallest it can be.
PERMUTATIONS = 999
# The tolerance is on the mean loss's gradient; at 1e-3, wide features stop before the first step.
_ITERATIONS, _TOLERANCE = 100, 1e-4
_CHUNK = 256

Predict = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features with labels: a train part to fit and a validation part to score.

    Attributes:
        train_NF, validation_VF: float32, as they are; ``standardised`` scales them.
        train_N, validation_V: int64, the classes.
        picture_V: int64, which image each example has; several may share one.
        is_new_V: bool, whether no train example of the corpus shares the image.
        classes: K.
        row_V: int64, the examples' rows in the corpus; their places here if None.
    """

    train_NF: NDArray[np.float32]
    train_N: NDArray[np.int64]
    validation_VF: NDArray[np.float32]
    validation_V: NDArray[np.int64]
    picture_V: NDArray[np.int64]
    is_new_V: NDArray[np.bool_]
    classes: int
    row_V: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeExamples(Record):
    """How many examples a probe was fitted and scored on.

    Attributes:
        train: examples fitted.
        validation: examples scored.
        validation_new: validation examples whose image no train example shares.
        validation_shared: the other validation examples.
    """

    train: int
    validation: int
    validation_new: int
    validation_shared: int


@dataclass(frozen=True, kw_only=True)
class Chance(Record):
    """Accuracies without any image: of a uniform guess, and of always guessing the largest train class."""

    uniform: float
    majority: float


@dataclass(frozen=True, kw_only=True)
class ProbeScore(Record):
    """How well one classifier predicts the class.

    Attributes:
        accuracy: on the scored examples.
        accuracy_all: on all validation examples, those with shared images too.
        shuffled_mean, shuffled_sd: accuracies of the same classifier fitted on shuffled train labels.
        shuffles: how many of these fits.
        p: of the permutation test, see ``p_value``.
        interval: the accuracy's 95 % confidence interval, see ``accuracy_interval``; not in the JSON record.
        hits: by row of the scored examples, whether the prediction is right; not in the JSON record.
    """

    accuracy: float
    accuracy_all: float
    shuffled_mean: float
    shuffled_sd: float
    shuffles: int
    p: float
    interval: tuple[float, float]
    hits: Mapping[int, bool] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, without interval and hits."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("interval", "hits")}


@dataclass(frozen=True, kw_only=True)
class PrototypeScore(Record):
    """How well one vector a class predicts it, and how sure its soft labels may be.

    Attributes:
        score: of the class of the nearest prototype.
        temperature: by which cosines are divided before the softmax: that of the least cross-entropy on the scored examples themselves.
        cross_entropy: there, in nats.
    """

    score: ProbeScore
    temperature: float
    cross_entropy: float

    def sentence(self) -> str:
        """Return the accuracy, and what it is compared with."""
        accuracy = f"accuracy {decimal(self.score.accuracy)} ({interval_text(self.score.interval)}), p = {decimal(self.score.p)}"
        soft = f"as soft labels at temperature {self.temperature:.3g} a cross-entropy of {self.cross_entropy:.3f}"
        return f"one prototype a class: {accuracy}; {soft}"


@dataclass(frozen=True, kw_only=True)
class ClassProbes(Record):
    """How well the tokens predict the class, by nearest neighbours and by a linear probe.

    Attributes:
        examples: fitted and scored.
        chance: what a guess without images reaches.
        neighbours: k.
        knn, probe: the scores.
        prototypes: the score of one vector a class; None in records of earlier versions.
        by_size: the linear probe's accuracy with fewer train examples; None in records of earlier versions.
        by_features: its accuracy with fewer dimensions; None in records of earlier versions.
    """

    examples: ProbeExamples
    chance: Chance
    neighbours: int
    knn: ProbeScore
    probe: ProbeScore
    prototypes: PrototypeScore | None = None
    by_size: AccuracyCurve | None = None
    by_features: FeatureShares | None = None

    def classifier(self, by: str) -> str:
        """Return the name of ``probe`` or ``knn`` for a person."""
        return "linear probe" if by == "probe" else f"{self.neighbours} nearest neighbours"

    def sentence(self, by: str) -> str:
        """Return one classifier's accuracy and what it is compared with.

        Args:
            by: ``probe`` or ``knn``.
        """
        score = self.probe if by == "probe" else self.knn
        return (
            f"{self.classifier(by)}: accuracy {decimal(score.accuracy)} ({interval_text(score.interval)}), p = {decimal(score.p)}; "
            f"largest class {decimal(self.chance.majority)}, chance {decimal(self.chance.uniform)}, "
            f"shuffled labels {decimal(score.shuffled_mean)} ± {decimal(score.shuffled_sd)}"
        )


def probe_classes(data: LabelledFeatures, seed: int) -> ClassProbes:
    """Return how well nearest neighbours and a linear probe predict the class from the features.

    Scored are the validation examples whose image no train example shares: the others could be recognised instead of understood (corpora
    of single words have many). If there are none, all are scored, ``validation_new`` is 0, and the scores say nothing about new texts.

    Memory: the features three times, and similarities of 256 × N (20 MB for 4,000 train examples).

    Args:
        data: at least two classes in the train part, and a validation example.
        seed: of the shuffles.
    """
    train_NF, validation_VF = standardised(data.train_NF, data.validation_VF)
    scored_V = data.is_new_V if data.is_new_V.any() else np.ones_like(data.is_new_V)
    neighbours = Neighbours(train_NF, validation_VF, data.classes)
    majority = int(np.bincount(data.train_N, minlength=data.classes).argmax())
    of_majority = float((data.validation_V[scored_V] == majority).mean())
    new = int(data.is_new_V.sum())

    def predict_by_probe(labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
        return predict_linear(train_NF, labels_N, validation_VF)

    probe = _score(predict_by_probe, data, scored_V, shuffles=PROBE_SHUFFLES, seed=seed)
    return ClassProbes(
        examples=ProbeExamples(
            train=len(data.train_N),
            validation=int(scored_V.sum()),
            validation_new=new,
            validation_shared=len(data.is_new_V) - new,
        ),
        chance=Chance(uniform=1 / data.classes, majority=of_majority),
        neighbours=neighbours.count,
        knn=_score(neighbours.predict, data, scored_V, shuffles=NEIGHBOUR_SHUFFLES, seed=seed),
        probe=probe,
        prototypes=_prototype_score(Prototypes(train_NF, validation_VF, data.classes), data, scored_V, seed),
        by_size=accuracy_curve(data, scored_V, probe.accuracy, seed),
        by_features=feature_shares(data, scored_V, probe, of_majority, seed),
    )


def _prototype_score(prototypes: Prototypes, data: LabelledFeatures, scored_V: NDArray[np.bool_], seed: int) -> PrototypeScore:
    cosines_SK, labels_S = prototypes.cosines(data.train_N)[scored_V], data.validation_V[scored_V]
    temperature = best_temperature(cosines_SK, labels_S)
    return PrototypeScore(
        score=_score(prototypes.predict, data, scored_V, shuffles=NEIGHBOUR_SHUFFLES, seed=seed),
        temperature=temperature,
        cross_entropy=cross_entropy(cosines_SK, labels_S, temperature),
    )


def accuracy_curve(data: LabelledFeatures, scored_V: NDArray[np.bool_], accuracy: float, seed: int) -> AccuracyCurve:
    """Return the linear probe's accuracy on the scored examples, fitted on all train examples, on halves of them, quarters and so on.

    Subsets are drawn class by class, and have two examples of a class on average at least; each is standardised by itself.

    Args:
        data: as for ``probe_classes``.
        scored_V: bool, the examples that are scored.
        accuracy: with all train examples.
        seed: of the subsets.
    """
    rng, rows = np.random.default_rng(seed), np.arange(len(data.train_N))
    sizes = sizes_up_to(len(rows), 2 * len(np.unique(data.train_N)))
    accuracies = []
    for size in sizes[:-1]:
        of_size = []
        for _ in range(CURVE_DRAWS):
            chosen = stratified(rows, data.train_N, size, rng)
            train_nF, scored_SF = standardised(data.train_NF[chosen], data.validation_VF[scored_V])
            label_n = data.train_N[chosen]
            # A rare class may have no example in a subset, so that there is only one to predict.
            predicted = predict_linear(train_nF, label_n, scored_SF) if len(np.unique(label_n)) > 1 else label_n[0]
            of_size.append(float((predicted == data.validation_V[scored_V]).mean()))
        accuracies.append(float(np.mean(of_size)))
    accuracies.append(accuracy)
    return AccuracyCurve(sizes=sizes, accuracies=tuple(accuracies), draws=CURVE_DRAWS, fit=fit_exponential(sizes, accuracies))


def feature_shares(data: LabelledFeatures, scored_V: NDArray[np.bool_], probe: ProbeScore, guess: float, seed: int) -> FeatureShares:
    """Return the linear probe's accuracy on the scored examples from the most important dimensions alone, and from all under a soft mask.

    What is important is read off the train examples.

    Args:
        data: as for ``probe_classes``.
        scored_V: bool, the examples that are scored.
        probe: its score on all dimensions.
        guess: the accuracy of the largest train class.
        seed: of the paired test.
    """
    train_NF, scored_SF = standardised(data.train_NF, data.validation_VF[scored_V])
    label_S, important_F = data.validation_V[scored_V], importance(train_NF, data.train_N)
    kept, order_F = shares_of(len(important_F)), np.argsort(-important_F, kind="stable")

    def hits(train_Nf: NDArray[np.float32], scored_Sf: NDArray[np.float32]) -> NDArray[np.bool_]:
        right_S: NDArray[np.bool_] = predict_linear(train_Nf, data.train_N, scored_Sf) == label_S
        return right_S

    accuracies = [float(hits(train_NF[:, order_F[:count]], scored_SF[:, order_F[:count]]).mean()) for count in kept[:-1]]
    mask_F = soft_mask(important_F)
    masked_S, whole_S = hits(train_NF * mask_F, scored_SF * mask_F), np.array(list(probe.hits.values()))
    gains_S = masked_S.astype(np.int64) - whole_S
    return FeatureShares(
        features=len(important_F),
        kept=kept,
        accuracies=(*accuracies, probe.accuracy),
        enough=enough_of(kept, (*accuracies, probe.accuracy), guess),
        soft_mask=float(masked_S.mean()),
        p=paired_p_value(gains_S, data.picture_V[scored_V], seed),
    )


def _score(predict: Predict, data: LabelledFeatures, scored_V: NDArray[np.bool_], *, shuffles: int, seed: int) -> ProbeScore:
    rng = np.random.default_rng(seed)
    labels_S, image_S = data.validation_V[scored_V], data.picture_V[scored_V]
    predicted_V = predict(data.train_N)
    accuracy = float((predicted_V[scored_V] == labels_S).mean())
    rows_S = (np.arange(len(scored_V)) if data.row_V is None else data.row_V)[scored_V]
    shuffled = [float((predict(rng.permutation(data.train_N))[scored_V] == labels_S).mean()) for _ in range(shuffles)]
    return ProbeScore(
        accuracy=accuracy,
        accuracy_all=float((predicted_V == data.validation_V).mean()),
        shuffled_mean=float(np.mean(shuffled)),
        shuffled_sd=float(np.std(shuffled, ddof=1)),
        shuffles=shuffles,
        p=p_value(predicted_V[scored_V], labels_S, image_S, rng),
        interval=accuracy_interval(accuracy, images=len(np.unique(image_S))),
        hits=dict(zip(rows_S.tolist(), (predicted_V[scored_V] == labels_S).tolist(), strict=True)),
    )


def p_value(predicted_S: NDArray[np.int64], labels_S: NDArray[np.int64], picture_S: NDArray[np.int64], rng: np.random.Generator) -> float:
    """Return the p-value of the permutation test for "images and labels are independent": the share of 1,000 arrangements (999 random
    permutations of the predictions, and the observed one) with at least as many hits.

    The test is exact (Phipson & Smyth 2010, arXiv 1603.05766, eq. 2). Whole images are permuted, because examples that share an image
    share its prediction, and often the label too.
    """
    _, first_D, image_of_S = np.unique(picture_S, return_index=True, return_inverse=True)
    predicted_D, hits = predicted_S[first_D], int((predicted_S == labels_S).sum())
    as_many = sum(int((rng.permutation(predicted_D)[image_of_S] == labels_S).sum()) >= hits for _ in range(PERMUTATIONS))
    return (1 + as_many) / (1 + PERMUTATIONS)


def paired_p_value(gains_S: NDArray[np.int64], picture_S: NDArray[np.int64], seed: int) -> float:
    """Return the two-sided p-value of "two classifiers are right equally often": the share of 1,000 arrangements, the observed one among
    them, whose difference is at least as large, if for each image it is random which classifier is which (a sign-flip test; with an image
    for each example it is McNemar's).

    Args:
        gains_S: for each scored example, whether the first classifier is right less whether the second is.
        picture_S: int64, which image each example has; the examples of an image are flipped together.
        seed: of the flips.
    """
    _, image_of_S = np.unique(picture_S, return_inverse=True)
    gains_D = np.bincount(image_of_S, weights=gains_S)
    signs = np.random.default_rng(seed).choice(np.array([-1.0, 1.0]), size=(PERMUTATIONS, len(gains_D)))
    as_large = int((np.abs(signs @ gains_D) >= abs(gains_D.sum())).sum())
    return (1 + as_large) / (1 + PERMUTATIONS)


def accuracy_interval(accuracy: float, *, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of an accuracy (Wilson 1927, "Probable inference, the law of succession, and statistical
    inference"). Each image counts once, because examples that share an image share its prediction."""
    from scipy.stats import binomtest

    interval = binomtest(round(accuracy * images), images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def standardised(train_NF: NDArray[np.float32], other_VF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both parts less the train part's mean, divided by its standard deviation. A constant feature becomes zero."""
    mean_F, sd_F = train_NF.mean(axis=0, dtype=np.float64), train_NF.std(axis=0, dtype=np.float64)
    varies_F = sd_F > 1e-6 * np.maximum(1.0, np.abs(mean_F))
    scale_F = np.where(varies_F, 1 / np.where(varies_F, sd_F, 1.0), 0.0)
    shift, scale = mean_F.astype(np.float32), scale_F.astype(np.float32)
    return (train_NF - shift) * scale, (other_VF - shift) * scale


class Neighbours:
    """The k nearest train examples, by cosine, of every validation example: found once, used with any labels.

    Attributes:
        count: k, at most 10.
    """

    def __init__(self, train_NF: NDArray[np.float32], validation_VF: NDArray[np.float32], classes: int) -> None:
        self.count, self._classes = min(NEIGHBOURS, len(train_NF)), classes
        train_FN, nearest = _unit_rows(train_NF).T, []
        for start in range(0, len(validation_VF), _CHUNK):
            similarity_BN = _unit_rows(validation_VF[start : start + _CHUNK]) @ train_FN
            # Stable: of equally near examples the first.
            nearest.append(np.argsort(-similarity_BN, axis=1, kind="stable")[:, : self.count])
        self._nearest_Vk = np.concatenate(nearest)

    def predict(self, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class with most votes among the neighbours, int64 [V]; ties go to the class whose neighbours are nearer."""
        votes_VK = np.zeros((len(self._nearest_Vk), self._classes))
        for rank in range(self.count):
            # The bonuses sum to less than one vote, and are larger for nearer neighbours.
            votes_VK[np.arange(len(votes_VK)), labels_N[self._nearest_Vk[:, rank]]] += 1 + 2.0 ** -(rank + 2)
        predicted_V: NDArray[np.int64] = votes_VK.argmax(axis=1)
        return predicted_V


def predict_linear(train_NF: NDArray[np.float32], labels_N: NDArray[np.int64], other_VF: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the predictions of multinomial logistic regression, int64 [V].

    For F standardised features scikit-learn's C is 1 / F, which is C = 1 for rows of length one: the penalty is the same for every width.
    At most 100 steps of L-BFGS.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / train_NF.shape[1], max_iter=_ITERATIONS, tol=_TOLERANCE).fit(train_NF, labels_N)
    predicted_V: NDArray[np.int64] = model.predict(other_VF)
    return predicted_V


def _unit_rows(rows_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    unit_BF: NDArray[np.float32] = rows_BF / np.maximum(np.linalg.norm(rows_BF, axis=1, keepdims=True), 1e-12).astype(np.float32)
    return unit_BF
