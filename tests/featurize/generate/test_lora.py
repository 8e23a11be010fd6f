"""LoRA files fused into a generator: the weights that diffusers' own pipeline has after fusing, in the fingerprint, or one line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.parts import load_parts
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute
from tests.support.tiny_pipelines import library_pipeline, tiny_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CPU = torch.device("cpu")
ATTENTION, CLIP = ["to_q", "to_k", "to_v"], ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def compute() -> Compute:
    return resolve_compute("cpu", "float32", half="float16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline("stable-diffusion", tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    return _lora(folder, folder.parent / "style.safetensors", ("unet", "text_encoder"))


def _lora(folder: Path, path: Path, parts: tuple[str, ...], *, seed: int = 0) -> Path:
    """Write a random LoRA for some parts of a pipeline, as its training scripts do."""
    torch.manual_seed(seed)
    pipeline = library_pipeline(folder)
    layers = {}
    for part in parts:
        model = getattr(pipeline, part)
        targets = CLIP if part.startswith("text_encoder") else ATTENTION
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=targets))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
    type(pipeline).save_lora_weights(path.parent, weight_name=path.name, **layers)
    return path


def _find(source: Path, *loras: str | Path) -> Generator:
    given = {"steps": 2, "guidance": 1.0, "lora": tuple(map(str, loras))}
    return find_generator(str(source), generator_settings(str(source), given), half=False)


def _weights(generator: Generator) -> dict[str, dict[str, torch.Tensor]]:
    parts = load_parts(generator, torch.float32, None, CPU)
    models = {generator.family.denoiser: parts.denoiser, **parts.text_encoders}
    return {name: model.state_dict() for name, model in models.items()}


def _library(folder: Path, *loras: tuple[Path, float]) -> Any:
    pipeline = library_pipeline(folder)
    for path, scale in loras:
        pipeline.load_lora_weights(path)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    return pipeline


def _equal(ours: dict[str, dict[str, torch.Tensor]], pipeline: Any) -> None:
    for part, weights in ours.items():
        theirs = getattr(pipeline, part).state_dict()
        assert weights.keys() <= theirs.keys(), part  # layers that nobody reads are not loaded
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights.items()), part


def test_a_lora_is_fused_as_diffusers_fuses_it(folder: Path, lora: Path) -> None:
    fused = _weights(_find(folder, f"{lora}:0.7"))
    _equal(fused, _library(folder, (lora, 0.7)))
    plain = _weights(_find(folder))
    for part in ("unet", "text_encoder"):
        assert any(not torch.equal(tensor, plain[part][name]) for name, tensor in fused[part].items())


def test_several_loras_are_fused_in_their_order(folder: Path, lora: Path, tmp_path: Path) -> None:
    second = _lora(folder, tmp_path / "second.safetensors", ("unet",), seed=1)
    _equal(_weights(_find(folder, f"{lora}:0.5", second)), _library(folder, (lora, 0.5), (second, 1.0)))


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("sdxl", ("unet", "text_encoder", "text_encoder_2")),
        ("sd3", ("transformer",)),
        ("flux-dev", ("transformer",)),
        ("flux2-klein", ("transformer",)),
        ("sana-sprint", ("transformer",)),
        ("z-image", ("transformer",)),
    ],
)
def test_a_lora_of_other_families(tmp_path: Path, family: str, parts: tuple[str, ...]) -> None:
    folder = tiny_pipeline(family, tmp_path / family)
    lora = _lora(folder, tmp_path / "lora.safetensors", parts)
    ours, pipeline = _weights(_find(folder, f"{lora}:0.7")), _library(folder, (lora, 0.7))
    _equal({part: ours[part] for part in parts}, pipeline)


def test_kohyas_form_with_its_alphas(folder: Path, tmp_path: Path) -> None:
    pieces = load_file(_lora(folder, tmp_path / "lora.safetensors", ("unet",)))
    kohya: dict[str, torch.Tensor] = {}
    for name, tensor in pieces.items():
        layer, _, matrix = name.removeprefix("unet.").partition(".lora_" if ".lora_A" in name or ".lora_B" in name else ".lora.")
        place = "lora_unet_" + layer.replace(".", "_")
        kohya[f"{place}.lora_{'down' if matrix.startswith(('A', 'down')) else 'up'}.weight"] = tensor
        kohya[f"{place}.alpha"] = torch.tensor(1.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    _equal(_weights(_find(folder, tmp_path / "kohya.safetensors")), _library(folder, (tmp_path / "kohya.safetensors", 1.0)))


@pytest.mark.parametrize(("family", "names"), [("stable-diffusion", ("te",)), ("sdxl", ("te1", "te2"))])
def test_kohyas_form_of_text_encoders(tmp_path: Path, family: str, names: tuple[str, ...]) -> None:
    base = tiny_pipeline(family, tmp_path / "base")
    kohya: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    for name, part in zip(names, ("text_encoder", "text_encoder_2"), strict=False):
        for layer, weight in load_file(base / part / "model.safetensors").items():
            # diffusers 0.42.1 knows the form by the out_proj of some layer, and takes none without (convert_state_dict_to_diffusers).
            if ".layers.0." in layer and layer.endswith(("_proj.weight", "fc1.weight")):
                place = f"lora_{name}_text_model_{layer.removeprefix('text_model.').removesuffix('.weight').replace('.', '_')}"
                kohya |= {f"{place}.lora_down.weight": torch.randn(2, weight.shape[1]), f"{place}.alpha": torch.tensor(1.0)}
                kohya[f"{place}.lora_up.weight"] = torch.randn(weight.shape[0], 2)
    save_file(kohya, tmp_path / "kohya.safetensors")
    fused = _weights(_find(base, f"{tmp_path / 'kohya.safetensors'}:0.7"))
    _equal(fused, _library(base, (tmp_path / "kohya.safetensors", 0.7)))
    plain = _weights(_find(base))
    for part in fused.keys() - {"unet"}:
        assert any(not torch.equal(weight, plain[part][name]) for name, weight in fused[part].items()), part


def test_a_lora_is_part_of_the_fingerprint_with_its_scale_and_not_its_place(folder: Path, lora: Path, tmp_path: Path) -> None:
    moved = shutil.copy(lora, tmp_path / "renamed.safetensors")
    plain, fused = _find(folder).fingerprint(), _find(folder, lora).fingerprint()
    assert "loras" not in plain
    assert {name: value for name, value in fused.items() if name != "loras"} == plain
    assert _find(folder, moved).fingerprint() == _find(folder, f"{moved}:1").fingerprint() == fused
    assert _find(folder, f"{moved}:0.9").fingerprint() != fused


def test_a_lora_for_another_model_is_one_line(folder: Path, lora: Path, tmp_path: Path) -> None:
    xl = tiny_pipeline("sdxl", tmp_path / "sdxl")
    for_xl = _lora(xl, tmp_path / "xl.safetensors", ("unet", "text_encoder_2"))
    tensors = load_file(lora)
    name = next(name for name in tensors if name.startswith("unet."))
    odd = {name.replace("down_blocks.0", "down_blocks.7"): tensors[name].clone(), **tensors}
    save_file(odd, tmp_path / "odd.safetensors")
    save_file({key: torch.zeros(3, 5) for key in tensors}, tmp_path / "shapes.safetensors")
    save_file(
        {key.removeprefix("unet."): tensor for key, tensor in tensors.items() if key.startswith("unet.")}, tmp_path / "bare.safetensors"
    )
    for file, told in {
        for_xl: "tensors are for text_encoder_2",
        tmp_path / "odd.safetensors": "",
        tmp_path / "shapes.safetensors": "",
        tmp_path / "bare.safetensors": "tensors are for ",
    }.items():
        with pytest.raises(
            InputError, match=f"{file.name}, which does not fit .*{told}.*; expected a LoRA that was trained for this"
        ) as error:
            _weights(_find(folder, file))
        assert "\n" not in str(error.value)


def test_what_is_no_lora_is_one_line(folder: Path, lora: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({"x.lora_A.weight": torch.zeros(1), "x.dora_scale": torch.zeros(1)}, tmp_path / "dora.safetensors")
    (tmp_path / "old.pt").write_bytes(b"pickle")
    for given, told in {
        f"{lora}:much": "expected FILE or FILE:SCALE with a finite number; give for instance",
        f"{lora}:nan": "expected FILE or FILE:SCALE",
        "none.safetensors": "which is no file",
        "none.safetensors:0.5": "which is no file",
        str(tmp_path): r"a folder; .*; give .*dora.safetensors",
        str(tmp_path / "old.pt"): "which is not .safetensors",
        str(tmp_path / "other.safetensors"): "which has no LoRA weights",
        str(tmp_path / "dora.safetensors"): "a DoRA; expected a LoRA",
    }.items():
        with pytest.raises(InputError, match=f"got --lora .*{told}"):
            _find(folder, given)


def test_without_peft_a_lora_is_one_line(folder: Path, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"without the package peft; .*; install lugpi\[lora\]"):
        _find(folder, lora)


def test_a_family_for_which_diffusers_reads_no_lora_is_one_line(lora: Path, tmp_path: Path) -> None:
    for name, kind in {"pixart-sigma": "PixArtSigmaPipeline", "ovis": "OvisImagePipeline", "longcat": "LongCatImagePipeline"}.items():
        folder = tiny_pipeline(name, tmp_path / name)
        with pytest.raises(InputError, match=f"for a {kind}, for which diffusers reads no LoRA; .*; leave out --lora, or fuse it"):
            _find(folder, lora)


def test_a_folder_saved_with_a_lora_inside_is_one_line(folder: Path, lora: Path, tmp_path: Path) -> None:
    pipeline = library_pipeline(folder)
    pipeline.load_lora_weights(lora)
    pipeline.save_pretrained(tmp_path / "inside")
    with pytest.raises(InputError, match=r"text_encoder, of which only a LoRA was saved; .* after fuse_lora\(\)"):
        _find(tmp_path / "inside")
    shutil.rmtree(tmp_path / "inside" / "text_encoder")
    shutil.copytree(folder / "text_encoder", tmp_path / "inside" / "text_encoder")
    with pytest.raises(InputError, match=r"unet, which was saved with a LoRA inside .*; save it in Python after fuse_lora\(\)"):
        load_parts(_find(tmp_path / "inside"), torch.float32, None, CPU)
