"""The same images and tokens without lugpi: a diffusers pipeline, PNG files, and an encoder that reads the files; and the bare forward
passes of the same modules, the lower bound of anything that runs them.

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
from featurize.plan.images import plan_images
from lugpi_core.corpora.load import load_corpus
from lugpi_core.runtime.device import resolve_compute

_SCHEDULERS = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """Which images to generate, with which generator and encoders: the same for every way.

    Attributes:
        prompts: one per image, all different.
        seeds: of the noise of each image.
        tiny_decoder: folder of an AutoencoderTiny used as decoder; None = the decoder of the generator.
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
        """Whether the UNet reads each latent twice, with and without the prompt."""
        return self.generator.settings.guidance > 1


def image_job(flags: Mapping[str, Any], *, count: int | None = None) -> ImageJob:
    """Return the images that featurize generates with these flags, in its order; ``count`` = only the first ones."""
    options = FeaturizeOptions(**flags)
    plan = plan_images(load_corpus(options.dataset, options), seed=options.seed)
    compute = resolve_compute(options.device, options.dtype, half="float16")
    settings = generator_settings(options.generator, {name: flags.get(name) for name in ("steps", "guidance", "scheduler", "size_px")})
    decoder, _, decoder_folder = str(flags.get("decoder", "full")).partition("=")
    return ImageJob(
        generator=find_generator(options.generator, settings, half=compute.dtype != "float32"),
        encoders=tuple(find_encoder(name) for name in expand_encoders(options.encoders)),
        prompts=tuple(plan.prompts[:count]),
        seeds=tuple(int(seed) for seed in plan.seeds[:count]),
        dtype=compute.torch_dtype,
        device=compute.device,
        tiny_decoder=Path(decoder_folder) if decoder == "tiny" else None,
    )


@contextmanager
def parts_may_lack_labels() -> Iterator[None]:
    """Ignore the warning that a small part of a corpus has no training example: nothing is trained here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="--limit leaves no")
        yield


def ranges(count: int, size: int) -> Iterator[slice]:
    """Yield 0 … count as ranges of at most ``size``."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


class PlainPipeline:
    """What one would write without lugpi: all images into PNG files, then all files through the encoders."""

    def __init__(self, job: ImageJob) -> None:
        self._job = job
        self._pipeline = _load_pipeline(job)
        self._encoders = [(load_tower(files, job.device, job.dtype), _transform(files)) for files in job.encoders]

    def run(self, folder: Path, *, batch: int, prompts_a_call: int, count: int) -> list[Path]:
        """Generate the first ``count`` images as PNG files in ``folder``, then read and encode them in batches.

        Returns the ``.npy`` file of each encoder's tokens, float16 [count, T, D].
        """
        return self._encode(self._generate(folder, prompts_a_call, count), folder, batch)

    def _generate(self, folder: Path, prompts_a_call: int, count: int) -> list[Path]:
        job = self._job
        paths: list[Path] = []
        for part in ranges(count, prompts_a_call):
            images = self._pipeline(
                prompt=list(job.prompts[part]),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in job.seeds[part]],
                num_inference_steps=job.generator.settings.steps,
                guidance_scale=job.generator.settings.guidance,
                height=job.generator.size_px,
                width=job.generator.size_px,
            ).images
            for image in images:
                paths.append(folder / f"{len(paths):06d}.png")
                image.save(paths[-1])
        return paths

    @torch.inference_mode()
    def _encode(self, images: list[Path], folder: Path, batch: int) -> list[Path]:
        tokens: list[list[np.ndarray[Any, Any]]] = [[] for _ in self._encoders]
        for part in ranges(len(images), batch):
            for (tower, transform), kept in zip(self._encoders, tokens, strict=True):
                pixels_B3SS = torch.stack([transform(_open(path)) for path in images[part]])
                tokens_BTD = tower(pixels_B3SS.to(self._job.device, self._job.dtype))
                kept.append(tokens_BTD.to(torch.float16).cpu().numpy())
        paths = [folder / f"{files.name}.npy" for files in self._job.encoders]
        for path, kept in zip(paths, tokens, strict=True):
            np.save(path, np.concatenate(kept))
        return paths


class BareForwards:
    """The forward passes that the images need and nothing else: no scheduler, pipeline, resizing, checks or output.

    Their inputs are prepared in advance with the right shapes and random values, which cost the same.
    """

    def __init__(self, job: ImageJob, *, batch: int) -> None:
        self._job, self._batch = job, batch
        pipeline = _load_pipeline(job)
        self.text_encoder, self.unet, self.vae = pipeline.text_encoder, pipeline.unet, pipeline.vae
        self.towers = [load_tower(files, job.device, job.dtype) for files in job.encoders]
        tokenizer = pipeline.tokenizer
        texts = [*job.prompts, *([""] if job.guided else [])]
        self._ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"].to(job.device)
        self._sides_px = [files.preprocessing.size_px for files in job.encoders]

    @torch.inference_mode()
    def run(self) -> None:
        """Run all forward passes in batches: each text once, the UNet once per step, the decoder and each encoder once per image."""
        job = self._job
        texts_PTD = torch.cat([self.text_encoder(ids)[0] for ids in self._ids.split(self._batch)])
        for part in ranges(len(job.prompts), self._batch):
            prompts_BTD = texts_PTD[: len(job.prompts)][part]
            latents_BChw = self._noise(len(prompts_BTD), *job.generator.latent_shape)
            self._denoise(latents_BChw, prompts_BTD, texts_PTD[-1:])
            self.vae.decode(latents_BChw, return_dict=False)
            for tower, side_px in zip(self.towers, self._sides_px, strict=True):
                tower(self._noise(len(prompts_BTD), 3, side_px, side_px))
        if job.device == "cuda":
            torch.cuda.synchronize()

    def _denoise(self, latents_BChw: torch.Tensor, prompts_BTD: torch.Tensor, empty_1TD: torch.Tensor) -> None:
        if self._job.guided:
            latents_BChw = torch.cat([latents_BChw, latents_BChw])
            prompts_BTD = torch.cat([empty_1TD.expand_as(prompts_BTD), prompts_BTD])
        steps = self._job.generator.settings.steps
        for time in torch.linspace(981, 1, steps, device=self._job.device):
            self.unet(latents_BChw, time, encoder_hidden_states=prompts_BTD, return_dict=False)

    def _noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._job.device, dtype=self._job.dtype)


class _ClassTokenFirst(nn.Module):
    """The class token and the patches of an open_clip tower before the projection, as one sequence."""

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


def _load_pipeline(job: ImageJob) -> Any:
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    generator = job.generator
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        generator.folder, dtype=job.dtype, use_safetensors=True, local_files_only=True, safety_checker=None, feature_extractor=None
    )
    pipeline.set_progress_bar_config(disable=True)
    if generator.settings.scheduler in _SCHEDULERS:
        scheduler_class = getattr(diffusers, _SCHEDULERS[generator.settings.scheduler])
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, clip_sample=False)
    if job.tiny_decoder is not None:
        pipeline.vae = diffusers.AutoencoderTiny.from_pretrained(job.tiny_decoder, dtype=job.dtype, use_safetensors=True)
    return pipeline.to(job.device)


def load_tower(files: EncoderFiles, device: str, dtype: torch.dtype) -> nn.Module:
    """Return an image encoder whose output are its tokens."""
    if files.family == "open_clip":
        import open_clip

        model = open_clip.create_model(f"local-dir:{files.folder}", force_quick_gelu=files.quick_gelu, require_pretrained=True)
        tower: nn.Module = _ClassTokenFirst(model.visual)
    else:
        import transformers

        tower = _LastHiddenState(transformers.AutoModel.from_pretrained(files.folder, use_safetensors=True, local_files_only=True))
    return tower.eval().requires_grad_(False).to(device, dtype)


def _transform(files: EncoderFiles) -> Callable[[Any], torch.Tensor]:
    """Return what ``open_clip.image_transform`` does to a square PIL image: PIL's resize, scale, normalise. It needs torchvision itself."""
    from PIL import Image

    preprocessing = files.preprocessing
    side = preprocessing.size_px
    filter_ = Image.Resampling.BICUBIC if preprocessing.interpolation == "bicubic" else Image.Resampling.BILINEAR
    mean_311, std_311 = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))

    def pixels_3SS(image: Any) -> torch.Tensor:
        resized = np.asarray(image.resize((side, side), filter_))
        return (torch.from_numpy(resized.copy()).permute(2, 0, 1).contiguous().float().div(255) - mean_311) / std_311

    return pixels_3SS


def _open(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")
