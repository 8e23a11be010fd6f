"""``python -m featurize``: one straight line from the flags to the store. Heavy imports live inside the functions, so that --help is
quick."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurize.options import FeaturizeOptions, InfoOptions, VerifyOptions
from lugpi_core.command_line import Command, resolved_flags, run, say

if TYPE_CHECKING:
    from featurize.generators import Generator
    from featurize.pipeline import Job, Models, Work
    from featurize.prompts import DrawingPlan
    from lugpi_core.device import Compute
    from lugpi_core.examples import Corpus
    from lugpi_core.store.writer import ColumnWriter

OVERRIDES = ("steps", "guidance", "scheduler", "size_px")


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m featurize`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {"verify": (_verify, VerifyOptions), "info": (_info, InfoOptions)}
    if arguments and arguments[0] in commands:
        command, options = commands[arguments[0]]
        return run(command, options, arguments[1:], prog=f"python -m featurize {arguments[0]}")
    return run(featurize, FeaturizeOptions, arguments, prog="python -m featurize")


def _verify(options: VerifyOptions) -> dict[str, Any]:
    from featurize.store_commands import verify

    return verify(options, featurize, _prepare)


def _info(options: InfoOptions) -> dict[str, Any]:
    from featurize.store_commands import info

    return info(options)


def featurize(options: FeaturizeOptions) -> dict[str, Any]:
    """Make, continue or confirm the token store of a corpus; return the figures of the run.

    Memory: the models, one block of images, the corpus's texts and, while encoders are added, one shard of latents. Nothing grows with
    the store.
    """
    corpus, job = _prepare(options)
    _refuse_other_drawings(job)
    _require_room(job)
    writers = _open_columns(job)
    _announce(corpus, job)
    work = _work(job, corpus, writers)
    return _figures(options, corpus, job, writers, work)


def _prepare(options: FeaturizeOptions) -> "tuple[Corpus, Job]":
    """Return the corpus and all that is known before a model is loaded; nothing in the store is touched."""
    from lugpi_core.corpora import load_corpus
    from lugpi_core.corpus_options import default_run_dir
    from lugpi_core.files import make_folder
    from lugpi_core.quiet import quiet_libraries

    quiet_libraries()
    corpus = load_corpus(options)
    store = make_folder((options.run_dir or default_run_dir(options)) / "tokens")
    return corpus, _plan(options, corpus, store)


def _plan(options: FeaturizeOptions, corpus: "Corpus", store: Path) -> "Job":
    from featurize.generators import find_generator, generator_settings
    from featurize.image_encoder import expand_encoders, find_encoder
    from featurize.pipeline import Job, Kept, column_specs
    from featurize.prompts import plan_drawings
    from lugpi_core.device import resolve_compute
    from lugpi_core.store.reader import LATENTS, columns_of

    compute = resolve_compute(options.device, options.dtype, half="float16")
    plan = plan_drawings(corpus, seed=options.seed)
    settings = generator_settings(options.generator, {name: getattr(options, name) for name in OVERRIDES})
    encoders = tuple(find_encoder(name) for name in expand_encoders(options.encoders))
    generator = find_generator(options.generator, settings, half=compute.dtype != "float32")
    generation = _generation(options, plan, generator, compute)
    # Latents that are there are used, whether more of them are wanted or not.
    latents = options.latents or LATENTS in columns_of(store)
    kept = Kept(latents=latents, shard_rows=options.shard_rows, token_dtype=options.token_dtype, made_by=_repeatable(options))
    columns = column_specs(plan, generator, encoders, generation, kept)
    return Job(
        store=store,
        plan=plan,
        generator=generator,
        encoders=encoders,
        compute=compute,
        columns=columns,
        batch_size=options.batch_size,
        attention=options.attention,
    )


def _generation(options: FeaturizeOptions, plan: "DrawingPlan", generator: "Generator", compute: "Compute") -> dict[str, Any]:
    """Return the fingerprint of the latents: everything that decides a drawing, and nothing else (batch size and device do not)."""
    return {"drawings": plan.fingerprint(), "seed": options.seed, "dtype": compute.dtype, "generator": generator.fingerprint()}


def _repeatable(options: FeaturizeOptions) -> dict[str, Any]:
    """Return the flags for the manifest, good in any folder; where the store lies is not one of them, for it may be moved."""
    flags = {name: value for name, value in resolved_flags(options).items() if name != "run_dir"}
    own = ("dataset", "validation_file", "test_file") if Path(options.dataset).is_file() else ("data_dir",)
    return {**flags, **{name: str(Path(flags[name]).resolve()) for name in own if flags[name] is not None}}


def _open_columns(job: "Job") -> "dict[str, ColumnWriter]":
    from lugpi_core.store.manifest import shard_name
    from lugpi_core.store.writer import ColumnWriter

    writers = {spec.name: ColumnWriter(job.store, spec) for spec in job.columns}
    for writer in writers.values():
        for shard, fault in writer.taken_back.items():
            say(f"{writer.folder / shard_name(shard)}: {fault}; what does not hold in it is made again")
    return writers


def _refuse_other_drawings(job: "Job") -> None:
    """Refuse a store that was made otherwise before anything in it is touched: rows of all its columns are numbered by one table."""
    from lugpi_core.store.manifest import is_empty, load_manifest, refuse_difference
    from lugpi_core.store.reader import columns_of

    wanted = {spec.name: spec.fingerprint for spec in job.columns}
    generation = job.columns[0].fingerprint["generation"]
    for name in columns_of(job.store):
        found, _ = load_manifest(job.store / name)
        if "generation" not in found.fingerprint or is_empty(job.store / name):
            continue  # brought by somebody else, whose affair its rows are; or nothing was made with those settings
        refuse_difference(job.store / name, found.fingerprint, wanted.get(name, {**found.fingerprint, "generation": generation}))


def _work(job: "Job", corpus: "Corpus", writers: "dict[str, ColumnWriter]") -> "Work":
    from featurize.pipeline import Work, fill
    from lugpi_core.files import sweep
    from lugpi_core.meters import StageTimes
    from lugpi_core.store.example_table import EXAMPLES
    from lugpi_core.store.view import VIEW, view_is_current, write_view

    sweep(job.store)
    work = Work(times=StageTimes(job.compute.device))
    missing = _missing_rows(writers)
    if missing or not (job.store / EXAMPLES).is_file() or _table_is_stale(job.store, corpus):
        with work.times.stage("load"):
            models = _load_models(job, writers)
        work.attention = models.text_to_image.attention
        # Gone until it is true again: a run that is stopped here leaves none, and the next one writes it.
        (job.store / VIEW).unlink(missing_ok=True)
        _write_examples(job, corpus, models)
        with _progress_bar(missing) as bar:
            for _ in fill(job, writers, models, work):
                bar.update(max(work.drawn, work.decoded) - bar.n)
    with work.times.stage("publish"):
        for writer in writers.values():
            writer.add_sha256()
    if not view_is_current(job.store):
        write_view(job.store)
    return work


def _missing_rows(writers: "dict[str, ColumnWriter]") -> int:
    from featurize.pipeline import open_shards

    spec = next(iter(writers.values())).spec
    return sum(spec.layout(shard).rows for shard in open_shards(writers))


def _require_room(job: "Job") -> None:
    import shutil

    from lugpi_core.errors import InputError
    from lugpi_core.store.writer import missing_bytes

    wanted, free = sum(missing_bytes(job.store, spec) for spec in job.columns), shutil.disk_usage(job.store).free
    if wanted > free:
        raise InputError(
            got=f"{free / 1e6:,.0f} MB free for {job.store}",
            expected=f"{wanted / 1e6:,.0f} MB for the shards that are missing",
            do="make room, choose another --run-dir, or keep less (--no-latents, --token-dtype int8, a smaller encoder)",
        )


def _table_is_stale(store: Path, corpus: "Corpus") -> bool:
    from lugpi_core.errors import InputError
    from lugpi_core.store.example_table import read_example_table

    try:
        read_example_table(store, corpus)
    except InputError:
        return True
    return False


def _load_models(job: "Job", writers: "dict[str, ColumnWriter]") -> "Models":
    from featurize.image_encoder import ImageEncoder
    from featurize.pipeline import Models
    from featurize.text_to_image import TextToImage

    text_to_image = TextToImage(job.generator, job.compute, attention=job.attention)
    say(f"drawing on {job.compute}, attention {text_to_image.attention}")
    incomplete = {name for name, writer in writers.items() if len(writer.records) < writer.spec.shards}
    encoders = {files.name: ImageEncoder(files, job.compute) for files in job.encoders if files.name in incomplete}
    return Models(text_to_image=text_to_image, encoders=encoders)


def _write_examples(job: "Job", corpus: "Corpus", models: "Models") -> None:
    from lugpi_core.store.example_table import ExampleTable, write_example_table

    cut = models.text_to_image.prompt_is_cut(job.plan.prompts)[job.plan.drawing_of_example]
    table = ExampleTable(drawing=job.plan.drawing_of_example, prompt_cut=cut, corpus_fingerprint=corpus.fingerprint())
    write_example_table(job.store, corpus, table)


def _progress_bar(rows: int) -> Any:
    from tqdm import tqdm

    # In a log file a line every ten seconds is enough.
    return tqdm(total=rows, unit="image", desc="featurize", disable=not rows, mininterval=0.1 if sys.stderr.isatty() else 10)


def _announce(corpus: "Corpus", job: "Job") -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in corpus.counts().items())
    say(f"{corpus.name}: {counts}; {len(job.plan):,} drawings ({job.plan.saved:,} spared, their prompt is shared)")
    if notice := job.generator.settings.notice:
        say(f"note: {notice}")


def _figures(
    options: FeaturizeOptions,
    corpus: "Corpus",
    job: "Job",
    writers: "dict[str, ColumnWriter]",
    work: "Work",
) -> dict[str, Any]:
    from lugpi_core.meters import peak_memory_bytes, provenance
    from lugpi_core.store.example_table import read_example_table

    flagged = {name: sum(len(record["flagged"]) for record in writer.records.values()) for name, writer in writers.items()}
    table = read_example_table(job.store, corpus)
    already_done = work.attention is None  # no model was needed
    cut_share = float(table.prompt_cut.mean())
    say(
        f"{'already done' if already_done else 'done'}: {job.store}; {cut_share:.1%} of the prompts were cut to what the generator reads"
        + (f"; FAILED rows: {flagged}" if any(flagged.values()) else "")
    )
    return {
        "command": "featurize",
        "complete": not any(flagged.values()),
        "already_done": already_done,
        "store": str(job.store),
        "examples": corpus.counts(),
        "drawings": len(job.plan),
        "drawings_spared": job.plan.saved,
        "prompts_cut_share": round(cut_share, 4),
        "columns": {name: [writer.spec.rows, *writer.spec.row_shape] for name, writer in writers.items()},
        "bytes": {name: sum(record["bytes"] for record in writer.records.values()) for name, writer in writers.items()},
        "failed_rows": flagged,
        "rows": {"drawn": work.drawn, "decoded": work.decoded, "encoded": work.encoded},
        "times": work.times.record(),
        "peak_memory": peak_memory_bytes(),
        "compute": {**job.compute.record(), "attention": work.attention},
        "notice": job.generator.settings.notice,
        "config": resolved_flags(options),
        "provenance": provenance(),
    }
