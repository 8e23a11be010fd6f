"""Tokenizers of the kinds that generators read prompts with, of a few hundred tokens each: nearly every letter is a token."""

import string
from typing import Any

import transformers
from tokenizers import pre_tokenizers

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("c", "a"), ("i", "n"), ("o", "n"), ("e", "r")]
QWEN_CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
MISTRAL_CHAT = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{- '[SYSTEM_PROMPT]' + message.content[0].text + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message.role == 'user' %}{{- '[INST]' + message.content[0].text + '[/INST]' }}{%- endif %}{%- endfor %}"
)


def clip_tokenizer(model_max_length: int = 77) -> Any:
    """CLIP's: letters, with and without the end of a word; start and end tokens have the highest numbers."""
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "th", "the</w>"]
    names = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[("t", "h"), ("th", "e</w>")], model_max_length=model_max_length)


def t5_tokenizer(model_max_length: int = 512) -> Any:
    """T5's: pieces with scores; the end token is appended."""
    letters = string.ascii_letters + string.digits + string.punctuation + "éöü"
    words = ["▁the", "▁a", "▁and", "▁of", "▁in", "ing", "er"]
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -4.0),
        *((word, -2.0) for word in words),
        *((each, -5.0) for each in letters),
    ]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=model_max_length)


def gemma_tokenizer(model_max_length: int = 10**30) -> Any:
    """Gemma's: letters, bytes for what is no letter of its own, a start token; padded on the left unless told otherwise."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.printable[:94]]
    pieces += ["th", "the", "an", "and"]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(pieces))}
    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d")]
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=model_max_length, add_bos_token=True)


def qwen_tokenizer() -> Any:
    """Qwen's: bytes, no token at either end, the chat template of Qwen 3."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {name: number for number, name in enumerate([*LETTERS, *(first + second for first, second in MERGES), *special])}
    tokenizer = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=MERGES, model_max_length=131_072, chat_template=QWEN_CHAT)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer
