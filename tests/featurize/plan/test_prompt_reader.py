"""What fits of a prompt, with a tokenizer whose rules are plain."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurize.generate.generators import find_generator, generator_settings
from featurize.plan.images import plan_images
from featurize.plan.keywords import keyword_prompts
from featurize.plan.prompt_figures import prompt_figures
from featurize.plan.prompt_reader import PromptReader, prompt_reader, words_known
from lugpi_core.corpora.corpus import Corpus, Example
from tests.support.tiny_pipelines import tiny_pipeline

WORDS = st.lists(st.sampled_from(["a", "bb", "cccc", "dddddddd", "!"]), min_size=1, max_size=60)


def reader(tokens_read: int) -> PromptReader:
    """A token for every two letters of a word, and two special ones."""

    def tokens_of(prompts: Sequence[str]) -> list[int]:
        return [2 + sum((len(word) + 1) // 2 for word in prompt.split()) for prompt in prompts]

    return PromptReader(tokens_read=tokens_read, tokens_of=tokens_of)


def joined_reader(tokens_read: int) -> PromptReader:
    """A token for every three letters, wherever words end: no sum of words is right."""
    return PromptReader(tokens_read=tokens_read, tokens_of=lambda prompts: [2 + (len(prompt) + 2) // 3 for prompt in prompts])


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 40))
def test_the_part_that_is_read_fits_and_one_word_more_does_not(prompts: list[list[str]], tokens_read: int) -> None:
    reads = reader(tokens_read)
    texts = [" ".join(words) for words in prompts]
    parts, cut = reads.parts_read(texts)
    for text, part, is_cut in zip(texts, parts, cut, strict=True):
        assert is_cut == (reads.tokens_of([text])[0] > tokens_read)
        assert text.startswith(part)
        if not is_cut:
            assert part == text
            continue
        assert reads.tokens_of([part])[0] <= max(tokens_read, 2)
        rest = text[len(part) :].split()
        following = next((place for place, word in enumerate(rest) if word != "!"), len(rest))
        assert reads.tokens_of([part + " " + " ".join(rest[: following + 1])])[0] > tokens_read


@given(
    st.lists(st.text(st.sampled_from("ab 猫.,'\n"), max_size=60), min_size=1, max_size=5),
    st.integers(1, 12),
    st.sampled_from(["split", "joined"]),
)
def test_adding_up_words_finds_the_same_end_as_searching_for_it(prompts: list[str], tokens_read: int, kind: str) -> None:
    reads = joined_reader(tokens_read) if kind == "joined" else reader(tokens_read)
    parts, cut = reads.parts_read(prompts)
    found, is_cut = reads._parts_searched(prompts)
    assert (parts, cut.tolist()) == (found, is_cut.tolist())


def test_a_prompt_is_counted_once_where_its_words_add_up() -> None:
    counted: list[str] = []
    plain = reader(20)

    def tokens_of(prompts: Sequence[str]) -> Sequence[int]:
        counted.extend(prompts)
        return plain.tokens_of(prompts)

    prompts = ["a bb cccc " * 9 + f"{number % 2}." for number in range(50)] + ["a cat ", "", "bb"]
    PromptReader(tokens_read=20, tokens_of=tokens_of).parts_read(prompts)
    words = {"a", "bb", "cccc", "0", "1", ".", "cat ", "cat"}
    assert len(counted) <= len(prompts) + len(words) + 4


def test_few_tries_find_the_end_of_a_long_prompt() -> None:
    calls: list[int] = []
    plain = reader(77)

    def tokens_of(prompts: Sequence[str]) -> Sequence[int]:
        calls.append(len(prompts))
        return plain.tokens_of(prompts)

    counted = PromptReader(tokens_read=77, tokens_of=tokens_of)
    parts, cut = counted.parts_read([f"{'a bb cccc ' * 2000}{number}" for number in range(9)])
    assert cut.all()
    assert {len(part.split()) for part in parts} == {56}  # 18 times 1 + 1 + 2 tokens, a and bb
    assert len(calls) <= 9


@pytest.mark.parametrize("tokens_read", [1, 2])
def test_a_template_as_long_as_what_is_read_leaves_no_word(tokens_read: int) -> None:
    parts, cut = reader(tokens_read).parts_read(["a b", "c"])
    assert parts == ["", ""]
    assert np.all(cut)


@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin:FutureWarning")  # where diffusers imports the pipeline first
def test_words_that_a_pipeline_deletes_are_not_read(tmp_path: Path) -> None:
    folder = str(tiny_pipeline("prx", tmp_path / "prx"))
    reads = prompt_reader(find_generator(folder, generator_settings(folder, {}), half=False))
    corpus = Corpus.from_texts(["a dog 猫 www.example.com/page"], name="own")
    figures, _ = prompt_figures(corpus, plan_images(corpus, seed=0), "whole", reads)
    assert (figures.words, figures.words_lost) == (7, 5)


@pytest.mark.parametrize(("family", "lost"), [("pixart-sigma", 4), ("stable-diffusion", 0)])
def test_words_that_no_tokenizer_knows_are_not_read(family: str, lost: int, tmp_path: Path) -> None:
    """The vocabulary of T5 has no Chinese; CLIP's has every byte."""
    folder = str(tiny_pipeline(family, tmp_path / family))
    reads = prompt_reader(find_generator(folder, generator_settings(folder, {}), half=False))
    texts = ["the cat 猫在", "the sea 垫子"]
    examples = tuple(Example(id=str(n), text=text, prompt=text, label=n, split="train") for n, text in enumerate(texts))
    corpus = Corpus(name="own", label_names=("猫在", "sea"), examples=examples, license="none")
    figures, _ = prompt_figures(corpus, plan_images(corpus, seed=0), "whole", reads)
    assert (figures.words, figures.words_lost) == (8, lost)
    assert figures.class_words is not None
    assert figures.class_words.texts_with_own == (1 if lost else 2)


@pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin:FutureWarning")
@pytest.mark.parametrize("family", ["prx", "pixart-sigma"])
def test_words_that_are_not_read_are_no_keywords(family: str, tmp_path: Path) -> None:
    """PRX deletes Chinese, T5 has no tokens for it."""
    folder = str(tiny_pipeline(family, tmp_path / family))
    reads = prompt_reader(find_generator(folder, generator_settings(folder, {}), half=False))
    assert keyword_prompts(["the cat 猫在 sea", "垫子"], ["the cat"], reads) == ["the cat sea", "垫子"]


def test_a_word_that_one_of_two_tokenizers_knows_is_read() -> None:
    @dataclass
    class Letters:
        vocabulary: str
        unk_token_id: int = -1

        def __call__(self, words: Sequence[str], **_: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[self.vocabulary.find(letter) for letter in word] for word in words]}

    assert words_known([Letters("abc"), Letters("bcd")], ["ab", "dd", "ad", "x"]) == [True, True, False, False]


# A plain tokenizer, one with a chat template, a template that stands before the prompt, and two text encoders of different lengths.
@pytest.mark.parametrize("family", ["stable-diffusion", "z-image", "qwen-image", "sd3"])
def test_prompts_are_counted_by_the_tokenizers_of_every_family(family: str, tmp_path: Path) -> None:
    folder = str(tiny_pipeline(family, tmp_path / family))
    reads = prompt_reader(find_generator(folder, generator_settings(folder, {}), half=False))
    endless = "the snow and the sea, a cat " * 200
    parts, cut = reads.parts_read([endless, "a cat"])
    assert cut.tolist() == [True, False]
    assert parts[1] == "a cat"
    tokens = reads.tokens_of(["", parts[0], endless])
    assert tokens[0] < tokens[1] <= reads.tokens_read < tokens[2]
    assert reads.tokens_read - tokens[1] <= 4, "as many words as fit"


def most_that_fit(reads: PromptReader, pieces: Sequence[Sequence[str]]) -> list[int]:
    words = sorted({piece for its in pieces for piece in its})
    numbers = np.array([words.index(piece) for its in pieces for piece in its], np.int64)
    lengths = np.array([len(its) for its in pieces], np.int64)
    return reads.most_that_fit(numbers, lengths, words, lambda row, count: " ".join(pieces[row][:count]))


@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 40), st.sampled_from(["split", "joined"]))
def test_so_many_pieces_fit_and_one_more_does_not(pieces: list[list[str]], tokens_read: int, kind: str) -> None:
    reads = joined_reader(tokens_read) if kind == "joined" else reader(tokens_read)
    for its, count in zip(pieces, most_that_fit(reads, pieces), strict=True):
        assert count == 0 or reads.tokens_of([" ".join(its[:count])])[0] <= tokens_read
        assert count == len(its) or reads.tokens_of([" ".join(its[: count + 1])])[0] > tokens_read


def test_keywords_are_chosen_with_one_count_of_a_prompt_and_of_a_word() -> None:
    counted: list[str] = []
    plain = reader(77)

    def tokens_of(prompts: Sequence[str]) -> Sequence[int]:
        counted.extend(prompts)
        return plain.tokens_of(prompts)

    pieces = [[f"word{(number + row) % 150}" for number in range(150)] for row in range(40)]
    reads = PromptReader(tokens_read=77, tokens_of=tokens_of)
    assert set(most_that_fit(reads, pieces)) <= set(range(20, 40))
    distinct = {word for its in pieces for word in its[:78]}
    assert len(counted) == len(pieces) + len(distinct) + 3  # "a", "a a" and "", to tell a word's tokens from the others
