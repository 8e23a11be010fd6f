"""Encoders by name: presets, open_clip models, folders and hub ids; their files, and what decides their tokens. No weights are loaded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lugpi_core.errors import InputError, nearest
from lugpi_core.files import read_json
from lugpi_core.fingerprint import hash_model_folder, hash_weights_file
from lugpi_core.runtime.pretrained import embedded_model, local_model_folder

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
_OPEN_CLIP_CONFIG = "open_clip_config.json"
# The supported model types of transformers, with the patch size that a configuration means if it states none.
_DEFAULT_PATCH_PX = {"vit": 16, "dinov2": 14, "clip": 32, "clip_vision_model": 32}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images in [0, 1] become the encoder's pixels: antialiased resize to S × S, then ``(x - mean) / std`` by channel."""

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]


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

    @property
    def license(self) -> str:
        """The licence of the weights, as far as we know it."""
        return _LICENSES.get(self.name, "see the model's own card")

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokens of a given image, except the dtype."""
        return {
            "name": self.name,
            "family": self.family,
            "weights": self.weights_hash,
            "preprocessing": asdict(self.preprocessing),
            "quick_gelu": self.quick_gelu,
            "layer": LAYER,
        }


def expand_encoders(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names with ``demo`` replaced by both embedded encoders, each once, in order."""
    expanded = [encoder for name in names for encoder in (DEMO_ENCODERS if name == "demo" else (name,))]
    return tuple(dict.fromkeys(expanded))


def find_encoder(name_or_source: str) -> EncoderFiles:
    """Return the encoder of a name, its files found or downloaded: a preset, ``open_clip:<model>/<pretrained>``, a folder or a hub id.

    Raises:
        InputError: unknown name, files that cannot be reached, weights that are not safetensors, or no vision
            transformer with a class token.
    """
    try:
        return _find(name_or_source)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            got=f"--encoders {name_or_source}, whose configuration lacks something ({error!r})",
            expected="a whole folder",
            do="download it again",
        ) from None


def _find(name_or_source: str) -> EncoderFiles:
    source = PRESETS.get(name_or_source, name_or_source)
    if source == "embedded":
        return _from_folder(name_or_source, embedded_model(name_or_source))
    if source.startswith("open_clip:"):
        return _from_open_clip(name_or_source, source.removeprefix("open_clip:"))
    if not Path(source).is_dir() and "/" not in source:
        raise InputError(
            got=f"--encoders {name_or_source}",
            expected="a preset, open_clip:<model>/<pretrained>, a folder or a hub id owner/name",
            do=nearest(name_or_source, [*PRESETS, "demo"]),
        )
    return _from_folder(
        name_or_source if name_or_source in PRESETS else _column_name(name_or_source), local_model_folder(source, flag="--encoders")
    )


def _from_open_clip(name_or_source: str, architecture_and_weights: str) -> EncoderFiles:
    import open_clip

    architecture, _, weights = architecture_and_weights.partition("/")
    if open_clip.get_model_config(architecture) is None:
        raise InputError(
            got=f"the open_clip model {architecture!r}", expected="one of its models", do=nearest(architecture, open_clip.list_models())
        )
    name = name_or_source if name_or_source in PRESETS else _column_name(f"open_clip-{architecture}-{Path(weights).stem}")
    if weights.endswith(".safetensors") and Path(weights).is_file():
        config = open_clip.get_model_config(architecture)
        return _open_clip_files(name, Path(weights), architecture, config, {})
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
    return _from_folder(name, folder, quick_gelu=bool(pretrained.get("quick_gelu")))


def _from_folder(name: str, folder: Path, *, quick_gelu: bool = False) -> EncoderFiles:
    if (folder / _OPEN_CLIP_CONFIG).is_file():
        config = read_json(folder / _OPEN_CLIP_CONFIG)
        return _open_clip_files(name, folder, None, config["model_cfg"], config.get("preprocess_cfg", {}), quick_gelu=quick_gelu)
    config = read_json(folder / "config.json")
    family = config.get("model_type", "nothing")
    if family not in _DEFAULT_PATCH_PX:
        raise InputError(
            got=f"{folder} of type {family!r}",
            expected=f"{', '.join(_DEFAULT_PATCH_PX)} or an open_clip folder",
            do="choose another encoder",
        )
    vision = config.get("vision_config", config)
    processor = read_json(folder / "preprocessor_config.json")
    size_px = vision.get("image_size", 224)
    return EncoderFiles(
        name=name,
        family=family,
        folder=folder,
        architecture=None,
        weights_hash=hash_model_folder(folder),
        preprocessing=Preprocessing(
            size_px=size_px,
            mean=_three(processor["image_mean"]),
            std=_three(processor["image_std"]),
            interpolation="bicubic" if processor.get("resample", 2) == 3 else "bilinear",
        ),
        tokens=(size_px // vision.get("patch_size", _DEFAULT_PATCH_PX[family])) ** 2 + 1,
        width=vision.get("hidden_size", 768),
    )


def _open_clip_files(
    name: str, files: Path, architecture: str | None, model: Mapping[str, Any], preprocess: Mapping[str, Any], *, quick_gelu: bool = False
) -> EncoderFiles:
    vision = model["vision_cfg"]
    if "patch_size" not in vision or not isinstance(vision.get("layers"), int) or vision.get("attentional_pool"):
        raise InputError(got=f"the vision tower of {name}", expected="a vision transformer with a class token", do="choose a ViT")
    clip_mean, clip_std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return EncoderFiles(
        name=name,
        family="open_clip",
        folder=files,
        architecture=architecture,
        weights_hash=hash_model_folder(files) if files.is_dir() else hash_weights_file(files),
        preprocessing=Preprocessing(
            size_px=vision["image_size"],
            mean=_three(preprocess.get("mean", clip_mean)),
            std=_three(preprocess.get("std", clip_std)),
            interpolation="bilinear" if preprocess.get("interpolation") == "bilinear" else "bicubic",
        ),
        tokens=(vision["image_size"] // vision["patch_size"]) ** 2 + 1,
        width=vision["width"],
        quick_gelu=quick_gelu,
    )


def _column_name(source: str) -> str:
    name = Path(source).resolve().name if Path(source).is_dir() else source.partition("@")[0].rstrip("/").split("/")[-1]
    return name.replace(":", "-")


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
