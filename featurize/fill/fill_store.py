"""Fill a store: text → prompt → image → tokens → disk, a block of images at a time.

Pixels exist on the device only, for one block. A block is a fixed range of rows of a shard, so that a resumed run computes the same
batches, and therefore the same bytes, as one that was never interrupted. A thread writes and commits while the next block is generated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.fill.block import BlockRunner, BlockTask, Models, PromptWindow, RunState, window_rows
from featurize.fill.shards import ShardFiller
from featurize.fill.text_column import TextRows, TextVectors
from featurize.fill.writer_thread import stored_form
from featurize.plan.job import Job
from featurize.plan.parts import WHOLE, Part
from featurize.plan.prompt_figures import prompt_figures
from featurize.plan.prompt_reader import prompt_reader
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.layout import CANDIDATES, LATENTS, PROMPT_TEXT
from lugpi_core.store.shard import ShardWriter, flag_of
from lugpi_core.store.writer import ColumnWriter


def fill(job: Job, writers: Mapping[str, ColumnWriter], models: Models, state: RunState, part: Part = WHOLE) -> Iterator[None]:
    """Fill every shard that is not final, those of a part first, counting in ``state``; yield after each block.

    Raises:
        InputError: more rows failed than may.
        Stopped: the run was asked to stop; every computed block is written.
    """
    with ImageFiller(job, writers, models, state) as filler:
        yield from filler.fill(part)


def write_examples(job: Job, corpus: Corpus) -> None:
    """Write the table of examples: the images of each, whether its prompt is longer than the generator reads, and what of all is read."""
    figures, cut_N = prompt_figures(corpus, job.plan, job.prompts, prompt_reader(job.generator))
    table = ExampleTable(
        drawings=job.plan.images_of_example,
        prompt_cut=cut_N,
        corpus_fingerprint=corpus.fingerprint(),
        prompt_figures=figures,
        subset=None if job.plan.subset is None else job.plan.subset.fingerprint(),
    )
    write_example_table(job.store, corpus, table)


class ImageFiller(ShardFiller):
    """Fills latents and tokens, and text vectors of the same prompts. Holds one window of prompts too."""

    def __init__(self, job: Job, writers: Mapping[str, ColumnWriter], models: Models, state: RunState) -> None:
        super().__init__(writers, state)
        self._job, self._models = job, models
        self._runner = BlockRunner(job.plan, models, state)
        self._vectors = None
        if PROMPT_TEXT in writers:
            self._vectors = TextVectors(job, models.text_to_image.parts, state, models.free_bytes)

    def fill_shard(self, shard: int, files: dict[str, ShardWriter]) -> Iterator[None]:
        """Compute what a claimed shard lacks, in every column; yield after each block."""
        layout, size = next(iter(files.values())).layout, window_rows(self._job)
        of_images = {name: file for name, file in files.items() if name != PROMPT_TEXT}
        text, stored = self._text_rows(files), self._stored_latents(shard)
        for begin in range(0, layout.rows, size):
            end = min(begin + size, layout.rows)
            tasks = list(self._tasks(of_images, stored, range(begin, end))) if of_images else []
            images = range(layout.first_row + begin, layout.first_row + end)
            window = self._prompt_window(images, [task for _, task in tasks], text)
            for rows, task in tasks:
                self._state.stop.check()
                self._run_block(of_images, rows, task, window)
                yield
            if not of_images:
                self._state.texts += len(images)
                yield
        self.commit(shard, files)

    def _text_rows(self, files: dict[str, ShardWriter]) -> TextRows | None:
        if self._vectors is None or PROMPT_TEXT not in files:
            return None
        write = partial(self.put_rows, PROMPT_TEXT, files[PROMPT_TEXT])
        return TextRows(files[PROMPT_TEXT], write, self._vectors, self._job.plan)

    def _tasks(self, files: dict[str, ShardWriter], stored: "_Latents | None", window: range) -> Iterator[tuple[slice, BlockTask]]:
        """Yield the blocks of a window that lack something, and count the others."""
        layout = next(iter(files.values())).layout
        for first in range(window.start, window.stop, self._job.batch_size):
            rows = slice(first, min(first + self._job.batch_size, window.stop))
            if any(not file.valid[rows].all() for file in files.values()):
                yield rows, self._task(files, stored, layout.first_row, rows)
            else:
                self._state.kept += rows.stop - rows.start

    def _prompt_window(self, images: range, tasks: list[BlockTask], text: TextRows | None) -> PromptWindow | None:
        """Encode the prompts of a window, or return None if all its latents are stored, and its text vectors, if there are any."""
        missing = [image for task in tasks if task.latents_BChw is None for image in task.images]
        if not missing and (text is None or not text.lacking(images)):
            return None
        self._state.stop.check()
        return PromptWindow(self._job.plan, images, missing, self._models.text_to_image, self._state, text)

    def _run_block(self, files: dict[str, ShardWriter], rows: slice, task: BlockTask, window: PromptWindow | None) -> None:
        block = self._runner.run(task, window)
        failed_B = np.zeros(len(task.images), dtype=bool)
        for name, file in files.items():
            if not file.valid[rows].all():
                failed_B |= block.failed[name] & ~file.valid[rows]
                self.put_rows(name, file, rows.start, stored_form(block.values[name], block.flags[name], file.layout.dtype))
        self._state.failed += int(failed_B.sum())
        if self._state.failed > self._job.most_failed:
            precision = "--dtype float32, " if self._job.compute.dtype != "float32" else ""
            raise InputError(
                got=f"{self._state.failed} failed rows of {max(self._state.generated, self._state.decoded):,}",
                expected=f"at most {self._job.most_failed} (--max-failed)",
                do=f"see python -m featurize info, and try {precision}another --generator, encoder or --size-px; what is written is kept",
            )

    def _task(self, files: dict[str, ShardWriter], stored: "_Latents | None", first_row: int, rows: slice) -> BlockTask:
        encoders = [name for name, file in files.items() if name not in (LATENTS, CANDIDATES) and not file.valid[rows].all()]
        latents = None
        if CANDIDATES not in files or files[CANDIDATES].valid[rows].all():  # else all candidates are drawn again
            latents = stored.rows(rows) if stored is not None else _latents_in(files.get(LATENTS), rows)
        return BlockTask(
            images=range(first_row + rows.start, first_row + rows.stop),
            missing_B=np.logical_or.reduce([~file.valid[rows] for file in files.values()]),
            retry=self._job.retry,
            latents_BChw=None if latents is None else torch.from_numpy(latents.values_BChw),
            latent_flags_B=None if latents is None else torch.from_numpy(latents.flags_B),
            encoders=tuple(encoders),
        )

    def _stored_latents(self, shard: int) -> "_Latents | None":
        """Return the latents of a shard if they are final already."""
        writer = self._writers.get(LATENTS)
        if writer is None or not writer.is_committed(shard):
            return None
        values_BChw = writer.read_committed(shard)
        flags_B = np.zeros(len(values_BChw), dtype=np.uint8)
        for row, reason in writer.records[shard]["flagged"].items():
            flags_B[int(row)] = flag_of(reason)
        return _Latents(values_BChw=values_BChw, flags_B=flags_B)


@dataclass(frozen=True, kw_only=True)
class _Latents:
    """Stored latents: float16 [B, C, h, w], with the flags of the rows that failed when they were generated."""

    values_BChw: NDArray[np.float16]
    flags_B: NDArray[np.uint8]

    def rows(self, rows: slice) -> "_Latents":
        return _Latents(values_BChw=self.values_BChw[rows], flags_B=self.flags_B[rows])


def _latents_in(unfinished: ShardWriter | None, rows: slice) -> _Latents | None:
    """Return the latents of a block if an earlier run wrote all of them."""
    if unfinished is None or not unfinished.valid[rows].all():
        return None
    values_BChw = np.array(unfinished.read(rows.start, rows.stop - rows.start))
    return _Latents(values_BChw=values_BChw, flags_B=np.array(unfinished.flags()[rows]))
