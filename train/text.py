"""The text model: found, its tokenizer, and the two shapes it is loaded in (encoder for the teacher, classifier for baseline and
student)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lugpi_core.errors import InputError
from lugpi_core.examples import Corpus
from lugpi_core.fingerprint import hash_model_folder
from lugpi_core.model_files import MODEL_FILES, local_model_folder, reason
from lugpi_core.torchvision_ops import allow_torchvision_import

LONGEST = 512
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A text model whose files are found; nothing but its configuration and tokenizer is loaded."""

    name: str
    folder: Path
    weights_hash: str
    config: Any
    tokenizer: Any
    max_length: int

    @property
    def shown_name(self) -> str:
        """The name without the folders above it, for what is published."""
        return Path(self.name).name if Path(self.name).is_dir() else self.name

    @property
    def license(self) -> str:
        """The licence that the model's own card states."""
        if self.name == "demo":
            return "Apache-2.0"
        card = self.folder / "README.md"
        stated = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
        return stated[1] if stated else "see its own card"


def find_text_model(name: str, *, max_length: int | None) -> TextModel:
    """Return the text model that ``--text-model`` names.

    Raises:
        InputError: not a folder, not on the hub, no safetensors weights, not a Hugging Face text model, or a length it cannot read.
    """
    allow_torchvision_import()
    from transformers import AutoConfig, AutoTokenizer

    folder = _embedded() if name == "demo" else local_model_folder(name, patterns=(*MODEL_FILES, "README.md"), flag="--text-model")
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        # transformers would make up a tokenizer that knows no word.
        raise InputError(
            got=f"--text-model {name} without {' or '.join(_VOCABULARIES)}",
            expected="a Hugging Face text encoder with its tokenizer",
            do="save the tokenizer beside the model with save_pretrained()",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            got=f"--text-model {name} ({reason(error)})",
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

    return _loaded(AutoModel, text_model)


def load_text_classifier(text_model: TextModel, corpus: Corpus) -> nn.Module:
    """Return the pretrained encoder with a new classification head for the corpus's labels, in float32."""
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(corpus.label_names))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: number for number, name in names.items()}}
    return _loaded(AutoModelForSequenceClassification, text_model, **labels)


def _loaded(auto: Any, text_model: TextModel, **more: Any) -> nn.Module:
    from safetensors import SafetensorError

    try:
        model: nn.Module = auto.from_pretrained(text_model.folder, local_files_only=True, use_safetensors=True, dtype="float32", **more)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            got=f"--text-model {text_model.name}, which does not load ({reason(error)})",
            expected="a whole Hugging Face text encoder that can classify",
            do="download it again, or choose for instance distilbert-base-uncased",
        ) from None
    return model


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
