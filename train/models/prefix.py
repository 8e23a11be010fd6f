"""Training above frozen layers: check that their kept hidden states mean the same, compute those that the run lacks, and read them."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lugpi_core.amounts import duration, size
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, number_of
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.stopping import stop_on_signals
from train.data.image_tokens import resolve_place, training_bytes
from train.data.prefix import FOLDER, PREFIX, PrefixColumn, PrefixStates, StatesOf, fill_prefix, require_room
from train.data.token_ids import Token, TokenIds, hash_of_tokens
from train.data.training_data import TrainingData
from train.learning.classifier_head import examining, hugging_face_model
from train.learning.distributed import Processes
from train.learning.first_token import FirstTokenOnly
from train.learning.frozen_layers import LARGEST_DIFFERENCE, FrozenLayers, unfit
from train.learning.networks import Output
from train.learning.progress import progress_bar
from train.models.hub_export import checked_rows
from train.models.plan import ModelPlan

# Where less is to be computed, the estimate would take a good part of it.
_FEW_BATCHES = 10
# What a configuration says of the head, its task and its file.
_OF_THE_HEAD = ("id2label", "label2id", "problem_type", "architectures", "_name_or_path", "transformers_version", "dtype", "thresholds")


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """Frozen layers, and the data that the layers above them are trained on.

    Attributes:
        layers: the frozen ones.
        data: with hidden states; with only the class token of each text if nothing above the layers reads another one.
    """

    layers: FrozenLayers
    data: TrainingData


def with_prefix(plan: ModelPlan, model: nn.Module, data: TrainingData, processes: Processes, *, count: int | None) -> Prefix:
    """Freeze the first layers of a plan's model, and return the data with their hidden states.

    The states are in the run's folder ``prefix``, in a column whose name follows from everything that decides them: other models, seeds
    and trials with the same frozen layers and texts read the same column. What is missing in it, or damaged, is computed first.

    Args:
        plan: of the model.
        model: a baseline, teacher or student.
        data: the whole texts.
        processes: that train it; each computes a part of what is missing.
        count: the number of layers; None = all.

    Raises:
        InputError: the layers do not stand in a list, the model above them answers otherwise from kept states, the disk has no room, or
            the states are beyond float16.
        Stopped: a signal asked for it; what is computed is kept.
    """
    layers, rows = FrozenLayers(model, count), checked_rows(plan.kind.corpus)
    assert data.texts is not None, "the plan's kind reads text"
    require_same_answers(model, layers, data, rows)
    token = only_token(model, layers, data, rows) if count is None else None
    if token is None:
        read_first_token_only(model, layers, data, rows)
    read = data.texts if token is None else data.texts.only(token)
    with processes.first_before_others():
        of_each = [plan.shared.tokens(plan.text_model, corpus, plan.run_dir) for corpus in plan.corpora]
    decided = _states_fingerprint(plan, model, layers) | ({} if token is None else {"token": token})
    columns, first = [], 0
    for tokens in of_each:
        texts = slice(first, first + len(tokens.lengths_N))
        column = PrefixColumn(
            store=plan.run_dir / FOLDER,
            lengths_N=read.lengths_N[texts],
            computed_N=tokens.lengths_N,
            width=layers.width,
            fingerprint={**decided, "texts": hash_of_tokens(tokens)},
            dtype=plan.optimization.prefix_dtype,
            license=plan.text_model.license,
        )
        _fill(plan, column, partial(states_of_texts, plan.compute, layers, data.texts, token, first), processes)
        columns.append(column)
        first = texts.stop
    stored_bytes, device = sum(column.stored_bytes for column in columns), data.device
    needed_bytes = bytes_of_training(plan, model) if device.type == "cuda" else 0
    place = resolve_place(plan.placement.tokens_on, stored_bytes, device=device, training_bytes=needed_bytes)
    if processes.is_first:
        say(f"hidden states after {number_of(layers.count, 'layer{s}')}: {size(stored_bytes)}, read from {place}")
    states = PrefixStates(columns, place, device, left=read.pads_left)
    return Prefix(layers=layers, data=replace(data, texts=read, prefix=states))


def require_same_answers(model: nn.Module, layers: FrozenLayers, data: TrainingData, rows: Sequence[int]) -> None:
    """Raise InputError unless a model answers the same from the hidden states of texts that were computed one by one, as from the texts
    themselves in a padded batch, and otherwise from others.

    Args:
        model: whose layers are frozen.
        layers: these.
        data: without hidden states.
        rows: a few texts of unequal length.
    """
    live, inputs = _live(model, data, rows), _given(layers, data, rows)
    if difference := _difference(_answers(model, inputs), live):
        raise unfit(model, f"whose answers differ by {difference:.2g} if the states of its first {layers.count} layers are kept")
    if not _difference(_answers(model, {**inputs, PREFIX: torch.zeros_like(inputs[PREFIX])}), live):
        raise unfit(model, "whose head does not read the states of its last layers")


def read_first_token_only(model: nn.Module, layers: FrozenLayers, data: TrainingData, rows: Sequence[int]) -> FirstTokenOnly:
    """Compute the last layer for the first token of each text alone as far as a model's answers stay the same.

    Args: as ``require_same_answers``.
    """
    first = FirstTokenOnly(model, layers)
    if first.parts and _difference(_answers(model, _given(layers, data, rows)), _live(model, data, rows)):
        first.release()
    return first


def only_token(model: nn.Module, layers: FrozenLayers, data: TrainingData, rows: Sequence[int]) -> Token | None:
    """Return the one token of each text whose state decides a model's answers, or None if others do, too, or the model does not read it
    alone: transformers 5.23's BART and T5 ask for the token that ends a text, CANINE pools over several.

    Args: as ``require_same_answers``, of layers that are all frozen.
    """
    assert data.texts is not None, "there is no other input"
    live, alone = _live(model, data, rows), _alone(layers, data, rows)
    tokens: tuple[Token, ...] = ("first", "last")
    for token in tokens:
        one = replace(data, texts=data.texts.only(token)).batch(np.asarray(rows)).inputs
        given_B1D = torch.stack([states[:1] if token == "first" else states[-1:] for states in alone])
        try:
            with examining(hugging_face_model(model)):
                answers = _answers(model, {**one, PREFIX: given_B1D})
        except InputError:
            continue
        if not _difference(answers, live):
            return token
    return None


def _live(model: nn.Module, data: TrainingData, rows: Sequence[int]) -> Output:
    return _answers(model, data.batch(np.asarray(rows)).inputs)


def _given(layers: FrozenLayers, data: TrainingData, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return texts in a padded batch, and in it their states that were computed one by one."""
    left = data.texts is not None and data.texts.pads_left
    states_BLD = pad_sequence(_alone(layers, data, rows), batch_first=True, padding_side="left" if left else "right")
    return {**data.batch(np.asarray(rows)).inputs, PREFIX: states_BLD}


def _alone(layers: FrozenLayers, data: TrainingData, rows: Sequence[int]) -> list[torch.Tensor]:
    """Return the states of texts, [L, D] each, computed one by one."""
    return [layers.states(data.batch(np.array([row])).inputs)[0] for row in rows]


def _answers(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Output:
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output: Output = model(inputs)
    model.train(was_training)
    return output


def _difference(ours: Output, theirs: Output) -> float:
    """Return the largest difference of two answers, or 0 if it comes from the order in which numbers are added up."""
    pairs = ((ours.logits, theirs.logits), (ours.embeddings, theirs.embeddings))
    limits = [LARGEST_DIFFERENCE[theirs.device.type] * max(1.0, float(theirs.abs().max())) for _, theirs in pairs]
    differences = [float((ours - theirs).abs().max()) for ours, theirs in pairs]
    same = all(difference <= limit for difference, limit in zip(differences, limits, strict=True))
    return 0.0 if same else max(differences) or math.nan


def bytes_of_training(plan: ModelPlan, model: nn.Module, *, more_positions: int = 0) -> int:
    """Return an upper estimate of the memory that the training of a plan's model takes in addition to its weights."""
    return training_bytes(
        plan.text_model.config,
        weights=sum(parameter.numel() for parameter in model.parameters()),
        batch_size=plan.optimization.batch_size,
        positions=plan.text_model.max_length + more_positions,
        state_bytes=2 if plan.optimizer == "adamw8bit" else 8,
    )


def _states_fingerprint(plan: ModelPlan, model: nn.Module, layers: FrozenLayers) -> dict[str, Any]:
    """Return what decides the hidden states of a text: the frozen weights, the configuration, the precision of the forward pass."""
    encoder = hugging_face_model(model).base_model
    hasher = xxhash.xxh3_128()
    for name, weight in sorted(layers.weights.items()):
        hasher.update(f"{name} {tuple(weight.shape)} ".encode())
        hasher.update(weight.detach().cpu().contiguous().numpy().tobytes())
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in _OF_THE_HEAD}
    return {
        "states": "hidden states of frozen layers",
        "layers": layers.count,
        "weights": hasher.hexdigest(),
        "encoder": type(encoder).__name__,
        "config": digest(config),
        "dtype": plan.compute.dtype,
    }


def states_of_texts(
    compute: Compute, layers: FrozenLayers, texts: TokenIds, token: Token | None, first: int, rows: NDArray[np.int64]
) -> torch.Tensor:
    """Return the states of the tokens, or of one token, of some texts, [S, D] on the CPU; a column's texts begin at row ``first``."""
    numbers = rows + first
    inputs = texts.padded(numbers, torch.from_numpy(numbers).to(compute.device))
    with compute.autocast():
        states_BLD = layers.states(inputs).cpu()
    is_kept_BL = texts.is_token(numbers)
    if token is not None:
        places = is_kept_BL.argmax(axis=1) if token == "first" else is_kept_BL.shape[1] - 1 - is_kept_BL[:, ::-1].argmax(axis=1)
        is_kept_BL = np.arange(is_kept_BL.shape[1]) == places[:, None]
    return states_BLD[torch.from_numpy(is_kept_BL)]


def _fill(plan: ModelPlan, column: PrefixColumn, states_of: StatesOf, processes: Processes) -> None:
    """Compute what a column lacks, after saying what that takes."""
    texts = round(len(column.lengths_N) * min(1, column.missing_bytes / column.stored_bytes))
    if column.missing_bytes:
        require_room(column)
        if processes.is_first:
            say(
                f"computing hidden states once, for every model with the same frozen layers: {size(column.missing_bytes)} in "
                f"{column.store / column.spec.name}, {texts:,} texts{_estimate(column, states_of, texts)}"
            )
    bar = progress_bar(texts, unit="text", title="prefix", disable=not (texts and processes.is_first))

    def states_with_progress(rows: NDArray[np.int64]) -> torch.Tensor:
        states_SD = states_of(rows)
        bar.update(len(rows))
        return states_SD

    with bar, stop_on_signals(echo_s=processes.echo_s) as stop:
        fill_prefix(column, states_with_progress, stop)


def _estimate(column: PrefixColumn, states_of: StatesOf, texts: int) -> str:
    """Return in words how long the texts take, from the batch in the middle; nothing if there are few batches."""
    if len(column.batches) < _FEW_BATCHES:
        return ""
    middle = column.batches[len(column.batches) // 2]
    start_s = time.perf_counter()
    states_of(middle)
    tokens_per_s = int(column.computed[middle].sum()) / (time.perf_counter() - start_s)
    return f", about {duration(int(column.computed.sum()) * texts / len(column.computed) / tokens_per_s)}"
