"""What transformers that read latents as an image have in common: sizes, doubled rows, and latents that are carried as they are stored.

Shapes: B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Family, PromptEmbeddings, Step
from lugpi_core.errors import InputError


class ImageTransformer(Family):
    """A pipeline whose transformer reads latents [B, C, h, w]. With guidance, the rows of the unguided half come first.

    Attributes:
        patch_default: of the transformer's class, where its configuration does not say it.
    """

    patch_default: ClassVar[int] = 2

    def check(self) -> None:
        """Check that the transformer reads what the decoder decodes.

        Raises:
            InputError: it does not.
        """
        if self.channels != (decoded := int(self.vae.get("latent_channels", 4))):
            raise InputError(
                got=f"{self.folder}, whose transformer reads latents of {self.channels} channels, and whose vae decodes {decoded}",
                expected="one number of channels",
                do="choose a text-to-image model, or restore transformer/ and vae/ from one model",
            )

    @property
    def transformer(self) -> Mapping[str, Any]:
        """Configuration of the transformer."""
        return self.configs["transformer"]

    @property
    def vae(self) -> Mapping[str, Any]:
        """Configuration of the decoder."""
        return self.configs["vae"]

    @property
    def cell_px(self) -> int:
        """Pixels of a latent cell's side."""
        stages: Sequence[int] = self.vae.get("encoder_block_out_channels") or self.vae.get("block_out_channels") or (1,) * 4
        return 1 << (len(stages) - 1)

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.transformer["in_channels"])

    @property
    def native_px(self) -> int:
        return int(self.transformer["sample_size"]) * self.cell_px

    @property
    def multiple_px(self) -> int:
        return self.cell_px * int(self.transformer.get("patch_size", self.patch_default))

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        return self.channels, size_px // self.cell_px, size_px // self.cell_px


class LearnedVariance(ImageTransformer):
    """A pipeline whose transformer may give a learned variance, as many channels behind the prediction, which is not read."""

    def step(self, scheduler: Any, predicted: torch.Tensor, step: Step, latents: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        """Return the latents after a step along the prediction alone."""
        return super().step(scheduler, first_half_of_channels(predicted, self.channels), step, latents, extra)


def doubled(embeddings: PromptEmbeddings, negative: PromptEmbeddings | None) -> PromptEmbeddings:
    """Return the embeddings of all rows of a batch: those of the unguided half first, if there is one."""
    return embeddings if negative is None else PromptEmbeddings.joined([negative, embeddings])


def first_half_of_channels(predicted: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a prediction without its learned variance, which are as many channels behind it."""
    return predicted.chunk(2, dim=1)[0] if predicted.shape[1] // 2 == channels else predicted
