"""Augmentation: images on backgrounds, with random size, position, flip, blur and light."""

from dataclasses import dataclass

import torch
from torch import nn

SIDE_PX = 64


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How images vary.

    Attributes:
        scale: range of the share of the side that an image fills.
        shift: largest shift, as a share of the side.
        flip: whether half of the images are mirrored.
        coloured: share of backgrounds that are not white.
        blurred: share of images that lose detail, as generated images do.
        light: largest change of brightness and contrast.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    flip: bool = False
    coloured: float = 0.0
    blurred: float = 0.0
    light: float = 0.0


CENTRED = Augmentation()
STRONG = Augmentation(scale=(0.75, 1.1), shift=0.06, flip=True, coloured=0.2, blurred=0.5, light=0.1)


def augment(images_B4PP: torch.Tensor, how: Augmentation, chance: torch.Generator) -> torch.Tensor:
    """Return images [B, 3, 64, 64] in [0, 1] from images uint8 RGBA [B, 4, P, P]."""
    count = len(images_B4PP)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape or (count,), generator=chance)

    rgba = images_B4PP.float() / 255
    solid = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)  # the colours of transparent pixels mean nothing
    size = 1 / uniform(*how.scale)
    mirror = torch.where(torch.rand(count, generator=chance) < 0.5, -1.0, 1.0) if how.flip else torch.ones(count)
    zero = torch.zeros(count)
    across, down = 2 * uniform(-how.shift, how.shift) * size, 2 * uniform(-how.shift, how.shift) * size
    at = torch.stack([torch.stack([size * mirror, zero, across], dim=1), torch.stack([zero, size, down], dim=1)], dim=1)
    small = nn.functional.interpolate(solid, size=(SIDE_PX, SIDE_PX), mode="bilinear", antialias=True, align_corners=False)
    grid = nn.functional.affine_grid(at, [count, 4, SIDE_PX, SIDE_PX], align_corners=False)
    rgba_B4HW = nn.functional.grid_sample(small, grid, align_corners=False)
    background = torch.ones(count, 3, 1, 1)
    other = torch.rand(count, generator=chance) < how.coloured
    background[other] = uniform(0.3, 1.0, int(other.sum()), 3, 1, 1)
    images = rgba_B4HW[:, :3] + (1 - rgba_B4HW[:, 3:]) * background
    if how.blurred:
        images = torch.where((torch.rand(count, generator=chance) < how.blurred)[:, None, None, None], _blurred(images), images)
    if how.light:
        images = images * uniform(1 - how.light, 1 + how.light, count, 1, 1, 1) + uniform(-how.light, how.light, count, 1, 1, 1) / 2
    return images.clamp(0, 1)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    half = nn.functional.avg_pool2d(images, 2)
    return nn.functional.interpolate(half, size=images.shape[2:], mode="bilinear", align_corners=False)
