"""The pipeline of featurize: text → prompt → image → tokens → store, a block of drawings at a time.

Pixels exist on the device, for one block. A block is a fixed range of rows of a shard, so that a resumed run computes the same batches, and
therefore the same bytes, as one that was never interrupted. Writing and committing run in a thread beside the drawing.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.fill.block import BlockMaker, Models, Task, WindowOfPrompts, Work
from featurize.fill.writer_thread import Output, stored_form
from featurize.generate.text_to_image import prompts_are_cut
from featurize.plan.job import Job
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.shard import ShardWriter, flag_of
from lugpi_core.store.writer import ColumnWriter

POLL_S = 0.2
# Prompts whose embeddings are held at once: 162 MB for Stable Diffusion 2.
WINDOW_ROWS = 1024


def fill(job: Job, writers: dict[str, ColumnWriter], models: Models, work: Work) -> Iterator[None]:
    """Fill every shard that is not final, adding up in ``work``; yield after each block.

    Other processes may fill the same store: a shard that one of them is writing is left to it, and waited for at the end, lest it dies.

    Raises:
        InputError: more rows have failed than may.
        Stopped: the run was asked to stop; every block that was made is written.
    """
    filler, waited_for = _Filler(job, writers, models, work), ""
    with filler:
        while shards := open_shards(writers):
            busy: ShardBusy | None = None
            for shard in shards:
                try:
                    files = filler.claim(shard)
                except ShardBusy as error:
                    busy = error
                    continue
                if files:
                    yield from filler.fill_shard(shard, files)
            filler.settle()
            if busy and open_shards(writers) == shards:
                if busy.owner != waited_for:
                    say(f"waiting for {busy.owner}, which is writing what is missing")
                    waited_for = busy.owner
                with work.times.host("wait"):
                    time.sleep(POLL_S)
                work.stop.check()


def write_examples(job: Job, corpus: Corpus) -> None:
    """Write the table of examples: the images of each, and whether its prompt is longer than the generator reads."""
    cut = prompts_are_cut(job.generator, job.plan.prompts)[job.plan.prompt_of_example]
    table = ExampleTable(drawings=job.plan.drawings, prompt_cut=cut, corpus_fingerprint=corpus.fingerprint())
    write_example_table(job.store, corpus, table)


def open_shards(writers: dict[str, ColumnWriter]) -> list[int]:
    """Return the shards that are not final in every column."""
    shards = next(iter(writers.values())).spec.shards
    return [shard for shard in range(shards) if not all(writer.is_committed(shard) for writer in writers.values())]


class _Filler:
    """Fills the shards of one store. Holds the shards that are being written, one window of prompts and the blocks on their way out."""

    def __init__(self, job: Job, writers: dict[str, ColumnWriter], models: Models, work: Work) -> None:
        self._job, self._writers, self._models, self._work = job, writers, models, work
        self._maker = BlockMaker(job.plan, models, work)
        self._output = Output(work.times)
        self._claimed: list[ShardWriter] = []

    def __enter__(self) -> "_Filler":
        return self

    def __exit__(self, *stopped_by: Any) -> None:
        try:
            self._output.__exit__(*stopped_by)
        finally:
            for file in self._claimed:
                file.close()

    def settle(self) -> None:
        """Wait until all that was made is written, and look at what other processes have done."""
        self._output.drain()
        for writer in self._writers.values():
            writer.refresh()

    def claim(self, shard: int) -> dict[str, ShardWriter]:
        """Return the shard of each column where it is not final yet.

        Raises:
            ShardBusy: another process is writing one of them; none is claimed then.
        """
        claimed: dict[str, ShardWriter] = {}
        try:
            for name, writer in self._writers.items():
                file = writer.claim(shard)
                if file is not None:
                    claimed[name] = file
        except BaseException:
            for file in claimed.values():
                file.close()
            raise
        self._claimed += claimed.values()
        return claimed

    def fill_shard(self, shard: int, files: dict[str, ShardWriter]) -> Iterator[None]:
        """Make what a claimed shard lacks, in every column; yield after each block."""
        layout, size, images = next(iter(files.values())).layout, self._job.batch_size, self._job.plan.images_per_text
        stored = self._stored_latents(shard)
        span = size * images * max(1, WINDOW_ROWS // (size * images))
        for begin in range(0, layout.rows, span):
            tasks = []
            for first in range(begin, min(begin + span, layout.rows), size):
                rows = slice(first, min(first + size, layout.rows))
                if any(not file.valid[rows].all() for file in files.values()):
                    tasks.append((rows, self._task(files, stored, layout.first_row, rows)))
            drawn = [drawing for _, task in tasks if task.latents_BChw is None for drawing in task.drawings]
            window = None
            if drawn:
                self._work.stop.check()
                text_to_image = self._models.text_to_image
                end = min(begin + span, layout.rows)
                drawings = range(layout.first_row + begin, layout.first_row + end)
                window = WindowOfPrompts(self._job.plan, drawings, drawn, text_to_image, self._work)
            for rows, task in tasks:
                self._work.stop.check()
                self._make(files, rows, task, window)
                yield
        for name, file in files.items():
            self._output.put(partial(self._commit, name, shard, file))

    def _make(self, files: dict[str, ShardWriter], rows: slice, task: Task, window: WindowOfPrompts | None) -> None:
        block = self._maker.make(task, window)
        failed_B = np.zeros(len(task.drawings), dtype=bool)
        for name, file in files.items():
            if not file.valid[rows].all():
                failed_B |= block.failed[name] & ~file.valid[rows]
                self._output.put_rows(file, rows.start, stored_form(block.values[name], block.flags[name], file.layout.dtype))
        self._work.failed += int(failed_B.sum())
        if self._work.failed > self._job.most_failed:
            raise InputError(
                got=f"{self._work.failed} failed rows of {max(self._work.drawn, self._work.decoded):,}",
                expected=f"at most {self._job.most_failed} (--max-failed)",
                do="look at python -m featurize info, and try --dtype float32, another --generator or --size-px; what is written is kept",
            )

    def _commit(self, name: str, shard: int, file: ShardWriter) -> None:
        with self._work.times.host("commit"):
            self._writers[name].commit(shard, file)
        self._claimed.remove(file)

    def _task(self, files: dict[str, ShardWriter], stored: "_Latents | None", first_row: int, rows: slice) -> Task:
        wanting = [name for name, file in files.items() if name != LATENTS and not file.valid[rows].all()]
        missing_B = np.logical_or.reduce([~file.valid[rows] for file in files.values()])
        known = stored.rows(rows) if stored is not None else _latents_in(files.get(LATENTS), rows)
        return Task(
            drawings=range(first_row + rows.start, first_row + rows.stop),
            missing_B=missing_B,
            retry=self._job.retry,
            latents_BChw=None if known is None else torch.from_numpy(known.values_BChw),
            latent_flags_B=None if known is None else torch.from_numpy(known.flags_B),
            encoders=tuple(wanting),
        )

    def _stored_latents(self, shard: int) -> "_Latents | None":
        """Return the latents of a shard whose latents are final already."""
        writer = self._writers.get(LATENTS)
        if writer is None or not writer.is_committed(shard):
            return None
        values_BChw = writer.read_committed(shard)
        flags_B = np.zeros(len(values_BChw), dtype=np.uint8)
        for row, why in writer.records[shard]["flagged"].items():
            flags_B[int(row)] = flag_of(why)
        return _Latents(values_BChw=values_BChw, flags_B=flags_B)


@dataclass(frozen=True, kw_only=True)
class _Latents:
    """Latents that were read: float16 [B, C, h, w], with the flags of the rows that failed when they were drawn."""

    values_BChw: NDArray[np.float16]
    flags_B: NDArray[np.uint8]

    def rows(self, rows: slice) -> "_Latents":
        return _Latents(values_BChw=self.values_BChw[rows], flags_B=self.flags_B[rows])


def _latents_in(partial_file: ShardWriter | None, rows: slice) -> _Latents | None:
    """Return the latents of a block that an earlier run has written whole."""
    if partial_file is None or not partial_file.valid[rows].all():
        return None
    values_BChw = np.array(partial_file.read(rows.start, rows.stop - rows.start))
    return _Latents(values_BChw=values_BChw, flags_B=np.array(partial_file.flags()[rows]))
