"""Featurize under faults: killed, interrupted, rows that fail and are redone; the same bytes in the end, or a flag with the reason."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.encode.image_encoder import ImageEncoder
from featurize.fill import block, text_column
from featurize.generate.text_to_image import TextToImage
from featurize.run import featurize_command
from lugpi_core.errors import InputError
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import ShardWriter
from tests.support.shards import shard_file
from tests.support.small_corpus import DRAWINGS, options, poison, prompt_table, shard_bytes, small_table

COLUMNS = ("latents", "clip-demo", "vit-demo")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return run_dir, featurize_command(options(table, run_dir))


def _in_a_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


@pytest.mark.parametrize("seed", [1])
def test_a_repeatedly_killed_run_ends_with_the_same_bytes(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], seed: int
) -> None:
    delays = random.Random(seed)
    whole, killed = ImageEncoder.encode, 0

    def slowly(self: ImageEncoder, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.2)
        return whole(self, images)

    for _ in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ImageEncoder, "encode", slowly)
            child = _in_a_child(lambda: featurize_command(options(table, tmp_path)))
        child.join(delays.uniform(0.1, 0.7))
        killed += child.is_alive()
        child.kill()
        child.join()
    assert killed >= 2
    figures = featurize_command(options(table, tmp_path))
    assert figures["complete"]
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed[0])
    assert not list(tmp_path.rglob("shard-*.partial"))


@pytest.mark.parametrize(
    ("encoders", "flags"),
    [(("vit-demo", "prompt-text"), {"prompts": "chunks", "images_per_text": 2}), (("prompt-text",), {"prompts": "keywords"})],
    ids=["passages with their vectors", "vectors of keywords"],
)
def test_a_killed_run_of_text_vectors_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoders: tuple[str, ...], flags: dict[str, Any]
) -> None:
    """Each of three runs is killed in its second batch of vectors."""
    flags, letters = {"encoders": encoders, "steps": 1, **flags}, "abcdefghijklmn"
    table = prompt_table(tmp_path / "own.csv", [f"picture {letter} of the sea" for letter in letters])
    for module in (text_column, block):
        monkeypatch.setattr(module, "TEXT_BATCH", 3)
    featurize_command(options(table, tmp_path / "whole", **flags))
    whole, calls = text_column.text_vectors, 0

    def dying(*given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            time.sleep(0.2)  # what was queued is being written
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*given)

    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_column, "text_vectors", dying)
            child = _in_a_child(lambda: featurize_command(options(table, tmp_path / "killed", **flags)))
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert featurize_command(options(table, tmp_path / "killed", **flags))["complete"]
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("shard-*.partial"))


def _break_off(table: Path, run_dir: Path, stage: str, call: int) -> None:
    owner: Any = TextToImage if stage == "decode" else ImageEncoder
    whole, calls = getattr(owner, stage), 0

    def breaking(self: Any, values: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        result: torch.Tensor = whole(self, values)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, stage, breaking)
        with pytest.raises(KeyboardInterrupt):
            featurize_command(options(table, run_dir))


@pytest.mark.parametrize(
    ("stage", "call", "missing"),
    [
        ("decode", 1, (12, 12, 12, 24, 0)),
        ("decode", 2, (12, 8, 8, 16, 0)),  # all prompts of a shard that is begun are read again, so that they are read in the same batches
        ("decode", 3, (4, 4, 4, 8, 0)),
        ("encode", 3, (12, 8, 8, 16, 0)),
        ("encode", 4, (12, 8, 8, 16, 0)),
    ],
)
def test_a_run_that_breaks_in_any_stage_ends_with_the_same_bytes(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], stage: str, call: int, missing: tuple[int, ...]
) -> None:
    _break_off(table, tmp_path, stage, call)
    figures = featurize_command(options(table, tmp_path))
    assert tuple(figures["rows"].values()) == missing
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed[0])


def test_rows_that_hold_are_never_written_again(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _break_off(table, tmp_path, "decode", 2)
    written: list[tuple[str, int, int]] = []
    whole = ShardWriter.write

    def watched(self: ShardWriter, first: int, values: Any, flags: Any, scales: Any) -> None:
        written.append((self.layout.what, self.layout.first_row + first, len(values)))
        whole(self, first, values, flags, scales)

    monkeypatch.setattr(ShardWriter, "write", watched)
    featurize_command(options(table, tmp_path, batch_size=8))  # a block of which half is there
    assert sorted(written) == [("latents", 4, 4), ("latents", 8, 4), ("tokens", 4, 4), ("tokens", 4, 4), ("tokens", 8, 4), ("tokens", 8, 4)]


@pytest.mark.parametrize(
    ("part", "value", "failed"),
    [
        ("unet", float("nan"), {"latents": 3, "clip-demo": 3, "vit-demo": 3}),
        ("vae", float("inf"), {"latents": 0, "clip-demo": 3, "vit-demo": 3}),
        ("vae", -1.0, {"latents": 0, "clip-demo": 3, "vit-demo": 3}),  # a black image
        ("vit", 1e6, {"latents": 0, "clip-demo": 0, "vit-demo": 3}),  # beyond float16
    ],
)
def test_a_row_that_fails_in_float32_too_is_flagged_and_zeros(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], part: str, value: float, failed: dict[str, int]
) -> None:
    reason = "constant picture" if value == -1.0 else "not finite"
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, part, value)
        figures = featurize_command(options(table, tmp_path))
    assert figures["failed_rows"] == failed
    assert not figures["complete"]
    assert figures["rows"] == {"prompts": 12, "drawn": 12, "decoded": 12, "encoded": 24, "redone": 3}
    for column, count in failed.items():
        reader, good = ColumnReader(tmp_path / "tokens", column), ColumnReader(undisturbed[0] / "tokens", column)
        assert reader.flagged == dict.fromkeys((1, 5, 9)[:count], reason)
        rows = reader.gather(range(DRAWINGS))
        assert np.isfinite(rows).all()
        assert not rows[[1, 5, 9][:count]].any()
        sound = [row for row in range(DRAWINGS) if row not in reader.flagged]
        assert np.array_equal(rows[sound], good.gather(sound))
    again = featurize_command(options(table, tmp_path))
    assert again["already_done"]
    assert not again["complete"]
    assert again["failed_rows"] == failed


@pytest.mark.parametrize(("part", "value"), [("unet", float("nan")), ("vae", float("inf")), ("vae", -1.0), ("vit", 1e6)])
def test_a_row_that_fails_once_is_redone_alone(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], part: str, value: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, part, value, again=False)
        figures = featurize_command(options(table, tmp_path))
    assert figures["complete"]
    assert figures["rows"] == {"prompts": 12, "drawn": 12, "decoded": 12, "encoded": 24, "redone": 3}
    assert figures["times"]["redo_s"] > 0
    sound = [row for row in range(DRAWINGS) if row not in (1, 5, 9)]
    for column in COLUMNS:
        rows, good = (ColumnReader(run / "tokens", column).gather(range(DRAWINGS)) for run in (tmp_path, undisturbed[0]))
        assert np.array_equal(rows[sound], good[sound])
        assert np.abs(rows.astype(float) - good).max() <= 0.02


def test_without_memory_for_float32_the_run_continues(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, "vit", 1e6, again=False)

    def lacking(_: TextToImage) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TextToImage, "in_float32", lacking)
    figures = featurize_command(options(table, tmp_path))
    assert figures["failed_rows"] == {"latents": 0, "clip-demo": 0, "vit-demo": 3}
    assert figures["rows"]["redone"] == 0
    assert "no memory for float32: 1 failed rows stay as they are" in capsys.readouterr().err


def test_failed_latents_fail_in_an_encoder_added_later(table: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, "unet", float("nan"))
        featurize_command(options(table, tmp_path, encoders=("clip-demo",)))
    figures = featurize_command(options(table, tmp_path, encoders=("vit-demo",)))
    assert figures["failed_rows"] == {"latents": 3, "vit-demo": 3}
    assert figures["rows"]["redone"] == 0  # latents that failed when they were generated have had their second try
    assert ColumnReader(tmp_path / "tokens", "vit-demo").flagged == dict.fromkeys((1, 5, 9), "not finite")


def test_failed_latents_of_an_unfinished_shard_fail_in_the_resumed_run(table: Path, tmp_path: Path) -> None:
    whole, calls = TextToImage.decode, []

    def breaking(self: TextToImage, latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        if calls == [4, 1, 4]:  # the first block, its failed row alone, the second block
            raise KeyboardInterrupt
        return whole(self, latents)

    with pytest.MonkeyPatch.context() as patch:
        poison(patch, "unet", float("nan"))
        patch.setattr(TextToImage, "decode", breaking)
        with pytest.raises(KeyboardInterrupt):
            featurize_command(options(table, tmp_path, encoders=("clip-demo",)))
    figures = featurize_command(options(table, tmp_path, encoders=("clip-demo",)))
    assert figures["failed_rows"] == {"latents": 1, "clip-demo": 1}
    assert figures["rows"] == {"prompts": 12, "drawn": 8, "decoded": 8, "encoded": 8, "redone": 0}


def test_written_failed_latents_are_not_tried_again_by_a_resumed_run(table: Path, tmp_path: Path) -> None:
    def no_tokens(self: ShardWriter, *values: Any) -> None:
        if self.layout.what == "tokens":
            raise KeyboardInterrupt
        write(self, *values)

    write = ShardWriter.write
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, "unet", float("nan"))
        patch.setattr(ShardWriter, "write", no_tokens)
        with pytest.raises(KeyboardInterrupt):
            featurize_command(options(table, tmp_path))
    figures = featurize_command(options(table, tmp_path))
    assert figures["failed_rows"] == {"latents": 1, "clip-demo": 1, "vit-demo": 1}
    assert figures["rows"] == {"prompts": 12, "drawn": 8, "decoded": 12, "encoded": 24, "redone": 0}


@pytest.mark.parametrize("row", [1, 6])
def test_a_damaged_row_of_latents_is_generated_to_the_same_bytes(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], row: int
) -> None:
    featurize_command(options(table, tmp_path))
    folder = tmp_path / "tokens" / "latents"
    layout = load_manifest(folder)[0].layout(0)
    content = bytearray(shard_file(folder, 0).read_bytes())
    content[structure(layout).offsets["latents"] + row * layout.bytes_of("latents")] ^= 1
    shard_file(folder, 0).write_bytes(content)
    figures = featurize_command(options(table, tmp_path))
    # All prompts of the shard, in the batches of the first time.
    assert figures["rows"] == {"prompts": 8, "drawn": 4, "decoded": 0, "encoded": 0, "redone": 0}
    assert shard_bytes(tmp_path) == shard_bytes(undisturbed[0])


def test_a_run_with_too_many_failed_rows_ends_and_keeps_its_rows(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, "vae", float("nan"))
        with pytest.raises(
            InputError,
            match=r"got 2 failed rows .*; expected at most 1 \(--max-failed\); see python -m featurize info.*; what is written is kept",
        ):
            featurize_command(options(table, tmp_path, max_failed=1))
    figures = featurize_command(options(table, tmp_path, max_failed=1))
    assert figures["rows"] == {"prompts": 4, "drawn": 4, "decoded": 4, "encoded": 8, "redone": 0}
    assert figures["failed_rows"] == {"latents": 0, "clip-demo": 2, "vit-demo": 2}
    assert shard_bytes(tmp_path, "latents/shard-*.h5") == shard_bytes(undisturbed[0], "latents/shard-*.h5")


@pytest.mark.parametrize(("max_failed", "given_up"), [(3, False), (2, True), (0, True), (None, False)])
def test_failed_rows_are_counted_once_for_all_columns(
    table: Path, tmp_path: Path, max_failed: int | None, given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "unet", float("nan"))
    run = options(table, tmp_path, max_failed=max_failed)
    if given_up:
        with pytest.raises(InputError, match="--max-failed"):
            featurize_command(run)
    else:
        assert featurize_command(run)["failed_rows"] == dict.fromkeys(COLUMNS, 3)
