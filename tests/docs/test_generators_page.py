"""The table of presets on docs/generators.md says what the presets are, what they read, and the work that was counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generators.real_configs import MODELS, real_generator
from benchmarks.harness import RESULTS
from featurize.cost.stage_cost import image_flops, stage_flops
from featurize.generate.generators import find_generator
from featurize.generate.presets import EMBEDDED_GENERATORS, PRESETS
from tests.support.checkout import ROOT

RECORD: dict[str, Any] = json.loads(sorted(RESULTS.glob("card_*.json"))[-1].read_text())["figures"]["presets"]
# Stable Diffusion 2 at 512 px: work of its decoder, and of a row of its UNet by the work of 20 guided steps.
_DECODER = 2.515
_UNET_ROW = (RECORD["fast"]["tflop"] - _DECODER) / 40


def _table() -> dict[str, list[str]]:
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "docs" / "generators.md").read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in PRESETS}


def test_the_table_has_every_preset_as_it_is() -> None:
    table = _table()
    assert list(table) == list(PRESETS)
    for name, preset in PRESETS.items():
        model, license, size_px, _, settings, *_ = (cell.strip(" |") for cell in table[name])
        assert model == " + ".join(filter(None, (preset.sources[0] if preset.sources else "embedded", preset.denoiser)))
        assert license == preset.license
        assert size_px.removeprefix("**").split("**")[0] == str(preset.size_px)
        assert settings == f"{preset.steps}, {preset.guidance:g}"


def test_the_table_says_how_many_tokens_are_read(tmp_path: Path) -> None:
    for name, row in _table().items():
        if name in EMBEDDED_GENERATORS:
            read = find_generator(name, PRESETS[name], half=False).family.tokens_read
        else:
            read = real_generator(tmp_path / name, name).family.tokens_read if name in MODELS else 77
        assert int(row[3]) == read, name


def test_the_table_has_the_work_that_was_counted() -> None:
    for name, row in _table().items():
        preset, stated = PRESETS[name], float(row[5].strip(" |"))
        if name in EMBEDDED_GENERATORS:
            generator = find_generator(name, preset, half=False)
            work = image_flops(generator, stage_flops(generator, ())) / 1e12
        elif name in RECORD:
            work = RECORD[name]["tflop"]
        elif preset.size_px == PRESETS["paper"].size_px:
            assert (preset.steps, preset.guidance) == (PRESETS["paper"].steps, PRESETS["paper"].guidance)
            work = RECORD["paper"]["tflop"]
        else:
            work = _DECODER + _UNET_ROW * preset.steps * (2 if preset.guidance > 1 else 1)
        assert stated == pytest.approx(work, rel=0.01), name
