"""From flags to loaded models: batch sizes, what a store lacks, the dry run, compilation that fails."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from featurize import cli
from featurize.cost.batch_size import choose_sizes, missing_rows
from featurize.cost.estimate import decode_rows, peak_bytes
from featurize.cost.stage_cost import counted_work
from featurize.fill import load_models as loading
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.plan.job import TEXT_BATCH, Job
from featurize.run import featurize_command, plan_command
from lugpi_core.errors import InputError
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.store.manifest import drop_record


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.csv"
    path.write_text("text,label\n" + "".join(f"text number {n},{'ab'[n % 2]}\n" for n in range(13)))
    return path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _options(table: Path, run_dir: Path, **flags: Any) -> FeaturizeOptions:
    fast: dict[str, Any] = {"generator": "demo", "encoders": ("demo",), "steps": 2, "batch_size": 4, "shard_rows": 8}
    return FeaturizeOptions(dataset=str(table), run_dir=run_dir, **{**fast, **flags})


def _job(options: FeaturizeOptions) -> Job:
    return plan_command(options)[1]


def test_a_batch_that_is_asked_for_is_computed_whole_on_the_cpu(table: Path, tmp_path: Path) -> None:
    options = _options(table, tmp_path, batch_size=5)
    sizes = choose_sizes(_job(options))
    assert sizes.by_stage() == {"prompt": TEXT_BATCH, "denoise": 5, "decode": 5, "encode": 5}


@pytest.mark.parametrize("batch", [8, 16])
def test_auto_takes_the_largest_power_of_two_that_fits(table: Path, tmp_path: Path, batch: int) -> None:
    job = _job(_options(table, tmp_path))
    work = counted_work(job.generator, tuple(job.encoders.values()), dtype="float32")

    def needed(rows: int) -> float:
        return peak_bytes(work, batch=rows, guided=True, decode_rows=decode_rows(work, rows, True), encode_rows=rows)

    sizes = choose_sizes(_job(_options(table, tmp_path, batch_size="auto", memory_gb=(needed(batch) + 1) / 1e9)))
    # Below some batch it is another stage that takes the most, and twice as many images fit as well.
    fits = max(rows for rows in (1, 2, 4, 8, 16) if needed(rows) <= needed(batch))
    assert fits >= batch
    assert (sizes.batch, sizes.decode, sizes.encode) == (fits, decode_rows(work, fits, True), fits)


def test_auto_takes_no_more_than_pays(table: Path, tmp_path: Path) -> None:
    assert choose_sizes(_job(_options(table, tmp_path, batch_size="auto", memory_gb=500.0))).batch == 16


def test_memory_that_one_image_does_not_fit_is_refused_before_anything_is_loaded(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(loading, "TextToImage")
    with pytest.raises(InputError, match=r"got 0\.50 GB of free memory; expected 1\.1\d GB for one image at a time"):
        featurize_command(_options(table, tmp_path, batch_size="auto", memory_gb=0.5))


def test_what_a_store_lacks_is_counted_by_stage(table: Path, tmp_path: Path) -> None:
    options = _options(table, tmp_path)
    nothing_there = {"prompt": 13, "denoise": 13 * 2 * 2, "decode": 13, "encode clip-demo": 13, "encode vit-demo": 13}
    assert missing_rows(_job(options)) == nothing_there
    featurize_command(dataclasses.replace(options, encoders=("clip-demo",)))
    job = _job(options)
    assert missing_rows(job) == {"prompt": 0, "denoise": 0, "decode": 13, "encode clip-demo": 0, "encode vit-demo": 13}
    drop_record(job.store / "clip-demo", 1)
    assert missing_rows(job)["encode clip-demo"] == 5
    drop_record(job.store / "latents", 0)
    assert missing_rows(job) | {} == {
        "prompt": 8,
        "denoise": 8 * 2 * 2,
        "decode": 13,
        "encode clip-demo": 5,
        "encode vit-demo": 13,
    }


def test_several_images_of_a_text_are_drawn_and_its_prompt_is_read_once(table: Path, tmp_path: Path) -> None:
    missing = missing_rows(_job(_options(table, tmp_path, images_per_text=3, guidance=1.0)))
    assert (missing["prompt"], missing["denoise"], missing["decode"]) == (13, 39 * 2, 39)


def test_a_dry_run_says_what_there_is_to_do_and_makes_nothing(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(loading, "load_models")
    flags = ("--generator", "demo", "--encoders", "demo", "--steps", "2", "--shard-rows", "8", "--dry-run")
    assert cli.main(["--dataset", str(table), "--run-dir", str(tmp_path / "run"), *flags]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert (figures["dry_run"], figures["images"], figures["prompts"]) == (True, 13, 13)
    assert figures["hours"] > 0
    assert figures["peak_bytes"] > 1 << 30
    assert figures["disk_bytes"] > 13 * 2 * 17 * 64 * 2
    assert re.search(r"images  13 from 13 prompts\nwork    [\d.]+ GFLOP\ntime    about \d+ s, on CPU", said.err)
    assert not list((tmp_path / "run" / "tokens").iterdir())


def test_a_dry_run_of_a_complete_store_has_nothing_to_do(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    featurize_command(_options(table, tmp_path))
    figures = featurize_command(_options(table, tmp_path, dry_run=True))
    assert (figures["images"], figures["flops"], figures["hours"], figures["disk_bytes"]) == (0, 0, 0, 0)
    assert "for nothing is missing" in capsys.readouterr().err


def _failing(*_: Any) -> None:
    raise RuntimeError("no compiler within reach")


def test_a_compilation_that_fails_is_one_line_where_it_was_asked_for(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextToImage, "try_compiled", _failing)
    with pytest.raises(InputError, match=r"got --compile on, which fails here \(no compiler within reach\); .*use --compile off"):
        featurize_command(_options(table, tmp_path, compile="on"))


def test_a_compilation_that_fails_is_done_without_where_it_was_not_asked_for(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TextToImage, "try_compiled", _failing)
    monkeypatch.setattr(loading, "choose_compilation", lambda *_, **__: "whole")
    options = _options(table, tmp_path)
    job = _job(options)
    models = loading.load_models(job, {"clip-demo"}, choose_sizes(job), StageTimes())
    assert models.text_to_image.compilation.part == "off"
    assert models.encoders.keys() == {"clip-demo"}
    assert "not compiled: no compiler within reach" in capsys.readouterr().err


def test_memory_that_is_lacking_while_models_load_is_one_line(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(loading, "TextToImage", full)
    with pytest.raises(InputError, match=r"got too little memory \(CUDA out of memory.*; see --dry-run"):
        featurize_command(_options(table, tmp_path))


def test_attention_that_is_asked_for_is_handed_on(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got --attention xformers on cpu"):
        featurize_command(_options(table, tmp_path, attention="xformers"))
