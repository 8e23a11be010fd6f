"""A corpus through featurize: what is drawn, what is kept, what is said of rows that failed; the same bytes however a run went."""

import csv
import json
import multiprocessing
import random
import resource
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import h5py
import numpy as np
import pytest
import torch
import transformers

from featurize import cli
from featurize.image_encoder import ImageEncoder, find_encoder
from featurize.options import FeaturizeOptions
from featurize.pipeline import _runs, with_failures
from featurize.text_to_image import TextToImage
from lugpi_core.errors import InputError
from lugpi_core.store.quantize import dequantize, quantize
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import ShardWriter

ROWS, DRAWINGS = 14, 12
FAST: dict[str, Any] = {"generator": "demo", "encoders": ("demo",), "steps": 2, "batch_size": 4, "shard_rows": 8}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With models this small two threads wait for each other longer than they compute; and a fork leaves a second thread behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _table(path: Path, prompts: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "picture"), *((f"text {n}", "ab"[n % 2], one) for n, one in enumerate(prompts))])
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """14 examples, 12 distinct prompts: the first is there three times; the last is cut."""
    prompts = [f"picture number {n}" for n in range(DRAWINGS - 1)]
    return _table(tmp_path_factory.mktemp("data") / "own.csv", [prompts[0], *prompts, prompts[0], "word " * 40])


def _options(table: Path, run_dir: Path, **flags: Any) -> FeaturizeOptions:
    return FeaturizeOptions(dataset=str(table), prompt_column="picture", run_dir=run_dir, **{**FAST, **flags})


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return run_dir, cli.featurize(_options(table, run_dir))


def _bytes(run_dir: Path, pattern: str = "*/shard-*.h5") -> dict[str, bytes]:
    found = {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted((run_dir / "tokens").glob(pattern))}
    assert found
    return found


def _state(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(run_dir.rglob("*")) if path.is_file()}


def test_a_corpus_becomes_a_store_that_h5py_alone_reads(undisturbed: tuple[Path, dict[str, Any]], table: Path) -> None:
    run_dir, figures = undisturbed
    assert figures["columns"] == {"latents": [12, 4, 8, 8], "clip-demo": [12, 17, 64], "vit-demo": [12, 17, 64]}
    assert figures["rows"] == {"drawn": 12, "decoded": 12, "encoded": 24}
    assert (figures["drawings"], figures["drawings_spared"], sum(figures["examples"].values())) == (DRAWINGS, 2, ROWS)
    assert (figures["complete"], figures["already_done"]) == (True, False)
    assert figures["failed_rows"] == {"latents": 0, "clip-demo": 0, "vit-demo": 0}
    assert figures["prompts_cut_share"] == round(1 / 14, 4)
    with h5py.File(run_dir / "tokens" / "tokens.h5") as file:
        assert {name: list(file[name]) for name in ("latents", "clip-demo")} == {
            "latents": ["flags", "latents"],
            "clip-demo": ["flags", "tokens"],
        }
        assert file["vit-demo/tokens"].shape == (12, 17, 64)
        assert np.isfinite(file["vit-demo/tokens"][:]).all()
        assert not file["clip-demo/flags"][:].any()
        assert file["examples/drawing"][:].tolist() == [0, *range(11), 0, 11]
        assert file["examples/prompt_cut"][:].tolist() == [0] * 13 + [1]
        assert len(np.unique(file["clip-demo/tokens"][:].reshape(12, -1), axis=0)) == 12


def test_the_figures_are_json_and_say_how_they_were_made(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    figures = json.loads(json.dumps(undisturbed[1], allow_nan=False))
    assert figures["times"].keys() == {"load_s", "draw_s", "decode_s", "encode_s", "write_s", "commit_s", "publish_s"}
    assert figures["config"]["batch_size"] == 4
    assert figures["compute"] == {"device": "cpu", "device_name": "CPU", "dtype": "float32", "threads": 1, "attention": "AttnProcessor2_0"}
    assert figures["bytes"]["clip-demo"] == sum(len(data) for name, data in _bytes(undisturbed[0]).items() if "clip-demo" in name)


def test_the_demo_notice_is_said_and_recorded_in_every_column(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.featurize(_options(table, undisturbed[0]))
    assert "note: the embedded demo models have random weights" in capsys.readouterr().err
    assert "no gain is to be expected" in undisturbed[1]["notice"]
    for column in ("latents", "clip-demo", "vit-demo"):
        manifest = json.loads((undisturbed[0] / "tokens" / column / "manifest.json").read_text())
        assert manifest["notice"] == undisturbed[1]["notice"]
        assert "drawn by demo: Apache-2.0" in manifest["license"]


def test_the_store_holds_what_the_models_say_of_each_prompt(undisturbed: tuple[Path, dict[str, Any]], table: Path) -> None:
    job = cli._plan(_options(table, undisturbed[0]), cli_corpus(table), undisturbed[0] / "tokens")
    drawer = TextToImage(job.generator, job.compute, attention="auto")
    latents = drawer.draw([job.plan.prompts[5]], [int(job.plan.seeds[5])]).half()
    tokens = ImageEncoder(find_encoder("clip-demo"), job.compute).encode(drawer.decode(latents))
    assert np.abs(ColumnReader(undisturbed[0] / "tokens", "latents").gather([5]) - latents.numpy()).max() <= 1e-2
    assert np.abs(ColumnReader(undisturbed[0] / "tokens", "clip-demo").gather([5]) - tokens.numpy()).max() <= 1e-2


def cli_corpus(table: Path) -> Any:
    from lugpi_core.corpora import load_corpus

    return load_corpus(_options(table, table.parent))


def test_the_same_command_again_loads_no_model_and_touches_no_file(
    table: Path, undisturbed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _state(undisturbed[0])
    monkeypatch.delattr(cli, "_load_models")
    figures = cli.featurize(_options(table, undisturbed[0]))
    assert figures["already_done"]
    assert figures["rows"] == {"drawn": 0, "decoded": 0, "encoded": 0}
    assert figures["columns"] == undisturbed[1]["columns"]
    assert _state(undisturbed[0]) == before


def test_batch_and_shard_borders_do_not_matter_to_a_picture(table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    cli.featurize(_options(table, tmp_path, batch_size=5, shard_rows=12))
    for column, bound in (("latents", 0.02), ("clip-demo", 0.02), ("vit-demo", 0.02)):
        stores = [ColumnReader(run / "tokens", column).gather(range(DRAWINGS)).astype(float) for run in (tmp_path, undisturbed[0])]
        assert np.abs(stores[0] - stores[1]).max() <= bound


def test_an_encoder_added_later_draws_nothing_and_gets_the_bytes_of_one_pass(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.featurize(_options(table, tmp_path, encoders=("clip-demo",)))
    before = _state(tmp_path / "tokens" / "clip-demo")
    monkeypatch.delattr(TextToImage, "draw")
    figures = cli.featurize(_options(table, tmp_path, encoders=("vit-demo",)))
    assert figures["rows"] == {"drawn": 0, "decoded": 12, "encoded": 12}
    assert not figures["already_done"]
    assert _bytes(tmp_path) == _bytes(undisturbed[0])
    assert _state(tmp_path / "tokens" / "clip-demo") == before
    with h5py.File(tmp_path / "tokens" / "tokens.h5") as file:
        assert file.keys() == {"clip-demo", "vit-demo", "latents", "examples"}


def test_without_latents_an_encoder_added_later_draws_again_and_gets_the_same_bytes(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]
) -> None:
    cli.featurize(_options(table, tmp_path, encoders=("clip-demo",), latents=False))
    assert not (tmp_path / "tokens" / "latents").exists()
    figures = cli.featurize(_options(table, tmp_path, encoders=("vit-demo",), latents=False))
    assert figures["rows"] == {"drawn": 12, "decoded": 12, "encoded": 12}
    assert _bytes(tmp_path) == {name: data for name, data in _bytes(undisturbed[0]).items() if "latents" not in name}


def test_tokens_in_eight_bits_are_those_of_float16_quantized(table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    figures = cli.featurize(_options(table, tmp_path, token_dtype="int8"))
    assert figures["bytes"]["vit-demo"] < 0.65 * undisturbed[1]["bytes"]["vit-demo"]
    for column in ("clip-demo", "vit-demo"):
        exact = ColumnReader(undisturbed[0] / "tokens", column).gather(range(DRAWINGS))
        values, scales = quantize(torch.from_numpy(exact))
        reader = ColumnReader(tmp_path / "tokens", column)
        stored = reader.gather_stored(range(DRAWINGS))
        assert np.array_equal(stored["tokens"], values)
        assert np.array_equal(stored["scale"], scales)
        assert np.array_equal(reader.gather(range(DRAWINGS)), dequantize(values, scales))
    assert cli.featurize(_options(table, tmp_path, token_dtype="int8"))["already_done"]


def test_new_splits_of_the_same_corpus_draw_nothing_and_renew_the_table(table: Path, tmp_path: Path) -> None:
    cli.featurize(_options(table, tmp_path))
    shards = _bytes(tmp_path)
    before = (tmp_path / "tokens" / "examples.h5").read_bytes()
    figures = cli.featurize(_options(table, tmp_path, split_seed=1))
    assert figures["rows"]["drawn"] == 0
    assert _bytes(tmp_path) == shards
    assert (tmp_path / "tokens" / "examples.h5").read_bytes() != before


def _in_a_child(work: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


@pytest.mark.parametrize("seed", [1])
def test_a_run_that_is_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one(
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
            child = _in_a_child(lambda: cli.featurize(_options(table, tmp_path)))
        child.join(delays.uniform(0.1, 0.7))
        killed += child.is_alive()
        child.kill()
        child.join()
    assert killed >= 2
    figures = cli.featurize(_options(table, tmp_path))
    assert figures["complete"]
    assert _bytes(tmp_path) == _bytes(undisturbed[0])
    assert not list(tmp_path.rglob("shard-*.partial"))


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
            cli.featurize(_options(table, run_dir))


@pytest.mark.parametrize(
    ("stage", "call", "missing"),
    [("decode", 1, (8, 12, 24)), ("decode", 2, (4, 8, 16)), ("decode", 3, (0, 4, 8)), ("encode", 3, (4, 8, 16)), ("encode", 4, (4, 8, 12))],
)
def test_a_run_that_breaks_in_any_stage_makes_only_what_is_missing_and_ends_with_the_same_bytes(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], stage: str, call: int, missing: tuple[int, int, int]
) -> None:
    _break_off(table, tmp_path, stage, call)
    figures = cli.featurize(_options(table, tmp_path))
    assert tuple(figures["rows"].values()) == missing
    assert _bytes(tmp_path) == _bytes(undisturbed[0])


def test_rows_that_hold_are_never_written_again(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _break_off(table, tmp_path, "decode", 2)
    written: list[tuple[str, int, int]] = []
    whole = ShardWriter.write

    def watched(self: ShardWriter, first: int, values: Any, flags: Any, scales: Any) -> None:
        written.append((self.layout.what, self.layout.first_row + first, len(values)))
        whole(self, first, values, flags, scales)

    monkeypatch.setattr(ShardWriter, "write", watched)
    cli.featurize(_options(table, tmp_path, batch_size=8))  # a block of which half is there
    assert sorted(written) == [("latents", 8, 4), ("tokens", 4, 4), ("tokens", 4, 4), ("tokens", 8, 4), ("tokens", 8, 4)]


def _poison(patch: pytest.MonkeyPatch, part: str, value: float) -> None:
    """Let a part of the models answer ``value`` in row 1 of every block of 4."""
    owner: Any = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "vit": transformers.ViTModel}[part]
    method = "decode" if part == "vae" else "forward"
    whole = getattr(owner, method)

    def poisoned(self: Any, *inputs: Any, **how: Any) -> Any:
        result = whole(self, *inputs, **how)
        sick = result.last_hidden_state if part == "vit" else result[0]
        sick[1] = value
        return result

    patch.setattr(owner, method, poisoned)


@pytest.mark.parametrize(
    ("part", "value", "failed"),
    [
        ("unet", float("nan"), {"latents": 3, "clip-demo": 3, "vit-demo": 3}),
        ("vae", float("inf"), {"latents": 0, "clip-demo": 3, "vit-demo": 3}),
        ("vae", -1.0, {"latents": 0, "clip-demo": 3, "vit-demo": 3}),  # a black picture
        ("vit", 1e6, {"latents": 0, "clip-demo": 0, "vit-demo": 3}),  # beyond float16
    ],
)
def test_a_row_that_failed_is_flagged_counted_and_written_as_zeros(
    table: Path, tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], part: str, value: float, failed: dict[str, int]
) -> None:
    reason = "constant picture" if value == -1.0 else "not finite"
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, part, value)
        figures = cli.featurize(_options(table, tmp_path))
    assert figures["failed_rows"] == failed
    assert not figures["complete"]
    for column, count in failed.items():
        reader, good = ColumnReader(tmp_path / "tokens", column), ColumnReader(undisturbed[0] / "tokens", column)
        assert reader.flagged == dict.fromkeys((1, 5, 9)[:count], reason)
        rows = reader.gather(range(DRAWINGS))
        assert np.isfinite(rows).all()
        assert not rows[[1, 5, 9][:count]].any()
        sound = [row for row in range(DRAWINGS) if row not in reader.flagged]
        assert np.array_equal(rows[sound], good.gather(sound))
    again = cli.featurize(_options(table, tmp_path))
    assert again["already_done"]
    assert not again["complete"]
    assert again["failed_rows"] == failed


def test_a_row_whose_latents_failed_fails_in_an_encoder_added_later(table: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, "unet", float("nan"))
        cli.featurize(_options(table, tmp_path, encoders=("clip-demo",)))
    figures = cli.featurize(_options(table, tmp_path, encoders=("vit-demo",)))
    assert figures["failed_rows"] == {"latents": 3, "vit-demo": 3}
    assert ColumnReader(tmp_path / "tokens", "vit-demo").flagged.keys() == {1, 5, 9}


def test_a_row_whose_latents_failed_in_a_shard_that_was_broken_off_fails_in_the_resumed_run(table: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, "unet", float("nan"))
        patch.delattr(ImageEncoder, "encode")
        with pytest.raises(AttributeError):
            cli.featurize(_options(table, tmp_path))
    figures = cli.featurize(_options(table, tmp_path))
    assert figures["failed_rows"] == {"latents": 1, "clip-demo": 1, "vit-demo": 1}
    assert figures["rows"] == {"drawn": 8, "decoded": 12, "encoded": 24}


def test_two_columns_of_one_name_are_refused_before_anything_is_written(table: Path, tmp_path: Path) -> None:
    (tmp_path / "latents").symlink_to(find_encoder("vit-demo").folder, target_is_directory=True)
    (tmp_path / "a" / "latents").mkdir(parents=True)
    for path in find_encoder("vit-demo").folder.iterdir():
        (tmp_path / "a" / "latents" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="got two columns named latents; expected one name a column; rename the encoder's folder"):
        cli.featurize(_options(table, tmp_path / "run", encoders=(str(tmp_path / "a" / "latents"),)))
    assert not list((tmp_path / "run" / "tokens").iterdir())


def test_pixels_live_for_one_block(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    whole = TextToImage.decode

    def watched(self: TextToImage, latents: torch.Tensor) -> torch.Tensor:
        assert not [image for image in alive if image() is not None]
        images = whole(self, latents)
        alive.append(weakref.ref(images))
        return images

    monkeypatch.setattr(TextToImage, "decode", watched)
    cli.featurize(_options(table, tmp_path))
    assert len(alive) == 3


def test_host_memory_is_flat_in_the_number_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextToImage, "draw", lambda _, prompts, __: torch.zeros(len(prompts), 4, 8, 8))
    monkeypatch.setattr(TextToImage, "decode", lambda _, latents: torch.rand(len(latents), 3, 512, 512))  # 3 MB an image
    peaks = {}
    for rows in (16, 160):
        prompts = _table(tmp_path / f"{rows}.csv", [f"{n}" for n in range(rows)])
        queue: Any = multiprocessing.get_context("fork").SimpleQueue()

        def work(table: Path = prompts, run_dir: Path = tmp_path / str(rows), queue: Any = queue) -> None:
            cli.featurize(_options(table, run_dir, encoders=("vit-demo",), shard_rows=16))
            queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

        child = _in_a_child(work)
        peaks[rows] = queue.get()
        child.join()
    assert peaks[160] - peaks[16] < 40e6


def test_runs_of_rows_are_found() -> None:
    assert _runs(np.array([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 6), (7, 9)]
    assert _runs(np.array([], dtype=np.int64)) == []
    values = with_failures(np.ones((3, 2), np.float16), [1])
    assert np.isnan(values[1]).all()
    assert np.isfinite(values[[0, 2]]).all()
