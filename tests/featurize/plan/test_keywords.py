"""Keywords: the TF-IDF of scikit-learn, fitted on train alone; as many as fit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from featurize.plan.keywords import Vocabulary, Weights, document_frequencies, keyword_prompts, terms_of
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
    return list(keyword_prompts(texts, train, reader(most)))


def test_terms_are_ranked_as_by_scikit_learn() -> None:
    vectorizer = TfidfVectorizer(analyzer=words_of, sublinear_tf=True)
    weights = vectorizer.fit_transform(TRAIN).toarray()
    vocabulary = Vocabulary()
    ours = Weights(*document_frequencies(TRAIN, vocabulary))
    ranked = ours.ranked(terms_of(TRAIN, vocabulary))
    for row in range(len(TRAIN)):
        theirs = [weights[row, vectorizer.vocabulary_[vocabulary.words[word]]] for word in ranked.word[ranked.text == row]]
        assert len(theirs) == np.count_nonzero(weights[row])
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
    vocabulary = Vocabulary()
    terms = terms_of(["学习很难 好 a1"], vocabulary)
    assert [vocabulary.words[word] for word in terms.word[np.argsort(terms.place)]] == ["学习", "习很", "很难", "好", "a1"]


def test_terms_are_joined_as_they_stand() -> None:
    text = "don't wait: 学习很难"
    assert keyword_prompts([text], TRAIN, reader(9)) == ["don't wait 学习很难"]
    assert keyword_prompts([text], ["wait"] * 9, reader(3)) == ["don't 学习"]
    assert keyword_prompts(["学习很难学习, 好"], ["习很 难学"], reader(4)) == ["学习很难"]


def test_terms_that_the_generator_does_not_read_are_not_chosen() -> None:
    """One deletes words, another has no token for some: neither stands where a word that is read could."""
    deletes = replace(reader(2), cleaned=lambda prompts: [prompt.replace("download", "").strip() for prompt in prompts])
    knows_no_z = replace(reader(2), knows=lambda words: ["z" not in word for word in words])
    assert keyword_prompts(["download the cat, hill", "download"], TRAIN, deletes) == ["cat hill", "download"]
    assert keyword_prompts(["zebra zoo the cat, hill", "zebra zoo"], TRAIN, knows_no_z) == ["cat hill", "zebra zoo"]


def test_a_word_is_asked_about_once() -> None:
    asked: Counter[str] = Counter()

    def knows(words: Sequence[str]) -> list[bool]:
        asked.update(words)
        return [True] * len(words)

    def tokens_of(prompts: Sequence[str]) -> list[int]:
        asked.update(prompt.removeprefix("a ") for prompt in prompts if prompt.startswith("a ") and prompt.count(" ") == 1)
        return [len(words_of(prompt)) for prompt in prompts]

    texts = [f"the cat and word{n % 50} sat" for n in range(3000)]
    keyword_prompts(texts, texts, PromptReader(tokens_read=3, tokens_of=tokens_of, knows=knows))
    assert max(asked[f"word{n}"] for n in range(50)) == 2, "whether it is known, and its tokens"
