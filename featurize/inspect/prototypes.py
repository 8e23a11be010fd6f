"""A classifier of one vector a class: the mean of its train examples, with a softmax of cosines as soft labels.

Source: prototypes with soft labels as a distilled training set, arXiv 2403.17130. The reading is in docs/method.md.

Shapes: N train examples, V other examples, F features, K classes.
"""

import numpy as np
from numpy.typing import NDArray

_COLDEST, _HOTTEST, _HALVINGS = 1e-4, 1e4, 80


class Prototypes:
    """The cosine of examples with the mean direction of each class of the train examples.

    Args:
        train_NF: float32, standardised.
        other_VF: float32, standardised in the same way.
        classes: K.
    """

    def __init__(self, train_NF: NDArray[np.float32], other_VF: NDArray[np.float32], classes: int) -> None:
        self._train_NF, self._other_VF, self._classes = _directions(train_NF), _directions(other_VF), classes

    def cosines(self, labels_N: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the cosine of each example with each class's prototype, float64 [V, K]; -1 for a class without a train example."""
        members_KN = (labels_N == np.arange(self._classes)[:, None]).astype(np.float64)
        prototypes_KF = _directions(members_KN @ self._train_NF)
        cosines_VK: NDArray[np.float64] = self._other_VF @ prototypes_KF.T
        cosines_VK[:, members_KN.sum(axis=1) == 0] = -1.0
        return cosines_VK

    def predict(self, labels_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of the nearest prototype, int64 [V]; of equally near ones the first."""
        predicted_V: NDArray[np.int64] = self.cosines(labels_N).argmax(axis=1)
        return predicted_V


def soft_labels(cosines_VK: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return the softmax of cosines over a temperature, [V, K]."""
    logits_VK = (cosines_VK - cosines_VK.max(axis=1, keepdims=True)) / temperature
    soft_VK: NDArray[np.float64] = np.exp(logits_VK) / np.exp(logits_VK).sum(axis=1, keepdims=True)
    return soft_VK


def cross_entropy(cosines_VK: NDArray[np.float64], labels_V: NDArray[np.int64], temperature: float) -> float:
    """Return the mean cross-entropy of labels with ``soft_labels``, in nats."""
    logits_VK = (cosines_VK - cosines_VK.max(axis=1, keepdims=True)) / temperature
    return float((np.log(np.exp(logits_VK).sum(axis=1)) - logits_VK[np.arange(len(labels_V)), labels_V]).mean())


def best_temperature(cosines_VK: NDArray[np.float64], labels_V: NDArray[np.int64]) -> float:
    """Return the temperature of the least cross-entropy, between 1e-4 and 1e4.

    In the inverse temperature it is convex; its slope is the mean of the expected cosine less that of the label, which is halved down on.
    """
    coldest, hottest = np.log(_COLDEST), np.log(_HOTTEST)
    of_label = cosines_VK[np.arange(len(labels_V)), labels_V].mean()
    for _ in range(_HALVINGS):
        middle = (coldest + hottest) / 2
        expected = (soft_labels(cosines_VK, float(np.exp(middle))) * cosines_VK).sum(axis=1).mean()
        # Where more is expected than the labels have, the soft labels are too sure: hotter.
        coldest, hottest = (middle, hottest) if expected > of_label else (coldest, middle)
    return float(np.exp((coldest + hottest) / 2))


def _directions(rows_BF: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
    rows = rows_BF.astype(np.float64)
    unit_BF: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit_BF
