"""CogView4: flow matching, prompts of their own lengths, read by GLM-4.

Source: diffusers 0.42.1, ``pipelines/cogview4/pipeline_cogview4.py``. A prompt is padded on its left to a multiple of 16 tokens, and the
padding takes part. The library pads the prompts of a batch to the longest of them, which gives other pictures beside other prompts; here
each row is what the library's pipeline gives for one prompt alone, so rows of other lengths are computed apart.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from featurize.generate.families.family import LENGTHS, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer
from featurize.generate.families.text import rows_of_length, token_counts

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
_MULTIPLE = 16


class CogView4(ImageTransformer):
    """CogView4Pipeline."""

    part_classes: ClassVar = {"transformer": ("CogView4Transformer2DModel",), "vae": ("AutoencoderKL",), _ENCODER: ("GlmModel",)}
    text_pairs: ClassVar = ((_TOKENIZER, _ENCODER),)
    sorts_prompts: ClassVar = True
    shifts_latents: ClassVar = False

    @property
    def tokens_read(self) -> int:
        return 1024

    @property
    def usual(self) -> Usual:
        return Usual(steps=50, guidance=5.0)

    def layers_read(self, encoder: str) -> int | None:
        return int(self.configs[encoder]["num_hidden_layers"]) - 1

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        width = int(self.transformer["text_embed_dim"])
        return {"tokens": ((self.tokens_read, width), torch.float32), LENGTHS: ((), torch.int64)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        return token_counts(tokenizers[_TOKENIZER], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        tokenizer = parts.tokenizers[_TOKENIZER]
        ids = tokenizer(list(prompts), max_length=self.tokens_read, truncation=True)["input_ids"]
        padded = [[tokenizer.pad_token_id] * (-len(row) % _MULTIPLE) + row for row in ids]
        lengths = [len(row) for row in padded]
        width = int(self.transformer["text_embed_dim"])
        dtype = next(parts.text_encoders[_ENCODER].parameters()).dtype
        tokens_PLD = torch.zeros((len(prompts), max(lengths), width), dtype=dtype, device=parts.device)
        for length, rows in rows_of_length(lengths).items():
            ids_RL = torch.tensor([padded[row] for row in rows], device=parts.device)
            tokens_PLD[rows, :length] = parts.text_encoders[_ENCODER](ids_RL).last_hidden_state
        return PromptEmbeddings({"tokens": tokens_PLD, LENGTHS: torch.tensor(lengths)})

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        config = scheduler.config
        times = np.linspace(config.num_train_timesteps, 1.0, sampling.steps).astype(np.int64).astype(np.float32)
        cells = (sampling.size_px // self.cell_px) ** 2 // int(self.transformer["patch_size"]) ** 2
        ratio = (cells / config.get("base_image_seq_len", 256)) ** 0.5
        mu = ratio * config.get("max_shift", 0.75) + config.get("base_shift", 0.25)
        scheduler.set_timesteps(timesteps=times, sigmas=times / config.num_train_timesteps, device="cpu", mu=mu)

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return noise_BChw

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        side = torch.full((sampling.images, 2), sampling.size_px).to(embeddings["tokens"])
        return {"halves": [half for half in (negative, embeddings) if half is not None], "sizes": (side, torch.zeros_like(side))}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        side, corner = conditions["sizes"]
        latents = latents.to(side.dtype)
        predicted = []
        for half in conditions["halves"]:
            rows_BChw = torch.empty_like(latents)
            for length, rows in rows_of_length(half[LENGTHS].tolist()).items():
                rows_BChw[rows] = parts.denoiser(
                    hidden_states=latents[rows],
                    encoder_hidden_states=half["tokens"][rows, :length],
                    timestep=step.on_device.expand(len(rows)),
                    original_size=side[rows],
                    target_size=side[rows],
                    crop_coords=corner[rows],
                    return_dict=False,
                )[0]
            predicted.append(rows_BChw)
        return torch.cat(predicted)
