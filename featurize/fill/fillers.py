"""Begin a run, open what fills its shards, end it: the same for a whole run, a part of it and a single shard."""

import dataclasses
from collections.abc import Container, Mapping
from functools import partial

import numpy as np

from featurize.fill.block import RunState
from featurize.fill.fill_store import ImageFiller, write_examples
from featurize.fill.load_models import load_models
from featurize.fill.out_of_memory import StageBatches
from featurize.fill.own_pictures import open_picture_filler, take_back_pictures
from featurize.fill.shards import ShardFiller, open_shards
from featurize.fill.text_column import open_text_filler
from featurize.plan.growth import outgrown, texts_with_images
from featurize.plan.job import NUMBERING, Job, refuse_other_images, require_room, table_is_stale
from featurize.plan.own_pictures import OwnJob
from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, sweep
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.grow import grow_column, is_growing, sweep_growth
from lugpi_core.store.layout import PROMPT_TEXT
from lugpi_core.store.lease import has_locks, locked
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.picture_table import write_picture_table
from lugpi_core.store.reader import columns_of
from lugpi_core.store.run_manifest import RUN, agree_on_run, confirm_run, describe_run
from lugpi_core.store.virtual_view import VIEW, view_is_current, write_view
from lugpi_core.store.writer import ColumnWriter

Writers = Mapping[str, ColumnWriter]


def begin_run(corpus: Corpus, job: Job | OwnJob, *, is_shared: bool, checked: Container[int] | None = None) -> tuple[Writers, RunState]:
    """Agree with other processes on the run, open its columns, and write its tables; return the columns and an empty state.

    Args:
        corpus: whose images are stored.
        job: what is filled.
        is_shared: whether other processes may fill the same store at the same time.
        checked: the final shards that are compared with their hashes; None = all.

    Raises:
        InputError: the store is another run's, or the disk has no room; or its mirror cannot be written to.
    """
    make_folder(job.store)
    grow_store(job, is_shared=is_shared)
    refuse_other_images(job)
    require_room(job)
    for _ in range(2):  # the second time with what another machine has said that began at the same moment
        writers, state = _open_run(corpus, job, is_shared=is_shared or job.mirror is not None, checked=checked)
        if job.mirror is None or not open_shards(writers) or job.mirror.begin():
            return writers, state
    raise InputError(
        got=f"another run in {job.store}, begun at the same moment on another machine",
        expected="the same settings and corpus in all processes that fill a store",
        do="start the one that is meant again",
    )


def grow_store(job: Job | OwnJob, *, is_shared: bool) -> None:
    """Give the columns of a smaller subset the rows of the job's, theirs first; nothing is done if there are none.

    Raises:
        InputError: several processes may do so at the same time, on a file system without locks; or as ``outgrown``,
            ``refuse_other_images`` and ``grow_column``.
    """
    if is_growing(job.store):
        with locked(job.store):
            sweep_growth(job.store)
    if not outgrown(job):
        return
    if is_shared and not has_locks(job.store):
        raise InputError(
            got=f"a larger --subset by several processes in {job.store}, on a file system without locks",
            expected="one process that keeps the images that are there",
            do="run the command once without --part; it may be stopped as soon as the first image is drawn",
        )
    with locked(job.store):
        columns = outgrown(job)  # another process may have been first
        refuse_other_images(job, but=columns)  # before the first column is replaced: a store that is half grown is of neither subset
        if columns:
            kept = next(iter(columns.values()))
            say(f"the {kept.rows:,} images of --subset {texts_with_images(kept)} are kept")
            (job.store / RUN).unlink(missing_ok=True)  # it says how many rows there are
        for spec in job.every_column:
            if spec.name in columns:
                grow_column(job.store, spec)


def _open_run(corpus: Corpus, job: Job | OwnJob, *, is_shared: bool, checked: Container[int] | None) -> tuple[Writers, RunState]:
    run = describe_run(corpus.fingerprint(), job.every_column, {key: job.numbering[key] for key in NUMBERING if key in job.numbering})
    is_begun = is_shared or (job.store / RUN).exists() or not _is_complete(job)  # a complete store of earlier versions stays as it is
    if is_begun:
        agree_on_run(job.store, run, is_shared=is_shared)
    writers = {spec.name: ColumnWriter(job.store, spec, shards=checked, mirror=job.mirror) for spec in job.every_column}
    sweep(job.store)
    if isinstance(job, OwnJob):
        write_picture_table(job.store, job.plan.table())
        take_back_pictures(job, writers, checked)
    if not is_begun and open_shards(writers):
        agree_on_run(job.store, run, is_shared=is_shared)
    is_stale = table_is_stale(job.store, corpus, job.plan)
    if is_stale or open_shards(writers):
        # The view is removed until it is true again: an interrupted run leaves none, and the next one writes it.
        (job.store / VIEW).unlink(missing_ok=True)
    if is_stale or (open_shards(writers) and not is_shared):  # an earlier version's table lacks the figures of prompts
        _write_table(corpus, job)
    state = RunState(times=StageTimes(job.compute.device), batches=StageBatches({}), confirm=partial(confirm_run, job.store, run))
    return writers, state


def open_filler(job: Job | OwnJob, writers: Writers, state: RunState) -> ShardFiller:
    """Load the models of the columns that are not complete; return what fills them, a context manager.

    Raises:
        InputError: a model does not load, or does not fit the others.
    """
    if isinstance(job, OwnJob):
        return open_picture_filler(job, writers, state)
    images = {name: writer for name, writer in writers.items() if name != PROMPT_TEXT}
    if not (missing := missing_rows(images)):
        return open_text_filler(job, writers[PROMPT_TEXT], state)
    models, sizes = load_models(job, incomplete(images), missing, state.times)
    is_limited = job.execution.memory_gb is not None and job.compute.device == "cuda"
    state.batches = StageBatches(sizes.by_stage(), is_limited=is_limited)
    filler = ImageFiller(dataclasses.replace(job, batch_size=sizes.generate), writers, models, state)
    filler.compute = models.text_to_image.record()
    return filler


def finish_run(job: Job | OwnJob, writers: Writers) -> bool:
    """Write the manifests and the view if no shard is missing; return whether that is so. Any number of processes may do so."""
    if not all(writer.finish() for writer in writers.values()):
        return False
    if not view_is_current(job.store):
        write_view(job.store)
    if job.mirror is not None:
        job.mirror.finish()
    return True


def incomplete(writers: Writers) -> set[str]:
    """Return the names of the columns that lack a shard."""
    return {name for name, writer in writers.items() if len(writer.records) < writer.spec.shards}


def missing_rows(writers: Writers, shards: Container[int] | None = None) -> int:
    """Return the rows of the shards that are not final in every column; only of ``shards`` if they are given."""
    if not writers:
        return 0
    spec = next(iter(writers.values())).spec
    return sum(spec.layout(shard).rows for shard in open_shards(writers) if shards is None or shard in shards)


def _is_complete(job: Job | OwnJob) -> bool:
    present = columns_of(job.store)
    return all(spec.name in present and len(load_manifest(job.store / spec.name)[1]) == spec.shards for spec in job.every_column)


def _write_table(corpus: Corpus, job: Job | OwnJob) -> None:
    if isinstance(job, Job):
        write_examples(job, corpus)
        return
    prompt_cut = np.zeros(len(corpus.examples), bool)
    table = ExampleTable(drawings=job.plan.images_of_example, prompt_cut=prompt_cut, corpus_fingerprint=corpus.fingerprint())
    write_example_table(job.store, corpus, table)
