"""Text → token store: the Python function ``featurize`` and the command ``python -m featurize``.

Both plan first (which images, with which models, into which columns: ``plan``), then fill the store (``fill``) if anything is missing.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.fill.results import MOST_LOST, FeaturizeResult, Progress, ProgressCallback, column_results, progress_bar
from featurize.options import OF_LABELLED, FeaturizeOptions, FeaturizeSettings
from featurize.plan.parts import WHOLE, Part, part_of_environment, part_of_text
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.errors import InputError, number_of
from lugpi_core.fields import require_type
from lugpi_core.remote.run import open_run
from lugpi_core.runtime.ranks import find_rank

if TYPE_CHECKING:
    from featurize.cost.estimate import Estimate
    from featurize.fill.block import RunState
    from featurize.plan.job import Job
    from featurize.plan.own_pictures import OwnJob
    from lugpi_core.corpora.corpus import Corpus
    from lugpi_core.store.token_store import TokenStore

_LESS_MEMORY = "see --dry-run for what is needed; free memory, or take a smaller --size-px, generator or encoder; what is written is kept"
_LESS_MEMORY_TO_ENCODE = "free memory, or take a smaller encoder; what is written is kept"


def featurize(
    corpus: "Corpus",
    run_dir: str | Path,
    *,
    generator: str = "fast",
    encoders: Sequence[str] = ("clip-vit-b32",),
    settings: FeaturizeSettings | None = None,
    progress: ProgressCallback | bool = True,
) -> "TokenStore":
    """Generate an image for every distinct prompt of a corpus, or of a subset of it, encode it and keep the tokens; return the store.
    Continues an existing one.

    The store is ``run_dir``/tokens, or ``run_dir``/tokens-NAME for a corpus without labels. Ctrl-C and SIGTERM end the run after the
    current block; what is written is kept.

    Memory: the models, one block of images and two on their way to the disk, the embeddings of 1,024 prompts, the corpus's texts and, while
    encoders are added, one shard of latents. Nothing grows with the store.

    Args:
        corpus: ``load_corpus(…)`` or ``Corpus.from_texts(…)``.
        run_dir: the run's folder; created if missing.
        generator: as ``--generator``: a preset, ``PRESET=FOLDER``, a folder or a hub id.
        encoders: as ``--encoders``; one column of tokens each.
        settings: everything else that the command has flags for.
        progress: called after each block of images; True shows a progress bar on stderr, False nothing.

    Raises:
        InputError: a setting, a prompt, a model's files or the store is not as it must be; too little memory or disk; too many failed rows.
        Stopped: a KeyboardInterrupt; the run was asked to stop.
    """
    from lugpi_core.store.token_store import TokenStore

    job = plan_call(corpus, run_dir, generator=generator, encoders=encoders, settings=settings)
    with progress_bar() if progress is True else nullcontext(progress or None) as callback:
        return TokenStore(fill_store(corpus, job, callback).store_dir)


def plan_call(
    corpus: "Corpus", run_dir: str | Path, *, generator: str, encoders: Sequence[str], settings: FeaturizeSettings | None
) -> "Job | OwnJob":
    """Return everything that is known before a model is loaded; the arguments are those of ``featurize``."""
    from lugpi_core.corpora.corpus import Corpus
    from lugpi_core.runtime.libraries import prepare_libraries

    require_type("corpus", corpus, Corpus)
    encoders, generator = _names_of(encoders), str(generator) if isinstance(generator, Path) else generator
    if not isinstance(generator, str):
        raise InputError(got=f"generator={generator!r:.80}", expected="a name or a folder", do="give for instance 'fast'")
    prepare_libraries()
    settings = FeaturizeSettings() if settings is None else settings
    require_type("settings", settings, FeaturizeSettings)
    flags = {"dataset": corpus.name, "generator": generator, "encoders": list(encoders), **resolved_flags(settings)}
    return plan_in_memory(corpus, _store_folder(corpus, open_run(Path(run_dir), None)), settings=settings, flags=flags)


def plan_in_memory(corpus: "Corpus", store: Path, *, settings: FeaturizeSettings, flags: dict[str, Any]) -> "Job | OwnJob":
    """Return everything that is known before a model is loaded; ``flags``, those that a store records, name the models."""
    return _plan(corpus, store, generator=flags.get("generator", "fast"), settings=settings, flags=flags)


def _plan(corpus: "Corpus", store: Path, *, generator: str, settings: FeaturizeSettings, flags: dict[str, Any]) -> "Job | OwnJob":
    """Return the job of generating images, or of encoding those that the corpus has."""
    import dataclasses

    from featurize.plan.job import plan_job
    from featurize.plan.own_pictures import plan_own_job
    from lugpi_core.store.object_store import mirror_of

    mirror = mirror_of(store)
    if mirror is not None:
        mirror.pull()
    job: Job | OwnJob
    if corpus.has_pictures:
        job = plan_own_job(corpus, store, encoders=flags["encoders"], settings=settings, made_by=flags)
    else:
        job = plan_job(corpus, store, generator=generator, encoders=flags["encoders"], settings=settings, made_by=flags)
    return dataclasses.replace(job, mirror=mirror)


def _names_of(encoders: object) -> tuple[str, ...]:
    """Return the names of encoders; folders may be given as paths.

    Raises:
        InputError: no list of names and folders, or an empty one.
    """
    items = list(encoders) if isinstance(encoders, (list, tuple)) else encoders
    if not isinstance(items, list) or not items or not all(isinstance(item, (str, Path)) and str(item).strip() for item in items):
        raise InputError(
            got=f"encoders={encoders!r:.80}", expected="a list of at least one name or folder", do="give for instance ['clip-vit-b32']"
        )
    return tuple(map(str, items))


def featurize_command(options: FeaturizeOptions, *, retry: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Run ``python -m featurize``; return the figures of its last line.

    Args:
        options: the flags.
        retry: images that failed before, and are generated again in float32.
    """
    from lugpi_core.runtime.device import take_own_device
    from lugpi_core.runtime.libraries import prepare_libraries
    from lugpi_core.runtime.meters import provenance

    part, source = part_of_environment(os.environ) if options.part is None else (part_of_text(options.part), "--part")
    prepare_libraries()
    if options.device != "cpu" and (rank := find_rank(os.environ)):
        take_own_device(rank.local_rank)
    corpus, job = plan_command(options)
    if options.dry_run:
        return _dry_run(corpus, job)
    if part.count > 1:
        say(f"part {part} ({source})")
    with progress_bar() as progress:
        result = fill_store(corpus, job, progress, retry=retry, part=part)
    announce_result(result)
    return result.record() | {"config": resolved_flags(options), "provenance": provenance()}


def plan_command(options: FeaturizeOptions) -> "tuple[Corpus, Job | OwnJob]":
    """Return the corpus of a command and everything that is known before a model is loaded; nothing in the store is touched.

    Raises:
        InputError: a flag, the corpus, a model's files or the store's folder is not as it must be.
    """
    from lugpi_core.corpora.load import load_corpus, load_unlabelled_for
    from lugpi_core.corpora.user_corpus import load_unlabelled
    from lugpi_core.runtime.libraries import prepare_libraries

    prepare_libraries()
    if options.unlabelled is None:
        corpus = load_corpus(options.dataset, options)
    elif options.prompts in OF_LABELLED:
        corpus = load_unlabelled_for(options.dataset, options.unlabelled, options)
    else:
        corpus = load_unlabelled(options.unlabelled, options)
    place = options.run_of(options.dataset, options.limit)  # refuses a --scratch without an address
    store = _store_folder(corpus, place if options.run_dir is None else open_run(options.run_dir, options.scratch))
    flags = {**_repeatable_flags(options), "encoders": list(options.encoders)}
    return corpus, _plan(corpus, store, generator=options.generator, settings=options, flags=flags)


def fill_store(
    corpus: "Corpus",
    job: "Job | OwnJob",
    progress: ProgressCallback | None = None,
    *,
    retry: frozenset[int] = frozenset(),
    part: Part = WHOLE,
) -> FeaturizeResult:
    """Generate, encode and write what a store lacks. The images ``retry`` failed before, and are generated again in float32.

    Raises:
        InputError: the store has images of other settings; too little memory or disk; too many failed rows.
        Stopped: the run was asked to stop; what is written is kept.
    """
    import dataclasses

    from featurize.fill.fillers import begin_run, finish_run, missing_rows, open_filler
    from featurize.fill.shards import open_shards
    from featurize.plan.growth import outgrown
    from featurize.plan.job import Job, refuse_other_images
    from lugpi_core.files import is_writable
    from lugpi_core.runtime.stopping import stop_on_signals
    from lugpi_core.store.verify import row_ranges

    if not is_writable(job.store):
        refuse_other_images(job, but=outgrown(job))
        _refuse_unfinished(corpus, job)
        announce(corpus, job)
        return result_of(corpus, job, _nothing_done(job), None)
    writers, state = begin_run(corpus, job, is_shared=part.count > 1, checked=part)
    for writer in writers.values():
        for shard, fault in writer.taken_back.items():
            say(f"{writer.folder / writer.spec.shard_name(shard)}: {fault}; its damaged rows are generated again")
    announce(corpus, job)
    job = dataclasses.replace(job, retry=retry) if isinstance(job, Job) else dataclasses.replace(job, plan=job.plan.retried(retry))
    compute = None
    if missing := missing_rows(writers, part) or (part.count > 1 and missing_rows(writers)):
        with memory_in_one_line(_LESS_MEMORY if isinstance(job, Job) else _LESS_MEMORY_TO_ENCODE):
            filler = open_filler(job, writers, state)
            with stop_on_signals() as state.stop, state.times.host("fill_wall"), filler:
                for _ in filler.fill(part):
                    if progress is not None:
                        progress(_progress_of(state, missing))
            for sentence in filler.faults():
                say(sentence)
        compute = filler.compute
    with state.times.host("publish"):
        left = [] if finish_run(job, writers) else open_shards(writers)
    if left:
        whose = "of other parts" if part.count > 1 else "that another process took back"
        say(f"part {part} is done; {number_of(len(left), 'shard{s}')} {whose} missing: {row_ranges(left)}")
    result = dataclasses.replace(result_of(corpus, job, state, compute), missing_shards=len(left))
    if part.count == 1:
        return result
    failed = [shard for writer in writers.values() for shard, record in writer.records.items() if record["flagged"] and shard in part]
    return dataclasses.replace(result, part=str(part), part_complete=not failed and not state.failed)


def _progress_of(state: "RunState", missing: int) -> Progress:
    done = state.texts + state.kept + max(state.generated, state.decoded)
    return Progress(done=done, total=max(missing, done), kept=state.kept, failed=state.failed, seconds=state.times.seconds)


def _refuse_unfinished(corpus: "Corpus", job: "Job | OwnJob") -> None:
    """Raise InputError unless a store that cannot be written to lacks nothing."""
    from featurize.plan.job import table_is_stale
    from lugpi_core.store.example_table import EXAMPLES
    from lugpi_core.store.reader import ColumnReader
    from lugpi_core.store.virtual_view import VIEW, view_is_current

    lacking = [EXAMPLES] if table_is_stale(job.store, corpus, job.plan) else []
    for spec in job.every_column:
        try:
            ColumnReader(job.store, spec.name)
        except InputError:
            lacking.append(spec.name)
    if not lacking and not view_is_current(job.store):
        lacking = [VIEW]
    if lacking:
        raise InputError(
            got=f"{job.store} (no permission to write), which has no complete {', '.join(lacking)}",
            expected="a finished store, or a folder that can be written",
            do="give yourself permission, or choose another --run-dir",
        )


def _nothing_done(job: "Job | OwnJob") -> "RunState":
    from featurize.fill.block import RunState
    from featurize.fill.out_of_memory import StageBatches
    from lugpi_core.runtime.meters import StageTimes

    return RunState(times=StageTimes(job.compute.device), batches=StageBatches({}))


def _store_folder(corpus: "Corpus", run_dir: Path) -> Path:
    from lugpi_core.files import make_folder

    folder = run_dir / ("tokens" if corpus.label_names else f"tokens-{corpus.name}")
    return folder if folder.is_dir() else make_folder(folder)  # one that exists need not be writable if nothing is missing


def _repeatable_flags(options: FeaturizeOptions) -> dict[str, Any]:
    """Return the flags for the manifest, valid in any working folder; without the store's own place, because it may be moved."""
    places = ("run_dir", "scratch", "dry_run", "part", "ray", "ray_actors")
    flags = {name: value for name, value in resolved_flags(options).items() if name not in places}
    paths = ("dataset", "validation_file", "test_file") if Path(options.dataset).is_file() else ("data_dir",)
    return {**flags, **{name: str(Path(flags[name]).resolve()) for name in (*paths, "unlabelled") if flags[name] is not None}}


def _dry_run(corpus: "Corpus", job: "Job | OwnJob") -> dict[str, Any]:
    from featurize.cost.estimate import estimate_own
    from featurize.plan.growth import outgrown
    from featurize.plan.job import Job, refuse_other_images
    from featurize.plan.prompt_figures import prompt_figures
    from featurize.plan.prompt_reader import prompt_reader

    refuse_other_images(job, but=outgrown(job))
    announce(corpus, job)
    estimate = _estimate(job) if isinstance(job, Job) else estimate_own(job)
    say(str(estimate))
    record = {"command": "featurize", "dry_run": True, "store": str(job.store), **asdict(estimate)}
    if not isinstance(job, Job):
        return record
    figures, _ = prompt_figures(corpus, job.plan, job.prompts, prompt_reader(job.generator))
    say("\n".join(figures.sentences()))
    return record | {"prompt_figures": figures.to_json()}


def _estimate(job: "Job") -> "Estimate":
    """Estimate a run from one warm-up block of its models; time and memory stay unknown if they do not load or do not fit."""
    import dataclasses

    from featurize.cost.estimate import estimate_run, missing_rows, warm_up
    from featurize.fill.load_models import load_models
    from lugpi_core.runtime.meters import StageTimes

    if not any(missing_rows(job).values()):
        return estimate_run(job, None)
    if not job.columns:
        return estimate_run(job, None, unknown_because="only prompts are encoded, which is not measured")
    job = dataclasses.replace(job, execution=dataclasses.replace(job.execution, compile="off"))
    try:
        with memory_in_one_line("free memory"):
            models, sizes = load_models(job, job.encoders, 0, StageTimes(job.compute.device))
            block = warm_up(models.text_to_image, models.encoders, job, sizes)
    except InputError as error:
        return estimate_run(job, None, unknown_because=str(error))
    return estimate_run(job, block)


@contextmanager
def memory_in_one_line(do: str) -> Iterator[None]:
    """Turn an out-of-memory that halving the batch does not help, such as models that do not fit, into one line."""
    from featurize.fill.out_of_memory import is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            got=f"too little memory ({' '.join(str(error).split())[:120]})",
            expected="room for the models and one image",
            do=do,
        ) from None


def announce(corpus: "Corpus", job: "Job | OwnJob") -> None:
    """Say what is generated, or encoded, and with what."""
    from featurize.plan.job import Job

    counts = ", ".join(f"{count:,} {split}" for split, count in corpus.counts().items())
    if not corpus.label_names:
        counts = f"{len(corpus.examples):,} unlabelled texts"
    if not isinstance(job, Job):
        say(f"{corpus.name}: {counts}; {'; '.join(job.plan.words())}")
        for name, encoder in job.encoders.items():
            say(f"encoder {name}: {encoder.words()}")
        return
    images = _images_in_words(job) if job.columns else f"{len(job.plan.prompts):,} prompts, whose images are not generated"
    say(f"{corpus.name}: {counts}; {images}")
    if job.text_column is not None:
        say(f"{job.text_column.name}: {' × '.join(map(str, job.text_column.row_shape))} vectors of each prompt by the text encoder")
    for name, encoder in job.encoders.items():
        say(f"encoder {name}: {encoder.words()}")
    say(f"generator {job.generator.origin}: {job.generator.words()}")
    if notice := job.generator.settings.notice:
        say(f"note: {notice}")
    if job.generator.is_distilled and job.plan.images_per_prompt > 1:
        say(
            "note: models distilled to few steps hardly answer to the seed; python -m featurize inspect counts near-copies among the images"
        )


def _images_in_words(job: "Job") -> str:
    from lugpi_core.store.example_table import subset_in_words

    plan = job.plan
    several = f", {plan.images_per_prompt} of each prompt" if plan.images_per_prompt > 1 else ""
    if (passages := plan.images_per_text // plan.images_per_prompt) > 1:
        several = f", one of each passage, at most {passages} of a text"
    images = f"{len(plan):,} images{several} ({plan.saved:,} saved, their prompt is shared)"
    if plan.candidates > 1:
        images += f", each the best of {plan.candidates} candidates by the CLIP score of {job.scorer}"
    if plan.subset is not None:
        images += f"; {subset_in_words(plan.subset.fingerprint(), int((~plan.has_image).sum()))}"
    return images


def announce_result(result: FeaturizeResult) -> None:
    """Say what the store holds, and what of it failed."""
    outcome = "already done" if result.already_done else "done"
    failed = ", ".join(f"{name} {count}" for name, count in result.failed_rows.items())
    cut = f"; {result.prompts_cut_share:.1%} of the texts had a prompt cut to what the generator reads" * result.is_generated
    lacking = "" if not any(result.failed_rows.values()) else f"; FAILED rows: {failed} (python -m featurize info lists them)"
    say(f"{outcome}: {result.store_dir}{cut}{lacking}")
    for name, share in result.int8_lost.items():
        if share > MOST_LOST:
            say(
                f"warning: int8 stores {share:.0%} of the values of {name} as 0, because a few dimensions are far larger than the rest "
                "and a token has one scale; use --token-dtype float16, in another --run-dir"
            )
    if result.best_of is not None:
        say(result.best_of.sentence())
    for sentence in [] if result.prompt_figures is None else result.prompt_figures.sentences():
        say(sentence)


def result_of(corpus: "Corpus", job: "Job | OwnJob", state: "RunState", compute: Mapping[str, Any] | None) -> FeaturizeResult:
    """Return what the store holds and what this process did for it; ``compute`` is how, None if nothing was missing."""
    from featurize.plan.job import Job
    from lugpi_core.runtime.meters import peak_memory_bytes
    from lugpi_core.store.candidates import candidate_figures
    from lugpi_core.store.example_table import read_example_table

    is_generated, cut_share, figures, subset = isinstance(job, Job), 0.0, None, None
    if is_generated:
        table = read_example_table(job.store, corpus)
        cut_share, figures = table.prompts_cut_share, table.prompt_figures
        if table.subset is not None:
            subset = {**table.subset, "without_image": int((~table.has_image).sum())}
    return FeaturizeResult(
        store_dir=job.store,
        already_done=compute is None,
        examples=corpus.counts(),
        images=len(job.plan),
        images_saved=job.plan.saved,
        prompts_cut_share=cut_share,
        prompt_figures=figures,
        columns=column_results(job.store, job.every_column),
        rows=state.rows(),
        batches={"rows": state.batches.rows, "halvings": state.batches.halvings},
        seconds=state.times.record(),
        peak_memory=peak_memory_bytes(),
        compute={**job.compute.record(), **(compute or {"attention": None})},
        notice=job.generator.settings.notice if isinstance(job, Job) else None,
        is_generated=is_generated,
        int8_lost=state.int8_lost_shares(),
        best_of=candidate_figures(job.store),
        subset=subset,
    )
