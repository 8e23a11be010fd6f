"""Encoders by name: presets, open_clip models, folders and hub ids; their files, and what decides their tokens. No weights are loaded."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from featurize.encode.preprocessing import Preprocessing, at_size, colours, deviations, read_preprocessing
from lugpi_core.errors import InputError, nearest
from lugpi_core.fingerprint import hash_model_folder, hash_weights_file
from lugpi_core.runtime.pretrained import embedded_model, loading, local_model_folder, read_config, require_whole_weights

PRESETS: Mapping[str, str] = {
    "clip-vit-b32": "open_clip:ViT-B-32/openai",
    "clip-vit-b16": "open_clip:ViT-B-16/openai",
    "clip-vit-l14": "open_clip:ViT-L-14/openai",
    "vit-b16": "google/vit-base-patch16-224-in21k",
    "clip-demo": "embedded",
    "vit-demo": "embedded",
}
_LICENSES = {"clip-vit-b32": "MIT", "clip-vit-b16": "MIT", "clip-vit-l14": "MIT", "vit-b16": "Apache-2.0"} | dict.fromkeys(
    ("clip-demo", "vit-demo"), "Apache-2.0"
)
DEMO_ENCODERS = ("clip-demo", "vit-demo")
LAYER = "after the final LayerNorm, before projection"
WEIGHT_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_OPEN_CLIP_CONFIG = "open_clip_config.json"
_SIZED = re.compile(r"-\d+px$")  # what --encoder-size adds to a column's name
# The vision transformers of transformers that are read: the tokens before the patches. With registers there are as many more.
_FIRST_TOKENS = {
    **dict.fromkeys(("vit", "vit_msn", "vit_mae", "beit", "data2vec-vision", "clip", "clip_vision_model"), 1),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit"), 1),
    "deit": 2,  # the class token and the distillation token
}
# These read any size of the input: the first two interpolate their positions, the third computes them. The others do if they are asked.
_INTERPOLATES = ("dinov2", "dinov2_with_registers")
ANY_SIZE = (*_INTERPOLATES, "dinov3_vit")
_WHY_NOT = {
    "siglip": "has no class token",
    "siglip2": "has no class token",
    "siglip_vision_model": "has no class token",
    "ijepa": "has no class token",
    "timm_wrapper": "is a model of timm, whose tokens differ from model to model",
}


@dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """An encoder whose files are found, with everything that decides its tokens; nothing is loaded yet.

    Attributes:
        name: the column's name in the store.
        family: ``open_clip`` or the transformers model type.
        folder: with the weights; for an open_clip model with an ``architecture`` it may be the weights file itself.
        architecture: open_clip's name of the model, or None if the folder has a configuration.
        tokens: T, class token included.
        width: D.
        processor: what the preprocessing was read from: the class of the folder's image processor, or open_clip.
        resizes_positions: whether the positions are interpolated from those of another input size.
        variant: of the weight files, such as fp16; None for the plain ones.
    """

    name: str
    family: str
    folder: Path
    architecture: str | None
    weights_hash: str
    preprocessing: Preprocessing
    tokens: int
    width: int
    quick_gelu: bool = False
    processor: str = "open_clip"
    resizes_positions: bool = False
    variant: str | None = None

    @property
    def license(self) -> str:
        """The licence of the weights, as far as we know it."""
        return _LICENSES.get(_SIZED.sub("", self.name), "see the model's own card")

    def words(self) -> str:
        """Return how images are read, for a person."""
        positions = ", positions interpolated" if self.resizes_positions else ""
        return f"{self.tokens:,} tokens of {self.width:,}; {self.processor}: {self.preprocessing.words()}{positions}"

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokens of a given image, except the dtype."""
        return {
            "name": self.name,
            "family": self.family,
            "weights": self.weights_hash,
            "preprocessing": self.preprocessing.fingerprint(),
            "quick_gelu": self.quick_gelu,
            "layer": LAYER,
        }


def expand_encoders(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names with ``demo`` replaced by both embedded encoders, each once, in order."""
    expanded = [encoder for name in names for encoder in (DEMO_ENCODERS if name == "demo" else (name,))]
    return tuple(dict.fromkeys(expanded))


def find_encoder(name_or_source: str, size_px: int | None = None) -> EncoderFiles:
    """Return the encoder of a name, its files found or downloaded: a preset, ``open_clip:<model>/<pretrained>``, a folder or a hub id.

    Args:
        name_or_source: the name.
        size_px: side of the encoder's input, to which its positions are interpolated; None = as its image processor says.

    Raises:
        InputError: unknown name, files that cannot be reached, weights that are not safetensors, no vision transformer with a class
            token, or an image processor that cannot be followed.
    """
    try:
        return _find(name_or_source, size_px)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"--encoders {name_or_source}, whose configuration lacks something ({error!r})",
            expected="a whole folder",
            do="restore its configuration",
        ) from None


def _at_size(files: EncoderFiles, size_px: int | None, *, trained_px: int, patch_px: int) -> EncoderFiles:
    """Return the encoder for inputs of another size, or as its processor makes them.

    Raises:
        InputError: no whole number of patches, or positions for another size than the processor makes.
    """
    own_px = files.preprocessing.size_px
    if size_px is None:
        if own_px != trained_px and files.family not in ANY_SIZE:
            raise InputError(
                got=f"{files.folder}, whose {files.processor} makes {own_px} px where its model reads {trained_px} px",
                expected="a processor and a model of one size",
                do=f"choose with --encoder-size {trained_px}, or another size, to which its positions are interpolated",
            )
        return replace(files, resizes_positions=files.family in _INTERPOLATES and own_px != trained_px)
    if size_px < patch_px or size_px % patch_px:
        near = max(1, round(size_px / patch_px)) * patch_px
        raise InputError(
            got=f"--encoder-size {size_px} for {files.name}", expected=f"a multiple of its patches' {patch_px} px", do=f"give {near}"
        )
    return replace(
        files,
        name=files.name if size_px == own_px else f"{files.name}-{size_px}px",
        preprocessing=at_size(files.preprocessing, size_px),
        tokens=files.tokens - (own_px // patch_px) ** 2 + (size_px // patch_px) ** 2,
        resizes_positions=size_px != trained_px and files.family != "dinov3_vit",
    )


def _find(name_or_source: str, size_px: int | None) -> EncoderFiles:
    source = PRESETS.get(name_or_source, name_or_source)
    if source == "embedded":
        return _from_folder(name_or_source, embedded_model(name_or_source), size_px)
    if source.startswith("open_clip:"):
        return _from_open_clip(name_or_source, source.removeprefix("open_clip:"), size_px)
    if Path(source).is_file() or source.endswith(WEIGHT_FILES):
        raise InputError(
            got=f"--encoders {name_or_source}, " + ("a single file" if Path(source).is_file() else "which is no file"),
            expected="a folder with a configuration and safetensors weights",
            do=f"give the folder that contains it, or, for weights of open_clip, open_clip:MODEL/{Path(source).name}",
        )
    if not source or (not Path(source).is_dir() and "/" not in source):
        raise InputError(
            got=f"--encoders {name_or_source or repr(name_or_source)}",
            expected="a preset, open_clip:<model>/<pretrained>, a folder or a hub id owner/name",
            do=nearest(name_or_source, [*PRESETS, "demo"]),
        )
    name = name_or_source if name_or_source in PRESETS else _column_name(name_or_source)
    return _from_folder(name, local_model_folder(source, flag="--encoders"), size_px)


def _from_open_clip(name_or_source: str, architecture_and_weights: str, size_px: int | None) -> EncoderFiles:
    import open_clip

    architecture, _, weights = architecture_and_weights.partition("/")
    if open_clip.get_model_config(architecture) is None:
        raise InputError(
            got=f"the open_clip model {architecture!r}", expected="one of its models", do=nearest(architecture, open_clip.list_models())
        )
    name = name_or_source if name_or_source in PRESETS else _column_name(f"open_clip-{architecture}-{Path(weights).stem}")
    if weights.endswith(".safetensors") and Path(weights).is_file():
        config = open_clip.get_model_config(architecture)
        return _open_clip_files(_OpenClipFolder(name, Path(weights), architecture), config, {}, size_px)
    pretrained = open_clip.get_pretrained_cfg(architecture, weights)
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise InputError(got=f"the open_clip weights {weights!r}", expected=f"weights of {architecture}", do=nearest(weights, tags))
    hub = pretrained.get("hf_hub", "").rstrip("/")
    if not hub:
        raise InputError(
            got=f"open_clip:{architecture}/{weights}", expected="weights that exist as safetensors", do="choose other weights of that model"
        )
    folder = local_model_folder(hub, patterns=("open_clip*.json", "open_clip*.safetensors"), flag="--encoders")
    return _from_folder(name, folder, size_px, quick_gelu=bool(pretrained.get("quick_gelu")))


def _from_folder(name: str, folder: Path, size_px: int | None, *, quick_gelu: bool = False) -> EncoderFiles:
    if (folder / _OPEN_CLIP_CONFIG).is_file():
        config = read_config(folder / _OPEN_CLIP_CONFIG)
        source = _OpenClipFolder(name, folder, None, quick_gelu)
        return _open_clip_files(source, config["model_cfg"], config.get("preprocess_cfg", {}), size_px)
    from transformers import AutoConfig

    config_file = folder / "config.json"
    family = read_config(config_file).get("model_type", "nothing") if config_file.is_file() else "nothing"
    if family not in _FIRST_TOKENS:
        why = f" ({family}), which {_WHY_NOT[family]}" if family in _WHY_NOT else f" of type {family!r}"
        raise InputError(
            got=f"{folder}{why}",
            expected=f"a vision transformer with a class token: {', '.join(_FIRST_TOKENS)} or an open_clip folder",
            do="choose another encoder",
        )
    with encoder_config_errors(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vision: Any = config.vision_config if family == "clip" else config
    require_whole_weights(f"--encoders {folder}", folder, vars(config))
    if vision.num_channels != 3:
        raise InputError(
            got=f"{folder} for images of {vision.num_channels} channels", expected="3, for colour", do="choose another encoder"
        )
    preprocessing, processor = read_preprocessing(folder)
    trained_px, patch_px = (_square(folder, name, getattr(vision, name)) for name in ("image_size", "patch_size"))
    first = _FIRST_TOKENS[family] + (vision.num_register_tokens if family in ("dinov2_with_registers", "dinov3_vit") else 0)
    files = EncoderFiles(
        name=name,
        family=family,
        folder=folder,
        architecture=None,
        weights_hash=hash_model_folder(folder),
        preprocessing=preprocessing,
        tokens=(preprocessing.size_px // patch_px) ** 2 + first,
        width=vision.hidden_size,
        processor=processor,
        variant=_variant_in(folder),
    )
    return _at_size(files, size_px, trained_px=trained_px, patch_px=patch_px)


def encoder_config_errors(folder: Path) -> AbstractContextManager[None]:
    """Turn what transformers raises at a configuration inside the block into one InputError."""
    return loading(folder, expected="a configuration that transformers reads", do="restore its config.json")


def _square(folder: Path, name: str, size: Any) -> int:
    """Return a side that a configuration states as one number or as two."""
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise InputError(got=f"{folder} with the {name} {size}", expected="square images and patches", do="choose another encoder")
    return int(sides[0])


def _variant_in(folder: Path) -> str | None:
    """Return the variant of a folder that has no plain weight files, such as ``fp16``."""
    names = [path.name for path in folder.glob("model*.safetensors*")]
    is_plain = any(re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name) for name in names)
    found = sorted({match[1] for name in names if (match := re.fullmatch(r"model\.(\w+)(-\d+-of-\d+)?\.safetensors", name))})
    return found[0] if found and not is_plain else None


class _OpenClipFolder(NamedTuple):
    name: str
    files: Path
    architecture: str | None
    quick_gelu: bool = False


def _open_clip_files(source: _OpenClipFolder, model: Mapping[str, Any], preprocess: Mapping[str, Any], size_px: int | None) -> EncoderFiles:
    vision = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224, **model["vision_cfg"]}  # open_clip's own defaults
    interpolation = preprocess.get("interpolation") or "bicubic"
    refused = {
        "a timm model": vision.get("timm_model_name"),
        "a ResNet": not isinstance(vision["layers"], int),
        "attentional pooling": vision.get("attentional_pool"),
        f"resized with {interpolation!r}": interpolation not in ("bicubic", "bilinear", "random"),
    }
    if found := [what for what, is_found in refused.items() if is_found]:
        raise InputError(
            got=f"the vision tower of {source.name} ({', '.join(found)})",
            expected="a vision transformer with a class token",
            do="choose a ViT",
        )
    trained_px, patch_px = (_square(source.files, key, vision[key]) for key in ("image_size", "patch_size"))
    clip_mean, clip_std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    files = EncoderFiles(
        name=source.name,
        family="open_clip",
        folder=source.files,
        architecture=source.architecture,
        weights_hash=hash_model_folder(source.files) if source.files.is_dir() else hash_weights_file(source.files),
        # open_clip resizes the shortest edge, the longest or both (resize_mode), which is one thing for a square image.
        preprocessing=Preprocessing(
            size_px=trained_px,
            mean=colours(preprocess.get("mean") or clip_mean),
            std=deviations(preprocess.get("std") or clip_std, source.files),
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        ),
        tokens=(trained_px // patch_px) ** 2 + 1,
        width=vision["width"],
        quick_gelu=source.quick_gelu,
    )
    return _at_size(files, size_px, trained_px=trained_px, patch_px=patch_px)


def _column_name(source: str) -> str:
    name = Path(source).resolve().name if Path(source).is_dir() else source.partition("@")[0].rstrip("/").split("/")[-1]
    return name.replace(":", "-")
