"""A tokenizer of the class that transformers maps to an architecture, with a vocabulary trained on a few sentences."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from benchmarks.models.vocabulary_files import FILES, VocabularyFiles

VOCABULARY = 400
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk")
# Encoders for which transformers maps no class: they are published with a tokenizer.json that puts texts between two tokens.
_BETWEEN_TWO = {
    "bigbird_pegasus",
    "cohere_compass_text",
    "eurobert",
    "modernbert",
    "modernvbert",
    "nystromformer",
    "ultrabert",
    "ultravbert",
}
_BETWEEN_TWO |= {"xlm-roberta-xl"}
_BEFORE_ONE = {"t5gemma2", "umt5"}
# Decoders whose published tokenizers have no padding token.
_WITHOUT_PADDING = {"arcee", "bloom", "falcon", "gpt_bigcode", "helium", "llama", "minimax", "mistral", "mixtral", "stablelm"}
_UNMAPPED_WITHOUT_SENTENCEPIECE = {"gpt-sw3": "GPTSw3Tokenizer", "plbart": "PLBartTokenizer"}
_WITHOUT_VOCABULARY = {"CanineTokenizer": "characters", "PerceiverTokenizer": "bytes"}
# A class that does not cut texts into words would learn whole sentences.
_LONGEST_PIECE = 6


@dataclass(frozen=True, kw_only=True)
class TinyTokenizer:
    """A tokenizer that can be saved.

    Attributes:
        kind: its class and algorithm.
        special_ids: the ids of its special tokens by ``pad``, ``bos``, …; None for those that it lacks.
        words: how many ids there are.
        source: the tokenizer of transformers, or the files of one.
    """

    kind: str
    special_ids: dict[str, int | None]
    words: int
    source: Any

    def save(self, folder: Path) -> None:
        """Write its files."""
        self.source.save_pretrained(folder)


def build_tokenizer(model_type: str, sentences: Sequence[str]) -> TinyTokenizer:
    """Return the tokenizer of an architecture, trained on the sentences. Packages that a class needs need not be installed."""
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    name = TOKENIZER_MAPPING_NAMES.get(model_type)
    name = _UNMAPPED_WITHOUT_SENTENCEPIECE.get(model_type, name)
    if name in FILES:
        return _of_files(name, FILES[name](sentences))
    if name is None or name == "TokenizersBackend":
        return _of_library(_byte_pairs(model_type, sentences), "byte-level BPE")
    tokenizer_class = tokenizer_class_from_name(name)
    if name in _WITHOUT_VOCABULARY:
        return _of_library(tokenizer_class(), _WITHOUT_VOCABULARY[name])
    more: dict[str, Any] = {"tags_dict": {"html": 0, "body": 1, "p": 2}} if name == "MarkupLMTokenizer" else {}
    more |= {"extra_ids": 0} if name == "T5Tokenizer" else {}
    empty = tokenizer_class(**more).backend_tokenizer
    return _of_library(tokenizer_class(**_trained(empty, sentences), **more), _algorithm(empty))


def _of_library(tokenizer: Any, algorithm: str) -> TinyTokenizer:
    return TinyTokenizer(
        kind=f"{type(tokenizer).__name__}, {algorithm}",
        special_ids={name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL},
        words=len(tokenizer),
        source=tokenizer,
    )


def _of_files(name: str, files: VocabularyFiles) -> TinyTokenizer:
    return TinyTokenizer(
        kind=f"{name}, {files.algorithm}",
        special_ids={special: files.id_of(special) for special in SPECIAL},
        words=files.words,
        source=files,
    )


def _algorithm(tokenizer: Tokenizer) -> str:
    return ("byte-level " if _is_byte_level(tokenizer) else "") + type(tokenizer.model).__name__


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return '"ByteLevel"' in str(tokenizer.to_str())


def _trained(empty: Tokenizer, sentences: Sequence[str]) -> dict[str, Any]:
    """Return the vocabulary, and the merges if there are any, for a tokenizer without one; its special tokens keep their ids."""
    specials = [token for token, _ in sorted(empty.get_vocab().items(), key=lambda item: item[1])]
    fresh, trainer = _trainer(empty, specials)
    if empty.normalizer is not None:
        fresh.normalizer = empty.normalizer
    if empty.pre_tokenizer is not None:
        fresh.pre_tokenizer = empty.pre_tokenizer
    fresh.train_from_iterator(sentences, trainer)
    model = json.loads(fresh.to_str())["model"]
    if model["type"] == "Unigram":
        return {"vocab": [(piece, score) for piece, score in model["vocab"]]}
    merges = {"merges": [tuple(merge) for merge in model["merges"]]} if "merges" in model else {}
    return {"vocab": model["vocab"], **merges}


def _trainer(empty: Tokenizer, specials: list[str]) -> tuple[Tokenizer, Any]:
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "special_tokens": specials, "show_progress": False}
    unknown = next((token for token in specials if token in ("<unk>", "[UNK]")), None)
    match empty.model:
        case models.WordPiece():
            return Tokenizer(models.WordPiece(unk_token=unknown)), trainers.WordPieceTrainer(**shared)
        case models.BPE():
            suffix = empty.model.end_of_word_suffix
            ends: dict[str, Any] = {} if suffix is None else {"end_of_word_suffix": suffix}
            letters = pre_tokenizers.ByteLevel.alphabet() if _is_byte_level(empty) else []
            trainer = trainers.BpeTrainer(**shared, **ends, initial_alphabet=letters, max_token_length=_LONGEST_PIECE)
            return Tokenizer(models.BPE(**ends, **({} if unknown is None else {"unk_token": unknown}))), trainer
        case _:
            return Tokenizer(models.Unigram()), trainers.UnigramTrainer(**shared, unk_token=unknown)


def _byte_pairs(model_type: str, sentences: Sequence[str]) -> Any:
    """Return what most newer models are published with: byte-level BPE in a tokenizer.json, with a token in front of the text (decoders),
    one behind it, or both (encoders)."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    padding = {} if model_type in _WITHOUT_PADDING else {"pad_token": "<pad>"}
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*padding.values(), "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    first = "" if model_type in _BEFORE_ONE else "<s> "
    last = " </s>" if model_type in _BEFORE_ONE | _BETWEEN_TWO else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first}$A{last}",
        pair=f"{first}$A{last} $B{last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    between = {"cls_token": "<s>", "sep_token": "</s>"} if model_type in _BETWEEN_TWO else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **padding, **between)
