"""Our loop beside diffusers' pipelines, and featurize beside the calls that one image needs: both sides do the same work."""

from pathlib import Path

import pytest
import torch

from benchmarks.cli import main
from benchmarks.featurize.plain_diffusers import parts_may_lack_labels
from benchmarks.generators import family_speed
from benchmarks.generators.family_speed import FEATURIZE, FORWARDS, LIBRARY, OURS, REAL, WAYS, both_loops, one_image, promises
from benchmarks.generators.prx_folder import PRX_256, SMALL_PRX, meta_transformer, prx_folder
from benchmarks.generators.recorded_calls import recorded_calls, replay
from benchmarks.generators.tiny_pipelines import PIPELINES
from featurize.generate.generators import find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from lugpi_core.runtime.device import resolve_compute


@pytest.fixture(scope="module")
def prx(tmp_path_factory: pytest.TempPathFactory) -> TextToImage:
    folder = prx_folder(tmp_path_factory.mktemp("prx") / "small", SMALL_PRX)
    generator = find_generator(str(folder), generator_settings(str(folder), {"steps": 2, "guidance": 1.0}), half=False)
    return TextToImage(generator, resolve_compute("cpu", "float32", half="float16"))


def test_the_calls_of_an_image_are_recorded_and_can_be_made_again(prx: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded_calls(prx, "a cat", 0)
    assert [call.part for call in calls] == ["text_encoder", "transformer", "transformer", "vae"]
    assert "decode" not in vars(prx.parts.vae)
    made: list[torch.Tensor] = []
    decode = prx.parts.vae.decode
    monkeypatch.setattr(prx.parts.vae, "decode", lambda *arguments, **named: made.append(arguments[0]) or decode(*arguments, **named))
    replay(prx, calls)
    assert [latents.shape for latents in made] == [(1, 16, 8, 8)]


def test_the_transformer_has_the_real_size() -> None:
    parameters = sum(parameter.numel() for parameter in meta_transformer(PRX_256).parameters())
    assert parameters == 1_170_691_648


def test_both_loops_of_a_family_are_timed(tmp_path: Path) -> None:
    found = both_loops(tmp_path, "auraflow", WAYS["auraflow"], repeats=1)
    assert found["ratio"] == pytest.approx(found["rounds_s"][OURS][0] / found["rounds_s"][LIBRARY][0], rel=0.01)
    assert {name: len(rounds) for name, rounds in found["rounds_s"].items()} == {OURS: 1, LIBRARY: 1}


def test_one_image_is_timed_in_both_ways(tmp_path: Path) -> None:
    with parts_may_lack_labels():
        found = one_image(tmp_path, SMALL_PRX, "ViT-S-32", 1)
    assert {name: len(rounds) for name, rounds in found["rounds_s"].items()} == {FEATURIZE: 1, FORWARDS: 1}


def test_every_family_of_the_table_is_one_that_is_built() -> None:
    assert set(WAYS) <= set(PIPELINES)


def test_promises_are_kept_up_to_their_limits() -> None:
    figures = {"prx": {"ratio": 1.0}, "sana": {"ratio": 1.001}, REAL: {"ratio": 1.03}}
    assert [(one["what"], one["at_most"], one["met"]) for one in promises(figures)] == [
        ("prx", 1.0, True),
        ("sana", 1.0, False),
        (REAL, 1.03, True),
    ]


def test_the_command_measures_the_families_that_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured: list[str] = []

    def loops(folder: Path, family: str, way: object, *, repeats: int) -> dict[str, float]:
        measured.append(f"{family} {repeats}")
        return {"ratio": 0.9}

    monkeypatch.setattr(family_speed, "both_loops", loops)
    assert main(["families", "--smoke", "--families", "prx", "sd3"]) == 0
    assert measured == ["prx 1", "sd3 1"]
    assert '"met": true' in capsys.readouterr().out


def test_an_unknown_family_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "--families", "flux3"]) == 2
    assert "got --families flux3" in capsys.readouterr().err
