"""PixArt-α and PixArt-Σ: cross-attention to the tokens of T5-XXL, a prediction of noise with a learned variance.

Source: diffusers 0.42.1, ``pipelines/pixart_alpha/``. Prompts are written in lower case; the library's further cleaning of captions is off,
as it is wherever Beautiful Soup is not installed. Images have the side that is asked for.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import NoiseByBetas, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import LearnedVariance, doubled, first_half_of_channels
from featurize.generate.families.text import padded_ids, token_counts
from lugpi_core.errors import InputError

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"


class PixArtSigma(NoiseByBetas, LearnedVariance):
    """PixArtSigmaPipeline: 300 tokens."""

    part_classes: ClassVar = {
        # Folders from before PixArt had a class of its own say Transformer2DModel; diffusers reads them as this class, too.
        "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
        "vae": ("AutoencoderKL",),
        _ENCODER: ("T5EncoderModel",),
    }
    loaded_as: ClassVar = {"transformer": "PixArtTransformer2DModel"}
    text_pairs: ClassVar = ((_TOKENIZER, _ENCODER),)
    shifts_latents: ClassVar = False

    def check(self) -> None:
        """Check besides that a transformer that says Transformer2DModel is one of PixArt.

        Raises:
            InputError: it is another.
        """
        super().check()
        if (norm := self.transformer.get("norm_type", "ada_norm_single")) != "ada_norm_single":
            raise InputError(
                got=f"{self.folder / 'transformer' / 'config.json'} with the norm_type {norm!r}",
                expected="ada_norm_single, as all of PixArt's",
                do="choose another generator",
            )

    @property
    def tokens_read(self) -> int:
        return 300

    @property
    def usual(self) -> Usual:
        return Usual(steps=20, guidance=4.5)

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        width = int(self.configs[_ENCODER]["d_model"])
        return {"tokens": ((self.tokens_read, width), torch.float32), "mask": ((self.tokens_read,), torch.int64)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        return token_counts(tokenizers[_TOKENIZER], _lower(prompts))

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        ids_PL, mask_PL = padded_ids(parts.tokenizers[_TOKENIZER], _lower(prompts), self.tokens_read)
        mask_PL = mask_PL.to(parts.device)
        tokens_PLD = parts.text_encoders[_ENCODER](ids_PL.to(parts.device), attention_mask=mask_PL)[0]
        return PromptEmbeddings({"tokens": tokens_PLD, "mask": mask_PL})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        rows = doubled(embeddings, negative)
        added = self.added_conditions(rows["tokens"], sampling.size_px)
        return {"encoder_hidden_states": rows["tokens"], "encoder_attention_mask": rows["mask"], "added_cond_kwargs": added}

    def added_conditions(self, tokens_BLD: torch.Tensor, size_px: int) -> Mapping[str, torch.Tensor | None]:
        """Return what the transformer reads of the image's size: nothing."""
        return {"resolution": None, "aspect_ratio": None}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        rows = self.scaled(parts.scheduler, torch.cat([latents] * copies), step)
        time = step.on_device[None].expand(len(rows))
        predicted: torch.Tensor = parts.denoiser(rows, timestep=time, **conditions, return_dict=False)[0]
        return predicted


class PixArtAlpha(PixArtSigma):
    """PixArtAlphaPipeline: 120 tokens; the model of 1024 pixels reads the image's size."""

    @property
    def tokens_read(self) -> int:
        return 120

    def added_conditions(self, tokens_BLD: torch.Tensor, size_px: int) -> Mapping[str, torch.Tensor | None]:
        if self.transformer["sample_size"] != 128:
            return super().added_conditions(tokens_BLD, size_px)
        rows = len(tokens_BLD)
        return {"resolution": tokens_BLD.new_full((rows, 2), size_px), "aspect_ratio": tokens_BLD.new_ones((rows, 1))}

    def step(self, scheduler: Any, predicted: torch.Tensor, step: Step, latents: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        if step.last:
            return super().step(scheduler, predicted, step, latents, extra)
        # The distilled one-step model (DMD): the library takes the denoised latents.
        denoised = scheduler.step(first_half_of_channels(predicted, self.channels), step.on_host, latents, **extra, return_dict=False)
        after: torch.Tensor = denoised[1] if len(denoised) > 1 else denoised[0]
        return after


def _lower(prompts: Sequence[str]) -> list[str]:
    return [prompt.lower().strip() for prompt in prompts]
