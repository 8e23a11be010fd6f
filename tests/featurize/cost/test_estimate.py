"""What a run will take: missing rows by stage, hours in proportion to the FLOPs, and how it is printed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from featurize.cost.batch_size import BatchSizes
from featurize.cost.estimate import Estimate, WarmUp, estimate_run, missing_rows, row_flops, warm_up
from featurize.encode.image_encoder import ImageEncoder
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.plan.job import Job
from featurize.run import featurize_command, plan_command
from lugpi_core.amounts import size
from lugpi_core.store.manifest import drop_record

ROWS = 13


def _options(table: Path, run_dir: Path, **flags: Any) -> FeaturizeOptions:
    fast: dict[str, Any] = {"generator": "demo", "encoders": ("demo",), "steps": 2, "batch_size": 4, "shard_rows": 8}
    return FeaturizeOptions(dataset=str(table), run_dir=run_dir, **{**fast, **flags})


def _job(table: Path, run_dir: Path, **flags: Any) -> Job:
    return plan_command(_options(table, run_dir, **flags))[1]


def test_missing_rows_are_counted_by_stage(table: Path, tmp_path: Path) -> None:
    nothing_there = {"prompt": 13, "denoise": 13 * 2 * 2, "decode": 13, "encode clip-demo": 13, "encode vit-demo": 13}
    assert missing_rows(_job(table, tmp_path)) == nothing_there
    featurize_command(_options(table, tmp_path, encoders=("clip-demo",)))
    job = _job(table, tmp_path)
    assert missing_rows(job) == {"prompt": 0, "denoise": 0, "decode": 13, "encode clip-demo": 0, "encode vit-demo": 13}
    drop_record(job.store / "clip-demo", 1)
    assert missing_rows(job)["encode clip-demo"] == 5
    drop_record(job.store / "latents", 0)
    assert missing_rows(job) == {"prompt": 8, "denoise": 8 * 2 * 2, "decode": 13, "encode clip-demo": 5, "encode vit-demo": 13}


def test_of_several_images_a_text_the_prompt_is_read_once(table: Path, tmp_path: Path) -> None:
    missing = missing_rows(_job(table, tmp_path, images_per_text=3, guidance=1.0))
    assert (missing["prompt"], missing["denoise"], missing["decode"]) == (13, 39 * 2, 39)


def test_rows_of_shortcuts_are_counted_apart(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = _job(table, tmp_path, steps=4, guidance_interval="0:0.5", deepcache=2, deepcache_cut="layer", encoders=("clip-demo",))
    missing = {"prompt": 13, "denoise": 13 * 3, "denoise, reusing": 13 * 3, "decode": 13, "encode clip-demo": 13}
    assert missing_rows(job) == missing
    flops = {name: float(2**number) for number, name in enumerate(missing)}
    monkeypatch.setattr("featurize.cost.estimate.row_flops", lambda _: flops)
    estimate = estimate_run(job, None)
    assert (estimate.images, estimate.flops) == (13, sum(flops[name] * rows for name, rows in missing.items()))


BLOCK = WarmUp(images=4, flops=2e9, seconds=0.5, peak_bytes=10**9, device="CPU, float32")


def test_hours_are_the_counted_flops_at_the_blocks_speed(table: Path, tmp_path: Path) -> None:
    few, many = (estimate_run(_job(table, tmp_path / str(n), images_per_text=n), BLOCK) for n in (1, 10))
    flops = row_flops(_job(table, tmp_path / "1"))
    per_image = 2 * 2 * flops["denoise"] + flops["decode"] + flops["encode clip-demo"] + flops["encode vit-demo"]
    assert few.flops == pytest.approx(13 * (flops["prompt"] + per_image))
    assert few.hours == pytest.approx(few.flops / 4e9 / 3600)
    assert many.flops == pytest.approx(13 * (flops["prompt"] + 10 * per_image))
    assert many.hours == pytest.approx(many.flops / 4e9 / 3600)
    assert (many.images, many.prompts) == (130, 13)
    assert few.peak_bytes == 10**9
    assert few.basis == "on CPU, float32 a block of 4 images ran at 4 GFLOP/s"


def test_without_a_block_time_and_memory_are_unknown(table: Path, tmp_path: Path) -> None:
    unknown = estimate_run(_job(table, tmp_path), None, unknown_because="the models do not load")
    assert (unknown.hours, unknown.peak_bytes, unknown.basis) == (None, None, "the models do not load")
    assert unknown.disk_bytes > ROWS * 2 * 17 * 64 * 2
    assert str(unknown).splitlines()[2:] == [
        "time    unknown: the models do not load",
        f"disk    {size(unknown.disk_bytes)} more",
        "memory  unknown",
    ]


def test_a_block_runs_each_model_with_the_rows_it_counts(table: Path, tmp_path: Path) -> None:
    job = _job(table, tmp_path)
    text_to_image = TextToImage(job.generator, job.compute)
    encoders = {name: ImageEncoder(files, job.compute) for name, files in job.encoders.items()}
    rows: dict[str, set[int]] = {"unet": set(), "vit": set()}
    text_to_image.parts.denoiser.register_forward_pre_hook(lambda _, inputs: rows["unet"].add(len(inputs[0])))
    encoders["vit-demo"]._tower.register_forward_pre_hook(lambda _, inputs: rows["vit"].add(len(inputs[0])))
    block = warm_up(text_to_image, encoders, job, BatchSizes(generate=4, decode=2, encode=4))
    assert rows == {"unet": {8}, "vit": {2}}
    flops = row_flops(job)
    assert block.flops == 8 * flops["denoise"] + 2 * (flops["decode"] + flops["encode clip-demo"] + flops["encode vit-demo"])
    assert block.images == 4
    assert block.seconds > 0
    assert block.peak_bytes > 10**7


def test_on_the_cpu_a_block_of_large_models_is_one_image(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = dataclasses.replace(_job(table, tmp_path), encoders={})
    monkeypatch.setattr("featurize.cost.estimate._CPU_BLOCK_FLOPS", 1.0)
    block = warm_up(TextToImage(job.generator, job.compute), {}, job, BatchSizes(generate=16, decode=2, encode=16))
    flops = row_flops(job)
    assert (block.images, block.flops) == (1, 2 * flops["denoise"] + flops["decode"])


def _estimate(**changes: Any) -> Estimate:
    known: dict[str, Any] = {"images": 18780, "prompts": 18001, "flops": 1.557e18, "hours": 6.25, "disk_bytes": 2_060_000_000}
    return Estimate(**(known | {"peak_bytes": 6_205_486_114, "basis": "on a GPU a block ran."} | changes))


def test_an_estimate_prints_a_line_for_each_figure() -> None:
    assert str(_estimate()).splitlines() == [
        "images  18,780 from 18,001 prompts",
        "work    1.6 EFLOP",
        "time    about 6.2 hours: on a GPU a block ran.",
        "disk    2.06 GB more",
        "memory  6.21 GB at the peak of that block",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"hours": 0.0, "basis": "x."}, "time    about 0 s: x."),
        ({"hours": 0.02, "basis": "x."}, "time    about 72 s: x."),
        ({"hours": 0.5, "basis": "x."}, "time    about 30 minutes: x."),
        ({"hours": 71.9, "basis": "x."}, "time    about 71.9 hours: x."),
        ({"hours": 96, "basis": "x."}, "time    about 4.0 days: x."),
        ({"flops": 0.0}, "work    0.0 GFLOP"),
        ({"flops": 3.2e12}, "work    3.2 TFLOP"),
        ({"flops": 5.67e17}, "work    567.0 PFLOP"),
        ({"flops": 1.2345e22}, "work    12,345.0 EFLOP"),
    ],
)
def test_times_and_flops_are_printed_in_fitting_units(changes: dict[str, Any], line: str) -> None:
    assert line in str(_estimate(**changes)).splitlines()


def test_an_estimate_is_plain_json_with_every_field() -> None:
    record = dataclasses.asdict(_estimate(hours=None))
    assert json.loads(json.dumps(record)) == record
    assert set(record) == {"images", "prompts", "flops", "hours", "disk_bytes", "peak_bytes", "basis", "is_generated"}
