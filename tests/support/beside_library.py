"""A generator's folder, run by lugpi and by diffusers' own pipeline from the same noise."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.runtime.device import resolve_compute
from tests.support.tiny_pipelines import library_pipeline

SHORT = "A Cat in the SEA"
LONG = "snow over an old town, of which nobody knows any more who built it, " * 24
PROMPTS = ("two dogs & a #123 bird-house", LONG, "")


@dataclass(frozen=True)
class Drawn:
    """Latents [B, C, h, w] and images [B, 3, H, W] in [0, 1], float32."""

    latents: torch.Tensor
    images: torch.Tensor

    @staticmethod
    def joined(parts: Sequence["Drawn"]) -> "Drawn":
        """Return the rows of all parts, in order."""
        return Drawn(torch.cat([part.latents for part in parts]), torch.cat([part.images for part in parts]))

    def is_bitwise(self, other: "Drawn") -> bool:
        """Whether every number is the same."""
        return torch.equal(self.latents, other.latents) and torch.equal(self.images, other.images)

    def is_close(self, other: "Drawn") -> bool:
        """Whether latents differ by at most 1e-5 of their largest value, and images by 1e-4 on their scale of [0, 1]."""
        latents = (self.latents - other.latents).abs().max() / other.latents.abs().max()
        return bool(latents <= 1e-5) and bool((self.images - other.images).abs().max() <= 1e-4)


class BesideLibrary:
    """One folder, two readers.

    Args:
        folder: of ``tiny_pipeline``.
        call: what the library's pipeline is told besides prompts, size, steps and guidance.
        size_px: side of the images.
        as_stored: gives the library's latents the shape in which ours are stored.
        from_noise: gives noise [B, C, h, w] the form of the library's ``latents``; without it the library draws it itself, with a generator
            for each image.
        dtype: of all models. The library must load them in it: its ``to`` converts buffers too, such as positions, and gives other images.
    """

    def __init__(
        self,
        folder: Path,
        *,
        call: Mapping[str, Any] | None = None,
        size_px: int = 64,
        as_stored: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents,
        from_noise: Callable[[torch.Tensor], torch.Tensor] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.folder, self.size_px, self._dtype = folder, size_px, dtype
        self.pipeline = library_pipeline(folder, dtype=getattr(torch, dtype))
        self._call, self._as_stored, self._from_noise = call or {}, as_stored, from_noise

    def loaded(self, steps: int, guidance: float) -> TextToImage:
        """Return our models, on the CPU."""
        overrides = {"steps": steps, "guidance": guidance, "size_px": self.size_px}
        generator = find_generator(str(self.folder), generator_settings(str(self.folder), overrides), half=False)
        return TextToImage(generator, resolve_compute("cpu", self._dtype, half="bfloat16"), attention="auto")

    def ours(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Drawn:
        """Return what we generate in one batch."""
        models = self.loaded(steps, guidance)
        with models.text_encoder_on_device():
            embeddings = models.encode_prompts(prompts)
        latents = models.denoise(embeddings, seeds)
        return Drawn(latents.float(), models.decode(latents))

    def library(self, prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Drawn:
        """Return what diffusers' pipeline gives in one batch."""
        said = {"num_inference_steps": steps, "guidance_scale": guidance, "height": self.size_px, "width": self.size_px, **self._call}
        latents, images = (
            self.pipeline(list(prompts), output_type=kind, return_dict=False, **self._start(seeds, steps, guidance), **said)[0]
            for kind in ("latent", "pt")
        )
        return Drawn(self._as_stored(latents).float(), images.float())

    def library_alone(self, prompts: Sequence[str], steps: int, guidance: float) -> Drawn:
        """Return what diffusers' pipeline gives for each prompt alone; prompt n has the seed n."""
        return Drawn.joined([self.library([prompt], [seed], steps, guidance) for seed, prompt in enumerate(prompts)])

    def _start(self, seeds: Sequence[int], steps: int, guidance: float) -> dict[str, Any]:
        noises = [torch.Generator().manual_seed(seed) for seed in seeds]
        if self._from_noise is None:
            return {"generator": noises}
        shape = self.loaded(steps, guidance).generator.latent_shape
        latents = self._from_noise(torch.stack([torch.randn(shape, generator=noise) for noise in noises]))
        # The rest of their noise is the sampler's.
        takes = inspect.signature(type(self.pipeline).__call__).parameters
        return {"latents": latents, "generator": noises} if "generator" in takes else {"latents": latents}
