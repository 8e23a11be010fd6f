"""What a family of pipelines is: how its prompts, noise, denoiser, sampler and latents fit together.

One object for each generator that was found. It knows the folder's configurations; loaded models are given to it. The loop over the
denoising steps is in ``text_to_image``, and is the same for every family.

Shapes: P prompts, L text tokens, B images, C latent channels, h × w latent cells, H × W pixels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

# How the guidance scale acts: not at all; as classifier-free guidance, in a second row of the denoiser; or as an input of the denoiser.
Guidance = Literal["none", "cfg", "embedded"]
# Kept on the host: how many tokens each prompt has, for families whose rows differ in length.
LENGTHS = "lengths"


@dataclass(frozen=True)
class PromptEmbeddings:
    """What the text encoders give for P prompts: named tensors [P, …].

    Rows of different lengths are padded in their second dimension with zeros; ``lengths``, int64 [P], says how long they are, and stays on
    the CPU.
    """

    tensors: Mapping[str, torch.Tensor]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def rows(self, numbers: Sequence[int]) -> "PromptEmbeddings":
        """Return the embeddings of some prompts; a number may occur several times."""
        at = torch.tensor(numbers, dtype=torch.long)
        return PromptEmbeddings({name: tensor[at.to(tensor.device)] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "PromptEmbeddings":
        """Return the embeddings on a device; those of floating point in ``dtype``, if one is given."""
        moved = {
            name: tensor
            if name == LENGTHS
            else tensor.to(device, dtype if tensor.is_floating_point() and dtype is not None else tensor.dtype, non_blocking=True)
            for name, tensor in self.tensors.items()
        }
        return PromptEmbeddings(moved)

    def repeated(self, count: int) -> "PromptEmbeddings":
        """Return the embeddings of one prompt for ``count`` rows, which share its memory."""
        return PromptEmbeddings({name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in self.tensors.items()})

    def on_host(self) -> "PromptEmbeddings":
        """Return the embeddings in the host's memory; those that come from a CUDA device in pinned memory, from which copies are fast."""
        return PromptEmbeddings({name: _on_host(tensor) for name, tensor in self.tensors.items()})

    @staticmethod
    def gathered(parts: "Sequence[PromptEmbeddings]", places: Sequence[tuple[int, int]]) -> "PromptEmbeddings":
        """Return the embeddings of some prompts, each given by the number of its part and of its row there."""
        rows = [parts[part].tensors for part, _ in places]
        gathered = {}
        for name in rows[0]:
            tensors = [row[name][number] for row, (_, number) in zip(rows, places, strict=True)]
            longest = max(tensors, key=lambda tensor: tensor.shape[0] if tensor.ndim else 0)
            together = torch.zeros((len(tensors), *longest.shape), dtype=longest.dtype, pin_memory=longest.is_pinned())
            for place, tensor in zip(together, tensors, strict=True):
                place[: tensor.shape[0]].copy_(tensor) if tensor.ndim else place.copy_(tensor)
            gathered[name] = together
        return PromptEmbeddings(gathered)

    @staticmethod
    def joined(parts: "Sequence[PromptEmbeddings]") -> "PromptEmbeddings":
        """Return the embeddings of all parts, in order; shorter ones are padded with zeros in their second dimension."""
        joined = {}
        for name in parts[0].tensors:
            tensors = [part[name] for part in parts]
            if tensors[0].ndim > 1 and len({tensor.shape[1] for tensor in tensors}) > 1:
                longest = max(tensor.shape[1] for tensor in tensors)
                tensors = [_padded(tensor, longest) for tensor in tensors]
            joined[name] = torch.cat(tensors)
        return PromptEmbeddings(joined)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor)


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    padded = tensor.new_zeros((tensor.shape[0], length, *tensor.shape[2:]))
    padded[:, : tensor.shape[1]] = tensor
    return padded


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The loaded parts of a generator, by the names of their folders.

    Attributes:
        denoiser, vae: on the device.
        scheduler: keeps its numbers on the CPU.
        tokenizers, text_encoders: by folder; the text encoders are on the device while they are used.
        device: where it computes.
    """

    denoiser: Any
    vae: Any
    scheduler: Any
    tokenizers: Mapping[str, Any]
    text_encoders: Mapping[str, Any]
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What is asked of a batch: how many images, of which side, in how many steps, at which guidance scale."""

    images: int
    size_px: int
    steps: int
    guidance: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One evaluation of the denoiser.

    Attributes:
        number: from 0.
        last: number of the last one.
        on_host, on_device: the scheduler's time, a tensor without dimensions, on the CPU and on the device.
    """

    number: int
    last: int
    on_host: torch.Tensor
    on_device: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Usual:
    """Steps and guidance scale that the library's pipeline takes where none are given."""

    steps: int
    guidance: float


class Family(ABC):
    """One kind of pipeline of diffusers.

    A new family is a subclass in a file of its own, and a line in ``families/__init__.py``. Abstract methods have no default; the others
    do what most pipelines do.

    Attributes:
        denoiser: the folder of the denoiser, ``unet`` or ``transformer``.
        part_classes: by folder of a model, its classes in ``model_index.json`` that run here; None among them: it may be missing.
        loaded_as: by folder of a model, the class that it is loaded as whatever ``model_index.json`` says: one that leaves out what nobody
            reads (a language-model head), or that reads folders of another name.
        text_pairs: folders of a tokenizer and of the text encoder that reads it.
        index_defaults: fields of ``model_index.json`` that decide an image, with the library's defaults.
        half: what ``--dtype auto`` takes on CUDA.
        sorts_prompts: whether prompts of like length are encoded together: those that are padded to the longest of a batch, where padding
            takes no part.
        shifts_latents: whether the library's pipeline adds the decoder's ``shift_factor``, where its configuration has one.

    Args:
        folder: of diffusers.
        index: its ``model_index.json``.
        configs: by folder of every model, tokenizer and scheduler that exists, its configuration.

    """

    denoiser: ClassVar[str] = "transformer"
    part_classes: ClassVar[Mapping[str, tuple[str | None, ...]]]
    loaded_as: ClassVar[Mapping[str, str]] = {}
    text_pairs: ClassVar[tuple[tuple[str, str], ...]]
    index_defaults: ClassVar[Mapping[str, Any]] = {}
    half: ClassVar[Literal["float16", "bfloat16"]] = "bfloat16"
    sorts_prompts: ClassVar[bool] = False
    shifts_latents: ClassVar[bool] = True

    def __init__(self, folder: Path, index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.index, self.configs = folder, index, configs

    # ---- from configurations alone ----

    def check(self) -> None:
        """Check what the configurations say, with all of them there.

        Raises:
            InputError: they do not fit one another, or ask for something that does not run here.
        """
        return None

    @property
    def index_settings(self) -> Mapping[str, Any]:
        """Fields of ``model_index.json`` that decide an image and are others than the library's defaults: for the fingerprint."""
        found = {name: self.index.get(name, default) for name, default in self.index_defaults.items()}
        return {name: value for name, value in found.items() if value != self.index_defaults[name]}

    @property
    def text_parts(self) -> tuple[tuple[str, str], ...]:
        """The tokenizers and text encoders that this folder has, in the order of ``text_pairs``."""
        return tuple(pair for pair in self.text_pairs if (self.index.get(pair[1]) or [None])[0])

    @property
    @abstractmethod
    def native_px(self) -> int:
        """Side of the images that it was trained for, in pixels."""

    @property
    @abstractmethod
    def multiple_px(self) -> int:
        """Sides of images are multiples of it."""

    @property
    def most_px(self) -> int | None:
        """The largest side for which the denoiser has positions; None = any."""
        return None

    @abstractmethod
    def latent_shape(self, size_px: int) -> tuple[int, int, int]:
        """Return (C, h, w) of a latent as it is stored, never as a packed sequence. Noise is drawn in this shape."""

    @property
    @abstractmethod
    def tokens_read(self) -> int:
        """Most tokens of a prompt that it reads, those of the template and special ones included."""

    @property
    @abstractmethod
    def usual(self) -> Usual:
        """The library's own steps and guidance."""

    @property
    def notes(self) -> Mapping[str, str]:
        """What the library's pipeline puts around every prompt, by name, for the record of a store: a template ({} is the prompt), an
        instruction before it, or how the tokenizer's chat template is filled."""
        return {}

    def guidance_kind(self, scale: float) -> Guidance:
        """Return how a guidance scale acts in this generator."""
        return "cfg" if scale > 1 else "none"

    def dtypes(self, dtype: torch.dtype) -> Mapping[str, torch.dtype]:
        """Return the dtype of every part that differs from the one that was asked for."""
        return {}

    def load_class(self, part: str) -> str:
        """Return the class that a part is loaded as."""
        named = (self.index.get(part) or [None, None])[1]
        return self.loaded_as.get(part) or str(named or self.part_classes[part][0])

    def library_of(self, part: str) -> str:
        """Return the library of a part's class."""
        named = (self.index.get(part) or [None, None])[0]
        return str(named or ("diffusers" if part in (self.denoiser, "vae") else "transformers"))

    def layers_read(self, encoder: str) -> int | None:
        """Return how many layers of a text encoder are run, whose output is read without the final norm; None = all of it."""
        return None

    def final_norm(self, encoder: str) -> str:
        """Return where a text encoder has the norm behind its last layer, which is left out where ``layers_read`` says how many run."""
        return "language_model.norm" if "text_config" in self.configs[encoder] else "norm"

    def text_length(self, encoder: str) -> int:
        """Return how many tokens a text encoder is given at most."""
        return self.tokens_read

    @abstractmethod
    def embedding_shapes(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of one prompt's embeddings at most, by name, without the dimension of prompts; those that take the text
        encoder's dtype say float32."""

    @property
    def embedding_bytes(self) -> int:
        """Size of one prompt's embeddings at most, in float32."""
        return sum(math.prod(shape) * 4 for shape, _ in self.embedding_shapes().values())

    # ---- tokenizers only ----

    @abstractmethod
    def tokens_of(self, tokenizers: Mapping[str, Any], prompts: Sequence[str]) -> list[int]:
        """Return the tokens of each prompt if nothing were cut, those of the template and special ones included. A prompt is cut where it
        has more than ``tokens_read``."""

    def cleaned(self, prompts: Sequence[str]) -> list[str]:
        """Return what the library's pipeline leaves of prompts before they are tokenized: for most, all of them."""
        return list(prompts)

    # ---- loaded parts ----

    @abstractmethod
    def encode(self, parts: Parts, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return the embeddings of prompts, on the device. The text encoders are there."""

    def negative(self, parts: Parts) -> PromptEmbeddings:
        """Return what the unguided half reads, as the embeddings of one prompt."""
        return self.encode(parts, [""])

    def scheduler_fields(self) -> Mapping[str, Any]:
        """Return the settings that the library's pipeline gives to any scheduler that has them when it is built."""
        return {}

    def set_timesteps(self, scheduler: Any, sampling: Sampling) -> None:
        """Give a scheduler its times, on the CPU, as the library's pipeline does."""
        scheduler.set_timesteps(sampling.steps, device="cpu")

    def times(self, scheduler: Any) -> torch.Tensor:
        """Return the times at which the denoiser is evaluated, after ``set_timesteps``."""
        times: torch.Tensor = scheduler.timesteps
        return times

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return latents in the form and dtype in which the loop carries them.

        Args:
            scheduler: after ``set_timesteps``.
            noise_BChw: float32, on the device.
            dtype: of the denoiser.
        """
        return noise_BChw.to(dtype)

    def scaled(self, scheduler: Any, latents: torch.Tensor, step: Step) -> torch.Tensor:
        """Return latents as the denoiser reads them at a step; schedulers of Stable Diffusion scale them."""
        return latents

    @abstractmethod
    def conditions(
        self, parts: Parts, embeddings: PromptEmbeddings, negative: PromptEmbeddings | None, sampling: Sampling
    ) -> Mapping[str, Any]:
        """Return what ``predict`` reads besides the latents and the step, computed once a batch.

        Args:
            parts: of which the denoiser is read.
            embeddings: of every image, on the device, in the dtype of the denoiser.
            negative: those of the unguided half, as many rows; None = no guidance.
            sampling: what is asked for.
        """

    @abstractmethod
    def predict(self, parts: Parts, latents: torch.Tensor, step: Step, conditions: Mapping[str, Any], copies: int) -> torch.Tensor:
        """Return the denoiser's prediction of every row; with 2 copies the rows of the unguided half come first."""

    def guide(self, predicted: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the guided prediction (Ho & Salimans 2022, eq. 6) of a prediction with 2 copies."""
        unconditional, conditional = predicted.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    def step(self, scheduler: Any, predicted: torch.Tensor, step: Step, latents: torch.Tensor, extra: Mapping[str, Any]) -> torch.Tensor:
        """Return the latents after a step; ``extra`` is what the scheduler takes besides."""
        after: torch.Tensor = scheduler.step(predicted, step.on_host, latents, **extra, return_dict=False)[0]
        return after

    def stored(self, latents: torch.Tensor, size_px: int) -> torch.Tensor:
        """Return latents [B, C, h, w] as they are stored, from those after the last step."""
        return latents

    def decoder_input(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return stored latents, in the dtype of the decoder, scaled as it reads them."""
        scale, shift = float(vae.config.scaling_factor), vae.config.get("shift_factor") if self.shifts_latents else None
        return stored_BChw / scale + shift if shift else stored_BChw / scale

    def decode(self, vae: Any, stored_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images [B, 3, H, W], in about [-1, 1], of stored latents in the dtype of the decoder."""
        images: torch.Tensor = vae.decode(self.decoder_input(vae, stored_BChw), return_dict=False)[0]
        return images


class NoiseByBetas(Family):
    """A pipeline whose schedulers add noise by betas, as those of Stable Diffusion: they scale the noise, and what the denoiser reads."""

    def first_latents(self, scheduler: Any, noise_BChw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the noise at the scheduler's first level."""
        latents: torch.Tensor = noise_BChw.to(dtype) * scheduler.init_noise_sigma
        return latents

    def scaled(self, scheduler: Any, latents: torch.Tensor, step: Step) -> torch.Tensor:
        """Return latents as the scheduler scales them."""
        scaled: torch.Tensor = scheduler.scale_model_input(latents, step.on_host)
        return scaled
