"""The rows of each step, and of each process and forward pass in it: plain numbers, known before an epoch begins.

Shapes: N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

# Batches are cut from chunks of that many batches, sorted by length: enough for similar lengths, few enough to keep an epoch random.
CHUNK_BATCHES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows of one process in one forward pass.

    Attributes:
        rows: of the examples; at least one.
        weight: the part's share of the step's examples; 0 if there are fewer examples than processes and this one takes part with a row
            that does not count.
    """

    rows: NDArray[np.int64]
    weight: float


def batches_by_length(lengths_N: NDArray[np.int64], batch_size: int, order: torch.Generator) -> list[NDArray[np.int64]]:
    """Return a random partition of 0 … N-1 into batches of similar lengths, so that little of the computation is padding.

    The rows are shuffled, every chunk of 64 batches is sorted by length and cut, and the batches are shuffled again. One batch is
    smaller if N is not a multiple of the batch size.
    """
    shuffled = torch.randperm(len(lengths_N), generator=order).numpy()
    chunk = CHUNK_BATCHES * batch_size
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(shuffled), chunk):
        rows = shuffled[start : start + chunk]
        by_length = rows[np.argsort(lengths_N[rows], kind="stable")]
        batches += [by_length[first : first + batch_size] for first in range(0, len(by_length), batch_size)]
    return [batches[n] for n in torch.randperm(len(batches), generator=order).tolist()]


def epoch_batches(rows: Sequence[int], lengths_N: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the batches of an epoch: every row once, in an order that follows from seed and epoch alone, so that a resumed training
    needs only its position.

    Args:
        rows: the rows to train on.
        lengths_N: of all texts; zero if the model reads none.
        batch_size: examples per step, over all processes.
    """
    order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    numbers = np.asarray(rows, np.int64)
    return [numbers[batch] for batch in batches_by_length(lengths_N[numbers], batch_size, order)]


def parts_of(batch: NDArray[np.int64], *, rank: int, processes: int, passes: int) -> list[Part]:
    """Return the parts of a batch that one process reads in the forward passes of a step. Together they cover every row once.

    Each process takes every ``processes``-th row, so that all have texts of similar length, and cuts them into ``passes`` parts.
    """
    rows_here = batch[rank::processes]
    # Gradients are averaged over the processes, so each one scales its rows by the number of processes.
    share = processes / len(batch)
    parts = [Part(rows=rows, weight=len(rows) * share) for rows in np.array_split(rows_here, passes) if len(rows)]
    return parts or [Part(rows=batch[:1], weight=0.0)]


def padding_share(lengths_N: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> float:
    """Return the share of padding among the tokens that a model computes for the batches."""
    computed = sum(int(lengths_N[batch].max()) * len(batch) for batch in batches)
    return 1 - sum(int(lengths_N[batch].sum()) for batch in batches) / computed if computed else 0.0


def prediction_batches(
    rows: NDArray[np.int64], lengths_R: NDArray[np.int64], batch_size: int, *, most_padding: int | None = None
) -> list[NDArray[np.int64]]:
    """Return rows that are ordered by length, cut into batches.

    Args:
        rows: R of them.
        lengths_R: of their texts.
        batch_size: the most rows of a batch.
        most_padding: the most tokens of padding in a batch; None = any number. With 0 all texts of a batch have the same length.
    """
    batches: list[NDArray[np.int64]] = []
    start = 0
    while start < len(rows):
        lengths = lengths_R[start : start + batch_size]
        end = start + len(lengths)
        if most_padding is not None:
            padding = np.maximum.accumulate(lengths) * np.arange(1, len(lengths) + 1) - lengths.cumsum()  # never falls
            end = start + int(padding.searchsorted(most_padding, side="right"))
        batches.append(rows[start:end])
        start = end
    return batches
