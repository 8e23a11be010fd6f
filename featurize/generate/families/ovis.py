"""Ovis-Image: FLUX.1's transformer read with Qwen 3's last layer, behind an instruction that it does not see.

Source: diffusers 0.42.1, ``pipelines/ovis_image/pipeline_ovis_image.py``. Prompts are padded to one length with zeros, which take
part. A prompt that is too long is cut before it is put into the chat template, so that the template's end stays; the library cuts the end.

Shapes: P prompts, L text tokens, D their width, B images.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Parts, PromptEmbeddings, Sampling, Usual
from featurize.generate.families.packed import HALVES, TOKENS, PackedTransformer, grid_positions
from featurize.generate.families.text import cut_to_fit, in_chat, in_words, padded_ids, token_counts

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
# As the model was trained.
_INSTRUCTION = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the objects and background: "
)
_CHAT: Mapping[str, bool] = {"add_generation_prompt": True, "enable_thinking": False}


class OvisImage(PackedTransformer):
    """OvisImagePipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("OvisImageTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        _ENCODER: ("Qwen3Model",),
    }
    text_pairs = ((_TOKENIZER, _ENCODER),)
    text_width_field = "hidden_size"
    unseen_tokens = 28  # of the instruction and of the turn's beginning

    @property
    def tokens_read(self) -> int:
        """256, and those of the instruction."""
        return self.unseen_tokens + 256

    @property
    def notes(self) -> Mapping[str, str]:
        """The instruction, and how the chat template is filled."""
        return {"instruction": _INSTRUCTION, "chat_template": in_words(_CHAT)}

    @property
    def usual(self) -> Usual:
        """Those of OvisImagePipeline."""
        return Usual(steps=50, guidance=5.0)

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt in its template."""
        tokenizer = tokenizers[_TOKENIZER]
        return token_counts(partial(tokenizer, add_special_tokens=False), [_in_template(tokenizer, prompt) for prompt in prompts])

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D], zeros behind those of the prompt."""
        tokenizer = parts.tokenizers[_TOKENIZER]
        plain, render = partial(tokenizer, add_special_tokens=False), partial(_in_template, tokenizer)
        texts = [render(cut_to_fit(plain, prompt, render, self.tokens_read)) for prompt in prompts]
        ids_PL, mask_PL = padded_ids(plain, texts, self.tokens_read)
        mask_PL = mask_PL.to(parts.device)
        tokens_PLD = parts.text_encoders[_ENCODER](input_ids=ids_PL.to(parts.device), attention_mask=mask_PL, use_cache=False)[0]
        return PromptEmbeddings({TOKENS: (tokens_PLD * mask_PL[..., None])[:, self.unseen_tokens :]})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text and positions: a text token is at row and column of its place."""
        places = torch.arange(embeddings[TOKENS].shape[1])
        text_L3 = torch.stack([torch.zeros_like(places), places, places], dim=1).float().to(parts.device)
        common = {"txt_ids": text_L3, "img_ids": grid_positions(sampling.size_px // self.multiple_px, parts.device)}
        return {HALVES: [{**common, "encoder_hidden_states": rows[TOKENS]} for rows in (negative, embeddings) if rows is not None]}


def _in_template(tokenizer: Any, prompt: str) -> str:
    turn = [{"role": "user", "content": _INSTRUCTION + prompt}]
    return in_chat(tokenizer, turn, **_CHAT)
