"""Image encoders of transformers: which of its types are read, where their tokens are, and their towers with and without weights.

Shapes: B images, S the encoder's side, N tokens that the model returns, T tokens, D width, h × w cells of a feature map.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from featurize.encode.encoder_files import (
    ATTENTION_POOLED,
    CLASS_TOKEN,
    LAST,
    LAYER,
    MAP,
    MAP_WITH_NORM,
    MEAN,
    Choice,
    EncoderFiles,
    FirstAndPatches,
    Geometry,
    as_chosen,
    encoder_config_errors,
    square,
    with_tokens,
)
from featurize.encode.preprocessing import read_preprocessing
from lugpi_core.errors import InputError, first_of
from lugpi_core.fingerprint import hash_model_folder
from lugpi_core.runtime.pretrained import read_config, require_whole_weights


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What transformers' type of model gives (read in the sources of 5.23).

    Attributes:
        model: its class.
        whole: the type of the model of which it is the vision tower, whose folder is read as well, or None.
        prefix: tokens before the patches; 0 = no class token.
        more: the field of its configuration with the number of further tokens before the patches.
        names: how the names of its weights in the whole model's file become its own, where transformers does not find them itself.
        norm: the part that norms the pooled vector alone, and here every token.
        first: what the first token is.
        positions: as in ``Geometry``.
        is_map: its last hidden state is a feature map.
        is_normed: whether its tokens are those after a final norm.
        is_pyramid: its stages have different widths, so that there is no block to choose.
    """

    model: str
    whole: str | None = None
    prefix: int = 1
    more: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    norm: str | None = None
    first: str = CLASS_TOKEN
    positions: str = "asked"
    is_map: bool = False
    is_normed: bool = True
    is_pyramid: bool = False

    @property
    def output(self) -> str:
        """Return which of the model's outputs the tokens are."""
        if self.is_map:
            return MAP_WITH_NORM if self.norm else MAP
        return LAYER if self.is_normed else LAST


_INSIDE = {r"^vision_model\.": ""}
# transformers 5.23 saves AltCLIP's vision layers under the names of its text layers.
_IN_ALTCLIP = {r"^vision_model\.encoder\.layer\.": "encoder.layers.", **_INSIDE}


def _clip(name: str, whole: str) -> Kind:
    # transformers applies CLIP's final LayerNorm to the class token alone and leaves last_hidden_state without it.
    return Kind(model=f"{name}VisionModel", whole=whole, norm="post_layernorm")


def _map(model: str, norm: str | None = None) -> Kind:
    return Kind(model=model, prefix=0, first=MEAN, norm=norm, positions="computed", is_map=True, is_pyramid=True)


def _pyramid(model: str, norm: str | None = None) -> Kind:
    return Kind(model=model, prefix=0, first=MEAN, norm=norm, positions="asked", is_pyramid=True)


KINDS: Mapping[str, Kind] = {
    "vit": Kind(model="ViTModel"),
    "vit_msn": Kind(model="ViTMSNModel"),
    "vit_mae": Kind(model="ViTMAEModel"),
    # With mean pooling, which is their default, these two norm the mean alone, and their class token is read as it is.
    "beit": Kind(model="BeitModel", is_normed=False),
    "data2vec-vision": Kind(model="Data2VecVisionModel", is_normed=False),
    "deit": Kind(model="DeiTModel", prefix=2),  # the class token and the distillation token
    "dinov2": Kind(model="Dinov2Model", positions="itself"),
    "dinov2_with_registers": Kind(model="Dinov2WithRegistersModel", more="num_register_tokens", positions="itself"),
    "dinov3_vit": Kind(model="DINOv3ViTModel", more="num_register_tokens", positions="computed"),
    # Its last hidden state is the pooled vector, then the grid, all after the final LayerNorm: what is done here to ConvNeXt's.
    "dinov3_convnext": Kind(model="DINOv3ConvNextModel", first=MEAN, positions="computed", is_pyramid=True),
    "ijepa": Kind(model="IJepaModel", prefix=0, first=MEAN),
    "pixio": Kind(model="PixioModel", prefix=0, more="n_cls_tokens", positions="itself"),
    "radio": Kind(model="RadioModel", prefix=0, more="num_summary_tokens", positions="computed", is_normed=False),
    "sapiens2": Kind(model="Sapiens2Model", more="num_register_tokens", positions="computed"),
    "clip_vision_model": _clip("CLIP", "clip"),
    "metaclip_2_vision_model": _clip("MetaClip2", "metaclip_2"),
    "altclip_vision_model": replace(_clip("AltCLIP", "altclip"), names=_IN_ALTCLIP),
    "chinese_clip_vision_model": _clip("ChineseCLIP", "chinese_clip"),
    "clipseg_vision_model": replace(_clip("CLIPSeg", "clipseg"), names={r"^clip\.vision_model\.": ""}),  # as a segmenter has them
    "mlcd_vision_model": replace(_clip("MLCD", "mlcd"), positions="computed"),
    "owlvit_vision_model": replace(_clip("OwlViT", "owlvit"), norm="vision_model.post_layernorm"),
    "owlv2_vision_model": replace(_clip("Owlv2", "owlv2"), norm="vision_model.post_layernorm"),
    "git_vision_model": Kind(model="GitVisionModel", whole="git", names={r"^(git\.)?image_encoder\.": ""}),
    "blip_vision_model": Kind(model="BlipVisionModel", whole="blip", names=_INSIDE),
    "blip_2_vision_model": Kind(model="Blip2VisionModel", whole="blip-2", names=_INSIDE),
    "instructblip_vision_model": Kind(model="InstructBlipVisionModel", whole="instructblip", names=_INSIDE),
    "flava_image_model": Kind(model="FlavaImageModel", whole="flava", names={r"^(flava\.)?image_model\.": ""}),
    "internvl_vision": Kind(model="InternVLVisionModel", positions="itself", is_normed=False),
    "janus_vision_model": Kind(model="JanusVisionModel", prefix=0, first=MEAN),
    "tipsv2_vision_model": Kind(model="Tipsv2VisionModel", whole="tipsv2", more="num_register_tokens", positions="itself"),
    "siglip_vision_model": Kind(model="SiglipVisionModel", whole="siglip", prefix=0, first=ATTENTION_POOLED),
    "aimv2_vision_model": Kind(model="Aimv2VisionModel", whole="aimv2", prefix=0, first=ATTENTION_POOLED, positions="fixed", names=_INSIDE),
    "align_vision_model": replace(_map("AlignVisionModel"), whole="align", names=_INSIDE),
    "convnext": _map("ConvNextModel", "layernorm"),
    "convnextv2": _map("ConvNextV2Model", "layernorm"),
    "swin": _pyramid("SwinModel"),
    "swinv2": _pyramid("Swinv2Model"),
    "donut-swin": replace(_pyramid("DonutSwinModel"), is_normed=False),
    "hiera": _pyramid("HieraModel", "pooler.layernorm"),
    "focalnet": replace(_pyramid("FocalNetModel"), positions="computed"),
    # Of equal blocks, whose last states are returned as a map.
    "vitdet": Kind(model="VitDetModel", prefix=0, first=MEAN, is_map=True, positions="itself"),
    "levit": replace(_pyramid("LevitModel"), positions="fixed", is_normed=False),
    "pvt": Kind(model="PvtModel", is_pyramid=True, positions="itself"),
    "cvt": Kind(model="CvtModel", is_map=True, is_pyramid=True, positions="computed"),
    **{
        name: _map(model)
        for name, model in (
            ("bit", "BitModel"),
            ("efficientnet", "EfficientNetModel"),
            ("mobilenet_v1", "MobileNetV1Model"),
            ("mobilenet_v2", "MobileNetV2Model"),
            ("mobilevit", "MobileViTModel"),
            ("mobilevitv2", "MobileViTV2Model"),
            ("poolformer", "PoolFormerModel"),
            ("pvt_v2", "PvtV2Model"),
            ("regnet", "RegNetModel"),
            ("resnet", "ResNetModel"),
            ("segformer", "SegformerModel"),
            ("swiftformer", "SwiftFormerModel"),
            ("textnet", "TextNetModel"),
        )
    },
}
_TOWER_OF = {kind.whole: name for name, kind in KINDS.items() if kind.whole is not None}
_WHY_NOT = {
    "siglip2": "whose images are lists of patches (NaFlex); SigLIP 2 at a fixed size is of type siglip",
    "siglip2_vision_model": "whose images are lists of patches (NaFlex); SigLIP 2 at a fixed size is of type siglip",
    "groupvit": "which returns groups and no patches",
    "groupvit_vision_model": "which returns groups and no patches",
    "yolos": "which detects objects: tokens for them follow its patches",
    "hgnet_v2": "of which transformers has no model without a classifier",
    **dict.fromkeys(("videomae", "vivit", "timesformer", "vjepa2", "xclip", "videoprism_vision_model"), "which reads videos"),
    **dict.fromkeys(("sam", "sam2", "sam3", "sam_vision_model", "sam2_vision_model", "sam_hq"), "which segments images of 1,024 px"),
}


def find_transformers(name: str, folder: Path, choice: Choice) -> EncoderFiles:
    """Return an encoder of transformers in a folder.

    Raises:
        InputError: a type that is not read here, a folder that is not whole, or sizes that do not fit.
    """
    family = family_in(folder)
    if _TOWER_OF.get(family, family) not in KINDS:
        why = f" ({family}), {_WHY_NOT[family]}" if family in _WHY_NOT else f" of type {family!r}" if family else " without a model_type"
        if not (folder / "config.json").is_file():
            why = " without config.json"
        raise InputError(
            got=f"{folder}{why}",
            expected="an image encoder of open_clip, timm or transformers (docs/method.md has the types)",
            do="choose another encoder",
        )
    kind = _kind(family)
    with encoder_config_errors(folder):
        config = _config(folder, family)
    require_whole_weights(f"--encoders {folder}", folder, vars(config))
    if (channels := vars(config).get("num_channels", 3)) != 3:
        raise InputError(got=f"{folder} for images of {channels} channels", expected="3, for colour", do="choose another encoder")
    preprocessing, processor = read_preprocessing(folder)
    # Without their attention pool: the field is called so in AIMv2 and in SigLIP.
    has_pool = vars(config).get("use_head", vars(config).get("vision_use_head", True))
    files = EncoderFiles(
        name=name,
        family=family,
        folder=folder,
        architecture=None,
        weights_hash=hash_model_folder(folder),
        preprocessing=preprocessing,
        processor=processor,
        variant=_variant_in(folder),
        prefix=max(1, kind.prefix + (getattr(config, kind.more) if kind.more else 0)),
        first_token=MEAN if kind.first == ATTENTION_POOLED and has_pool is False else kind.first,
        output=kind.output,
    )
    chosen = as_chosen(files, choice, _geometry(folder, kind, vars(config)), lambda px: read_preprocessing(folder, px)[0])
    return with_tokens(chosen, transformers_skeleton, choice)


def family_in(folder: Path) -> str:
    """Return the model type of a folder's configuration; empty = there is none."""
    config_file = folder / "config.json"
    return str(read_config(config_file).get("model_type", "")) if config_file.is_file() else ""


def _kind(family: str) -> Kind:
    return KINDS[_TOWER_OF.get(family, family)]


def _geometry(folder: Path, kind: Kind, config: Mapping[str, Any]) -> Geometry:
    trained_px = square(folder, "image_size", config["image_size"]) if kind.positions != "computed" else None
    patch_px = None if kind.is_pyramid else square(folder, "patch_size", config["patch_size"])
    blocks = None if kind.is_pyramid else config["num_hidden_layers"]
    return Geometry(trained_px=trained_px, patch_px=patch_px, positions=kind.positions, blocks=blocks)


def _config(folder: Path, family: str) -> Any:
    """Return the configuration of the vision tower."""
    import transformers

    config: Any = getattr(transformers, _kind(family).model).config_class.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    config.return_dict = True  # else DINOv2's own layers get tuples, which they do not read
    return config


def _variant_in(folder: Path) -> str | None:
    """Return the variant of a folder that has no plain weight files, such as ``fp16``."""
    names = [path.name for path in folder.glob("model*.safetensors*")]
    is_plain = any(re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors", name) for name in names)
    found = sorted({match[1] for name in names if (match := re.fullmatch(r"model\.(\w+)(-\d+-of-\d+)?\.safetensors", name))})
    return found[0] if found and not is_plain else None


def transformers_skeleton(files: EncoderFiles) -> nn.Module:
    """Return the tower with random weights; with torch's meta device as the default device it has none."""
    import transformers

    return _tower(files, getattr(transformers, _kind(files.family).model)(_config_as_chosen(files)))


def _config_as_chosen(files: EncoderFiles) -> Any:
    config = _config(files.folder, files.family)
    if files.layer is not None:
        config.num_hidden_layers = files.layer
    return config


def load_transformers(files: EncoderFiles, dtype: torch.dtype) -> nn.Module:
    """Return the tower with its weights.

    Raises:
        ValueError: weights are missing or of another shape. Others are those of the library.
    """
    import transformers

    # Without a dtype transformers takes that of the configuration, or of the first tensor by name, for the whole model.
    model, report = getattr(transformers, _kind(files.family).model).from_pretrained(
        files.folder,
        config=_config_as_chosen(files),
        dtype=dtype,
        variant=files.variant,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are told below; the library's own error does not name them
        key_mapping=dict(_kind(files.family).names) if files.family in _TOWER_OF else None,
    )
    # transformers only logs them and leaves them random. The pooler is never read, and many checkpoints lack it.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.") or _kind(files.family).norm):
        raise _missing_weights(files, model, missing)
    if mismatched := sorted(report["mismatched_keys"]):
        weight, *shapes = mismatched[0]
        in_file, as_configured = (" × ".join(map(str, shape)) for shape in shapes)
        more = f", and {len(mismatched) - 1} more" * (len(mismatched) > 1)
        raise ValueError(f"{weight} is {in_file} in its file and {as_configured} by config.json{more}")
    return _tower(files, model)


def _missing_weights(files: EncoderFiles, model: Any, missing: list[str]) -> Exception:
    """Return the error for weights that a folder lacks. A backbone or segmenter does not have those of the model's last layers."""
    import transformers

    saved_as = str((read_config(files.folder / "config.json").get("architectures") or ["no class"])[0])
    kind: Any = getattr(transformers, saved_as, None)
    what = f"no weights for {first_of(missing)}"
    if kind is None or kind.config_class is not type(model.config):
        return ValueError(what)
    with torch.device("meta"):
        names = kind(model.config).state_dict().keys()
    if names & {missing[0], f"{kind.base_model_prefix}.{missing[0]}"}:
        return ValueError(what)
    return InputError(
        got=f"{files.folder} of a {saved_as}, which has {what}",
        expected=f"all of {_kind(files.family).model}",
        do="give the folder of that model, or of its classifier",
    )


def _tower(files: EncoderFiles, model: Any) -> nn.Module:
    kind = _kind(files.family)
    how = {"interpolate_pos_encoding": True} if files.resizes_positions and kind.positions == "asked" else {}
    if files.family == "vit_mae":
        return _MaeTokens(model, how)
    norm = model.get_submodule(kind.norm) if kind.norm else nn.Identity()
    if kind.prefix or kind.more:
        return _TransformersTokens(model, norm, how)
    return _TransformersPatches(model, norm, how, is_pooled=files.first_token == ATTENTION_POOLED)


class _TransformersTokens(nn.Module):
    """A model whose first tokens are its class token and others that are not patches."""

    def __init__(self, model: nn.Module, norm: nn.Module, how: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.norm, self.how = model, norm, how

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=pixels_B3SS, return_dict=True, **self.how)
        states_BND: torch.Tensor = output.last_hidden_state
        if states_BND.ndim == 4:  # CvT keeps its class token apart from its map
            states_BND = torch.cat([output.cls_token_value, states_BND.flatten(2).transpose(1, 2)], dim=1)
        tokens_BTD: torch.Tensor = self.norm(states_BND)
        return tokens_BTD


class _TransformersPatches(nn.Module):
    """A model without a class token."""

    def __init__(self, model: nn.Module, norm: nn.Module, how: dict[str, Any], *, is_pooled: bool) -> None:
        super().__init__()
        self.model, self.how, self.is_pooled = model, how, is_pooled
        self.contract = FirstAndPatches(norm)

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        output = self.model(pixel_values=pixels_B3SS, return_dict=True, **self.how)
        states_BND: torch.Tensor = output.last_hidden_state
        if states_BND.ndim == 4:
            states_BND = states_BND.flatten(2).transpose(1, 2)
        tokens_BTD: torch.Tensor = self.contract(states_BND, output.pooler_output if self.is_pooled else None)
        return tokens_BTD


class _MaeTokens(nn.Module):
    """The library hides a random three quarters of the patches and shuffles the rest; here all are read, in their order."""

    def __init__(self, model: Any, how: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.how = model, how
        model.config.mask_ratio = 0.0

    def forward(self, pixels_B3SS: torch.Tensor) -> torch.Tensor:
        patches = (pixels_B3SS.shape[-1] // self.model.config.patch_size) ** 2
        order_BT = torch.arange(patches, device=pixels_B3SS.device, dtype=torch.float32).repeat(len(pixels_B3SS), 1)
        tokens_BTD: torch.Tensor = self.model(pixel_values=pixels_B3SS, noise=order_BT, return_dict=True, **self.how).last_hidden_state
        return tokens_BTD
