"""What a text model's classifier looks like, built on PyTorch's ``meta`` device: shapes and names without weights or memory."""

import copy
import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading
from train.data.tokenizers import EXPECTED, needing_packages

# The names of learned positions. CANINE's has a row for each hash bucket, whatever the configuration says.
_POSITION_TABLES = frozenset({"position_embeddings", "char_position_embeddings", "positions_embed", "embed_positions", "wpe"})


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The sequence classifier of a configuration, without weights.

    Attributes:
        model: on the meta device.
    """

    model: Any

    @property
    def text_config(self) -> Any:
        """The part of the configuration that is about text."""
        return self.model.config.get_text_config()

    @property
    def reads_last_token(self) -> bool:
        """Whether a text is classified by its last token, as decoders, encoder-decoders and XLNet do, and not by its first."""
        from transformers.models.auto import modeling_auto

        config = self.model.config
        causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
        children = {name for name, _ in self.model.named_children()}
        summary = getattr(config, "summary_type", "first") if "sequence_summary" in children else "first"
        return "score" in children or config.is_encoder_decoder or config.model_type in causal or summary == "last"

    @property
    def is_causal(self) -> bool:
        """Whether no token sees those after it, so that padding on the right changes nothing."""
        children = {name for name, _ in self.model.named_children()}
        return self.reads_last_token and not self.model.config.is_encoder_decoder and "sequence_summary" not in children

    @cached_property
    def arguments(self) -> frozenset[str]:
        """The names that the classifier's forward takes."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def embedded_ids(self) -> int | None:
        """Number of rows of the token embedding; None for a model that hashes characters (CANINE) or hides it
        (Perceiver)."""
        if not isinstance(getattr(self.text_config, "vocab_size", None), int):
            return None
        embedding = self.model.get_input_embeddings()
        return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None

    @property
    def positions(self) -> int | None:
        """The most tokens that the model reads, or None if its configuration states none (XLNet: -1, T5: nothing).

        RoBERTa and its kin number positions from ``padding_idx + 1``: of 514 rows they use 512.
        """
        names = ("max_position_embeddings", "n_positions", "max_seq_len")
        stated = [value for name in names if isinstance(value := getattr(self.text_config, name, None), int) and value > 0]
        if not stated:
            return None
        unused = [
            int(module.padding_idx) + 1
            for name, module in self.model.named_modules()
            if name.rpartition(".")[2].startswith("position")
            and isinstance(getattr(module, "padding_idx", None), int)
            and isinstance(table := getattr(module, "weight", None), torch.Tensor)
            and len(table) == stated[0]
        ]
        rows = [
            module.num_embeddings
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _POSITION_TABLES and "vision" not in name
        ]
        return min([*rows, stated[0]]) - max(unused, default=0)


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """The sizes of a text encoder's layers, as its configuration states them.

    Attributes:
        layers: how many a text passes.
        width: of their states.
        heads: of a layer's attention; 1 where it has none (FNet).
    """

    layers: int
    width: int
    heads: int


def text_sizes(config: Any) -> TextSizes:
    """Return the sizes of the layers that read text, of a model that reads more than text too (Gemma 3, Qwen 3.5, ModernVBERT)."""
    text_config = config.get_text_config()
    layers = stated_layers(config)
    if layers is None:  # Perceiver: every block passes the same layers again
        layers = text_config.num_blocks * text_config.num_self_attends_per_block
    return TextSizes(
        layers=int(layers),
        width=next(int(size) for name in ("hidden_size", "d_latents") if (size := getattr(text_config, name, None)) is not None),
        heads=max(int(getattr(text_config, name, 1)) for name in ("num_attention_heads", "num_self_attention_heads")),
    )


def stated_layers(config: Any) -> int | None:
    """Return how many layers a configuration gives to text; None if it states no single number, as Perceiver's."""
    layers: int | None = getattr(config.get_text_config(), "num_hidden_layers", None)
    return layers


def outline_of(what: str, config: Any) -> Outline:
    """Return the outline of the classifier of a configuration.

    Raises:
        InputError: transformers has no sequence classifier for it, it needs a package, or its sizes do not fit together.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            got=f"{what}, a {config.model_type}, for which transformers has no sequence classifier",
            expected="a text model that can classify",
            do="choose for instance distilbert-base-uncased",
        )
    with (
        loading(what, expected=EXPECTED, do="check its config.json"),
        needing_packages(what),
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
    ):
        model: nn.Module = AutoModelForSequenceClassification.from_config(copy.deepcopy(config))
    return Outline(model=model)
