"""FLUX.2 and FLUX.2 [klein]: patches of 2 × 2 latent cells normalised by channel, text from three layers of a language model.

Source: diffusers 0.42.1, ``pipelines/flux2/pipeline_flux2_klein.py`` and ``pipeline_flux2.py``. Latents are stored as patches, before the
decoder's batch norm is undone. Every prompt is padded to 512 tokens, and the padding takes part. A prompt that is too long is cut before it
is put into the chat template, so that the template's end stays; the library cuts the end.

Shapes: P prompts, L text tokens, D their width, B images, C channels of a patch, h × w patches, T = h · w of them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Guidance, Parts, PromptEmbeddings, Sampling, Usual
from featurize.generate.families.packed import HALVES, TOKENS, PackedTransformer, set_flow_times
from featurize.generate.families.text import cut_to_fit, in_chat, in_words, padded_ids, token_counts
from lugpi_core.errors import InputError

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
# What FLUX.2's text encoder is told before every prompt, as the model was trained.
_SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object relationships, object\n"
    "attribution and actions without speculation."
)
_CHAT: Mapping[str, bool] = {"add_generation_prompt": True, "enable_thinking": False}


class Flux2Klein(PackedTransformer):
    """Flux2KleinPipeline. Models that were distilled to few steps take no guidance; others are guided.

    Attributes:
        layers: of the text encoder, whose outputs are set side by side.
    """

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        _ENCODER: ("Qwen3ForCausalLM", "Qwen3Model"),
    }
    loaded_as: ClassVar[Mapping[str, str]] = {_ENCODER: "Qwen3Model"}
    text_pairs = ((_TOKENIZER, _ENCODER),)
    index_defaults: ClassVar[Mapping[str, Any]] = {"is_distilled": False}
    layers: ClassVar[tuple[int, int, int]] = (9, 18, 27)

    def check(self) -> None:
        """Check besides that the text encoder has the layers that are read, and the transformer their width.

        Raises:
            InputError: it does not.
        """
        super().check()
        config = self.configs[_ENCODER].get("text_config", self.configs[_ENCODER])
        read, width, depth = self.transformer["joint_attention_dim"], 3 * config["hidden_size"], config["num_hidden_layers"]
        if read != width or depth < self.layers[-1]:
            raise InputError(
                got=f"{self.folder}, whose transformer reads text of width {read}, and whose text encoder has {depth} layers, of which "
                f"three give {width}",
                expected=f"one width, and at least {self.layers[-1]} layers",
                do="restore transformer/ and text_encoder/ from one model",
            )

    @property
    def tokens_read(self) -> int:
        """The template's included."""
        return 512

    @property
    def notes(self) -> Mapping[str, str]:
        """How the chat template is filled."""
        return {"chat_template": in_words(_CHAT)}

    @property
    def usual(self) -> Usual:
        """Those of Flux2KleinPipeline; 4 steps, as their authors say, for models that were distilled to few."""
        return Usual(steps=4, guidance=1.0) if self.index.get("is_distilled", False) else Usual(steps=50, guidance=4.0)

    def guidance_kind(self, scale: float) -> Guidance:
        """Return "none" for models that were distilled to few steps: the library ignores the scale too."""
        return "cfg" if scale > 1 and not self.index.get("is_distilled", False) else "none"

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """Return (C, h, w) of patches."""
        side = size_px // self.multiple_px
        return int(self.transformer["in_channels"]), side, side

    def layers_read(self, encoder: str) -> int:
        """Return the last one."""
        return self.layers[-1]

    def in_template(self, tokenizer: Any, prompt: str) -> str:
        """Return a prompt as the user's turn of a chat, with the beginning of an answer without thoughts."""
        turn = [{"role": "user", "content": prompt}]
        return in_chat(tokenizer, turn, **_CHAT)

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt in its template."""
        tokenizer = tokenizers[_TOKENIZER]
        return token_counts(_as_written(tokenizer), [self.in_template(tokenizer, prompt) for prompt in prompts])

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return tokens [P, L, D], padding included."""
        tokenizer = parts.tokenizers[_TOKENIZER]
        render = partial(self.in_template, tokenizer)
        texts = [render(cut_to_fit(_as_written(tokenizer), prompt, render, self.tokens_read)) for prompt in prompts]
        ids_PL, mask_PL = padded_ids(_as_written(tokenizer), texts, self.tokens_read)
        output = parts.text_encoders[_ENCODER](
            input_ids=ids_PL.to(parts.device), attention_mask=mask_PL.to(parts.device), output_hidden_states=True, use_cache=False
        )
        return PromptEmbeddings({TOKENS: torch.cat([output.hidden_states[layer] for layer in self.layers], dim=-1)})

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        """Give equal steps, which the sampler shifts by the number of patches and of steps."""
        set_flow_times(scheduler, sampling.steps, _fitted_shift((sampling.size_px // self.multiple_px) ** 2, sampling.steps))

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the noise as a sequence [B, T, C]."""
        return noise_BChw.to(dtype).flatten(2).permute(0, 2, 1)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return text, positions of four numbers (0, row, column, place in the text), and no guidance."""
        side = sampling.size_px // self.multiple_px
        zero, sides, places = torch.arange(1), torch.arange(side), torch.arange(embeddings[TOKENS].shape[1])
        common = {
            "guidance": self.scale_input(parts, sampling),
            "txt_ids": torch.cartesian_prod(zero, zero, zero, places).to(parts.device),
            "img_ids": torch.cartesian_prod(zero, sides, sides, zero).to(parts.device),
        }
        return {HALVES: [{**common, "encoder_hidden_states": rows[TOKENS]} for rows in (negative, embeddings) if rows is not None]}

    def scale_input(self, parts: Parts, sampling: Sampling) -> torch.Tensor | None:
        """Return the scales [B] that the transformer takes as an input; None = it takes none."""
        return None

    def stored(self, latents: torch.Tensor, size_px: int) -> torch.Tensor:
        """Return the sequence as an image [B, C, h, w]."""
        side = size_px // self.multiple_px
        return latents.permute(0, 2, 1).reshape(len(latents), -1, side, side)

    def decoder_input(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return latents [B, C/4, 2h, 2w], the batch norm of the decoder undone."""
        mean_C, variance_C = vae.bn.running_mean, vae.bn.running_var
        std_1C11 = torch.sqrt(variance_C.view(1, -1, 1, 1) + vae.config.batch_norm_eps).to(stored_BChw)
        return unpatched(stored_BChw * std_1C11 + mean_C.view(1, -1, 1, 1).to(stored_BChw))


class Flux2(Flux2Klein):
    """Flux2Pipeline: a larger text encoder, which is told what it is for, and guidance as an input."""

    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]] = {
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        _ENCODER: ("Mistral3ForConditionalGeneration", "Mistral3Model"),
    }
    loaded_as: ClassVar[Mapping[str, str]] = {_ENCODER: "Mistral3Model"}
    index_defaults: ClassVar[Mapping[str, Any]] = {}
    layers = (10, 20, 30)

    @property
    def notes(self) -> Mapping[str, str]:
        """The system's turn of the chat."""
        return {"system_message": _SYSTEM}

    @property
    def usual(self) -> Usual:
        """Those of Flux2Pipeline."""
        return Usual(steps=50, guidance=4.0)

    def guidance_kind(self, scale: float) -> Guidance:
        """Return "embedded", whatever the scale."""
        return "embedded" if self.transformer.get("guidance_embeds", True) else "none"

    def in_template(self, tokenizer: Any, prompt: str) -> str:
        """Return a prompt as the user's turn of a chat, without ``[IMG]``, which the library removes too."""
        texts = {"system": _SYSTEM, "user": prompt.replace("[IMG]", "")}
        turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()]
        return in_chat(tokenizer, turns, add_generation_prompt=False)

    def scale_input(self, parts: Parts, sampling: Sampling) -> torch.Tensor | None:
        """Return the scale of every image; a transformer that does not take it ignores it."""
        return torch.full([1], sampling.guidance, device=parts.device, dtype=torch.float32).expand(sampling.images)


def _as_written(tokenizer: Any) -> Any:
    """Return a tokenizer that adds nothing to a text: its template has the special tokens."""
    return partial(tokenizer, add_special_tokens=False)


def unpatched(patches_BChw: torch.Tensor) -> torch.Tensor:
    """Return patches as latents [B, C/4, 2h, 2w]: of a patch, the channels come first, then its rows and columns."""
    rows, channels, height, width = patches_BChw.shape
    cells = patches_BChw.reshape(rows, channels // 4, 2, 2, height, width)
    return cells.permute(0, 1, 4, 2, 5, 3).reshape(rows, channels // 4, 2 * height, 2 * width)


def _fitted_shift(tokens: int, steps: int) -> float:
    """Return ``mu``, which shifts times towards noise: fitted by the authors to the numbers of patches and steps, up to 4,300 patches."""
    at_200_steps = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return float(at_200_steps)
    at_10_steps = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200_steps - at_10_steps) / 190.0
    return float(slope * steps + (at_200_steps - 200.0 * slope))
