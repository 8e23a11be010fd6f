"""The text model: found, its tokenizer, and the two shapes it is loaded in (encoder for the teacher, classifier for baseline and
student, the latter with fewer layers where that is wanted)."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import hash_model_folder
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE, MODEL_FILES, embedded_model, local_model_folder, reason
from lugpi_core.runtime.stopping import raise_wrapped_stop

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
    def pad_id(self) -> int:
        """What stands behind texts that are shorter than others; it is masked."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def license(self) -> str:
        """The licence that the model's own card states."""
        if self.name == "demo":
            return EMBEDDED_LICENSE
        card = self.folder / "README.md"
        stated = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
        return stated[1] if stated else "see its own card"


def find_text_model(name: str, *, max_length: int | None, flag: str = "--text-model") -> TextModel:
    """Return the text model that ``flag`` names.

    Raises:
        InputError: not a folder, not on the hub, no safetensors weights, not a Hugging Face text model, or a length it cannot read.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = embedded_model("text") if name == "demo" else local_model_folder(name, patterns=(*MODEL_FILES, "README.md"), flag=flag)
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        # transformers would make up a tokenizer that knows no word.
        raise InputError(
            got=f"{flag} {name} without {' or '.join(_VOCABULARIES)}",
            expected="a Hugging Face text encoder with its tokenizer",
            do="save the tokenizer beside the model with save_pretrained()",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            got=f"{flag} {name} ({reason(error)})",
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
    """Return the pretrained encoder without a head, in float32. A pooler, which BERT and others bring, is read by nobody here and does not
    learn."""
    from transformers import AutoModel

    encoder = _loaded(AutoModel, text_model)
    for name, part in encoder.named_children():
        if name == "pooler":
            part.requires_grad_(False)
    return encoder


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
        raise_wrapped_stop(error)
        raise InputError(
            got=f"--text-model {text_model.name}, which does not load ({reason(error)})",
            expected="a whole Hugging Face text encoder that can classify",
            do="download it again, or choose for instance distilbert-base-uncased",
        ) from None
    return model


def keep_layers(model: Any, layers: int) -> None:
    """Keep that many layers of an encoder's, evenly spaced, the first and the last among them, with their weights (shrink and fine-tune:
    Shleifer & Rush 2020, arXiv 2010.13002, §3).

    Raises:
        InputError: the encoder has fewer, or its layers are not a plain list.
    """
    there = model.config.num_hidden_layers
    if layers > there:
        raise InputError(got=f"--student-layers {layers}", expected=f"1 to {there}, as the text model has", do="leave it out for all")
    lists = [(name, part) for name, part in model.base_model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == there]
    if len(lists) != 1:
        raise InputError(
            got=f"--student-layers {layers} for {type(model).__name__}",
            expected="a text model whose layers are one list, such as DistilBERT's or BERT's",
            do="leave --student-layers out",
        )
    name, part = lists[0]
    owner, _, attribute = name.rpartition(".")
    kept = nn.ModuleList(part[n] for n in spaced(there, layers))
    setattr(model.base_model.get_submodule(owner), attribute, kept)
    model.config.num_hidden_layers = layers


def spaced(there: int, wanted: int) -> list[int]:
    """Return which of ``there`` layers stay when ``wanted`` do: as far from each other as can be, the first and the last among them."""
    return [round(n * (there - 1) / max(wanted - 1, 1)) for n in range(wanted)]
