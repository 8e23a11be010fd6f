"""Kandinsky 5 Image: prompts of their own lengths, read by Qwen 2.5 VL in a template, and by CLIP for one vector.

Source: diffusers 0.42.1, ``pipelines/kandinsky5/pipeline_kandinsky_t2i.py``. The library draws about 1024 × 1024 pixels whatever is asked;
here images have the side that is asked for. It pads the prompts of a batch to the longest without a mask; here each row is what its
pipeline gives for one prompt alone. A prompt that is too long is cut before it is put into the template, so that the template's end stays.

Shapes: P prompts, L text tokens, D their width, E width of the pooled text, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import LENGTHS, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer
from featurize.generate.families.text import cut_to_fit, padded_ids, rows_of_length, token_counts

_QWEN, _CLIP = ("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")
_CLIP_TOKENS = 77
_PROMPT_TOKENS = 512
_MOST_POSITIONS = 128  # rows or columns of patches: Kandinsky5RoPE3D's own


class Kandinsky5(ImageTransformer):
    """Kandinsky5T2IPipeline."""

    part_classes: ClassVar = {
        "transformer": ("Kandinsky5Transformer3DModel",),
        "vae": ("AutoencoderKL",),
        _QWEN[1]: ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
        _CLIP[1]: ("CLIPTextModel",),
    }
    loaded_as: ClassVar = {_QWEN[1]: "Qwen2_5_VLModel"}
    text_pairs: ClassVar = (_QWEN, _CLIP)
    sorts_prompts: ClassVar = True
    shifts_latents: ClassVar = False

    @property
    def channels(self) -> int:
        return int(self.transformer["in_visual_dim"])

    @property
    def native_px(self) -> int:
        return 1024

    @property
    def multiple_px(self) -> int:
        return 2 * self.cell_px

    @cached_property
    def _template(self) -> tuple[str, int]:
        """The library's template, and how many of its tokens come before the prompt."""
        from diffusers import Kandinsky5T2IPipeline

        pipeline = Kandinsky5T2IPipeline(*[None] * 7)
        return pipeline.prompt_template, pipeline.prompt_template_encode_start_idx

    @property
    def most_px(self) -> int:
        return _MOST_POSITIONS * self.multiple_px

    @property
    def tokens_read(self) -> int:
        return self._template[1] + _PROMPT_TOKENS

    @property
    def notes(self) -> Mapping[str, str]:
        return {"template": self._template[0]}

    @property
    def usual(self) -> Usual:
        return Usual(steps=50, guidance=3.5)

    def text_length(self, encoder: str) -> int:
        return self.tokens_read if encoder == _QWEN[1] else _CLIP_TOKENS

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            "tokens": ((_PROMPT_TOKENS, int(self.transformer["in_text_dim"])), torch.float32),
            "pooled": ((int(self.transformer["in_text_dim2"]),), torch.float32),
            LENGTHS: ((), torch.int64),
        }

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        return token_counts(tokenizers[_QWEN[0]], [self._template[0].format(prompt) for prompt in _cleaned(prompts)])

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        (template, start), prompts = self._template, _cleaned(prompts)
        tokenizer, encoder = parts.tokenizers[_QWEN[0]], parts.text_encoders[_QWEN[1]]
        texts = [template.format(cut_to_fit(tokenizer, prompt, template.format, self.tokens_read)) for prompt in prompts]
        ids = tokenizer(texts, max_length=self.tokens_read, truncation=True)["input_ids"]
        rows_LD: list[torch.Tensor] = [torch.empty(0)] * len(ids)
        for rows in rows_of_length([len(row) for row in ids]).values():
            ids_RL = torch.tensor([ids[row] for row in rows], device=parts.device)
            for row, tokens_LD in zip(rows, encoder(input_ids=ids_RL).last_hidden_state, strict=True):
                rows_LD[row] = tokens_LD[start:]
        clip_ids, clip_mask = (tensor.to(parts.device) for tensor in padded_ids(parts.tokenizers[_CLIP[0]], prompts, _CLIP_TOKENS))
        pooled_PE = parts.text_encoders[_CLIP[1]](clip_ids, attention_mask=clip_mask).pooler_output
        tokens_PLD = torch.nn.utils.rnn.pad_sequence(rows_LD, batch_first=True)
        return PromptEmbeddings({"tokens": tokens_PLD, "pooled": pooled_PE, LENGTHS: torch.tensor([len(row) for row in rows_LD])})

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return them as the transformer reads them: [B, 1, h, w, C], one frame."""
        return noise_BChw.to(dtype).permute(0, 2, 3, 1).unsqueeze(1)

    def stored(self, latents: torch.Tensor, size_px: int) -> torch.Tensor:
        return latents.squeeze(1).permute(0, 3, 1, 2)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        cells = torch.arange(sampling.size_px // self.multiple_px, device=parts.device)
        halves = [half for half in (negative, embeddings) if half is not None]
        return {"halves": halves, "visual_rope_pos": [torch.arange(1, device=parts.device), cells, cells]}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        predicted = []
        for half in conditions["halves"]:
            dtype = half["tokens"].dtype
            rows_B1hwC = torch.empty_like(latents, dtype=dtype)
            for length, rows in rows_of_length(half[LENGTHS].tolist()).items():
                rows_B1hwC[rows] = parts.denoiser(
                    hidden_states=latents[rows].to(dtype),
                    encoder_hidden_states=half["tokens"][rows, :length],
                    pooled_projections=half["pooled"][rows],
                    timestep=step.on_device[None].repeat(len(rows)).to(dtype),
                    visual_rope_pos=conditions["visual_rope_pos"],
                    text_rope_pos=torch.arange(length, device=latents.device),
                    return_dict=True,
                ).sample
            predicted.append(rows_B1hwC)
        return torch.cat(predicted)


def _cleaned(prompts: Sequence[str]) -> list[str]:
    """Return prompts as the library reads them: without HTML entities, broken encodings and repeated spaces."""
    from diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i import prompt_clean

    return [str(prompt_clean(prompt)) for prompt in prompts]
