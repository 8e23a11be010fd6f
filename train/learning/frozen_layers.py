"""The embeddings and first layers of a text encoder, frozen: their hidden states are computed once, and given in their place afterwards.

Layers are found by structure: the list of modules of one class that a forward pass calls one after another. They keep their place in the
model, which prepares masks and positions itself, whatever its architecture. While a batch brings hidden states, frozen layers return these
and compute nothing; without them the model computes as ever, so that it is saved, exported and scored whole.

Shapes: B texts, L tokens, D width of the hidden states.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lugpi_core.errors import InputError
from train.data.outline import outline_of
from train.data.prefix import PREFIX
from train.data.text_model import TextModel
from train.learning.classifier_head import examining, hugging_face_model, taken, tiny_texts

# Of two ways to compute the same, as a part of the largest number: what is added up in another order differs, on CUDA also the kernels.
LARGEST_DIFFERENCE = {"cpu": 1e-5, "cuda": 1e-3}


class _Reached(Exception):
    """A forward pass has come to the end of the frozen layers."""


class FrozenLayers:
    """Freezes the embeddings and the first layers of a network's text encoder: every weight on which the hidden states after them depend.

    The network computes as before, until a batch contains ``prefix_states``, [B, L, D].

    Args:
        network: a baseline, teacher or student.
        count: the number of layers; None = all.

    Attributes:
        count: the number of layers.
        width: D.
        weights: the parameters that decide the hidden states, by their names in the encoder.

    Raises:
        InputError: the encoder has fewer layers, none that stand in one list, or layers whose states are not those of tokens.
    """

    def __init__(self, network: nn.Module, count: int | None) -> None:
        whole = hugging_face_model(network)
        layers = find_layers(whole, last=count is None)
        self.count = len(layers) if count is None else count
        if not 1 <= self.count <= len(layers):
            raise _too_many(self.count, len(layers))
        self._network = network
        self._given: torch.Tensor | None = None
        self._is_probed = False
        self._found: Any = None
        self._layers = layers[: self.count]
        for number, layer in enumerate(self._layers):
            vars(layer)["forward"] = partial(self._forward, layer.forward, number)
        self._hooks = (
            network.register_forward_pre_hook(self._take),
            network.register_forward_hook(self._forget, always_call=True),
        )
        texts = {name: values for name, values in tiny_texts(whole).items() if name in ("input_ids", *taken(whole, tiny_texts(whole)))}
        encoder: nn.Module = whole.base_model
        learning = [weight for weight in encoder.parameters() if weight.requires_grad]
        with examining(whole), torch.enable_grad():
            encoder.requires_grad_(True)  # also what is never trained decides the states
            states, rest = self._probe(texts)
            self.weights = _weights_behind(encoder, self._layers, states)
            encoder.requires_grad_(False)
        for weight in learning:
            weight.requires_grad_(True)
        self.width = states.shape[2]
        # Tensors among the rest are such as the relative positions of T5's first layer.
        self._rest: tuple[Any, ...] | None = None if rest is None else (None,) * len(rest)
        self._has_more = any(isinstance(part, torch.Tensor) for part in rest or ())
        self._frozen = [weight for weight in self.weights.values() if weight.requires_grad]
        for weight in self._frozen:
            weight.requires_grad_(False)

    @property
    def are_given(self) -> bool:
        """Whether the batch that is computed brings hidden states."""
        return self._given is not None

    def states(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the hidden states [B, L, D] of a batch after the frozen layers, without dropout. The layers above are not computed."""
        was_training = self._network.training
        self._network.eval()
        try:
            with torch.no_grad():
                return self._probe(inputs)[0]
        finally:
            self._network.train(was_training)

    def release(self) -> None:
        """Make the network what it was: no hidden states are given any more, and what was frozen is trained."""
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers:
            del vars(layer)["forward"]
        for weight in self._frozen:
            weight.requires_grad_(True)

    def _probe(self, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, tuple[Any, ...] | None]:
        """Return the states, and what else the last frozen layer returns; None if it returns the states alone and no tuple."""
        self._is_probed = True
        try:
            self._network({name: value for name, value in inputs.items() if name != PREFIX})
        except _Reached:
            pass
        finally:
            self._is_probed = False
        found, self._found = self._found, None
        states, rest = (found, None) if isinstance(found, torch.Tensor) else (found[0], tuple(found[1:]))
        texts, length = inputs["input_ids"].shape
        if states.ndim != 3 or states.shape[0] != texts or states.shape[1] < length:
            raise unfit(self._network, f"whose layers have states {tuple(states.shape)} for {texts} texts of {length} tokens")
        return states[:, :length], rest

    def _take(self, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._given = arguments[0].get(PREFIX)

    def _forget(self, *_: Any) -> None:
        self._given = None

    def _forward(self, forward: Callable[..., Any], number: int, *arguments: Any, **named: Any) -> Any:
        if self._given is None:
            output = forward(*arguments, **named)
            if self._is_probed and number == self.count - 1:
                self._found = output
                raise _Reached
            return output
        hidden = arguments[0] if arguments else next(iter(named.values()))
        states = self._given.to(hidden.dtype)
        if hidden.shape[1] > states.shape[1]:  # the model has filled up the batch to a whole number of windows
            states = F.pad(states, (0, 0, 0, hidden.shape[1] - states.shape[1]))
        if number == 0 and self._has_more:
            self._rest = forward(*arguments, **named)[1:]
        return states if self._rest is None else (states, *self._rest)


def find_layers(whole: Any, *, last: bool = False) -> nn.ModuleList:
    """Return the layers of a Hugging Face model: of an encoder-decoder those of its encoder or, with ``last``, of its decoder.

    Raises:
        InputError: no list of modules of one class is called member after member, each once.
    """
    lists = [part for part in whole.modules() if isinstance(part, nn.ModuleList) and len({type(member) for member in part}) == 1]
    called: list[int] = []
    handles = [member.register_forward_pre_hook(lambda layer, _: called.append(id(layer))) for part in lists for member in part]
    try:
        with examining(whole):
            whole(**taken(whole, tiny_texts(whole)))
    finally:
        for handle in handles:
            handle.remove()
    found: dict[int, nn.ModuleList] = {}
    inside: set[int] = set()
    for part in lists:  # outer lists come before those inside their members
        members = [id(member) for member in part]
        if id(part) in inside or [number for number in called if number in set(members)] != members:
            continue
        inside |= {id(module) for module in part.modules()}
        found[called.index(members[0])] = part
    if not found:
        raise unfit(whole, "whose layers do not stand in a list, each called once")
    return found[max(found) if last else min(found)]


def require_layers(text_model: TextModel, count: int, *, kept: int | None) -> None:
    """Raise InputError if a text model has fewer than ``count`` layers, before weights are loaded, if its configuration tells how many it
    has: those of its longest list.

    Args:
        text_model: of whose layers the first are to be frozen.
        count: their number.
        kept: how many layers a student keeps; None = all.
    """
    outline = outline_of(f"--text-model {text_model.name}", text_model.config)
    longest = max((len(part) for part in outline.model.modules() if isinstance(part, nn.ModuleList)), default=0)
    if longest == getattr(outline.text_config, "num_hidden_layers", None) and count > (most := min(longest, kept or longest)):
        raise _too_many(count, most)


def _too_many(count: int, layers: int) -> InputError:
    return InputError(got=f"--freeze-layers {count}", expected=f"0 to {layers}, as this model has", do="give one of these numbers")


def unfit(model: nn.Module, why: str) -> InputError:
    """Return the error for a text model whose layers cannot be frozen and cached."""
    return InputError(
        got=f"--freeze-layers or --update head for a {type(hugging_face_model(model)).__name__}, {why}",
        expected="a text model whose layers stand in one list and pass on a state of each token, such as DistilBERT's or BERT's",
        do="leave it out, or choose another text model",
    )


def _weights_behind(encoder: nn.Module, layers: nn.ModuleList, states: torch.Tensor) -> dict[str, nn.Parameter]:
    """Return the weights of the layers and all others on which their states depend, by name."""
    weights = dict(encoder.named_parameters())
    gradients = torch.autograd.grad(states.sum(), list(weights.values()), allow_unused=True)
    own = {id(weight) for weight in layers.parameters()}
    return {
        name: weight
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        if gradient is not None or id(weight) in own
    }
