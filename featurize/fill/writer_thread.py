"""From the device to the disk while the next block is generated: copies to page-locked memory, and a thread that writes.

Shapes: B rows.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.runtime.meters import StageTimes
from lugpi_core.store.quantize import lost_values, quantize
from lugpi_core.store.shard import ShardWriter

# Rows that wait to be written: as many as the slowest GPU computes while a shard is committed; a kill loses no more.
MOST_WAITING_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class StoredRows:
    """Rows of a block as they are written: values [B, ...], flags uint8 [B]. If the column is int8, also float32 scales [B, T], and int64
    [2]: the values that are not 0, and those of them that int8 loses."""

    values: torch.Tensor
    flags_B: torch.Tensor
    scales_BT: torch.Tensor | None = None
    lost_2: torch.Tensor | None = None


def stored_form(values_B: torch.Tensor, flags_B: torch.Tensor, dtype: str) -> StoredRows:
    """Return rows as a column stores them: flagged rows are zeros, int8 has its scales. Nothing leaves the device."""
    good = torch.where((flags_B == 0).view(-1, *[1] * (values_B.ndim - 1)), values_B, 0)
    if dtype == "int8":
        values, scales_BT = quantize(good)
        return StoredRows(values=values, flags_B=flags_B, scales_BT=scales_BT, lost_2=lost_values(good, values))
    return StoredRows(values=good.to(torch.float16), flags_B=flags_B)


class WriterThread:
    """A thread that writes what it is given, in that order. Holds at most ``MOST_WAITING_BYTES`` of rows. An error in the thread is raised
    by a later call, and nothing is written after it."""

    def __init__(self, times: StageTimes) -> None:
        self._times = times
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="output")
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._failed = False
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]

    def put(self, work: Callable[[], None], size_bytes: int = 0) -> None:
        """Queue ``work``, which holds ``size_bytes``; block while the queue is over its limit."""
        while self._waiting and (self._waiting[0][0].done() or self._held_bytes() + size_bytes > MOST_WAITING_BYTES):
            self._wait_for_oldest("stall")
        self._waiting.append((self._thread.submit(self._run_unless_failed, work), size_bytes))

    def put_rows(self, file: ShardWriter, first: int, rows: StoredRows) -> None:
        """Queue rows of a block, to be written from local row ``first`` on; rows that the shard has already are left out."""
        arrive = self._to_host(rows)

        def write() -> None:
            with self._times.host("copy"):
                values, flags, scales = arrive()
            with self._times.host("write"):
                for start, stop in consecutive_ranges(np.flatnonzero(~file.valid[first : first + len(values)])):
                    part = slice(start, stop)
                    file.write(first + start, values[part], flags[part], None if scales is None else scales[part])

        self.put(write, rows.values.nbytes)

    def drain(self) -> None:
        """Wait until the queue is empty; raise what failed."""
        while self._waiting:
            self._wait_for_oldest("finish")

    def __enter__(self) -> "WriterThread":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # After an interruption, too, what was computed is written.
        try:
            if kind is None:
                self.drain()
        finally:
            self._thread.shutdown()

    def _wait_for_oldest(self, stage: str) -> None:
        future, _ = self._waiting[0]
        if not future.done():
            with self._times.host(stage):
                future.exception()
        self._waiting.popleft()
        future.result()

    def _held_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes in self._waiting)

    def _run_unless_failed(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise

    def _to_host(self, rows: StoredRows) -> Callable[[], tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.float32] | None]]:
        """Start copying rows to the host; return a function that waits for the copies and returns them."""
        tensors = [rows.values, rows.flags_B, *([] if rows.scales_BT is None else [rows.scales_BT])]
        arrived: torch.cuda.Event | None = None
        if rows.values.is_cuda:
            assert self._stream is not None
            # A separate stream, so that the copy runs at the same time as the next block's kernels.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                copies = [torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True) for tensor in tensors]
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record()
            for tensor in tensors:
                tensor.record_stream(self._stream)
            tensors = copies

        def arrive() -> tuple[NDArray[Any], NDArray[np.uint8], NDArray[np.float32] | None]:
            if arrived is not None:
                arrived.synchronize()
            values, flags, *scales = [tensor.numpy() for tensor in tensors]
            return values, flags, scales[0] if scales else None

        return arrive


def consecutive_ranges(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ascending numbers as half-open ranges: [0, 1, 2, 5] → [(0, 3), (5, 6)]."""
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks) if len(run)]
