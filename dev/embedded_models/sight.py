"""What words look like: the text tower learns to predict the latents of a caption's image, before the UNet is trained.

The tower learns the names of images sooner than a UNet does: it has a vector for each token to store them in, and no noise between text and
image. The UNet reads this tower and only has to draw what the tower predicts.

Shapes: B captions, L tokens, D width of the tower, F values of one image's latents.
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch import nn

from dev.embedded_models.words import WIDTH, Tower, pad

OWN_SHARE = 0.5  # of captions: those of the image itself, not from WordNet
_POOL = 8  # batches that are sampled at once and sorted by length


class SightTower(nn.Module):
    """A text tower with a linear map from its states to latents."""

    def __init__(self, tower: Tower, values: int) -> None:
        super().__init__()
        self.model = tower.model
        self.looks = nn.Linear(WIDTH, values)

    def forward(self, ids_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents [B, F] from the state at the text's end, and from that of the last padding, which a pipeline's UNet reads too."""
        states = self.model(input_ids=ids_BL)
        return self.looks(states.pooler_output), self.looks(states.last_hidden_state[:, -1])


# Samples the numbers of a caption and of its image.
SamplePair = Callable[[random.Random], tuple[int, int]]


class SightLoss:
    """The share of the latents' variance that the caption does not predict."""

    def __init__(
        self, model: SightTower, captions: Sequence[torch.Tensor], padding: int, latents_NF: torch.Tensor, pair: SamplePair
    ) -> None:
        self._model, self._captions, self._padding, self._pair = model, captions, padding, pair
        self._latents = latents_NF - latents_NF.mean(dim=0)
        self._variance = self._latents.var()
        self._lengths = [len(caption) for caption in captions]

    def of(self, batch: int) -> Callable[[torch.Generator], torch.Tensor]:
        """Return the loss function of batches of this size."""

        def loss(chance: torch.Generator) -> torch.Tensor:
            chosen = pairs_of_one_length(self._pair, self._lengths, batch, random.Random(chance.initial_seed()))
            targets = self._latents[[picture for _, picture in chosen]]
            ids_BL = pad([self._captions[caption] for caption, _ in chosen], self._padding)
            errors = [nn.functional.mse_loss(predicted, targets) for predicted in self._model(ids_BL)]
            return torch.stack(errors).mean() / self._variance

        return loss


def pairs_of_one_length(pair: SamplePair, lengths: Sequence[int], batch: int, chance: random.Random) -> list[tuple[int, int]]:
    """Return a batch of captions and images whose captions are of similar length, so that little of it is padding.

    Args:
        pair: samples the numbers of a caption and of its image.
        lengths: of the captions, in tokens.
        batch: how many.
        chance: of the batch.
    """
    pool = sorted((pair(chance) for _ in range(_POOL * batch)), key=lambda one: (lengths[one[0]], one))
    start = chance.randrange(len(pool) - batch + 1)
    return pool[start : start + batch]


def nearest_images(own: Sequence[Sequence[int]], near: Sequence[Sequence[int]], joint_TE: torch.Tensor) -> list[tuple[int, int]]:
    """Return each caption from WordNet with the one of its images whose own captions are, on average, nearest to it. With several targets
    for one caption, the UNet would learn to draw their mean.

    Args:
        own: for each image, the numbers of its own captions.
        near: for each caption from WordNet, its number and those of its images.
        joint_TE: of every caption.
    """
    means_NE = nn.functional.normalize(torch.stack([joint_TE[torch.tensor(captions)].mean(dim=0) for captions in own]), dim=-1)
    return [(caption, max(pictures, key=lambda picture: float(means_NE[picture] @ joint_TE[caption]))) for caption, *pictures in near]


def pairs(own: Sequence[Sequence[int]], nearest: Sequence[tuple[int, int]], *, own_share: float) -> SamplePair:
    """Return a function that samples a caption and its image: ``own_share`` of them an image's own, the others from WordNet.

    Args:
        own: for each image, the numbers of its own captions.
        nearest: for each caption from WordNet, its number and that of its image.
        own_share: all of them if there is nothing from WordNet.
    """

    def pair(chance: random.Random) -> tuple[int, int]:
        if chance.random() < own_share or not nearest:
            picture = chance.randrange(len(own))
            return chance.choice(own[picture]), picture
        return chance.choice(nearest)

    return pair
