"""Generators by name: where their weights are found, and with which settings they generate.

A preset is a name with an ordered list of sources, because repositories move: Stability AI took Stable Diffusion 2 and SD-Turbo off the hub
in November 2025; sd2-community mirrors the former. ``--generator NAME=FOLDER`` takes the weights from a folder and the settings from the
preset.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from featurize.options import Scheduler
from lugpi_core.errors import InputError, nearest
from lugpi_core.fingerprint import hash_model_files
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE, embedded_model, read_config, reason

SUPPORTED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_NEVER_LOADED = ("safety_checker", "feature_extractor")
_RAIL = "CreativeML Open RAIL++-M"


@dataclass(frozen=True, kw_only=True)
class GeneratorPreset:
    """The settings of one model. ``size_px`` None = the size it was trained for; scheduler ``own`` = the one in its folder; ``deepcache``
    N = run the deep UNet blocks every N-th step (1 = every step)."""

    sources: tuple[str, ...] = ()
    size_px: int | None = None
    steps: int = 50
    guidance: float = 7.5
    scheduler: Scheduler = "own"
    deepcache: int = 1
    license: str = "see the model's own card"
    notice: str | None = None


def _sd2(repository: str, size_px: int, *, steps: int = 50, scheduler: Scheduler = "ddim") -> GeneratorPreset:
    sources = (f"sd2-community/{repository}", f"stabilityai/{repository}")
    return GeneratorPreset(sources=sources, size_px=size_px, steps=steps, scheduler=scheduler, license=_RAIL)


PRESETS: Mapping[str, GeneratorPreset] = {
    "paper": _sd2("stable-diffusion-2", 768),
    "fast": _sd2("stable-diffusion-2-base", 512, steps=20, scheduler="dpm++"),
    "sd2": _sd2("stable-diffusion-2", 768),
    "sd2-base": _sd2("stable-diffusion-2-base", 512),
    "sd2-1": _sd2("stable-diffusion-2-1", 768),
    "sd2-1-base": _sd2("stable-diffusion-2-1-base", 512),
    "sd-turbo": GeneratorPreset(
        sources=("stabilityai/sd-turbo",),
        size_px=512,
        steps=1,
        guidance=0.0,
        license="Stability AI Community License (not an open licence)",
        notice="SD-Turbo's weights are under the Stability AI Community License, which limits commercial use; check that yours is allowed",
    ),
    "demo": GeneratorPreset(
        size_px=64,
        steps=4,
        guidance=3.0,
        scheduler="ddim",
        license=EMBEDDED_LICENSE,
        notice="the embedded generator draws emoji: results with it do not predict results with Stable Diffusion",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A generator whose files are found: everything that decides an image, nothing loaded yet."""

    name: str
    folder: Path
    revision: str | None
    weights_hash: str
    variant: str | None
    pipeline_class: str
    size_px: int
    latent_shape: tuple[int, int, int]
    settings: GeneratorPreset = field(repr=False)

    @property
    def origin(self) -> str:
        """Name, and the hub's commit if the files came from there."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the latents, except prompts, seeds and dtype. The hub's commit is left out: the same weights may come from a
        folder."""
        return {
            "name": self.name,
            "weights": self.weights_hash,
            "pipeline": self.pipeline_class,
            "size_px": self.size_px,
            "steps": self.settings.steps,
            "guidance": self.settings.guidance,
            "scheduler": self.settings.scheduler,
            "deepcache": self.settings.deepcache,
        }


def generator_settings(name_or_source: str, overrides: Mapping[str, Any]) -> GeneratorPreset:
    """Return the settings of a generator without looking for its files, so that a wrong name is reported before anything is downloaded.

    Args:
        name_or_source: a preset, ``preset=FOLDER``, a diffusers folder or a hub id (``owner/name`` or ``owner/name@revision``).
        overrides: ``steps``, ``guidance``, ``scheduler``, ``size_px``, ``deepcache`` given by the user; None = the preset's.

    Raises:
        InputError: unknown name, or settings out of their range.
    """
    name = name_or_source.partition("=")[0]
    if name not in PRESETS and ("=" in name_or_source or not (Path(name).is_dir() or "/" in name)):
        raise InputError(
            got=f"--generator {name_or_source}",
            expected="a preset, PRESET=FOLDER, a diffusers folder or a hub id owner/name",
            do=nearest(name, PRESETS),
        )
    given = {key: value for key, value in overrides.items() if value is not None}
    return _check_settings(dataclasses.replace(PRESETS.get(name, GeneratorPreset()), **given))


def find_generator(name_or_source: str, settings: GeneratorPreset, *, half: bool) -> Generator:
    """Return the generator with its files found, or downloaded.

    Args:
        name_or_source: as for ``generator_settings``.
        settings: what that returned.
        half: prefer half-precision files if the source has them.

    Raises:
        InputError: no source can be reached, or not a Stable Diffusion pipeline.
    """
    name, _, folder_given = name_or_source.partition("=")
    folder, variant, revision = _first_available(name, _sources(name, folder_given), half=half)
    try:
        return _generator_in(name, folder, variant, revision, settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"{folder}, whose configuration lacks something ({error!r})", expected="a whole diffusers folder", do="download it again"
        ) from None


def _sources(name: str, folder_given: str) -> tuple[str, ...]:
    if folder_given:
        return (folder_given,)
    if name == "demo":
        return (str(embedded_model("generator")),)
    return PRESETS[name].sources if name in PRESETS else (name,)


def _check_settings(settings: GeneratorPreset) -> GeneratorPreset:
    if settings.steps < 1:
        raise InputError(got=f"--steps {settings.steps}", expected="at least 1", do="give a positive number")
    if not math.isfinite(settings.guidance):
        raise InputError(got=f"--guidance {settings.guidance}", expected="a finite number", do="give for instance 7.5, or 0 for none")
    if settings.scheduler not in get_args(Scheduler):
        raise InputError(got=f"--scheduler {settings.scheduler}", expected=f"one of {', '.join(get_args(Scheduler))}", do="choose one")
    if settings.deepcache < 1:
        raise InputError(got=f"--deepcache {settings.deepcache}", expected="at least 1", do="give for instance 3, or 1 for none")
    if settings.size_px is not None and (settings.size_px < 8 or settings.size_px % 8):
        raise InputError(got=f"--size-px {settings.size_px}", expected="a positive multiple of 8", do="give for instance 512")
    return settings


def _first_available(name: str, sources: tuple[str, ...], *, half: bool) -> tuple[Path, str | None, str | None]:
    failures = []
    for source in sources:
        if Path(source).is_dir():
            folder = Path(source)
            return folder, _variant_in(folder, half=half), None
        try:
            return _download(source, half=half)
        except (OSError, ValueError) as error:
            failures.append(f"{source}: {reason(error)}")
    raise InputError(
        got=f"no source of the generator {name} within reach ({'; '.join(failures)})",
        expected="one of its sources on the Hugging Face hub, or a local diffusers folder",
        do=f"download it where there is a network and give --generator {name}=FOLDER"
        if name in PRESETS
        else "check the name, or give a local folder",
    )


def _variant_in(folder: Path, *, half: bool) -> str | None:
    return "fp16" if half and list(folder.glob("unet/*.fp16.safetensors")) else None


def _download(source: str, *, half: bool) -> tuple[Path, str | None, str | None]:
    from diffusers import DiffusionPipeline
    from diffusers.utils.hub_utils import httpx  # the HTTP client of the installed hub library

    repository, _, revision = source.partition("@")
    for variant in ("fp16", None) if half else (None,):
        try:
            folder = DiffusionPipeline.download(repository, revision=revision or None, use_safetensors=True, variant=variant)
        except ValueError:
            if variant is None:
                raise
            continue  # the repository has no half-precision files
        except httpx.HTTPError as error:
            raise OSError(reason(error)) from None  # a time-out, for example, is no OSError of the client
        # The hub's cache keeps each commit in a folder of its name.
        return Path(folder), _variant_in(Path(folder), half=half), Path(folder).name
    raise AssertionError("the loop returns or raises")


def _generator_in(name: str, folder: Path, variant: str | None, revision: str | None, settings: GeneratorPreset) -> Generator:
    index = folder / "model_index.json"
    parts = read_config(index) if index.is_file() else {"_class_name": "no pipeline"}
    pipeline_class = parts.get("_class_name", "")
    if pipeline_class not in SUPPORTED:
        raise InputError(got=f"{folder} ({pipeline_class})", expected=" or ".join(SUPPORTED), do="choose another generator")
    unet, vae = read_config(folder / "unet" / "config.json"), read_config(folder / "vae" / "config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    size_px = settings.size_px or unet["sample_size"] * factor
    side = size_px // factor
    return Generator(
        name=name if name in PRESETS else Path(name.partition("@")[0]).name,
        folder=folder,
        revision=revision,
        weights_hash=_weights_hash(folder, parts, variant),
        variant=variant,
        pipeline_class=pipeline_class,
        size_px=size_px,
        latent_shape=(unet["in_channels"], side, side),
        settings=settings,
    )


def _weights_hash(folder: Path, parts: Mapping[str, Any], variant: str | None) -> str:
    """Return one hash over the files that are loaded. The hub's cache may hold both precisions; only the one that is loaded counts.

    Raises:
        InputError: the UNet has no such ``.safetensors`` file (pickled weights are never read).
    """
    names = sorted(name for name, origin in parts.items() if isinstance(origin, list) and origin[0] and name not in _NEVER_LOADED)
    files = [path for name in names for path in _loaded_files(folder / name, variant)]
    if not any(path.parent.name == "unet" and path.suffix == ".safetensors" for path in files):
        raise InputError(
            got=f"{folder} without a .safetensors file in unet/",
            expected="weights as safetensors (pickled weights are not read)",
            do="save the pipeline again with save_pretrained()",
        )
    return hash_model_files({path.relative_to(folder).as_posix(): path for path in files})


def _loaded_files(part: Path, variant: str | None) -> list[Path]:
    weights = sorted(part.glob("*.safetensors"))
    of_variant = [path for path in weights if variant and f".{variant}." in path.name]
    without_variant = [path for path in weights if ".fp16." not in path.name]
    return sorted([*(of_variant or without_variant), *part.glob("*.json"), *part.glob("*.txt")])
