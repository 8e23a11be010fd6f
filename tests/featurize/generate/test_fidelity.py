"""``--fidelity``: which shortcuts it stands for, by generator, beside those that are given."""

from pathlib import Path
from typing import Any

import pytest

from featurize.generate.denoiser_rows import denoiser_rows
from featurize.generate.fidelity import FEWEST_STEPS, SHORTCUTS
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.options import Fidelity
from lugpi_core.errors import InputError
from tests.support.tiny_pipelines import tiny_pipeline

PLAIN = {"guidance_interval": None, "guidance_reuse": False, "deepcache": 1, "deepcache_cut": "level"}


def _find(name: str = "demo", **settings: Any) -> Generator:
    return find_generator(name, generator_settings(name, {"steps": 20, **settings}), half=False)


def _shortcuts(generator: Generator) -> dict[str, Any]:
    return {name: getattr(generator.settings, name) for name in PLAIN}


@pytest.mark.parametrize("fidelity", ["balanced", "fast"])
def test_each_generator_takes_the_shortcuts_that_it_has(fidelity: Fidelity) -> None:
    of_unet, of_transformer = (SHORTCUTS[fidelity][kind] for kind in ("unet", "transformer"))
    assert _shortcuts(_find(fidelity=fidelity)) == {**PLAIN, **of_unet}
    assert _shortcuts(_find("demo-flow", fidelity=fidelity)) == {**PLAIN, **of_transformer}
    unguided = {name: value for name, value in of_unet.items() if name.startswith("deepcache")}
    assert _shortcuts(_find(fidelity=fidelity, guidance=1.0)) == {**PLAIN, **unguided}


def test_the_fingerprint_has_the_shortcuts_and_not_their_name() -> None:
    plain, balanced = _find(), _find(fidelity="balanced")
    assert _find(fidelity="high").fingerprint() == plain.fingerprint()
    assert balanced.fingerprint() == _find(**SHORTCUTS["balanced"]["unet"]).fingerprint()
    assert balanced.fingerprint() != plain.fingerprint()


def test_a_faster_one_reads_fewer_rows() -> None:
    rows = [denoiser_rows(_find(fidelity=fidelity)) for fidelity in ("high", "balanced", "fast")]
    assert rows[0].total == rows[0].whole == 40
    assert rows[0].whole > rows[1].whole > rows[2].whole


@pytest.mark.parametrize(
    ("given", "rest"),
    [
        ({"guidance_interval": "0.2:0.7"}, "deepcache"),
        ({"guidance_interval": "0:1"}, "deepcache"),
        ({"guidance_interval": "0:0.5", "guidance_reuse": True}, "deepcache"),
        ({"guidance_interval": "0:0.5", "guidance_reuse": False}, "deepcache"),
        ({"guidance_reuse": True}, ""),
        ({"deepcache": 5}, "guidance"),
        ({"deepcache": 1}, "guidance"),
        ({"deepcache_cut": "level"}, ""),
        ({"deepcache_cut": "layer"}, ""),
        ({"deepcache": 3, "deepcache_cut": "layer"}, "guidance"),
    ],
)
def test_what_is_given_stands_and_the_rest_is_the_presets(given: dict[str, Any], rest: str) -> None:
    others = {name: value for name, value in SHORTCUTS["balanced"]["unet"].items() if name.startswith(rest)}
    drawn = {name: None if value == "0:1" else value for name, value in given.items()}
    assert _shortcuts(_find(fidelity="balanced", **given)) == {**PLAIN, **others, **drawn}


def test_what_a_shortcut_keeps_can_be_switched_off() -> None:
    assert _shortcuts(_find("demo-flow", fidelity="fast", guidance_reuse=False)) == {**PLAIN, "guidance_interval": "0:0.25"}
    assert _shortcuts(_find("demo-flow", fidelity="fast", guidance_interval="0:0.5")) == {**PLAIN, "guidance_interval": "0:0.5"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("demo-flow", {"deepcache_cut": "layer"}, "got --deepcache-cut layer without --deepcache; .*; leave out --deepcache-cut"),
        ("demo", {"deepcache_cut": "layer", "deepcache": 1}, "got --deepcache-cut layer without --deepcache; .*; give for instance"),
        ("demo", {"guidance_reuse": True, "guidance": 1.0}, "got --guidance-reuse without .*; leave out --guidance-reuse"),
    ],
)
def test_a_refinement_of_a_shortcut_that_the_generator_lacks_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _find(name, fidelity="balanced", **settings)


@pytest.mark.parametrize(
    ("name", "settings", "lacks"),
    [
        ("demo", {"steps": FEWEST_STEPS - 1}, f"in {FEWEST_STEPS - 1} steps"),
        ("demo-flow", {"guidance": 1.0}, "without guidance and without a UNet"),
    ],
)
def test_a_generator_with_nothing_to_leave_out_is_refused(name: str, settings: dict[str, Any], lacks: str) -> None:
    with pytest.raises(
        InputError, match=rf"got --fidelity balanced for .* {lacks}; expected {FEWEST_STEPS} steps or more, .*; leave out --fid"
    ):
        _find(name, fidelity="balanced", **settings)


def test_embedded_guidance_is_none_to_leave_out(tmp_path: Path) -> None:
    folder = str(tiny_pipeline("flux-dev", tmp_path / "generator"))
    with pytest.raises(InputError, match="without guidance and without a UNet"):
        _find(folder, fidelity="fast")


def test_the_line_about_the_generator_names_the_shortcuts() -> None:
    words = _find(guidance_interval="0:0.5", guidance_reuse=True, deepcache=3, deepcache_cut="layer").words()
    assert "guidance 3, guided in 0:0.5 of the steps with the last difference after it, DeepCache 3 at the last layer, 64 px" in words
