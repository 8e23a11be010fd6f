"""The last layer of a text encoder for the first token of each text alone, where a classifier reads no other one.

Of that layer, a classifier that reads the first token needs the keys and values of all tokens and, of the first token alone, what is
computed after the attention: of DistilBERT's layer, three quarters of the multiplications. Which parts of a layer treat every token by
itself is found by trying: a part gets the first token alone, and keeps to it if answers and gradients stay the same. So it works
whatever the architecture, and where a head reads other tokens (a teacher's, a decoder's, a mean), every trial fails and nothing changes.
So it is with gradient checkpointing, and with a head of zeros, below which nothing can be tried.

Shapes: B texts, L tokens, D width.
"""

from typing import Any, TypeGuard

import torch
from torch import nn

from lugpi_core.errors import InputError
from train.learning.classifier_head import examining, hugging_face_model, taken, tiny_texts
from train.learning.frozen_layers import LARGEST_DIFFERENCE, FrozenLayers, find_layers


class FirstTokenOnly:
    """Gives parts of the last layer the first token of each text alone, while a batch brings hidden states; otherwise nothing changes.

    Dropout draws fewer numbers there, so a training takes other random masks than one that computes all tokens.

    Args:
        network: a baseline, teacher or student.
        layers: its frozen layers.

    Attributes:
        parts: the names, in the layer, of those that get the first token alone.
    """

    def __init__(self, network: nn.Module, layers: FrozenLayers) -> None:
        whole = hugging_face_model(network)
        layer = find_layers(whole, last=True)[-1]
        self._layers = layers
        self._tried: nn.Module | None = None
        self._has_narrowed = False
        self._handles: list[Any] = []
        self.parts: list[str] = []
        if not any(weight.requires_grad for weight in layer.parameters()):
            return
        # Gradient checkpointing computes a layer again in the backward pass, when the batch is gone.
        if any(getattr(part, "gradient_checkpointing", False) for part in whole.modules()):
            return
        with examining(whole), torch.enable_grad():
            expected = _answers_and_gradients(whole, layer)
            if not expected[1].any():  # below a head of zeros every trial would succeed
                return
            for name, part in layer.named_modules():
                self._tried, self._has_narrowed = part, False
                handle = part.register_forward_pre_hook(self._narrow, with_kwargs=True)
                if self._same(whole, layer, expected) and self._has_narrowed:
                    self._handles.append(handle)
                    self.parts.append(name)
                else:
                    handle.remove()
            self._tried = None

    def release(self) -> None:
        """Compute all tokens again."""
        for handle in self._handles:
            handle.remove()
        self.parts = []

    def _same(self, whole: Any, layer: nn.Module, expected: tuple[torch.Tensor, ...]) -> bool:
        try:
            with examining(whole), torch.enable_grad():
                ours = _answers_and_gradients(whole, layer)
        except InputError:  # it expects all tokens
            return False
        # Fewer rows are added up in another order.
        return all(
            a.shape == b.shape and bool((a - b).abs().max() <= LARGEST_DIFFERENCE[b.device.type] * b.abs().max())
            for a, b in zip(ours, expected, strict=True)
        )

    def _narrow(self, part: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._tried is None and not self._layers.are_given:
            return None
        if part is self._tried:
            self._has_narrowed = any(_of_tokens(value) and value.shape[1] > 1 for value in (*arguments, *named.values()))
        return tuple(map(_first, arguments)), {name: _first(value) for name, value in named.items()}


def _of_tokens(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.ndim == 3


def _first(value: Any) -> Any:
    return value[:, :1] if _of_tokens(value) else value


def _answers_and_gradients(whole: Any, layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a model answers for two short texts, and the gradients of the last layer's weights, one behind the other."""
    answers = whole(**taken(whole, tiny_texts(whole)))[0]
    weights = [weight for weight in layer.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(answers.square().sum(), weights, allow_unused=True, materialize_grads=True)
    return answers.detach(), torch.cat([gradient.flatten() for gradient in gradients])
