"""What transformers that read latents as a sequence have in common: 2 × 2 latent cells are one token (FLUX.1 and its kin).

With guidance, diffusers calls these transformers twice a step, once for each half. So do we: one call of both halves would round otherwise.

Shapes: B images, C latent channels, h × w latent cells, T = h/2 · w/2 image tokens of 4·C numbers.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from featurize.generate.families.family import Family, Guidance, Parts, Sampling, Step
from lugpi_core.errors import InputError

# What the transformer is called with in ``conditions``: one set of inputs for each half of a guided step, the unguided first.
HALVES = "halves"
TOKENS = "tokens"


class PackedTransformer(Family):
    """A pipeline whose transformer reads packed latents [B, T, 4·C], and whose sampler's shift depends on T.

    Attributes:
        latent_channels_field: of the decoder's configuration.
        asks_sampler: whether a sampler with flow sigmas of its own makes the times itself.
        text_width_field: of the only text encoder's configuration, where its tokens are read as they are.
        unseen_tokens: of the template's beginning, which the text encoder reads and the transformer does not.
    """

    latent_channels_field: ClassVar[str] = "latent_channels"
    asks_sampler: ClassVar[bool] = True
    text_width_field: ClassVar[str | None] = None
    unseen_tokens: ClassVar[int] = 0

    def __init__(self, folder: Path, index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(folder, index, configs)
        self.transformer, self.vae = configs["transformer"], configs["vae"]

    def check(self) -> None:
        """Check that the transformer reads what the decoder decodes.

        Raises:
            InputError: it does not.
        """
        packed, decoded = self.transformer["in_channels"], self.vae.get(self.latent_channels_field, 16)
        if packed != 4 * decoded:
            raise InputError(
                got=f"{self.folder}, whose transformer reads {packed} channels, and whose vae decodes {decoded}",
                expected=f"a transformer of {4 * decoded}, 2 × 2 latent cells of {decoded}",
                do="choose a text-to-image model; models that fill in, edit or follow an image read more channels",
            )
        if self.text_width_field is not None:
            _check_text_width(self, self.text_width_field)

    @property
    def cell_px(self) -> int:
        """Pixels of a latent cell's side."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def native_px(self) -> int:
        """What the library's pipelines take where no size is given."""
        return 128 * self.cell_px

    @property
    def multiple_px(self) -> int:
        """Pixels of a token's side."""
        return 2 * self.cell_px

    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """Return (C, h, w)."""
        side = 2 * (size_px // self.multiple_px)
        return int(self.transformer["in_channels"]) // 4, side, side

    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return tokens [L, D]."""
        return {TOKENS: ((self.tokens_read - self.unseen_tokens, int(self.transformer["joint_attention_dim"])), torch.float32)}

    def guidance_kind(self, scale: float) -> Guidance:
        """Return how a scale acts: as an input of transformers that were distilled from guidance."""
        return "embedded" if self.transformer.get("guidance_embeds", False) else super().guidance_kind(scale)

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        """Give equal steps from 1 to 1/steps, which the sampler shifts by the number of image tokens."""
        mu = shift_by_tokens((sampling.size_px // self.multiple_px) ** 2, scheduler.config)
        set_flow_times(scheduler, sampling.steps, mu, asks_sampler=self.asks_sampler)

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the noise as a sequence [B, T, 4·C]."""
        return packed(noise_BChw.to(dtype))

    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        """Return the prediction [copies · B, T, 4·C] of the transformer at the time t / 1000."""
        time_B = step.on_device.expand(len(latents)).to(latents.dtype) / 1000
        return in_halves(lambda inputs: parts.denoiser(hidden_states=latents, timestep=time_B, **inputs, return_dict=False)[0], conditions)

    def stored(self, latents: torch.Tensor, size_px: int) -> torch.Tensor:
        """Return the sequence as an image [B, C, h, w]."""
        return unpacked(latents, size_px // self.multiple_px)


def _check_text_width(family: PackedTransformer, field: str) -> None:
    ((_, encoder),) = family.text_parts
    read, given = family.transformer["joint_attention_dim"], family.configs[encoder].get(field)
    if read != given:
        raise InputError(
            got=f"{family.folder}, whose transformer reads text of width {read}, and whose text encoder gives {given}",
            expected="one width",
            do=f"restore transformer/ and {encoder}/ from one model",
        )


def set_flow_times(scheduler: Any, steps: int, mu: float, *, asks_sampler: bool = True) -> None:
    """Give a scheduler equal steps of noise, from 1 to 1/steps, and the shift ``mu``.

    Args:
        scheduler: of diffusers.
        steps: their number.
        mu: for samplers with dynamic shifting.
        asks_sampler: whether one with flow sigmas of its own makes the times itself.

    Raises:
        InputError: a sampler that does not take such times; or one step, of a sampler that stretches its times to a last one, which are
            not numbers then.
    """
    if steps == 1 and scheduler.config.get("shift_terminal"):
        raise InputError(
            got=f"1 step of a sampler whose last time is {scheduler.config.shift_terminal} (shift_terminal)",
            expected="at least 2 steps, between which it can stretch its times",
            do="give --steps 2 or more",
        )
    own = asks_sampler and scheduler.config.get("use_flow_sigmas")
    times: dict[str, Any] = {"num_inference_steps": steps} if own else {"sigmas": np.linspace(1.0, 1 / steps, steps)}
    if scheduler.config.get("use_dynamic_shifting"):
        times["mu"] = mu
    # The library's pipelines give mu to every sampler. One that takes none may be of other noise, and would run.
    if missing := sorted({*times, "mu"} - set(inspect.signature(scheduler.set_timesteps).parameters)):
        raise InputError(
            got=f"the sampler {type(scheduler).__name__}, which takes no {' and no '.join(missing)}",
            expected="one that takes the times of flow matching",
            do="restore scheduler/ from where the model comes from",
        )
    scheduler.set_timesteps(**times, device="cpu")
    scheduler.set_begin_index(0)


def shift_by_tokens(tokens: int, config: Mapping[str, Any], most: float = 1.15) -> float:
    """Return ``mu``, which shifts times towards noise for large images: linear in the number of image tokens (Esser et al. 2024, §5.3.2).

    Args:
        tokens: T.
        config: of the scheduler.
        most: ``mu`` of the largest image where the configuration does not say it.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", most)
    slope = (high - low) / (many - few)
    return float(tokens * slope + (low - slope * few))


def in_halves(transformer: Callable[[Mapping[str, Any]], torch.Tensor], conditions: Mapping[str, Any]) -> torch.Tensor:
    """Return the predictions of each half, one behind the other. A CUDA graph overwrites its output at the next call: hence the copy."""
    halves = conditions[HALVES]
    return transformer(halves[0]) if len(halves) == 1 else torch.cat([transformer(inputs).clone() for inputs in halves])


class LengthKept(Family):
    """A pipeline whose guided prediction is, in its last dimension, as long as the conditional one."""

    def guide(self, predicted: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the guided prediction, as long as the conditional one."""
        guided, conditional = super().guide(predicted, scale), predicted.chunk(2)[1]
        longer: torch.Tensor = guided * (torch.norm(conditional, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
        return longer


def packed(latents_BChw: torch.Tensor) -> torch.Tensor:
    """Return latents as a sequence [B, T, 4·C]: of a token, the channels come first, then its rows and columns."""
    rows, channels, height, width = latents_BChw.shape
    cells = latents_BChw.view(rows, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(rows, (height // 2) * (width // 2), 4 * channels)


def unpacked(latents_BTD: torch.Tensor, side: int) -> torch.Tensor:
    """Return a sequence of side · side tokens as latents [B, C, 2 · side, 2 · side]."""
    rows, _, width = latents_BTD.shape
    cells = latents_BTD.view(rows, side, side, width // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(rows, width // 4, 2 * side, 2 * side)


def grid_positions(side: int, device: torch.device) -> torch.Tensor:
    """Return the positions [T, 3] of image tokens: 0, row, column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).float().to(device)
