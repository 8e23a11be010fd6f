"""Encoder folders as people have them: each gives the tokens of its library's own processor and model, or is refused in one line.

The library's processor rounds to whole grey levels after resizing; our pixels stay floats. So they differ by at most one level of 255, and
not at all (2e-7) where nothing is resized.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers as hf
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.utils import is_torchvision_available

from featurize.cost.stage_cost import encode_flops
from featurize.encode.encoders import EncoderFiles, find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.preprocessing import Preprocessing
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.runtime.pretrained import embedded_model

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MAE = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 32}
SIDE_PX = 64
SQUARE = {"height": 32, "width": 32}
LEVEL = 1.1 / 255  # at most 1.04 is seen, in two passes of a bicubic filter


@dataclass(frozen=True)
class Case:
    """A folder: its model's type, its processor's settings, and what to expect of both."""

    model: str
    processor: str
    tokens: int
    settings: dict[str, Any] = field(default_factory=lambda: {"size": SQUARE})
    config: dict[str, Any] = field(default_factory=lambda: {"image_size": 32, "patch_size": 8})
    size_px: int | None = None
    as_asked: dict[str, Any] = field(default_factory=dict)  # what the library's processor must be told for that size


DINO = {"image_size": 518, "patch_size": 14}
CROP_56 = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
CASES = {
    "vit": Case("ViT", "ViTImageProcessor", 17),
    "vit of listed sizes": Case("ViT", "ViTImageProcessor", 17, config={"image_size": [32, 32], "patch_size": [8, 8]}),
    "vit at another size": Case("ViT", "ViTImageProcessor", 65, size_px=64, as_asked={"size": {"height": 64, "width": 64}}),
    "vit, not normalised": Case("ViT", "ViTImageProcessor", 17, {"size": SQUARE, "do_normalize": False}),
    "vit, not rescaled": Case("ViT", "ViTImageProcessor", 17, {"size": SQUARE, "do_rescale": False}),
    "vit, rescaled to 2": Case("ViT", "ViTImageProcessor", 17, {"size": SQUARE, "rescale_factor": 1 / 127.5}),
    "vit, nearest": Case("ViT", "ViTImageProcessor", 17, {"size": SQUARE, "resample": 0}),
    "vit, not resized": Case(
        "ViT", "ViTImageProcessor", 65, {"size": {"height": 64, "width": 64}, "do_resize": False}, {"image_size": 64, "patch_size": 8}
    ),
    "vit with crop_pct": Case("ViT", "ConvNextImageProcessor", 17, {"size": {"shortest_edge": 32}}),
    "deit": Case("DeiT", "DeiTImageProcessor", 18, {"size": {"height": 40, "width": 40}, "crop_size": SQUARE}),
    "beit": Case("Beit", "BeitImageProcessor", 17, config={"image_size": 32, "patch_size": 8, "use_relative_position_bias": True}),
    "data2vec": Case("Data2VecVision", "BeitImageProcessor", 17),
    "msn": Case("ViTMSN", "ViTImageProcessor", 17),
    "mae": Case("ViTMAE", "ViTImageProcessor", 17, config={"image_size": 32, "patch_size": 8, **MAE}),
    "dinov2": Case("Dinov2", "BitImageProcessor", 17, CROP_56, DINO),
    "dinov2, odd margins": Case("Dinov2", "BitImageProcessor", 17, {**CROP_56, "size": {"shortest_edge": 63}}, DINO),
    "dinov2 at another size": Case(
        "Dinov2", "BitImageProcessor", 37, CROP_56, DINO, 84, {"size": {"shortest_edge": 96}, "crop_size": {"height": 84, "width": 84}}
    ),
    "dinov2 with registers": Case("Dinov2WithRegisters", "BitImageProcessor", 21, CROP_56, DINO),
    "dinov3": Case("DINOv3ViT", "DINOv3ViTImageProcessor", 21, config={"image_size": 224, "patch_size": 8, "num_register_tokens": 4}),
    "clip": Case("CLIPVision", "CLIPImageProcessor", 17, {"size": {"shortest_edge": 32}, "crop_size": 32}),
}


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


def _image() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (SIDE_PX // 8, SIDE_PX // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))


def _tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0) / 255


def _folder(case: Case, parent: Path) -> Path:
    config = getattr(hf, f"{case.model}Config")(**SMALL, **case.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(hf, f"{case.model}Model")(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(parent / "model")
    if case.model == "DINOv3ViT":  # whose processor needs torchvision
        settings = {"image_processor_type": case.processor, **case.settings}
        (parent / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        getattr(hf, case.processor)(**case.settings).save_pretrained(parent / "model")
    return parent / "model"


def _of_the_library(folder: Path, case: Case, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The pixels and tokens that the library's own processor and model give."""
    if case.model == "DINOv3ViT" and backend == "pil":
        pytest.skip("transformers 5.23 has this processor on torchvision only")
    processor = hf.AutoImageProcessor.from_pretrained(folder, backend=backend)
    pixels = processor(Image.fromarray(_image()), return_tensors="pt", **case.as_asked)["pixel_values"].float()
    # The library's MAE hides three quarters of the patches; its encoder is a ViT.
    kind = {"ViTMAE": hf.ViTModel, "CLIPVision": hf.CLIPVisionModel}.get(case.model, hf.AutoModel)
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    how = {"interpolate_pos_encoding": True} if case.size_px and case.model == "ViT" else {}
    with torch.inference_mode():
        tokens = model(pixel_values=pixels, **how).last_hidden_state
        tokens = model.post_layernorm(tokens) if case.model == "CLIPVision" else tokens
    return pixels, tokens


@pytest.mark.parametrize("name", CASES)
def test_a_folder_gives_what_its_library_gives(tmp_path: Path, compute: Compute, name: str) -> None:
    case = CASES[name]
    folder = _folder(case, tmp_path)
    files = find_encoder(str(folder), case.size_px)
    assert files.tokens == case.tokens
    assert files.processor == ("ViTImageProcessor" if case.model == "DINOv3ViT" else case.processor)
    assert encode_flops(files) > 0  # on the meta device, before the model is loaded, as a run does
    encoder = ImageEncoder(files, compute)
    pixels = encoder.pixels(_tensor(_image()))
    for backend in ("torchvision", "pil") if is_torchvision_available() else ("pil",):
        theirs, expected = _of_the_library(folder, case, backend)
        step = LEVEL * files.preprocessing.scale / min(files.preprocessing.std)
        assert (pixels - theirs).abs().max() <= step, backend
        with torch.inference_mode():
            on_their_pixels = encoder._tower(theirs)
        assert on_their_pixels.shape == (1, case.tokens, 32)
        assert (on_their_pixels - expected).abs().max() <= 1e-5, backend


def test_counting_beit_on_the_meta_device_leaves_its_positions_whole(tmp_path: Path, compute: Compute) -> None:
    # transformers 5.23 keeps BEiT's index of positions from the first call; one from the meta device is read as noise ever after.
    folder = _folder(
        Case(
            "Beit",
            "BeitImageProcessor",
            37,
            config={"image_size": 48, "patch_size": 8, "use_relative_position_bias": True},
            settings={"size": {"height": 48, "width": 48}},
        ),
        tmp_path,
    )
    files = find_encoder(str(folder))
    encode_flops(files)
    encoder = ImageEncoder(files, compute)
    first = encoder.encode(_tensor(_image()))
    assert torch.equal(first, encoder.encode(_tensor(_image())))
    assert first.isfinite().all()


def test_the_published_processor_of_dinov2_gives_257_tokens(tmp_path: Path) -> None:
    hf.Dinov2Model(hf.Dinov2Config(**SMALL, **DINO)).save_pretrained(tmp_path)
    hf.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}).save_pretrained(tmp_path)
    files = find_encoder(str(tmp_path))
    assert (files.tokens, files.preprocessing.size_px, files.preprocessing.crop_from_px) == (257, 224, 256)
    assert files.words().startswith("257 tokens of 32; BitImageProcessor: resize to 256 px (bicubic), crop 224 px, mean 0.481 0.458 0.408")
    assert find_encoder(str(tmp_path), 518).tokens == 1370


def test_a_whole_clip_saved_with_its_processor_is_read(tmp_path: Path) -> None:
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    text = {**SMALL, "vocab_size": 16}
    hf.CLIPModel(hf.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(tmp_path)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": SQUARE, "resample": 2}
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor", "image_processor": processor}))
    files = find_encoder(str(tmp_path))
    assert (files.family, files.tokens, files.processor) == ("clip", 17, "CLIPImageProcessor")
    assert (files.preprocessing.crop_from_px, files.preprocessing.interpolation) == (36, "bilinear")


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    return _folder(CASES["vit"], tmp_path)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resample": 1}, "whose ViTImageProcessor resizes with PIL's filter 1"),
        ({"size": {"height": 32, "width": 48}}, "makes images of 32 × 48 pixels, which are not square"),
        ({"size": {"height": 9999, "width": 9999}}, "makes images of 9,999 pixels a side"),
        ({"do_pad": True, "pad_size": {"height": 40, "width": 40}}, r"makes pixels of shape \[1, 3, 40, 40\]"),
        ({"image_processor_type": "Owlv2ImageProcessor"}, "makes other pixels than its settings say"),
        ({"do_center_crop": True, "crop_size": {"height": 40, "width": 40}}, "crops 40 px from an image that it resized to 32 px"),
        ({"image_processor_type": "Qwen2VLImageProcessor", "size": {"shortest_edge": 3136, "longest_edge": 12544}}, "got .*; expected"),
        ({"image_processor_type": "NoSuchProcessor"}, r"got the image processor of .*Unrecognized image processor"),
        ({"size": {"height": 48, "width": 48}}, "makes 48 px where its model reads 32 px; .*--encoder-size 32"),
        ({"image_mean": [0.5, 0.5]}, "got .*; expected"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_one_line(vit: Path, settings: dict[str, Any], message: str) -> None:
    _edit(vit / "preprocessor_config.json", **settings)
    with pytest.raises(InputError, match=message) as error:
        find_encoder(str(vit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("made_px", "read_px"), [(512, 224), (1024, 224), (256, 224), (768, 384), (96, 224), (100, 33)])
def test_nearest_takes_the_pixels_that_pil_takes(made_px: int, read_px: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (made_px, made_px, 3), dtype=np.uint8)
    expected = _tensor(np.asarray(Image.fromarray(image).resize((read_px, read_px), Image.Resampling.NEAREST)))
    plain = Preprocessing(size_px=read_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="nearest")
    assert torch.equal(plain.pixels(_tensor(image)), expected)
    assert plain.fingerprint()["pixels"] == "as PIL"  # stores of earlier versions have other pixels


def test_the_processor_of_owlv2_which_blurs_instead_of_resizing_as_pil_does_is_refused(tmp_path: Path) -> None:
    # transformers 5.23 (image_processing_pil_owlv2.py): a Gaussian filter and a zoom. Smooth images do not tell it from a resize.
    vision = hf.Owlv2VisionConfig(**SMALL, image_size=480, patch_size=240)
    hf.Owlv2VisionModel(vision).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Owlv2ImageProcessor", "size": {"height": 480, "width": 480}})
    )
    with pytest.raises(InputError, match="whose Owlv2ImageProcessor makes other pixels than its settings say"):
        find_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image_size": "32"}, "Validation error for field 'image_size': TypeError: Field 'image_size'"),
        ({"num_attention_heads": 3}, "Class validation error for validator 'validate_architecture': ValueError: "),
    ],
)
def test_a_value_that_a_strict_configuration_refuses_is_one_line(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    folder = _folder(CASES["clip"], tmp_path)
    _edit(folder / "config.json", **changes)
    with pytest.raises(InputError, match=re.escape(f"which does not load ({why}")) as error:
        find_encoder(str(folder))
    assert "\n" not in str(error.value)


def test_no_processor_is_one_line(vit: Path) -> None:
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"without preprocessor_config.json or processor_config.json; expected the image processor"):
        find_encoder(str(vit))


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (hf.Siglip2VisionConfig(**SMALL), r"\(siglip2_vision_model\), whose images are lists of patches \(NaFlex\)"),
        (hf.GroupViTVisionConfig(**SMALL), r"\(groupvit_vision_model\), which returns groups and no patches"),
        (hf.YolosConfig(**SMALL), r"\(yolos\), which detects objects"),
        (hf.VideoMAEConfig(**SMALL), r"\(videomae\), which reads videos"),
        (hf.BertConfig(), "of type 'bert'; expected an image encoder of open_clip, timm or transformers"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_model_that_gives_no_patches_of_an_image_is_one_line(tmp_path: Path, config: Any, why: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=why) as error:
        find_encoder(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size_px", [7, 4, 100])
def test_a_size_that_is_no_number_of_patches_is_refused(vit: Path, size_px: int) -> None:
    with pytest.raises(InputError, match=rf"got --encoder-size {size_px} for model; expected a multiple of its patches' 8 px; give"):
        find_encoder(str(vit), size_px)


def test_another_size_is_another_column_and_in_the_fingerprint(vit: Path) -> None:
    own, other = find_encoder(str(vit)), find_encoder(str(vit), 64)
    assert (own.name, other.name) == ("model", "model-64px")
    assert own.fingerprint()["preprocessing"] != other.fingerprint()["preprocessing"]
    assert find_encoder(str(vit), 32) == own


def test_fingerprints_of_earlier_stores_are_still_those() -> None:
    # As the version before image processors were followed recorded them.
    assert find_encoder("vit-demo").fingerprint()["preprocessing"] == {
        "size_px": 64,
        "mean": (0.8, 0.75, 0.7),
        "std": (0.3, 0.3, 0.35),
        "interpolation": "bicubic",
    }
    assert find_encoder("clip-demo").fingerprint()["preprocessing"] == find_encoder("vit-demo").fingerprint()["preprocessing"]


def test_positions_of_open_clip_are_interpolated_as_it_does(tmp_path: Path, compute: Compute) -> None:
    folder = embedded_model("clip-demo")
    encoder = ImageEncoder(find_encoder("clip-demo", 96), compute)
    in_float32 = Path(shutil.copytree(folder, tmp_path / "float32"))
    weights = {name: value.float() for name, value in load_file(folder / "open_clip_model.safetensors").items()}
    save_file(weights, in_float32 / "open_clip_model.safetensors", metadata={"format": "pt"})
    model = open_clip.create_model(f"local-dir:{in_float32}", force_image_size=96).eval()
    with torch.inference_mode():
        expected = model.visual(encoder.pixels(_tensor(_image())))
        tokens = encoder._tower(encoder.pixels(_tensor(_image())))
        assert tokens.shape == (1, 37, 128)
        assert (tokens[:, 0] @ model.visual.proj - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("how", [{"resize_mode": mode} for mode in ("shortest", "longest", "squash")] + [{"mean": 0.5, "std": 0.5}])
def test_pixels_of_open_clip_are_those_of_its_own_transform(tmp_path: Path, compute: Compute, how: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(embedded_model("clip-demo"), tmp_path / "clip"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    _edit(folder / "open_clip_config.json", preprocess_cfg={**config["preprocess_cfg"], "fill_color": 7, **how})
    files = find_encoder(str(folder))
    large = Image.fromarray(_image()).resize((96, 96))
    # What open_clip 3.3 does to a square image in each mode: PIL's resize, and for the longest edge a crop of nothing.
    small = _tensor(np.asarray(large.resize((64, 64), Image.Resampling.BICUBIC)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (files.preprocessing.mean, files.preprocessing.std))
    ours = ImageEncoder(files, compute).pixels(_tensor(np.asarray(large)))
    assert (ours - (small - mean) / std).abs().max() <= LEVEL / min(files.preprocessing.std)
    assert "mean" not in how or files.preprocessing.mean == (0.5, 0.5, 0.5)


def test_an_interpolation_that_open_clip_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_model("clip-demo"), tmp_path / "clip"))
    _edit(folder / "open_clip_config.json", preprocess_cfg={"interpolation": "lanczos"})
    with pytest.raises(InputError, match="resized with 'lanczos'; expected bicubic or bilinear"):
        find_encoder(str(folder))


def _tower_dtypes(files: EncoderFiles, dtype: Any) -> set[torch.dtype]:
    return {parameter.dtype for parameter in ImageEncoder(files, resolve_compute("cpu", dtype, half="float16"))._tower.parameters()}


def test_weights_of_mixed_dtypes_are_read_in_the_dtype_that_is_computed_in(vit: Path, compute: Compute) -> None:
    # Without a dtype transformers would load all of the model in that of the first tensor by name: here float16, in which 1e5 is infinite.
    config = json.loads((vit / "config.json").read_text())
    config.pop("dtype")
    (vit / "config.json").write_text(json.dumps(config))
    weights = load_file(vit / "model.safetensors")
    first, large = sorted(weights)[0], "layernorm.bias"
    weights[first] = weights[first].half()
    weights[large] = torch.full_like(weights[large], 1e5)
    save_file(weights, vit / "model.safetensors", metadata={"format": "pt"})
    files = find_encoder(str(vit))
    assert _tower_dtypes(files, "float32") == {torch.float32}
    with torch.inference_mode():
        assert ImageEncoder(files, compute)._tower(torch.zeros(1, 3, 32, 32)).isfinite().all()


def test_weights_that_are_missing_are_told_and_never_random(vit: Path, compute: Compute) -> None:
    weights = load_file(vit / "model.safetensors")
    missing = next(name for name in sorted(weights) if "layer" in name)
    save_file({name: value for name, value in weights.items() if name != missing}, vit / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"which does not load \(no weights for layers.0.attention.k_proj.bias\)"):
        ImageEncoder(find_encoder(str(vit)), compute)


@pytest.mark.parametrize("name", ["dinov2", "vit"])
def test_weights_of_another_shape_than_configured_are_named(tmp_path: Path, compute: Compute, name: str) -> None:
    folder = _folder(CASES[name], tmp_path)
    weights = load_file(folder / "model.safetensors")
    last = max(weight for weight in weights if weight.startswith("layernorm"))
    save_file({**weights, last: torch.zeros(48)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"\({last} is 48 in its file and 32 by config.json\)"):
        ImageEncoder(find_encoder(str(folder)), compute)


@pytest.mark.parametrize("name", ["dinov2", "vit", "clip"])
def test_a_configuration_that_asks_for_tuples_is_read_as_any_other(tmp_path: Path, compute: Compute, name: str) -> None:
    folder = _folder(CASES[name], tmp_path)
    expected = ImageEncoder(find_encoder(str(folder)), compute).encode(_tensor(_image()))
    _edit(folder / "config.json", return_dict=False)
    assert torch.equal(ImageEncoder(find_encoder(str(folder)), compute).encode(_tensor(_image())), expected)


def test_the_clip_inside_a_segmenter_is_read(tmp_path: Path, compute: Compute) -> None:
    # The one form in which CLIPSeg is published.
    vision, text = {**SMALL, "image_size": 32, "patch_size": 8}, {**SMALL, "vocab_size": 16}
    config = hf.CLIPSegConfig(vision_config=vision, text_config=text, projection_dim=8, extract_layers=[0, 1])
    model = hf.CLIPSegForImageSegmentation(config).eval()
    hf.ViTImageProcessor(size=SQUARE).save_pretrained(tmp_path)
    tower, pixels = model.clip.vision_model, torch.randn(1, 3, 32, 32)
    for saved in (model, model.clip):
        saved.save_pretrained(tmp_path)
        with torch.inference_mode():
            expected = tower.post_layernorm(tower(pixel_values=pixels).last_hidden_state)
            assert torch.equal(ImageEncoder(find_encoder(str(tmp_path)), compute)._tower(pixels), expected)


def test_a_folder_with_half_precision_files_only_is_read(vit: Path, compute: Compute) -> None:
    plain = ImageEncoder(find_encoder(str(vit)), compute).encode(_tensor(_image()))
    save_file(
        {name: value.half() for name, value in load_file(vit / "model.safetensors").items()},
        vit / "model.fp16.safetensors",
        metadata={"format": "pt"},
    )
    (vit / "model.safetensors").unlink()
    files = find_encoder(str(vit))
    assert files.variant == "fp16"
    assert (ImageEncoder(files, compute).encode(_tensor(_image())) - plain).abs().max() < 0.1


@pytest.mark.parametrize("name", ["weights.safetensors", "no/such.safetensors", "model.ckpt"])
def test_a_single_file_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=rf"got --encoders {re.escape(name)}, (a single file|which is no file); expected a folder"):
        find_encoder(name)


def test_an_empty_name_is_not_the_working_folder() -> None:
    with pytest.raises(InputError, match="got --encoders ''; expected a preset"):
        find_encoder("")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "whose weights are quantized"),
        ("config.json", {"num_channels": 1}, "for images of 1 channels; expected 3"),
        ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "divided by the standard deviations 0, 0, 0; expected positive numbers"),
        ("adapter_config.json", {"peft_type": "LORA"}, r"with an adapter beside its weights \(adapter_config.json\); .*merge it"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_in_one_line(vit: Path, file: str, changes: dict[str, Any], message: str) -> None:
    if not (vit / file).exists():
        (vit / file).write_text("{}")
    _edit(vit / file, **changes)
    with pytest.raises(InputError, match=message) as error:
        find_encoder(str(vit))
    assert str(error.value).count("expected") == 1


def test_what_a_configuration_says_about_the_models_return_value_does_not_matter(vit: Path, compute: Compute) -> None:
    before = ImageEncoder(find_encoder(str(vit)), compute).encode(_tensor(_image()))
    _edit(vit / "config.json", return_dict=False, output_hidden_states=True)
    assert torch.equal(ImageEncoder(find_encoder(str(vit)), compute).encode(_tensor(_image())), before)
