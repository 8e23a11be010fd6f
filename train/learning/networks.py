"""The networks: a plain Hugging Face classifier (baseline, student), and the fusion of text and image tokens (teacher, images).

Shapes: B examples, L text tokens, T image tokens, D width of the text encoder, I width of the image tokens, K classes.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lugpi_core.errors import InputError
from train.data.privileged import HAS_IMAGE
from train.learning.boundary import Heads
from train.learning.classifier_head import find_logits_layer, last_tokens, mean_tokens, reads_padding, states_of, taken
from train.learning.compile import masked, takes_expanded_mask

HEADS = 8
_NO_IMAGE_STD = 0.02  # that of a BERT's new embeddings


class Output(NamedTuple):
    """A model's output for a batch: logits [B, K] and the embeddings [B, D] that its last Linear reads; of a student, also these embeddings
    projected to the width of each teacher, in their order, its predictions of each teacher's image vectors, if it makes any, and what a
    step from its embeddings adds to its logits and to each teacher's, if that is asked for."""

    logits: torch.Tensor
    embeddings: torch.Tensor
    projected: tuple[torch.Tensor, ...] = ()
    predicted: tuple[torch.Tensor, ...] = ()
    heads: tuple[Heads, ...] = ()


class TextClassifier(nn.Module):
    """A Hugging Face sequence classifier that also returns embeddings: the input of the layer that makes its logits.

    They are taken before dropout (DistilBERT: after ``pre_classifier`` and ReLU). Of a decoder, whose layer scores every token, they are
    those of the token whose scores are the logits: the last that is no padding.

    Raises:
        InputError: as ``find_logits_layer``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._tap = _EmbeddingTap(model)
        self._expanded = takes_expanded_mask(model)
        self.padding_is_read = reads_padding(model)
        # As transformers' own pipeline: nothing is generated, so no keys and values are kept.
        self._settings = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K] and embeddings [B, D] for ``input_ids``, ``attention_mask`` if any text is padded, and what else the
        tokenizer returns, [B, L]."""
        logits_BK = self.model(**masked(batch, expanded=self._expanded), **self._settings).logits
        return Output(logits_BK, self._tap.embeddings(batch))

    @property
    def embedding_width(self) -> int:
        """D."""
        return self._tap.layer.width

    @property
    def last_linear(self) -> nn.Linear:
        """The Linear whose output the logits are."""
        return self._tap.layer.module


class _EmbeddingTap:
    """Hooks that keep the input of the layer that makes the logits, before the dropout in front of it if there is one."""

    def __init__(self, model: Any) -> None:
        self.layer = find_logits_layer(model)
        self._pad = getattr(model.config.get_text_config(), "pad_token_id", None) or 0
        self._before_dropout: tuple[torch.Tensor, torch.Tensor] | None = None
        self._read: torch.Tensor | None = None
        encoder = set() if model.base_model is model else set(model.base_model.modules())
        for module in model.modules():
            if isinstance(module, nn.Dropout) and module not in encoder:
                module.register_forward_hook(self._keep_dropout)
        self.layer.module.register_forward_pre_hook(self._keep_read)

    def embeddings(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        assert self._read is not None, "the classifier did not call the layer that makes its logits"
        read, self._read, self._before_dropout = self._read, None, None
        match self.layer.token:
            case "first":
                return read[:, 0]
            case "last":
                return at_tokens(read, last_tokens(batch["input_ids"], self._pad))
            case "mean":
                return mean_tokens(read, batch.get("attention_mask"))
            case None:
                return read

    def _keep_dropout(self, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._before_dropout = (inputs[0], output)

    def _keep_read(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        dropout = self._before_dropout  # input and output of the last one
        self._read = dropout[0] if dropout is not None and dropout[1] is inputs[0] else inputs[0]


class Student(nn.Module):
    """A text classifier with a Linear to the width of every teacher whose embeddings have another width than its own, and one that predicts
    the image vector of every teacher.

    The Linears are trained with the classifier and discarded afterwards: only the classifier is exported.

    Args:
        classifier: of embeddings of D dimensions.
        teacher_widths: of each teacher's embeddings; empty if they are not compared.
        image_widths: of each teacher's image vectors; empty if they are not predicted.
        teacher_heads: the weight of each teacher's last Linear, [K, its width]; empty if no boundary is looked for.
    """

    def __init__(
        self,
        classifier: TextClassifier,
        teacher_widths: Sequence[int],
        image_widths: Sequence[int] = (),
        teacher_heads: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__()
        self.classifier = classifier
        width = classifier.embedding_width
        self.project = nn.ModuleList(nn.Identity() if other == width else nn.Linear(width, other) for other in teacher_widths)
        self.predict_image = nn.ModuleList(nn.Linear(width, other) for other in image_widths)
        for number, head_KD in enumerate(teacher_heads):
            self.register_buffer(f"teacher_head_{number}", head_KD, persistent=False)
        self._heads = len(teacher_heads)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K], embeddings [B, D], those in each teacher's width and the predicted image vectors [B, I] for ``input_ids``
        and ``attention_mask`` [B, L]."""
        output: Output = self.classifier(batch)
        return output._replace(
            projected=tuple(project(output.embeddings) for project in self.project),
            predicted=tuple(predict(output.embeddings) for predict in self.predict_image),
            heads=tuple(Heads(self.classifier.last_linear.weight, self._teacher_head(number)) for number in range(self._heads)),
        )

    def _teacher_head(self, number: int) -> torch.Tensor:
        """Return what a step from the student's embeddings, projected to a teacher's width, adds to that teacher's logits, [K, D]."""
        head, project = self.get_buffer(f"teacher_head_{number}"), self.project[number]
        return head @ project.weight.detach() if isinstance(project, nn.Linear) else head


class FusionHead(nn.Module):
    """The teacher after its text encoder (paper, §3): one transformer block fuses the tokens, the class tokens are classified.

    A Linear maps image tokens to the text's width if the widths differ. Of the fused sequence, the class token of each modality is read:
    ``[U_CLS; V_CLS]`` → Linear(2·D → D) → ReLU → dropout → Linear(D → K). With D = 768 this is the paper's head (it prints 786).
    With one modality, the same block reads its tokens alone: images, for the image-only rows of Table 1, or text, for the teacher without
    privileged information.

    Args:
        text_width: D.
        image_width: I, or None for a head that reads no images.
        classes: K.
        reads_text: whether text tokens are given.
        dropout: of the block and before the last Linear.
        no_image_tokens: T, for a head that learns tokens in place of an image that was not drawn; None for one that needs none.

    Raises:
        InputError: a width or the number of classes is not positive, D is not a multiple of the 8 heads, or there is no modality.
    """

    def __init__(
        self,
        *,
        text_width: int,
        image_width: int | None,
        classes: int,
        reads_text: bool = True,
        dropout: float = 0.1,
        no_image_tokens: int | None = None,
    ) -> None:
        super().__init__()
        modalities = reads_text + (image_width is not None)
        if text_width < 1 or text_width % HEADS or (image_width is not None and image_width < 1) or classes < 1 or not modalities:
            raise InputError(
                got=f"text_width={text_width}, image_width={image_width}, classes={classes}, reads_text={reads_text}",
                expected=f"positive numbers, text_width a multiple of {HEADS} (heads of the fusion block), and text or images",
                do="give the widths of the encoders",
            )
        self.project = nn.Identity() if image_width in (None, text_width) else nn.Linear(image_width, text_width)
        self.block = nn.TransformerEncoderLayer(text_width, nhead=HEADS, dim_feedforward=4 * text_width, dropout=dropout, batch_first=True)
        self.embed = nn.Linear(modalities * text_width, text_width)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(text_width, classes)
        self.no_image: nn.Parameter | None = None
        if no_image_tokens is not None and image_width is not None:  # last, so that a seed gives the other weights the same values
            self.no_image = nn.Parameter(torch.empty(no_image_tokens, image_width).normal_(std=_NO_IMAGE_STD))

    def image_inputs(self, image_BTI: torch.Tensor, has_image_B: torch.Tensor | None) -> torch.Tensor:
        """Return image tokens, [B, T, I], with the learnt ones, ``no_image`` [T, I], in place of those of a text that has no image.

        Args:
            image_BTI: image tokens; of a text without an image, anything.
            has_image_B: bool; None = every text has an image.
        """
        if self.no_image is None or has_image_B is None:
            return image_BTI
        return torch.where(has_image_B[:, None, None], image_BTI, self.no_image.to(image_BTI.dtype))

    def forward(
        self,
        image_BTI: torch.Tensor | None,
        text_BLD: torch.Tensor | None,
        padding_BL: torch.Tensor | None = None,
        text_class_B: torch.Tensor | None = None,
    ) -> Output:
        """Return logits and embeddings from the given modalities.

        Tokens must have the dtype of the parameters: float16 ones of a ``TokenStore`` need ``.float()``.

        Args:
            image_BTI: image tokens, class token first.
            text_BLD: text tokens.
            padding_BL: bool, True at padding; None if there is none.
            text_class_B: int64, the position of each text's class token; None = the first.
        """
        image_BTD = None if image_BTI is None else self.project(image_BTI)
        tokens = [part for part in (text_BLD, image_BTD) if part is not None]
        if padding_BL is not None and image_BTD is not None:
            padding_BL = torch.cat([padding_BL, padding_BL.new_zeros(image_BTD.shape[:2])], dim=1)
        fused = self.block(torch.cat(tokens, dim=1), src_key_padding_mask=padding_BL)
        classes = [fused[:, 0] if text_class_B is None or text_BLD is None else at_tokens(fused, text_class_B)]
        if len(tokens) == 2:
            classes.append(fused[:, tokens[0].shape[1]])
        embeddings_BD = torch.relu(self.embed(torch.cat(classes, dim=1)))
        return Output(self.classify(self.dropout(embeddings_BD)), embeddings_BD)

    def image_attention(
        self,
        image_BTI: torch.Tensor,
        text_BLD: torch.Tensor,
        padding_BL: torch.Tensor | None = None,
        text_class_B: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return how much the class tokens of text and image attend to each image token in the block, [B, T]: the mean over both and over
        the heads. With the attention to the text's tokens it sums to 1. Arguments are those of ``forward``, with both modalities.

        The fused kernel of the block returns no weights: they are computed anew, from two queries.
        """
        image_BTD = self.project(image_BTI)
        tokens_BSD, length = torch.cat([text_BLD, image_BTD], dim=1), text_BLD.shape[1]
        if padding_BL is not None:
            padding_BL = torch.cat([padding_BL, padding_BL.new_zeros(image_BTD.shape[:2])], dim=1)
        text_BD = text_BLD[:, 0] if text_class_B is None else at_tokens(text_BLD, text_class_B)
        queries_B2D = torch.stack([text_BD, image_BTD[:, 0]], dim=1)
        weights_B2S: torch.Tensor
        _, weights_B2S = self.block.self_attn(queries_B2D, tokens_BSD, tokens_BSD, key_padding_mask=padding_BL, need_weights=True)
        return weights_B2S[:, :, length:].mean(dim=1)


def at_tokens(tokens_BLD: torch.Tensor, positions_B: torch.Tensor) -> torch.Tensor:
    """Return one token of each text, [B, D], without synchronizing with the device."""
    return tokens_BLD[torch.arange(len(tokens_BLD), device=tokens_BLD.device), positions_B]


class Teacher(nn.Module):
    """Text encoder and fusion head; reads text and, if the head does, image tokens.

    Args:
        text_encoder: a Hugging Face encoder or decoder without a head.
        head: of the encoder's width.
        reads_last_token: whether a text's class token is its last one (a decoder's first token sees no other) and not its first.
    """

    def __init__(self, text_encoder: nn.Module, head: FusionHead, *, reads_last_token: bool = False) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.head = head
        self.reads_last_token = reads_last_token
        self._states = states_of(text_encoder)
        self._expanded = takes_expanded_mask(text_encoder)
        self.padding_is_read = reads_padding(text_encoder)
        self._settings = {"use_cache": False} if "use_cache" in inspect.signature(text_encoder.forward).parameters else {}

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K] and embeddings [B, D] for ``input_ids``, ``attention_mask`` [B, L] where any is padded, what else the
        tokenizer returns, ``image_tokens`` [B, T, I] and, where some of the texts have none, ``has_image`` [B]."""
        output: Output = self.head(*self.head_inputs(batch))
        return output

    def image_attention(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return how much the class tokens attend to each image token in the head's block, [B, T], for the inputs of ``forward``."""
        image_BTI, text_BLD, padding_BL, class_B = self.head_inputs(batch)
        assert image_BTI is not None, "a teacher without images"
        return self.head.image_attention(image_BTI, text_BLD, padding_BL, class_B)

    def head_inputs(
        self, batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the arguments of the head for a batch: image tokens, text states, padding, and where each text's class token is."""
        mask_BL = batch.get("attention_mask")
        inputs = taken(self.text_encoder, masked(batch, expanded=self._expanded))
        if "global_attention_mask" in inspect.signature(self.text_encoder.forward).parameters:
            inputs["global_attention_mask"] = _first_token_only(batch["input_ids"])
        text_BLD = self.text_encoder(**inputs, **self._settings).last_hidden_state
        image_BTI = None
        if "image_tokens" in batch:
            image_BTI = self.head.image_inputs(batch["image_tokens"].to(text_BLD.dtype), batch.get(HAS_IMAGE))
        if self._states != "tokens":  # no state belongs to padding
            return image_BTI, text_BLD if self._states == "latents" else text_BLD[:, :1], None, None
        class_B = None
        if self.reads_last_token:
            length = batch["input_ids"].shape[1]
            ones_BL = torch.ones_like(batch["input_ids"]) if mask_BL is None else mask_BL
            class_B = (torch.arange(length, device=text_BLD.device) * ones_BL).argmax(dim=1)
        return image_BTI, text_BLD, None if mask_BL is None else mask_BL == 0, class_B


def _first_token_only(ids_BL: torch.Tensor) -> torch.Tensor:
    """Return the global attention with which Longformer's classifier reads a text: that of its first token."""
    first_BL = torch.zeros_like(ids_BL)
    first_BL[:, 0] = 1
    return first_BL


class ImageClassifier(nn.Module):
    """The fusion head on image tokens alone."""

    def __init__(self, head: FusionHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Mapping[str, torch.Tensor]) -> Output:
        """Return logits [B, K] and embeddings [B, D] for ``image_tokens`` [B, T, I]."""
        output: Output = self.head(batch["image_tokens"].float(), None)
        return output


def last_linear(model: nn.Module) -> nn.Linear:
    """Return the Linear whose output the logits of a model are."""
    match model:
        case TextClassifier():
            return model.last_linear
        case Student():
            return model.classifier.last_linear
        case Teacher() | ImageClassifier():
            return model.head.classify
    raise TypeError(f"{type(model).__name__} is none of the four networks")


def padding_is_read(model: nn.Module) -> bool:
    """Whether padding changes the answers of a model, so that they are computed from texts of equal length."""
    match model:
        case TextClassifier() | Teacher():
            return model.padding_is_read
        case Student():
            return model.classifier.padding_is_read
    return False


def text_width(config: Any, flag: str) -> int:
    """Return the width D of a text encoder from its configuration.

    Raises:
        InputError: the width is not a multiple of the 8 heads of the fusion block.
    """
    names = ("word_embed_proj_dim", "d_latents", "hidden_size")  # of OPT, of Perceiver, of all others
    text_config = config.get_text_config()
    width = next(int(value) for name in names if isinstance(value := getattr(text_config, name, None), int))
    if width % HEADS:
        raise InputError(
            got=f"{flag} of width {width}, for a model that reads images or a teacher",
            expected=f"a multiple of {HEADS} (heads of the fusion block)",
            do="choose another text model; baselines read this one",
        )
    return width


def text_dropout(config: Any) -> float:
    """Return the dropout of a text encoder's layers, which the fusion block uses too; the paper's 0.1 if the configuration names none."""
    named = config.to_dict()
    return float(next((named[name] for name in ("hidden_dropout_prob", "dropout", "hidden_dropout") if name in named), 0.1))
