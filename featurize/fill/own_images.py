"""Encode a user's own pictures: file → pixels on the host → tokens on the device → disk, a block at a time. Nothing is generated.

Shapes: B pictures of a block, S an encoder's side, T tokens, D their width.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
from featurize.fill.results import FeaturizeResult, Progress, ProgressCallback, column_results
from featurize.fill.shards import ShardFiller, open_shards
from featurize.fill.writer_thread import stored_form
from featurize.plan.job import table_is_stale
from featurize.plan.own_images import NO_PICTURE, OwnJob
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.pictures import PictureFault
from lugpi_core.errors import InputError
from lugpi_core.files import sweep
from lugpi_core.runtime.meters import StageTimes, peak_memory_bytes
from lugpi_core.runtime.stopping import stop_on_signals
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.shard import FLAG_NO_PICTURE, FLAG_NOT_FINITE, FLAG_UNREADABLE, ShardWriter
from lugpi_core.store.virtual_view import VIEW, view_is_current, write_view
from lugpi_core.store.writer import ColumnWriter

# Pictures that are decoded at the same time; each may take 268 MB.
_READERS = 4


def fill_own(corpus: Corpus, job: OwnJob, writers: Mapping[str, ColumnWriter], progress: ProgressCallback | None) -> FeaturizeResult:
    """Encode and write what a store lacks of its pictures' tokens.

    Raises:
        InputError: a picture's shape has no place in an encoder, a picture changed meanwhile, too little memory, or too many failed rows.
        Stopped: the run was asked to stop; what is written is kept.
    """
    state = RunState(times=StageTimes(job.compute.device), batches=StageBatches({}))
    sweep(job.store)
    shards = open_shards(writers)
    spec = job.columns[0]
    missing = sum(spec.layout(shard).rows for shard in shards)
    if missing or table_is_stale(job.store, corpus, job.plan):
        (job.store / VIEW).unlink(missing_ok=True)
        prompt_cut = np.zeros(len(corpus.examples), bool)
        table = ExampleTable(drawings=job.plan.images_of_example, prompt_cut=prompt_cut, corpus_fingerprint=corpus.fingerprint())
        write_example_table(job.store, corpus, table)
    if missing:
        _encode_missing(job, writers, state, progress, missing)
    with state.times.host("publish"):
        for writer in writers.values():
            writer.add_sha256()
    if not view_is_current(job.store):
        write_view(job.store)
    return own_result(corpus, job, state, already_done=not missing)


def own_result(corpus: Corpus, job: OwnJob, state: RunState, *, already_done: bool) -> FeaturizeResult:
    """Return the figures of a store of own pictures, and what a run did for it."""
    return FeaturizeResult(
        store_dir=job.store,
        already_done=already_done,
        examples=corpus.counts(),
        images=len(job.plan),
        images_saved=job.plan.saved,
        prompts_cut_share=0.0,
        columns=column_results(job.store, job.columns),
        rows=state.rows(),
        batches={"rows": state.batches.rows, "halvings": state.batches.halvings},
        seconds=state.times.record(),
        peak_memory=peak_memory_bytes(),
        compute={**job.compute.record(), "attention": None},
        notice=None,
        is_generated=False,
        int8_lost=state.int8_lost_shares(),
    )


def _encode_missing(
    job: OwnJob, writers: Mapping[str, ColumnWriter], state: RunState, progress: ProgressCallback | None, missing: int
) -> None:
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
    models = _Models(readers=readers, encoders=encoders)
    with stop_on_signals() as state.stop, state.times.host("fill_wall"), _PictureFiller(job, writers, models, state, size) as filler:
        for _ in filler.fill():
            if progress is not None:
                done = state.kept + state.decoded
                progress(Progress(done=done, total=missing, kept=state.kept, failed=state.failed, seconds=state.times.seconds))


@dataclass(frozen=True, kw_only=True)
class _Models:
    readers: Mapping[str, PictureReader]
    encoders: Mapping[str, ImageEncoder]


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """A picture as the encoders read it: float32 [3, S, S] by column, or the flag of one that cannot be read."""

    by_column: Mapping[str, torch.Tensor]
    flag: int = 0


class _PictureFiller(ShardFiller):
    """Fills columns of tokens. Holds the pixels of one block, and those of the next, which are read meanwhile."""

    def __init__(self, job: OwnJob, writers: Mapping[str, ColumnWriter], models: _Models, state: RunState, size: int) -> None:
        super().__init__(writers, state)
        self._job, self._models, self._size = job, models, size
        self._pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1), thread_name_prefix="pictures")
        self._one_at_a_time = Lock()  # a Parquet file is read by one thread

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
        self.commit(shard, files)

    def _read_ahead(self, first_row: int, rows: slice, columns: list[str]) -> list[Future[_Pixels]]:
        return [self._pool.submit(self._pixels_of, first_row + row, columns) for row in range(rows.start, rows.stop)]

    def _pixels_of(self, row: int, columns: list[str]) -> _Pixels:
        sides = {name: self._job.encoders[name].preprocessing.size_px for name in columns}
        try:
            with self._one_at_a_time:
                data = self._job.plan.read(row)
            picture = open_picture(data)
            return _Pixels(by_column={name: self._models.readers[name].pixels(picture) for name in columns})
        except PictureFault as fault:
            flag = FLAG_NO_PICTURE if str(fault) in (NO_PICTURE, "missing file") else FLAG_UNREADABLE
            return _Pixels(by_column={name: torch.zeros(3, side, side) for name, side in sides.items()}, flag=flag)

    def _encode_block(self, files: dict[str, ShardWriter], rows: slice, columns: list[str], waiting: list[Future[_Pixels]]) -> None:
        state, failed_B = self._state, np.zeros(len(waiting), bool)
        with state.times.host("decode"):
            pixels = [future.result() for future in waiting]
        state.decoded += len(pixels)
        faults_B = torch.tensor([one.flag for one in pixels], dtype=torch.uint8)
        for name in columns:
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
