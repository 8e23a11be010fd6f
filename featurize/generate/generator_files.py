"""Where the files of a generator are: a folder, one file, the hub, or a pipeline with the denoiser of another place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featurize.generate.downloads import Downloaded, card_license, find_denoiser, find_pipeline
from featurize.generate.families import denoiser_of, family_of
from featurize.generate.presets import EMBEDDED_GENERATORS, PRESETS, GeneratorPreset
from featurize.generate.single_file import configuration_of, content_of, has_part
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import embedded_model, read_config


@dataclass(frozen=True, kw_only=True)
class GeneratorFiles:
    """The files of a generator.

    Attributes:
        folder: of diffusers: all configurations, and the weights that are not elsewhere.
        revision: the hub's commit of ``folder``.
        license: as the cards state it; None = no card is at hand.
        single_file: a checkpoint that has the weights.
        denoiser: the denoiser's own file or folder.
        replaced: folders of parts that are not in ``folder``.
        names: of files, which say something of the model.
    """

    folder: Path
    revision: str | None = None
    license: str | None = None
    single_file: Path | None = None
    denoiser: Path | None = None
    replaced: Mapping[str, Path] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def file_of(self, part: str, denoiser: str) -> Path | None:
        """Return the file that has a part's weights; None = they are in its folder. ``denoiser`` is the name of that part."""
        if part == denoiser and self.denoiser is not None:
            return self.denoiser if self.denoiser.is_file() else None
        if self.single_file is None:
            return None
        is_model = part in (denoiser, "vae") or part.startswith("text_encoder")
        return self.single_file if is_model and (part == denoiser or has_part(self.single_file, part)) else None


def find_files(name: str, source_given: str, settings: GeneratorPreset, *, half: bool) -> GeneratorFiles:
    """Return the files of a generator, found or downloaded.

    Args:
        name: a preset, a folder, a file or a hub id.
        source_given: a folder or a file with the preset's weights, or empty.
        settings: of the generator.
        half: prefer half-precision files.

    Raises:
        InputError: they are not within reach, or are no generator.
    """
    source = source_given or name
    if Path(source).is_file():
        return _checkpoint(Path(source), settings)
    sources = (source_given,) if source_given else _sources(name)
    other = None if settings.unet is not None else settings.denoiser
    pipeline = find_pipeline(
        name,
        sources,
        half=half,
        check=lambda index: denoiser_of(index.parent, read_config(index)),
        with_denoiser=settings.unet is None and other is None,
        is_preset=name in PRESETS,
    )
    found = GeneratorFiles(folder=pipeline.path, revision=pipeline.revision, license=_stated(pipeline))
    if settings.unet is not None:
        _require_denoiser(settings.unet)
        return _with_denoiser(found, Downloaded(path=settings.unet, revision=None, license=card_license(settings.unet.parent)))
    if other is None or (source_given and _has_denoiser(found.folder, settings.size_px, other)):
        return found
    return _with_denoiser(found, _other_denoiser(found.folder, other))


def _sources(name: str) -> tuple[str, ...]:
    if name in EMBEDDED_GENERATORS:
        return (str(embedded_model(EMBEDDED_GENERATORS[name])),)
    return PRESETS[name].sources if name in PRESETS else (name,)


def _checkpoint(path: Path, settings: GeneratorPreset) -> GeneratorFiles:
    content = content_of(path)
    if content != "generator":
        raise InputError(
            got=f"--generator {path}, which has the weights of {'a LoRA' if content == 'lora' else 'a denoiser'} alone",
            expected="a whole generator, with its text encoders and decoder",
            do=f"give the base model as --generator, with --{'lora' if content == 'lora' else 'unet'} {path}",
        )
    found = GeneratorFiles(
        folder=configuration_of(path, settings.generator_config), license=card_license(path.parent), single_file=path, names=(path.stem,)
    )
    if settings.unet is None:
        return found
    _require_denoiser(settings.unet)
    return _with_denoiser(found, Downloaded(path=settings.unet, revision=None, license=card_license(settings.unet.parent)))


def _require_denoiser(path: Path) -> None:
    if content_of(path) == "lora":
        raise InputError(got=f"--unet {path}, a LoRA", expected="a denoiser's weights", do=f"give --lora {path}")


def _has_denoiser(folder: Path, size_px: int | None, other: str) -> bool:
    """Whether a user's folder has weights of the size for which the preset takes the denoiser of another repository."""
    if other.count("/") > 1:  # one file, which is a denoiser of another kind
        return False
    family = family_of(folder, read_config(folder / "model_index.json"))
    return any((folder / family.denoiser).glob("*.safetensors")) and family.native_px == size_px


def _other_denoiser(folder: Path, source: str) -> Downloaded:
    """Return a preset's denoiser of another repository, or the file of its name in the user's folder."""
    beside = folder / Path(source).name
    if beside.is_file():
        return Downloaded(path=beside, revision=None, license=card_license(folder))
    return find_denoiser(source, part=denoiser_of(folder, read_config(folder / "model_index.json")))


def _with_denoiser(files: GeneratorFiles, denoiser: Downloaded) -> GeneratorFiles:
    part = denoiser_of(files.folder, read_config(files.folder / "model_index.json"))
    licenses = {None: files.license, part: _stated(denoiser)}
    license = "; ".join(f"{name}: {text}" if name else text for name, text in licenses.items() if text is not None)
    return GeneratorFiles(
        folder=files.folder,
        revision=files.revision,
        license=license or None,
        single_file=files.single_file,
        denoiser=denoiser.path,
        replaced={} if denoiser.path.is_file() else {part: denoiser.path},
        names=(*files.names, denoiser.path.stem) if denoiser.path.is_file() else files.names,
    )


def _stated(files: Downloaded) -> str | None:
    """Return the licence with where it was read."""
    if files.license is None:
        return None
    at = "" if files.revision is None else f" at {files.revision}"
    return f"{files.license} (its card{at})"
