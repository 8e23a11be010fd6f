"""The benchmark of shortcuts: which claims hold, what an image is put together from, and which cases share their latents."""

import csv
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generators.shortcut_claims import claims, table
from benchmarks.generators.shortcut_speed import _ALL_KINDS, _KINDS, _generator, _image, _kinds_of
from benchmarks.generators.shortcuts import BALANCED, SEEDS, WHOLE, _glosses, _runs
from benchmarks.options import ShortcutOptions
from featurize.generate.denoiser_rows import denoiser_rows
from lugpi_core.corpora.demo import DEMO_CSV
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusOptions
from lugpi_core.errors import InputError

COUNTED = {"balanced": {"of_high": 0.4}}


def _figures(*, seed: float, balanced: float, probe: float | None) -> dict[str, Any]:
    return {
        "demo": {
            "probe_of_seeds": None if probe is None else {"mean": 0.5, "sd": 0.02},
            SEEDS[1]: {"cosine": seed},
            BALANCED: {"cosine": balanced, "probe": probe},
        }
    }


def _met(found: dict[str, Any]) -> list[bool | None]:
    return [claim["met"] for claim in found.values()]


def test_tokens_must_be_nearer_than_half_of_the_way_from_another_seed() -> None:
    assert _met(claims(_figures(seed=0.6, balanced=0.8, probe=0.52), COUNTED, {"times_faster": {"balanced": 1.9}})) == [True] * 4
    assert _met(claims(_figures(seed=0.6, balanced=0.79, probe=0.53), COUNTED, {"times_faster": {"balanced": 1.8}})) == [
        False,
        False,
        True,
        False,
    ]


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert _met(claims(_figures(seed=0.6, balanced=0.9, probe=None), COUNTED, None)) == [True, None, True, None]
    assert list(claims({"demo": {}}, COUNTED, None)) == ["fast: work", "Stable Diffusion 2: times faster"]


@pytest.mark.parametrize("fidelity", ["high", "balanced", "fast"])
def test_the_kinds_of_steps_have_the_rows_of_the_image(fidelity: str) -> None:
    generator = _generator("demo", 64, steps=20, fidelity=fidelity)
    kinds, rows = _kinds_of(generator), denoiser_rows(generator)
    assert kinds.total() == 20
    for name, count in (("whole", rows.whole), ("reusing", rows.reused)):
        assert 2 * kinds[f"guided, {name}"] + kinds[f"unguided, {name}"] == count


def test_the_steps_that_are_timed_are_of_the_kinds_that_they_are_called() -> None:
    assert list(_kinds_of(_generator("demo", 64, **_ALL_KINDS))) == list(_KINDS)


def test_the_test_glosses_are_spread_over_all_of_them(tmp_path: Path) -> None:
    with _glosses(ShortcutOptions(runs=tmp_path, test_texts=1500)).open(newline="") as file:
        kept = [row["id"] for row in csv.DictReader(file) if row["split"] == "test"]
    with DEMO_CSV.open(newline="") as file:
        tests = [row["id"] for row in csv.DictReader(file) if row["split"] == "test"]
    assert len(kept) == 1500
    assert tests.index(kept[-1]) > 0.99 * len(tests)


def test_an_image_takes_its_steps_and_its_decoding_of_one_round() -> None:
    seconds = {"guided, whole": [2.0, 4.0], "unguided, reusing": [0.5, 0.25], "decoding": [1.0, 10.0]}
    assert _image({"guided, whole": 3, "unguided, reusing": 2}, seconds, 1, "decoding") == 3 * 4 + 2 * 0.25 + 10


def test_cases_of_the_same_latents_are_drawn_once(tmp_path: Path) -> None:
    options = ShortcutOptions(runs=tmp_path, test_texts=24)
    runs = {run.name: run for run in _runs(options, "demo-flow", tmp_path / "glosses.csv")}
    assert runs["tiny decoder"].folder == runs["half decoder"].folder == runs[WHOLE].folder
    assert (runs["tiny decoder"].column, runs["half decoder"].column) == ("clip-demo-tiny", "clip-demo-half")
    assert runs["guided in 0:0.5"].folder == runs[BALANCED].folder, "which is what it sets without a UNet"
    assert len({run.folder for run in runs.values()}) == len(runs) - 4
    assert not any("DeepCache" in name for name in runs)


@pytest.mark.parametrize("is_smoke", [False, True])
def test_all_glosses_but_most_of_the_tests_are_drawn(tmp_path: Path, is_smoke: bool) -> None:
    path = _glosses(ShortcutOptions(runs=tmp_path, test_texts=48, smoke=is_smoke))
    examples = load_corpus(str(path), CorpusOptions(dataset=str(path), split_column="split")).examples
    counts = [sum(example.split == split for example in examples) for split in ("train", "validation", "test")]
    assert counts == ([12, 12, 12] if is_smoke else [480, 240, 48])
    with path.open(newline="") as file:
        assert len(list(csv.reader(file))) == sum(counts) + 1


def test_no_test_gloss_is_refused() -> None:
    with pytest.raises(InputError, match="got --test-texts 0; expected at least 1"):
        ShortcutOptions(test_texts=0)


def test_the_table_has_what_was_measured() -> None:
    counted = {"rows": 40, "reused_rows": 0, "gflop": 6.1352, "times_faster": 1.0}
    probed = {"cosine": 0.98765, "centred_cosine": 0.97, "probe": 0.3456, "teacher": {"mean": 0.5, "sd": 0.0123}, "teacher_seeds": 3}
    figures = {
        "probe_of_seeds": {"mean": 0.3, "sd": 0.01},
        WHOLE: {**counted, "probe": None},
        BALANCED: {**counted, "reused_rows": 23, **probed},
    }
    assert table(figures)[2:] == [
        "| whole | 40 | 6.135 | 1.00 |  |  |  |",
        "| fidelity balanced | 40, 23 | 6.135 | 1.00 | 0.988 (0.970) | 0.346 | 0.500 ± 0.012 |",
        "| mean of the whole path's seeds |  |  |  |  | 0.300 ± 0.010 |  |",
    ]
