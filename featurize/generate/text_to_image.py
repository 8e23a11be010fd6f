"""Prompts → latents → images, on the device, with a Stable Diffusion pipeline of diffusers.

The pipeline's models are run by our own loop, so that prompts are encoded once and separately, every image has its own noise, and the run
can be stopped between any two steps.

Shapes: P prompts, L text tokens, D their width, E width of the pooled text, B images, C latent channels, h × w latent cells, H × W pixels.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.generate.acceleration import Compilation, memory_format, set_attention
from featurize.generate.decoders import (
    DecoderFiles,
    decoder_input,
    dtype_of,
    generator_load_errors,
    in_unit_range,
    load_decoder,
    load_part,
    load_vae,
)
from featurize.generate.deepcache import DeepReuse
from featurize.generate.folder_check import text_models
from featurize.generate.generators import Generator
from featurize.generate.schedulers import load_scheduler
from featurize.generate.tokenizers import load_tokenizer
from featurize.options import AttentionChoice
from lugpi_core.runtime.device import Compute
from lugpi_core.runtime.pretrained import read_config


@dataclass(frozen=True, kw_only=True)
class PromptEmbeddings:
    """The text encoder's output for P prompts: tokens [P, L, D] and, for Stable Diffusion XL, pooled [P, E]."""

    tokens_PLD: torch.Tensor
    pooled_PE: torch.Tensor | None = None

    def rows(self, numbers: Sequence[int]) -> "PromptEmbeddings":
        """Return the embeddings of some prompts; a number may occur several times."""
        at = torch.tensor(numbers, device=self.tokens_PLD.device)
        return PromptEmbeddings(tokens_PLD=self.tokens_PLD[at], pooled_PE=None if self.pooled_PE is None else self.pooled_PE[at])

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptEmbeddings":
        """Return the embeddings on a device, in a dtype."""
        pooled_PE = None if self.pooled_PE is None else self.pooled_PE.to(device, dtype)
        return PromptEmbeddings(tokens_PLD=self.tokens_PLD.to(device, dtype), pooled_PE=pooled_PE)

    @staticmethod
    def joined(parts: "Sequence[PromptEmbeddings]") -> "PromptEmbeddings":
        """Return the embeddings of all parts, in order."""
        pooled = [part.pooled_PE for part in parts if part.pooled_PE is not None]
        return PromptEmbeddings(tokens_PLD=torch.cat([part.tokens_PLD for part in parts]), pooled_PE=torch.cat(pooled) if pooled else None)


def _do_nothing() -> None:
    return None


class TextToImage:
    """Encodes prompts, generates latents from them and decodes latents to images.

    Holds UNet and decoder on the device; the text encoder is on the device while it is used, and in the host's memory otherwise. Nothing
    grows with use.

    Attributes:
        guided: whether the UNet reads each row twice.
        attention: the class of the UNet's attention processors.
        compilation: what is compiled.

    Args:
        generator: the model's files and settings.
        compute: device and precision.
        attention: the UNet's attention kernels.
        decoder: replaces the generator's own.
    """

    def __init__(
        self, generator: Generator, compute: Compute, *, attention: AttentionChoice = "auto", decoder: DecoderFiles | None = None
    ) -> None:
        self.generator = generator
        self._device = torch.device(compute.device)
        self._dtype = compute.torch_dtype
        self._pipeline = _load(generator, self._dtype, decoder)
        for part in (self._pipeline.unet, self._pipeline.vae):
            part.to(self._device, memory_format=getattr(torch, memory_format(compute.device)))
        self._is_xl = generator.pipeline_class == "StableDiffusionXLPipeline"
        self.guided = unet_is_guided(generator)
        self._negative: PromptEmbeddings | None = None
        self.attention = set_attention(self._pipeline.unet, attention, self._device)
        self._reuse = DeepReuse(self._pipeline.unet, generator.settings.deepcache) if generator.settings.deepcache > 1 else None
        self.compilation = Compilation(self._pipeline.unet, self._pipeline.vae)

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
        hidden, pooled = [], []
        for tokenizer, encoder in _text_encoders(self._pipeline):
            longest = tokenizer.model_max_length
            texts = _written_out([_first_words(prompt, longest) for prompt in prompts], tokenizer)
            encoded = tokenizer(texts, padding="max_length", max_length=longest, truncation=True)
            uses_mask = encoder.config.to_dict().get("use_attention_mask")
            mask = torch.tensor(encoded["attention_mask"], device=self._device) if uses_mask else None
            output = encoder(
                torch.tensor(encoded["input_ids"], device=self._device),
                attention_mask=mask,
                output_hidden_states=self._is_xl,
                return_dict=True,
            )
            # XL takes the last but one layer of both encoders, and pools that with a projection (Podell et al. 2023, §2.1).
            hidden.append(output.hidden_states[-2] if self._is_xl else output[0])
            pooled += [output[0]] if self._is_xl and output[0].ndim == 2 else []
        return PromptEmbeddings(tokens_PLD=torch.cat(hidden, dim=-1), pooled_PE=pooled[0] if pooled else None)

    @contextmanager
    def text_encoder_on_device(self) -> Iterator[None]:
        """Keep the text encoder on the device inside the block; afterwards its memory there is free again."""
        parts = [encoder for _, encoder in _text_encoders(self._pipeline)]
        for part in parts:
            part.to(self._device)
        try:
            if self.guided and self._negative is None:
                self._negative = self._encode_empty_prompt()
            yield
        finally:
            for part in parts:
                part.to("cpu")

    @torch.inference_mode()
    def denoise(self, embeddings: PromptEmbeddings, seeds: Sequence[int], *, before_step: Callable[[], None] = _do_nothing) -> torch.Tensor:
        """Return the latents [B, C, h, w] of B prompts, in the dtype the UNet computes in.

        Args:
            embeddings: of the B prompts.
            seeds: of each image; its noise comes from the CPU in float32, so it is the same in any batch and on any device.
            before_step: called before every step; an exception in it ends the generation.
        """
        pipeline, settings = self._pipeline, self.generator.settings
        dtype = dtype_of(pipeline.unet)
        scheduler = pipeline.scheduler
        # Kept on the CPU, because the scheduler looks them up at each step: on the device, each step would wait for it.
        scheduler.set_timesteps(settings.steps, device="cpu")
        noises = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        noise_BChw = torch.stack([torch.randn(self.generator.latent_shape, generator=noise) for noise in noises])
        latents_BChw: torch.Tensor = noise_BChw.to(self._device, dtype) * scheduler.init_noise_sigma
        conditions = self._conditions(embeddings.to(self._device, dtype), len(seeds))
        extra = pipeline.prepare_extra_step_kwargs(noises, 0.0)
        copies = 1 + self.guided
        with self.compilation.for_rows("denoise", len(seeds) * copies), self._deepcache():
            for on_host, on_device in zip(scheduler.timesteps, scheduler.timesteps.to(self._device), strict=True):
                before_step()
                unet_input = scheduler.scale_model_input(torch.cat([latents_BChw] * copies), on_host)
                predicted = pipeline.unet(unet_input, on_device, **conditions, return_dict=False)[0]
                if self.compilation.graphs:
                    predicted = predicted.clone()  # the next run of the graph overwrites it, and some schedulers need it later
                if self.guided:
                    unconditional, conditional = predicted.chunk(2)
                    predicted = unconditional + settings.guidance * (conditional - unconditional)
                latents_BChw = scheduler.step(predicted, on_host, latents_BChw, **extra, return_dict=False)[0]
        return latents_BChw

    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images of latents [B, C, h, w]: float32 [B, 3, H, W] in [0, 1]; NaN where the decoder overflows."""
        return self._decode(latents_BChw)

    @torch.inference_mode()
    def _decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        vae = self._pipeline.vae
        input_BChw = decoder_input(vae, latents_BChw.to(self._device, dtype_of(vae)))
        with self.compilation.for_rows("decode", len(latents_BChw)):
            images_B3HW: torch.Tensor = vae.decode(input_BChw, return_dict=False)[0]
        return in_unit_range(images_B3HW)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Compute in float32 inside the block, which does not overflow where half precision does."""
        parts = [self._pipeline.unet, self._pipeline.vae, *(encoder for _, encoder in _text_encoders(self._pipeline))]
        dtypes, negative = [dtype_of(part) for part in parts], self._negative
        try:
            for part in parts:
                part.float()
            if self._dtype != torch.float32:
                self._negative = None  # encoded again, because the text encoder may have overflowed
            with self.compilation.paused():
                yield
        finally:
            for part, dtype in zip(parts, dtypes, strict=True):
                part.to(dtype)  # every half-precision number is a float32, so the weights are unchanged
            self._negative = negative

    @torch.inference_mode()
    def warm_up(self, prompt: PromptEmbeddings, images: int, decoded: int) -> torch.Tensor:
        """Run one step of the UNet, and the decoder, on zeros. What ``compilation`` switched on is compiled here.

        Args:
            prompt: the embeddings of one prompt.
            images: generated at once.
            decoded: decoded at once.

        Returns:
            The decoded images, [decoded, 3, H, W].
        """
        latents_BChw = self._step_on_zeros(prompt, images, self.generator.latent_shape)
        return self.decode(latents_BChw[:decoded])

    def try_parts(self) -> Iterator[str]:
        """Run each model once, on the empty prompt and zeros of at most 8 × 8 latent cells; yield its name before. Errors are those of
        diffusers and transformers."""
        channels, *sides = self.generator.latent_shape
        yield "text_encoder"
        with self.text_encoder_on_device():
            prompt = self._encode([""])
        yield "unet"
        latents_1Chw = self._step_on_zeros(prompt, 1, (channels, *(min(side, 8) for side in sides)))
        yield "vae"
        self._decode(latents_1Chw)

    @torch.inference_mode()
    def _step_on_zeros(self, prompt: PromptEmbeddings, images: int, shape: tuple[int, ...]) -> torch.Tensor:
        latents_BChw = torch.zeros((images, *shape), device=self._device, dtype=dtype_of(self._pipeline.unet))
        scheduler = self._pipeline.scheduler
        scheduler.set_timesteps(self.generator.settings.steps, device="cpu")  # some schedulers change the dtype of their steps here
        with self.compilation.for_rows("denoise", images * (1 + self.guided)):
            conditions = self._conditions(prompt.rows([0] * images), images)
            step = torch.ones((), device=self._device, dtype=scheduler.timesteps.dtype)
            self._pipeline.unet(torch.cat([latents_BChw] * (1 + self.guided)), step, **conditions, return_dict=False)
        return latents_BChw

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

    def _encode_empty_prompt(self) -> PromptEmbeddings:
        empty = self.encode_prompts([""])
        if not self._is_xl or not self._pipeline.config.force_zeros_for_empty_prompt:
            return empty
        assert empty.pooled_PE is not None
        return PromptEmbeddings(tokens_PLD=torch.zeros_like(empty.tokens_PLD), pooled_PE=torch.zeros_like(empty.pooled_PE))

    def _conditions(self, prompted: PromptEmbeddings, rows: int) -> dict[str, Any]:
        """Return the UNet's inputs other than the latents; with guidance, the rows of the empty prompt come first."""
        unet, embeddings = self._pipeline.unet, prompted
        if self.guided:
            assert self._negative is not None, "no prompt was encoded yet"
            unconditional = self._negative.to(self._device, prompted.tokens_PLD.dtype).rows([0] * rows)
            embeddings = PromptEmbeddings.joined([unconditional, prompted])
        conditions: dict[str, Any] = {"encoder_hidden_states": embeddings.tokens_PLD}
        if embeddings.pooled_PE is not None:
            side = self.generator.size_px
            sizes = torch.tensor([side, side, 0, 0, side, side]).to(
                embeddings.pooled_PE
            )  # original, crop, target (Podell et al. 2023, §2.2)
            conditions["added_cond_kwargs"] = {"text_embeds": embeddings.pooled_PE, "time_ids": sizes.repeat(len(embeddings.pooled_PE), 1)}
        if unet.config.time_cond_proj_dim is not None:
            scale = torch.tensor(self.generator.settings.guidance - 1).repeat(rows)
            embedded = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=unet.config.time_cond_proj_dim)
            conditions["timestep_cond"] = embedded.to(embeddings.tokens_PLD)
        return conditions


def unet_is_guided(generator: Generator) -> bool:
    """Whether the UNet reads each row twice, with and without the prompt. A UNet that takes the guidance scale as an input does not."""
    config = read_config(generator.folder / "unet" / "config.json")
    return generator.settings.guidance > 1 and config.get("time_cond_proj_dim") is None


def prompts_are_cut(generator: Generator, prompts: Sequence[str]) -> NDArray[np.bool_]:
    """Return bool [P]: whether each prompt has more tokens than the text encoder reads (77 for CLIP, start and end included). Loads only
    the tokenizer.

    Raises:
        InputError: the tokenizer does not load.
    """
    tokens_of, tokens_read = token_counter(generator)
    cut = np.zeros(len(prompts), dtype=bool)
    for start in range(0, len(prompts), 1024):
        cut[start : start + 1024] = [tokens > tokens_read for tokens in tokens_of(prompts[start : start + 1024])]
    return cut


def token_counter(generator: Generator) -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """Return a function that counts the tokens of prompts as if nothing were cut, and how many the text encoder reads.

    Raises:
        InputError: the tokenizer does not load.
    """
    tokenizer = load_tokenizer(generator, *text_models(read_config(generator.folder / "model_index.json"))[0])

    def tokens_of(prompts: Sequence[str]) -> list[int]:
        ids = tokenizer(_written_out(prompts, tokenizer), truncation=False, verbose=False)["input_ids"]
        return [len(prompt_ids) for prompt_ids in ids]

    return tokens_of, int(tokenizer.model_max_length)


def _written_out(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """Return prompts with every learned word of several vectors written out, ``<cat>`` as ``<cat> <cat>_1 <cat>_2``, as diffusers does."""
    from diffusers.loaders import TextualInversionLoaderMixin

    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return list(prompts)
    written: list[str] = TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)
    return written


def _text_encoders(pipeline: Any) -> list[tuple[Any, Any]]:
    """Return the pipeline's tokenizers with their text encoders; Stable Diffusion XL has two."""
    parts = pipeline.components
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    return [(parts[tokenizer], parts[encoder]) for tokenizer, encoder in names if parts.get(encoder) is not None]


def _first_words(prompt: str, count: int) -> str:
    """Return the prompt up to the end of its word number ``count``.

    A word has at least one token, so the text encoder reads the same, and a prompt of a megabyte need not be tokenized.
    """
    ends = [word.end() for word in islice(re.finditer(r"\S+", prompt), count)]
    return prompt[: ends[-1]] if ends else ""


def _load(generator: Generator, dtype: torch.dtype, decoder: DecoderFiles | None) -> Any:
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    # First, because it is quick, and may not take the steps.
    scheduler = load_scheduler(generator)
    index = read_config(generator.folder / "model_index.json")
    # The safety checker blackens decoded images; we take the latents, so it would never run. No image is a prompt.
    parts: dict[str, Any] = dict.fromkeys(("image_encoder", "feature_extractor"))
    parts |= {"safety_checker": None} if generator.pipeline_class == "StableDiffusionPipeline" else {}
    kinds = {"unet": diffusers.UNet2DConditionModel, "text_encoder": transformers.CLIPTextModel}
    kinds["text_encoder_2"] = transformers.CLIPTextModelWithProjection
    for name, kind in kinds.items():
        if index.get(name, [None])[0]:
            parts[name] = load_part(generator, name, kind, dtype)
    parts |= {tokenizer: load_tokenizer(generator, tokenizer, encoder) for tokenizer, encoder in text_models(index)}
    parts["vae"] = load_vae(generator, dtype) if decoder is None else load_decoder(decoder, dtype)
    with generator_load_errors(generator):
        pipeline = getattr(diffusers, generator.pipeline_class).from_pretrained(
            generator.folder, dtype=dtype, local_files_only=True, scheduler=scheduler, **parts
        )
    return pipeline
