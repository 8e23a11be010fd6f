"""One prototype a class: means, cosines and soft labels by the formulas, and a temperature that none beats."""

import numpy as np
import pytest
import torch

from featurize.inspect.probes import LabelledFeatures, probe_classes
from featurize.inspect.prototypes import Prototypes, best_temperature, cross_entropy, soft_labels

LABELS = np.arange(40) % 4
RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(4, 6))
TRAIN = (RNG.normal(size=(40, 6)) + 1.5 * CENTRES[LABELS]).astype(np.float32)
OTHER_LABELS = np.arange(60) % 4
OTHER = (RNG.normal(size=(60, 6)) + 1.5 * CENTRES[OTHER_LABELS]).astype(np.float32)


def test_prototypes_are_mean_directions() -> None:
    unit = torch.nn.functional.normalize(torch.from_numpy(TRAIN).double())
    means = torch.stack([unit[torch.from_numpy(label == LABELS)].mean(dim=0) for label in range(4)])
    wanted = torch.nn.functional.cosine_similarity(torch.from_numpy(OTHER).double()[:, None], means[None], dim=-1)
    prototypes = Prototypes(TRAIN, OTHER, 5)
    cosines = prototypes.cosines(LABELS)
    np.testing.assert_allclose(cosines[:, :4], wanted.numpy(), atol=1e-9)
    assert (cosines[:, 4] == -1).all()  # no train example
    np.testing.assert_array_equal(prototypes.predict(LABELS), wanted.argmax(dim=1).numpy())


def test_soft_labels_and_cross_entropy_are_torchs() -> None:
    cosines = torch.from_numpy(Prototypes(TRAIN, OTHER, 4).cosines(LABELS))
    np.testing.assert_allclose(soft_labels(cosines.numpy(), 0.1), (cosines / 0.1).softmax(dim=1).numpy(), atol=1e-12)
    wanted = torch.nn.functional.cross_entropy(cosines / 0.1, torch.from_numpy(OTHER_LABELS))
    assert cross_entropy(cosines.numpy(), OTHER_LABELS, 0.1) == pytest.approx(float(wanted))


def test_no_other_temperature_has_a_lower_cross_entropy() -> None:
    cosines = Prototypes(TRAIN, OTHER, 4).cosines(LABELS)
    best = best_temperature(cosines, OTHER_LABELS)
    least = cross_entropy(cosines, OTHER_LABELS, best)
    assert 1e-3 < best < 10
    assert all(cross_entropy(cosines, OTHER_LABELS, best * factor) > least for factor in (0.1, 0.9, 0.99, 1.01, 1.1, 10))


def test_cosines_that_say_nothing_are_heated_until_they_are_flat() -> None:
    cosines = np.array([[0.9, 0.1], [0.9, 0.1]])
    best = best_temperature(cosines, np.array([1, 1]))
    assert cross_entropy(cosines, np.array([1, 1]), best) == pytest.approx(np.log(2), abs=1e-3)


def test_an_inspection_scores_prototypes_beside_the_probes() -> None:
    data = LabelledFeatures(
        train_NF=TRAIN,
        train_N=LABELS,
        validation_VF=OTHER,
        validation_V=OTHER_LABELS,
        picture_V=np.arange(60),
        is_new_V=np.arange(60) >= 20,
        classes=4,
    )
    found = probe_classes(data, seed=0).prototypes
    assert found is not None
    assert found.score.accuracy > 0.6
    assert (found.score.shuffles, len(found.score.hits), found.score.p) == (50, 40, 0.001)
    assert abs(found.score.shuffled_mean - 0.25) < 0.1
    assert found.cross_entropy < np.log(4)
    assert found.to_json().keys() == {"score", "temperature", "cross_entropy"}
    assert found.sentence().startswith(f"one prototype a class: accuracy {found.score.accuracy:.3f}".replace("0.", "."))
