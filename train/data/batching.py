"""Which rows a step reads, and which of them each process and each forward pass: plain numbers, drawn before an epoch begins.

Shapes: N examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

# Batches are cut from stretches of that many, ordered by length: enough that lengths agree, few enough that an epoch stays a shuffle.
STRETCH_BATCHES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process feeds in one forward pass.

    Attributes:
        rows: of the examples; at least one.
        weight: the part's share of the step's examples; 0 where another process has the last example and this one only keeps step.
    """

    rows: NDArray[np.int64]
    weight: float


def batches_of_like_length(lengths_N: NDArray[np.int64], batch_size: int, order: torch.Generator) -> list[NDArray[np.int64]]:
    """Return a random partition of 0 … N-1 into batches whose members have like lengths, so that little of what is computed is padding.

    The rows are shuffled, every stretch of 64 batches is sorted by length and cut, and the batches are shuffled again. One batch is
    smaller when the numbers do not divide.
    """
    shuffled = torch.randperm(len(lengths_N), generator=order).numpy()
    stretch = STRETCH_BATCHES * batch_size
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(shuffled), stretch):
        rows = shuffled[start : start + stretch]
        alike = rows[np.argsort(lengths_N[rows], kind="stable")]
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    return [batches[n] for n in torch.randperm(len(batches), generator=order).tolist()]


def epoch_batches(rows: Sequence[int], lengths_N: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the batches of an epoch: every row once, in an order that follows from seed and epoch alone, so that a run that is continued
    needs to remember nothing but its place.

    Args:
        rows: what is learnt from.
        lengths_N: of all texts; nought where the model reads none.
        batch_size: examples of a step, over all processes.
    """
    order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    numbers = np.asarray(rows, np.int64)
    return [numbers[batch] for batch in batches_of_like_length(lengths_N[numbers], batch_size, order)]


def parts_of(batch: NDArray[np.int64], *, rank: int, processes: int, passes: int) -> list[Part]:
    """Return what one process feeds in its forward passes of one step. Over all processes and passes every row is there once.

    Each process takes every ``processes``-th row, so that all have texts of like length, and ``passes`` stretches of those.
    """
    own = batch[rank::processes]
    # A gradient is averaged over the processes, each of which weighs its rows as a share of the whole batch.
    share = processes / len(batch)
    parts = [Part(rows=rows, weight=len(rows) * share) for rows in np.array_split(own, passes) if len(rows)]
    return parts or [Part(rows=batch[:1], weight=0.0)]


def padding_share(lengths_N: NDArray[np.int64], batches: Sequence[NDArray[np.int64]]) -> float:
    """Return the share of padding among the tokens that the batches make a model compute."""
    computed = sum(int(lengths_N[batch].max()) * len(batch) for batch in batches)
    return 1 - sum(int(lengths_N[batch].sum()) for batch in batches) / computed if computed else 0.0
