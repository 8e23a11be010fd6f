"""The encoders' second school: what the generator draws of captions from WordNet. Soft mixtures are all that they see afterwards, and none
of them is among the emoji.

Shapes: B pictures, N drawings, E width of the joint space.
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dev.embedded_models.placing import SIDE_PX, Placing, placed
from dev.embedded_models.training import Loss, require_same
from dev.embedded_models.vision import GroupTeller, PictureTower, normalised
from dev.embedded_models.words import contrastive
from featurize.generate.generators import PRESETS
from lugpi_core.command_line import say
from lugpi_core.files import whole_file

STEPS, GUIDANCE = PRESETS["demo"].steps, PRESETS["demo"].guidance
_BATCH = 64
_SAVED_EVERY_S = 60.0
_MOVED = Placing(scale=(0.9, 1.1), shift=0.05, flip=True, light=0.1)


def chosen(count: int, most: int, *, seed: int) -> list[int]:
    """Return the numbers of the captions that are drawn, ``most`` of ``count``."""
    return random.Random(seed).sample(range(count), min(count, most))


def drawings(captions: Sequence[str], make_pipeline: Callable[[], Any], path: Path, *, seed: int) -> torch.Tensor:
    """Return drawings of the captions, uint8 RGBA [N, 4, 64, 64] without anything to see through, from ``path`` as far as they are there.

    Raises:
        InputError: what is there was drawn otherwise.
    """
    settings = {"count": len(captions), "steps": STEPS, "guidance": GUIDANCE, "seed": seed}
    drawn = torch.empty(0, 4, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    if path.is_file():
        state = torch.load(path, weights_only=True)
        require_same(state["settings"], settings, path)
        drawn = state["drawn"]
    if len(drawn) == len(captions):
        return drawn
    pipeline, parts, done, saved_at = make_pipeline(), [drawn], len(drawn), time.monotonic()
    pipeline.set_progress_bar_config(disable=True)
    while done < len(captions):
        parts.append(_drawn(pipeline, captions[done : done + _BATCH], seed + done))
        done += len(parts[-1])
        if done == len(captions) or time.monotonic() - saved_at > _SAVED_EVERY_S:
            parts, saved_at = [torch.cat(parts)], time.monotonic()
            say(f"drawings: {done:,} of {len(captions):,}")
            with whole_file(path) as partial:
                torch.save({"settings": settings, "drawn": parts[0]}, partial)
    return torch.cat(parts)


def _drawn(pipeline: Any, captions: Sequence[str], seed: int) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(captions))]
    images_B3HW = pipeline(
        list(captions), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt"
    ).images
    pictures = (images_B3HW * 255).round().to(torch.uint8)
    return torch.cat([pictures, torch.full_like(pictures[:, :1], 255)], dim=1)


class DrawnClipLoss:
    """Drawings against the caption of each, and with the same weight what was learnt before."""

    def __init__(self, tower: PictureTower, drawn_N4HW: torch.Tensor, joint_NE: torch.Tensor, before: Loss, batch: int) -> None:
        self._tower, self._drawn, self._before, self._batch = tower, drawn_N4HW, before, batch
        self._joint = nn.functional.normalize(joint_NE, dim=-1)

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._drawn), (self._batch,), generator=chance)
        images = normalised(placed(self._drawn[numbers], _MOVED, chance))
        seen_BE = nn.functional.normalize(self._tower.visual(images), dim=-1)
        joint_BE = self._joint[numbers]
        same = (numbers[:, None] == numbers[None, :]).float()
        return (contrastive(seen_BE, joint_BE, same, self._tower.scale) + self._before(chance)) / 2


class DrawnGroupLoss:
    """Drawings and the group of the emoji that the caption of each is nearest to, and with the same weight what was learnt before."""

    def __init__(self, teller: GroupTeller, drawn_N4HW: torch.Tensor, groups_N: torch.Tensor, before: Loss, batch: int) -> None:
        self._teller, self._drawn, self._groups, self._before, self._batch = teller, drawn_N4HW, groups_N, before, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._drawn), (self._batch,), generator=chance)
        images = normalised(placed(self._drawn[numbers], _MOVED, chance))
        told = nn.functional.cross_entropy(self._teller(images), self._groups[numbers], label_smoothing=0.1)
        return (told + self._before(chance)) / 2
