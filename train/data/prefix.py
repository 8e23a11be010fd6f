"""The hidden states of all tokens after the frozen layers of a text model: computed once, kept in a column of the token store, and read
during training as image tokens are.

The column is ragged: the texts lie one behind the other, ordered by length, each with its own tokens and no padding. A row of the column
is ``TOKENS_A_ROW`` tokens of that sequence, so that checksums, resuming and reading are those of every other column.

Shapes: N texts, B in a batch, L tokens of the longest in it, S tokens, R rows of T tokens, D width.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import Fingerprint, digest
from lugpi_core.runtime.stopping import StopRequest
from lugpi_core.store.layout import ROW_DTYPES
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.reader import ColumnReader, Rows
from lugpi_core.store.shard import ShardWriter
from lugpi_core.store.writer import ColumnWriter, missing_bytes
from train.options.settings import PrefixDtype

PREFIX = "prefix_states"  # in the inputs of a batch
FOLDER = "prefix"
TOKENS_A_ROW = 16
_SHARD_BYTES = 128 << 20
# Of one forward pass: enough for a processor or a GPU to be busy, and little memory.
_TOKENS_AT_ONCE, _TEXTS_AT_ONCE = 8192, 256
_POLL_S = 0.5
_TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32}
Place = Literal["device", "pinned", "disk"]
StatesOf = Callable[[NDArray[np.int64]], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class PrefixColumn:
    """The place of the hidden states of some texts.

    Attributes:
        store: the folder that contains the column.
        lengths_N: number of tokens of each text whose states are kept.
        computed_N: number of tokens of each text that are computed for them (default: the same).
        width: D.
        fingerprint: everything that decides the states.
        dtype: as they are stored.
        license: of the text model, in one line.
    """

    store: Path
    lengths_N: NDArray[np.int64] = field(repr=False)
    width: int
    fingerprint: Fingerprint = field(repr=False)
    computed_N: NDArray[np.int64] | None = field(default=None, repr=False)
    dtype: PrefixDtype = "float16"
    license: str = ""

    @cached_property
    def spec(self) -> ColumnSpec:
        """The column's description. Its name follows from its fingerprint, so that all models that share the states share the column."""
        row_bytes = TOKENS_A_ROW * self.width * ROW_DTYPES[self.dtype].itemsize
        fingerprint = {**self.fingerprint, "stored": self.dtype}
        return ColumnSpec(
            name=digest(fingerprint)[:16],
            what="tokens",
            rows=-(-self.tokens // TOKENS_A_ROW),
            row_shape=(TOKENS_A_ROW, self.width),
            shard_rows=max(1, _SHARD_BYTES // row_bytes),
            fingerprint=fingerprint,
            dtype=self.dtype,
            license=self.license,
        )

    @property
    def tokens(self) -> int:
        """S."""
        return int(self.lengths_N.sum())

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """The texts in the order in which they are stored, [N]: by length, so that they are computed without padding."""
        return np.argsort(self.computed, kind="stable")

    @property
    def computed(self) -> NDArray[np.int64]:
        """Number of tokens of each text that are computed."""
        return self.lengths_N if self.computed_N is None else self.computed_N

    @cached_property
    def starts_N(self) -> NDArray[np.int64]:
        """The place of each text's first token in the sequence."""
        starts_N = np.empty_like(self.lengths_N)
        starts_N[self.order] = np.cumsum(self.lengths_N[self.order]) - self.lengths_N[self.order]
        return starts_N

    @cached_property
    def batches(self) -> list[NDArray[np.int64]]:
        """The texts of each forward pass, in the stored order: the same in every process, so that equal settings give equal bytes."""
        batches, first = [], 0
        lengths = self.computed[self.order]
        while first < len(lengths):
            last, most = first + 1, min(first + _TEXTS_AT_ONCE, len(lengths))
            while last < most and (last + 1 - first) * lengths[last] <= _TOKENS_AT_ONCE:
                last += 1
            batches.append(self.order[first:last])
            first = last
        return batches

    @property
    def stored_bytes(self) -> int:
        """Bytes of all states."""
        return self.spec.rows * self.spec.layout(0).bytes_of("tokens")

    @property
    def missing_bytes(self) -> int:
        """Bytes of disk that the column still needs."""
        return missing_bytes(self.store, self.spec)


def fill_prefix(column: PrefixColumn, states_of: StatesOf, stop: StopRequest) -> None:
    """Compute what a column lacks. Damaged rows are computed again; several processes may fill one column.

    Args:
        column: to be filled.
        states_of: returns the states of some texts' tokens, one text behind the other without padding, [S, D], on the CPU.
        stop: asks to stop; rows that are written are kept.

    Raises:
        InputError: the disk has no room, or states are not numbers of the column's precision.
        Stopped: a signal asked for it.
    """
    writer = ColumnWriter(column.store, column.spec)
    for shard, fault in writer.taken_back.items():
        say(f"warning: {column.spec.shard_name(shard)} of {writer.folder} was damaged ({fault}); its rows are computed again")
    waited_for = ""
    while shards := [shard for shard in range(column.spec.shards) if not writer.is_committed(shard)]:
        busy: ShardBusy | None = None
        for shard in shards:
            try:
                file = writer.claim(shard)
            except ShardBusy as error:
                busy = error
                continue
            if file is not None:
                with closing(file):
                    _fill_shard(column, file, states_of, stop)
                    writer.commit(shard, file)
        writer.refresh()
        if busy is not None:
            if busy.owner != waited_for:
                say(f"waiting for {busy.owner}, which computes hidden states of the frozen layers")
                waited_for = busy.owner
            time.sleep(_POLL_S)
            stop.check()
    writer.finish()


def _fill_shard(column: PrefixColumn, file: ShardWriter, states_of: StatesOf, stop: StopRequest) -> None:
    """Compute the missing rows of a shard, run by run."""
    missing = np.flatnonzero(~file.valid)
    for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else []:
        first = int(run[0])
        start, end = (int(row + file.layout.first_row) * TOKENS_A_ROW for row in (first, run[-1] + 1))
        waiting = np.empty((0, column.width), ROW_DTYPES[column.dtype])
        for states_SD in _pieces(column, states_of, start, min(end, column.tokens)):
            stop.check()
            waiting = np.concatenate([waiting, states_SD])
            rows = len(waiting) // TOKENS_A_ROW
            _write(file, first, waiting[: rows * TOKENS_A_ROW])
            waiting, first = waiting[rows * TOKENS_A_ROW :], first + rows
        if len(waiting):  # the end of the sequence
            _write(file, first, np.pad(waiting, ((0, TOKENS_A_ROW - len(waiting)), (0, 0))))


def _write(file: ShardWriter, first: int, states_SD: NDArray[Any]) -> None:
    rows_RTD = states_SD.reshape(-1, TOKENS_A_ROW, states_SD.shape[1])
    if len(rows_RTD):
        file.write(first, rows_RTD, np.zeros(len(rows_RTD), np.uint8))


def _pieces(column: PrefixColumn, states_of: StatesOf, start: int, end: int) -> Iterator[NDArray[Any]]:
    """Yield the states of the tokens from ``start`` to ``end``, batch by batch, as they are stored."""
    first_of_batch = [int(column.starts_N[batch[0]]) for batch in column.batches]
    for number in range(int(np.searchsorted(first_of_batch, start, side="right")) - 1, len(column.batches)):
        offset = first_of_batch[number]
        if offset >= end:
            return
        states_SD = states_of(column.batches[number]).to(_TORCH_DTYPES[column.dtype])
        if not bool(states_SD.isfinite().all()):
            raise InputError(
                got=f"hidden states of the frozen layers beyond what {column.dtype} holds",
                expected="finite numbers",
                do="give --prefix-dtype float32" if column.dtype == "float16" else "choose another text model",
            )
        yield states_SD.numpy()[max(0, start - offset) : end - offset]


def require_room(column: PrefixColumn) -> None:
    """Raise InputError if the disk has no room for what a column still needs."""
    folder = next(folder for folder in (column.store, *column.store.parents) if folder.is_dir())
    needed, free = column.missing_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            got=f"{free / 1e9:.2f} GB free in {folder} for the hidden states of {column.tokens:,} tokens",
            expected=f"{needed / 1e9:.2f} GB",
            do="make room, give another --run-dir or a shorter --max-length, or leave out --freeze-layers",
        )


class PrefixStates:
    """Reads hidden states, a batch at a time, from the device, from page-locked memory, or from the disk's page cache.

    Args:
        columns: whole ones, of the texts of a corpus and of those that follow it.
        place: where the states are during training.
        device: where the batches are created.
        left: whether padding is on the left.
    """

    def __init__(self, columns: Sequence[PrefixColumn], place: Place, device: torch.device, *, left: bool = False) -> None:
        self.place: Place = place
        self._device, self._left = device, left
        self._width, self._dtype = columns[0].width, _TORCH_DTYPES[columns[0].dtype]
        self._readers = [ColumnReader(column.store, column.spec.name, check_content=False) for column in columns]
        self._lengths_N = np.concatenate([column.lengths_N for column in columns])
        self._starts_N = np.concatenate([column.starts_N for column in columns])
        self._part_N = np.repeat(np.arange(len(columns)), [len(column.lengths_N) for column in columns])
        self._resident = None if place == "disk" else [self._whole(reader) for reader in self._readers]

    def gather(self, rows: NDArray[np.int64]) -> torch.Tensor:
        """Return the states of some texts [B, L, D] on the device, as stored, zero at padding."""
        lengths_B = self._lengths_N[rows]
        longest = int(lengths_B.max())
        on_host = self._resident is None or self.place == "pinned"
        is_pinned = on_host and self._device.type == "cuda"
        states_BLD = torch.zeros(
            (len(rows), longest, self._width), dtype=self._dtype, pin_memory=is_pinned, device="cpu" if on_host else self._device
        )
        for part in np.unique(self._part_N[rows]).tolist():
            mine = np.flatnonzero(self._part_N[rows] == part)
            flat_SD, starts = self._flat(part, rows[mine])
            for n, start, length in zip(mine.tolist(), starts.tolist(), lengths_B[mine].tolist(), strict=True):
                place = longest - length if self._left else 0
                states_BLD[n, place : place + length] = flat_SD[start : start + length]
        return states_BLD.to(self._device, non_blocking=True)

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches in order, while the system reads the states of the following ones from the disk."""
        if self._resident is not None:
            yield from batches
            return
        streams = [
            reader.ahead(_rows_of(self._starts_N[mine], self._lengths_N[mine]) for mine in self._of_part(batches, part))
            for part, reader in enumerate(self._readers)
        ]
        for batch, *_ in zip(batches, *streams, strict=True):
            yield batch

    def _of_part(self, batches: Sequence[NDArray[np.int64]], part: int) -> Iterator[NDArray[np.int64]]:
        for batch in batches:
            yield batch[self._part_N[batch] == part]

    def _flat(self, part: int, rows: NDArray[np.int64]) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Return states that contain those of some texts of a part, and where each text starts in them."""
        starts, lengths = self._starts_N[rows], self._lengths_N[rows]
        if self._resident is not None:
            return self._resident[part], starts
        stored = self._readers[part].gather_stored(_rows_of(starts, lengths))
        flat_SD = torch.from_numpy(stored["tokens"]).reshape(-1, self._width)
        counts = _last_row(starts, lengths) - starts // TOKENS_A_ROW + 1
        return flat_SD, (np.cumsum(counts) - counts) * TOKENS_A_ROW + starts % TOKENS_A_ROW

    def _whole(self, reader: ColumnReader) -> torch.Tensor:
        """Return a column in the memory of the device, or of the host."""
        on_host = self.place == "pinned"
        is_pinned = on_host and self._device.type == "cuda"
        rows_RTD = torch.empty(
            (len(reader), TOKENS_A_ROW, self._width), dtype=self._dtype, pin_memory=is_pinned, device="cpu" if on_host else self._device
        )
        for first in range(0, len(reader), reader.spec.shard_rows):
            numbers = np.arange(first, min(first + reader.spec.shard_rows, len(reader)))
            rows_RTD[first : first + len(numbers)].copy_(torch.from_numpy(reader.gather_stored(numbers)["tokens"]))
        return rows_RTD.reshape(-1, self._width)


def _last_row(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    last: NDArray[np.int64] = (starts + lengths - 1) // TOKENS_A_ROW
    return last


def _rows_of(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of a column that contain the texts, one text behind the other."""
    firsts = starts // TOKENS_A_ROW
    counts = _last_row(starts, lengths) - firsts + 1
    before = np.cumsum(counts) - counts
    return np.repeat(firsts - before, counts) + np.arange(int(counts.sum()))
