"""Encoders of timm: folders and names give what timm itself gives; what does not is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import mvitv2, save_for_hf
from timm.models.inception_next import MetaNeXt
from timm.models.volo import VOLO

from featurize.encode import timm_models
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.timm_models import TimmTokens, parts_of
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute

CPU = resolve_compute("cpu", "float32", half="float16")
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 4}
MEAN, POOLED = "mean of the patches", "attention-pooled"
NORM, MAP_NORM, FC_NORM = "", "head.norm", "fc_norm"
# A model, the arguments that make it small, its tokens, the first, those before the patches, and the norm that timm applies after pooling.
MODELS: dict[str, tuple[dict[str, Any], int, str, int, str]] = {
    "test_vit": ({}, 101, "class token", 1, NORM),
    "test_vit2": ({}, 102, MEAN, 2, FC_NORM),  # a register, no class token
    "test_vit3": ({}, 102, POOLED, 2, NORM),
    "deit_tiny_distilled_patch16_224": (SMALL, 198, "class token", 2, NORM),
    "eva02_tiny_patch14_224": ({**SMALL, "num_heads": 3}, 257, "class token", 1, NORM),
    "vit_small_patch16_dinov3": (SMALL, 261, "class token", 5, NORM),
    "vit_base_patch16_siglip_224": (SMALL, 197, POOLED, 1, NORM),
    "vit_pe_core_tiny_patch16_384": (SMALL, 577, "class token", 1, NORM),
    "aimv2_large_patch14_224": (SMALL, 257, MEAN, 1, NORM),
    "beit_base_patch16_224": (SMALL, 197, "class token", 1, NORM),
    "test_convnext": ({}, 26, MEAN, 1, MAP_NORM),
    "test_mambaout": ({}, 26, MEAN, 1, MAP_NORM),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}, 50, MEAN, 1, NORM),
    "test_resnet": ({}, 26, MEAN, 1, NORM),
    "test_efficientnet": ({}, 26, MEAN, 1, NORM),
    "convit_tiny": ({**SMALL, "local_up_to_layer": 1}, 197, "class token", 1, NORM),
    "levit_128s": ({}, 17, MEAN, 1, NORM),
    "hiera_tiny_224": ({"embed_dim": 24, "stages": (1, 1, 1, 1), "q_pool": 3}, 50, MEAN, 1, MAP_NORM),
}


def _saved(folder: Path, name: str, **arguments: Any) -> Any:
    """Save a model of timm with random weights; return it, in evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, **arguments).eval()
        for parameter in model.parameters():
            if parameter.ndim < 2:  # norms too, whose ones and zeros would hide a mistake
                torch.nn.init.normal_(parameter, 0.5, std=0.1)
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    return model


def _features(model: Any, pixels: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Return what timm's forward_features gives, and the same as one sequence."""
    features = model.forward_features(pixels)
    if features.ndim == 3:
        return features, features
    rows = features if getattr(model, "output_fmt", "NCHW") == "NHWC" else features.permute(0, 2, 3, 1)
    return features, rows.flatten(1, 2)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_features_of_timm(tmp_path: Path, name: str) -> None:
    arguments, tokens, first, prefix, norm = MODELS[name]
    model = _saved(tmp_path / "model", name, **arguments)
    files = find_encoder(str(tmp_path / "model"))
    assert (files.family, files.tokens, files.first_token, files.prefix) == ("timm", tokens, first, prefix)
    side_px = files.preprocessing.size_px
    pixels = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = ImageEncoder(files, CPU)._tower(pixels)
        features, states = _features(model, pixels)
        pooled = model.forward_head(features, pre_logits=True)
        if first == "class token":
            assert torch.equal(found, states)
            assert torch.equal(found[:, 0], pooled) or prefix > 1 or model.global_pool != "token"
            return
        rest = found[:, 1:]
        if norm:
            weight, bias = (getattr(model.get_submodule(norm), key, None) for key in ("weight", "bias"))
            centred = states - states.mean(-1, keepdim=True)
            states = centred / (centred.square().mean(-1, keepdim=True) + model.get_submodule(norm).eps).sqrt() * weight + bias
        assert (rest - states).abs().max() <= 1e-4
        if pooled.shape == found[:, 0].shape:  # in others a layer of the head comes after the mean
            assert (found[:, 0] - pooled).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("size_px", "crop_pct", "mode"),
    [(160, 0.95, "center"), (160, 1.0, "squash"), (160, 0.9, "border"), (96, 0.875, "center"), (224, 0.95, "center"), (224, 0.9, "center")],
)
def test_pixels_are_those_of_timms_transform_for_evaluation(tmp_path: Path, size_px: int, crop_pct: float, mode: str) -> None:
    _saved(tmp_path / "model", "test_resnet")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, size_px, size_px], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bilinear"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    files = find_encoder(str(tmp_path / "model"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).resize((300, 300), Image.Resampling.BICUBIC)
    # timm 1.0.31, transforms_imagenet_eval: floor(size / crop_pct), then torchvision's crop, whose margin is round((side - size) / 2).
    side_px = int(size_px / crop_pct)
    small = np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR))
    first = round((side_px - size_px) / 2.0)
    crop = torch.from_numpy(small[first : first + size_px, first : first + size_px].copy()).permute(2, 0, 1) / 255
    expected = (crop - torch.tensor(files.preprocessing.mean).view(3, 1, 1)) / torch.tensor(files.preprocessing.std).view(3, 1, 1)
    ours = files.preprocessing.pixels(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).unsqueeze(0) / 255)
    assert (ours - expected).abs().max() <= 1.1 / 255 / min(files.preprocessing.std)


@pytest.mark.parametrize("with_classifier", [False, True])
def test_a_folder_of_transformers_timm_wrapper_is_read(tmp_path: Path, with_classifier: bool) -> None:
    # As transformers 5.23 writes it (models/timm_wrapper), which itself needs torchvision.
    model = _saved(tmp_path, "test_vit")
    weights = {f"timm_model.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    kept = {name: value for name, value in weights.items() if with_classifier or not name.startswith("timm_model.head.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"].pop("num_classes", None)
    config |= {"model_type": "timm_wrapper", "architectures": ["TimmWrapperModel"], "do_pooling": True, "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pixels = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(ImageEncoder(find_encoder(str(tmp_path)), CPU)._tower(pixels), model.forward_features(pixels))


def test_weights_that_are_missing_or_left_over_are_told(tmp_path: Path) -> None:
    _saved(tmp_path / "model", "test_vit")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for changed in (
        {key: value for key, value in weights.items() if key != "blocks.1.norm1.bias"},
        {**weights, "blocks.9.x": torch.ones(1)},
    ):
        save_file(changed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InputError, match="which does not load"):
            ImageEncoder(find_encoder(str(tmp_path / "model")), CPU)


@pytest.mark.parametrize("layer", [1, 3, 6])
def test_a_layer_is_timms_intermediate_with_the_final_norm(tmp_path: Path, layer: int) -> None:
    model = _saved(tmp_path / "model", "test_vit")
    files = find_encoder(str(tmp_path / "model"), layer=layer)
    assert files.name == ("model" if layer == 6 else f"model-layer{layer}")
    pixels = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        patches, prefix = model.forward_intermediates(
            pixels, indices=[layer - 1], norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )[0]
        found = ImageEncoder(files, CPU)._tower(pixels)
    assert (found - torch.cat([prefix, patches], dim=1)).abs().max() <= 1e-6


def test_another_size_is_what_timm_makes_of_the_weights(tmp_path: Path) -> None:
    _saved(tmp_path / "model", "test_vit")
    files = find_encoder(str(tmp_path / "model"), 192)
    assert (files.name, files.tokens) == ("model-192px", 145)
    resized = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=192).eval()
    pixels = torch.randn(1, 3, 192, 192)
    with torch.inference_mode():
        assert torch.equal(ImageEncoder(files, CPU)._tower(pixels), resized.forward_features(pixels))
    assert find_encoder(str(tmp_path / "model")).fingerprint()["preprocessing"] != files.fingerprint()["preprocessing"]


@pytest.mark.parametrize(("asked_px", "resize_px"), [(112, 117), (160, 168), (96, 101)])
def test_another_size_is_cropped_as_timm_crops_it(tmp_path: Path, asked_px: int, resize_px: int) -> None:
    """timm 1.0.31 resizes to floor(size / crop_pct), whatever size the weights are for; scaled from 235 px it would be 118 for 112."""
    _saved(tmp_path / "model", "test_resnet")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 224, 224], "crop_pct": 0.95}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    how = find_encoder(str(tmp_path / "model"), asked_px).preprocessing
    assert (how.size_px, how.crop_from_px) == (asked_px, resize_px)
    assert how.rounds_margin == ((resize_px - asked_px) % 4 == 3)


def test_a_name_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--timm--test_vit.r160_in1k"
    _saved(cached / "snapshots" / ("0" * 40), "test_vit")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    for name in ("timm:test_vit.r160_in1k", "timm:test_vit/r160_in1k", "timm:test_vit"):
        files = find_encoder(name)
        assert (files.family, files.tokens, files.license) == ("timm", 101, "apache-2.0")
    assert files.name == "timm-test_vit"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vitt", "got the timm model 'test_vitt'; expected one of its models; did you mean 'test_vit"),
        ("timm:test_vit/none", "got the timm weights 'none' of test_vit; expected weights that are on the hub"),
        ("timm:test_vit/some.safetensors", "a single file of weights; expected a folder with timm's config.json"),
        ("timm:", "got the timm model ''"),
    ],
)
def test_a_name_that_timm_does_not_have_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_encoder(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "vit_base"}, "of the timm model 'vit_base'"),
        ({"architecture": "crossvit_tiny_240"}, r"\(CrossVit of timm\), which returns two sequences, of patches of two sizes"),
        ({"pretrained_cfg": {"input_size": [3, 160, 128]}}, "for images of 3 × 160 × 128; expected square images"),
        ({"pretrained_cfg": {"interpolation": "lanczos"}}, "whose images are resized with 'lanczos'"),
        ({"pretrained_cfg": {"no_such_setting": 1}}, "whose configuration lacks something|which does not load"),
        ({"model_args": {"features_only": True}}, "built with features_only=True"),
        ({"model_type": "timm_wrapper", "pretrained_cfg": None}, "without pretrained_cfg in its config.json"),
    ],
)
def test_a_folder_that_cannot_be_read_rightly_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    _saved(tmp_path / "model", "test_vit")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=message) as error:
        find_encoder(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


def test_the_class_token_of_volo_is_found_though_it_declares_none() -> None:
    # timm 1.0.31, volo.py: no num_prefix_tokens. The published sizes are too large for a test.
    wide = {"embed_dims": (24, 48, 48, 48), "num_heads": (2, 2, 2, 2)}
    trunk = VOLO(layers=(1, 1, 1, 1), num_classes=0, img_size=64, post_layers=("ca",), **wide).eval()
    parts = parts_of(trunk)
    assert (parts.has_class, parts.prefix, parts.is_sequence) == (True, 1, True)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found, states = TimmTokens(trunk, "class token")(pixels), trunk.forward_features(pixels)
        assert torch.equal(found, states)
        assert torch.equal(found[:, 0], trunk.forward_head(states, pre_logits=True))


def test_the_norm_of_a_classifiers_hidden_layer_is_not_that_of_the_map() -> None:
    # timm 1.0.31, inception_next.py: MlpClassifierHead.norm is as wide as the classifier's hidden layer.
    trunk = MetaNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=0).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found, features = TimmTokens(trunk, MEAN)(pixels), trunk.forward_features(pixels).flatten(2).transpose(1, 2)
    assert torch.equal(found[:, 1:], features)
    assert (found[:, 0] - features.mean(1)).abs().max() <= 1e-6


def test_a_convit_so_shallow_that_its_class_token_never_joins_has_none(tmp_path: Path) -> None:
    _saved(tmp_path / "model", "convit_tiny", **SMALL)
    files = find_encoder(str(tmp_path / "model"))
    assert (files.tokens, files.first_token, files.prefix) == (197, MEAN, 1)


# The published models with fewer blocks; timm builds each of them for another size, or says that it does not.
FIXED: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": SMALL,
    "convit_tiny": {**SMALL, "local_up_to_layer": 1},
    "levit_128s": {},
    "hiera_tiny_224": {"embed_dim": 24, "stages": (1, 1, 1, 1), "q_pool": 3},
    "twins_pcpvt_small": {"depths": (1, 1, 1, 1)},
    "maxvit_tiny_rw_224": {"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 32, 32), "stem_width": 32},
}


@pytest.mark.parametrize("name", FIXED)
def test_a_size_that_timm_cannot_give_a_model_is_refused_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _saved(tmp_path / "model", name, **FIXED[name])
    monkeypatch.setattr(timm_models, "load_file", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(
        InputError, match=r"got --encoder-size 112 for .*cannot resize its positions or windows so.*; leave --encoder-size out"
    ) as error:
        find_encoder(str(tmp_path / "model"), 112)
    assert len(str(error.value)) < 600


def test_a_size_at_which_timm_reads_beyond_its_positions_is_refused_before_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm 1.0.31, mvitv2.py: maps that become odd when they are pooled index cal_rel_pos_type's table beyond its end; the meta device
    checks no index."""
    monkeypatch.setitem(mvitv2.model_cfgs, "mvitv2_tiny", mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 2), embed_dim=16))
    _saved(tmp_path / "model", "mvitv2_tiny")
    assert ImageEncoder(find_encoder(str(tmp_path / "model"), 160), CPU).files.tokens == 26
    with pytest.raises(InputError, match=r"got --encoder-size 112 for .*\(index 5 is out of bounds.*; leave --encoder-size out"):
        ImageEncoder(find_encoder(str(tmp_path / "model"), 112), CPU)


@pytest.mark.parametrize(
    ("name", "size_px", "arguments"),
    [
        ("swin_tiny_patch4_window7_224", 448, {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)}),
        ("eva02_tiny_patch14_224", 112, {**SMALL, "num_heads": 3}),
    ],
)
def test_windows_and_rotated_positions_of_another_size_are_those_of_timm(
    tmp_path: Path, name: str, size_px: int, arguments: dict[str, Any]
) -> None:
    _saved(tmp_path / "model", name, **arguments)
    resized = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=size_px).eval()
    pixels = torch.randn(1, 3, size_px, size_px)
    with torch.inference_mode():
        found = ImageEncoder(find_encoder(str(tmp_path / "model"), size_px), CPU)._tower(pixels)
        states = resized.forward_features(pixels).flatten(1, -2)
    assert torch.equal(found[:, -states.shape[1] :], states)


def test_a_size_or_layer_that_the_model_does_not_have_is_one_line(tmp_path: Path) -> None:
    _saved(tmp_path / "vit", "test_vit")
    _saved(tmp_path / "net", "test_convnext")
    _saved(tmp_path / "late", "convit_tiny", **SMALL, local_up_to_layer=1)
    for folder, choice, message in (
        ("vit", {"size_px": 100}, "a multiple of its patches' 16 px"),
        ("vit", {"layer": 7}, "expected 1 to 6"),
        ("net", {"layer": 1}, "whose tokens are not those of one of several equal blocks"),
        ("late", {"layer": 1}, "whose tokens are not those of one of several equal blocks"),
    ):
        with pytest.raises(InputError, match=message):
            find_encoder(str(tmp_path / folder), **choice)  # type: ignore[arg-type]
