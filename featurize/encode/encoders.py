"""Encoders by name: presets, models of open_clip and timm, folders and hub ids. No weights are loaded."""

from dataclasses import replace
from pathlib import Path

from featurize.encode import open_clip_models, timm_models
from featurize.encode.encoder_files import LAYER, LICENSES, PRESETS, Choice, EncoderFiles, flag_of
from featurize.encode.open_clip_models import find_open_clip, find_open_clip_name
from featurize.encode.pooling import as_pooled
from featurize.encode.timm_models import find_timm, find_timm_name, is_timm_folder
from featurize.encode.transformers_models import find_transformers
from lugpi_core.errors import InputError, nearest
from lugpi_core.runtime.pretrained import embedded_model, local_model_folder
from lugpi_core.store.layout import PROMPT_TEXT

DEMO_ENCODERS = ("clip-demo", "vit-demo")
WEIGHT_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
__all__ = ["DEMO_ENCODERS", "LAYER", "LICENSES", "PRESETS", "EncoderFiles", "expand_encoders", "find_encoder"]


def expand_encoders(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names with ``demo`` replaced by both embedded encoders, each once, in order."""
    expanded = [encoder for name in names for encoder in (DEMO_ENCODERS if name == "demo" else (name,))]
    return tuple(dict.fromkeys(expanded))


def find_encoder(name_or_source: str, size_px: int | None = None, layer: int | None = None, pool: str | None = None) -> EncoderFiles:
    """Return the encoder of a name, its files found or downloaded: a preset, ``open_clip:MODEL/TAG``, ``timm:NAME/TAG``, a folder or a hub
    id.

    Args:
        name_or_source: the name.
        size_px: side of the encoder's input, to which its positions are interpolated; None = as its image processor says.
        layer: the block whose tokens are read; None = the last.
        pool: what is kept of the tokens, as ``as_pooled`` takes it; None = all.

    Raises:
        InputError: unknown name, files that cannot be reached, weights that are not safetensors, no image encoder, or an image processor
            that cannot be followed, or tokens that cannot be pooled so.
    """
    try:
        files = _find(name_or_source, Choice(size_px=size_px, layer=layer))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"--encoders {name_or_source}, whose configuration lacks something ({error!r})",
            expected="a whole folder",
            do="restore its configuration",
        ) from None
    files = replace(files, stated_license=LICENSES[name_or_source]) if name_or_source in PRESETS else files
    return as_pooled(files, pool)


def _find(name_or_source: str, choice: Choice) -> EncoderFiles:
    source = PRESETS.get(name_or_source, name_or_source)
    if source == "embedded":
        return _from_folder(name_or_source, embedded_model(name_or_source), choice)
    for prefix, find in ((open_clip_models.PREFIX, find_open_clip_name), (timm_models.PREFIX, find_timm_name)):
        if source.startswith(prefix):
            model = source.removeprefix(prefix)
            return find(name_or_source if name_or_source in PRESETS else _name_of_model(prefix, model), model, choice)
    if Path(source).is_file() or source.endswith(WEIGHT_FILES):
        raise InputError(
            got=f"--encoders {name_or_source}, " + ("a single file" if Path(source).is_file() else "which is no file"),
            expected="a folder with a configuration and safetensors weights",
            do=f"give the folder that contains it, or, for weights of open_clip, open_clip:MODEL/{Path(source).name}",
        )
    if not source or (not Path(source).is_dir() and "/" not in source):
        raise InputError(
            got=f"--encoders {name_or_source or repr(name_or_source)}",
            expected="a preset, open_clip:<model>/<pretrained>, timm:<model>/<tag>, a folder or a hub id owner/name",
            do=nearest(name_or_source, [*PRESETS, "demo", PROMPT_TEXT]),
        )
    name = name_or_source if name_or_source in PRESETS else _column_name(name_or_source)
    return _from_folder(name, local_model_folder(source, flag=flag_of(name_or_source)), choice)


def _from_folder(name: str, folder: Path, choice: Choice) -> EncoderFiles:
    if (folder / open_clip_models.CONFIG).is_file():
        return find_open_clip(name, folder, choice)
    if is_timm_folder(folder):
        return find_timm(name, folder, choice)
    return find_transformers(name, folder, choice)


def _name_of_model(prefix: str, model: str) -> str:
    """Return a column's name: ``open_clip-MODEL-TAG`` (of a file, its stem), ``timm-NAME-TAG``."""
    architecture, _, weights = model.partition("/")
    weights = weights.partition(".safetensors@")[0] if ".safetensors@" in weights else weights
    stem = Path(weights).stem if prefix == open_clip_models.PREFIX else weights
    return "-".join(filter(None, (prefix.removesuffix(":"), architecture.replace(".", "-"), stem)))


def _column_name(source: str) -> str:
    name = Path(source).resolve().name if Path(source).is_dir() else source.partition("@")[0].rstrip("/").split("/")[-1]
    return name.replace(":", "-")
