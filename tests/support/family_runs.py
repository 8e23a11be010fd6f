"""A tiny pipeline twice: diffusers' own, and our loop over the same parts. Their latents are compared for the same noise."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from featurize.generate.families import family_of
from featurize.generate.families.family import Family, Parts, PromptEmbeddings, Sampling, Step
from tests.support.tiny_pipelines import library_pipeline

SIZE_PX, STEPS = 64, 3
PROMPTS = ("a red dog", "a much longer text about ships, the sea & the sky", "", "snow on an old town")
LONG = "word " * 300
Prompts = Sequence[str]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a source of noise for every image."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


class Twins:
    """A tiny pipeline of diffusers, and our family with the same weights.

    Args:
        folder: of ``tiny_pipeline``.
        stored: turns the library's final latents into the form in which we compare them.
        **how: given to every call of the library's pipeline; a function is called with the guidance scale and the number of prompts.
    """

    def __init__(self, folder: Path, *, stored: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents, **how: Any) -> None:
        self.folder, self.pipeline, self._stored, self._how = folder, library_pipeline(folder), stored, how
        index = json.loads((folder / "model_index.json").read_text())
        self.family: Family = family_of(folder, index)
        # Loaded again, not copied: a copy's weights may lie at other addresses, where a product of one row is summed in another order.
        again = library_pipeline(folder)
        encoders = {name: _cut_encoder(getattr(again, name), self.family, name) for _, name in self.family.text_parts}
        self.parts = Parts(
            denoiser=getattr(self.pipeline, self.family.denoiser),
            vae=self.pipeline.vae,
            scheduler=self.pipeline.scheduler,
            tokenizers={name: getattr(self.pipeline, name) for name, _ in self.family.text_parts},
            text_encoders=encoders,
            device=torch.device("cpu"),
        )

    def library(self, prompts: Prompts, seeds: Sequence[int], guidance: float, output: str = "latent") -> torch.Tensor:
        """Return the final latents of diffusers' pipeline, or with ``output="pt"`` its images."""
        how = {name: given(guidance, len(prompts)) if callable(given) else given for name, given in self._how.items()}
        sizes = {"height": SIZE_PX, "width": SIZE_PX, "num_inference_steps": STEPS}
        drawn = self.pipeline(prompt=list(prompts), generator=generators(seeds), output_type=output, **{**sizes, **how})
        made: torch.Tensor = drawn[0]
        return self._stored(made) if output == "latent" else made

    @torch.inference_mode()
    def ours(self, prompts: Prompts, seeds: Sequence[int], guidance: float) -> torch.Tensor:
        """Return the latents that we store. Each prompt is encoded by itself."""
        family, parts = self.family, self.parts
        sampling = Sampling(images=len(seeds), size_px=SIZE_PX, steps=STEPS, guidance=guidance)
        noise = torch.stack([torch.randn(family.latent_shape(SIZE_PX), generator=each) for each in generators(seeds)])
        embeddings = PromptEmbeddings.joined([family.encode(parts, [prompt]) for prompt in prompts])
        family.set_timesteps(parts.scheduler, sampling)
        copies = family.copies(guidance, 0, STEPS)
        negative = family.negative(parts).rows([0] * len(seeds)) if copies == 2 else None
        conditions = family.conditions(parts, embeddings, negative, sampling)
        latents = family.first_latents(parts.scheduler, noise, torch.float32)
        times = family.times(parts.scheduler)
        for number, time in enumerate(times):
            step = Step(number=number, last=len(times) - 1, on_host=time, on_device=time)
            predicted = family.predict(parts, latents, step, conditions, copies)
            latents = family.step(parts.scheduler, family.guide(predicted, guidance) if copies == 2 else predicted, step, latents, {})
        return family.stored(latents, SIZE_PX)

    @torch.inference_mode()
    def images(self, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images of stored latents, in [0, 1]."""
        return (self.family.decode(self.parts.vae, stored_BChw) / 2 + 0.5).clamp(0, 1)

    def tokens(self, prompts: Prompts) -> list[int]:
        """Return how many tokens each prompt has."""
        return self.family.tokens_of(self.parts.tokenizers, prompts)

    def check_single(self, prompt: str, guidance: float) -> None:
        """Assert that one prompt has the library's latents and image, to the bit."""
        ours = self.ours([prompt], [1], guidance)
        assert ours.shape[1:] == self.family.latent_shape(SIZE_PX)
        assert torch.equal(ours, self.library([prompt], [1], guidance))
        assert torch.equal(self.images(ours), self.library([prompt], [1], guidance, "pt"))

    def check_batch(self, guidance: float) -> None:
        """Assert that a batch of different prompts has the latents of each prompt alone, to rounding."""
        seeds = range(len(PROMPTS))
        batch = self.ours(PROMPTS, seeds, guidance)
        alone = [self.ours([prompt], [seed], guidance) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
        assert (batch - torch.cat(alone)).abs().max() <= 1e-5 * batch.abs().max()
        assert (self.ours([PROMPTS[0]], [1], guidance) - self.ours([PROMPTS[1]], [1], guidance)).abs().max() > 1e-3  # prompts do matter

    def check_cut(self, whole: str, cut: str) -> None:
        """Assert that two prompts are read alike, and that the longer is counted as cut."""
        assert torch.equal(self.ours([cut], [1], 1.0), self.ours([whole], [1], 1.0))
        counts = self.tokens([whole, cut])
        assert counts[0] <= self.family.tokens_read < counts[1]


def _cut_encoder(encoder: Any, family: Family, name: str) -> Any:
    """Return a text encoder as far as the family reads it."""
    read = encoder
    if family.load_class(name) != type(encoder).__name__:
        read = read.model
    if (layers := family.layers_read(name)) is not None:
        text = getattr(read, "language_model", read)
        text.layers, text.norm = text.layers[:layers], torch.nn.Identity()
    return read


def changed_family(kind: type[Family], folder: Path, part: str, changes: Mapping[str, Any]) -> Family:
    """Return the family of a folder of which one configuration is changed."""
    index = json.loads((folder / "model_index.json").read_text())
    configs = family_of(folder, index).configs
    return kind(folder, index, {**configs, part: {**configs[part], **changes}})
