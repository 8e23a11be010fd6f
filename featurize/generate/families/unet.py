"""Stable Diffusion 1, 2 and XL, and latent consistency models: a UNet that reads the text by cross-attention.

Shapes: P prompts, L text tokens, D their width, E width of the pooled text, B images, C latent channels, h × w latent cells.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Guidance, NoiseByBetas, Parts, PromptEmbeddings, Sampling, Step, Usual
from lugpi_core.errors import InputError

TOKENS, POOLED = "tokens", "pooled"
_SIZES = 6  # original size, crop and target size, two numbers each


class StableDiffusion(NoiseByBetas):
    """Stable Diffusion 1 and 2 (Rombach et al. 2022)."""

    denoiser = "unet"
    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel",),
    }
    text_pairs: ClassVar[tuple[tuple[str, str], ...]] = (("tokenizer", "text_encoder"),)
    half = "float16"

    @property
    def native_px(self) -> int:
        """The side of its latents times the decoder's factor."""
        sample_size = self.configs["unet"]["sample_size"]
        sides = set(sample_size) if isinstance(sample_size, (list, tuple)) else {sample_size}
        if len(sides) != 1 or not all(isinstance(side, int) for side in sides):
            raise InputError(got=f"{self.folder} with the sample_size {sample_size}", expected="square images", do="give --size-px")
        return int(sides.pop()) * self.multiple_px

    @property
    def multiple_px(self) -> int:
        """Pixels of a latent cell."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """Return (C, h, w)."""
        side = size_px // self.multiple_px
        return self.configs["unet"]["in_channels"], side, side

    @property
    def tokens_read(self) -> int:
        """As many as the first text encoder has positions, or fewer if its tokenizer says so: 77 for CLIP."""
        return self.text_length(self.text_parts[0][1])

    @property
    def usual(self) -> Usual:
        """Those of StableDiffusionPipeline; XL's own pipeline has guidance 5."""
        return Usual(steps=50, guidance=7.5)

    def check(self) -> None:
        """Check that UNet, decoder and text encoders fit one another.

        Raises:
            InputError: they do not.
        """
        _check_latents(self)
        _check_text_width(self)

    def guidance_kind(self, scale: float) -> Guidance:
        """Return how a guidance scale acts: a UNet that takes it as an input does not read each row twice."""
        return "embedded" if self.configs["unet"].get("time_cond_proj_dim") is not None else super().guidance_kind(scale)

    def text_length(self, encoder: str) -> int:
        """Return the tokens of a prompt: the text encoder has a position for so many and fails at more."""
        tokenizer = next(tokenizer for tokenizer, one in self.text_pairs if one == encoder)
        positions = int(self.configs[encoder].get("max_position_embeddings", 77))
        says = self.configs.get(tokenizer, {}).get("model_max_length", positions)
        return int(min(positions, float(str(says))))  # transformers 5.23 takes "64" as it is

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and for XL pooled [E]."""
        unet = self.configs["unet"]
        width = unet["encoder_hid_dim"] if unet.get("encoder_hid_dim") is not None else unet["cross_attention_dim"]
        return {TOKENS: ((self.tokens_read, max(width) if isinstance(width, list) else width), torch.float32)}

    def scheduler_fields(self) -> Mapping[str, Any]:
        """Return what StableDiffusionPipeline sets in any scheduler that has these fields."""
        return {"steps_offset": 1, "clip_sample": False}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt, start and end included."""
        tokenizer = tokenizers[self.text_parts[0][0]]
        return [len(ids) for ids in tokenizer(written_out(prompts, tokenizer), truncation=False, verbose=False)["input_ids"]]

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D]: the last layer of the text encoder."""
        (pair,) = self.text_parts
        return PromptEmbeddings({TOKENS: self.run_encoder(parts, *pair, prompts, hidden_states=False)[0]})

    def run_encoder(self, parts: Parts, tokenizer_name: str, encoder_name: str, prompts: Sequence[str], *, hidden_states: bool) -> Any:
        """Return the output of one text encoder for prompts that are cut or padded to its length."""
        tokenizer, encoder = parts.tokenizers[tokenizer_name], parts.text_encoders[encoder_name]
        longest = tokenizer.model_max_length
        texts = written_out([first_words(prompt, longest) for prompt in prompts], tokenizer)
        encoded = tokenizer(texts, padding="max_length", max_length=longest, truncation=True)
        uses_mask = encoder.config.to_dict().get("use_attention_mask")
        mask = torch.tensor(encoded["attention_mask"], device=parts.device) if uses_mask else None
        ids_PL = torch.tensor(encoded["input_ids"], device=parts.device)
        return encoder(ids_PL, attention_mask=mask, output_hidden_states=hidden_states, return_dict=True)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return the UNet's inputs other than the latents; with guidance, the rows of the empty prompt come first."""
        read = embeddings if negative is None else PromptEmbeddings.joined([negative, embeddings])
        conditions: dict[str, Any] = {"encoder_hidden_states": read[TOKENS]}
        width = self.configs["unet"].get("time_cond_proj_dim")
        if width is not None:
            scale_B = torch.tensor(sampling.guidance - 1).repeat(sampling.images)
            conditions["timestep_cond"] = _scale_embedding(scale_B, width).to(read[TOKENS])
        return conditions

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        """Return the UNet's prediction of every row."""
        read = self.scaled(parts.scheduler, torch.cat([latents] * copies), step)
        predicted: torch.Tensor = parts.denoiser(read, step.on_device, **conditions, return_dict=False)[0]
        return predicted

    def decoder_input(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return latents scaled as the decoder reads them. The pipeline leaves out shifts and means that a decoder states."""
        factor: float = vae.config.scaling_factor
        return stored_BChw / factor


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL (Podell et al. 2023): two text encoders, pooled text, and the sizes of the image as inputs."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel", None),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
    }
    text_pairs: ClassVar[tuple[tuple[str, str], ...]] = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    index_defaults: ClassVar[Mapping[str, Any]] = {"force_zeros_for_empty_prompt": True}

    def dtypes(self, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
        """Return float32 for its decoder, which overflows in half precision. ``force_upcast`` is True by default in every decoder, but only
        this pipeline respects it."""
        overflows = dtype == torch.float16 and self.configs["vae"].get("force_upcast", True)
        return {"vae": torch.float32} if overflows else {}

    def scheduler_fields(self) -> Mapping[str, Any]:
        """Return nothing: its pipeline takes a scheduler as it is."""
        return {}

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and pooled [E]."""
        unet = self.configs["unet"]
        pooled = unet["projection_class_embeddings_input_dim"] - _SIZES * unet["addition_time_embed_dim"]
        return {**super().embedding_shapes(), POOLED: ((pooled,), torch.float32)}

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D], the last but one layer of both encoders side by side, and pooled [P, E], the second's projection
        (Podell et al. 2023, §2.1)."""
        outputs = [self.run_encoder(parts, *pair, prompts, hidden_states=True) for pair in self.text_parts]
        # The first encoder, if there are two, ends with that layer.
        tokens_PLD = torch.cat([*(output.hidden_states[-1] for output in outputs[:-1]), outputs[-1].hidden_states[-2]], dim=-1)
        return PromptEmbeddings({TOKENS: tokens_PLD, POOLED: outputs[-1].text_embeds})

    def layers_read(self, encoder: str) -> int | None:
        """Return all but the last of the first text encoder; the second's projection needs all."""
        return int(self.configs[encoder].get("num_hidden_layers", 12)) - 1 if encoder == "text_encoder" else None

    def final_norm(self, encoder: str) -> str:
        """Return CLIP's."""
        return "final_layer_norm"

    def negative(self, parts: Parts) -> PromptEmbeddings:
        """Return zeros, or the empty prompt where the pipeline's settings say so."""
        empty = self.encode(parts, [""])
        if not self.index.get("force_zeros_for_empty_prompt", True):
            return empty
        return PromptEmbeddings({name: torch.zeros_like(tensor) for name, tensor in empty.tensors.items()})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return the UNet's inputs, with the pooled text and original size, crop and target size (Podell et al. 2023, §2.2)."""
        pooled_PE = embeddings[POOLED] if negative is None else torch.cat([negative[POOLED], embeddings[POOLED]])
        side = sampling.size_px
        sizes = torch.tensor([side, side, 0, 0, side, side]).to(pooled_PE)
        added = {"text_embeds": pooled_PE, "time_ids": sizes.repeat(len(pooled_PE), 1)}
        return {**super().conditions(parts, embeddings, negative, sampling), "added_cond_kwargs": added}

    def decoder_input(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return latents scaled as the decoder reads them; some are normalised by channel."""
        if not (vae.config.get("latents_mean") and vae.config.get("latents_std")):
            return super().decoder_input(vae, stored_BChw)
        mean_C, std_C = (torch.tensor(vae.config[name]).view(-1, 1, 1).to(stored_BChw) for name in ("latents_mean", "latents_std"))
        scaled: torch.Tensor = stored_BChw * std_C / vae.config.scaling_factor + mean_C
        return scaled


class LatentConsistency(StableDiffusion):
    """Latent consistency models (Luo et al. 2023, arXiv 2310.04378): the UNet takes the guidance scale as an input."""

    @property
    def usual(self) -> Usual:
        """Those of LatentConsistencyModelPipeline."""
        return Usual(steps=4, guidance=8.5)

    def check(self) -> None:
        """Check besides that the UNet takes the guidance scale.

        Raises:
            InputError: it does not.
        """
        super().check()
        if self.configs["unet"].get("time_cond_proj_dim") is None:
            raise InputError(
                got=f"{self.folder}, whose unet has no time_cond_proj_dim",
                expected="a UNet that takes the guidance scale as an input, as this pipeline's does",
                do="change _class_name in model_index.json to StableDiffusionPipeline",
            )

    def scheduler_fields(self) -> Mapping[str, Any]:
        """Return nothing: its pipeline takes a scheduler as it is."""
        return {}


def written_out(prompts: Sequence[str], tokenizer: Any) -> list[str]:
    """Return prompts with every learned word of several vectors written out, ``<cat>`` as ``<cat> <cat>_1 <cat>_2``, as diffusers does."""
    from diffusers.loaders import TextualInversionLoaderMixin

    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return list(prompts)
    written: list[str] = TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)
    return written


def first_words(prompt: str, count: int) -> str:
    """Return the prompt up to the end of its word number ``count``.

    A word has at least one token, so the text encoder reads the same, and a prompt of a megabyte need not be tokenized.
    """
    ends = [word.end() for word in islice(re.finditer(r"\S+", prompt), count)]
    return prompt[: ends[-1]] if ends else ""


def _scale_embedding(scale_B: torch.Tensor, width: int) -> torch.Tensor:
    """Return the sines and cosines [B, width] of a guidance scale less 1, as a latent consistency model reads them: those of a time step
    (Vaswani et al. 2017, §3.5), of a thousand times the scale."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = (scale_B.float() * 1000)[:, None] * frequencies[None, :]
    embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedded, (0, width % 2))


def _check_latents(family: StableDiffusion) -> None:
    unet, vae = family.configs["unet"], family.configs["vae"]
    read, written, decoded = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not read == written == decoded:
        kind = ", as for inpainting" if read == 2 * decoded + 1 else ""
        raise InputError(
            got=f"{family.folder}, whose unet reads latents of {read} channels{kind}, and writes {written}, and whose vae "
            f"decodes {decoded}",
            expected="one number of channels",
            do="choose a text-to-image model",
        )
    factor = vae.get("scaling_factor", 1.0)
    if not isinstance(factor, (int, float)) or not factor > 0:
        raise InputError(
            got=f"{family.folder / 'vae' / 'config.json'} with the scaling_factor {factor}",
            expected="a positive number",
            do="set it to the one the model was trained with (0.18215 for Stable Diffusion 1 and 2, 0.13025 for XL)",
        )


def _check_text_width(family: StableDiffusion) -> None:
    """Check that the UNet reads embeddings of the width that the text encoders give together."""
    unet = family.configs["unet"]
    text_widths: list[Any] = [family.configs[encoder].get("hidden_size") for _, encoder in family.text_parts]
    is_projected = unet.get("encoder_hid_dim") is not None and unet.get("encoder_hid_dim_type") in (None, "text_proj")
    name = "encoder_hid_dim" if is_projected else "cross_attention_dim"
    width = unet.get(name)
    if isinstance(width, int) and all(isinstance(one, int) for one in text_widths) and width != sum(text_widths):
        raise InputError(
            got=f"{family.folder}, whose unet has the {name} {width}, and whose text encoder gives {' + '.join(map(str, text_widths))}",
            expected="one width",
            do="restore unet/ and text_encoder/ from one model",
        )
