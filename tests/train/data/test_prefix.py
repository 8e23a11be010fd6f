"""Hidden states in a column of the store: ragged, resumed after a stop, mended, and read as they were computed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped, StopRequest
from lugpi_core.store.writer import ColumnWriter
from train.data import prefix
from train.data.prefix import PrefixColumn, PrefixStates, fill_prefix, require_room

CPU = torch.device("cpu")
WIDTH = 4
LENGTHS = np.array([3 + (7 * row) % 23 for row in range(40)])
OF_TEXT = [torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(row)) for row, length in enumerate(LENGTHS.tolist())]
Read = Callable[[NDArray[np.int64]], torch.Tensor]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, and forward passes that end in the middle of a row."""
    monkeypatch.setattr(prefix, "_SHARD_BYTES", 8 * prefix.TOKENS_A_ROW * WIDTH * 2)
    monkeypatch.setattr(prefix, "_TOKENS_AT_ONCE", 50)


def column_in(folder: Path, lengths: NDArray[np.int64] = LENGTHS, **given: str) -> PrefixColumn:
    return PrefixColumn(store=folder, lengths_N=lengths, width=WIDTH, fingerprint={"layers": 3, "texts": len(lengths)}, **given)  # type: ignore[arg-type]


def states_of(rows: NDArray[np.int64]) -> torch.Tensor:
    return torch.cat([OF_TEXT[row] for row in rows.tolist()])


class Counting:
    """Counts the texts that are computed, and asks to stop after some of the batches."""

    def __init__(self, stop: StopRequest | None = None, after: int = 0) -> None:
        self.rows: list[int] = []
        self._stop, self._after, self._batches = stop, after, 0

    def __call__(self, rows: NDArray[np.int64]) -> torch.Tensor:
        self.rows += rows.tolist()
        self._batches += 1
        if self._stop is not None and self._batches == self._after:
            self._stop.signal_number = 15
        return states_of(rows)


def files_of(column: PrefixColumn) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((column.store / column.spec.name).glob("shard-*"))}


@pytest.mark.parametrize("place", ["disk", "pinned", "device"])
@pytest.mark.parametrize("left", [False, True])
def test_a_batch_is_padded_with_zeros(tmp_path: Path, place: prefix.Place, left: bool) -> None:
    column = column_in(tmp_path, dtype="float32")
    fill_prefix(column, states_of, StopRequest())
    rows = np.array([5, 0, 39, 5])
    states = PrefixStates([column], place, CPU, left=left).gather(rows)
    longest = LENGTHS[rows].max()
    assert states.shape == (4, longest, WIDTH)
    for row, given in zip(rows.tolist(), states, strict=True):
        own = slice(longest - LENGTHS[row], None) if left else slice(0, LENGTHS[row])
        assert torch.equal(given[own], OF_TEXT[row])
        assert float(given.abs().sum()) == pytest.approx(float(OF_TEXT[row].abs().sum()))


def test_states_are_stored_as_float16_without_padding(tmp_path: Path) -> None:
    column = column_in(tmp_path)
    fill_prefix(column, states_of, StopRequest())
    assert column.stored_bytes == -(-LENGTHS.sum() // 16) * 16 * WIDTH * 2
    assert torch.equal(PrefixStates([column], "disk", CPU).gather(np.array([7]))[0], OF_TEXT[7].half())


def test_batches_mix_the_texts_of_two_columns(tmp_path: Path) -> None:
    first, second = column_in(tmp_path, LENGTHS[:30], dtype="float32"), column_in(tmp_path, LENGTHS[30:], dtype="float32")
    fill_prefix(first, states_of, StopRequest())
    fill_prefix(second, lambda rows: states_of(rows + 30), StopRequest())
    both = PrefixStates([first, second], "disk", CPU)
    batches = [np.array([29, 31, 2]), np.array([1]), np.array([39, 30])]
    for batch, given in zip(batches, both.ahead(batches), strict=True):
        assert given is batch
        for row, states in zip(batch.tolist(), both.gather(batch), strict=True):
            assert torch.equal(states[: LENGTHS[row]], OF_TEXT[row])


def test_a_batch_of_a_forward_pass_is_small_and_covers_each_text_once(tmp_path: Path) -> None:
    column = column_in(tmp_path)
    assert sorted(np.concatenate(column.batches).tolist()) == list(range(40))
    assert max(len(batch) * LENGTHS[batch].max() for batch in column.batches if len(batch) > 1) <= 50
    assert all(np.diff(LENGTHS[column.order]) >= 0)


def test_a_stopped_column_is_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    straight, stopped = column_in(tmp_path / "straight"), column_in(tmp_path / "stopped")
    whole = Counting()
    fill_prefix(straight, whole, StopRequest())
    stop = StopRequest()
    before = Counting(stop, after=6)
    with pytest.raises(Stopped):
        fill_prefix(stopped, before, stop)
    after = Counting()
    fill_prefix(stopped, after, StopRequest())
    assert files_of(stopped) == files_of(straight)
    assert 0 < len(after.rows) < len(whole.rows)
    again = Counting()
    fill_prefix(stopped, again, StopRequest())
    assert again.rows == []


def test_damaged_rows_are_computed_again_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    column = column_in(tmp_path)
    fill_prefix(column, states_of, StopRequest())
    before = files_of(column)
    writer = ColumnWriter(column.store, column.spec)
    path = writer.folder / writer.records[1]["file"]
    content = bytearray(path.read_bytes())
    content[writer.records[1]["offsets"]["tokens"] + 3] ^= 1
    path.write_bytes(content)
    mended = Counting()
    fill_prefix(column, mended, StopRequest())
    assert files_of(column) == before
    assert "was damaged" in capsys.readouterr().err
    assert len(mended.rows) < 12


def test_states_beyond_float16_are_refused_and_kept_in_float32(tmp_path: Path) -> None:
    def large(rows: NDArray[np.int64]) -> torch.Tensor:
        return states_of(rows) * 1e6

    with pytest.raises(InputError, match="--prefix-dtype float32"):
        fill_prefix(column_in(tmp_path), large, StopRequest())
    column = column_in(tmp_path, dtype="float32")
    fill_prefix(column, large, StopRequest())
    assert torch.equal(PrefixStates([column], "disk", CPU).gather(np.array([2]))[0], OF_TEXT[2] * 1e6)


def test_a_disk_without_room_is_refused_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = column_in(tmp_path / "not" / "yet")
    require_room(column)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=column.missing_bytes - 1))
    with pytest.raises(InputError, match="hidden states of 5"):
        require_room(column)
