"""The presets on a card of 24 GB: what is recorded fits; the real configurations have the stated sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.generators.card_memory import on_card
from benchmarks.generators.full_prompts import FullPrompts
from benchmarks.generators.real_configs import MODELS, real_generator
from benchmarks.harness import RESULTS
from featurize.cost.stage_memory import denoiser_part

RECORD: dict[str, Any] = json.loads(sorted(RESULTS.glob("card_*.json"))[-1].read_text())["figures"]["presets"]


def test_every_recorded_preset_fits_into_22_gb_in_every_stage() -> None:
    assert set(RECORD) == set(MODELS)
    for preset, figures in RECORD.items():
        assert max(figures["peak_gb"].values()) <= 22, preset
        assert figures["batch"]["denoise"] == 32, preset


@pytest.mark.parametrize(("preset", "billions"), [("flux2-klein", 3.88), ("z-image-turbo", 6.15), ("sana-sprint", 1.6)])
def test_the_real_configurations_have_the_published_sizes(tmp_path: Path, preset: str, billions: float) -> None:
    denoiser = denoiser_part(real_generator(tmp_path, preset), torch.bfloat16, "cuda")
    assert sum(weight.numel() for weight in denoiser.model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)


def test_full_prompts_are_as_long_as_they_may_be() -> None:
    tokenizer = FullPrompts(5)
    assert tokenizer(["a", "b"], max_length=5)["input_ids"] == [[1] * 5] * 2
    assert len(tokenizer.encode("four words of English")) == 5
    assert tokenizer(tokenizer.apply_chat_template([]))["input_ids"] == [1]


@pytest.mark.soak
@pytest.mark.parametrize("preset", MODELS)
def test_the_record_is_what_is_counted(tmp_path: Path, preset: str) -> None:
    assert on_card(real_generator(tmp_path, preset)) == RECORD[preset]
