"""Prompts → latents → images, on the device, with the models of a pipeline of diffusers.

They are run by our own loop, so that prompts are encoded once and separately, every image has its own noise, and the run can be stopped
between any two steps. How a kind of pipeline samples is known by its family (``families``); the loop is the same for all.

Shapes: P prompts, B images, C latent channels, h × w latent cells, H × W pixels.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from featurize.generate.acceleration import Compilation, memory_format, set_attention
from featurize.generate.decoders import DecoderFiles, dtype_of, in_unit_range, on_device
from featurize.generate.deepcache import DeepReuse
from featurize.generate.families.family import Family, Parts, PromptEmbeddings, Sampling, Step
from featurize.generate.generators import Generator
from featurize.generate.guidance import Guide, copies_of_steps
from featurize.generate.parts import load_parts
from featurize.generate.schedulers import step_arguments
from featurize.options import AttentionChoice
from lugpi_core.runtime.device import Compute


def _do_nothing() -> None:
    return None


class TextToImage:
    """Encodes prompts, generates latents from them and decodes latents to images.

    Holds denoiser and decoder on the device; the text encoder is on the device while it is used, and in the host's memory otherwise.
    Nothing grows with use.

    Attributes:
        guided: whether the denoiser reads each row twice, with and without the prompt.
        family, parts: how it samples, and its loaded models.
        attention: the class of the denoiser's attention processors.
        compilation: what is compiled.

    Args:
        generator: the model's files and settings.
        compute: device and precision.
        attention: the denoiser's attention kernels.
        decoder: replaces the generator's own.
    """

    def __init__(
        self, generator: Generator, compute: Compute, *, attention: AttentionChoice = "auto", decoder: DecoderFiles | None = None
    ) -> None:
        self.generator = generator
        self._device = torch.device(compute.device)
        self._dtype = compute.torch_dtype
        self.family = generator.family
        self.parts = parts = load_parts(generator, self._dtype, decoder, self._device)
        for part in (parts.denoiser, parts.vae):
            on_device(part, self._device)
        self.guided = self.family.guidance_kind(generator.settings.guidance) == "cfg"
        self._negative: PromptEmbeddings | None = None
        self._heals = False
        self.attention = set_attention(parts.denoiser, attention, self._device)
        settings = generator.settings
        self._reuse = DeepReuse(parts.denoiser, settings.deepcache, settings.deepcache_cut) if settings.deepcache > 1 else None
        self.compilation = Compilation(parts.denoiser, parts.vae)

    def record(self) -> dict[str, Any]:
        """Return which kernels and compilation are in use, for the record of a run."""
        return {
            "attention": self.attention,
            "compiled": self.compilation.part,
            "cuda_graphs": self.compilation.graphs,
            "memory_format": memory_format(self._device.type),
        }

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return the embeddings of prompts, on the device. Call it inside ``text_encoder_on_device``."""
        return self._encode(prompts)

    @torch.inference_mode()
    def _encode(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self.family.encode(self.parts, prompts)

    def encoding_order(self, prompts: Sequence[str]) -> list[int]:
        """Return the numbers of prompts in the order in which they are encoded: by their length, where that spares padding."""
        return encoding_order(self.family, self.parts, prompts)

    @contextmanager
    def text_encoder_on_device(self) -> Iterator[None]:
        """Keep the text encoder on the device inside the block; afterwards its memory there is free again."""
        encoders = self.parts.text_encoders.values()
        try:
            for encoder in encoders:
                encoder.to(self._device)
            with self._as_converted(*encoders):
                if self.guided and self._negative is None:
                    with torch.inference_mode():
                        self._negative = self.family.negative(self.parts)
                yield
        finally:
            for encoder in encoders:
                encoder.to("cpu")

    @torch.inference_mode()
    def denoise(self, embeddings: PromptEmbeddings, seeds: Sequence[int], *, before_step: Callable[[], None] = _do_nothing) -> torch.Tensor:
        """Return the latents [B, C, h, w] of B prompts, as they are stored, in the dtype in which the family carries them.

        Args:
            embeddings: of the B prompts; they may be in the host's memory.
            seeds: of each image; its noise comes from the CPU in float32, so it is the same in any batch and on any device.
            before_step: called before every step; an exception in it ends the generation.
        """
        with self._as_converted(self.parts.denoiser):
            return self._denoise(embeddings, seeds, before_step)

    def _denoise(self, embeddings: PromptEmbeddings, seeds: Sequence[int], before_step: Callable[[], None]) -> torch.Tensor:
        family, parts, sampling = self.family, self.parts, self._sampling(len(seeds))
        scheduler, dtype = parts.scheduler, dtype_of(parts.denoiser)
        # Kept on the CPU, because the scheduler looks them up at each step: on the device, each step would wait for it.
        family.set_timesteps(scheduler, sampling)
        noises = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        noise_BChw = torch.stack([torch.randn(self.generator.latent_shape, generator=noise, dtype=torch.float32) for noise in noises])
        latents = family.first_latents(scheduler, noise_BChw.to(self._device), dtype)
        extra = step_arguments(scheduler, noises)
        conditions: dict[int, Mapping[str, Any]] = {}
        times = family.times(scheduler)
        every_copies = copies_of_steps(family, self.generator.settings, len(times))
        guide = Guide(family, sampling.guidance, reuses=self.generator.settings.guidance_reuse)
        with self.compilation.for_rows("denoise", len(seeds) * (1 + self.guided)), self._deepcache():
            for number, (on_host, on_device_) in enumerate(zip(times, times.to(self._device), strict=True)):
                before_step()
                step = Step(number=number, last=len(times) - 1, on_host=on_host, on_device=on_device_)
                copies = every_copies[number]
                if copies not in conditions:
                    conditions[copies] = self._conditions(embeddings, copies, sampling)
                predicted = family.predict(parts, latents, step, conditions[copies], copies)
                if self.compilation.graphs:
                    predicted = predicted.clone()  # the next run of the graph overwrites it, and some schedulers need it later
                latents = family.step(scheduler, guide.guided(predicted, copies), step, latents, extra)
        return family.stored(latents, sampling.size_px)

    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images of latents [B, C, h, w]: float32 [B, 3, H, W] in [0, 1]; NaN where the decoder overflows."""
        return self._decode(latents_BChw)

    @torch.inference_mode()
    def _decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        vae = self.parts.vae
        with self._as_converted(vae), self.compilation.for_rows("decode", len(latents_BChw)):
            images_B3HW = self.family.decode(vae, latents_BChw.to(self._device, dtype_of(vae)))
        return in_unit_range(images_B3HW)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 inside the block, which does not overflow where half precision does. Only the part that runs is converted, so
        that the others take no more memory."""
        negative, self._heals = self._negative, self._dtype != torch.float32
        if self._heals:
            self._negative = None  # encoded again, because the text encoder may have overflowed
        try:
            with self.compilation.paused():
                yield
        finally:
            self._heals, self._negative = False, negative

    def float32_bytes(self, *, generates: bool) -> int:
        """Return how many bytes more a part takes on the device, at most, while it is converted for ``in_float32``.

        Args:
            generates: whether prompts are encoded and latents generated, or latents only decoded.
        """
        if self._dtype == torch.float32:
            return 0
        parts = (self.parts.denoiser, self.parts.vae) if generates else (self.parts.vae,)
        grows: list[int] = [sum(weight.numel() * 4 - weight.nbytes for weight in part.parameters()) for part in parts]
        encoders = self.parts.text_encoders.values() if generates else ()
        grows.append(sum(weight.numel() * 4 for encoder in encoders for weight in encoder.parameters()))
        return max(grows)

    @torch.inference_mode()
    def warm_up(self, prompt: PromptEmbeddings, images: int, decoded: int) -> torch.Tensor:
        """Run one step of the denoiser, and the decoder, on zeros. What ``compilation`` switched on is compiled here.

        Args:
            prompt: the embeddings of one prompt.
            images: generated at once.
            decoded: decoded at once.

        Returns:
            The decoded images, [decoded, 3, H, W].
        """
        if self.compilation.part != "off" and self.generator.settings.guidance_interval is not None:
            self._step_on_zeros(prompt, self._sampling(images), 1)
        latents_BChw = self._step_on_zeros(prompt, self._sampling(images), 1 + self.guided)
        return self.decode(latents_BChw[:decoded])

    def try_parts(self) -> Iterator[str]:
        """Run each model once, on the empty prompt and zeros of at most 8 × 8 latent cells; yield its folder's name before. The denoiser's
        prediction goes through a step of the sampler. Errors are those of diffusers and transformers."""
        yield self.family.text_parts[0][1]
        with self.text_encoder_on_device():
            prompt = self._encode([""])
        yield self.family.denoiser
        sampling = self._sampling(1)
        cell_px = sampling.size_px // self.generator.latent_shape[1]
        small = dataclasses.replace(sampling, size_px=min(sampling.size_px, 8 * cell_px))
        latents_1Chw = self._step_on_zeros(prompt, small, 1 + self.guided)
        yield "vae"
        self._decode(latents_1Chw)

    @torch.inference_mode()
    def _step_on_zeros(self, prompt: PromptEmbeddings, sampling: Sampling, copies: int) -> torch.Tensor:
        family, parts, dtype = self.family, self.parts, dtype_of(self.parts.denoiser)
        # Some schedulers change the dtype of their steps here.
        family.set_timesteps(parts.scheduler, sampling)
        zeros_BChw = torch.zeros((sampling.images, *family.latent_shape(sampling.size_px)), device=self._device)
        latents = family.first_latents(parts.scheduler, zeros_BChw, dtype)
        time = torch.ones_like(family.times(parts.scheduler)[0])
        step = Step(number=0, last=0, on_host=family.times(parts.scheduler)[0], on_device=time.to(self._device))
        with self.compilation.for_rows("denoise", sampling.images * (1 + self.guided)):
            conditions = self._conditions(prompt.rows([0] * sampling.images), copies, sampling)
            predicted = family.predict(parts, latents, step, conditions, copies)
        if copies == 2:
            predicted = family.guide(predicted, sampling.guidance)
        noises = [torch.Generator("cpu").manual_seed(0) for _ in range(sampling.images)]
        latents = family.step(parts.scheduler, predicted, step, latents, step_arguments(parts.scheduler, noises))
        return family.stored(latents, sampling.size_px)

    def _sampling(self, images: int) -> Sampling:
        settings = self.generator.settings
        return Sampling(images=images, size_px=self.generator.size_px, steps=settings.steps, guidance=settings.guidance)

    @contextmanager
    def _as_converted(self, *models: Any) -> Iterator[None]:
        """Convert models to float32 inside the block if this is ``in_float32``."""
        if not self._heals:
            yield
            return
        with computing_in_float32(*models):
            yield

    @contextmanager
    def _deepcache(self) -> Iterator[None]:
        if self._reuse is None:
            yield
            return
        self._reuse.start()
        try:
            yield
        finally:
            self._reuse.stop()

    def _conditions(self, embeddings: PromptEmbeddings, copies: int, sampling: Sampling) -> Mapping[str, Any]:
        """Return the denoiser's inputs other than latents and step, for rows with or without the unguided half. The embeddings are on the
        device in these inputs only."""
        dtype, negative = dtype_of(self.parts.denoiser), None
        if copies == 2:
            assert self._negative is not None, "no prompt was encoded yet"
            negative = self._negative.to(self._device, dtype).repeated(sampling.images)
        return self.family.conditions(self.parts, embeddings.to(self._device, dtype), negative, sampling)


@contextmanager
def computing_in_float32(*models: torch.nn.Module) -> Iterator[None]:
    """Convert models to float32 inside the block; every number in half precision is one of float32, so the weights are the same
    afterwards."""
    dtypes = [{name: tensor.dtype for name, tensor in _tensors_of(model)} for model in models]
    try:
        for model in models:
            model.float()
        yield
    finally:
        for model, before in zip(models, dtypes, strict=True):
            for name, tensor in _tensors_of(model):
                tensor.data = tensor.data.to(before[name])


def encoding_order(family: Family, parts: Parts, prompts: Sequence[str]) -> list[int]:
    """Return the numbers of prompts in the order in which they are encoded: by their length, where that spares padding."""
    numbers = list(range(len(prompts)))
    if not family.sorts_prompts:
        return numbers
    tokens = family.tokens_of(parts.tokenizers, prompts)
    return sorted(numbers, key=lambda number: tokens[number])


def _tensors_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
