"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5-XXL, which may be missing.

Source: diffusers 0.42.1, ``pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py``. Each CLIP reads 77 tokens and T5 256; no mask is
passed, so padding takes part. Without T5 the transformer reads zeros in its place, and of a prompt no more than CLIP's tokens.

Shapes: P prompts, L text tokens, D their width, E width of the pooled text, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer, doubled
from featurize.generate.families.packed import shift_by_tokens
from featurize.generate.families.text import padded_ids, token_counts

_CLIPS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
_T5 = ("tokenizer_3", "text_encoder_3")
_T5_TOKENS = 256


class StableDiffusion3(ImageTransformer):
    """StableDiffusion3Pipeline."""

    part_classes: ClassVar = {
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel", None),
    }
    text_pairs: ClassVar = (*_CLIPS, _T5)

    @property
    def _clip_tokens(self) -> int:
        """Both CLIPs are given as many tokens as the first tokenizer takes."""
        return min(int(self.configs["tokenizer"].get("model_max_length", 77)), 77)

    @property
    def most_px(self) -> int:
        return int(self.transformer.get("pos_embed_max_size", 96)) * self.multiple_px

    @property
    def tokens_read(self) -> int:
        return _T5_TOKENS if _T5 in self.text_parts else self._clip_tokens

    @property
    def usual(self) -> Usual:
        return Usual(steps=28, guidance=7.0)

    def text_length(self, encoder: str) -> int:
        return _T5_TOKENS if encoder == _T5[1] else self._clip_tokens

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            "tokens": ((self._clip_tokens + _T5_TOKENS, int(self.transformer["joint_attention_dim"])), torch.float32),
            "pooled": ((int(self.transformer["pooled_projection_dim"]),), torch.float32),
        }

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        longest = _T5 if _T5 in self.text_parts else _CLIPS[0]
        return token_counts(tokenizers[longest[0]], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        hidden, pooled = [], []
        for tokenizer, encoder in _CLIPS:
            ids_PL, _ = padded_ids(parts.tokenizers[tokenizer], prompts, self._clip_tokens)
            output = parts.text_encoders[encoder](ids_PL.to(parts.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output[0])
        clip_PLD = torch.cat(hidden, dim=-1)
        t5_PLD = self._read_by_t5(parts, prompts, clip_PLD)
        clip_PLD = torch.nn.functional.pad(clip_PLD, (0, t5_PLD.shape[-1] - clip_PLD.shape[-1]))
        return PromptEmbeddings({"tokens": torch.cat([clip_PLD, t5_PLD], dim=1), "pooled": torch.cat(pooled, dim=-1)})

    def _read_by_t5(self, parts: Parts, prompts: Sequence[str], clip_PLD: torch.Tensor) -> torch.Tensor:
        if _T5 not in self.text_parts:
            return clip_PLD.new_zeros((len(prompts), _T5_TOKENS, int(self.transformer["joint_attention_dim"])))
        ids_PL, _ = padded_ids(parts.tokenizers[_T5[0]], prompts, _T5_TOKENS)
        tokens_PLD: torch.Tensor = parts.text_encoders[_T5[1]](ids_PL.to(parts.device))[0]
        return tokens_PLD

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        shifted = {}
        if scheduler.config.get("use_dynamic_shifting"):
            cells = (sampling.size_px // self.multiple_px) ** 2
            shifted["mu"] = shift_by_tokens(cells, scheduler.config, most=1.16)
        scheduler.set_timesteps(sampling.steps, device="cpu", **shifted)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        rows = doubled(embeddings, negative)
        return {"encoder_hidden_states": rows["tokens"], "pooled_projections": rows["pooled"]}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        rows = torch.cat([latents] * copies)
        predicted: torch.Tensor = parts.denoiser(rows, timestep=step.on_device.expand(len(rows)), **conditions, return_dict=False)[0]
        return predicted
