"""The privileged information of each example: its own images, or, as a control, those of other examples, blank ones or none.

The controls keep everything else: teacher, head, schedule, sequence length. A gain that a teacher also has with other examples' images does
not come from image content.

Shapes: N examples, K images each, B in a batch, T image tokens, I width of the image tokens.
"""

from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.store.example_table import NO_IMAGE
from lugpi_core.store.reader import Rows
from train.data.image_tokens import TokenSource

_ROUNDS = 100
# The name of a batch's rows that have an image, where not all examples have one.
HAS_IMAGE = "has_image"


class PrivilegedImages:
    """The image tokens of each example.

    Args:
        source: where they are read.
        drawings: int64 [N, K], the rows of each example's images in the source. In place of an example's that has none, any row.
        seed: decides which of K images an epoch reads.
        has_image_N: bool on the training device, which examples have images; None = all, and the model has no tokens for the others.
    """

    def __init__(self, *, source: TokenSource, drawings: NDArray[np.int64], seed: int, has_image_N: torch.Tensor | None = None) -> None:
        self.source, self.drawings, self._seed, self.has_image_N = source, drawings, seed, has_image_N
        self._of_epoch: tuple[int, NDArray[np.int64]] | None = None
        self._redraw: int | None = None

    def redrawn_every(self, epochs: int) -> "PrivilegedImages":
        """Return the same images, each of them read for so many epochs before the next one of its example."""
        images = copy(self)
        images._redraw, images._of_epoch = epochs, None
        return images

    def gather(self, rows: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        """Return float16 [B, T, I] on the training device: of K images the one of that epoch, or the first if None; zeros where there is
        none."""
        return self._without_others(self.source.gather(self._chosen(epoch)[rows]), rows)

    def ahead(self, batches: Sequence[NDArray[np.int64]], epoch: int | None) -> Iterator[NDArray[np.int64]]:
        """Yield the batches in order, prefetching the tokens of the following ones if that helps."""
        chosen = self._chosen(epoch)
        for rows, _ in zip(batches, self.source.ahead([chosen[rows] for rows in batches]), strict=True):
            yield rows

    def _without_others(self, tokens_BTI: torch.Tensor, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the tokens with zeros in the rows of examples that have no image, in whose place another's was read."""
        if self.has_image_N is None:
            return tokens_BTI
        rows_B = torch.from_numpy(rows)
        if tokens_BTI.device.type == "cuda":
            rows_B = rows_B.pin_memory().to(tokens_BTI.device, non_blocking=True)
        return tokens_BTI.masked_fill(~self.has_image_N[rows_B][:, None, None], 0)

    def _chosen(self, epoch: int | None) -> NDArray[np.int64]:
        if epoch is None or self.drawings.shape[1] == 1:
            return self.drawings[:, 0]
        if self._of_epoch is None or self._of_epoch[0] != epoch:
            if self._redraw is None:
                chosen = one_of_each(self.drawings, self._seed, epoch)
            else:
                chosen = next_of_each(self.drawings, self._seed, epoch // self._redraw)
            self._of_epoch = (epoch, chosen)
        return self._of_epoch[1]


class WeightedImages(PrivilegedImages):
    """The weighted mean of the image tokens of each example.

    Args:
        source: where they are read.
        drawings: int64 [N, K], the rows of each example's images in the source.
        weights_NK: of each image; where all of an example are 0, its tokens are blank, as images that failed are.
        has_image_N: as for ``PrivilegedImages``.
    """

    def __init__(
        self,
        *,
        source: TokenSource,
        drawings: NDArray[np.int64],
        weights_NK: NDArray[np.float64],
        has_image_N: torch.Tensor | None = None,
    ) -> None:
        super().__init__(source=source, drawings=drawings, seed=0, has_image_N=has_image_N)
        self._weights_NK = torch.from_numpy(weights_NK).float()

    def gather(self, rows: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        """Return float16 [B, T, I] on the training device; the mean is computed in float32. Holds the K images of each row meanwhile."""
        tokens_MTI = self.source.gather(self.drawings[rows].reshape(-1))
        weights_BK = self._weights_NK[torch.from_numpy(rows)]
        if tokens_MTI.device.type == "cuda":
            weights_BK = weights_BK.pin_memory().to(tokens_MTI.device, non_blocking=True)
        tokens_BKTI = tokens_MTI.reshape(*weights_BK.shape, *tokens_MTI.shape[1:])
        return torch.einsum("bk,bkti->bti", weights_BK, tokens_BKTI.float()).half()

    def ahead(self, batches: Sequence[NDArray[np.int64]], epoch: int | None) -> Iterator[NDArray[np.int64]]:
        """Yield the batches in order, prefetching the tokens of the following ones if that helps."""
        for rows, _ in zip(batches, self.source.ahead([self.drawings[rows].reshape(-1) for rows in batches]), strict=True):
            yield rows


def usable_images(drawings_NK: NDArray[np.int64], failed: Sequence[int]) -> NDArray[np.bool_]:
    """Return which images of each example count, bool [N, K]: each distinct one once, and one that failed or was not drawn not at all."""
    usable_NK = ~np.isin(drawings_NK, np.array([NO_IMAGE, *failed], np.int64))
    for place in range(1, drawings_NK.shape[1]):
        usable_NK[:, place] &= ~(drawings_NK[:, :place] == drawings_NK[:, place : place + 1]).any(axis=1)
    return usable_NK


def mean_weights(usable_NK: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the weights of the mean of the usable images, float64 [N, K]."""
    weights_NK: NDArray[np.float64] = usable_NK / np.maximum(usable_NK.sum(axis=1, keepdims=True), 1)
    return weights_NK


def agreement_weights(scores_NK: NDArray[np.float32], usable_NK: NDArray[np.bool_], logit_scale: float) -> NDArray[np.float64]:
    """Return the softmax of ``logit_scale`` times the scores of the usable images, float64 [N, K]; 0 where none is usable."""
    logits_NK = np.where(usable_NK, logit_scale * scores_NK.astype(np.float64), -np.inf)
    highest_N1 = logits_NK.max(axis=1, keepdims=True)
    shares_NK = np.exp(logits_NK - np.where(np.isfinite(highest_N1), highest_N1, 0))
    weights_NK: NDArray[np.float64] = shares_NK / np.maximum(shares_NK.sum(axis=1, keepdims=True), 1)
    return weights_NK


def one_of_each(drawings_NK: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return one image of every example, int64 [N], chosen at random from seed and epoch alone."""
    examples, several = drawings_NK.shape
    number = np.random.default_rng([seed, epoch]).integers(several, size=examples)
    chosen: NDArray[np.int64] = drawings_NK[np.arange(examples), number]
    return chosen


def next_of_each(drawings_NK: NDArray[np.int64], seed: int, turn: int) -> NDArray[np.int64]:
    """Return one image of every example, int64 [N]: in each turn another of its distinct ones, then again from the first on, in an order of
    the example's own that follows from the seed."""
    examples, several = drawings_NK.shape
    order_NK = np.random.default_rng([seed, 2]).permuted(np.tile(np.arange(several), (examples, 1)), axis=1)  # [seed, 1] orders others
    # Passages of a short text fill up its K places with the same images again: these places come last, and have no turn.
    distinct_NK = usable_images(drawings_NK, ())
    is_again_NK = ~np.take_along_axis(distinct_NK, order_NK, axis=1)
    order_NK = np.take_along_axis(order_NK, np.argsort(is_again_NK, axis=1, kind="stable"), axis=1)
    rows_N = np.arange(examples)
    chosen: NDArray[np.int64] = drawings_NK[rows_N, order_NK[rows_N, turn % np.maximum(distinct_NK.sum(axis=1), 1)]]
    return chosen


def of_others(drawings_NK: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the images of the examples in another order, int64 [N, K]; no example keeps its own image whenever that is possible.

    Examples are shuffled, not images: if many examples share one image, as in the CWI corpora, a fixed replacement of each image would
    still identify them.
    """
    return drawings_NK[order_of_others(drawings_NK, seed)]


def order_of_others(drawings_NK: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return of which example ``of_others`` gives each example the images, int64 [N]. Those without images stay without."""
    has_image = np.flatnonzero(drawings_NK[:, 0] != NO_IMAGE)
    order = np.arange(len(drawings_NK))
    order[has_image] = has_image[_order_of_others(drawings_NK[has_image], seed)]
    return order


def _order_of_others(drawings_NK: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    generator = np.random.default_rng([seed, 1])  # not the permutation by which corpora are split
    own = drawings_NK[:, 0]
    order = generator.permutation(len(own))
    for _ in range(_ROUNDS):
        kept = np.flatnonzero(own[order] == own)
        if not len(kept):
            break
        for row, other in zip(kept, generator.integers(len(own), size=len(kept)), strict=True):
            # Only if the other example does not get its own image.
            if own[order[row]] == own[row] and own[order[other]] != own[row] and own[order[row]] != own[other]:
                order[[row, other]] = order[[other, row]]
    else:
        order = _rotated(own, generator)
    return order


def _rotated(own_N: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return an order in which no example keeps its image, provided that no image belongs to more than half of them: the rows sorted by
    image, in random order within each, rotated by the count of the most frequent image."""
    shuffled = generator.permutation(len(own_N))
    by_drawing = shuffled[np.argsort(own_N[shuffled], kind="stable")]
    order = np.empty_like(by_drawing)
    order[by_drawing] = np.roll(by_drawing, int(np.unique(own_N, return_counts=True)[1].max()))
    return order


class BlankTokens:
    """Tokens without information: zeros in the shape of the real ones. Holds nothing."""

    place = "nowhere"

    def __init__(self, row_shape: tuple[int, ...], device: torch.device) -> None:
        self._row_shape, self._device = row_shape, device

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return float16 [B, T, I] of zeros on the device."""
        return torch.zeros((len(drawings), *self._row_shape), dtype=torch.float16, device=self._device)

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches: there is nothing to read."""
        return iter(batches)
