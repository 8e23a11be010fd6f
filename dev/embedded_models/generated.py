"""The encoders' second training: on images that the generator draws for captions from WordNet. In use they see only such soft mixtures,
and no emoji is like them.

Shapes: B images, N generated images, E width of the joint space.
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dev.embedded_models.augmentation import SIDE_PX, Augmentation, augment
from dev.embedded_models.training import Loss, require_same_settings
from dev.embedded_models.vision import GroupClassifier, ImageTower, normalise
from dev.embedded_models.words import contrastive
from featurize.generate.presets import PRESETS
from lugpi_core.command_line import say
from lugpi_core.files import whole_file

STEPS, GUIDANCE = PRESETS["demo"].steps, PRESETS["demo"].guidance
_BATCH = 64
_SAVE_EVERY_S = 60.0
_MODERATE = Augmentation(scale=(0.9, 1.1), shift=0.05, flip=True, light=0.1)


def choose_captions(count: int, most: int, *, seed: int) -> list[int]:
    """Return the numbers of at most ``most`` of ``count`` captions."""
    return random.Random(seed).sample(range(count), min(count, most))


def generate_images(captions: Sequence[str], make_pipeline: Callable[[], Any], path: Path, *, seed: int) -> torch.Tensor:
    """Return an image of each caption: uint8 RGBA [N, 4, 64, 64], opaque. Continues with those that ``path`` already has.

    Raises:
        InputError: ``path`` was written with other settings.
    """
    settings = {"count": len(captions), "steps": STEPS, "guidance": GUIDANCE, "seed": seed}
    images = torch.empty(0, 4, SIDE_PX, SIDE_PX, dtype=torch.uint8)
    if path.is_file():
        state = torch.load(path, weights_only=True)
        require_same_settings(state["settings"], settings, path)
        images = state["drawn"]
    if len(images) == len(captions):
        return images
    pipeline, parts, done, saved_at = make_pipeline(), [images], len(images), time.monotonic()
    pipeline.set_progress_bar_config(disable=True)
    while done < len(captions):
        parts.append(_generate(pipeline, captions[done : done + _BATCH], seed + done))
        done += len(parts[-1])
        if done == len(captions) or time.monotonic() - saved_at > _SAVE_EVERY_S:
            parts, saved_at = [torch.cat(parts)], time.monotonic()
            say(f"drawings: {done:,} of {len(captions):,}")
            with whole_file(path) as partial:
                torch.save({"settings": settings, "drawn": parts[0]}, partial)
    return torch.cat(parts)


def _generate(pipeline: Any, captions: Sequence[str], seed: int) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(captions))]
    images_B3HW = pipeline(
        list(captions), num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt"
    ).images
    images = (images_B3HW * 255).round().to(torch.uint8)
    return torch.cat([images, torch.full_like(images[:, :1], 255)], dim=1)


class GeneratedClipLoss:
    """Contrastive loss of generated images and their captions, averaged with the loss of the first training."""

    def __init__(self, tower: ImageTower, images_N4HW: torch.Tensor, joint_NE: torch.Tensor, before: Loss, batch: int) -> None:
        self._tower, self._images, self._before, self._batch = tower, images_N4HW, before, batch
        self._joint = nn.functional.normalize(joint_NE, dim=-1)

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._images), (self._batch,), generator=chance)
        images = normalise(augment(self._images[numbers], _MODERATE, chance))
        image_BE = nn.functional.normalize(self._tower.visual(images), dim=-1)
        joint_BE = self._joint[numbers]
        same = (numbers[:, None] == numbers[None, :]).float()
        return (contrastive(image_BE, joint_BE, same, self._tower.scale) + self._before(chance)) / 2


class GeneratedGroupLoss:
    """Cross entropy of the group of the emoji nearest to each image's caption, averaged with the loss of the first training."""

    def __init__(self, classifier: GroupClassifier, images_N4HW: torch.Tensor, groups_N: torch.Tensor, before: Loss, batch: int) -> None:
        self._classifier, self._images, self._groups, self._before, self._batch = classifier, images_N4HW, groups_N, before, batch

    def __call__(self, chance: torch.Generator) -> torch.Tensor:
        """Return the loss of one batch."""
        numbers = torch.randint(len(self._images), (self._batch,), generator=chance)
        images = normalise(augment(self._images[numbers], _MODERATE, chance))
        loss = nn.functional.cross_entropy(self._classifier(images), self._groups[numbers], label_smoothing=0.1)
        return (loss + self._before(chance)) / 2
