"""A tiny pipeline twice: diffusers' own, and our loop over the same parts. Their latents are compared for the same noise."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.families.family import Family, Parts, PromptEmbeddings
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.runtime.device import Compute, resolve_compute
from tests.support.scale_by_step import ScaleByStep, counted_rows
from tests.support.tiny_pipelines import library_pipeline

SIZE_PX, STEPS = 64, 3
PROMPTS = ("a red dog", "a much longer text about ships, the sea & the sky", "", "snow on an old town")
LONG = "word " * 300
Prompts = Sequence[str]


class Twins:
    """A tiny pipeline of diffusers, and our own loop over the same folder.

    Args:
        folder: of ``tiny_pipeline``.
        stored: turns the library's final latents into the form in which we compare them.
        **how: given to every call of the library's pipeline; a function is called with the guidance scale and the number of prompts.
    """

    def __init__(self, folder: Path, *, stored: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents, **how: Any) -> None:
        self.folder, self.pipeline, self._stored, self._how = folder, library_pipeline(folder), stored, how
        self._models: dict[tuple[Any, ...], TextToImage] = {}

    def models(self, guidance: float = 1.0, **settings: Any) -> TextToImage:
        """Return our loop at a guidance scale, loaded once for all settings."""
        key = (guidance, *settings.items())
        if key not in self._models:
            given = {"steps": STEPS, "size_px": SIZE_PX, "guidance": guidance, **settings}
            settings_ = generator_settings(str(self.folder), given)
            generator = find_generator(str(self.folder), settings_, half=False)
            self._models[key] = TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))
        return self._models[key]

    @property
    def family(self) -> Family:
        """How this kind of pipeline samples."""
        return self.models().family

    @property
    def parts(self) -> Parts:
        """Our loaded models."""
        return self.models().parts

    def library(self, prompts: Prompts, seeds: Sequence[int], guidance: float, output: str = "latent") -> torch.Tensor:
        """Return the final latents of diffusers' pipeline, or with ``output="pt"`` its images."""
        how = {name: given(guidance, len(prompts)) if callable(given) else given for name, given in self._how.items()}
        sizes = {"height": SIZE_PX, "width": SIZE_PX, "num_inference_steps": STEPS}
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        drawn: torch.Tensor = self.pipeline(prompt=list(prompts), generator=noise, output_type=output, **{**sizes, **how})[0]
        return self._stored(drawn) if output == "latent" else drawn

    def ours(self, prompts: Prompts, seeds: Sequence[int], guidance: float, **settings: Any) -> torch.Tensor:
        """Return the latents that we store. Each prompt is encoded by itself."""
        models = self.models(guidance, **settings)
        with models.text_encoder_on_device():
            embeddings = PromptEmbeddings.joined([models.encode_prompts([prompt]) for prompt in prompts])
        return models.denoise(embeddings, seeds)

    def images(self, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images of stored latents, in [0, 1]."""
        return self.models().decode(stored_BChw)

    def tokens(self, prompts: Prompts) -> list[int]:
        """Return how many tokens each prompt has."""
        return self.family.tokens_of(self.parts.tokenizers, prompts)

    def check_single(self, prompt: str, guidance: float) -> None:
        """Assert that one prompt has the library's latents and image, to the bit."""
        ours = self.ours([prompt], [1], guidance)
        assert ours.shape[1:] == self.family.latent_shape(SIZE_PX)
        assert torch.equal(ours, self.library([prompt], [1], guidance))
        assert torch.equal(self.images(ours), self.library([prompt], [1], guidance, "pt"))

    def check_half(self, dtype: Literal["bfloat16", "float16"], guidance: float) -> None:
        """Assert that one prompt has the library's latents in half precision too, to the bit. Noise is drawn in float32 and rounded, so the
        library is given ours."""
        models = TextToImage(self.models(guidance).generator, Compute(device="cpu", device_name="CPU", dtype=dtype, threads=1))
        with models.text_encoder_on_device():
            embeddings = models.encode_prompts(PROMPTS[:1])
        half: torch.dtype = getattr(torch, dtype)
        noise = torch.randn(self.family.latent_shape(SIZE_PX), generator=torch.Generator("cpu").manual_seed(1))[None]
        first = self.family.first_latents(models.parts.scheduler, noise, half)
        again = copy.copy(self)
        again.pipeline = library_pipeline(self.folder, dtype=half)
        again._how = {**self._how, "latents": first}
        assert torch.equal(models.denoise(embeddings, [1]), again.library(PROMPTS[:1], [1], guidance))

    def check_batch(self, guidance: float) -> None:
        """Assert that a batch of different prompts has the latents of each prompt alone, to rounding."""
        seeds = range(len(PROMPTS))
        batch = self.ours(PROMPTS, seeds, guidance)
        alone = [self.ours([prompt], [seed], guidance) for prompt, seed in zip(PROMPTS, seeds, strict=True)]
        assert (batch - torch.cat(alone)).abs().max() <= 1e-5 * batch.abs().max()
        assert (self.ours([PROMPTS[0]], [1], guidance) - self.ours([PROMPTS[1]], [1], guidance)).abs().max() > 1e-3  # prompts do matter

    def check_interval(self, guidance: float, off: float) -> None:
        """Assert that guidance in the second step alone gives the latents of the library with another scale in every step, reads one row in
        each other step, and is the same to the bit as without an interval if that is the whole.

        Args:
            guidance: scale of the guided step.
            off: the scale of no guidance.
        """
        interval, prompts, seeds = "0.4:0.7", PROMPTS[:2], [1, 2]
        models = self.models(guidance, guidance_interval=interval)
        evaluations = denoiser_rows(models.generator).total - 1
        expected, scales = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            scales.append(ScaleByStep([off, guidance, *[off] * (evaluations - 2)]))
            expected.append(self.library([prompt], [seed], scales[-1]))
        with counted_rows(models.parts.denoiser) as rows:
            ours = self.ours(prompts, seeds, guidance, guidance_interval=interval)
        assert [scale.step for scale in scales] == [evaluations] * 2
        assert (ours - torch.cat(expected)).abs().max() <= 1e-5 * ours.abs().max()
        assert sum(rows) == len(prompts) * (evaluations + 1)
        whole = self.ours(prompts, seeds, guidance, guidance_interval="0:1")
        assert torch.equal(whole, self.ours(prompts, seeds, guidance))
        assert not torch.equal(whole, ours)

    def check_cut(self, whole: str, cut: str) -> None:
        """Assert that two prompts are read alike, and that the longer is counted as cut."""
        assert torch.equal(self.ours([cut], [1], 1.0), self.ours([whole], [1], 1.0))
        counts = self.tokens([whole, cut])
        assert counts[0] <= self.family.tokens_read < counts[1]


def changed_family(kind: type[Family], family: Family, part: str, changes: Mapping[str, Any]) -> Family:
    """Return a family of which one configuration is changed."""
    configs = family.configs
    return kind(family.folder, family.index, {**configs, part: {**configs[part], **changes}})
