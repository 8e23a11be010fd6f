"""Prompts to latents to images, on the device, with a Stable Diffusion pipeline of diffusers. The only file that imports diffusers to draw.

Shapes: B images, C latent channels, h × w latent cells, H × W pixels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.generators import Generator
from lugpi_core.device import Compute
from lugpi_core.errors import InputError

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
            prompt=list(prompts),
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
        latents_BChw = latents_BChw.to(self._device, vae.dtype) / vae.config.scaling_factor
        if vae.config.get("shift_factor"):
            latents_BChw = latents_BChw + vae.config.shift_factor
        images_B3HW: torch.Tensor = vae.decode(latents_BChw, return_dict=False)[0]
        # Clamping would make an infinity a white pixel; as NaN it stays visible.
        return torch.where(images_B3HW.isfinite(), images_B3HW.float() / 2 + 0.5, torch.nan).clamp(0, 1)


def _load(generator: Generator, dtype: torch.dtype) -> Any:
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline_class = getattr(diffusers, generator.pipeline_class)
    # The safety checker blackens images after decoding; latents are asked for, so it would never run.
    parts = {"safety_checker": None, "feature_extractor": None} if generator.pipeline_class == "StableDiffusionPipeline" else {}
    try:
        pipeline = pipeline_class.from_pretrained(
            generator.folder, torch_dtype=dtype, variant=generator.variant, use_safetensors=True, local_files_only=True, **parts
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            got=f"{generator.folder}, which does not load ({' '.join(str(error).split())[:160]})",
            expected=f"a whole {generator.pipeline_class} folder with safetensors weights",
            do="download it again",
        ) from None
    pipeline.scheduler = _scheduler(pipeline.scheduler, generator.settings.scheduler)
    if pipeline.vae.config.get("force_upcast") and dtype == torch.float16:
        pipeline.vae.to(torch.float32)  # SDXL's decoder overflows in half precision
    return pipeline


def _scheduler(own: Any, wanted: str) -> Any:
    import diffusers

    classes = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler"}
    return getattr(diffusers, classes[wanted]).from_config(own.config) if wanted in classes else own


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
        pipeline.unet.enable_xformers_memory_efficient_attention()
    elif device.type == "cuda":
        # With xformers installed diffusers may have chosen it; PyTorch's own kernels are asked for.
        from diffusers.models.attention_processor import AttnProcessor2_0

        pipeline.unet.set_attn_processor(AttnProcessor2_0())
    processors = {type(one).__name__ for one in pipeline.unet.attn_processors.values()}
    assert len(processors) == 1, processors
    return processors.pop()
