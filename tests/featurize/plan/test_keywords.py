"""Keywords: the TF-IDF of scikit-learn, fitted on train alone; as many as fit."""

from collections.abc import Sequence

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from featurize.plan.keywords import Weights, document_frequencies, keyword_prompts, terms_of
from featurize.plan.prompt_reader import PromptReader
from featurize.plan.words import words_of

TRAIN = [
    "the cat sat on the mat and the cat slept",
    "the dog chased the cat over the hill",
    "a hill is no mountain, and a mountain is no hill: a hill is a hill",
    "stocks fell as the market slept",
    *["the end of the day on the sea"] * 20,
]


def reader(words: int) -> PromptReader:
    """A word is a token; each character of Chinese is one."""
    return PromptReader(tokens_read=words, tokens_of=lambda prompts: [len(words_of(prompt)) for prompt in prompts])


def keywords(texts: Sequence[str], most: int, train: Sequence[str] = TRAIN) -> list[str]:
    return keyword_prompts(texts, train, reader(most))


def test_terms_are_ranked_as_by_scikit_learn() -> None:
    vectorizer = TfidfVectorizer(analyzer=words_of, sublinear_tf=True)
    weights = vectorizer.fit_transform(TRAIN).toarray()
    ours = Weights(*document_frequencies(TRAIN))
    for row, text in enumerate(TRAIN):
        names = [list(terms_of(text).counts)[number] for number in ours.ranked(terms_of(text))]
        theirs = [weights[row, vectorizer.vocabulary_[name]] for name in names]
        assert theirs == pytest.approx(sorted(theirs, reverse=True))


def test_the_heaviest_words_stand_in_the_order_of_the_text() -> None:
    assert keywords(TRAIN[:1], 4) == ["cat sat mat and"]
    assert keywords(["A Hill, a HILL; the Mat!"], 2) == ["A Hill"]  # neither letter case nor repetition makes another word


def test_a_text_that_fits_is_all_of_its_words() -> None:
    assert keywords(["The cat sat on the mat, 3 times."], 9) == ["The cat sat on mat times"]


def test_other_splits_do_not_change_the_weights() -> None:
    held_out = ["cat cat cat zebra", "the zebra", "mountain goat"]
    assert keywords([*TRAIN, *held_out], 3)[: len(TRAIN)] == keywords(TRAIN, 3)
    # A word that no train text has weighs as one that a single train text has.
    assert keywords(["zebra stocks cat hill"], 2) == ["zebra stocks"]


def test_a_text_without_words_is_its_own_prompt() -> None:
    assert keywords([":-)", "123 4.5"], 2) == [":-)", "123 4.5"]


def test_a_single_word_that_is_too_long_is_still_a_prompt() -> None:
    long = PromptReader(tokens_read=3, tokens_of=lambda prompts: [len(prompt) for prompt in prompts])
    assert keyword_prompts(["antidisestablishmentarianism"], TRAIN, long) == ["antidisestablishmentarianism"]


def test_pairs_of_characters_are_the_terms_of_a_script_without_spaces() -> None:
    train = ["机器学习很有用", *["天气很好"] * 9]
    assert keyword_prompts(["天气很好,机器学习也很好", "天气GPT很好"], train, reader(4)) == ["机器学习", "天气GPT"]
    assert list(terms_of("学习很难 好 a1").counts) == ["学习", "习很", "很难", "好", "a1"]


def test_terms_are_joined_as_they_stand() -> None:
    text = "don't wait: 学习很难"
    assert terms_of(text).join([4, 3, 2, 1, 0]) == "don't wait 学习很难"
    assert terms_of(text).join([0, 2]) == "don't 学习"
