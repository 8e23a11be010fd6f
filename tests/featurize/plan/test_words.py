"""Words and passages, in scripts with and without spaces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.plan.words import passages_of, words_in, words_of

TEXTS = st.text(alphabet="ab. !?\n,'(é猫で。「ไ่", max_size=60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("_must_ not_spam", ["must", "not", "spam"]),
        ("Don't STOP at state-of-the-art!", ["don't", "stop", "at", "state", "of", "the", "art"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),  # vowel signs are no letters to Python's \w
        ("猫がGPT", ["猫", "が", "gpt"]),
        ("ที่", ["ที่"]),  # one consonant with two marks above it
        ("한국어 단어", ["한국어", "단어"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("... !?", []),
    ],
)
def test_words_are_folded_runs_of_letters_and_marks(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_passages_end_with_a_sentence_where_one_is_near() -> None:
    text = "The cat sat. It was happy, and then (it) slept! Did it? Yes."
    assert passages_of(text, 4) == ("The cat sat.", "It was happy, and", "then (it) slept!", "Did it? Yes.")
    assert passages_of("Weighs 3.5 kilograms and costs 4.75 dollars.", 2) == ("Weighs 3.5 kilograms", "and costs 4.75 dollars.")


def test_passages_of_a_script_without_spaces_are_cut_between_characters() -> None:
    assert passages_of("私は猫である。名前はまだ無い。どこで生れたか「とんと見当」がつかぬ。", 4) == (
        "私は猫である。",
        "名前はまだ無い。",
        "どこで生れたか「とんと",
        "見当」がつかぬ。",
    )


def test_a_text_has_no_more_passages_than_words() -> None:
    assert passages_of("two words", 4) == ("two", "words")
    assert passages_of(":-)", 4) == (":-)",)
    assert passages_of("state-of-the-art", 2) == ("state-of-the-art",)


@given(TEXTS, st.integers(1, 6))
def test_passages_are_all_of_a_text_and_none_is_empty(text: str, count: int) -> None:
    passages = passages_of(text, count)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert len(passages) <= count
    if words_of(text):
        assert all(words_of(passage) for passage in passages)


@given(st.integers(2, 9), st.integers(50, 400))
def test_passages_are_of_near_equal_length(count: int, words: int) -> None:
    passages = passages_of(" ".join(["word"] * words), count)
    assert len(passages) == count
    assert max(map(len, passages)) - min(map(len, passages)) <= 2 * len("word ")


@given(st.text(st.sampled_from("aZ09 '_-.\n") | st.characters(max_codepoint=127), max_size=40))
def test_words_of_ascii_are_those_of_any_text(text: str) -> None:
    assert [*words_in(text), "é"] == words_in(f"{text} é")
