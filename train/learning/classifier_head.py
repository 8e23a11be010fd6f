"""Where a Hugging Face classifier makes its logits: found by what comes out of it, not by the order in which its layers are registered.

Shapes: B texts, L tokens, D width of the embedding, K classes.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lugpi_core.corpora.texts import listed
from lugpi_core.errors import InputError, number_of
from lugpi_core.runtime.pretrained import reason
from train.data.token_ids import TokenIds

# Lengths of the two texts that a classifier is examined with: neither is a multiple of what CANINE, Funnel or Reformer cut texts into.
_LENGTHS = (13, 7)


def hugging_face_model(network: nn.Module) -> Any:
    """Return the Hugging Face model in a network, with its head if it has one; None if the network reads no text."""
    from transformers import PreTrainedModel

    return next((module for module in network.modules() if isinstance(module, PreTrainedModel)), None)


@dataclass(frozen=True, kw_only=True)
class LogitsLayer:
    """The last layer of a classifier.

    Attributes:
        module: whose output is the logits.
        token: which token's output they are, if the layer scores every token: the first, the last that is no padding, or the mean of all
            (EuroBERT); None if it scores one embedding per text.
        width: D, the width of what it reads.
    """

    module: nn.Linear
    token: Literal["first", "last", "mean"] | None
    width: int


def tiny_texts(model: Any) -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask``, int64 [2, L], of two texts of 13 and 7 tokens, padded on the right, each with the
    model's token for the end of a text where it has one."""
    config = model.config.get_text_config()
    names = ("pad_token_id", "eos_token_id", "bos_token_id", "decoder_start_token_id")
    special = {number for name in names for number in _numbers(getattr(config, name, None))}
    words = [number for number in range(min(getattr(config, "vocab_size", None) or 128, 64)) if number not in special] or [0]
    ids_BL = torch.tensor([[words[n % len(words)] for n in range(row, row + _LENGTHS[0])] for row in range(2)])
    mask_BL = (torch.arange(_LENGTHS[0]) < torch.tensor(_LENGTHS)[:, None]).long()
    end, pad = next(iter(_numbers(getattr(config, "eos_token_id", None))), None), getattr(config, "pad_token_id", None)
    if end is not None and end < (getattr(config, "vocab_size", None) or 0):
        ids_BL[torch.arange(2), torch.tensor(_LENGTHS) - 1] = end
    if isinstance(pad, int):
        ids_BL = ids_BL.masked_fill(mask_BL == 0, pad)
    device = next(model.parameters()).device
    return {"input_ids": ids_BL.to(device), "attention_mask": mask_BL.to(device)}


def _numbers(ids: int | list[int] | None) -> list[int]:
    """Return the ids of a special token; of several that end a text, Llama 3 Instruct and Gemma have a list."""
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


@contextmanager
def examining(model: Any) -> Iterator[None]:
    """Put a model into evaluation, without gradients, for the block, and turn what it raises into one InputError.

    Raises:
        InputError: the model does not read plain texts.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            got=f"a {type(model).__name__}, which does not read plain texts ({reason(error)})",
            expected="a classifier of token ids",
            do="choose for instance distilbert-base-uncased",
        ) from None
    finally:
        model.train(was_training)


def find_logits_layer(model: Any) -> LogitsLayer:
    """Return the layer of a classifier that makes its logits: random numbers in place of its output come out as the logits.

    Raises:
        InputError: the model does not read plain texts, or no single layer makes its logits.
    """
    batch = taken(model, tiny_texts(model))
    with examining(model):
        called: list[nn.Linear] = []
        candidates = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == model.config.num_labels]
        handles = [part.register_forward_hook(lambda layer, _, __: called.append(layer)) for part in candidates]
        try:
            model(**batch)
        finally:
            for handle in handles:
                handle.remove()
        for layer in reversed(called):
            token = _token(model, layer, batch)
            if token is not None:
                _require_all_read(model, layer, token, batch)
                return LogitsLayer(module=layer, token=None if token == "text" else token, width=layer.in_features)
    raise InputError(
        got=f"a {type(model).__name__}, none of whose layers makes the logits from one embedding per text",
        expected="a layer from an embedding to the classes",
        do="choose for instance distilbert-base-uncased",
    )


def _token(model: Any, module: nn.Module, batch: Mapping[str, torch.Tensor]) -> Literal["text", "first", "last", "mean"] | None:
    """Return for which token of a text a layer's output is the logits; None if it is not."""
    given: list[torch.Tensor] = []

    def replace(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        given.append(torch.randn_like(output))
        return given[-1]

    handle = module.register_forward_hook(replace)
    try:
        logits_BK = model(**batch).logits
    finally:
        handle.remove()
    random = given[-1]
    if random.shape == logits_BK.shape:
        return "text" if torch.equal(random, logits_BK) else None
    if random.ndim != 3 or len(random) != len(logits_BK):
        return None
    if torch.equal(random[:, 0], logits_BK):
        return "first"
    if random.shape[1] != batch["input_ids"].shape[1]:
        return None
    last_B = last_tokens(batch["input_ids"], getattr(model.config.get_text_config(), "pad_token_id", None) or 0)
    if torch.equal(random[torch.arange(len(last_B)), last_B], logits_BK):
        return "last"
    return "mean" if torch.allclose(mean_tokens(random, batch.get("attention_mask")), logits_BK, atol=1e-5) else None


def _require_all_read(model: Any, layer: nn.Module, token: str, batch: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError if what the logits are made from stays the same whatever a text says after its first token: a causal model that is
    read at its first one."""
    given: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    name = "input_ids" if "input_ids" in batch else "inputs"
    ids_BL = batch[name]
    try:
        for ids in (ids_BL, torch.cat([ids_BL[:, :1], ids_BL[:, 1:-1].roll(1, dims=1), ids_BL[:, -1:]], dim=1)):
            model(**{**batch, name: ids})
    finally:
        handle.remove()
    before, after = (each[:, 0] if token == "first" else each for each in given[:: max(1, len(given) // 2)])
    if torch.equal(before, after):
        is_decoder = model.config.get_text_config().to_dict().get("is_decoder")
        raise InputError(
            got=f"a {type(model).__name__} that answers by a text's first token, which sees no other",
            expected="a classifier that reads the whole text",
            do="set is_decoder to false in its config.json" if is_decoder else "choose for instance distilbert-base-uncased",
        )


def mean_tokens(tokens_BLD: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over the tokens that are no padding, [B, D]."""
    if mask_BL is None:
        return tokens_BLD.mean(dim=1)
    return (tokens_BLD * mask_BL[..., None]).sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)


def states_of(encoder: Any) -> Literal["tokens", "latents", "shortened"]:
    """Return what the last hidden states of an encoder stand for: one for each token, a fixed number for any text (Perceiver), or fewer the
    shorter the text (Funnel without its decoder).

    Raises:
        InputError: the encoder does not read plain texts, or has no such states.
    """
    batch = taken(encoder, tiny_texts(encoder))
    with examining(encoder):
        whole, part = (
            encoder(**{name: values[:, :length] for name, values in batch.items()}).last_hidden_state.shape[1] for length in _LENGTHS
        )
    if (whole, part) == _LENGTHS:
        return "tokens"
    return "latents" if whole == part else "shortened"


def reads_padding(model: Any) -> bool:
    """Whether the output of a classifier or encoder for a text changes with the padding of a batch, tested on a text of 7 tokens.

    So it does in transformers 5.23 where a model has no mask (FNet), convolves, hashes or pools over neighbours of a text's last token
    (ConvBERT, MobileBERT, CANINE). So it does in any model that attends to the ``index_topk`` best tokens only (A.X K2): which of equally
    good ones are among them depends on the length of the batch.
    """
    if isinstance(getattr(model.config.get_text_config(), "index_topk", None), int):
        return True  # not tested: a text may have no equally good ones
    batch = taken(model, tiny_texts(model))
    length = _LENGTHS[1]
    with examining(model):
        padded, alone = model(**batch)[0][1], model(**{name: values[1:, :length] for name, values in batch.items()})[0][0]
    difference = (padded[: len(alone)] - alone).abs().max() if padded.shape[1:] == alone.shape[1:] else torch.inf
    return not bool(difference <= 1e-5 * max(1.0, float(alone.abs().max())))


def require_readable(model: nn.Module, texts: TokenIds) -> None:
    """Raise InputError if some texts have fewer tokens than a model reads, padded or not: transformers 5.23 fails at them where a model
    pools over several tokens (CANINE, Funnel).

    Args:
        model: with a Hugging Face model inside, or one itself.
        texts: all that it is to read.
    """
    inner = hugging_face_model(model)
    batch = taken(inner, tiny_texts(inner))
    fewest = int(texts.lengths_N.min(initial=_LENGTHS[0]))
    while fewest < _LENGTHS[0] and not _reads(inner, {name: values[:1, -fewest:] for name, values in batch.items()}):
        fewest += 1
    if rows := [row for row, length in enumerate(texts.lengths_N.tolist()) if length < fewest]:
        raise InputError(
            got=f"{number_of(len(rows), 'text{s}')} of fewer than {fewest} tokens, special ones included: {listed(rows)}",
            expected=f"at least {fewest}, as {type(inner).__name__} reads them",
            do="remove these texts, or choose another text model",
        )


def _reads(model: Any, batch: Mapping[str, torch.Tensor]) -> bool:
    try:
        with examining(model):
            model(**batch)
    except InputError:
        return False
    return True


def last_tokens(ids_BL: torch.Tensor, pad: int) -> torch.Tensor:
    """Return the position of each text's last token that is not ``pad``, int64 [B]: where transformers' decoders classify
    (transformers 5.23, ``GenericForSequenceClassification``)."""
    return (torch.arange(ids_BL.shape[1], device=ids_BL.device) * (ids_BL != pad)).argmax(dim=-1)


def taken(model: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return those inputs of a batch that the model's forward takes by name; Perceiver's encoder calls the ids ``inputs``."""
    names = inspect.signature(model.forward).parameters
    if "input_ids" not in names and "inputs" in names:
        batch = {"inputs" if name == "input_ids" else name: value for name, value in batch.items()}
    return {name: value for name, value in batch.items() if name in names}
