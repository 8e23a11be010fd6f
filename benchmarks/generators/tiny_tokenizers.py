"""Tokenizers of the kinds that generators read prompts with, of a few hundred tokens each: nearly every letter is a token."""

import string
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

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


def mistral_tokenizer() -> Any:
    """Mistral's: bytes, a start token, padded on the left, the chat template that FLUX.2 is given with."""
    special = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "<pad>",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
    ]
    vocabulary = {name: number for number, name in enumerate([*special, *LETTERS, *(first + second for first, second in MERGES)])}
    backend = Tokenizer(models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": special[3:]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", chat_template=MISTRAL_CHAT, **names)


def bert_tokenizer(model_max_length: int = 77) -> Any:
    """BERT's: letters and their continuations."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.printable[:94], *(f"##{letter}" for letter in string.printable[:62])]
    return transformers.BertTokenizer(vocab={name: number for number, name in enumerate(names)}, model_max_length=model_max_length)


def glm_tokenizer() -> Any:
    """GLM's: bytes, two start tokens, padded on the left."""
    special = ["<|endoftext|>", "[gMASK]", "<sop>"]
    vocabulary = {name: number for number, name in enumerate([*LETTERS, *(first + second for first, second in MERGES), *special])}
    backend = Tokenizer(models.BPE(vocabulary, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    starts = [(name, vocabulary[name]) for name in special[1:]]
    backend.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", pair="[gMASK] <sop> $A $B", special_tokens=starts)
    names = {"eos_token": special[0], "pad_token": special[0], "additional_special_tokens": special[1:]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)
