"""Presets: the generators that have a name, where their weights are and how they sample.

Repositories move, so a preset has an ordered list of sources: Stability AI took Stable Diffusion 2 and SD-Turbo off the hub in November
2025; sd2-community mirrors the former. Licences are written here for choosing one; what a run records is read from the files. The tokens
that each reads, and its work, are in docs/generators.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featurize.options import DeepCacheCut, Fidelity, Scheduler
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE

_SD = "StableDiffusionPipeline"
_RAIL = "CreativeML Open RAIL++-M"
_T5GEMMA = "its text encoder T5Gemma: Gemma Terms of Use"
_GEMMA2 = "its text encoder Gemma 2: Gemma Terms of Use"
_STABILITY = "Stability AI Community License (not an open licence)"


@dataclass(frozen=True, kw_only=True)
class GeneratorPreset:
    """The settings of one model.

    Attributes:
        sources: hub ids, tried in order.
        pipeline: class of diffusers that the settings are for.
        denoiser: hub id of another repository whose ``transformer/`` or ``unet/`` replaces that of ``sources``, or of a file in it
            (``owner/name/file.safetensors``).
        size_px: side of the images; None = the size it was trained for.
        scheduler: ``own`` = the one in its folder.
        is_distilled: to few steps: its timesteps are trailing, and its images hardly differ from seed to seed.
        guidance_interval: ``a:b``, fractions of the steps in which classifier-free guidance acts; None = in all of them.
        guidance_reuse: whether the last difference by guidance is kept after them.
        deepcache: N = run the deep UNet blocks every N-th step; 1 = every step.
        deepcache_cut: what the other steps run.
        fidelity: which of these shortcuts, where the user gave none.
        license: as the model's card stated it when the preset was written.
        text_license: of the text encoder, where it is another and the card does not say so.
        notice: what a user must be told.
        undecided: what neither preset nor user chose: the folder is asked.
        given: what the user chose.
        lora, unet, generator_config: files of the user's, as ``--lora``, ``--unet`` and ``--generator-config`` name them.
    """

    sources: tuple[str, ...] = ()
    pipeline: str | None = None
    denoiser: str | None = None
    size_px: int | None = None
    steps: int = 50
    guidance: float = 7.5
    scheduler: Scheduler = "own"
    is_distilled: bool = False
    guidance_interval: str | None = None
    guidance_reuse: bool = False
    deepcache: int = 1
    deepcache_cut: DeepCacheCut = "level"
    fidelity: Fidelity = "high"
    license: str = "see the model's own card"
    text_license: str | None = None
    notice: str | None = None
    undecided: tuple[str, ...] = ()
    given: tuple[str, ...] = field(default=(), compare=False)
    lora: tuple[str, ...] = ()
    unet: Path | None = None
    generator_config: str | None = None


def _sd2(repository: str, size_px: int, *, steps: int = 50, scheduler: Scheduler = "ddim") -> GeneratorPreset:
    sources = (f"sd2-community/{repository}", f"stabilityai/{repository}")
    return GeneratorPreset(
        sources=sources,
        pipeline=_SD,
        size_px=size_px,
        steps=steps,
        scheduler=scheduler,
        license=_RAIL,
    )


# The folder of each embedded generator, by the name of its preset.
EMBEDDED_GENERATORS: Mapping[str, str] = {"demo": "generator", "demo-flow": "generator-flow"}
PRESETS: Mapping[str, GeneratorPreset] = {
    "paper": _sd2("stable-diffusion-2", 768),
    "fast": _sd2("stable-diffusion-2-base", 512, steps=20, scheduler="dpm++"),
    "sd2": _sd2("stable-diffusion-2", 768),
    "sd2-base": _sd2("stable-diffusion-2-base", 512),
    "sd2-1": _sd2("stable-diffusion-2-1", 768),
    "sd2-1-base": _sd2("stable-diffusion-2-1-base", 512),
    "sd-turbo": GeneratorPreset(
        pipeline=_SD,
        sources=("stabilityai/sd-turbo",),
        size_px=512,
        steps=1,
        guidance=0.0,
        is_distilled=True,
        license=_STABILITY,
        notice="SD-Turbo's weights are under the Stability AI Community License, which limits commercial use; check that yours is allowed",
    ),
    "flux2-klein": GeneratorPreset(
        pipeline="Flux2KleinPipeline",
        sources=("black-forest-labs/FLUX.2-klein-4B",),
        size_px=512,
        steps=4,
        guidance=1.0,
        is_distilled=True,
        license="Apache-2.0",
    ),
    "flux2-klein-base": GeneratorPreset(
        pipeline="Flux2KleinPipeline",
        sources=("black-forest-labs/FLUX.2-klein-base-4B",),
        size_px=512,
        steps=50,
        guidance=4.0,
        license="Apache-2.0",
    ),
    "prx": GeneratorPreset(
        pipeline="PRXPipeline",
        sources=("Photoroom/prx-512-t2i-sft-distilled",),
        size_px=512,
        steps=8,
        guidance=1.0,
        is_distilled=True,
        license=f"Apache-2.0; {_T5GEMMA}",
        text_license=_T5GEMMA,
    ),
    "prx-base": GeneratorPreset(
        pipeline="PRXPipeline",
        sources=("Photoroom/prx-512-t2i-sft",),
        size_px=512,
        steps=28,
        guidance=5.0,
        license=f"Apache-2.0; {_T5GEMMA}",
        text_license=_T5GEMMA,
    ),
    "sdxl-lightning": GeneratorPreset(
        pipeline="StableDiffusionXLPipeline",
        sources=("stabilityai/stable-diffusion-xl-base-1.0",),
        denoiser="ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors",
        size_px=1024,
        steps=4,
        guidance=0.0,
        scheduler="euler",
        is_distilled=True,
        license=_RAIL,
    ),
    "sana-sprint": GeneratorPreset(
        pipeline="SanaSprintPipeline",
        sources=("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers",),
        size_px=1024,
        steps=2,
        guidance=4.5,
        is_distilled=True,
        license=f"its cards disagree (NSCL v2-custom, Apache-2.0); {_GEMMA2}",
        text_license=_GEMMA2,
        notice="the cards of Sana-Sprint state different licences; read the one that comes with the weights before you use the images",
    ),
    "z-image-turbo": GeneratorPreset(
        pipeline="ZImagePipeline",
        sources=("Tongyi-MAI/Z-Image-Turbo",),
        size_px=512,
        steps=8,
        guidance=0.0,
        is_distilled=True,
        license="Apache-2.0",
    ),
    "pixart-sigma": GeneratorPreset(
        pipeline="PixArtSigmaPipeline",
        sources=("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",),
        denoiser="PixArt-alpha/PixArt-Sigma-XL-2-512-MS",
        size_px=512,
        steps=20,
        guidance=4.5,
        license="CreativeML Open RAIL++-M (the weights)",
    ),
    "demo": GeneratorPreset(
        pipeline=_SD,
        size_px=64,
        steps=4,
        guidance=3.0,
        scheduler="ddim",
        license=EMBEDDED_LICENSE,
        notice="the embedded generator draws emoji: results with it do not predict results with Stable Diffusion",
    ),
    "demo-flow": GeneratorPreset(
        pipeline="PRXPipeline",
        size_px=64,
        steps=4,
        guidance=3.0,
        license=EMBEDDED_LICENSE,
        notice="the embedded generator draws emoji: results with it do not predict results with PRX",
    ),
}
