"""Z-Image: one stream of image and text tokens; prompts of their own lengths, read by Qwen 3 in a chat template.

Source: diffusers 0.42.1, ``pipelines/z_image/pipeline_z_image.py``. Latents are float32 between the steps. Guidance acts for every scale
above 0, with c + s (c − u); the library's truncation and renormalisation are off, as they are by default. A prompt that is too long is cut
before it is put into the template, so that the template's end stays; the library cuts the end.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import LENGTHS, Guidance, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import ImageTransformer, doubled
from featurize.generate.families.packed import shift_by_tokens
from featurize.generate.families.text import cut_to_fit, in_chat, in_words, padded_ids, token_counts

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
_CHAT: Mapping[str, bool] = {"add_generation_prompt": True, "enable_thinking": True}


class ZImage(ImageTransformer):
    """ZImagePipeline, Turbo (guidance scale 0) or not."""

    part_classes: ClassVar = {
        "transformer": ("ZImageTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        _ENCODER: ("Qwen3Model", "Qwen3ForCausalLM"),
    }
    loaded_as: ClassVar = {_ENCODER: "Qwen3Model"}
    text_pairs: ClassVar = ((_TOKENIZER, _ENCODER),)

    @property
    def native_px(self) -> int:
        return 1024

    @property
    def multiple_px(self) -> int:
        return 2 * self.cell_px

    @property
    def most_px(self) -> int:
        return int(min(self.transformer.get("axes_lens", (1024, 512, 512))[1:])) * self.multiple_px

    @property
    def tokens_read(self) -> int:
        return 512

    @property
    def notes(self) -> Mapping[str, str]:
        return {"chat_template": in_words(_CHAT)}

    @property
    def usual(self) -> Usual:
        return Usual(steps=50, guidance=5.0)

    def guidance_kind(self, scale: float) -> Guidance:
        return "cfg" if scale > 0 else "none"

    def layers_read(self, encoder: str) -> int | None:
        return int(self.configs[encoder]["num_hidden_layers"]) - 1

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        width = int(self.transformer["cap_feat_dim"])
        return {"tokens": ((self.tokens_read, width), torch.float32), LENGTHS: ((), torch.int64)}

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        tokenizer = tokenizers[_TOKENIZER]
        return token_counts(tokenizer, [_in_template(tokenizer, prompt) for prompt in prompts])

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        tokenizer = parts.tokenizers[_TOKENIZER]
        render = partial(_in_template, tokenizer)
        texts = [render(cut_to_fit(tokenizer, prompt, render, self.tokens_read)) for prompt in prompts]
        ids_PL, mask_PL = padded_ids(tokenizer, texts, self.tokens_read)
        output = parts.text_encoders[_ENCODER](input_ids=ids_PL.to(parts.device), attention_mask=mask_PL.bool().to(parts.device))
        lengths_P = mask_PL.sum(dim=1)
        rows = [tokens_LD[mask_L.bool()] for tokens_LD, mask_L in zip(output.last_hidden_state, mask_PL.to(parts.device), strict=True)]
        return PromptEmbeddings({"tokens": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), LENGTHS: lengths_P})

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        cells = (sampling.size_px // self.multiple_px) ** 2
        sigmas = torch.linspace(1.0, 1 / sampling.steps, sampling.steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, device="cpu", mu=shift_by_tokens(cells, scheduler.config))
        scheduler.set_begin_index(0)

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return noise_BChw

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        rows = doubled(embeddings, negative)
        texts = [tokens_LD[:length] for tokens_LD, length in zip(rows["tokens"], rows[LENGTHS].tolist(), strict=True)]
        return {"cap_feats": texts}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        texts = conditions["cap_feats"]
        rows = torch.cat([latents.to(texts[0].dtype)] * copies)
        time = (1000 - step.on_device.expand(len(rows))) / 1000
        predicted = parts.denoiser(list(rows.unsqueeze(2).unbind()), time, texts, return_dict=False)[0]
        return torch.stack([row.float() for row in predicted]).squeeze(2)

    def guide(self, predicted: torch.Tensor, scale: float) -> torch.Tensor:
        unconditional, conditional = predicted.chunk(2)
        return conditional + scale * (conditional - unconditional)

    def step(self, scheduler: Any, predicted: torch.Tensor, step: Step, latents: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        return super().step(scheduler, -predicted, step, latents, extra)


def _in_template(tokenizer: Any, prompt: str) -> str:
    message = [{"role": "user", "content": prompt}]
    return in_chat(tokenizer, message, **_CHAT)
