"""The models: a plain Hugging Face classifier (baseline, student), and the fusion of text and image tokens (teacher, images).

Shapes: B examples, L text tokens, T image tokens, D width of the text encoder, I width of the image tokens, K classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from lugpi_core.errors import InputError

HEADS = 8


class Output(NamedTuple):
    """What a model says of a batch: logits [B, K] and the embedding [B, D] that its last Linear reads."""

    logits: torch.Tensor
    embeddings: torch.Tensor


class TextClassifier(nn.Module):
    """A Hugging Face sequence classifier, with the input of its final Linear at hand.

    The embedding is that input before dropout (DistilBERT: after ``pre_classifier`` and ReLU).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._tap = _EmbeddingTap(model)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K] and embeddings [B, D] for ``input_ids`` and ``attention_mask`` [B, L]."""
        logits_BK = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return Output(logits_BK, self._tap.embeddings(logits_BK))

    @property
    def embedding_width(self) -> int:
        """D."""
        return self._tap.width


class _EmbeddingTap:
    """Hooks that keep what the classifier's last Linear reads, from before the dropout in front of it where there is one."""

    def __init__(self, model: Any) -> None:
        head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        if head.out_features != model.config.num_labels:
            raise InputError(
                got=f"{type(model).__name__}, which ends in {head}", expected="a Linear to the classes", do="choose an encoder"
            )
        self.width = head.in_features
        self._before_dropout: tuple[torch.Tensor, torch.Tensor] | None = None
        self._read: torch.Tensor | None = None
        for module in _modules_outside_encoder(model):
            if isinstance(module, nn.Dropout):
                module.register_forward_hook(self._keep_dropout)
        head.register_forward_pre_hook(self._keep_read)

    def embeddings(self, logits_BK: torch.Tensor) -> torch.Tensor:
        assert self._read is not None, "the classifier has run without its last Linear"
        embeddings, self._read, self._before_dropout = self._read, None, None
        if embeddings.shape != (len(logits_BK), self.width):
            raise InputError(
                got=f"a classifier that scores every token {tuple(embeddings.shape)}",
                expected="one embedding a text",
                do="choose an encoder",
            )
        return embeddings

    def _keep_dropout(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._before_dropout = (inputs[0], output)

    def _keep_read(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        behind = self._before_dropout
        self._read = behind[0] if behind is not None and behind[1] is inputs[0] else inputs[0]


def _modules_outside_encoder(model: Any) -> list[nn.Module]:
    encoder = set(model.get_submodule(model.base_model_prefix).modules())
    return [module for module in model.modules() if module not in encoder]


class FusionHead(nn.Module):
    """The teacher behind its text encoder (paper, §3): fuse tokens in one transformer block, read the class tokens, classify.

    Image tokens are mapped to the text's width by a Linear when the widths differ. Of the fused sequence the class token of each modality
    is read: ``[U_CLS; V_CLS]`` → Linear(2·D → D) → ReLU → dropout → Linear(D → K). With D = 768 this is the paper's head (it prints 786).
    Without text (``modalities = 1``) the same block reads the image tokens alone: the image-only rows of Table 1.
    """

    def __init__(self, *, text_width: int, image_width: int, classes: int, modalities: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Identity() if image_width == text_width else nn.Linear(image_width, text_width)
        self.block = nn.TransformerEncoderLayer(text_width, nhead=HEADS, dim_feedforward=4 * text_width, dropout=dropout, batch_first=True)
        self.embed = nn.Linear(modalities * text_width, text_width)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(text_width, classes)

    def forward(self, image_BTI: torch.Tensor, text_BLD: torch.Tensor | None, mask_BL: torch.Tensor | None) -> Output:
        """Return logits and embeddings; ``mask_BL`` is 1 where a text token is real, 0 where it is padding."""
        image_BTD = self.project(image_BTI)
        if text_BLD is None or mask_BL is None:
            classes_BD = self.block(image_BTD)[:, 0]
        else:
            padding_BT = torch.zeros(image_BTD.shape[:2], dtype=torch.bool, device=mask_BL.device)
            fused = self.block(torch.cat([text_BLD, image_BTD], dim=1), src_key_padding_mask=torch.cat([mask_BL == 0, padding_BT], dim=1))
            classes_BD = torch.cat([fused[:, 0], fused[:, text_BLD.shape[1]]], dim=1)
        embeddings_BD = torch.relu(self.embed(classes_BD))
        return Output(self.classify(self.dropout(embeddings_BD)), embeddings_BD)


class Teacher(nn.Module):
    """Text encoder and fusion head; reads text and image tokens."""

    def __init__(self, text_encoder: nn.Module, head: FusionHead) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.head = head

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K] and embeddings [B, D] for ``input_ids``, ``attention_mask`` [B, L] and ``image_tokens`` [B, T, I]."""
        mask_BL = batch["attention_mask"]
        text_BLD = self.text_encoder(input_ids=batch["input_ids"], attention_mask=mask_BL).last_hidden_state
        output: Output = self.head(batch["image_tokens"].to(text_BLD.dtype), text_BLD, mask_BL)
        return output


class ImageClassifier(nn.Module):
    """The fusion head on image tokens alone."""

    def __init__(self, head: FusionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K] and embeddings [B, D] for ``image_tokens`` [B, T, I]."""
        output: Output = self.head(batch["image_tokens"].float(), None, None)
        return output


def text_width(config: Any, flag: str) -> int:
    """Return the width D of a text encoder from its configuration.

    Raises:
        InputError: the width is not a multiple of the 8 heads of the fusion block.
    """
    width = int(config.hidden_size)
    if width % HEADS:
        raise InputError(got=f"{flag} of width {width}", expected=f"a multiple of {HEADS} (heads of the fusion block)", do="choose another")
    return width
