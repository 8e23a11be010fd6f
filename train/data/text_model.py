"""The text model: its files and tokenizer, and its two forms: an encoder for the teacher, a classifier for baseline and student, the
latter optionally with fewer layers."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import hash_model_folder
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE, MODEL_FILES, embedded_model, loading, local_model_folder

LONGEST = 512
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """The files of a text model, its configuration and its tokenizer; no weights are loaded."""

    name: str
    folder: Path
    weights_hash: str
    config: Any
    tokenizer: Any
    max_length: int

    @property
    def shown_name(self) -> str:
        """The name without the path of a local folder, for what is published."""
        return Path(self.name).name if Path(self.name).is_dir() else self.name

    @property
    def pad_id(self) -> int:
        """The id that fills up shorter texts of a batch; it is masked."""
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def license(self) -> str:
        """The licence that the model's card states."""
        if self.name == "demo":
            return EMBEDDED_LICENSE
        card = self.folder / "README.md"
        match = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
        return match[1] if match else "see its own card"


def find_text_model(name: str, *, max_length: int | None, flag: str = "--text-model") -> TextModel:
    """Return the text model that ``flag`` names.

    Raises:
        InputError: not a folder, not on the hub, no safetensors weights, not a Hugging Face text model, or a length it cannot read.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = embedded_model("text") if name == "demo" else local_model_folder(name, patterns=(*MODEL_FILES, "README.md"), flag=flag)
    if not any((folder / file).is_file() for file in _VOCABULARIES):
        # transformers would create a tokenizer without a vocabulary.
        raise InputError(
            got=f"{flag} {name} without {' or '.join(_VOCABULARIES)}",
            expected="a Hugging Face text encoder with its tokenizer",
            do="save the tokenizer next to the model with save_pretrained()",
        )
    with loading(
        f"{flag} {name}",
        expected="a Hugging Face text encoder with its tokenizer",
        do="choose for instance distilbert-base-uncased",
    ):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
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
    """Return the pretrained encoder without a head, in float32. A pooler, such as BERT's, is not used here and is frozen."""
    from transformers import AutoModel

    encoder = _load(AutoModel, text_model)
    for name, part in encoder.named_children():
        if name == "pooler":
            part.requires_grad_(False)
    return encoder


def load_text_classifier(text_model: TextModel, corpus: Corpus) -> nn.Module:
    """Return the pretrained encoder with a new classification head for the corpus's labels, in float32."""
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(corpus.label_names))
    labels = {"num_labels": len(names), "id2label": names, "label2id": {name: number for number, name in names.items()}}
    return _load(AutoModelForSequenceClassification, text_model, **labels)


def _load(auto: Any, text_model: TextModel, **more: Any) -> nn.Module:
    with loading(
        f"--text-model {text_model.name}",
        expected="a whole Hugging Face text encoder that can classify",
        do="download it again, or choose for instance distilbert-base-uncased",
    ):
        model: nn.Module = auto.from_pretrained(text_model.folder, local_files_only=True, use_safetensors=True, dtype="float32", **more)
    return model


def keep_layers(model: Any, layers: int) -> None:
    """Keep only ``layers`` layers of an encoder, evenly spaced, including the first and the last, with their weights (shrink and fine-tune:
    Shleifer & Rush 2020, arXiv 2010.13002, §3).

    Raises:
        InputError: the encoder has fewer, none would be left, or its layers are not a plain list.
    """
    all_layers = model.config.num_hidden_layers
    if not 1 <= layers <= all_layers:
        raise InputError(got=f"--student-layers {layers}", expected=f"1 to {all_layers}, as the text model has", do="leave it out for all")
    modules = model.base_model.named_modules()
    lists = [(name, part) for name, part in modules if isinstance(part, nn.ModuleList) and len(part) == all_layers]
    if len(lists) != 1:
        raise InputError(
            got=f"--student-layers {layers} for {type(model).__name__}",
            expected="a text model whose layers are one list, such as DistilBERT's or BERT's",
            do="leave --student-layers out",
        )
    name, part = lists[0]
    owner, _, attribute = name.rpartition(".")
    kept = nn.ModuleList(part[n] for n in spaced(all_layers, layers))
    setattr(model.base_model.get_submodule(owner), attribute, kept)
    model.config.num_hidden_layers = layers


def spaced(layers: int, kept: int) -> list[int]:
    """Return the numbers of ``kept`` of ``layers`` layers, evenly spaced, including the first and the last."""
    return [round(n * (layers - 1) / max(kept - 1, 1)) for n in range(kept)]
