"""What do image tokens know of the classes? Neighbours and a linear probe, against chance and against shuffled labels.

Shapes: N train examples, V validation examples, F features, K classes, P shufflings, S scored examples, D their pictures.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 10
# Trained on shuffled labels: a probe so often, and neighbours so often, for they cost nothing.
PROBE_SHUFFLES, NEIGHBOUR_SHUFFLES = 5, 50
# Shufflings of the predictions for the p-value: 1 / 1,000 is the smallest it can be.
SHUFFLES = 999
# Of the mean loss's gradient; at 1e-3, wide features stop before the first step.
_ITERATIONS, _TOLERANCE = 100, 1e-4
_CHUNK = 256

Predict = Callable[[NDArray[np.int64]], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True)
class LabelledFeatures:
    """Features with labels: a train part to fit and a validation part to score.

    Attributes:
        train_NF, validation_VF: float32, as they are; ``standardised`` scales them.
        train_N, validation_V: int64, the classes.
        picture_V: int64, which picture each is of; examples may share one.
        is_new_V: bool, whether no train example of the corpus shares the picture.
        classes: K.
    """

    train_NF: NDArray[np.float32]
    train_N: NDArray[np.int64]
    validation_VF: NDArray[np.float32]
    validation_V: NDArray[np.int64]
    picture_V: NDArray[np.int64]
    is_new_V: NDArray[np.bool_]
    classes: int


def probe_classes(data: LabelledFeatures, seed: int) -> dict[str, Any]:
    """Return what neighbours and the linear probe make of the features, as plain values: ``{"chance": …, "knn": …, "probe": …}``.

    Scored are the validation examples whose picture no train example shares (in corpora of single words the others are recognised, not
    understood). Where there are none, all are scored, ``validation_new`` is 0, and what is found says nothing of other texts.

    Each part has ``accuracy``, ``shuffled_mean`` and ``shuffled_sd`` (the same fit on shuffled train labels), ``p`` (see ``p_value``) and
    ``accuracy_all`` (shared pictures too).

    Memory: the features three times, and similarities of 256 × N (20 MB for 4,000 train examples).

    Args:
        data: at least two classes in the train part, and a validation example.
        seed: of the shufflings.
    """
    train_NF, validation_VF = standardised(data.train_NF, data.validation_VF)
    scored_V = data.is_new_V if data.is_new_V.any() else np.ones_like(data.is_new_V)
    neighbours = Neighbours(train_NF, validation_VF, data.classes)
    ways: dict[str, tuple[Predict, int]] = {
        "knn": (neighbours.predict, NEIGHBOUR_SHUFFLES),
        "probe": (lambda labels_N: predict_linear(train_NF, labels_N, validation_VF), PROBE_SHUFFLES),
    }
    found = {name: _scored(predict, data, scored_V, (count, seed)) for name, (predict, count) in ways.items()}
    majority = int(np.bincount(data.train_N, minlength=data.classes).argmax())
    chance = {"uniform": 1 / data.classes, "majority": float((data.validation_V[scored_V] == majority).mean())}
    new = int(data.is_new_V.sum())
    counts = {
        "train": len(data.train_N),
        "validation": int(scored_V.sum()),
        "validation_new": new,
        "validation_shared": len(data.is_new_V) - new,
    }
    return {"examples": counts, "chance": chance, "neighbours": neighbours.count, **found}


def _scored(predict: Predict, data: LabelledFeatures, scored_V: NDArray[np.bool_], shuffles: tuple[int, int]) -> dict[str, Any]:
    count, seed = shuffles
    chance, labels_S = np.random.default_rng(seed), data.validation_V[scored_V]
    predicted_V = predict(data.train_N)
    shuffled = [float((predict(chance.permutation(data.train_N))[scored_V] == labels_S).mean()) for _ in range(count)]
    return {
        "accuracy": float((predicted_V[scored_V] == labels_S).mean()),
        "accuracy_all": float((predicted_V == data.validation_V).mean()),
        "shuffled_mean": float(np.mean(shuffled)),
        "shuffled_sd": float(np.std(shuffled, ddof=1)),
        "shuffles": count,
        "p": p_value(predicted_V[scored_V], labels_S, data.picture_V[scored_V], chance),
    }


def p_value(
    predicted_S: NDArray[np.int64], labels_S: NDArray[np.int64], picture_S: NDArray[np.int64], chance: np.random.Generator
) -> float:
    """Return the permutation test's p for "pictures and labels have nothing to do with each other": the share of 1,000 arrangements, 999
    shufflings of what is said of the pictures among them and the one that was found, with at least so many hits. Exact (Phipson & Smyth
    2010, arXiv 1603.05766, eq. 2). Whole pictures are shuffled, for examples that share one share the answer, and often the label too."""
    _, first_D, picture_of_S = np.unique(picture_S, return_index=True, return_inverse=True)
    predicted_D, hits = predicted_S[first_D], int((predicted_S == labels_S).sum())
    as_many = sum(int((chance.permutation(predicted_D)[picture_of_S] == labels_S).sum()) >= hits for _ in range(SHUFFLES))
    return (1 + as_many) / (1 + SHUFFLES)


def standardised(train_NF: NDArray[np.float32], other_VF: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both with the train part's mean taken off, divided by its standard deviation. A feature that is the same everywhere becomes
    zero."""
    mean_F, sd_F = train_NF.mean(axis=0, dtype=np.float64), train_NF.std(axis=0, dtype=np.float64)
    varies_F = sd_F > 1e-6 * np.maximum(1.0, np.abs(mean_F))
    scale_F = np.where(varies_F, 1 / np.where(varies_F, sd_F, 1.0), 0.0)
    shift, scale = mean_F.astype(np.float32), scale_F.astype(np.float32)
    return (train_NF - shift) * scale, (other_VF - shift) * scale


class Neighbours:
    """The k nearest train examples, by cosine, of every validation example; found once, asked with any labels.

    Attributes:
        count: k, 10 or as many as there are.
    """

    def __init__(self, train_NF: NDArray[np.float32], validation_VF: NDArray[np.float32], classes: int) -> None:
        self.count, self._classes = min(NEIGHBOURS, len(train_NF)), classes
        train_FN, nearest = _unit(train_NF).T, []
        for start in range(0, len(validation_VF), _CHUNK):
            similarity_BN = _unit(validation_VF[start : start + _CHUNK]) @ train_FN
            # Of equally near examples the first, whatever the sort does.
            nearest.append(np.argsort(-similarity_BN, axis=1, kind="stable")[:, : self.count])
        self._nearest_Vk = np.concatenate(nearest)

    def predict(self, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of most neighbours, [V]; where several have as many votes, the one whose neighbours are nearer."""
        votes_VK = np.zeros((len(self._nearest_Vk), self._classes))
        for place in range(self.count):
            # Less than a vote in sum, and more for the nearer.
            votes_VK[np.arange(len(votes_VK)), labels_N[self._nearest_Vk[:, place]]] += 1 + 2.0 ** -(place + 2)
        predicted_V: NDArray[np.int64] = votes_VK.argmax(axis=1)
        return predicted_V


def predict_linear(train_NF: NDArray[np.float32], labels_N: NDArray[np.int64], other_VF: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return what multinomial logistic regression, fit on the one, says of the other, [V].

    Of F standardised features scikit-learn's C is 1 / F: the same as C = 1 for rows of length one, so that the penalty means the same for
    every width. At most 100 steps of L-BFGS.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / train_NF.shape[1], max_iter=_ITERATIONS, tol=_TOLERANCE).fit(train_NF, labels_N)
    predicted_V: NDArray[np.int64] = model.predict(other_VF)
    return predicted_V


def _unit(rows_BF: NDArray[np.float32]) -> NDArray[np.float32]:
    unit_BF: NDArray[np.float32] = rows_BF / np.maximum(np.linalg.norm(rows_BF, axis=1, keepdims=True), 1e-12).astype(np.float32)
    return unit_BF
