"""Which texts have images with ``--subset``: k-centre and herding against their definitions, and the plan of the chosen texts' images."""

from collections.abc import Callable, Sequence
from itertools import combinations, islice
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from featurize.options import FeaturizeSettings, Generation, SubsetRule
from featurize.plan.images import ImagePlan
from featurize.plan.prompt_reader import PromptReader
from featurize.plan.prompts import plan_of
from featurize.plan.subset import TextVectors, choose, herding, k_centre
from featurize.plan.words import words_of
from lugpi_core.corpora.corpus import Corpus, Example
from lugpi_core.errors import InputError
from tests.support.topics import topic_texts

TEXTS = [
    "the cat sat on the mat and the cat slept",
    "the dog chased the cat over the hill",
    "a hill is no mountain, and a mountain is no hill",
    "stocks fell as the market slept",
    "the market rose and stocks rose with it",
    "a dog and a cat slept on the mat",
    "rain fell on the hill all day",
    "the end of the day on the sea",
    "a ship at sea, far from the hill",
]
# Rounding a vector of up to ten terms to multiples of 2^-15 moves a cosine by less.
CLOSE = 1e-3


def vectors_of(texts: Sequence[str]) -> NDArray[np.float64]:
    """TF-IDF by scikit-learn, [T, E], of length 1."""
    vectorizer = TfidfVectorizer(analyzer=words_of, sublinear_tf=True, norm="l2")
    dense: NDArray[np.float64] = vectorizer.fit_transform(texts).toarray()
    return dense


def no_reader() -> PromptReader:
    raise AssertionError("no prompt is read")


def corpus_of(*splits: tuple[str, Sequence[str]]) -> Corpus:
    examples = [
        Example(id=f"{split}/{n}", text=text, prompt=text, label=n % 2, split=split)  # type: ignore[arg-type]
        for split, texts in splits
        for n, text in enumerate(texts)
    ]
    return Corpus(name="own", label_names=("a", "b"), examples=tuple(examples), license="")


def planned(corpus: Corpus, **settings: Any) -> ImagePlan:
    return plan_of(corpus, Generation(**settings), no_reader)


def test_products_are_the_cosines_of_tf_idf_vectors_as_whole_numbers() -> None:
    dense, ours = vectors_of(TEXTS), TextVectors(TEXTS)
    found = np.stack([ours.products(text) for text in range(len(TEXTS))])
    assert (found == np.rint(found)).all()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found / 2**30, dense @ dense.T, atol=CLOSE)
    np.testing.assert_array_equal(ours.to_sum_T, found.sum(axis=1))


def test_each_centre_is_the_text_farthest_from_those_before() -> None:
    dense, order = vectors_of(TEXTS), list(k_centre(TextVectors(TEXTS)))
    assert sorted(order) == list(range(len(TEXTS)))
    distances = np.linalg.norm(dense[:, None] - dense[None], axis=2)
    assert order[0] == np.linalg.norm(dense - dense.mean(axis=0), axis=1).argmin()
    for count in range(1, len(TEXTS)):
        nearest = distances[:, order[:count]].min(axis=1)
        assert nearest[order[count]] >= nearest.max() - CLOSE


def test_the_farthest_text_is_at_most_twice_as_far_as_with_the_best_centres() -> None:
    texts = [text for text, _ in topic_texts(12)]
    dense, order = vectors_of(texts), list(k_centre(TextVectors(texts)))
    distances = np.linalg.norm(dense[:, None] - dense[None], axis=2)

    def radius(centres: Sequence[int]) -> float:
        return float(distances[:, list(centres)].min(axis=1).max())

    for count in (1, 2, 3, 4, 6):
        best = min(radius(centres) for centres in combinations(range(len(texts)), count))
        assert radius(order[:count]) <= 2 * best + CLOSE


def test_herding_adds_the_text_that_its_weights_point_to() -> None:
    dense, order = vectors_of(TEXTS), list(herding(TextVectors(TEXTS)))
    assert sorted(order) == list(range(len(TEXTS)))
    mean = dense.mean(axis=0)
    weights, left = mean.copy(), set(range(len(TEXTS)))
    for text in order:
        scores = dense @ weights
        assert scores[text] >= max(scores[other] for other in left) - CLOSE * len(TEXTS)
        left.remove(text)
        weights += mean - dense[text]


def test_the_mean_of_a_herd_is_nearer_to_that_of_all_than_the_mean_of_centres_or_of_random_texts() -> None:
    texts = [text for text, _ in topic_texts(120)]
    dense = vectors_of(texts)
    off = {by: float(np.linalg.norm(dense[choose(texts, 20, by, seed=0)].mean(axis=0) - dense.mean(axis=0))) for by in get_args(SubsetRule)}
    assert off["herding"] < min(off["k-centre"], off["random"])


def test_ties_go_to_the_text_nearest_to_the_mean() -> None:
    texts = ["a b", "c d", "e f", "e g", "a c"]  # "a c" is nearest to the mean; "e f" and "e g" share nothing with it, and more than "c d"
    assert list(islice(k_centre(TextVectors(texts)), 2)) == [4, 2]


def test_texts_without_words_are_chosen_without_an_error() -> None:
    assert sorted(k_centre(TextVectors(["123", "45", "a b"]))) == [0, 1, 2]
    assert sorted(herding(TextVectors(["123", "45"]))) == [0, 1]


@pytest.mark.parametrize("by", get_args(SubsetRule))
def test_a_larger_choice_begins_with_the_smaller_ones(by: SubsetRule) -> None:
    texts = [text for text, _ in topic_texts(60)]
    largest = choose(texts, 60, by, seed=3)
    assert sorted(largest) == list(range(60))
    for count in (1, 7, 30):
        assert choose(texts, count, by, seed=3) == largest[:count]


def test_the_seed_decides_a_random_choice_alone() -> None:
    texts = [text for text, _ in topic_texts(60)]
    choices = {by: [choose(texts, 5, by, seed=seed) for seed in (0, 1)] for by in get_args(SubsetRule)}
    assert {by for by, (one, other) in choices.items() if one != other} == {"random"}


@pytest.fixture
def corpus() -> Corpus:
    """Nine train texts, the first twice, two validation texts and a test text, which is the third train text."""
    return corpus_of(("train", [*TEXTS, TEXTS[0]]), ("validation", ["one to validate", "one more"]), ("test", [TEXTS[2]]))


@pytest.mark.parametrize(("more", "each"), [({}, 1), ({"images_per_text": 2, "best_of": 3}, 2)])
def test_held_out_texts_and_the_chosen_ones_have_images_with_the_seeds_of_a_whole_plan(
    corpus: Corpus, more: dict[str, Any], each: int
) -> None:
    whole, plan = planned(corpus, **more), planned(corpus, subset=4, **more)
    chosen = choose(TEXTS, 4, "k-centre", seed=0)
    assert 2 not in chosen
    rows = [*chosen, *([9] if 0 in chosen else []), 2, 10, 11, 12]  # the third train text shares the image of the test text
    assert np.flatnonzero(plan.has_image).tolist() == sorted(rows)
    assert list(plan.prompts) == [TEXTS[2], "one to validate", "one more", *(TEXTS[text] for text in chosen)]
    assert (plan.images_of_example[~plan.has_image] == -1).all()
    for row in rows:
        theirs, ours = whole.images_of_example[row], plan.images_of_example[row]
        assert len(ours) == each
        np.testing.assert_array_equal(plan.seeds[ours], whole.seeds[theirs])
        assert {plan.prompts[plan.prompt_of(image)] for image in ours.tolist()} == {corpus.examples[row].prompt}
    assert (len(plan), plan.saved) == (7 * each, (len(rows) - 7) * each)


def test_a_plan_without_a_subset_is_as_it_was(corpus: Corpus) -> None:
    plan = planned(corpus)
    assert plan.subset is None
    assert plan.has_image.all()
    assert plan.prompts_of_example[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 10, 2]


@pytest.mark.parametrize("prompts", ["whole", "chunks"])
def test_the_rows_of_a_smaller_subset_begin_those_of_a_larger_one(corpus: Corpus, prompts: str) -> None:
    more = {"prompts": prompts, "images_per_text": 2, "subset_by": "herding"}
    largest = planned(corpus, subset=9, **more)
    for texts in range(1, 9):
        small, first = planned(corpus, subset=texts, **more), largest.first(texts)
        assert (len(small), small.fingerprint()) == (len(first), first.fingerprint())
        has = small.has_image
        np.testing.assert_array_equal(small.images_of_example[has], largest.images_of_example[has])
    assert sorted(largest.prompts) == sorted(planned(corpus, **{**more, "subset_by": "k-centre"}).prompts)


def test_an_unlabelled_corpus_is_chosen_from_as_a_whole() -> None:
    plan = planned(Corpus.from_texts(TEXTS, name="more"), subset=3)
    assert list(plan.prompts) == [TEXTS[text] for text in choose(TEXTS, 3, "k-centre", seed=0)]
    assert plan.has_image.sum() == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda corpus: planned(corpus, subset=10), "--subset 10 for 9 train texts of different prompts; expected at most 9"),
        (lambda _: FeaturizeSettings(subset=0), "--subset 0; expected at least 1"),
        (lambda _: FeaturizeSettings(subset_by="herding"), "--subset-by herding without --subset"),
        (lambda _: FeaturizeSettings(subset=3, subset_by="best"), "subset_by='best'"),
    ],
)
def test_a_subset_that_cannot_be_is_one_line(corpus: Corpus, call: Callable[[Corpus], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(corpus)
    assert "\n" not in str(caught.value)
