"""Image encoders of open_clip: folders, names with a tag or a file of weights; the vision towers with and without weights.

Its towers are its own vision transformers, ResNets with an attention pool, and trunks of timm.

Shapes: B images, S the encoder's side, T tokens, D width, E width of the joint space, h × w cells of a feature map.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from featurize.encode.encoder_files import (
    CLASS_TOKEN,
    MAP,
    MEAN,
    QUERIES,
    Choice,
    EncoderFiles,
    FirstAndPatches,
    Geometry,
    as_chosen,
    encoder_config_errors,
    flag_of,
    square,
    with_tokens,
)
from featurize.encode.preprocessing import open_clip_preprocessing
from featurize.encode.timm_models import TimmTokens, timm_geometry, with_contract
from lugpi_core.errors import InputError, nearest
from lugpi_core.fingerprint import hash_model_folder, hash_weights_file
from lugpi_core.runtime.pretrained import local_model_folder, read_config

PREFIX = "open_clip:"
CONFIG = "open_clip_config.json"
OWN = "own"  # in place of a tag: the settings that open_clip itself gives a file of weights
_DEFAULTS = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}  # open_clip's own
_RESNET_STRIDE = 32
# What decides pixels and activations in the settings of a tag, and what open_clip takes where a tag leaves it out.
_DECIDING: Mapping[str, Any] = {
    "mean": None,
    "std": None,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
    "quick_gelu": False,
}
_SOURCES = ("hf-hub:", "local-dir:")  # open_clip's own way to name what is none of its models
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".npz")
_RESIZE_MODES = ("shortest", "longest", "squash")
# The text tower is not run; the smallest possible one stands in for it.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class _Source(NamedTuple):
    """Where a model comes from: its column's name, its folder or file, and open_clip's name of it if there is no configuration."""

    name: str
    files: Path
    architecture: str | None
    quick_gelu: bool


def find_open_clip_name(name: str, architecture_and_weights: str, choice: Choice) -> EncoderFiles:
    """Return the encoder of ``MODEL/TAG``, ``MODEL/FILE.safetensors`` or ``MODEL/FILE.safetensors@TAG``.

    Raises:
        InputError: no such model or tag, weights out of reach, a file whose tag is not known, or what ``find_open_clip`` raises.
    """
    import open_clip

    for prefix in _SOURCES:
        if architecture_and_weights.startswith(prefix):
            raise InputError(
                got=f"--encoders {PREFIX}{architecture_and_weights}",
                expected="the folder or owner/name itself",
                do=f"give {architecture_and_weights.removeprefix(prefix)}",
            )
    architecture, _, weights = architecture_and_weights.partition("/")
    if architecture not in open_clip.list_models():
        raise InputError(
            got=f"the open_clip model {architecture!r}", expected="one of its models", do=nearest(architecture, open_clip.list_models())
        )
    file, _, tag = weights.partition(".safetensors@")
    file = f"{file}.safetensors" if tag else weights
    if file.endswith(".safetensors") and Path(file).is_file():
        return _from_file(name, architecture, Path(file), tag, choice)
    if file.endswith((".safetensors", *_PICKLES)):
        raise InputError(
            got=f"--encoders {PREFIX}{architecture_and_weights}, "
            + ("a pickled file" if Path(file).is_file() else f"where {file} is no file"),
            expected="a safetensors file, or a tag",
            do="write its weights as safetensors" if Path(file).is_file() else "check the path",
        )
    pretrained = open_clip.get_pretrained_cfg(architecture, weights)
    if not pretrained and (other := Path(weights.rpartition("@")[0] or weights)).is_file():
        raise InputError(
            got=f"--encoders {PREFIX}{architecture_and_weights}, where {other} is no .safetensors file",
            expected=f"{PREFIX}MODEL/FILE.safetensors, {PREFIX}MODEL/FILE.safetensors@TAG or {PREFIX}MODEL/TAG",
            do="give a file of weights, or a tag",
        )
    if not pretrained:
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        raise InputError(got=f"the open_clip weights {weights!r}", expected=f"weights of {architecture}", do=nearest(weights, tags))
    hub = pretrained.get("hf_hub", "").rstrip("/")
    if not hub:
        raise InputError(
            got=f"open_clip:{architecture}/{weights}", expected="weights that exist as safetensors", do="choose other weights of that model"
        )
    folder = local_model_folder(hub, patterns=("open_clip*.json", "open_clip*.safetensors"), flag=flag_of(name))
    return find_open_clip(name, folder, choice, quick_gelu=bool(pretrained.get("quick_gelu")))


def find_open_clip(name: str, folder: Path, choice: Choice, *, quick_gelu: bool = False) -> EncoderFiles:
    """Return the encoder of an open_clip folder.

    Raises:
        InputError: a folder that is not whole, or a tower without tokens.
    """
    config = read_config(folder / CONFIG)
    source = _Source(name, folder, None, quick_gelu)
    return _found(source, config["model_cfg"], config.get("preprocess_cfg", {}), choice)


def _from_file(name: str, architecture: str, file: Path, tag: str, choice: Choice) -> EncoderFiles:
    """Return the encoder of a file of weights with the settings of the tag that they were published under.

    The tag is given, stands in the file's name or in that of its folder in the hub's cache, or the file lies beside its own configuration.
    All tags of most architectures have the same settings.
    """
    import open_clip

    model = open_clip.get_model_config(architecture)
    if (file.parent / CONFIG).is_file() and not tag:
        config = read_config(file.parent / CONFIG)
        own = config["model_cfg"]
        if own.get("vision_cfg") != model["vision_cfg"]:
            raise InputError(
                got=f"{file} beside a configuration of another model than {architecture}",
                expected="its own model",
                do=f"give {file.parent}",
            )
        preprocess, quick_gelu = config.get("preprocess_cfg", {}), bool(own.get("quick_gelu"))
    else:
        settings = _settings_of(architecture, file, tag)
        preprocess, quick_gelu = settings, bool(settings.get("quick_gelu") or model.get("quick_gelu"))
    return _found(_Source(name, file, architecture, quick_gelu), model, preprocess, choice)


def _settings_of(architecture: str, file: Path, tag: str) -> Mapping[str, Any]:
    """Return mean, deviation, interpolation and activation of a tag.

    Raises:
        InputError: the tag is not one of the model's, or none is known and the model's tags differ.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    settings: dict[str, Mapping[str, Any]] = {each: open_clip.get_pretrained_cfg(architecture, each) for each in tags}
    if tag == OWN:
        return {}
    if tag:
        if tag not in settings:
            raise InputError(got=f"the tag {tag!r} of {file}", expected=f"one of {architecture}'s", do=nearest(tag, tags))
        return settings[tag]
    candidates = _tags_in(file, architecture, settings) or tags
    different = {tuple(str(settings[each].get(key) or default) for key, default in _DECIDING.items()) for each in candidates}
    if len(different) != 1:
        why = (
            "of which open_clip knows no weights" if not tags else f"whose weights {_some(candidates)} want different pixels or activations"
        )
        raise InputError(
            got=f"{file}, weights of {architecture}, {why}",
            expected="the settings that they were trained with",
            do=f"add the tag: {PREFIX}{architecture}/{file}@{[*candidates, OWN][0]}, or @{OWN} for the settings of open_clip itself",
        )
    return settings[candidates[0]]


def _tags_in(file: Path, architecture: str, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the tags that the name of a file fits, or that of its folder in the hub's cache; several if it is not clear.

    A tag alone, or behind the architecture, and the name of its repository are clear; a folder may have the latter too. Otherwise all tags
    in the names count, unless what is found of one is part of what is found of another; and so do tags that begin as one of them does,
    whose end may be written differently.
    """
    cached = [part.split("--", 2)[-1] for part in file.absolute().parts if part.startswith("models--")]
    names = [_plain(name) for name in (file.stem, *cached)]
    repositories = {tag: _plain(each["hf_hub"].split("/")[1]) for tag, each in settings.items() if each.get("hf_hub")}
    folder = _plain(file.absolute().parent.name)
    if exact := [
        tag
        for tag in settings
        if {_plain(tag), _plain(f"{architecture}-{tag}"), repositories.get(tag)} & set(names) or repositories.get(tag) == folder
    ]:
        return exact
    known = {tag: filter(None, (_plain(tag), repositories.get(tag))) for tag in settings}
    found = {tag: max((way for way in ways if _contain(names, way)), key=len, default="") for tag, ways in known.items()}
    longest = [tag for tag, way in found.items() if way and not any(way != other and _contain([other], way) for other in found.values())]
    return [tag for tag in settings if tag in longest or any(tag.startswith(found_tag) for found_tag in longest if not found[tag])]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _contain(names: list[str], part: str) -> bool:
    return any(f"_{part}_" in f"_{name}_" for name in names)


def _some(tags: list[str]) -> str:
    return ", ".join(tags[:3]) + (f" and {len(tags) - 3} more" if len(tags) > 3 else "")


def _found(source: _Source, model: Mapping[str, Any], preprocess: Mapping[str, Any], choice: Choice) -> EncoderFiles:
    vision = {**_DEFAULTS, **model["vision_cfg"]}
    trained_px = square(source.files, "image_size", vision["image_size"])
    files = EncoderFiles(
        name=source.name,
        family="open_clip",
        folder=source.files,
        architecture=source.architecture,
        weights_hash=hash_model_folder(source.files) if source.files.is_dir() else hash_weights_file(source.files),
        preprocessing=open_clip_preprocessing(preprocess, trained_px, source.files),
        quick_gelu=source.quick_gelu,
        fit=_fit_of(preprocess, source.files),
        fill=_fill_of(preprocess, source.files),
    )
    if vision.get("timm_model_name"):
        with encoder_config_errors(source.files), torch.device("meta"):
            trunk = _visual(files).trunk
        geometry = replace(timm_geometry(trunk), trained_px=trained_px)
        files = with_contract(files, trunk)
    elif isinstance(vision["layers"], int):
        patch_px = square(source.files, "patch_size", vision["patch_size"])
        geometry = Geometry(trained_px=trained_px, patch_px=patch_px, positions="asked", blocks=vision["layers"])
        if isinstance(vision.get("attentional_pool"), str):
            raise InputError(
                got=f"the vision tower of {source.name} ({vision['attentional_pool']} attentional pooling)",
                expected="one attentional pool, or none",
                do="choose another encoder",
            )
        if vision.get("attentional_pool"):
            files = replace(files, output=QUERIES)
            geometry = replace(geometry, blocks=None)
    else:
        files = replace(files, first_token=MEAN, output=MAP)
        geometry = Geometry(trained_px=trained_px, patch_px=_RESNET_STRIDE, positions="fixed", blocks=None)
    chosen = as_chosen(files, choice, geometry, lambda px: open_clip_preprocessing(preprocess, px, source.files))
    return with_tokens(chosen, open_clip_skeleton, choice)


def _fit_of(preprocess: Mapping[str, Any], files: Path) -> str:
    """Return how open_clip makes a square of a picture: one of its resize modes."""
    mode = preprocess.get("resize_mode") or "shortest"
    if mode not in _RESIZE_MODES:
        raise InputError(
            got=f"{files} with the resize_mode {mode!r}",
            expected=f"one of {', '.join(_RESIZE_MODES)}, which open_clip has",
            do="restore resize_mode in its configuration",
        )
    return str(mode)


def _fill_of(preprocess: Mapping[str, Any], files: Path) -> int | tuple[int, int, int]:
    """Return the colour that open_clip pads with: a level of all channels, or one of each."""
    match preprocess.get("fill_color") or 0:
        case int(level):
            return level
        case [int(red), int(green), int(blue)]:
            return red, green, blue
        case other:
            raise InputError(
                got=f"{files} with the fill_color {other!r:.60}",
                expected="a number from 0 to 255, or a list of three",
                do="restore fill_color in its configuration",
            )


def _visual(files: EncoderFiles) -> Any:
    import open_clip

    in_folder = read_config(files.folder / CONFIG)["model_cfg"] if files.architecture is None else None
    config = in_folder or open_clip.get_model_config(files.architecture)
    quick_gelu = files.quick_gelu or bool(config.get("quick_gelu"))
    vision = {**config["vision_cfg"], "image_size": files.preprocessing.size_px}
    visual = open_clip.CLIP(config["embed_dim"], vision, dict(_NO_TEXT), quick_gelu=quick_gelu).visual
    if files.resizes_positions and "timm_model_name" in vision:
        visual.set_input_size(files.preprocessing.size_px)
    return visual


def open_clip_skeleton(files: EncoderFiles) -> nn.Module:
    """Return the tower with random weights; with torch's meta device as the default device it has none."""
    return _tower(files, _visual(files))


def load_open_clip(files: EncoderFiles) -> nn.Module:
    """Return the tower with its weights, in float32. Errors are those of open_clip."""
    return _tower(files, open_clip_model(files).visual)


def _tower(files: EncoderFiles, visual: Any) -> nn.Module:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel

    if isinstance(visual, TimmModel):
        if files.layer is not None:
            visual.trunk.blocks = visual.trunk.blocks[: files.layer]
        return TimmTokens(visual.trunk, files.first_token)
    if isinstance(visual, ModifiedResNet):
        return _ResNetTokens(visual)
    if visual.attn_pool is not None:
        return _PooledTokens(visual)
    if files.layer is not None:
        visual.transformer.resblocks = visual.transformer.resblocks[: files.layer]
    return _OpenClipTokens(visual)


class _OpenClipTokens(nn.Module):
    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        layers = self.visual.forward_intermediates(
            pixels_B3SS, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        return torch.cat([layers["image_intermediates_prefix"][0], layers["image_intermediates"][0]], dim=1)


class _PooledTokens(nn.Module):
    """CoCa pools its patches to as many tokens as its attention pool has queries; the first of them is projected to the joint space."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        visual = self.visual
        states_BND = visual.forward_intermediates(
            pixels_B3SS, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        joined_BND = torch.cat([states_BND["image_intermediates_prefix"][0], states_BND["image_intermediates"][0]], dim=1)
        tokens_BTD: torch.Tensor = visual.ln_post(visual.attn_pool(joined_BND))
        return tokens_BTD


class _ResNetTokens(nn.Module):
    """The last feature map, and its mean, with which the attention pool begins."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.contract = FirstAndPatches(nn.Identity())

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        layers = self.visual.forward_intermediates(pixels_B3SS, indices=1, intermediates_only=True)
        tokens_BTD: torch.Tensor = self.contract(layers["image_intermediates"][0].flatten(2).transpose(1, 2))
        return tokens_BTD


def open_clip_model(files: EncoderFiles) -> Any:
    """Return the whole open_clip model, both towers. Errors are those of open_clip."""
    import open_clip
    from open_clip.model import resize_pos_embed
    from open_clip.timm_model import TimmModel

    source = f"local-dir:{files.folder}" if files.architecture is None else files.architecture
    weights = None if files.architecture is None else str(files.folder)
    how: dict[str, Any] = {"precision": "fp32", "force_quick_gelu": files.quick_gelu}
    model = open_clip.create_model(source, pretrained=weights, require_pretrained=True, **how)
    if not files.resizes_positions:
        return model
    if isinstance(model.visual, TimmModel):
        model.visual.set_input_size(files.preprocessing.size_px)
        return model
    # From float32: given a half-precision file, open_clip 3.3 interpolates in half precision, which torch cannot on the CPU.
    state = model.state_dict()
    how |= {"force_image_size": files.preprocessing.size_px, "load_weights": False, "pretrained_text": False}
    resized = open_clip.create_model(source, **how)
    resize_pos_embed(state, resized)
    resized.load_state_dict(state)
    return resized


def open_clip_tokenizer(files: EncoderFiles) -> Any:
    """Return the tokenizer of an open_clip model's text tower."""
    import open_clip

    return open_clip.get_tokenizer(f"local-dir:{files.folder}" if files.architecture is None else files.architecture)


def vocabulary_of(model: Any) -> int:
    """Return the number of tokens that an open_clip model's text tower knows; CoCa has it in the tower alone."""
    from open_clip.coca_model import CoCa

    return int(model.text.vocab_size if isinstance(model, CoCa) else model.vocab_size)


@dataclass(frozen=True)
class Projection:
    """How a model makes an image's embedding of its tokens.

    Attributes:
        project: from first tokens [B, D], or from all tokens [B, T, D], to embeddings [B, E], not normalised.
        reads_all: which of the two.
    """

    project: Callable[[torch.Tensor], torch.Tensor]
    reads_all: bool = False


def projection_of(files: EncoderFiles, model: Any) -> Projection | None:
    """Return how an open_clip model makes an image's embedding of the tokens that are stored; None where they do not suffice.

    Whether they do is tried out with one image of noise, except with open_clip's own vision transformers.

    Args:
        files: of the model.
        model: the whole model, in evaluation, on the CPU.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel

    visual = model.visual
    if files.layer is not None or files.pool == "1":
        return None
    if isinstance(visual, ModifiedResNet):
        if files.pool is not None:
            return None
        side = files.preprocessing.size_px // _RESNET_STRIDE
        return Projection(
            lambda tokens: visual.attnpool(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)), reads_all=True
        )
    if isinstance(visual, TimmModel):
        classifier = visual.trunk.get_classifier()
        ways = [Projection(lambda tokens: visual.head(classifier(tokens)))]
        if files.first_token == CLASS_TOKEN and files.pool is None:
            ways.append(Projection(lambda tokens: visual.head(visual.trunk.forward_head(tokens)), reads_all=True))
        has_own_pool = "pool" in dict(visual.head.named_children())
        return None if has_own_pool else next((way for way in ways if _gives_own_embedding(files, visual, way)), None)
    return Projection(lambda tokens: tokens @ visual.proj) if visual.pool_type == "tok" and visual.proj is not None else None


@torch.inference_mode()
def _gives_own_embedding(files: EncoderFiles, visual: Any, way: Projection) -> bool:
    side_px = files.preprocessing.size_px
    noise_13SS = torch.rand(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    tokens_1TD = _tower(files, visual.eval())(noise_13SS)
    expected_1E = visual(noise_13SS)
    if expected_1E.ndim != 2:  # without pool and projection open_clip gives the feature map
        return False
    found_1E = way.project(tokens_1TD if way.reads_all else tokens_1TD[:, 0])
    return bool(torch.allclose(found_1E, expected_1E, rtol=1e-3, atol=1e-4 * float(expected_1E.abs().max())))
