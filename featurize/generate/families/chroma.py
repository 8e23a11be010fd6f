"""Chroma: FLUX.1-schnell without CLIP, and guided; T5's padding is left out, except for one token of it.

Source: diffusers 0.42.1, ``pipelines/chroma/pipeline_chroma.py``, which adds its mask of ones and zeros to the attention's logits.

Shapes: P prompts, L text tokens, D their width, B images, T image tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Usual
from featurize.generate.families.packed import HALVES, TOKENS, PackedTransformer, grid_positions
from featurize.generate.families.text import padded_ids, token_counts

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
MASK = "mask"


class Chroma(PackedTransformer):
    """ChromaPipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("ChromaTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        _ENCODER: ("T5EncoderModel",),
    }
    text_pairs = ((_TOKENIZER, _ENCODER),)
    text_width_field = "d_model"
    asks_sampler = False

    @property
    def tokens_read(self) -> int:
        """The end token included."""
        return 512

    @property
    def usual(self) -> Usual:
        """Those of ChromaPipeline."""
        return Usual(steps=35, guidance=5.0)

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and mask [L]."""
        return {**super().embedding_shapes(), MASK: ((self.tokens_read,), torch.float32)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt."""
        return token_counts(tokenizers[_TOKENIZER], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D] and mask [P, L]: 1 for those of the prompt and the one behind them."""
        ids_PL, mask_PL = padded_ids(parts.tokenizers[_TOKENIZER], prompts, self.tokens_read)
        tokens_PLD = parts.text_encoders[_ENCODER](ids_PL.to(parts.device), attention_mask=mask_PL.to(parts.device))[0]
        read_PL = torch.arange(self.tokens_read)[None] <= mask_PL.sum(dim=1, keepdim=True)
        return PromptEmbeddings({TOKENS: tokens_PLD, MASK: read_PL.to(tokens_PLD)})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text, mask of text and image tokens, and positions."""
        positions_T3 = grid_positions(sampling.size_px // self.multiple_px, parts.device)
        halves = []
        for rows in (negative, embeddings):
            if rows is not None:
                tokens_BLD, mask_BL = rows[TOKENS], rows[MASK]
                mask = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), len(positions_T3))], dim=1)
                places_L3 = torch.zeros(tokens_BLD.shape[1], 3, device=parts.device)
                halves.append({"encoder_hidden_states": tokens_BLD, "attention_mask": mask, "txt_ids": places_L3, "img_ids": positions_T3})
        return {HALVES: halves}
