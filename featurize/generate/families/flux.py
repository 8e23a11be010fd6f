"""FLUX.1: T5's tokens beside the image's, CLIP's pooled text in every layer's modulation.

Source: diffusers 0.42.1, ``pipelines/flux/pipeline_flux.py``. FLUX.1-dev is distilled from guidance: its transformer takes the scale as an
input. FLUX.1-schnell takes none. A transformer without that input is guided where the scale is above 1, as the pipeline does with
``true_cfg_scale`` and an empty negative prompt (models that undo the distillation need it).

Shapes: P prompts, L text tokens, D their width, E width of the pooled text, B images.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Usual
from featurize.generate.families.packed import HALVES, TOKENS, PackedTransformer, grid_positions
from featurize.generate.families.text import padded_ids, token_counts
from lugpi_core.errors import InputError

_CLIP, _T5 = "text_encoder", "text_encoder_2"
POOLED = "pooled"


class Flux(PackedTransformer):
    """FluxPipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        _CLIP: ("CLIPTextModel",),
        _T5: ("T5EncoderModel",),
    }
    text_pairs = (("tokenizer", _CLIP), ("tokenizer_2", _T5))

    def check(self) -> None:
        """Check besides that the transformer reads what the text encoders give.

        Raises:
            InputError: it does not.
        """
        super().check()
        widths = self.transformer["pooled_projection_dim"], self.transformer["joint_attention_dim"]
        given = self.configs[_CLIP].get("hidden_size", 512), self.configs[_T5].get("d_model", 512)
        if widths != given:
            raise InputError(
                got=f"{self.folder}, whose transformer reads pooled text and tokens of widths {widths}, and whose encoders give {given}",
                expected="the same widths",
                do=f"restore transformer/, {_CLIP}/ and {_T5}/ from one model",
            )

    @property
    def tokens_read(self) -> int:
        """T5's. CLIP's pooled text is of the first 77."""
        return 512

    @property
    def usual(self) -> Usual:
        """Those of FluxPipeline, whose guidance does nothing in a transformer that does not take it."""
        return Usual(steps=28, guidance=3.5 if self.transformer.get("guidance_embeds", False) else 1.0)

    def text_length(self, encoder: str) -> int:
        """Return 77 for CLIP and 512 for T5."""
        return min(77, self.configs[_CLIP].get("max_position_embeddings", 77)) if encoder == _CLIP else self.tokens_read

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and pooled [E]."""
        return {**super().embedding_shapes(), POOLED: ((int(self.transformer["pooled_projection_dim"]),), torch.float32)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return T5's tokens of each prompt."""
        return token_counts(tokenizers["tokenizer_2"], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D], padding included, which takes part, and pooled [P, E]."""
        clip, t5 = parts.tokenizers["tokenizer"], parts.tokenizers["tokenizer_2"]
        clip_ids_PL, _ = padded_ids(clip, prompts, min(clip.model_max_length, self.text_length(_CLIP)))
        t5_ids_PL, _ = padded_ids(t5, prompts, self.tokens_read)
        pooled_PE = parts.text_encoders[_CLIP](clip_ids_PL.to(parts.device)).pooler_output
        tokens_PLD = parts.text_encoders[_T5](t5_ids_PL.to(parts.device))[0]
        return PromptEmbeddings({TOKENS: tokens_PLD, POOLED: pooled_PE})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text, positions, of which a text token has none, and the scale of those that take it."""
        guidance = None
        if self.transformer.get("guidance_embeds", False):
            guidance = torch.full([1], sampling.guidance, device=parts.device, dtype=torch.float32).expand(sampling.images)
        common = {"guidance": guidance, "img_ids": grid_positions(sampling.size_px // self.multiple_px, parts.device)}
        halves = []
        for rows in (negative, embeddings):
            if rows is not None:
                positions_L3 = torch.zeros(rows[TOKENS].shape[1], 3, device=parts.device)
                text = {"encoder_hidden_states": rows[TOKENS], "pooled_projections": rows[POOLED], "txt_ids": positions_L3}
                halves.append({**common, **text})
        return {HALVES: halves}
