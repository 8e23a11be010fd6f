"""Qwen-Image: prompts of their own lengths, described to Qwen 2.5 in a template whose beginning the transformer does not see.

Source: diffusers 0.42.1, ``pipelines/qwenimage/pipeline_qwenimage.py``. ``--guidance`` is the pipeline's ``true_cfg_scale``, with an empty
negative prompt; the guided prediction keeps the length of the conditional one. A prompt that is too long is cut before it is put into the
template, so that the template's end stays; the library cuts the end.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells, T image tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import LENGTHS, Parts, PromptEmbeddings, Sampling, Usual
from featurize.generate.families.packed import HALVES, TOKENS, LengthKept, PackedTransformer
from featurize.generate.families.text import cut_to_fit, token_counts
from lugpi_core.errors import InputError

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
# As the model was trained.
_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)


class QwenImage(LengthKept, PackedTransformer):
    """QwenImagePipeline."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage",),
        _ENCODER: ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel"),
    }
    loaded_as: ClassVar[Mapping[str, str]] = {_ENCODER: "Qwen2_5_VLModel"}
    text_pairs = ((_TOKENIZER, _ENCODER),)
    sorts_prompts = True
    latent_channels_field = "z_dim"
    asks_sampler = False
    unseen_tokens = 34  # the system's turn

    def check(self) -> None:
        """Check besides that the transformer does not take the guidance scale: diffusers 0.42.1 has the setting, and fails at its first
        step.

        Raises:
            InputError: it does.
        """
        super().check()
        if self.transformer.get("guidance_embeds", False):
            raise InputError(
                got=f"{self.folder / 'transformer' / 'config.json'} with guidance_embeds true, which diffusers cannot run in this class",
                expected="a transformer without it, as all of Qwen-Image's",
                do="choose another model",
            )

    @property
    def cell_px(self) -> int:
        """Pixels of a latent cell's side."""
        return int(2 ** len(self.vae["temperal_downsample"]))

    @property
    def tokens_read(self) -> int:
        """512, and those of the template's beginning."""
        return self.unseen_tokens + 512

    @property
    def notes(self) -> Mapping[str, str]:
        """The template."""
        return {"template": _TEMPLATE}

    @property
    def usual(self) -> Usual:
        """Those of QwenImagePipeline."""
        return Usual(steps=50, guidance=4.0)

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D] and their number."""
        return {**super().embedding_shapes(), LENGTHS: ((), torch.int64)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt in its template."""
        return token_counts(tokenizers[_TOKENIZER], [_TEMPLATE.format(prompt) for prompt in prompts])

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D] and their numbers [P]."""
        tokenizer = parts.tokenizers[_TOKENIZER]
        texts = [_TEMPLATE.format(cut_to_fit(tokenizer, prompt, _TEMPLATE.format, self.tokens_read)) for prompt in prompts]
        encoded = tokenizer(texts, padding=True, max_length=self.tokens_read, truncation=True, return_tensors="pt")
        ids_PL, mask_PL = encoded["input_ids"].to(parts.device), encoded["attention_mask"]
        output = parts.text_encoders[_ENCODER](input_ids=ids_PL, attention_mask=mask_PL.to(parts.device), use_cache=False)
        unseen, is_there_PL = self.unseen_tokens, mask_PL.bool().to(parts.device)
        rows = [tokens_LD[mask_L][unseen:] for tokens_LD, mask_L in zip(output.last_hidden_state, is_there_PL, strict=True)]
        return PromptEmbeddings({TOKENS: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), LENGTHS: mask_PL.sum(dim=1) - unseen})

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text, which of its tokens are there if rows differ, and the sides of the images."""
        side = sampling.size_px // self.multiple_px
        shapes = [[(1, side, side)]] * sampling.images
        return {HALVES: [{"img_shapes": shapes, **_text_inputs(rows)} for rows in (negative, embeddings) if rows is not None]}

    def decode(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images: this decoder was made for videos, of which an image is one frame."""
        images: torch.Tensor = vae.decode(self.decoder_input(vae, stored_BChw), return_dict=False)[0]
        return images[:, :, 0]

    def decoder_input(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return latents [B, C, 1, h, w], scaled and shifted by channel."""
        mean_C111, std_C111 = (torch.tensor(vae.config[name]).view(-1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        return stored_BChw.unsqueeze(2) / (1.0 / std_C111.to(stored_BChw)) + mean_C111.to(stored_BChw)


def _text_inputs(rows: PromptEmbeddings) -> Mapping[str, Any]:
    """Return the text of a batch, as long as its longest, and a mask of the tokens that are there unless all are."""
    lengths_B = rows[LENGTHS]
    longest = int(lengths_B.max())
    tokens_BLD = rows[TOKENS][:, :longest]
    if bool((lengths_B == longest).all()):
        return {"encoder_hidden_states": tokens_BLD, "encoder_hidden_states_mask": None}
    mask_BL = torch.arange(longest)[None] < lengths_B[:, None]
    return {"encoder_hidden_states": tokens_BLD, "encoder_hidden_states_mask": mask_BL.long().to(tokens_BLD.device)}
