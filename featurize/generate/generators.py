"""One generator: its files found and its settings decided, nothing loaded.

``--generator NAME=FOLDER`` takes the weights from a folder or a file and the settings from the preset.
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
from featurize.generate.fidelity import shortcuts_in_words, with_shortcuts
from featurize.generate.folder_check import check_folder
from featurize.generate.folder_settings import folder_settings
from featurize.generate.generator_files import GeneratorFiles, find_files
from featurize.generate.guidance import check_guidance, in_words, interval_of
from featurize.generate.lora import LoraFile, find_loras, require_reader
from featurize.generate.presets import PRESETS, GeneratorPreset
from featurize.generate.sampler_settings import recorded_settings
from featurize.options import DeepCacheCut, Fidelity, Scheduler
from lugpi_core.errors import InputError, nearest, number_of
from lugpi_core.fingerprint import hash_model_files
from lugpi_core.runtime.pretrained import read_config

# Settings of sampling, each recorded with the generator.
SAMPLING = ("steps", "guidance", "guidance_interval", "guidance_reuse", "scheduler", "size_px", "deepcache", "deepcache_cut")
_NEVER_LOADED = ("safety_checker", "feature_extractor")
_CHECKPOINT = ".safetensors"
_NO_CHECKPOINTS = (".ckpt", ".bin", ".pt", ".pth", ".gguf", ".sft")
_VARIANT = re.compile(r"[^.]+\.(\w+?)(?:-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A generator whose files are found: everything that decides an image, nothing loaded yet.

    Attributes:
        variant: of the denoiser's weight files, such as fp16; None = the plain ones.
        variants: of each model's, by its folder.
        settings_from: where steps and guidance come from, in words.
        is_distilled: whether the folder shows signs of a model of few steps.
        sampler: settings of the sampler that are others than diffusers would take.
        license: as the model's card states it, or else the preset.
        single_file: a checkpoint that has the weights; ``folder`` has its configurations.
        denoiser_path: the denoiser's own file or folder, where it is not that of ``folder``.
        loras: to be fused.
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
    license: str = ""
    single_file: Path | None = None
    denoiser_path: Path | None = None
    loras: tuple[LoraFile, ...] = ()
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
        spacing = f" (timesteps {self.sampler['timestep_spacing']})" if "timestep_spacing" in self.sampler else ""
        fused = "".join(f", {lora.path.name} × {lora.scale:g}" for lora in self.loras)
        shortcuts = "".join(f", {words}" for words in shortcuts_in_words(dataclasses.asdict(settings)))
        steps = number_of(settings.steps, "step{s}") + spacing
        return f"{steps}, {self.guidance_in_words()}{source}{shortcuts}, {self.size_px} px, {mixed}{fused}"

    def guidance_in_words(self) -> str:
        """Return ``guidance 7.5``, or ``no guidance`` where the scale does nothing."""
        scale = self.settings.guidance
        return "no guidance" if self.family.guidance_kind(scale) == "none" else f"guidance {scale:g}"

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
            **({"guidance_interval": self.settings.guidance_interval} if self.settings.guidance_interval else {}),
            **({"deepcache_cut": self.settings.deepcache_cut} if self.settings.deepcache_cut != "level" else {}),
            **({"guidance_reuse": True} if self.settings.guidance_reuse else {}),
            **({"index": dict(index)} if (index := self.family.index_settings) else {}),
            **({"sampler": dict(self.sampler)} if self.sampler else {}),
            **({"loras": [lora.fingerprint() for lora in self.loras]} if self.loras else {}),
        }


def generator_settings(name_or_source: str, overrides: Mapping[str, Any]) -> GeneratorPreset:
    """Return the settings of a generator without looking for its files, so that a wrong name is reported before anything is downloaded.

    Args:
        name_or_source: a preset, ``preset=FOLDER``, a diffusers folder, a ``.safetensors`` file or a hub id (``owner/name`` or
            ``owner/name@revision``).
        overrides: fields of the preset that the user gave, such as ``steps``; None = the preset's.

    Raises:
        InputError: unknown name, or settings out of their range.
    """
    name, is_source_given, source_given = name_or_source.partition("=")
    source = source_given if is_source_given else name
    is_file = _is_checkpoint(source, given=f"--generator {name_or_source}")
    if is_source_given and name in PRESETS and not (source and (is_file or Path(source).is_dir())):
        raise InputError(got=f"--generator {name_or_source}, which names no folder", expected=f"{name}=FOLDER", do="check the path")
    if name.startswith(("/", "./", "../", "~")) and not Path(name).exists():
        raise InputError(got=f"--generator {name_or_source}, which is no folder", expected="a diffusers folder", do="check the path")
    is_known = is_file or (name.strip() and Path(name).is_dir()) or "/" in name
    if name not in PRESETS and ("=" in name_or_source or not is_known):
        raise InputError(
            got=f"--generator {name_or_source or repr(name_or_source)}",
            expected="a preset, PRESET=FOLDER, a diffusers folder, a .safetensors file or a hub id owner/name",
            do=nearest(name, PRESETS),
        )
    given: dict[str, Any] = {key: Path(value) if key == "unet" else value for key, value in overrides.items() if value is not None}
    undecided = () if name in PRESETS else tuple(key for key in ("steps", "guidance", "scheduler") if key not in given)
    settings = dataclasses.replace(PRESETS.get(name, GeneratorPreset()), **given, undecided=undecided, given=tuple(given))
    if settings.generator_config is not None and not is_file:
        raise InputError(
            got=f"--generator-config {settings.generator_config} for {name_or_source}, which is no .safetensors file",
            expected="a file, which has no configuration of its own",
            do="leave out --generator-config",
        )
    return _checked(settings)


def _is_checkpoint(path: str, *, given: str) -> bool:
    """Whether a path is a safetensors file; raises InputError for files of other kinds and for files that are not there."""
    is_there = Path(path).is_file()
    if path.endswith(_NO_CHECKPOINTS) or (is_there and not path.endswith(_CHECKPOINT)):
        raise InputError(
            got=f"{given}, {'a file' if is_there else 'which is no file'} that is not {_CHECKPOINT}",
            expected=f"weights as {_CHECKPOINT} (pickled and quantized ones are not read)",
            do=f"get the model as {_CHECKPOINT}, or as a diffusers folder",
        )
    if path.endswith(_CHECKPOINT) and not is_there:
        raise InputError(got=f"{given}, which is no file", expected=f"a {_CHECKPOINT} file", do="check the path")
    return is_there


def find_generator(name_or_source: str, settings: GeneratorPreset, *, half: bool) -> Generator:
    """Return the generator with its files found, or downloaded.

    Args:
        name_or_source: as for ``generator_settings``.
        settings: what that returned.
        half: prefer half-precision files if the source has them.

    Raises:
        InputError: no source can be reached, or no pipeline that runs here.
    """
    name, _, source_given = name_or_source.partition("=")
    loras = find_loras(settings.lora)
    files = find_files(name, source_given, settings, half=half)
    try:
        return _generator_in(name, files, settings, loras, half=half)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"{files.folder}, whose configuration lacks something ({error!r})",
            expected="a whole diffusers folder",
            do="restore its files from where it comes from",
        ) from None


def _checked(settings: GeneratorPreset) -> GeneratorPreset:
    if settings.steps < 1:
        raise InputError(got=f"--steps {settings.steps}", expected="at least 1", do="give a positive number")
    if not math.isfinite(settings.guidance):
        raise InputError(got=f"--guidance {settings.guidance}", expected="a finite number", do="give for instance 7.5, or 0 for none")
    for flag, choices in (("scheduler", Scheduler), ("deepcache_cut", DeepCacheCut), ("fidelity", Fidelity)):
        if (choice := getattr(settings, flag)) not in get_args(choices):
            got = f"--{flag.replace('_', '-')} {choice}"
            raise InputError(got=got, expected=f"one of {', '.join(get_args(choices))}", do="choose one")
    if settings.deepcache < 1:
        raise InputError(got=f"--deepcache {settings.deepcache}", expected="at least 1", do="give for instance 3, or 1 for none")
    if settings.fidelity == "high":
        _require_deepcache(settings, do="give for instance --deepcache 3")
    if settings.size_px is not None and (settings.size_px < 8 or settings.size_px % 8):
        raise InputError(got=f"--size-px {settings.size_px}", expected="a positive multiple of 8", do="give for instance 512")
    if settings.unet is not None and not _is_checkpoint(str(settings.unet), given=f"--unet {settings.unet}"):
        raise InputError(got=f"--unet {settings.unet}", expected=f"a {_CHECKPOINT} file", do="check the path")
    if settings.guidance_interval is None:
        return settings
    return dataclasses.replace(settings, guidance_interval=in_words(interval_of(settings.guidance_interval)))


def _require_deepcache(settings: GeneratorPreset, *, do: str) -> None:
    if settings.deepcache_cut != "level" and settings.deepcache == 1:
        got = f"--deepcache-cut {settings.deepcache_cut} without --deepcache"
        raise InputError(got=got, expected="steps that reuse deep features", do=do)


def _generator_in(name: str, files: GeneratorFiles, settings: GeneratorPreset, loras: tuple[LoraFile, ...], *, half: bool) -> Generator:
    folder, index = files.folder, files.folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            got=f"{folder} without model_index.json",
            expected="a pipeline's folder, as diffusers saves it",
            do="check the path" if not (folder / "config.json").is_file() else "give the folder of the whole pipeline",
        )
    parts = read_config(index)
    if settings.pipeline is not None and (kind := parts.get("_class_name")) != settings.pipeline:
        raise InputError(
            got=f"--generator {name}={folder}, which is a {kind}",
            expected=f"a {settings.pipeline}, which the preset's settings are for",
            do=f"give --generator {folder} alone, with --steps and --guidance as its authors say",
        )
    family = family_of(folder, parts, files.replaced)
    require_reader(loras, str(parts["_class_name"]))
    check_folder(family)
    size_px = _size_px(family, settings)
    folders = {part: files.replaced.get(part, folder / part) for part in family.part_classes if (parts.get(part) or [None])[0]}
    variants = {part: _variant_of(path, half=half) for part, path in folders.items()}
    names = (Path(name.partition("@")[0]).name, *files.names, *(lora.path.stem for lora in loras))
    settings, settings_from, is_distilled = _decided(settings, family, name, names)
    settings = _without_idle_guidance(family, settings)
    settings = with_shortcuts(family, settings)
    _require_deepcache(settings, do="give for instance --deepcache 3" if family.denoiser == "unet" else "leave out --deepcache-cut")
    check_guidance(family, settings)
    scheduler = read_config(folder / "scheduler" / "scheduler_config.json")
    return Generator(
        name=name if name in PRESETS else Path(name.partition("@")[0]).name.removesuffix(_CHECKPOINT) or folder.resolve().name,
        folder=folder,
        revision=files.revision,
        weights_hash=_weights_hash(family, files, variants),
        variant=variants[family.denoiser],
        pipeline_class=str(parts["_class_name"]),
        size_px=size_px,
        latent_shape=family.latent_shape(size_px),
        settings=settings,
        variants=variants,
        settings_from=settings_from,
        is_distilled=is_distilled,
        sampler=recorded_settings(scheduler, settings.scheduler, steps=settings.steps, is_distilled=is_distilled),
        license=_license(files, settings),
        single_file=files.single_file,
        denoiser_path=files.denoiser,
        loras=loras,
        found_family=family,
    )


def _license(files: GeneratorFiles, settings: GeneratorPreset) -> str:
    """Return what the cards state, or else the preset, and the licence of a text encoder of which the cards say nothing."""
    if files.license is None:
        return settings.license
    return files.license if settings.text_license is None else f"{files.license}; {settings.text_license}"


def _size_px(family: Family, settings: GeneratorPreset) -> int:
    size_px = settings.size_px or family.native_px
    if size_px % family.multiple_px:
        near = max(1, round(size_px / family.multiple_px)) * family.multiple_px
        raise InputError(
            got=f"--size-px {size_px} for {family.folder}", expected=f"a multiple of {family.multiple_px}", do=f"give for instance {near}"
        )
    if family.most_px is not None and size_px > family.most_px:
        raise InputError(
            got=f"--size-px {size_px} for {family.folder}, whose {family.denoiser} has positions for {family.most_px} px",
            expected="no more than that",
            do=f"give for instance {min(family.native_px, family.most_px)}",
        )
    if settings.deepcache > 1 and family.denoiser != "unet":
        raise InputError(
            got=f"--deepcache {settings.deepcache} for {family.folder}, which has no UNet",
            expected="a generator with a UNet, whose deep blocks can be skipped",
            do="leave out --deepcache",
        )
    return size_px


def _without_idle_guidance(family: Family, settings: GeneratorPreset) -> GeneratorPreset:
    """Return the settings with the usual scale in place of one that was given, is warned of and does nothing: the images are the same."""
    if "guidance" not in settings.given or settings.guidance <= 1 or family.guidance_kind(settings.guidance) != "none":
        return settings
    warnings.warn(
        f"--guidance {settings.guidance:g} has no effect: {family.folder} takes no guidance, as its model was distilled without it",
        stacklevel=4,
    )
    return dataclasses.replace(settings, guidance=family.usual.guidance)


def _decided(settings: GeneratorPreset, family: Family, name: str, names: tuple[str, ...]) -> tuple[GeneratorPreset, str, bool]:
    """Return the settings with what the folder says where neither preset nor user chose, where they come from, and whether the model is
    distilled to few steps."""
    if name in PRESETS:
        return settings, "", settings.is_distilled
    folder = family.folder
    said = folder_settings(folder, names, family.usual)
    chosen = {key: getattr(said, key) for key in settings.undecided}
    if unsaid := [key for key in said.unsaid if key in settings.undecided]:
        values = " and ".join(f"{key} {chosen[key]:g}" for key in unsaid)
        warnings.warn(
            f"{folder} seems to be distilled to few steps ({', '.join(said.signs)}), but does not say how many: it runs with {values}, as "
            f"ordinary models do; give {' and '.join(f'--{key}' for key in unsaid)} as its authors say",
            stacklevel=4,
        )
    by_origin: dict[str, list[str]] = {}
    for key in settings.undecided:
        if key != "scheduler" or said.scheduler != "own":
            by_origin.setdefault(said.origin[key], []).append(key)
    words = ", ".join(f"{', '.join(keys[:-1])} and {keys[-1]} {origin}".removeprefix(" and ") for origin, keys in by_origin.items())
    return dataclasses.replace(settings, **chosen, undecided=()), words, bool(said.signs)


def _variant_of(part: Path, *, half: bool) -> str | None:
    """Return which of a model's weight files are loaded: plain ones unless half precision is preferred, and others if there are none."""
    names = [path.name for path in part.glob("*.safetensors")]
    found = {match[1] if (match := _VARIANT.fullmatch(name)) else None for name in names}
    order = ("fp16", None) if half else (None, "fp16")
    usable = [variant for variant in (*order, "fp32", "bf16") if variant in found]
    return usable[0] if usable else None


def _weights_hash(family: Family, files: GeneratorFiles, variants: Mapping[str, str | None]) -> str:
    """Return one hash over the files that are loaded. The hub's cache may hold both precisions; only the one that is loaded counts.

    Raises:
        InputError: the denoiser has no such ``.safetensors`` file (pickled weights are never read).
    """
    folder, denoiser = family.folder, family.denoiser
    names = sorted(name for name, origin in family.index.items() if isinstance(origin, list) and origin[0] and name not in _NEVER_LOADED)
    loaded: dict[str, Path] = {}
    for name in names:
        part = files.replaced.get(name, folder / name)
        file = files.file_of(name, denoiser)
        found = _loaded_files(part, variants.get(name))
        loaded |= {f"{name}/{path.name}": path for path in found if file is None or path.suffix != _CHECKPOINT}
        if file is not None:
            loaded[f"{'checkpoint' if file == files.single_file else name}/file{_CHECKPOINT}"] = file
    if files.file_of(denoiser, denoiser) is None and not any(
        name.startswith(f"{denoiser}/") and name.endswith(_CHECKPOINT) for name in loaded
    ):
        raise InputError(
            got=f"{folder} without a {_CHECKPOINT} file in {denoiser}/",
            expected=f"weights as {_CHECKPOINT} (pickled weights are not read)",
            do="get the model as safetensors, or load it once in Python and write it to a new folder with save_pretrained()",
        )
    return hash_model_files(loaded)


def _loaded_files(part: Path, variant: str | None) -> list[Path]:
    weights = sorted(part.glob("*.safetensors"))
    of_variant = [path for path in weights if variant and (f".{variant}." in path.name or f".{variant}-" in path.name)]
    without_variant = [path for path in weights if ".fp16." not in path.name and ".fp16-" not in path.name]
    # Of newer tokenizers: chat templates and vocabularies of sentencepiece.
    others = [path for pattern in ("*.json", "*.txt", "*.jinja", "*.model") for path in part.glob(pattern)]
    return sorted([*(of_variant or without_variant), *others])


def weight_bytes(generator: Generator) -> int:
    """Return the size of the weight files that are loaded, without LoRAs."""
    files = GeneratorFiles(folder=generator.folder, single_file=generator.single_file, denoiser=generator.denoiser_path)
    denoiser, sizes = generator.family.denoiser, dict[Path, int]()
    for part, variant in generator.variants.items():
        other = generator.denoiser_path if part == denoiser else None
        file, folder = files.file_of(part, denoiser), other or generator.folder / part
        paths = [file] if file is not None else [path for path in _loaded_files(folder, variant) if path.suffix == _CHECKPOINT]
        sizes |= {path: path.stat().st_size for path in paths}
    return sum(sizes.values())
