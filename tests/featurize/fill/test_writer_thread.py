"""The thread that writes: in order, bounded, and nothing is lost or hidden."""

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.fill import writer_thread as output
from featurize.fill.writer_thread import StoredRows, WriterThread, consecutive_ranges, stored_form
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.quantize import quantize
from lugpi_core.store.shard import ShardWriter
from tests.support.small_shard import INT8, LAYOUT, float_rows, new_writer

GOOD = torch.zeros(5, dtype=torch.uint8)


@pytest.fixture
def times() -> StageTimes:
    return StageTimes()


def _failing() -> None:
    raise OSError("the disk is gone")


def test_what_is_put_is_done_in_that_order_in_one_other_thread(times: StageTimes) -> None:
    done: list[tuple[int, str]] = []

    def work(number: int) -> Callable[[], None]:
        def do() -> None:
            time.sleep(0.002 * (number % 3 == 0))
            done.append((number, threading.current_thread().name))

        return do

    with WriterThread(times) as out:
        for number in range(30):
            out.put(work(number))
    assert [number for number, _ in done] == list(range(30))
    assert {name.split("_")[0] for _, name in done} == {"output"}
    assert len({name for _, name in done}) == 1


def test_drain_waits_until_all_is_done(times: StageTimes) -> None:
    done: list[int] = []
    with WriterThread(times) as out:
        for number in range(3):
            out.put(lambda number=number: (time.sleep(0.02), done.append(number))[1])
        out.drain()
        assert done == [0, 1, 2]
        assert times.seconds["finish"] > 0.02
        out.drain()


@pytest.mark.parametrize("how", ["put", "drain", "exit"])
def test_an_error_in_the_thread_reaches_the_caller_and_stops_it(times: StageTimes, how: str) -> None:
    done: list[str] = []
    begun = threading.Event()

    def use() -> None:
        with WriterThread(times) as out:
            out.put(lambda: done.append("before"))
            out.put(lambda: (begun.wait(), _failing())[1])
            for _ in range(3):
                out.put(lambda: done.append("after"))
            begun.set()
            while how == "put":
                time.sleep(0.001)
                out.put(lambda: done.append("after"))
            if how == "drain":
                out.drain()
                pytest.fail("drain says nothing")

    with pytest.raises(OSError, match="the disk is gone"):
        use()
    assert done == ["before"]


def test_after_an_exception_queued_rows_are_still_written(times: StageTimes) -> None:
    done: list[int] = []

    def use() -> None:
        with WriterThread(times) as out:
            for number in range(5):
                out.put(lambda number=number: (time.sleep(0.01), done.append(number))[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert done == [0, 1, 2, 3, 4]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("output")]


def test_the_exception_of_the_block_is_the_one_that_is_told(times: StageTimes) -> None:
    def use() -> None:
        with WriterThread(times) as out:
            out.put(_failing)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()


class _Held:
    """Counts the bytes that were put and are not written yet."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> Callable[[], None]:
        """Count ``size`` bytes as held; return what writes them."""
        with self._lock:
            self.now += size
            self.most = max(self.most, self.now)
        return lambda: self._give(size)

    def _give(self, size: int) -> None:
        time.sleep(0.003)
        with self._lock:
            self.now -= size


def test_no_more_bytes_are_held_than_may_be(times: StageTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_WAITING_BYTES", 100)
    held = _Held()
    with WriterThread(times) as out:
        for size in np.random.default_rng(0).integers(1, 101, 40).tolist():
            out.put(held.take(size), size)
            assert held.now <= 100, "the newest among them has waited until it was few enough"
    assert held.now == 0
    assert held.most <= 200
    assert times.seconds["stall"] > 0.05


def test_what_is_larger_than_may_be_held_goes_through_alone(times: StageTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_WAITING_BYTES", 10)
    held = _Held()
    with WriterThread(times) as out:
        for _ in range(3):
            out.put(held.take(50), 50)
            assert held.now <= 50
    assert held.now == 0


def test_a_stall_is_counted_only_when_there_was_one(times: StageTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MOST_WAITING_BYTES", 100)
    free = threading.Event()
    with WriterThread(times) as out:
        out.put(lambda: None, 90)
        time.sleep(0.05)
        out.put(lambda: (free.wait(5), None)[1], 50)  # the first one is done
        out.put(lambda: None, 50)
        assert "stall" not in times.seconds
        threading.Timer(0.05, free.set).start()
        out.put(lambda: None, 1)
    assert 0.03 < times.seconds["stall"] < 4


def _write(path: Path, rows: StoredRows, times: StageTimes, *, layout: Any = LAYOUT) -> ShardWriter:
    file = new_writer(path, layout)
    with WriterThread(times) as out:
        out.put_rows(file, 0, rows)
    return file


def test_rows_arrive_unchanged_and_both_stages_are_timed(tmp_path: Path, times: StageTimes) -> None:
    values, flags = torch.from_numpy(float_rows()), torch.tensor([0, 1, 0, 2, 0], dtype=torch.uint8)
    file = _write(tmp_path / "shard", stored_form(values, flags, "float16"), times)
    assert file.valid.all()
    assert file.flags().tolist() == [0, 1, 0, 2, 0]
    assert np.array_equal(file.read(0, 5)[[0, 2, 4]], values[[0, 2, 4]])
    assert not file.read(0, 5)[[1, 3]].any()
    assert times.seconds.keys() == {"copy", "write"} | ({"finish"} & times.seconds.keys())
    file.close()


def test_tokens_in_eight_bits_arrive_with_their_scales(tmp_path: Path, times: StageTimes) -> None:
    values = torch.from_numpy(float_rows())
    file = _write(tmp_path / "shard", stored_form(values, GOOD, "int8"), times, layout=INT8)
    expected, _ = quantize(values)
    assert np.array_equal(file.read(0, 5), expected)
    assert file.valid.all()
    file.close()


def test_values_that_int8_loses_are_counted_without_those_that_are_0() -> None:
    tokens_BTD = torch.tensor([[[127.0, 0.6, 0.4, 0.0]], [[0.0, 0.0, 1e-3, 1.0]], [[5.0, 5.0, 5.0, 0.01]]])
    rows = stored_form(tokens_BTD, torch.tensor([0, 0, 1], dtype=torch.uint8), "int8")
    assert rows.lost_2 is not None
    assert rows.lost_2.tolist() == [5, 2]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.0])
def test_the_stored_form_of_a_failed_row_is_zeros(dtype: str, value: float) -> None:
    values = torch.from_numpy(float_rows()).float()
    good = stored_form(values, GOOD, dtype)
    sick = values.clone()
    sick[3] = value
    rows = stored_form(sick, torch.tensor([0, 0, 0, 1, 0], dtype=torch.uint8), dtype)
    assert torch.equal(rows.values[[0, 1, 2, 4]], good.values[[0, 1, 2, 4]])
    assert not rows.values[3].any()
    assert rows.values.dtype == getattr(torch, dtype)
    if rows.scales_BT is not None:
        assert torch.isfinite(rows.scales_BT).all()


def test_rows_that_hold_are_not_written_again(tmp_path: Path, times: StageTimes, monkeypatch: pytest.MonkeyPatch) -> None:
    path, written = tmp_path / "shard", list[tuple[int, int]]()
    first = _write(path, stored_form(torch.from_numpy(float_rows()), GOOD, "float16"), times)
    first.forget([1, 2, 4])
    first.close()
    whole = ShardWriter.write

    def watched(self: ShardWriter, start: int, values: Any, *rest: Any) -> None:
        written.append((start, len(values)))
        whole(self, start, values, *rest)

    monkeypatch.setattr(ShardWriter, "write", watched)
    file = ShardWriter(path, LAYOUT)
    with WriterThread(times) as out:
        out.put_rows(file, 0, stored_form(torch.from_numpy(float_rows(seed=9)), GOOD, "float16"))
        out.put_rows(file, 0, stored_form(torch.from_numpy(float_rows(seed=8)), GOOD, "float16"))
    assert written == [(1, 2), (4, 1)]
    assert np.array_equal(file.read(0, 5)[[0, 3]], float_rows()[[0, 3]])
    assert np.array_equal(file.read(0, 5)[[1, 2, 4]], float_rows(seed=9)[[1, 2, 4]])
    file.close()


def test_rows_that_are_written_are_not_held_any_longer(tmp_path: Path, times: StageTimes) -> None:
    file = new_writer(tmp_path / "shard")
    values = torch.from_numpy(float_rows()).clone()
    alive = weakref.ref(values)
    with WriterThread(times) as out:
        out.put_rows(file, 0, StoredRows(values=values, flags_B=GOOD))
        del values
        out.put(lambda: None)
        out.drain()
        assert alive() is None
    file.close()


@pytest.mark.parametrize(
    ("numbers", "expected"), [([0, 1, 2, 5, 7, 8], [(0, 3), (5, 6), (7, 9)]), ([], []), ([3], [(3, 4)]), ([0, 2], [(0, 1), (2, 3)])]
)
def test_runs_of_rows_are_found(numbers: list[int], expected: list[tuple[int, int]]) -> None:
    assert consecutive_ranges(np.array(numbers, dtype=np.int64)) == expected


@pytest.mark.parametrize("lost_at", ["write", "commit"])
def test_a_run_that_loses_a_shard_ends_and_can_be_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_at: str) -> None:
    """After a long halt of this process another one may have taken the shard; here it gives it back at once."""
    table = tmp_path / "own.csv"
    table.write_text("text,label\n" + "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(16)))
    lost, generated = list[str](), list[int]()
    name = {"write": "still_ours", "commit": "confirm"}[lost_at]
    asked, denoise = getattr(ShardWriter, name), TextToImage.denoise

    def asked_of(self: ShardWriter) -> None:
        if not lost:
            lost.append(self.path.name)
            raise ShardBusy(self.path, "another command, after this one was suspended,")
        asked(self)

    def counted(self: TextToImage, embeddings: Any, seeds: list[int], **how: Any) -> torch.Tensor:
        generated.extend(seeds)
        assert len(generated) <= 32, "images are generated again and again, and nothing is written"
        return denoise(self, embeddings, seeds, **how)

    monkeypatch.setattr(ShardWriter, name, asked_of)
    monkeypatch.setattr(TextToImage, "denoise", counted)
    small: dict[str, Any] = {"generator": "demo", "encoders": ("vit-demo",), "steps": 1, "batch_size": 4, "shard_rows": 8, "size_px": 32}
    options = FeaturizeOptions(dataset=str(table), run_dir=tmp_path / "run", **small)
    with pytest.raises(ShardBusy, match="run the same command again later"):
        featurize_command(options)
    assert featurize_command(options)["complete"]
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert not list((tmp_path / "run").rglob("*.lease"))
