"""How different the images of one text are: the formula written out, and the sentences."""

from itertools import combinations

import numpy as np
import pytest

from featurize.inspect.diversity import Diversity, diversity_of
from featurize.inspect.records import LeftOut


def test_distances_follow_their_formula() -> None:
    rng = np.random.default_rng(0)
    text_M = np.array([7, 3, 3, 7, 9, 3, 1, 1])  # 9 has one image
    features = (rng.normal(size=(10, 6))[text_M] + 0.3 * rng.normal(size=(8, 6))).astype(np.float32)
    found = diversity_of(features, text_M, 0.9)
    assert isinstance(found, Diversity)
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = {pair: ((unit[pair[0]] - unit[pair[1]]) ** 2).sum() for pair in combinations(range(8), 2)}
    of_text = {text: [distance[a, b] for a, b in distance if text_M[a] == text_M[b] == text] for text in (1, 3, 7)}
    between = [value for (a, b), value in distance.items() if text_M[a] != text_M[b]]
    assert found.within == pytest.approx(np.mean([np.mean(values) for values in of_text.values()]), rel=1e-5)
    assert found.between == pytest.approx(np.mean(between), rel=1e-5)
    assert found.near_copies == pytest.approx(np.mean([np.mean(np.array(values) <= 0.2) for values in of_text.values()]))
    assert (found.texts, found.images) == (3, 7)
    assert found.to_json()["share"] == pytest.approx(found.within / found.between)


def test_images_that_do_not_answer_to_the_seed_are_told() -> None:
    rng = np.random.default_rng(1)
    text_M = np.repeat(np.arange(50), 4)
    own, noise = rng.normal(size=(50, 32)), rng.normal(size=(200, 32))
    alike, free = (diversity_of((own[text_M] + scale * noise).astype(np.float32), text_M, 0.98) for scale in (0.05, 1.0))
    assert isinstance(alike, Diversity)
    assert isinstance(free, Diversity)
    assert alike.is_little
    assert alike.sentence().startswith("the generator hardly answers to the seed: the images of one text differ by 0.")
    assert 0.4 < free.share < 0.6
    assert free.sentence("seeds 0 and 1") == (
        f"seeds 0 and 1 differ by {100 * free.share:.1f} % of what images of different texts do (squared distance), and 0.0 % of their "
        "pairs are near-duplicates (cosine 0.98 or more)"
    )


def test_unrelated_images_differ_as_much_within_texts_as_between_them() -> None:
    features = np.random.default_rng(2).normal(size=(400, 16)).astype(np.float32)
    found = diversity_of(features, np.arange(400) // 2, 0.98)
    assert isinstance(found, Diversity)
    assert found.share == pytest.approx(1, abs=0.05)
    assert not found.is_little


def test_a_generator_with_one_image_for_all_texts_is_told() -> None:
    found = diversity_of(np.ones((6, 4), np.float32), np.arange(6) // 2, 0.98)
    assert isinstance(found, Diversity)
    assert (found.share, found.is_little) == (0.0, True)


def test_too_few_texts_are_left_out() -> None:
    assert diversity_of(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 2]), 0.98) == LeftOut(
        left_out="fewer than two texts have two usable images"
    )
