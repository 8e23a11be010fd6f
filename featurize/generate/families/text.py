"""Prompts to token ids, as text encoders read them.

Shapes: P prompts, L tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import reason

_AT_ONCE = 1024


def padded_ids(tokenizer: Any, texts: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, int64 [P, length], of texts that are cut and padded to one length, on the tokenizer's own side."""
    encoded = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_attention_mask=True)
    return torch.tensor(encoded["input_ids"]), torch.tensor(encoded["attention_mask"])


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return how many tokens each text has, special ones included, if none is cut."""
    counts: list[int] = []
    for start in range(0, len(texts), _AT_ONCE):
        ids = tokenizer(list(texts[start : start + _AT_ONCE]), truncation=False, verbose=False)["input_ids"]
        counts += [len(prompt_ids) for prompt_ids in ids]
    return counts


def in_chat(tokenizer: Any, turns: Sequence[Mapping[str, Any]], **settings: bool) -> str:
    """Return the turns of a chat as text, by the tokenizer's template; ``settings`` are those of ``apply_chat_template``.

    Raises:
        InputError: there is no template, or it raises an error of its own.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(list(turns), tokenize=False, **settings))
    # A template is a program: besides its library's errors, those of Python pass through.
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        is_there = tokenizer.chat_template is not None
        fault = f", whose chat template does not run ({reason(error)})" if is_there else " without a chat template"
        raise InputError(
            got=f"{tokenizer.name_or_path}{fault}",
            expected="the template in which this pipeline's text encoder reads prompts",
            do="restore chat_template.jinja and tokenizer_config.json there from where the model comes from",
        ) from None


def in_words(chat: Mapping[str, bool]) -> str:
    """Return how ``in_chat`` is called, for the record of a store."""
    return "the tokenizer's own, with " + ", ".join(f"{name}={value}" for name, value in chat.items())


def cut_to_fit(tokenizer: Any, prompt: str, render: Callable[[str], str], length: int) -> str:
    """Return the longest beginning of a prompt with which the rendered template has at most ``length`` tokens.

    A template that is cut as a whole loses its end, which tells the language model that the user has finished; the prompt is cut instead.

    Args:
        tokenizer: a fast one, which knows where each token begins.
        prompt: what the user wrote.
        render: puts a prompt into the template.
        length: in tokens, those of the template included.
    """
    excess = len(tokenizer(render(prompt), verbose=False)["input_ids"]) - length
    if excess <= 0:
        return prompt
    ends = [end for _, end in tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]]
    kept = max(0, min(len(ends), len(ends) - excess))
    # Beside the template's text, the last piece of the prompt may be split otherwise than alone.
    while kept and len(tokenizer(render(prompt[: ends[kept - 1]]), verbose=False)["input_ids"]) > length:
        kept -= 1
    return prompt[: ends[kept - 1]] if kept else ""


def rows_of_length(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Return the numbers of the rows of each length, shortest first: rows whose padding would take part may not be padded together."""
    rows: dict[int, list[int]] = {}
    for length in sorted(set(lengths)):
        rows[length] = [number for number, other in enumerate(lengths) if other == length]
    return rows
