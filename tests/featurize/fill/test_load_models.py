"""From flags to loaded models: batch sizes, what a store lacks, the dry run, compilation that fails."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from featurize import cli
from featurize.encode.image_encoder import ImageEncoder
from featurize.fill import load_models as loading
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.plan.job import Job
from featurize.run import featurize_command, plan_command
from lugpi_core.errors import InputError
from lugpi_core.runtime.meters import StageTimes


def _options(table: Path, run_dir: Path, **flags: Any) -> FeaturizeOptions:
    fast: dict[str, Any] = {"generator": "demo", "encoders": ("demo",), "steps": 2, "batch_size": 4, "shard_rows": 8}
    return FeaturizeOptions(dataset=str(table), run_dir=run_dir, **{**fast, **flags})


def _job(options: FeaturizeOptions) -> Job:
    return plan_command(options)[1]


def test_a_dry_run_says_what_there_is_to_do_and_makes_nothing(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--generator", "demo", "--encoders", "demo", "--steps", "2", "--shard-rows", "8", "--dry-run")
    assert cli.main(["--dataset", str(table), "--run-dir", str(tmp_path / "run"), *flags]) == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert (figures["dry_run"], figures["images"], figures["prompts"]) == (True, 13, 13)
    assert figures["hours"] > 0
    assert figures["peak_bytes"] > 1 << 26
    assert figures["disk_bytes"] > 13 * 2 * 17 * 64 * 2
    assert re.search(
        r"images  13 from 13 prompts\nwork    [\d.]+ GFLOP\ntime    about \d+ s: on CPU, float32 a block of 16 images ran", said.err
    )
    assert not list((tmp_path / "run" / "tokens").iterdir())


def test_a_dry_run_of_a_complete_store_has_nothing_to_do(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    featurize_command(_options(table, tmp_path))
    figures = featurize_command(_options(table, tmp_path, dry_run=True))
    assert (figures["images"], figures["flops"], figures["hours"], figures["disk_bytes"]) == (0, 0, 0, 0)
    assert "nothing is missing" in capsys.readouterr().err


def _failing(*_: Any) -> None:
    raise RuntimeError("no compiler within reach")


def test_a_failed_compilation_is_an_error_if_it_was_asked_for(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextToImage, "warm_up", _failing)
    with pytest.raises(InputError, match=r"got --compile on, which fails here \(no compiler within reach\); .*use --compile off"):
        featurize_command(_options(table, tmp_path, compile="on"))


def test_a_failed_automatic_compilation_is_given_up(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TextToImage, "warm_up", _failing)
    monkeypatch.setattr(loading, "choose_compilation", lambda *_, **__: "whole")
    options = _options(table, tmp_path)
    job = _job(options)
    models, sizes = loading.load_models(job, {"clip-demo"}, 12, StageTimes())
    assert sizes.generate == 4
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


@pytest.mark.parametrize(
    ("owner", "method", "part"),
    [
        (TextToImage, "_encode", "text_encoder"),
        (TextToImage, "_step_on_zeros", "unet"),
        (TextToImage, "_decode", "vae"),
        (ImageEncoder, "_encode", "clip-demo"),
    ],
)
def test_a_model_that_does_not_run_is_named_before_the_first_image(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, part: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("class_labels should be provided")

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(InputError, match=rf"got .*/{part}, which does not run \(class_labels should be provided\)"):
        loading.load_models(_job(_options(table, tmp_path)), {"clip-demo"}, 12, StageTimes())
