"""A tiny model of an architecture with random weights and its own kind of tokenizer, in a folder as users have it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.overrides import OVERRIDES
from benchmarks.models.tiny_configs import small_values
from benchmarks.models.tiny_tokenizers import TinyTokenizer, build_tokenizer

# Its class asks for a package (detectron2) before it has weights.
_CANNOT_BE_BUILT = ("layoutlmv2",)


def architectures() -> dict[str, str]:
    """Return the model types of transformers' sequence classifiers, each with the name of its class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    return dict(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


def write_tiny_model(model_type: str, sentences: Sequence[str], folder: Path) -> TinyTokenizer:
    """Write configuration, random weights and tokenizer of an architecture to a new folder; return the tokenizer.

    The configuration says what a classifier of emotions left there, ``multi_label_classification``: it must not reach a student.
    """
    from safetensors.torch import save_file
    from transformers import CONFIG_MAPPING, AutoModel, PerceiverForMaskedLM

    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(model_type, sentences)
    tokenizer.save(folder)
    config_class = CONFIG_MAPPING[model_type]
    values = small_values(config_class(), _token_ids(tokenizer), tokenizer.words) | OVERRIDES.get(model_type, {})
    config = config_class(**values, problem_type="multi_label_classification")
    if model_type in _CANNOT_BE_BUILT:
        config.save_pretrained(folder)
        save_file({"embeddings": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        return tokenizer
    torch.manual_seed(0)
    # The Perceiver's bare model has no embedding of the text; what people download is the one for masked words.
    model = PerceiverForMaskedLM(config) if model_type == "perceiver" else AutoModel.from_config(config)
    _spread_weights(model)
    model.save_pretrained(folder)
    return tokenizer


def _token_ids(tokenizer: TinyTokenizer) -> dict[str, int | None]:
    """Return the special ids under the names that configurations have for them."""
    ids = tokenizer.special_ids
    # The tokenizer of a decoder has only two of them, and some configurations want a number.
    other = {"cls": "bos", "sep": "eos", "mask": "unk"}
    named = {f"{name}_token_id": ids[name] if ids[name] is not None else ids[other.get(name, name)] for name in ids}
    starts_with = ids["pad"] if ids["pad"] == 0 else ids["eos"]  # T5 and its kin, and BART and its kin
    return named | {"decoder_start_token_id": starts_with, "forced_eos_token_id": ids["eos"]}


def _spread_weights(model: Any) -> None:
    """Give every matrix weights that keep a vector's size: answers then differ between texts, as those of a trained model do."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
