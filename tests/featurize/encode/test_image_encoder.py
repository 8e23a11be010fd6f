"""Tokens of frozen encoders: two libraries on shared weights give the same, and both what the formula written out gives."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from featurize.encode.encoder_files import LICENSES
from featurize.encode.encoders import DEMO_ENCODERS, PRESETS, EncoderFiles, expand_encoders, find_encoder
from featurize.encode.image_encoder import ImageEncoder
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.pretrained import embedded_model

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SMALL = {"image_size": 48, "patch_size": 16, "width": 64, "layers": 2, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
B32 = {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12}


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_model("clip-demo"), tmp_path / "clip"))


@pytest.fixture
def vit_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_model("vit-demo"), tmp_path / "vit"))


def _images(side_px: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))


def _tokens(encoder: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
    """The tokens before they are rounded to float16."""
    with torch.inference_mode():
        tokens: torch.Tensor = encoder._tower(encoder.pixels(images))
    return tokens


def _twins(parent: Path, vision: dict[str, Any], *, quick_gelu: bool) -> tuple[Path, Path]:
    """Save one vision tower twice: as an open_clip folder and, its weights copied by name, as a CLIPVisionModel of transformers."""
    model = {"embed_dim": 32, "quick_gelu": quick_gelu, "vision_cfg": vision, "text_cfg": TEXT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        clip = open_clip.CLIP(**model)
        for parameter in clip.visual.parameters():
            nn.init.normal_(parameter, std=0.05)  # the LayerNorms too, whose ones and zeros would hide a mistake
    ours, theirs = parent / "open", parent / "hf"
    ours.mkdir()
    save_file(clip.state_dict(), ours / "open_clip_model.safetensors", metadata={"format": "pt"})
    preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic"}
    (ours / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    _transformers_twin(clip.visual, vision, quick_gelu).save_pretrained(theirs)
    transformers.CLIPImageProcessor(size={"shortest_edge": vision["image_size"]}, crop_size=vision["image_size"]).save_pretrained(theirs)
    return ours, theirs


def _transformers_twin(visual: Any, vision: dict[str, Any], quick_gelu: bool) -> Any:
    width = vision["width"]
    twin = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=vision["layers"],
            num_attention_heads=width // vision.get("head_width", 64),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_act="quick_gelu" if quick_gelu else "gelu",
        )
    )
    found, expected = visual.state_dict(), twin.state_dict()
    prefix = next(iter(expected)).partition("embeddings.")[0]
    named = {
        "embeddings.class_embedding": found["class_embedding"],
        "embeddings.patch_embedding.weight": found["conv1.weight"],
        "embeddings.position_embedding.weight": found["positional_embedding"],
    }
    layers = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    for n in range(vision["layers"]):
        here, there = f"encoder.layers.{n}", f"transformer.resblocks.{n}"
        layers |= {f"{here}.layer_norm1": f"{there}.ln_1", f"{here}.layer_norm2": f"{there}.ln_2"}
        layers |= {f"{here}.mlp.fc1": f"{there}.mlp.c_fc", f"{here}.mlp.fc2": f"{there}.mlp.c_proj"}
        layers[f"{here}.self_attn.out_proj"] = f"{there}.attn.out_proj"
        for kind in ("weight", "bias"):
            parts = found[f"{there}.attn.in_proj_{kind}"].chunk(3)
            named |= {f"{here}.self_attn.{name}_proj.{kind}": part for name, part in zip("qkv", parts, strict=True)}
    named |= {f"{here}.{kind}": found[f"{there}.{kind}"] for here, there in layers.items() for kind in ("weight", "bias")}
    assert {f"{prefix}{name}" for name in named} == {name for name in expected if not name.endswith("position_ids")}
    twin.load_state_dict({f"{prefix}{name}": value for name, value in named.items()}, strict=False)
    return twin


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_and_transformers_agree_on_shared_weights(tmp_path: Path, compute: Compute, quick_gelu: bool) -> None:
    files = [find_encoder(str(folder)) for folder in _twins(tmp_path, SMALL, quick_gelu=quick_gelu)]
    assert [(one.family, one.tokens, one.width) for one in files] == [("open_clip", 10, 64), ("clip_vision_model", 10, 64)]
    ours, theirs = (_tokens(ImageEncoder(one, compute), _images(64)) for one in files)
    assert ours.shape == (2, 10, 64)
    assert (ours - theirs).abs().max() <= 1e-4
    assert ours.std() > 0.01


def test_open_clip_and_transformers_agree_at_the_size_of_vit_b_32(tmp_path: Path, compute: Compute) -> None:
    files = [find_encoder(str(folder)) for folder in _twins(tmp_path, B32, quick_gelu=True)]
    assert [(one.tokens, one.width) for one in files] == [(50, 768)] * 2
    ours, theirs = (_tokens(ImageEncoder(one, compute), _images(512, 1)) for one in files)
    assert (ours - theirs).abs().max() <= 1e-4


def test_quick_gelu_and_gelu_are_not_the_same(tmp_path: Path, compute: Compute) -> None:
    ours, _ = _twins(tmp_path, SMALL, quick_gelu=False)
    files = find_encoder(str(ours))
    plain, quick = (_tokens(ImageEncoder(replace(files, quick_gelu=q), compute), _images(48)) for q in (False, True))
    assert (plain - quick).abs().max() > 1e-4


def test_a_whole_clip_gives_the_tokens_of_its_vision_tower(tmp_path: Path, compute: Compute) -> None:
    _, theirs = _twins(tmp_path, SMALL, quick_gelu=True)
    half = transformers.CLIPVisionModel.from_pretrained(theirs)
    text = transformers.CLIPTextConfig(vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    whole = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=half.config.to_dict(), text_config=text.to_dict(), projection_dim=8)
    )
    own = half.state_dict()
    target = whole.vision_model.state_dict()
    target.update({name: own[name if name in own else f"vision_model.{name}"] for name in target if "position_ids" not in name})
    whole.vision_model.load_state_dict(target)
    whole.save_pretrained(tmp_path / "whole")
    shutil.copy(theirs / "preprocessor_config.json", tmp_path / "whole")
    files = find_encoder(str(tmp_path / "whole"))
    assert (files.family, files.tokens, files.width) == ("clip", 10, 64)
    expected = _tokens(ImageEncoder(find_encoder(str(theirs)), compute), _images(48))
    assert (_tokens(ImageEncoder(files, compute), _images(48)) - expected).abs().max() <= 1e-6


def test_tokens_are_the_last_hidden_state_after_the_layer_norm(tmp_path: Path, compute: Compute) -> None:
    ours, _ = _twins(tmp_path, SMALL, quick_gelu=True)
    encoder = ImageEncoder(find_encoder(str(ours)), compute)
    visual, pixels = encoder._tower.visual, encoder.pixels(_images(48))
    with torch.inference_mode():
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([visual.class_embedding.expand(2, 1, -1), patches], dim=1) + visual.positional_embedding
        hidden = visual.transformer(visual.ln_pre(tokens)).double()
        centred = hidden - hidden.mean(-1, keepdim=True)
        normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = normal * visual.ln_post.weight.double() + visual.ln_post.bias.double()
    assert (_tokens(encoder, _images(48)) - expected).abs().max() <= 1e-5


def test_the_first_token_projects_to_the_image_embedding(compute: Compute) -> None:
    encoder = ImageEncoder(find_encoder("clip-demo"), compute)
    visual = encoder._tower.visual
    with torch.inference_mode():
        pooled = visual(encoder.pixels(_images(64)))
        assert (pooled - _tokens(encoder, _images(64))[:, 0] @ visual.proj).abs().max() <= 1e-5


def test_the_tokens_of_a_vit_are_its_last_hidden_state(compute: Compute) -> None:
    encoder = ImageEncoder(find_encoder("vit-demo"), compute)
    model = transformers.ViTModel.from_pretrained(embedded_model("vit-demo"), add_pooling_layer=False, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(pixel_values=encoder.pixels(_images(96))).last_hidden_state
    tokens = encoder.encode(_images(96))
    assert (tokens.dtype, tokens.shape) == (torch.float16, (2, 17, 128))
    assert torch.equal(tokens, expected.half())


def test_dinov2_is_read_with_its_class_token(tmp_path: Path, compute: Compute) -> None:
    config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path / "dino")
    transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(tmp_path / "dino")
    encoder = ImageEncoder(find_encoder(str(tmp_path / "dino")), compute)
    with torch.inference_mode():
        expected = model(pixel_values=encoder.pixels(_images(28))).last_hidden_state
    assert torch.equal(encoder.encode(_images(28)), expected.half())


@pytest.mark.parametrize("name", DEMO_ENCODERS)
def test_an_encoder_is_frozen_and_does_not_change_with_use(compute: Compute, name: str) -> None:
    encoder = ImageEncoder(find_encoder(name), compute)
    assert not any(parameter.requires_grad for parameter in encoder._tower.parameters())
    assert not any(module.training for module in encoder._tower.modules())
    first = encoder.encode(_images(64))
    assert not first.requires_grad
    assert torch.equal(first, encoder.encode(_images(64)))


def _bare(size_px: int, interpolation: Any, compute: Compute) -> ImageEncoder:
    files = find_encoder("clip-demo")
    how = replace(files.preprocessing, size_px=size_px, interpolation=interpolation, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ImageEncoder(replace(files, preprocessing=how), compute)


@pytest.mark.parametrize(("interpolation", "pil"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)])
def test_the_resize_is_antialiased_as_torch_and_pil_have_it(compute: Compute, interpolation: Any, pil: Image.Resampling) -> None:
    ramp = torch.linspace(0, 1, 512)
    waves = (torch.sin(torch.arange(512) * 1.7) + 1) / 2
    image = torch.stack([ramp.expand(512, 512), ramp.view(-1, 1).expand(512, 512), waves.expand(512, 512)]).unsqueeze(0)
    resized = _bare(224, interpolation, compute).pixels(image)
    by_torch = nn.functional.interpolate(image, (224, 224), mode=interpolation, antialias=True).clamp(0, 1)
    assert (resized - by_torch).abs().max() <= 1e-6
    by_pil = [np.asarray(Image.fromarray(channel.numpy(), "F").resize((224, 224), pil)) for channel in image[0]]
    assert np.abs(resized[0].numpy() - np.clip(np.stack(by_pil), 0, 1)).max() <= 1e-3
    aliased = nn.functional.interpolate(image, (224, 224), mode=interpolation).clamp(0, 1)
    assert (resized - aliased).abs().max() > 0.1


def test_the_normalisation_is_exact_and_by_channel(tmp_path: Path, compute: Compute) -> None:
    ours, _ = _twins(tmp_path, SMALL, quick_gelu=False)
    encoder = ImageEncoder(find_encoder(str(ours)), compute)
    images = _images(48)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    assert torch.equal(encoder.pixels(images), (images - mean) / std)  # nothing is resized at the encoder's own size
    assert encoder.pixels(images.half()).dtype == torch.float32


def test_overshooting_pixels_are_clipped_and_nan_stays_in_its_row(compute: Compute) -> None:
    encoder = ImageEncoder(find_encoder("clip-demo"), compute)
    edge = torch.zeros(1, 3, 128, 128)
    edge[..., 64:] = 1
    assert _bare(64, "bicubic", compute).pixels(edge).aminmax() == (0, 1)
    images = _images(64)
    images[0, 0, 5, 5] = torch.nan
    tokens = encoder.encode(images)
    assert tokens[0].isnan().any()
    assert tokens[1].isfinite().all()


def test_tokens_beyond_float16_become_infinite_and_not_wrong(compute: Compute) -> None:
    encoder = ImageEncoder(find_encoder("clip-demo"), compute)
    with torch.no_grad():
        encoder._tower.visual.ln_post.weight.mul_(1e6)
    assert encoder.encode(_images(64)).isinf().any()


def test_demo_means_both_embedded_encoders_each_once() -> None:
    assert expand_encoders(("demo",)) == ("clip-demo", "vit-demo")
    assert expand_encoders(("vit-demo", "demo", "clip-vit-b32", "vit-demo")) == ("vit-demo", "clip-demo", "clip-vit-b32")


def test_every_preset_names_weights_that_its_library_has() -> None:
    for source in PRESETS.values():
        library, _, model = source.partition(":")
        if library == "open_clip":
            pretrained = open_clip.get_pretrained_cfg(*model.split("/"))
            assert pretrained["hf_hub"]
            assert pretrained.get("quick_gelu", False) == model.endswith("openai")
        if library == "timm":
            assert timm.models.get_pretrained_cfg(model, allow_unregistered=False).hf_hub_id
    assert {PRESETS["vit-b16"], PRESETS["dinov2-b14-reg"]} == {"google/vit-base-patch16-224-in21k", "facebook/dinov2-with-registers-base"}
    assert set(PRESETS) == set(LICENSES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip-vit-b23", "got --encoders clip-vit-b23; .*did you mean 'clip-vit-b32'"),
        ("dmo", "did you mean 'demo'"),
        ("prompttext", "did you mean 'prompt-text'"),
        (f"open_clip:ViT-B-32/{__file__}@own", "test_image_encoder.py is no .safetensors file; .*; give a file of weights, or a tag"),
        ("open_clip:ViT-B-31/openai", "got the open_clip model 'ViT-B-31'; expected one of its models; did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/opanai", "got the open_clip weights 'opanai'; expected weights of ViT-B-32; did you mean 'openai'"),
        ("open_clip:ViT-B-32/no/such.safetensors", "where no/such.safetensors is no file; .*check the path"),
        ("open_clip:ViT-B-32", "got the open_clip weights ''"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_encoder(name)


@pytest.mark.parametrize("name", ["timm:nope", "open_clip:nope/x"])
def test_a_name_like_none_of_a_long_list_is_answered_with_a_few(name: str) -> None:
    with pytest.raises(InputError, match="choose one of") as error:
        find_encoder(name)
    assert len(str(error.value)) < 1000


def test_a_folder_named_as_a_preset_has_not_its_licence(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = clip_folder.rename(clip_folder.parent / "dinov3-b16")
    assert find_encoder(str(renamed)).license == "see the model's own card"
    assert find_encoder("clip-demo", 128).license == "Apache-2.0"


@pytest.mark.parametrize("name", ["clip-vit-b32", "vit-b16", "owner/name@v1", "open_clip:ViT-B-16/laion2b_s34b_b88k"])
def test_a_model_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        find_encoder(name)
    preset = f"{name}, which is " if name in ("clip-vit-b32", "vit-b16") else ""
    assert re.match(rf"got --encoders {preset}\S+ \(.+\); expected a local folder or a model .*give its folder$", str(error.value))
    assert "\n" not in str(error.value)


def test_an_open_clip_model_in_the_hubs_cache_is_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_folder: Path, compute: Compute
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / f"models--{open_clip.get_pretrained_cfg('ViT-B-32', 'openai')['hf_hub'].strip('/').replace('/', '--')}"
    shutil.copytree(clip_folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    files = find_encoder("clip-vit-b32")
    assert (files.name, files.license, files.quick_gelu) == ("clip-vit-b32", "MIT", True)
    plain = _tokens(ImageEncoder(find_encoder(str(clip_folder)), compute), _images(64))
    assert (_tokens(ImageEncoder(files, compute), _images(64)) - plain).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "of type 'bert'; expected an image encoder of open_clip, timm or transformers"),
        ({}, "vit without a model_type; expected an image encoder"),
        (None, "vit without config.json; expected an image encoder"),
    ],
)
def test_a_folder_of_an_unsupported_type_is_refused(vit_folder: Path, config: dict[str, str] | None, message: str) -> None:
    config_file = vit_folder / "config.json"
    config_file.unlink() if config is None else config_file.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        find_encoder(str(vit_folder))


def test_weights_that_do_not_fit_are_one_line(clip_folder: Path, vit_folder: Path, compute: Compute) -> None:
    weights = clip_folder / "open_clip_model.safetensors"
    wrong = find_encoder(f"open_clip:ViT-B-32/{weights}@openai")
    (vit_folder / "model.safetensors").write_bytes(b"no weights")
    for files in (wrong, find_encoder(str(vit_folder))):
        with pytest.raises(InputError, match=rf"got {re.escape(str(files.folder))}, which does not load \(.+\); expected weights that fit"):
            ImageEncoder(files, compute)


def test_weights_that_are_not_safetensors_are_refused(vit_folder: Path) -> None:
    (vit_folder / "model.safetensors").rename(vit_folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"without a \.safetensors file"):
        find_encoder(str(vit_folder))


def _changed(files: EncoderFiles, other: EncoderFiles) -> set[str]:
    found, expected = files.fingerprint(), other.fingerprint()
    assert found.keys() == expected.keys()
    return {name for name in found if found[name] != expected[name]}


def test_the_fingerprint_depends_on_weights_not_on_the_folder(vit_folder: Path) -> None:
    before = find_encoder(str(vit_folder))
    moved = find_encoder(str(vit_folder.rename(vit_folder.parent / "elsewhere").rename(vit_folder)) + "/")
    assert _changed(before, moved) == set()
    processor = vit_folder / "preprocessor_config.json"
    processor.write_text(processor.read_text().replace("0.75", "0.7", 1))
    assert _changed(before, find_encoder(str(vit_folder))) == {"weights", "preprocessing"}
    assert _changed(before, replace(before, weights_hash="0")) == {"weights"}
    assert "dtype" not in before.fingerprint()


@pytest.mark.parametrize(("given", "name"), [("vit", "vit"), ("./vit/", "vit"), ("vit/.", "vit"), ("vit/../vit", "vit")])
def test_a_column_is_called_after_the_folder(vit_folder: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str) -> None:
    monkeypatch.chdir(vit_folder.parent)
    assert find_encoder(given).name == name
