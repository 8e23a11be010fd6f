"""Text → token store: the Python function ``featurize`` and the command ``python -m featurize``.

Both plan first (which images, with which models, into which columns: ``plan``), then fill the store (``fill``) if anything is missing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.fill.results import MOST_LOST, FeaturizeResult, Progress, ProgressCallback, column_results, progress_bar
from featurize.options import FeaturizeOptions, FeaturizeSettings
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.errors import InputError
from lugpi_core.fields import require_type

if TYPE_CHECKING:
    from featurize.cost.estimate import Estimate
    from featurize.fill.block import Models, RunState
    from featurize.plan.job import Job
    from featurize.plan.own_pictures import OwnJob
    from lugpi_core.corpora.corpus import Corpus
    from lugpi_core.store.token_store import TokenStore
    from lugpi_core.store.writer import ColumnWriter

_LESS_MEMORY = "see --dry-run for what is needed; free memory, or take a smaller --size-px, generator or encoder; what is written is kept"


def featurize(
    corpus: "Corpus",
    run_dir: str | Path,
    *,
    generator: str = "fast",
    encoders: Sequence[str] = ("clip-vit-b32",),
    settings: FeaturizeSettings | None = None,
    progress: ProgressCallback | bool = True,
) -> "TokenStore":
    """Generate an image for every distinct prompt of a corpus, encode it and keep the tokens; return the store. Continues an existing one.

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
    from lugpi_core.corpora.corpus import Corpus
    from lugpi_core.runtime.libraries import prepare_libraries
    from lugpi_core.store.token_store import TokenStore

    require_type("corpus", corpus, Corpus)
    encoders, generator = _names_of(encoders), str(generator) if isinstance(generator, Path) else generator
    if not isinstance(generator, str):
        raise InputError(got=f"generator={generator!r:.80}", expected="a name or a folder", do="give for instance 'fast'")
    prepare_libraries()
    settings = FeaturizeSettings() if settings is None else settings
    require_type("settings", settings, FeaturizeSettings)
    flags = {"dataset": corpus.name, "generator": generator, "encoders": list(encoders), **resolved_flags(settings)}
    job = plan_in_memory(corpus, _store_folder(corpus, Path(run_dir)), settings=settings, flags=flags)
    with progress_bar() if progress is True else nullcontext(progress or None) as callback:
        return TokenStore(fill_store(corpus, job, callback).store_dir)


def plan_in_memory(corpus: "Corpus", store: Path, *, settings: FeaturizeSettings, flags: dict[str, Any]) -> "Job | OwnJob":
    """Return everything that is known before a model is loaded; ``flags``, those that a store records, name the models."""
    return _plan(corpus, store, generator=flags.get("generator", "fast"), settings=settings, flags=flags)


def _plan(corpus: "Corpus", store: Path, *, generator: str, settings: FeaturizeSettings, flags: dict[str, Any]) -> "Job | OwnJob":
    """Return the job of generating images, or of encoding those that the corpus has."""
    from featurize.plan.job import plan_job
    from featurize.plan.own_pictures import plan_own_job

    if corpus.has_pictures:
        return plan_own_job(corpus, store, encoders=flags["encoders"], settings=settings, made_by=flags)
    return plan_job(corpus, store, generator=generator, encoders=flags["encoders"], settings=settings, made_by=flags)


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
    from lugpi_core.runtime.meters import provenance

    corpus, job = plan_command(options)
    if options.dry_run:
        return _dry_run(corpus, job)
    with progress_bar() as progress:
        result = fill_store(corpus, job, progress, retry=retry)
    _announce_result(result)
    return result.record() | {"config": resolved_flags(options), "provenance": provenance()}


def plan_command(options: FeaturizeOptions) -> "tuple[Corpus, Job | OwnJob]":
    """Return the corpus of a command and everything that is known before a model is loaded; nothing in the store is touched.

    Raises:
        InputError: a flag, the corpus, a model's files or the store's folder is not as it must be.
    """
    from lugpi_core.corpora.load import load_corpus, load_unlabelled_for
    from lugpi_core.corpora.options import default_run_dir
    from lugpi_core.corpora.user_corpus import load_unlabelled
    from lugpi_core.runtime.libraries import prepare_libraries

    prepare_libraries()
    if options.unlabelled is None:
        corpus = load_corpus(options.dataset, options)
    elif options.prompts == "keywords":
        corpus = load_unlabelled_for(options.dataset, options.unlabelled, options)
    else:
        corpus = load_unlabelled(options.unlabelled, options)
    store = _store_folder(corpus, options.run_dir or default_run_dir(options.dataset, options.limit))
    flags = {**_repeatable_flags(options), "encoders": list(options.encoders)}
    return corpus, _plan(corpus, store, generator=options.generator, settings=options, flags=flags)


def fill_store(
    corpus: "Corpus", job: "Job | OwnJob", progress: ProgressCallback | None = None, *, retry: frozenset[int] = frozenset()
) -> FeaturizeResult:
    """Generate, encode and write what a store lacks. The images ``retry`` failed before, and are generated again in float32.

    Raises:
        InputError: the store has images of other settings; too little memory or disk; too many failed rows.
        Stopped: the run was asked to stop; what is written is kept.
    """
    import dataclasses

    from featurize.fill.own_pictures import fill_own, own_result
    from featurize.plan.job import Job, refuse_other_images, require_room
    from lugpi_core.files import is_writable

    refuse_other_images(job)
    if not is_writable(job.store):
        _refuse_unfinished(corpus, job)
        _announce(corpus, job)
        done = _nothing_done(job)
        return _result(corpus, job, done, None) if isinstance(job, Job) else own_result(corpus, job, done, already_done=True)
    require_room(job)
    writers = _open_columns(job)
    _announce(corpus, job)
    if not isinstance(job, Job):
        with memory_in_one_line("free memory, or take a smaller encoder; what is written is kept"):
            return fill_own(corpus, dataclasses.replace(job, plan=job.plan.retried(retry)), writers, progress)
    with memory_in_one_line(_LESS_MEMORY):
        state, models = _fill_missing(dataclasses.replace(job, retry=retry), corpus, writers, progress)
    return _result(corpus, job, state, models)


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
    flags = {name: value for name, value in resolved_flags(options).items() if name not in ("run_dir", "dry_run")}
    paths = ("dataset", "validation_file", "test_file") if Path(options.dataset).is_file() else ("data_dir",)
    return {**flags, **{name: str(Path(flags[name]).resolve()) for name in (*paths, "unlabelled") if flags[name] is not None}}


def _dry_run(corpus: "Corpus", job: "Job | OwnJob") -> dict[str, Any]:
    from featurize.cost.estimate import estimate_own
    from featurize.plan.job import Job, refuse_other_images
    from featurize.plan.prompt_figures import prompt_figures
    from featurize.plan.prompt_reader import prompt_reader

    refuse_other_images(job)
    _announce(corpus, job)
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


def _open_columns(job: "Job | OwnJob") -> "dict[str, ColumnWriter]":
    from lugpi_core.store.writer import ColumnWriter

    writers = {spec.name: ColumnWriter(job.store, spec) for spec in job.every_column}
    for writer in writers.values():
        for shard, fault in writer.taken_back.items():
            say(f"{writer.folder / writer.spec.shard_name(shard)}: {fault}; its damaged rows are generated again")
    return writers


def _fill_missing(
    job: "Job", corpus: "Corpus", writers: "dict[str, ColumnWriter]", progress: ProgressCallback | None
) -> "tuple[RunState, Models | None]":
    """Compute what is missing; return what was done and the models, None if there was nothing to generate or encode."""
    import dataclasses

    from featurize.fill.fill_store import write_examples
    from featurize.fill.out_of_memory import StageBatches
    from featurize.plan.job import table_is_stale
    from lugpi_core.files import sweep
    from lugpi_core.store.layout import PROMPT_TEXT
    from lugpi_core.store.virtual_view import VIEW, view_is_current, write_view

    sweep(job.store)
    state, models = _nothing_done(job), None
    images = {name: writer for name, writer in writers.items() if name != PROMPT_TEXT}
    missing, texts = _missing_rows(images), _missing_rows({name: writers[name] for name in writers.keys() - images.keys()})
    if missing or texts or table_is_stale(job.store, corpus, job.plan):
        # The view is removed until it is true again: an interrupted run leaves none, and the next one writes it.
        (job.store / VIEW).unlink(missing_ok=True)
        write_examples(job, corpus)
    if missing:
        from featurize.fill.load_models import load_models

        incomplete = {name for name, writer in images.items() if len(writer.records) < writer.spec.shards}
        models, sizes = load_models(job, incomplete, missing, state.times)
        job = dataclasses.replace(job, batch_size=sizes.generate)
        is_limited = job.execution.memory_gb is not None and job.compute.device == "cuda"
        state.batches = StageBatches(sizes.by_stage(), is_limited=is_limited)
        _fill(job, writers, models, state, progress, missing + texts)
    elif texts:
        from featurize.fill.text_column import fill_text_column

        fill_text_column(job, writers[PROMPT_TEXT], state, progress, total=texts)
    with state.times.host("publish"):
        for writer in writers.values():
            writer.add_sha256()
    if not view_is_current(job.store):
        write_view(job.store)
    return state, models


def _fill(
    job: "Job",
    writers: "dict[str, ColumnWriter]",
    models: "Models",
    state: "RunState",
    progress: ProgressCallback | None,
    missing: int,
) -> None:
    from featurize.fill.fill_store import fill
    from lugpi_core.runtime.stopping import stop_on_signals

    with stop_on_signals() as state.stop, state.times.host("fill_wall"):
        for _ in fill(job, writers, models, state):
            if progress is not None:
                done = state.texts + state.kept + max(state.generated, state.decoded)
                progress(Progress(done=done, total=missing, kept=state.kept, failed=state.failed, seconds=state.times.seconds))


def _missing_rows(writers: "Mapping[str, ColumnWriter]") -> int:
    from featurize.fill.shards import open_shards

    if not writers:
        return 0
    spec = next(iter(writers.values())).spec
    return sum(spec.layout(shard).rows for shard in open_shards(writers))


def _announce(corpus: "Corpus", job: "Job | OwnJob") -> None:
    from featurize.plan.job import Job

    counts = ", ".join(f"{count:,} {split}" for split, count in corpus.counts().items())
    if not corpus.label_names:
        counts = f"{len(corpus.examples):,} unlabelled texts"
    if not isinstance(job, Job):
        say(f"{corpus.name}: {counts}; {'; '.join(job.plan.words())}")
        for name, encoder in job.encoders.items():
            say(f"encoder {name}: {encoder.words()}")
        return
    plan = job.plan
    several = f", {plan.images_per_prompt} of each prompt" if plan.images_per_prompt > 1 else ""
    if (passages := plan.images_per_text // plan.images_per_prompt) > 1:
        several = f", one of each passage, at most {passages} of a text"
    images = f"{len(plan):,} images{several} ({plan.saved:,} saved, their prompt is shared)"
    say(f"{corpus.name}: {counts}; {images if job.columns else f'{len(plan.prompts):,} prompts, whose images are not generated'}")
    if job.text_column is not None:
        say(f"{job.text_column.name}: {' × '.join(map(str, job.text_column.row_shape))} vectors of each prompt by the text encoder")
    for name, encoder in job.encoders.items():
        say(f"encoder {name}: {encoder.words()}")
    say(f"generator {job.generator.origin}: {job.generator.words()}")
    if notice := job.generator.settings.notice:
        say(f"note: {notice}")
    if job.generator.is_distilled and plan.images_per_prompt > 1:
        say(
            "note: models distilled to few steps hardly answer to the seed; python -m featurize inspect counts near-copies among the images"
        )


def _announce_result(result: FeaturizeResult) -> None:
    outcome = "already done" if result.already_done else "done"
    failed = ", ".join(f"{name} {column.failed_rows}" for name, column in result.columns.items())
    cut = f"; {result.prompts_cut_share:.1%} of the texts had a prompt cut to what the generator reads" * result.is_generated
    lacking = "" if result.complete else f"; FAILED rows: {failed} (python -m featurize info lists them)"
    say(f"{outcome}: {result.store_dir}{cut}{lacking}")
    for name, share in result.int8_lost.items():
        if share > MOST_LOST:
            say(
                f"warning: int8 stores {share:.0%} of the values of {name} as 0, because a few dimensions are far larger than the rest "
                "and a token has one scale; use --token-dtype float16, in another --run-dir"
            )
    for sentence in [] if result.prompt_figures is None else result.prompt_figures.sentences():
        say(sentence)


def _result(corpus: "Corpus", job: "Job", state: "RunState", models: "Models | None") -> FeaturizeResult:
    from lugpi_core.runtime.meters import peak_memory_bytes
    from lugpi_core.store.example_table import read_example_table

    table = read_example_table(job.store, corpus)
    return FeaturizeResult(
        store_dir=job.store,
        already_done=models is None and not state.texts,
        examples=corpus.counts(),
        images=len(job.plan),
        images_saved=job.plan.saved,
        prompts_cut_share=float(table.prompt_cut.mean()),
        prompt_figures=table.prompt_figures,
        columns=column_results(job.store, job.every_column),
        rows=state.rows(),
        batches={"rows": state.batches.rows, "halvings": state.batches.halvings},
        seconds=state.times.record(),
        peak_memory=peak_memory_bytes(),
        compute={**job.compute.record(), **({"attention": None} if models is None else models.text_to_image.record())},
        notice=job.generator.settings.notice,
        int8_lost=state.int8_lost_shares(),
    )
