"""Prompts to latents to images, on the device, with a Stable Diffusion pipeline of diffusers. The only file that imports diffusers to draw.

Shapes: B images, C latent channels, h × w latent cells, H × W pixels.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.generators import Generator
from lugpi_core.device import Compute
from lugpi_core.errors import InputError
from lugpi_core.model_files import reason
from lugpi_core.torchvision_ops import allow_torchvision_import

AttentionChoice = Literal["auto", "xformers", "sdpa"]


class TextToImage:
    """Draws latents from prompts and decodes latents to images. Holds the whole pipeline on the device; nothing grows with use."""

    def __init__(self, generator: Generator, compute: Compute, *, attention: AttentionChoice) -> None:
        self.generator = generator
        self._device = torch.device(compute.device)
        self._dtype = compute.torch_dtype
        self._pipeline = _load(generator, self._dtype).to(self._device)
        self._pipeline.set_progress_bar_config(disable=True)
        self.attention = _set_attention(self._pipeline, attention, self._device)

    def prompt_is_cut(self, prompts: Sequence[str]) -> NDArray[np.bool_]:
        """Return bool [len(prompts)]: True where the prompt has more tokens than the text encoder reads (77 for CLIP, start and end
        included)."""
        tokenizer = self._pipeline.tokenizer
        cut = np.zeros(len(prompts), dtype=bool)
        for start in range(0, len(prompts), 1024):
            ids = tokenizer(list(prompts[start : start + 1024]), truncation=False, verbose=False)["input_ids"]
            cut[start : start + 1024] = [len(one) > tokenizer.model_max_length for one in ids]
        return cut

    @torch.inference_mode()
    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Return the latents of the prompts, [B, C, h, w] in the dtype the pipeline computes in.

        The noise of each image comes from its own seed, on the CPU in float32, so it is the same in any batch and on any device.
        """
        generators = [torch.Generator("cpu").manual_seed(int(seed)) for seed in seeds]
        noise_BChw = torch.stack([torch.randn(self.generator.latent_shape, generator=one) for one in generators])
        drawn = self._pipeline(
            prompt=[_first_words(prompt, self._pipeline.tokenizer.model_max_length) for prompt in prompts],
            latents=noise_BChw.to(self._device, self._dtype),
            generator=generators,
            num_inference_steps=self.generator.settings.steps,
            guidance_scale=self.generator.settings.guidance,
            height=self.generator.size_px,
            width=self.generator.size_px,
            output_type="latent",
        )
        latents_BChw: torch.Tensor = drawn.images
        return latents_BChw

    @torch.inference_mode()
    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        """Return the images of latents [B, C, h, w]: float32 [B, 3, H, W] in [0, 1]; NaN where the decoder overflows."""
        vae = self._pipeline.vae
        latents_BChw = latents_BChw.to(self._device, vae.dtype)
        if vae.config.get("latents_mean") and vae.config.get("latents_std"):  # some SDXL decoders
            mean_C, std_C = (torch.tensor(vae.config[name]).view(-1, 1, 1).to(latents_BChw) for name in ("latents_mean", "latents_std"))
            latents_BChw = latents_BChw * std_C / vae.config.scaling_factor + mean_C
        else:
            latents_BChw = latents_BChw / vae.config.scaling_factor
        images_B3HW: torch.Tensor = vae.decode(latents_BChw, return_dict=False)[0]
        # Clamping would make an infinity a white pixel; as NaN it stays visible.
        return torch.where(images_B3HW.isfinite(), images_B3HW.float() / 2 + 0.5, torch.nan).clamp(0, 1)


def _first_words(prompt: str, count: int) -> str:
    """Return the prompt up to the end of its word number ``count``.

    A word has at least one token, so the text encoder reads the same. What diffusers cuts off it tokenizes three times and decodes, for a
    line in a log: 22 s and 1.5 GB for a batch with one prompt of a megabyte.
    """
    ends = [word.end() for word in islice(re.finditer(r"\S+", prompt), count)]
    return prompt[: ends[-1]]


def _load(generator: Generator, dtype: torch.dtype) -> Any:
    allow_torchvision_import()
    import diffusers
    from safetensors import SafetensorError

    diffusers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, generator.pipeline_class)
    # The safety checker blackens images after decoding; latents are asked for, so it would never run.
    parts = {"safety_checker": None, "feature_extractor": None} if generator.pipeline_class == "StableDiffusionPipeline" else {}
    try:
        pipeline = pipeline_class.from_pretrained(
            generator.folder, dtype=dtype, variant=generator.variant, use_safetensors=True, local_files_only=True, **parts
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            got=f"{generator.folder}, which does not load ({' '.join(str(error).split())[:160]})",
            expected=f"a whole {generator.pipeline_class} folder with safetensors weights",
            do="download it again",
        ) from None
    assert pipeline.unet.dtype == dtype, pipeline.unet.dtype
    pipeline.scheduler = _scheduler(pipeline.scheduler, generator.settings.scheduler)
    # SDXL's decoder overflows in half precision. ``force_upcast`` is True by default in every decoder, and only SDXL's pipeline heeds it.
    if generator.pipeline_class == "StableDiffusionXLPipeline" and pipeline.vae.config.force_upcast and dtype == torch.float16:
        pipeline.vae.to(torch.float32)
    return pipeline


def _scheduler(own: Any, wanted: str) -> Any:
    import diffusers

    classes = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
    # DDIM's default clips to [-1, 1], which latents exceed; the configurations of other schedulers may not say so.
    return getattr(diffusers, classes[wanted]).from_config(own.config, clip_sample=False) if wanted in classes else own


def _set_attention(pipeline: Any, wanted: AttentionChoice, device: torch.device) -> str:
    """Choose the attention kernels; return the class of the UNet's processors, looked up afterwards, for the record."""
    from diffusers.utils import is_xformers_available

    can = device.type == "cuda" and is_xformers_available()
    if wanted == "xformers" and not can:
        raise InputError(
            got=f"--attention xformers on {device.type}",
            expected="a CUDA device and an xformers that fits the installed torch",
            do="use --attention sdpa",
        )
    if can and wanted in ("auto", "xformers"):
        _try_xformers(pipeline.unet, must=wanted == "xformers")
    processors = {type(one).__name__ for one in pipeline.unet.attn_processors.values()}
    assert len(processors) == 1, processors
    return processors.pop()


def _try_xformers(unet: Any, *, must: bool) -> None:
    """Switch the UNet to xformers, which diffusers tries out on the device first; without ``must``, leave PyTorch's kernels if it fails."""
    try:
        unet.enable_xformers_memory_efficient_attention()
    except (NotImplementedError, ImportError, ValueError, RuntimeError) as error:
        if must:
            raise InputError(
                got=f"--attention xformers, which does not run here ({reason(error)})",
                expected="an xformers that fits the installed torch and the device",
                do="use --attention sdpa",
            ) from None
