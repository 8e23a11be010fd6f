"""Lumina-Image 2: one stream of text and image tokens, an instruction before every prompt.

Source: diffusers 0.42.1, ``pipelines/lumina2/pipeline_lumina2.py``. Time runs from 0 to 1 and the prediction is negated. The guided
prediction keeps the length of the conditional one in every row of latent cells, as the library has it; the negative prompt is empty and has
no instruction. The shift of samplers with dynamic shifting is that of as many image tokens as there are latent channels: the library takes
the wrong dimension.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.packed import HALVES, TOKENS, LengthKept, in_halves, set_flow_times, shift_by_tokens
from featurize.generate.families.text import padded_ids, token_counts
from lugpi_core.errors import InputError

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
MASK = "mask"
_INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual prompts "
    "or user prompts. <Prompt Start> "
)


class Lumina2(LengthKept):
    """Lumina2Pipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("Lumina2Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        _ENCODER: ("Gemma2Model",),
    }
    text_pairs = ((_TOKENIZER, _ENCODER),)

    def __init__(self, folder: Path, index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(folder, index, configs)
        self.transformer, self.vae = configs["transformer"], configs["vae"]

    def check(self) -> None:
        """Check that transformer, decoder and text encoder fit one another.

        Raises:
            InputError: they do not.
        """
        read = self.transformer["in_channels"], self.transformer["cap_feat_dim"]
        given = self.vae.get("latent_channels", 4), self.configs[_ENCODER]["hidden_size"]
        if read != given:
            raise InputError(
                got=f"{self.folder}, whose transformer reads latents and text of widths {read}, whose vae and text encoder give {given}",
                expected="the same widths",
                do="restore transformer/, vae/ and text_encoder/ from one model",
            )

    @property
    def cell_px(self) -> int:
        """Pixels of a latent cell's side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def native_px(self) -> int:
        """The side of its latents times the decoder's factor."""
        return int(self.transformer["sample_size"]) * self.cell_px

    @property
    def multiple_px(self) -> int:
        """Pixels of a token's side."""
        return int(self.transformer["patch_size"]) * self.cell_px

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """Return (C, h, w)."""
        side = size_px // self.cell_px
        return int(self.transformer["in_channels"]), side, side

    @property
    def most_px(self) -> int:
        """Patches in a row for which the transformer has positions, in pixels."""
        return int(min(self.transformer.get("axes_lens", (300, 512, 512))[1:])) * self.multiple_px

    @property
    def tokens_read(self) -> int:
        """The instruction's included."""
        return 256

    @property
    def notes(self) -> Mapping[str, str]:
        """The instruction before every prompt."""
        return {"instruction": _INSTRUCTION}

    @property
    def usual(self) -> Usual:
        """Those of Lumina2Pipeline."""
        return Usual(steps=30, guidance=4.0)

    def layers_read(self, encoder: str) -> int:
        """Return all but the last."""
        return int(self.configs[encoder]["num_hidden_layers"]) - 1

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and mask [L]."""
        tokens = self.tokens_read, int(self.transformer["cap_feat_dim"])
        return {TOKENS: (tokens, torch.float32), MASK: ((self.tokens_read,), torch.int64)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt behind the instruction."""
        return token_counts(tokenizers[_TOKENIZER], [_INSTRUCTION + prompt for prompt in prompts])

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D] and mask [P, L]."""
        return self._encode(parts, [_INSTRUCTION + prompt for prompt in prompts])

    def negative(self, parts: Parts) -> PromptEmbeddings:
        """Return the empty text, without the instruction."""
        return self._encode(parts, [""])

    def _encode(self, parts: Parts, texts: Sequence[str]) -> PromptEmbeddings:
        tokenizer = parts.tokenizers[_TOKENIZER]
        tokenizer.padding_side = "right"  # as the pipeline sets it: the transformer takes the first tokens of each row
        ids_PL, mask_PL = padded_ids(tokenizer, texts, self.tokens_read)
        mask_PL = mask_PL.to(parts.device)
        output = parts.text_encoders[_ENCODER](ids_PL.to(parts.device), attention_mask=mask_PL, use_cache=False)
        return PromptEmbeddings({TOKENS: output.last_hidden_state, MASK: mask_PL})

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        """Give equal steps from 1 to 1/steps."""
        mu = shift_by_tokens(int(self.transformer["in_channels"]), scheduler.config)
        set_flow_times(scheduler, sampling.steps, mu, asks_sampler=False)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text and which of its tokens are there."""
        halves = [rows for rows in (negative, embeddings) if rows is not None]
        return {HALVES: [{"encoder_hidden_states": rows[TOKENS], "encoder_attention_mask": rows[MASK]} for rows in halves]}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        """Return the prediction of every row at the time 1 − t / 1000."""
        time_B = (1 - step.on_device / parts.scheduler.config.num_train_timesteps).expand(len(latents))
        return in_halves(lambda inputs: parts.denoiser(hidden_states=latents, timestep=time_B, **inputs, return_dict=False)[0], conditions)

    def step(self, scheduler: Any, predicted: torch.Tensor, step: Step, latents: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        """Return the latents after a step along the negated prediction."""
        return super().step(scheduler, -predicted, step, latents, extra)
