"""Image encoders of timm: folders with timm's config.json, names of its registry, and the trunks inside open_clip's towers.

Shapes: B images, S the encoder's side, N tokens that the model returns, T tokens, D width, h × w cells of a feature map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from featurize.encode.encoder_files import (
    ATTENTION_POOLED,
    CLASS_TOKEN,
    LAST,
    MAP,
    MAP_WITH_NORM,
    MEAN,
    Choice,
    EncoderFiles,
    FirstAndPatches,
    Geometry,
    as_chosen,
    encoder_config_errors,
    flag_of,
    size_errors,
    with_tokens,
)
from featurize.encode.preprocessing import timm_preprocessing
from lugpi_core.errors import InputError, nearest
from lugpi_core.fingerprint import hash_model_folder
from lugpi_core.runtime.pretrained import local_model_folder, read_config

PREFIX = "timm:"
_WRAPPED = "timm_model."  # what transformers' TimmWrapper puts before the names of weights
# Models of timm 1.0.31 whose forward_features() does not give one sequence of the class token and the patches.
_WITHOUT_PATCHES = {
    "PoolingVisionTransformer": "returns its class token alone",
    "CrossVit": "returns two sequences, of patches of two sizes",
    "EfficientViM": "returns feature maps of several stages",
    "EfficientViMDistilled": "returns feature maps of several stages",
}
_FITS = {"squash": "squash", "border": "border"}  # timm takes any other crop mode for its default, center
_CLASS_TOKENS = {"cls_token", "embeds.cls_token", "cls_tokens", "cls_token1"}  # names of its parameter; the last is CoaT's


def find_timm_name(name: str, model_and_tag: str, choice: Choice) -> EncoderFiles:
    """Return the encoder of ``NAME``, ``NAME.TAG`` or ``NAME/TAG``, its files found in the hub's cache or downloaded.

    Raises:
        InputError: no such model or tag, one without weights on the hub, or what ``find_timm`` raises.
    """
    from timm import is_model, list_models, list_pretrained
    from timm.models import get_pretrained_cfg, split_model_name_tag

    architecture, _, tag = model_and_tag.partition("/")
    if not tag:
        architecture, tag = split_model_name_tag(architecture)
    if not is_model(architecture):
        raise InputError(got=f"the timm model {architecture!r}", expected="one of its models", do=nearest(architecture, list_models()))
    if tag.endswith(".safetensors"):
        raise InputError(
            got=f"--encoders {PREFIX}{model_and_tag}, a single file of weights",
            expected="a folder with timm's config.json beside them, which says how images are read",
            do="save it with timm.models.save_for_hf(), and give the folder",
        )
    tags = [known.partition(".")[2] for known in list_pretrained(f"{architecture}.*")]
    cfg = get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture) if not tag or tag in tags else None
    if cfg is None or not cfg.hf_hub_id:
        raise InputError(
            got=f"the timm weights {tag!r} of {architecture}",
            expected="weights that are on the hub",
            do=nearest(tag, tags) if tags else "choose another model",
        )
    hub_id = cfg.hf_hub_id if not cfg.hf_hub_id.endswith("/") else f"{cfg.hf_hub_id}{architecture}.{cfg.tag}"
    folder = local_model_folder(hub_id, patterns=("config.json", "model.safetensors"), flag=flag_of(name))
    return find_timm(name, folder, choice)


def is_timm_folder(folder: Path) -> bool:
    """Whether a folder's config.json is timm's, or that of transformers' TimmWrapper."""
    if not (folder / "config.json").is_file():
        return False
    config = read_config(folder / "config.json")
    return "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper"


def find_timm(name: str, folder: Path, choice: Choice) -> EncoderFiles:
    """Return an encoder of timm in a folder.

    Raises:
        InputError: an architecture that timm does not have, whose tokens are not patches, or a folder that is not whole.
    """
    from timm import is_model, list_models

    pretrained, architecture, arguments = _parts_of(folder)
    if not is_model(architecture):
        raise InputError(
            got=f"{folder} of the timm model {architecture!r}", expected="one of its models", do=nearest(architecture, list_models())
        )
    if arguments.get("features_only") or arguments.get("in_chans", 3) != 3:
        raise InputError(
            got=f"{folder}, built with {', '.join(f'{key}={value}' for key, value in arguments.items())}",
            expected="a whole model of images in colour",
            do="choose another encoder",
        )
    weights_hash = hash_model_folder(folder)
    weights_in(folder)
    preprocessing = timm_preprocessing(pretrained, folder)
    red, green, blue = (round(255 * value) for value in preprocessing.mean)
    files = EncoderFiles(
        name=name,
        family="timm",
        folder=folder,
        architecture=architecture,
        weights_hash=weights_hash,
        preprocessing=preprocessing,
        fit=_FITS.get(str(pretrained.get("crop_mode")), "shortest"),
        fill=(red, green, blue),
        processor="timm",
        stated_license=str(pretrained.get("license") or ""),
    )
    with encoder_config_errors(folder), torch.device("meta"):
        trunk = _trunk(files)
    files = with_contract(files, trunk)
    files = as_chosen(files, choice, timm_geometry(trunk), lambda px: timm_preprocessing({**pretrained, "input_size": (3, px, px)}, folder))
    if files.resizes_positions:
        # Whether timm fits the weights to that size is tried out with weights that have no numbers.
        with size_errors(files), torch.device("meta"):
            _trunk(files, trunk.state_dict())
    return with_tokens(files, timm_skeleton, choice)


def _parts_of(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Return what timm's config.json says: how the weights were trained, the architecture, and the arguments that it is built with."""
    config = read_config(folder / "config.json")
    pretrained = config.get("pretrained_cfg")
    if pretrained is None and config.get("model_type") == "timm_wrapper":
        raise InputError(
            got=f"{folder} without pretrained_cfg in its config.json, which says how images are read",
            expected="a folder as timm saves it",
            do="save the model with timm.models.save_for_hf(), or copy pretrained_cfg from where the weights come from",
        )
    return dict(pretrained if pretrained is not None else config), str(config["architecture"]), dict(config.get("model_args") or {})


def weights_in(folder: Path) -> Path:
    """Return the file of weights that timm reads in a folder.

    Raises:
        InputError: there are several, of which timm would take one by chance.
    """
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "model.safetensors") in files or len(files) == 1:
        return next((file for file in files if file.name == "model.safetensors"), files[0])
    raise InputError(
        got=f"{folder} with {len(files)} files of weights",
        expected="one, model.safetensors",
        do="keep the one that is meant in that folder",
    )


def _trunk(files: EncoderFiles, state: dict[str, torch.Tensor] | None = None) -> Any:
    """Return a model of timm with some weights, or with random ones and without its classifier."""
    import timm

    pretrained, architecture, arguments = _parts_of(files.folder)
    if files.resizes_positions:
        arguments["img_size"] = files.preprocessing.size_px
    known = {key: value for key, value in pretrained.items() if key not in ("architecture", "labels", "model_args", "num_features")}
    classes = 0
    weights: dict[str, Any] = {}
    if state is not None:
        # With its classifier, which is not read: only then does timm refuse weights that do not fit the model or are missing.
        classes = _classes_in(state, pretrained)
        overlay = {"url": "", "file": None, "hf_hub_id": None, "source": None, "num_classes": classes, "label_offset": None}
        weights = {"pretrained": True, "pretrained_cfg_overlay": {**overlay, "state_dict": state}}
    arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    trunk: Any = timm.create_model(architecture, pretrained_cfg=known, num_classes=classes, **weights, **arguments)
    if files.layer is not None:
        trunk.blocks = trunk.blocks[: files.layer]
    return trunk


def _classes_in(state: Mapping[str, torch.Tensor], pretrained: Mapping[str, Any]) -> int:
    """Return the classes of the classifier in a file of weights, 0 if there is none."""
    names = pretrained.get("classifier") or ()
    heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
    return next((len(value) for name, value in sorted(state.items()) if heads and name.startswith(heads)), 0)


def timm_skeleton(files: EncoderFiles) -> nn.Module:
    """Return the tower with random weights; with torch's meta device as the default device it has none."""
    return TimmTokens(_trunk(files), files.first_token)


def load_timm(files: EncoderFiles) -> nn.Module:
    """Return the tower with its weights, in float32. Errors are those of timm: weights are missing or do not fit."""
    found = {key.removeprefix(_WRAPPED): value for key, value in load_file(weights_in(files.folder)).items()}
    return TimmTokens(_trunk(files, found).float(), files.first_token)


def with_contract(files: EncoderFiles, trunk: Any) -> EncoderFiles:
    """Return the files with what the first token is and how many come before the patches.

    Raises:
        InputError: a model whose features are no patches.
    """
    if why := _WITHOUT_PATCHES.get(type(trunk).__name__):
        raise InputError(
            got=f"{files.folder} ({type(trunk).__name__} of timm), which {why}",
            expected="an encoder whose patches are one sequence",
            do="choose another encoder",
        )
    parts = parts_of(trunk)
    first = CLASS_TOKEN if parts.has_class else ATTENTION_POOLED if parts.is_pooled else MEAN
    output = LAST if parts.is_sequence else MAP_WITH_NORM if parts.norm else MAP
    return replace(files, first_token=first, prefix=parts.prefix + (not parts.has_class), output=output)


def timm_geometry(trunk: Any) -> Geometry:
    """Return what a model says about the sizes of images."""
    cfg = trunk.pretrained_cfg
    parts = parts_of(trunk)
    children = dict(trunk.named_children()).keys()
    # CaiT and XCiT add their class token in further blocks, after those of the patches, and ConViT before its last ones.
    joins_late = bool(children & {"blocks_token_only", "cls_attn_blocks"}) or "local_up_to_layer" in vars(trunk)
    is_plain = parts.is_sequence and "blocks" in children and not joins_late
    return Geometry(
        trained_px=int(cfg["input_size"][-1]) if cfg.get("fixed_input_size") else None,
        patch_px=int(trunk.feature_info[-1]["reduction"]) if is_plain else None,
        positions="asked" if cfg.get("fixed_input_size") else "computed",
        blocks=len(trunk.blocks) if is_plain else None,
    )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """How the features of a model of timm are made up.

    Attributes:
        has_class: whether the first token is a class token.
        prefix: tokens before the patches.
        is_pooled: whether the model pools its tokens by attention.
        is_sequence: whether the features are a sequence with a stated prefix, and no map.
        norm: name of the part that norms the pooled vector, if no other norm comes before it.
    """

    has_class: bool
    prefix: int
    is_pooled: bool
    is_sequence: bool
    norm: str | None


def parts_of(trunk: Any) -> Parts:
    """Return how a model's features are made up."""
    attributes, modules = vars(trunk), dict(trunk.named_modules())
    has_class = not _CLASS_TOKENS.isdisjoint(name for name, _ in trunk.named_parameters())
    # CoaT and VOLO have a class token in their sequence, but no num_prefix_tokens.
    undeclared = has_class and "num_prefix_tokens" not in attributes
    prefix = 1 if undeclared else attributes.get("num_prefix_tokens") or 0
    if "local_up_to_layer" in attributes and trunk.local_up_to_layer >= len(trunk.blocks):
        prefix = 0  # a ConViT so shallow that its class token never joins
    pool = modules.get("attn_pool")
    norm = next((name for name in ("fc_norm", "head.norm") if _is_norm_of(modules.get(name), trunk.num_features)), None)
    return Parts(
        has_class=has_class and prefix > 0,
        prefix=prefix,
        is_pooled=pool is not None and not isinstance(pool, nn.Identity),
        is_sequence=undeclared or isinstance(attributes.get("num_prefix_tokens"), int),
        norm=norm,
    )


def _is_norm_of(norm: nn.Module | None, width: int) -> bool:
    """Whether a part norms features of a width; that of InceptionNeXt's head norms the hidden layer of its classifier."""
    if norm is None or isinstance(norm, nn.Identity):
        return False
    weight = norm._parameters.get("weight")
    return weight is None or len(weight) == width


class TimmTokens(nn.Module):
    """The features of a model of timm, as its ``forward_features`` gives them, with a first token that stands for the image.

    Args:
        trunk: the model, without its classifier.
        first_token: as in the files.
    """

    def __init__(self, trunk: Any, first_token: str) -> None:
        super().__init__()
        self.trunk, self.first_token = trunk, first_token
        parts = parts_of(trunk)
        norm = trunk.get_submodule(parts.norm) if parts.norm and not parts.has_class else nn.Identity()
        self.contract = FirstAndPatches(_OverTokens(norm) if type(norm).__name__.endswith("2d") else norm, parts.prefix)

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        """Return tokens [B, T, D]."""
        features = self.trunk.forward_features(pixels_B3SS)
        states_BND: torch.Tensor = features
        if features.ndim == 4:
            is_last = vars(self.trunk).get("output_fmt") == "NHWC"
            states_BND = features.flatten(1, 2) if is_last else features.flatten(2).transpose(1, 2)
        if self.first_token == CLASS_TOKEN:
            return states_BND
        pooled_BD = self.trunk.forward_head(features, pre_logits=True) if self.first_token == ATTENTION_POOLED else None
        tokens_BTD: torch.Tensor = self.contract(states_BND, pooled_BD)
        return tokens_BTD


class _OverTokens(nn.Module):
    """A norm over the channels of maps [B, D, h, w], applied to tokens [B, T, D]."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        normal_BDT1: torch.Tensor = self.norm(tokens_BTD.transpose(1, 2).unsqueeze(-1))
        return normal_BDT1.squeeze(-1).transpose(1, 2)
