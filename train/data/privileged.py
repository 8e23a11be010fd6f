"""What a model sees of each example beside its text: its own pictures, or, as a control, those of others, blank ones or none.

The controls keep everything else: teacher, head, schedule, length of the sequence. What a teacher gains with pictures that are not its
examples', it does not gain from seeing.

Shapes: N examples, K drawings each, B in a batch, T image tokens, I width of the image tokens.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.store.reader import Rows
from train.data.image_tokens import TokenSource

_ROUNDS = 100


class Pictures:
    """The image tokens of each example.

    Args:
        source: where they are read from.
        drawings: int64 [N, K], the rows of each example's drawings in the source.
        seed: decides which of K drawings an epoch shows.
    """

    def __init__(self, *, source: TokenSource, drawings: NDArray[np.int64], seed: int) -> None:
        self.source, self.drawings, self._seed = source, drawings, seed
        self._of_epoch: tuple[int, NDArray[np.int64]] | None = None

    def gather(self, rows: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        """Return float16 [B, T, I] on the training's device: of K drawings the one of that epoch, or the first when None."""
        return self.source.gather(self._shown(epoch)[rows])

    def ahead(self, batches: Sequence[NDArray[np.int64]], epoch: int | None) -> Iterator[NDArray[np.int64]]:
        """Yield the batches in order, the tokens of those that follow being fetched meanwhile where that helps."""
        shown = self._shown(epoch)
        for rows, _ in zip(batches, self.source.ahead([shown[rows] for rows in batches]), strict=True):
            yield rows

    def _shown(self, epoch: int | None) -> NDArray[np.int64]:
        if epoch is None or self.drawings.shape[1] == 1:
            return self.drawings[:, 0]
        if self._of_epoch is None or self._of_epoch[0] != epoch:
            self._of_epoch = (epoch, one_of_each(self.drawings, self._seed, epoch))
        return self._of_epoch[1]


def one_of_each(drawings_NK: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return one drawing of every example, int64 [N], drawn anew for every epoch from seed and epoch alone."""
    examples, several = drawings_NK.shape
    chosen = np.random.default_rng([seed, epoch]).integers(several, size=examples)
    shown: NDArray[np.int64] = drawings_NK[np.arange(examples), chosen]
    return shown


def of_others(drawings_NK: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the drawings of the examples in another order, int64 [N, K], so that no example keeps its own as long as that can be had.

    Examples are shuffled one by one, not drawing by drawing: where many share one drawing, as in the CWI corpora, a drawing that always
    stood for the same other one would still tell them apart.
    """
    generator = np.random.default_rng([seed, 1])  # not the permutation by which corpora are split
    own = drawings_NK[:, 0]
    order = generator.permutation(len(own))
    for _ in range(_ROUNDS):
        kept = np.flatnonzero(own[order] == own)
        if not len(kept):
            break
        for row, other in zip(kept, generator.integers(len(own), size=len(kept)), strict=True):
            # Only where the other example does not get its own back.
            if own[order[row]] == own[row] and own[order[other]] != own[row] and own[order[row]] != own[other]:
                order[[row, other]] = order[[other, row]]
    else:
        order = _rotated(own, generator)
    return drawings_NK[order]


def _rotated(own_N: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return an order in which no example keeps its drawing as long as none belongs to more than half of them: all rows by their drawings,
    in random order among equals, moved on by as many as share the most frequent one."""
    shuffled = generator.permutation(len(own_N))
    by_drawing = shuffled[np.argsort(own_N[shuffled], kind="stable")]
    order = np.empty_like(by_drawing)
    order[by_drawing] = np.roll(by_drawing, int(np.unique(own_N, return_counts=True)[1].max()))
    return order


class BlankTokens:
    """Tokens that say nothing: nought, in the shape of the real ones. Holds nothing."""

    place = "nowhere"

    def __init__(self, row_shape: tuple[int, ...], device: torch.device) -> None:
        self._row_shape, self._device = row_shape, device

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return float16 [B, T, I] of zeros on the device."""
        return torch.zeros((len(drawings), *self._row_shape), dtype=torch.float16, device=self._device)

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches: there is nothing to fetch."""
        return iter(batches)
