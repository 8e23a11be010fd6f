"""The same pictures and tokens without lugpi: a diffusers pipeline, PIL images, PNG files, and an encoder that reads the files; and the
bare forwards of the same modules, below which nothing can come that runs them.

Shapes: B images, C latent channels, h × w latent cells, S the encoder's side, T tokens, D width.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.options import FeaturizeOptions
from featurize.plan.drawings import plan_drawings
from lugpi_core.corpora.load import load_corpus
from lugpi_core.runtime.device import resolve_compute

_SCHEDULERS = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """What is drawn, with what, and what reads it: the same for every way.

    Attributes:
        prompts: one for each drawing, all different.
        seeds: of each drawing's noise.
        tiny_decoder: a folder of an AutoencoderTiny that takes the decoder's place; None = the generator's own.
    """

    generator: Generator
    encoders: tuple[EncoderFiles, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"
    tiny_decoder: Path | None = None

    @property
    def guided(self) -> bool:
        """Whether the UNet reads every latent twice, with the prompt and without."""
        return self.generator.settings.guidance > 1


def drawings_of(flags: Mapping[str, Any], *, count: int | None = None) -> Drawings:
    """Return what featurize draws under these flags, in its order; ``count`` = only the first so many."""
    options = FeaturizeOptions(**flags)
    plan = plan_drawings(load_corpus(options.dataset, options), seed=options.seed)
    compute = resolve_compute(options.device, options.dtype, half="float16")
    settings = generator_settings(options.generator, {name: flags.get(name) for name in ("steps", "guidance", "scheduler", "size_px")})
    decoder, _, decoder_folder = str(flags.get("decoder", "full")).partition("=")
    return Drawings(
        generator=find_generator(options.generator, settings, half=compute.dtype != "float32"),
        encoders=tuple(find_encoder(name) for name in expand_encoders(options.encoders)),
        prompts=plan.prompts[:count],
        seeds=tuple(int(seed) for seed in plan.seeds[:count]),
        dtype=compute.torch_dtype,
        device=compute.device,
        tiny_decoder=Path(decoder_folder) if decoder == "tiny" else None,
    )


@contextmanager
def parts_may_lack_labels() -> Iterator[None]:
    """Leave out the warning that a small part of a corpus has no example to train on: nothing is trained here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="--limit leaves no")
        yield


def ranges(count: int, size: int) -> Iterator[slice]:
    """Yield 0 … count as ranges of at most ``size``."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


class PlainPipeline:
    """What one writes without lugpi, in two steps: every picture into a PNG file, then every file through the encoders."""

    def __init__(self, drawings: Drawings) -> None:
        self._drawings = drawings
        self._pipeline = _load_pipeline(drawings)
        self._encoders = [(_load_tower(files, drawings), _transform(files)) for files in drawings.encoders]

    def run(self, folder: Path, *, batch: int, prompts_a_call: int, count: int) -> list[Path]:
        """Draw the first ``count``, keep PNG files in ``folder``, read them again in batches.

        Returns the ``.npy`` file of each encoder's tokens, float16 [count, T, D].
        """
        return self._encode(self._draw(folder, prompts_a_call, count), folder, batch)

    def _draw(self, folder: Path, prompts_a_call: int, count: int) -> list[Path]:
        wanted = self._drawings
        paths: list[Path] = []
        for part in ranges(count, prompts_a_call):
            images = self._pipeline(
                prompt=list(wanted.prompts[part]),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in wanted.seeds[part]],
                num_inference_steps=wanted.generator.settings.steps,
                guidance_scale=wanted.generator.settings.guidance,
                height=wanted.generator.size_px,
                width=wanted.generator.size_px,
            ).images
            for image in images:
                paths.append(folder / f"{len(paths):06d}.png")
                image.save(paths[-1])
        return paths

    @torch.inference_mode()
    def _encode(self, images: list[Path], folder: Path, batch: int) -> list[Path]:
        tokens: list[list[np.ndarray[Any, Any]]] = [[] for _ in self._encoders]
        for part in ranges(len(images), batch):
            pictures = [_open(path) for path in images[part]]
            for (tower, transform), kept in zip(self._encoders, tokens, strict=True):
                pixels_B3SS = torch.stack([transform(picture) for picture in pictures])
                tokens_BTD = tower(pixels_B3SS.to(self._drawings.device, self._drawings.dtype))
                kept.append(tokens_BTD.to(torch.float16).cpu().numpy())
        paths = [folder / f"{files.name}.npy" for files in self._drawings.encoders]
        for path, kept in zip(paths, tokens, strict=True):
            np.save(path, np.concatenate(kept))
        return paths


class BareForwards:
    """The forwards that the drawings need and nothing else: no scheduler, no pipeline, no resizing, no checks, nothing kept.

    What the modules read is laid out before, in the shapes they would get; its values are noise, which costs the same.
    """

    def __init__(self, drawings: Drawings, *, batch: int) -> None:
        self._drawings, self._batch = drawings, batch
        pipeline = _load_pipeline(drawings)
        self.text_encoder, self.unet, self.vae = pipeline.text_encoder, pipeline.unet, pipeline.vae
        self.towers = [_load_tower(files, drawings) for files in drawings.encoders]
        tokenizer = pipeline.tokenizer
        texts = [*drawings.prompts, *([""] if drawings.guided else [])]
        self._ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"].to(drawings.device)
        self._sides_px = [files.preprocessing.size_px for files in drawings.encoders]

    @torch.inference_mode()
    def run(self) -> None:
        """Run them all, in batches of ``batch``: a text once, the UNet steps times, the decoder and each encoder once."""
        wanted = self._drawings
        texts_PTD = torch.cat([self.text_encoder(ids)[0] for ids in self._ids.split(self._batch)])
        for part in ranges(len(wanted.prompts), self._batch):
            prompts_BTD = texts_PTD[: len(wanted.prompts)][part]
            latents_BChw = self._noise(len(prompts_BTD), *wanted.generator.latent_shape)
            self._denoise(latents_BChw, prompts_BTD, texts_PTD[-1:])
            self.vae.decode(latents_BChw, return_dict=False)
            for tower, side_px in zip(self.towers, self._sides_px, strict=True):
                tower(self._noise(len(prompts_BTD), 3, side_px, side_px))
        if wanted.device == "cuda":
            torch.cuda.synchronize()

    def _denoise(self, latents_BChw: torch.Tensor, prompts_BTD: torch.Tensor, empty_1TD: torch.Tensor) -> None:
        if self._drawings.guided:
            latents_BChw = torch.cat([latents_BChw, latents_BChw])
            prompts_BTD = torch.cat([empty_1TD.expand_as(prompts_BTD), prompts_BTD])
        steps = self._drawings.generator.settings.steps
        for time in torch.linspace(981, 1, steps, device=self._drawings.device):
            self.unet(latents_BChw, time, encoder_hidden_states=prompts_BTD, return_dict=False)

    def _noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._drawings.device, dtype=self._drawings.dtype)


class _ClassTokenFirst(nn.Module):
    """open_clip's own output, pooled and patches, as one sequence before the projection."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        visual.proj, visual.output_tokens = None, True
        self.visual = visual

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        class_token_BD, patches_BPD = self.visual(pixels_B3SS)
        return torch.cat([class_token_BD[:, None], patches_BPD], dim=1)


class _LastHiddenState(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        tokens_BTD: torch.Tensor = self.model(pixel_values=pixels_B3SS).last_hidden_state
        return tokens_BTD


def _load_pipeline(drawings: Drawings) -> Any:
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    generator = drawings.generator
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        generator.folder, dtype=drawings.dtype, use_safetensors=True, local_files_only=True, safety_checker=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    if generator.settings.scheduler in _SCHEDULERS:
        scheduler_class = getattr(diffusers, _SCHEDULERS[generator.settings.scheduler])
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, clip_sample=False)
    if drawings.tiny_decoder is not None:
        pipeline.vae = diffusers.AutoencoderTiny.from_pretrained(drawings.tiny_decoder, dtype=drawings.dtype, use_safetensors=True)
    return pipeline.to(drawings.device)


def _load_tower(files: EncoderFiles, drawings: Drawings) -> nn.Module:
    if files.family == "open_clip":
        import open_clip

        model = open_clip.create_model(f"local-dir:{files.folder}", force_quick_gelu=files.quick_gelu, require_pretrained=True)
        tower: nn.Module = _ClassTokenFirst(model.visual)
    else:
        import transformers

        tower = _LastHiddenState(transformers.AutoModel.from_pretrained(files.folder, use_safetensors=True, local_files_only=True))
    return tower.eval().requires_grad_(False).to(drawings.device, drawings.dtype)


def _transform(files: EncoderFiles) -> Callable[[Any], torch.Tensor]:
    """Return open_clip's own preprocessing of a PIL image: antialiased resize, centre, scale, normalise."""
    import open_clip

    how = files.preprocessing
    transform: Callable[[Any], torch.Tensor] = open_clip.image_transform(
        how.size_px, is_train=False, mean=how.mean, std=how.std, interpolation=how.interpolation
    )
    return transform


def _open(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
