"""Prompts to token ids: padded, counted, and cut before a template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from featurize.generate.families.text import cut_to_fit, in_chat, padded_ids, rows_of_length, token_counts
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.tokenizers import load_tokenizers
from lugpi_core.errors import InputError
from tests.support.tiny_tokenizers import qwen_tokenizer, t5_tokenizer

TEXTS = ["a cat", "", "the " * 40]


def _chat(prompt: str) -> str:
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def test_texts_are_padded_and_cut_to_one_length() -> None:
    ids_PL, mask_PL = padded_ids(t5_tokenizer(), TEXTS, 12)
    assert ids_PL.shape == mask_PL.shape == (3, 12)
    assert mask_PL.sum(dim=1).tolist() == [6, 1, 12]
    assert (ids_PL[mask_PL == 0] == 0).all()


def test_tokens_are_counted_beyond_what_is_read() -> None:
    tokenizer = t5_tokenizer(8)
    counts = token_counts(tokenizer, TEXTS)
    assert counts == [len(tokenizer(text, verbose=False)["input_ids"]) for text in TEXTS]
    assert counts[2] > 8


def test_a_prompt_is_cut_only_as_far_as_its_template_needs() -> None:
    tokenizer = qwen_tokenizer()
    prompt = "the snow and the sea, é 🐈 " * 20
    whole = len(tokenizer(_chat(prompt))["input_ids"])
    for length in (40, 41, whole - 1, whole):
        cut = cut_to_fit(tokenizer, prompt, _chat, length)
        assert prompt.startswith(cut)
        assert len(tokenizer(_chat(cut))["input_ids"]) <= length
        longer = prompt[: len(cut) + 1]
        assert longer == cut or len(tokenizer(_chat(longer))["input_ids"]) > length
    assert cut_to_fit(tokenizer, prompt, _chat, whole) == prompt


def test_a_template_that_fills_everything_leaves_no_prompt() -> None:
    assert cut_to_fit(qwen_tokenizer(), "a cat", _chat, 5) == ""


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, " without a chat template; "),
        ("{{ raise_exception('no') }}", r", whose chat template does not run \(no\); "),
        ("{% if %}", r", whose chat template does not run \(Expected an expression"),
        ("{{ messages[3].content + 'a' }}", r", whose chat template does not run \(list object has no element 3\); "),
        ("{{ 1 + messages[0].content }}", r", whose chat template does not run \(unsupported operand"),
    ],
)
def test_a_template_that_is_missing_or_raises_is_one_line(template: str | None, fault: str) -> None:
    tokenizer: Any = qwen_tokenizer()
    tokenizer.chat_template, tokenizer.name_or_path = template, "folder/tokenizer"
    with pytest.raises(InputError, match=rf"got folder/tokenizer{fault}.*; restore chat_template\.jinja and tokenizer_config\.json there"):
        in_chat(tokenizer, [{"role": "user", "content": "a cat"}], add_generation_prompt=True)


@pytest.mark.parametrize("family", ["ovis", "z-image", "flux2-klein", "flux2"])
def test_a_folder_without_a_chat_template_is_told_while_prompts_are_counted(tiny: Callable[[str], Path], family: str) -> None:
    generator = find_generator(str(tiny(family)), generator_settings(str(tiny(family)), {"size_px": 64}), half=False)
    (pair,) = generator.family.text_parts
    tokenizers = load_tokenizers(generator)
    (tokenizer,) = tokenizers.values()
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=rf"got .*/{pair[0]} without a chat template; "):
        generator.family.tokens_of(tokenizers, ["a cat"])


@pytest.mark.parametrize("lengths", [[3, 1, 3, 2], [5], []])
def test_rows_are_grouped_by_length(lengths: list[int]) -> None:
    groups = rows_of_length(lengths)
    assert list(groups) == sorted(set(lengths))
    assert sorted(torch.tensor([row for rows in groups.values() for row in rows]).tolist()) == list(range(len(lengths)))
    assert all(lengths[row] == length for length, rows in groups.items() for row in rows)
