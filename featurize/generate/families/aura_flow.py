"""AuraFlow: flow matching, prompts read by UMT5 (Pile-T5).

Source: diffusers 0.42.1, ``pipelines/aura_flow/pipeline_aura_flow.py``. The vectors of padding are zeros, and take part.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer, doubled
from featurize.generate.families.text import padded_ids, token_counts

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"


class AuraFlow(ImageTransformer):
    """AuraFlowPipeline."""

    part_classes: ClassVar = {"transformer": ("AuraFlowTransformer2DModel",), "vae": ("AutoencoderKL",), _ENCODER: ("UMT5EncoderModel",)}
    text_pairs: ClassVar = ((_TOKENIZER, _ENCODER),)
    shifts_latents: ClassVar = False

    @property
    def most_px(self) -> int:
        # A larger image would take positions from the grid's other end, without an error (AuraFlowPatchEmbed).
        return math.isqrt(int(self.transformer.get("pos_embed_max_size", 1024))) * self.multiple_px

    @property
    def tokens_read(self) -> int:
        return 256

    @property
    def usual(self) -> Usual:
        return Usual(steps=50, guidance=3.5)

    def dtypes(self, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
        """Return float32 for a decoder that overflows in float16, as its configuration says."""
        return {"vae": torch.float32} if dtype == torch.float16 and self.vae.get("force_upcast", True) else {}

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"tokens": ((self.tokens_read, int(self.transformer["joint_attention_dim"])), torch.float32)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        return token_counts(tokenizers[_TOKENIZER], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        ids_PL, mask_PL = (tensor.to(parts.device) for tensor in padded_ids(parts.tokenizers[_TOKENIZER], prompts, self.tokens_read))
        tokens_PLD = parts.text_encoders[_ENCODER](input_ids=ids_PL, attention_mask=mask_PL)[0]
        return PromptEmbeddings({"tokens": tokens_PLD * mask_PL.unsqueeze(-1)})

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        super().set_timesteps(scheduler, sampling)
        scheduler.set_begin_index(0)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        return {"encoder_hidden_states": doubled(embeddings, negative)["tokens"]}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        rows = torch.cat([latents] * copies)
        time = (step.on_device / 1000).to(latents.dtype).expand(len(rows))
        predicted: torch.Tensor = parts.denoiser(rows, timestep=time, **conditions, return_dict=False)[0]
        return predicted
