"""The text model: found, its tokenizer, and the two shapes it is loaded in (encoder for the teacher, classifier for baseline and
student)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lugpi_core.errors import InputError
from lugpi_core.examples import Corpus
from lugpi_core.fingerprint import hash_model_folder
from lugpi_core.model_files import local_model_folder
from lugpi_core.torchvision_ops import allow_torchvision_import

LONGEST = 512


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A text model whose files are found; nothing but its configuration and tokenizer is loaded."""

    name: str
    folder: Path
    weights_hash: str
    config: Any
    tokenizer: Any
    max_length: int


def find_text_model(name: str, *, max_length: int | None) -> TextModel:
    """Return the text model that ``--text-model`` names.

    Raises:
        InputError: not a folder, not on the hub, no safetensors weights, not a Hugging Face text model, or a length it cannot read.
    """
    allow_torchvision_import()
    from transformers import AutoConfig, AutoTokenizer

    folder = _embedded() if name == "demo" else local_model_folder(name, flag="--text-model")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            got=f"--text-model {name} ({' '.join(str(error).split())[:160]})",
            expected="a Hugging Face text encoder with its tokenizer",
            do="choose for instance distilbert-base-uncased",
        ) from None
    longest = min(LONGEST, tokenizer.model_max_length, getattr(config, "max_position_embeddings", LONGEST))
    if max_length is not None and not 1 < max_length <= longest:
        raise InputError(got=f"--max-length {max_length}", expected=f"2 to {longest} for {name}", do="leave it out for the longest")
    return TextModel(
        name=name,
        folder=folder,
        weights_hash=hash_model_folder(folder),
        config=config,
        tokenizer=tokenizer,
        max_length=max_length or longest,
    )


def load_text_encoder(text_model: TextModel) -> nn.Module:
    """Return the pretrained encoder without a head, in float32."""
    from transformers import AutoModel

    encoder: nn.Module = AutoModel.from_pretrained(text_model.folder, local_files_only=True, use_safetensors=True, dtype="float32")
    return encoder


def load_text_classifier(text_model: TextModel, corpus: Corpus) -> nn.Module:
    """Return the pretrained encoder with a new classification head for the corpus's labels, in float32."""
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(corpus.label_names))
    classifier: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        text_model.folder,
        local_files_only=True,
        use_safetensors=True,
        dtype="float32",
        num_labels=len(names),
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    return classifier


def token_ids(text_model: TextModel, corpus: Corpus) -> list[list[int]]:
    """Return the token ids of every example, special tokens included, cut to ``max_length``; no padding."""
    texts = [example.text for example in corpus.examples]
    own = text_model.tokenizer.sep_token
    if corpus.separator and own and own != corpus.separator:
        texts = [text.replace(corpus.separator, own) for text in texts]
    ids: list[list[int]] = []
    for start in range(0, len(texts), 4096):
        encoded = text_model.tokenizer(texts[start : start + 4096], truncation=True, max_length=text_model.max_length)
        ids.extend(encoded["input_ids"])
    return ids


def _embedded() -> Path:
    from train.embedded import embedded_text_model

    return embedded_text_model()
