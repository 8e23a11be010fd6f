"""HunyuanDiT: a transformer with skip connections that reads prompts by a BERT and by multilingual T5.

Source: diffusers 0.42.1, ``pipelines/hunyuandit/pipeline_hunyuandit.py``. The BERT reads 77 tokens, T5 256. The size that the picture is
said to have had is 1024 × 1024, as by default in the library; images have the side that is asked for. The safety checker is not loaded.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import NoiseByBetas, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer, doubled
from featurize.generate.families.text import padded_ids, token_counts

_BERT, _T5 = ("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")
_LENGTHS: Mapping[tuple[str, str], int] = {_BERT: 77, _T5: 256}
# Names of the tokens and masks that each text encoder gives.
_NAMES: Mapping[tuple[str, str], tuple[str, str]] = {_BERT: ("tokens", "mask"), _T5: ("tokens_t5", "mask_t5")}
_SAID_PX = 1024
_POSITIONS_PX = 512


class HunyuanDiT(NoiseByBetas, ImageTransformer):
    """HunyuanDiTPipeline."""

    part_classes: ClassVar = {
        "transformer": ("HunyuanDiT2DModel",),
        "vae": ("AutoencoderKL",),
        _BERT[1]: ("BertModel",),
        _T5[1]: ("T5EncoderModel",),
    }
    text_pairs: ClassVar = (_BERT, _T5)
    shifts_latents: ClassVar = False

    @property
    def tokens_read(self) -> int:
        return _LENGTHS[_T5]

    @property
    def usual(self) -> Usual:
        return Usual(steps=50, guidance=5.0)

    def text_length(self, encoder: str) -> int:
        return _LENGTHS[_BERT if encoder == _BERT[1] else _T5]

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        widths = {_BERT: self.transformer["cross_attention_dim"], _T5: self.transformer["cross_attention_dim_t5"]}
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for pair, (tokens, mask) in _NAMES.items():
            shapes |= {tokens: ((_LENGTHS[pair], int(widths[pair])), torch.float32), mask: ((_LENGTHS[pair],), torch.int64)}
        return shapes

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        return token_counts(tokenizers[_T5[0]], prompts)

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        tensors = {}
        for (tokenizer, encoder), (tokens, mask) in _NAMES.items():
            ids_PL, mask_PL = padded_ids(parts.tokenizers[tokenizer], prompts, _LENGTHS[tokenizer, encoder])
            tensors[mask] = mask_PL.to(parts.device)
            tensors[tokens] = parts.text_encoders[encoder](ids_PL.to(parts.device), attention_mask=tensors[mask])[0]
        return PromptEmbeddings(tensors)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        from diffusers.models.embeddings import get_2d_rotary_pos_embed

        rows = doubled(embeddings, negative)
        tokens, count, side = rows["tokens"], len(rows), sampling.size_px
        patch = parts.denoiser.config.patch_size
        cells, most = sampling.size_px // 8 // patch, _POSITIONS_PX // 8 // patch
        width = parts.denoiser.inner_dim // parts.denoiser.num_heads
        # Positions of any number of cells lie between 0 and those of 512 pixels.
        ends = ((0, 0), (most, most))
        rotations = get_2d_rotary_pos_embed(width, ends, (cells, cells), device=parts.device, output_type="pt")
        sizes = torch.tensor([[_SAID_PX, _SAID_PX, side, side, 0, 0]], dtype=tokens.dtype, device=parts.device)
        return {
            "encoder_hidden_states": tokens,
            "text_embedding_mask": rows["mask"],
            "encoder_hidden_states_t5": rows["tokens_t5"],
            "text_embedding_mask_t5": rows["mask_t5"],
            "image_meta_size": sizes.repeat(count, 1),
            "style": torch.zeros(count, dtype=torch.long, device=parts.device),
            "image_rotary_emb": rotations,
        }

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        rows = self.scaled(parts.scheduler, torch.cat([latents] * copies), step)
        time = step.on_device.to(rows.dtype).expand(len(rows))
        predicted: torch.Tensor = parts.denoiser(rows, time, **conditions, return_dict=False)[0]
        return predicted.chunk(2, dim=1)[0]  # the other half is the learned variance
