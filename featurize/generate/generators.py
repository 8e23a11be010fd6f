"""Generators by name: where their weights are found, and with which settings they generate.

A preset is a name with an ordered list of sources, because repositories move: Stability AI took Stable Diffusion 2 and SD-Turbo off the hub
in November 2025; sd2-community mirrors the former. ``--generator NAME=FOLDER`` takes the weights from a folder and the settings from the
preset.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from featurize.generate.families import family_of
from featurize.generate.families.family import Family
from featurize.generate.folder_check import check_folder
from featurize.generate.folder_settings import folder_settings
from featurize.generate.sampler_settings import recorded_settings
from featurize.options import Scheduler
from lugpi_core.errors import InputError, nearest
from lugpi_core.fingerprint import hash_model_files
from lugpi_core.runtime.pretrained import EMBEDDED_LICENSE, embedded_model, hub_advice, read_config, reason, require_hub_id

_NEVER_LOADED = ("safety_checker", "feature_extractor")
_SINGLE_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_VARIANT = re.compile(r"[^.]+\.(\w+?)(?:-\d+-of-\d+)?\.safetensors")
_RAIL = "CreativeML Open RAIL++-M"


@dataclass(frozen=True, kw_only=True)
class GeneratorPreset:
    """The settings of one model. ``size_px`` None = the size it was trained for; scheduler ``own`` = the one in its folder; ``deepcache``
    N = run the deep UNet blocks every N-th step (1 = every step); ``undecided`` = what neither preset nor user
    chose: the folder is asked."""

    sources: tuple[str, ...] = ()
    size_px: int | None = None
    steps: int = 50
    guidance: float = 7.5
    scheduler: Scheduler = "own"
    deepcache: int = 1
    license: str = "see the model's own card"
    notice: str | None = None
    undecided: tuple[str, ...] = ()


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
    """A generator whose files are found: everything that decides an image, nothing loaded yet.

    Attributes:
        variant: of the denoiser's weight files, such as fp16; None = the plain ones.
        variants: of each model's, by its folder.
        settings_from: where steps and guidance come from, in words.
        is_distilled: whether the folder shows signs of a model of few steps.
        sampler: settings of the sampler that are others than diffusers would take.
        found_family: what ``find_generator`` read; None = ``family`` reads the folder.
    """

    name: str
    folder: Path
    revision: str | None
    weights_hash: str
    variant: str | None
    pipeline_class: str
    size_px: int
    latent_shape: tuple[int, int, int]
    settings: GeneratorPreset = field(repr=False)
    variants: Mapping[str, str | None] = field(default_factory=dict)
    settings_from: str = ""
    is_distilled: bool = False
    sampler: Mapping[str, Any] = field(default_factory=dict)
    found_family: Family | None = field(default=None, repr=False, compare=False)

    @property
    def family(self) -> Family:
        """What kind of pipeline it is, by its configurations."""
        return self.found_family or family_of(self.folder, read_config(self.folder / "model_index.json"))

    @property
    def origin(self) -> str:
        """Name, and the hub's commit if the files came from there."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def words(self) -> str:
        """Return how it generates, for a person."""
        settings = self.settings
        files = sorted({variant or "full-precision" for variant in self.variants.values()})
        mixed = (
            "; ".join(f"{name} {variant or 'full'}" for name, variant in self.variants.items()) if len(files) > 1 else f"{files[0]} files"
        )
        source = f" ({self.settings_from})" if self.settings_from else ""
        spacing = f"{self.sampler['timestep_spacing']} " if "timestep_spacing" in self.sampler else ""
        return f"{settings.steps} {spacing}steps, guidance {settings.guidance:g}{source}, {self.size_px} px, {mixed}"

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
            **({"sampler": dict(self.sampler)} if self.sampler else {}),
        }


def generator_settings(name_or_source: str, overrides: Mapping[str, Any]) -> GeneratorPreset:
    """Return the settings of a generator without looking for its files, so that a wrong name is reported before anything is downloaded.

    Args:
        name_or_source: a preset, ``preset=FOLDER``, a diffusers folder or a hub id (``owner/name`` or ``owner/name@revision``).
        overrides: ``steps``, ``guidance``, ``scheduler``, ``size_px``, ``deepcache`` given by the user; None = the preset's.

    Raises:
        InputError: unknown name, or settings out of their range.
    """
    name, is_folder_given, folder_given = name_or_source.partition("=")
    _refuse_single_file(name_or_source, folder_given or name)
    if is_folder_given and name in PRESETS and not (folder_given and Path(folder_given).is_dir()):
        raise InputError(got=f"--generator {name_or_source}, which names no folder", expected=f"{name}=FOLDER", do="check the path")
    if name.startswith(("/", "./", "../", "~")) and not Path(name).is_dir():
        raise InputError(got=f"--generator {name_or_source}, which is no folder", expected="a diffusers folder", do="check the path")
    if name not in PRESETS and ("=" in name_or_source or not ((name.strip() and Path(name).is_dir()) or "/" in name)):
        raise InputError(
            got=f"--generator {name_or_source or repr(name_or_source)}",
            expected="a preset, PRESET=FOLDER, a diffusers folder or a hub id owner/name",
            do=nearest(name, PRESETS),
        )
    given = {key: value for key, value in overrides.items() if value is not None}
    undecided = () if name in PRESETS else tuple(key for key in ("steps", "guidance") if key not in given)
    return _check_settings(dataclasses.replace(PRESETS.get(name, GeneratorPreset()), **given, undecided=undecided))


def _refuse_single_file(given: str, path: str) -> None:
    if Path(path).is_file() or path.endswith(_SINGLE_FILES):
        what = "a single-file checkpoint" if Path(path).is_file() else "which is no file"
        raise InputError(
            got=f"--generator {given}, {what}",
            expected="a diffusers folder",
            do="convert it once in Python: diffusers.StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), "
            "StableDiffusionXLPipeline for XL",
        )


def find_generator(name_or_source: str, settings: GeneratorPreset, *, half: bool) -> Generator:
    """Return the generator with its files found, or downloaded.

    Args:
        name_or_source: as for ``generator_settings``.
        settings: what that returned.
        half: prefer half-precision files if the source has them.

    Raises:
        InputError: no source can be reached, or no pipeline that runs here.
    """
    name, _, folder_given = name_or_source.partition("=")
    folder, revision = _first_available(name, _sources(name, folder_given), half=half)
    try:
        return _generator_in(name, folder, revision, settings, half=half)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"{folder}, whose configuration lacks something ({error!r})",
            expected="a whole diffusers folder",
            do="restore its files from where it comes from",
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


def _first_available(name: str, sources: tuple[str, ...], *, half: bool) -> tuple[Path, str | None]:
    failures, advice = [], ""
    for source in sources:
        if Path(source).is_dir():
            return Path(source), None
        require_hub_id(source, flag="--generator")
        try:
            return _download(source, half=half)
        except (OSError, ValueError) as error:
            failures.append(f"{source}: {reason(error)}")
            advice = hub_advice(source, error)
    raise InputError(
        got=f"no source of the generator {name} within reach ({'; '.join(failures)})",
        expected="one of its sources on the Hugging Face hub, or a local diffusers folder",
        do=f"download it where there is a network and give --generator {name}=FOLDER" if name in PRESETS else advice,
    )


def _download(source: str, *, half: bool) -> tuple[Path, str | None]:
    from diffusers import DiffusionPipeline
    from diffusers.utils.hub_utils import httpx  # the HTTP client of the installed hub library

    repository, _, revision = source.partition("@")
    for variant in ("fp16", None) if half else (None, "fp16"):
        try:
            folder = DiffusionPipeline.download(repository, revision=revision or None, use_safetensors=True, variant=variant)
        except ValueError:
            if (variant is None) == half:
                raise
            continue  # the repository has no files of that precision
        except httpx.HTTPError as error:
            raise OSError(reason(error)) from None  # a time-out, for example, is no OSError of the client
        # The hub's cache keeps each commit in a folder of its name.
        return Path(folder), Path(folder).name
    raise AssertionError("the loop returns or raises")


def _generator_in(name: str, folder: Path, revision: str | None, settings: GeneratorPreset, *, half: bool) -> Generator:
    index = folder / "model_index.json"
    parts = read_config(index) if index.is_file() else {"_class_name": "no pipeline"}
    family = family_of(folder, parts)
    check_folder(family)
    size_px = _size_px(family, settings)
    variants = {part: _variant_of(folder / part, half=half) for part in family.part_classes if (parts.get(part) or [None])[0]}
    settings, settings_from = _decided(settings, family, name)
    is_distilled = name not in PRESETS and bool(folder_settings(folder, (Path(name.partition("@")[0]).name,), family.usual).signs)
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    return Generator(
        name=name if name in PRESETS else Path(name.partition("@")[0]).name or folder.resolve().name,
        folder=folder,
        revision=revision,
        weights_hash=_weights_hash(family, variants),
        variant=variants[family.denoiser],
        pipeline_class=str(parts["_class_name"]),
        size_px=size_px,
        latent_shape=family.latent_shape(size_px),
        settings=settings,
        variants=variants,
        settings_from=settings_from,
        is_distilled=is_distilled,
        sampler=recorded_settings(scheduler, settings.scheduler, steps=settings.steps, is_distilled=is_distilled),
        found_family=family,
    )


def _size_px(family: Family, settings: GeneratorPreset) -> int:
    size_px = settings.size_px or family.native_px
    if size_px % family.multiple_px:
        near = max(1, round(size_px / family.multiple_px)) * family.multiple_px
        raise InputError(
            got=f"--size-px {size_px} for {family.folder}", expected=f"a multiple of {family.multiple_px}", do=f"give for instance {near}"
        )
    if settings.deepcache > 1 and family.denoiser != "unet":
        raise InputError(
            got=f"--deepcache {settings.deepcache} for {family.folder}, which has no UNet",
            expected="a generator with a UNet, whose deep blocks can be skipped",
            do="leave out --deepcache",
        )
    return size_px


def _decided(settings: GeneratorPreset, family: Family, name: str) -> tuple[GeneratorPreset, str]:
    """Return the settings with what the folder says where neither preset nor user chose, and where steps and guidance come from."""
    if not settings.undecided:
        return settings, ""
    folder = family.folder
    said = folder_settings(folder, (Path(name.partition("@")[0]).name,), family.usual)
    chosen = {key: getattr(said, key) for key in settings.undecided}
    if unsaid := [key for key in said.unsaid if key in settings.undecided]:
        values = " and ".join(f"{key} {chosen[key]:g}" for key in unsaid)
        warnings.warn(
            f"{folder} seems to be distilled to few steps ({', '.join(said.signs)}), but does not say how many: it runs with {values}, as "
            f"ordinary models do; give {' and '.join(f'--{key}' for key in unsaid)} as its authors say",
            stacklevel=4,
        )
    words = ", ".join(f"{key} {said.origin[key]}" for key in settings.undecided)
    return dataclasses.replace(settings, **chosen, undecided=()), words


def _variant_of(part: Path, *, half: bool) -> str | None:
    """Return which of a model's weight files are loaded: plain ones unless half precision is preferred, and others if there are none."""
    names = [path.name for path in part.glob("*.safetensors")]
    found = {match[1] if (match := _VARIANT.fullmatch(name)) else None for name in names}
    order = ("fp16", None) if half else (None, "fp16")
    usable = [variant for variant in (*order, "fp32", "bf16") if variant in found]
    return usable[0] if usable else None


def _weights_hash(family: Family, variants: Mapping[str, str | None]) -> str:
    """Return one hash over the files that are loaded. The hub's cache may hold both precisions; only the one that is loaded counts.

    Raises:
        InputError: the denoiser has no such ``.safetensors`` file (pickled weights are never read).
    """
    folder, denoiser = family.folder, family.denoiser
    names = sorted(name for name, origin in family.index.items() if isinstance(origin, list) and origin[0] and name not in _NEVER_LOADED)
    files = [path for name in names for path in _loaded_files(folder / name, variants.get(name))]
    if not any(path.parent.name == denoiser and path.suffix == ".safetensors" for path in files):
        raise InputError(
            got=f"{folder} without a .safetensors file in {denoiser}/",
            expected="weights as safetensors (pickled weights are not read)",
            do="save the pipeline again with save_pretrained()",
        )
    return hash_model_files({path.relative_to(folder).as_posix(): path for path in files})


def _loaded_files(part: Path, variant: str | None) -> list[Path]:
    weights = sorted(part.glob("*.safetensors"))
    of_variant = [path for path in weights if variant and (f".{variant}." in path.name or f".{variant}-" in path.name)]
    without_variant = [path for path in weights if ".fp16." not in path.name and ".fp16-" not in path.name]
    # Of newer tokenizers: chat templates and vocabularies of sentencepiece.
    others = [path for pattern in ("*.json", "*.txt", "*.jinja", "*.model") for path in part.glob(pattern)]
    return sorted([*(of_variant or without_variant), *others])


def weight_bytes(generator: Generator) -> int:
    """Return the size of the weight files that are loaded."""
    files = (path for part, variant in generator.variants.items() for path in _loaded_files(generator.folder / part, variant))
    return sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
