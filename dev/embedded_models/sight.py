"""What words look like: the text tower learns to tell the latents of the picture that a caption is of, before anything is drawn.

A tower of words learns the names of pictures sooner than a UNet does, for it has the size of its vocabulary to keep them in, and no noise
between it and the picture. The UNet, which reads this tower, then only paints what it is told.

Shapes: B captions, L tokens, D width of the tower, F values of one picture's latents.
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dev.embedded_models.words import WIDTH, Tower, padded

OWN_SHARE = 0.5  # of captions, those that are said of a picture itself
_POOL = 8  # batches drawn at once and sorted by length


class SeeingTower(nn.Module):
    """A text tower with a linear map from its states to latents."""

    def __init__(self, tower: Tower, values: int) -> None:
        super().__init__()
        self.model = tower.model
        self.looks = nn.Linear(WIDTH, values)

    def forward(self, ids_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents [B, F] by the state at the text's end, and by that of the last padding, which a pipeline's UNet reads too."""
        read = self.model(input_ids=ids_BL)
        return self.looks(read.pooler_output), self.looks(read.last_hidden_state[:, -1])


# The numbers of a caption and of its picture.
DrawPair = Callable[[random.Random], tuple[int, int]]


class SightLoss:
    """The share of the latents' variance that a caption does not tell."""

    def __init__(
        self, model: SeeingTower, captions: Sequence[torch.Tensor], padding: int, latents_NF: torch.Tensor, pair: DrawPair
    ) -> None:
        self._model, self._captions, self._padding, self._pair = model, captions, padding, pair
        self._latents = latents_NF - latents_NF.mean(dim=0)
        self._variance = self._latents.var()

    def of(self, batch: int) -> Callable[[torch.Generator], torch.Tensor]:
        """Return the loss of one batch of a size."""

        def loss(chance: torch.Generator) -> torch.Tensor:
            captions, pictures = self._rows(batch, random.Random(chance.initial_seed()))
            wanted = self._latents[pictures]
            errors = [nn.functional.mse_loss(told, wanted) for told in self._model(padded(captions, self._padding))]
            return torch.stack(errors).mean() / self._variance

        return loss

    def _rows(self, batch: int, chance: random.Random) -> tuple[list[torch.Tensor], list[int]]:
        pool = sorted((self._pair(chance) for _ in range(_POOL * batch)), key=lambda pair: (len(self._captions[pair[0]]), pair))
        start = chance.randrange(len(pool) - batch + 1)
        chosen = pool[start : start + batch]
        return [self._captions[caption] for caption, _ in chosen], [picture for _, picture in chosen]


def nearest_in_words(own: Sequence[Sequence[int]], near: Sequence[Sequence[int]], joint_TE: torch.Tensor) -> list[tuple[int, int]]:
    """Return each caption from WordNet with the one of its pictures whose own captions, on the mean, say most nearly the same: to learn
    that either of two is right is to draw the mean of both.

    Args:
        own: for each picture, the numbers of its own captions.
        near: for each caption from WordNet, its number and those of its pictures.
        joint_TE: of every caption.
    """
    means_NE = nn.functional.normalize(torch.stack([joint_TE[torch.tensor(captions)].mean(dim=0) for captions in own]), dim=-1)
    return [(caption, max(pictures, key=lambda one: float(means_NE[one] @ joint_TE[caption]))) for caption, *pictures in near]


def pairs(own: Sequence[Sequence[int]], nearest: Sequence[tuple[int, int]], *, own_share: float) -> DrawPair:
    """Return what draws a caption with its picture: ``own_share`` of them a picture's own, the others from WordNet.

    Args:
        own: for each picture, the numbers of its own captions.
        nearest: for each caption from WordNet, its number and that of its picture.
        own_share: all of them where there is nothing from WordNet.
    """

    def pair(chance: random.Random) -> tuple[int, int]:
        if chance.random() < own_share or not nearest:
            picture = chance.randrange(len(own))
            return chance.choice(own[picture]), picture
        return chance.choice(nearest)

    return pair
