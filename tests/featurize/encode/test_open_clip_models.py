"""Encoders of open_clip beyond its plain vision transformers, and the settings of a file of weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.open_clip_models import open_clip_model, open_clip_skeleton, projection_of
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute

CPU = resolve_compute("cpu", "float32", half="float16")
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TIMM = {"timm_model_pretrained": False, "image_size": 160}
MEAN, POOLED = "mean of the patches", "attention-pooled"
# A vision tower, its tokens, the first of them, and which of them make the image's embedding.
TOWERS: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    "ResNet": ({"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}, 5, MEAN, "all"),
    "CoCa": (
        {**VIT, "attentional_pool": True, "attn_pooler_queries": 6, "attn_pooler_heads": 2, "output_tokens": True},
        6,
        "class token",
        "first",
    ),
    "CLIPA": ({**VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}, 17, "class token", None),
    "SigLIP": ({**TIMM, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}, 102, POOLED, "first"),
    "EVA": ({**TIMM, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}, 101, "class token", "first"),
    "ConvNeXt": ({**TIMM, "timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp"}, 26, MEAN, "first"),
    "MobileCLIP": ({**TIMM, "timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": None}, 26, MEAN, "first"),
    "mean of all": ({**TIMM, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}, 101, "class token", "all"),
}


def _saved(folder: Path, vision: dict[str, Any], **preprocess: Any) -> Any:
    """Save an open_clip folder with random weights; return the model, in evaluation."""
    config = {"embed_dim": 96, "vision_cfg": vision, "text_cfg": TEXT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**json.loads(json.dumps(config))).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, 0.5, std=0.1)
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return model


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_gives_the_tokens_that_its_library_makes(tmp_path: Path, name: str) -> None:
    vision, tokens, first, _ = TOWERS[name]
    visual: Any = _saved(tmp_path / "clip", vision).visual
    files = find_encoder(str(tmp_path / "clip"))
    assert (files.tokens, files.first_token) == (tokens, first)
    side_px = files.preprocessing.size_px
    pixels = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = ImageEncoder(files, CPU)._tower(pixels)
        if name == "ResNet":
            states = visual.forward_intermediates(pixels, indices=1, intermediates_only=True)["image_intermediates"][0]
            states = states.flatten(2).transpose(1, 2)
            expected = torch.cat([states.mean(1, keepdim=True), states], dim=1)
        elif name == "CoCa":
            pooled, rest = visual(pixels)
            assert (found[:, 0] @ visual.proj - pooled).abs().max() <= 1e-4
            expected = torch.cat([found[:, :1], rest], dim=1)
        elif name == "CLIPA":
            states = visual.forward_intermediates(pixels, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True)
            expected = visual.ln_post(torch.cat([states["image_intermediates_prefix"][0], states["image_intermediates"][0]], dim=1))
        else:
            states = visual.trunk.forward_features(pixels)
            if first == "class token":
                expected = states
            else:
                pooled = visual.trunk.forward_head(states, pre_logits=True)
                normal = visual.trunk.head.norm(states) if name == "ConvNeXt" else states
                expected = torch.cat([pooled[:, None], normal.flatten(2).transpose(1, 2) if normal.ndim == 4 else normal], dim=1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", TOWERS)
def test_stored_tokens_are_projected_where_the_embedding_is_made_of_them(tmp_path: Path, name: str) -> None:
    vision, _, _, reads = TOWERS[name]
    _saved(tmp_path / "clip", vision)
    files = find_encoder(str(tmp_path / "clip"))
    model = open_clip_model(files).eval()
    projection = projection_of(files, model)
    assert (projection and ("all" if projection.reads_all else "first")) == reads
    if projection is not None:
        pixels = torch.randn(2, 3, files.preprocessing.size_px, files.preprocessing.size_px)
        with torch.inference_mode():
            own = model.encode_image(pixels)
            own = own[0] if isinstance(own, tuple) else own
            tokens = ImageEncoder(files, CPU)._tower(pixels)
            found = projection.project(tokens if projection.reads_all else tokens[:, 0])
        assert (found - own).abs().max() <= 1e-4 * float(own.abs().max())


@pytest.mark.parametrize("vision", [VIT, TOWERS["SigLIP"][0], TOWERS["EVA"][0]], ids=["ViT", "SigLIP", "EVA"])
def test_a_layer_is_the_intermediate_with_the_final_norm(tmp_path: Path, vision: dict[str, Any]) -> None:
    visual: Any = _saved(tmp_path / "clip", vision).visual
    files = find_encoder(str(tmp_path / "clip"), layer=1)
    assert files.name == "clip-layer1"
    pixels = torch.randn(1, 3, files.preprocessing.size_px, files.preprocessing.size_px)
    with torch.inference_mode():
        layers = visual.forward_intermediates(
            pixels, indices=[0], normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        states = torch.cat([layers["image_intermediates_prefix"][0], layers["image_intermediates"][0]], dim=1)
        found = ImageEncoder(files, CPU)._tower(pixels)
    if found.shape[1] > states.shape[1]:  # no class token: the mean comes first
        assert files.first_token == MEAN
        assert (found[:, 0] - layers["image_intermediates"][0].mean(1)).abs().max() <= 1e-5
        found = found[:, 1:]
    assert (found - states).abs().max() <= 1e-5
    assert projection_of(files, open_clip_model(files).eval()) is None


def test_a_timm_tower_at_another_size_is_what_open_clip_makes(tmp_path: Path) -> None:
    _saved(tmp_path / "clip", TOWERS["SigLIP"][0])
    files = find_encoder(str(tmp_path / "clip"), 192)
    assert (files.name, files.tokens) == ("clip-192px", 146)
    model = open_clip.create_model(f"local-dir:{tmp_path / 'clip'}", force_image_size=192).eval()
    pixels = torch.randn(1, 3, 192, 192)
    with torch.inference_mode():
        assert (ImageEncoder(files, CPU)._tower(pixels)[:, 0] - model.visual(pixels)).abs().max() <= 1e-4


def test_a_size_that_an_attention_pool_was_not_built_for_is_one_line(tmp_path: Path) -> None:
    _saved(tmp_path / "clip", TOWERS["ResNet"][0])
    with pytest.raises(InputError, match="whose library cannot resize its positions; expected its own 64 px"):
        find_encoder(str(tmp_path / "clip"), 96)


def test_pixels_are_those_of_the_tag(tmp_path: Path) -> None:
    _saved(tmp_path / "clip", VIT, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash")
    files = find_encoder(str(tmp_path / "clip"))
    assert files.fit == "squash"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    small = torch.from_numpy(np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).copy()).permute(2, 0, 1) / 255
    ours = files.preprocessing.pixels(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).unsqueeze(0) / 255)
    assert (ours - (small - 0.5) / 0.5).abs().max() <= 1.1 / 255 / 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"resize_mode": "nonsense"}, "one of shortest, longest, squash"), ({"fill_color": [1, 2]}, "a list of three")],
)
def test_settings_that_open_clip_does_not_have_are_one_line(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    _saved(tmp_path / "model", VIT, **settings)
    with pytest.raises(InputError, match=message):
        find_encoder(str(tmp_path / "model"))


def test_the_colour_of_the_border_is_read(tmp_path: Path) -> None:
    _saved(tmp_path / "model", VIT, resize_mode="longest", fill_color=[10, 20, 30])
    files = find_encoder(str(tmp_path / "model"))
    assert (files.fit, files.fill) == ("longest", (10, 20, 30))


def _file(folder: Path, name: str) -> Path:
    """Write a file of weights that are no numbers of the model: it is only found here."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"logit_scale": torch.ones(())}, folder / name)
    return folder / name


# What the tags of open_clip 3.3 say, written out from its pretrained.py.
OPENAI, INCEPTION = (0.48145466, 0.4578275, 0.40821073), (0.5, 0.5, 0.5)
IMAGENET = (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("architecture", "file", "mean", "interpolation", "quick_gelu"),
    [
        ("ViT-B-32", "weights.safetensors@openai", OPENAI, "bicubic", True),
        ("ViT-B-32", "weights.safetensors@laion2b_s34b_b79k", OPENAI, "bicubic", False),
        ("ViT-B-32", "weights.safetensors@own", OPENAI, "bicubic", False),
        ("ViT-B-32", "ViT-B-32-openai.safetensors", OPENAI, "bicubic", True),
        ("ViT-B-32", "CLIP-ViT-B-32-laion2B-s34B-b79K.safetensors", OPENAI, "bicubic", False),
        ("ViT-L-14", "laion2b_s32b_b82k.safetensors", INCEPTION, "bicubic", False),
        ("ViT-B-16-SigLIP2", "weights.safetensors", INCEPTION, "bicubic", False),
        ("PE-Core-B-16", "weights.safetensors", INCEPTION, "bilinear", False),
        ("ViT-L-14-CLIPA", "weights.safetensors", IMAGENET, "bilinear", False),
        ("RN50", "weights.safetensors", OPENAI, "bicubic", True),
        ("ViT-L-14", "DFN2B-CLIP-ViT-L-14.safetensors", OPENAI, "bicubic", True),
        ("ViT-L-14", "DFN2B-CLIP-ViT-L-14-39B.safetensors", OPENAI, "bicubic", False),
        ("ViT-L-14", "ours-dfn2b_s39b-fp16.safetensors", OPENAI, "bicubic", False),
        ("ViT-L-14", "DFN2B-CLIP-ViT-L-14-39B/open_clip_model.safetensors", OPENAI, "bicubic", False),
        ("ViT-B-32-quickgelu", "weights.safetensors@own", OPENAI, "bicubic", True),
    ],
)
def test_a_file_of_weights_gets_the_settings_of_its_tag(
    tmp_path: Path, architecture: str, file: str, mean: tuple[float, ...], interpolation: str, quick_gelu: bool
) -> None:
    name, _, tag = file.partition("@")
    path = _file((tmp_path / name).parent, Path(name).name)
    files = find_encoder(f"open_clip:{architecture}/{path}" + (f"@{tag}" if tag else ""))
    assert (files.preprocessing.mean, files.preprocessing.interpolation, files.quick_gelu) == (mean, interpolation, quick_gelu)
    assert files.name == f"open_clip-{architecture}-{path.stem}"


def test_a_file_in_the_hubs_cache_is_known_by_its_folder(tmp_path: Path) -> None:
    path = _file(tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / "0", "open_clip_model.safetensors")
    assert find_encoder(f"open_clip:ViT-B-32/{path}").quick_gelu


def test_a_file_beside_its_configuration_gets_what_that_says(tmp_path: Path) -> None:
    path = _file(tmp_path, "open_clip_model.safetensors")
    config = {"model_cfg": {**open_clip.get_model_config("ViT-B-32"), "quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    files = find_encoder(f"open_clip:ViT-B-32/{path}")
    assert (files.quick_gelu, files.preprocessing.mean) == (True, INCEPTION)
    with pytest.raises(InputError, match="beside a configuration of another model than ViT-B-16"):
        find_encoder(f"open_clip:ViT-B-16/{path}")


@pytest.mark.parametrize(
    ("architecture", "file", "message"),
    [
        # Tags that begin alike, and two tags in one name.
        ("ViT-L-14", "dfn2b-39b", "whose weights dfn2b, dfn2b_s39b want different pixels or activations"),
        ("ViT-L-14", "DFN2B-CLIP-ViT-L-14-finetuned", "whose weights dfn2b, dfn2b_s39b want"),
        ("ViT-B-32", "openai-tuned-on-laion2b_s34b_b79k", "whose weights openai, laion2b_s34b_b79k want"),
        # Tags that differ in what is done with pictures that are not square.
        ("ViT-H-14-quickgelu", "open_clip_model", "whose weights metaclip_fullcc, dfn5b want"),
    ],
)
def test_a_name_that_fits_several_tags_of_other_settings_is_one_line(tmp_path: Path, architecture: str, file: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        find_encoder(f"open_clip:{architecture}/{_file(tmp_path, f'{file}.safetensors')}")
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_pickled_are_told(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"pickled")
    for file, message in (("no.safetensors", "no.safetensors is no file"), ("no.pt", "no.pt is no file"), ("weights.pt", "a pickled file")):
        with pytest.raises(InputError, match=message):
            find_encoder(f"open_clip:ViT-B-32/{tmp_path / file}")


@pytest.mark.parametrize("name", ["hf-hub:timm/ViT-B-16-SigLIP2", "local-dir:/some/folder"])
def test_open_clips_own_names_of_folders_and_the_hub_are_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"got --encoders open_clip:{name}; expected .* itself; give {name.partition(':')[2]}$"):
        find_encoder(f"open_clip:{name}")


def test_a_tower_that_gives_a_map_has_no_projection(tmp_path: Path) -> None:
    _saved(tmp_path / "clip", {**TIMM, "timm_model_name": "test_resnet", "timm_pool": "", "timm_proj": "none"})
    files = find_encoder(str(tmp_path / "clip"))
    assert projection_of(files, open_clip_model(files).eval()) is None


@pytest.mark.parametrize(
    ("architecture", "tag", "message"),
    [
        (
            "ViT-B-32",
            "",
            r"whose weights openai, .* and \d+ more want different pixels or activations; .*add the tag: open_clip:ViT-B-32/.*@openai",
        ),
        ("ViT-B-32", "@opnai", "got the tag 'opnai' of .*did you mean 'openai'"),
        ("coca_base", "", "of which open_clip knows no weights; .*@own"),
    ],
)
def test_a_file_of_no_known_tag_is_one_line(tmp_path: Path, architecture: str, tag: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        find_encoder(f"open_clip:{architecture}/{_file(tmp_path, 'mine.safetensors')}{tag}")
    assert "\n" not in str(error.value)


def test_openais_weights_are_computed_with_quick_gelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_encoder(f"open_clip:ViT-B-32/{_file(tmp_path, 'ViT-B-32-openai.safetensors')}")
    small: Any = open_clip.CLIP(32, dict(VIT), dict(TEXT), quick_gelu=True)
    told: list[Any] = []
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **how: told.append(how["force_quick_gelu"]) or small)
    ImageEncoder(files, CPU)
    assert told == [True]
    with torch.device("meta"):
        skeleton: Any = open_clip_skeleton(files)
    assert isinstance(skeleton.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
