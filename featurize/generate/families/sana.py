"""Sana and Sana-Sprint: a linear transformer over latents of 32 pixels a cell, prompts read by Gemma 2.

Source: diffusers 0.42.1, ``pipelines/sana/pipeline_sana.py`` and ``pipeline_sana_sprint.py``. Before every prompt stands the library's own
"complex human instruction", a request to Gemma to imagine details (Xie et al. 2025, arXiv 2410.10629, §2.3): these models were trained with
it, so it is kept. Its tokens come besides the 300 of the prompt; the transformer reads the start token and the last 299. The unguided half
reads the empty prompt without it. Images have the side that is asked for.

Shapes: P prompts, L text tokens, D their width, B images, C latent channels, h × w latent cells.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from featurize.generate.families.family import Guidance, Parts, PromptEmbeddings, Sampling, Step, Usual
from featurize.generate.families.image_transformer import LearnedVariance, doubled
from featurize.generate.families.text import padded_ids, token_counts

_TOKENIZER, _ENCODER = "tokenizer", "text_encoder"
# The library's defaults for two steps of Sana-Sprint, in the angles of TrigFlow.
_FIRST_ANGLE, _SECOND_ANGLE = 1.57080, 1.3


class Sana(LearnedVariance):
    """SanaPipeline: flow matching with DPM-Solver, classifier-free guidance."""

    part_classes: ClassVar = {
        "transformer": ("SanaTransformer2DModel",),
        "vae": ("AutoencoderDC",),
        _ENCODER: ("Gemma2Model", "Gemma2ForCausalLM"),
    }
    loaded_as: ClassVar = {_ENCODER: "Gemma2Model"}
    text_pairs: ClassVar = ((_TOKENIZER, _ENCODER),)
    patch_default: ClassVar = 1

    @property
    def tokens_read(self) -> int:
        return 300

    @property
    def usual(self) -> Usual:
        return Usual(steps=20, guidance=4.5)

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        width = int(self.transformer["caption_channels"])
        return {"tokens": ((self.tokens_read, width), torch.float32), "mask": ((self.tokens_read,), torch.int64)}

    @property
    def notes(self) -> Mapping[str, str]:
        return {"complex_human_instruction": self.instruction}

    @cached_property
    def instruction(self) -> str:
        """What stands before every prompt."""
        import diffusers

        lines = inspect.signature(getattr(diffusers, self.index["_class_name"]).__call__).parameters["complex_human_instruction"].default
        return "\n".join(lines)

    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        tokenizer = tokenizers[_TOKENIZER]
        spare = len(tokenizer.encode(self.instruction)) - 2
        return [count - spare for count in token_counts(tokenizer, [self.instruction + text for text in _lower(prompts)])]

    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        length = len(parts.tokenizers[_TOKENIZER].encode(self.instruction)) + self.tokens_read - 2
        return self._encode(parts, [self.instruction + text for text in _lower(prompts)], length)

    def negative(self, parts: Parts) -> PromptEmbeddings:
        return self._encode(parts, [""], self.tokens_read)

    def _encode(self, parts: Parts, texts: Sequence[str], length: int) -> PromptEmbeddings:
        tokenizer = parts.tokenizers[_TOKENIZER]
        tokenizer.padding_side = "right"
        ids_PL, mask_PL = (tensor.to(parts.device) for tensor in padded_ids(tokenizer, texts, length))
        tokens_PLD = parts.text_encoders[_ENCODER](ids_PL, attention_mask=mask_PL)[0]
        read = [0, *range(length - self.tokens_read + 1, length)]
        return PromptEmbeddings({"tokens": tokens_PLD[:, read], "mask": mask_PL[:, read]})

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return noise_BChw

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        rows = doubled(embeddings, negative)
        return {"encoder_hidden_states": rows["tokens"], "encoder_attention_mask": rows["mask"]}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        rows, dtype = torch.cat([latents] * copies), conditions["encoder_hidden_states"].dtype
        time = step.on_device.expand(len(rows)) * parts.denoiser.config.timestep_scale
        predicted: torch.Tensor = parts.denoiser(rows.to(dtype), timestep=time, **conditions, return_dict=False)[0]
        return predicted.float()


class SanaSprint(Sana):
    """SanaSprintPipeline: one to four steps of a continuous-time consistency model (TrigFlow); guidance is an input of the transformer.

    The library takes the intermediate angle 1.3 with two steps; for other numbers of steps it must be told to take none, as is done here.
    """

    @property
    def usual(self) -> Usual:
        return Usual(steps=2, guidance=4.5)

    def guidance_kind(self, scale: float) -> Guidance:
        return "embedded"

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        between = _SECOND_ANGLE if sampling.steps == 2 else None
        scheduler.set_timesteps(sampling.steps, device="cpu", max_timesteps=_FIRST_ANGLE, intermediate_timesteps=between)
        scheduler.set_begin_index(0)

    def times(self, scheduler: Any) -> torch.Tensor:
        times: torch.Tensor = scheduler.timesteps[:-1]
        return times

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return noise_BChw * float(scheduler.config.sigma_data)

    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        tokens = embeddings["tokens"]
        scale = torch.full((sampling.images,), sampling.guidance, device=tokens.device, dtype=torch.float32).to(tokens.dtype)
        conditions = super().conditions(parts, embeddings, None, sampling)
        return {**conditions, "guidance": scale * parts.denoiser.config.guidance_embeds_scale}

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        """Return the velocity of TrigFlow from that of flow matching (Chen et al. 2025, arXiv 2503.09641, §3.1)."""
        angle = step.on_device.expand(len(latents))
        time_B = torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))
        time = time_B.view(-1, 1, 1, 1)
        size = torch.sqrt(time**2 + (1 - time) ** 2)
        data = float(parts.scheduler.config.sigma_data)
        rows, dtype = latents / data * size, conditions["encoder_hidden_states"].dtype
        flow = parts.denoiser(rows.to(dtype), timestep=time_B, **conditions, return_dict=False)[0]
        predicted: torch.Tensor = ((1 - 2 * time) * rows + (1 - 2 * time + 2 * time**2) * flow) / size
        return predicted.float() * data

    def stored(self, latents: torch.Tensor, size_px: int) -> torch.Tensor:
        # The last angle is 0, whose latents are the denoised ones.
        return latents / float(self.configs["scheduler"].get("sigma_data", 0.5))


def _lower(prompts: Sequence[str]) -> list[str]:
    return [prompt.lower().strip() for prompt in prompts]
