"""Encode a user's own pictures: file → pixels on the host → tokens on the device → disk, a block at a time. Nothing is generated.

Shapes: B pictures of a block, S an encoder's side, T tokens, D their width.
"""

import os
import warnings
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import TracebackType

import numpy as np
import torch

from featurize.cost.batch_size import MOST_AT_ONCE, limit_memory
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.own_pictures import PictureReader, open_picture
from featurize.fill.block import RunState
from featurize.fill.out_of_memory import StageBatches
from featurize.fill.shards import ShardFiller
from featurize.fill.writer_thread import stored_form
from featurize.plan.own_pictures import OwnJob
from featurize.plan.picture_plan import NO_PICTURE
from lugpi_core.command_line import say
from lugpi_core.corpora.pictures import PictureFault
from lugpi_core.errors import InputError, number_of
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.picture_table import add_faults
from lugpi_core.store.shard import FLAG_NO_PICTURE, FLAG_NOT_FINITE, FLAG_NOT_RESIZED, FLAG_UNREADABLE, ShardWriter
from lugpi_core.store.writer import ColumnWriter

# Pictures that are decoded at the same time; each may take 268 MB.
_READERS = 4
_NAMED = 3


def take_back_pictures(job: OwnJob, writers: Mapping[str, ColumnWriter], shards: Container[int] | None) -> None:
    """Forget rows of some shards, or of all, whose pictures can be read by now, so that they are encoded again."""
    for name, writer in writers.items():
        for shard, rows in job.rows_to_fill_in(name).items():
            if (shards is None or shard in shards) and writer.is_committed(shard) and writer.reopen(shard, writer.records[shard]):
                try:
                    file = writer.claim(shard)
                except ShardBusy:
                    continue  # another process does the same
                if file is not None:
                    with closing(file):
                        file.forget([row - file.layout.first_row for row in rows])


def open_picture_filler(job: OwnJob, writers: Mapping[str, ColumnWriter], state: RunState) -> ShardFiller:
    """Load the encoders of the columns that are not complete; return what encodes a user's own pictures.

    Raises:
        InputError: a picture's shape has no place in an encoder, or an encoder does not load.
    """
    limit_memory(job.execution, job.compute.device)
    incomplete = [name for name, writer in writers.items() if len(writer.records) < writer.spec.shards]
    readers = {name: PictureReader(job.encoders[name]) for name in incomplete}
    for reader in readers.values():
        reader.require_shapes([(kind.width, kind.height) for kind in job.plan.kinds])
    with state.times.stage("load"):
        encoders = {name: ImageEncoder(job.encoders[name], job.compute) for name in incomplete}
    batch = job.execution.batch_size
    size = MOST_AT_ONCE[job.compute.device] if batch == "auto" else batch
    is_limited = job.execution.memory_gb is not None and job.compute.device == "cuda"
    state.batches = StageBatches({"encode": size}, is_limited=is_limited)
    say(f"encoding on {job.compute}, {size} at a time")
    return _PictureFiller(job, writers, _Models(readers=readers, encoders=encoders), state, size)


@dataclass(frozen=True, kw_only=True)
class _Models:
    readers: Mapping[str, PictureReader]
    encoders: Mapping[str, ImageEncoder]


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """A picture as the encoders read it, by column: float32 [3, S, S], and the flag of one that cannot be read or resized, or 0."""

    by_column: Mapping[str, torch.Tensor]
    flags: Mapping[str, int]


class _PictureFiller(ShardFiller):
    """Fills columns of tokens. Holds the pixels of one block, and those of the next, which are read meanwhile."""

    def __init__(self, job: OwnJob, writers: Mapping[str, ColumnWriter], models: _Models, state: RunState, size: int) -> None:
        super().__init__(writers, state)
        self._job, self._models, self._size = job, models, size
        self._pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), thread_name_prefix="pictures")
        self._one_at_a_time = Lock()  # a Parquet file is read by one thread
        self._unread: dict[int, str] = {}  # found by this run, not by its plan
        self._not_resized: dict[int, str] = {}

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)
        super().__exit__(kind, error, trace)

    def fill_shard(self, shard: int, files: dict[str, ShardWriter]) -> Iterator[None]:
        """Encode what a claimed shard lacks, in every column; yield after each block."""
        layout = next(iter(files.values())).layout
        blocks = []
        for first in range(0, layout.rows, self._size):
            rows = slice(first, min(first + self._size, layout.rows))
            if columns := [name for name, file in files.items() if not file.valid[rows].all()]:
                blocks.append((rows, columns))
            else:
                self._state.kept += rows.stop - rows.start
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's about details of files; the filter is that of all threads
            ahead = [self._read_ahead(layout.first_row, *block) for block in blocks[:1]]
            for number, (rows, columns) in enumerate(blocks):
                self._state.stop.check()
                ahead += [self._read_ahead(layout.first_row, *block) for block in blocks[number + 1 : number + 2]]
                self._encode_block(files, rows, columns, ahead.pop(0))
                yield
        # Before the commit: a row is flagged for a fault that is on record, or else it is tried again.
        if found := {row: why for row, why in self._unread.items() if layout.first_row <= row < layout.first_row + layout.rows}:
            add_faults(self._job.store, found)
        self.commit(shard, files)

    def faults(self) -> list[str]:
        """Return which pictures turned out not to be readable, or not to be resizable, a sentence each."""
        sentences = []
        for what, faults in (("read", self._unread), ("resized", self._not_resized)):
            if faults:
                told = [f"{self._job.plan.rows[row].words()} ({why})" for row, why in sorted(faults.items())[:_NAMED]]
                more = f" and {len(faults) - _NAMED:,} more" if len(faults) > _NAMED else ""
                sentences.append(f"{number_of(len(faults), 'picture{s}')} cannot be {what}: {', '.join(told)}{more}")
        return sentences

    def _read_ahead(self, first_row: int, rows: slice, columns: list[str]) -> list[Future[_Pixels]]:
        return [self._pool.submit(self._pixels_of, first_row + row, columns) for row in range(rows.start, rows.stop)]

    def _pixels_of(self, row: int, columns: list[str]) -> _Pixels:
        sides = {name: self._job.encoders[name].preprocessing.size_px for name in columns}
        pixels = {name: torch.zeros(3, side, side) for name, side in sides.items()}
        flags = dict.fromkeys(columns, 0)
        try:
            with self._one_at_a_time:
                data = self._job.plan.read(row)
            picture = open_picture(data)
        except PictureFault as fault:
            if not self._job.plan.rows[row].fault:
                self._unread[row] = str(fault)
            flag = FLAG_NO_PICTURE if str(fault) in (NO_PICTURE, "missing file") else FLAG_UNREADABLE
            return _Pixels(by_column=pixels, flags=dict.fromkeys(columns, flag))
        for name in columns:
            try:
                pixels[name] = self._models.readers[name].pixels(picture)
            except PictureFault as fault:
                self._not_resized[row] = str(fault)
                flags[name] = FLAG_NOT_RESIZED
        return _Pixels(by_column=pixels, flags=flags)

    def _encode_block(self, files: dict[str, ShardWriter], rows: slice, columns: list[str], waiting: list[Future[_Pixels]]) -> None:
        state, failed_B = self._state, np.zeros(len(waiting), bool)
        with state.times.host("decode"):
            pixels = [future.result() for future in waiting]
        state.decoded += len(pixels)
        for name in columns:
            faults_B = torch.tensor([one.flags[name] for one in pixels], dtype=torch.uint8)
            pixels_B3SS = torch.stack([one.by_column[name] for one in pixels])
            encoder, file = self._models.encoders[name], files[name]
            with state.times.kernels("encode"):
                parts = state.batches.run("encode", len(pixels), partial(_encode, encoder, pixels_B3SS))
                tokens_BTD = torch.cat(parts)
            state.encoded += len(pixels)
            flags_B = self._flags_of(encoder, pixels_B3SS, tokens_BTD, faults_B)
            failed_B |= (flags_B.cpu().numpy() > 0) & ~file.valid[rows]
            self.put_rows(name, file, rows.start, stored_form(tokens_BTD, flags_B, file.layout.dtype))
        state.failed += int(failed_B.sum())
        if state.failed > self._job.most_failed:
            raise InputError(
                got=f"{state.failed:,} failed pictures of {state.decoded:,}",
                expected=f"at most {self._job.most_failed:,} (--max-failed)",
                do="see python -m featurize info for their rows, or allow more with --max-failed; what is written is kept",
            )

    def _flags_of(self, encoder: ImageEncoder, pixels_B3SS: torch.Tensor, tokens_BTD: torch.Tensor, faults_B: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B], why each row failed; tokens that are not finite are computed once more in float32, each alone."""
        finite_B = tokens_BTD.isfinite().flatten(1).all(dim=1)
        faults_B = faults_B.to(tokens_BTD.device)
        if again := ((faults_B == 0) & ~finite_B).nonzero().flatten().tolist():
            with encoder.in_float32():
                for row in again:
                    tokens_BTD[row] = encoder.encode_pixels(pixels_B3SS[row : row + 1])[0]
                    self._state.redone += 1
            finite_B = tokens_BTD.isfinite().flatten(1).all(dim=1)
        return torch.where(faults_B > 0, faults_B, torch.where(finite_B, 0, FLAG_NOT_FINITE).to(torch.uint8))


def _encode(encoder: ImageEncoder, pixels_B3SS: torch.Tensor, part: slice) -> torch.Tensor:
    return encoder.encode_pixels(pixels_B3SS[part])
