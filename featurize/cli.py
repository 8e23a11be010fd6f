"""``python -m featurize``: one straight line from the flags to the store. Heavy imports live inside the functions, so that --help is
quick."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featurize.options import FeaturizeOptions, InfoOptions, InspectOptions, VerifyOptions
from lugpi_core.command_line import Command, resolved_flags, run, say

if TYPE_CHECKING:
    from featurize.fill.block import Models, Work
    from featurize.fill.fill_store import Job
    from featurize.fill.load_models import Sizes
    from lugpi_core.corpora.corpus import Corpus
    from lugpi_core.store.writer import ColumnWriter

_LESS_MEMORY = "see --dry-run for what is needed; free memory, or take a smaller --size-px, generator or encoder; what is written is kept"


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m featurize`` on the arguments; return the exit status."""
    commands: dict[str, tuple[Command, type]] = {
        "verify": (_verify, VerifyOptions),
        "info": (_info, InfoOptions),
        "inspect": (_inspect, InspectOptions),
    }
    if arguments and arguments[0] in commands:
        command, options = commands[arguments[0]]
        return run(command, options, arguments[1:], prog=f"python -m featurize {arguments[0]}")
    return run(featurize, FeaturizeOptions, arguments, prog="python -m featurize")


def _verify(options: VerifyOptions) -> dict[str, Any]:
    from featurize.maintain import verify
    from featurize.plan.job import prepare

    return verify(options, featurize, prepare)


def _info(options: InfoOptions) -> dict[str, Any]:
    from featurize.maintain import info

    return info(options)


def _inspect(options: InspectOptions) -> dict[str, Any]:
    from lugpi_core.runtime.libraries import prepare_libraries

    prepare_libraries()
    from featurize.inspect.command import inspect_store

    with _memory_in_one_line("free memory, or use --device cpu"):
        return inspect_store(options)


def featurize(options: FeaturizeOptions, afresh: frozenset[int] = frozenset()) -> dict[str, Any]:
    """Make, continue or confirm the token store of a corpus; return the figures of the run.

    Memory: the models, one block of images and two on their way to the disk, the embeddings of 1,024 prompts, the corpus's texts and, while
    encoders are added, one shard of latents. Nothing grows with the store.

    Args:
        options: the flags.
        afresh: drawings that have failed before, and are made in float32.
    """
    from featurize.plan.job import prepare, refuse_other_drawings, require_room
    from lugpi_core.runtime.libraries import prepare_libraries
    from lugpi_core.runtime.meters import provenance

    prepare_libraries()
    corpus, job = prepare(options, afresh)
    refuse_other_drawings(job)
    if options.dry_run:
        return _estimate(options, corpus, job)
    require_room(job)
    writers = _open_columns(job)
    _announce(corpus, job)
    with _memory_in_one_line(_LESS_MEMORY):
        work, models = _work(options, job, corpus, writers)
    return _figures(corpus, job, writers, work, already_done=models is None) | {
        "compute": _compute(job, models),
        "config": resolved_flags(options),
        "provenance": provenance(),
    }


def _estimate(options: FeaturizeOptions, corpus: "Corpus", job: "Job") -> dict[str, Any]:
    from featurize.fill.load_models import estimate_run

    _announce(corpus, job)
    estimate = estimate_run(options, job)
    say(str(estimate))
    return {"command": "featurize", "dry_run": True, "store": str(job.store), **estimate.record()}


@contextmanager
def _memory_in_one_line(do: str) -> Iterator[None]:
    """Turn what no halving helps against, such as models that do not fit, into one line."""
    from featurize.fill.out_of_memory import is_out_of_memory
    from lugpi_core.errors import InputError

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


def _open_columns(job: "Job") -> "dict[str, ColumnWriter]":
    from lugpi_core.store.manifest import shard_name
    from lugpi_core.store.writer import ColumnWriter

    writers = {spec.name: ColumnWriter(job.store, spec) for spec in job.columns}
    for writer in writers.values():
        for shard, fault in writer.taken_back.items():
            say(f"{writer.folder / shard_name(shard)}: {fault}; what does not hold in it is made again")
    return writers


def _work(options: FeaturizeOptions, job: "Job", corpus: "Corpus", writers: "dict[str, ColumnWriter]") -> "tuple[Work, Models | None]":
    """Make what is missing; return what was done and with what, None where nothing was to be drawn or encoded."""
    import dataclasses

    from featurize.fill.block import Work
    from featurize.fill.out_of_memory import Batches
    from featurize.plan.job import table_is_stale
    from lugpi_core.files import sweep
    from lugpi_core.runtime.meters import StageTimes
    from lugpi_core.store.virtual_view import VIEW, view_is_current, write_view

    sweep(job.store)
    work, models = Work(times=StageTimes(job.compute.device), batches=Batches({})), None
    missing = _missing_rows(writers)
    if missing or table_is_stale(job.store, corpus, job.plan):
        # Gone until it is true again: a run that is stopped here leaves none, and the next one writes it.
        (job.store / VIEW).unlink(missing_ok=True)
        _write_examples(job, corpus)
    if missing:
        from featurize.fill.load_models import choose_sizes

        sizes = choose_sizes(options, job)
        job = dataclasses.replace(job, batch_size=sizes.batch)
        work.batches = Batches(sizes.by_stage())
        models = _load_models(options, job, writers, sizes, work)
        _fill(job, writers, models, work, missing)
    with work.times.host("publish"):
        for writer in writers.values():
            writer.add_sha256()
    if not view_is_current(job.store):
        write_view(job.store)
    return work, models


def _load_models(options: FeaturizeOptions, job: "Job", writers: "dict[str, ColumnWriter]", sizes: "Sizes", work: "Work") -> "Models":
    from featurize.fill.load_models import load_models

    incomplete = {name for name, writer in writers.items() if len(writer.records) < writer.spec.shards}
    return load_models(options, job, incomplete, sizes, work.times)


def _fill(job: "Job", writers: "dict[str, ColumnWriter]", models: "Models", work: "Work", missing: int) -> None:
    from featurize.fill.fill_store import fill
    from lugpi_core.runtime.stopping import stop_on_signals

    with stop_on_signals() as work.stop, _progress_bar(missing) as bar, work.times.host("fill_wall"):
        for _ in fill(job, writers, models, work):
            bar.update(max(work.drawn, work.decoded) - bar.n)
            bar.set_postfix_str(_stages(work), refresh=False)


def _stages(work: "Work") -> str:
    """Return where the time goes, and what has failed, for the progress bar."""
    seconds = {name: spent for name, spent in work.times.seconds.items() if name not in ("load", "fill_wall")}
    whole = sum(seconds.values()) or 1.0
    shares = " ".join(f"{name} {spent / whole:.0%}" for name, spent in seconds.items() if spent / whole >= 0.005)
    return f"flagged {work.failed}, {shares}"


def _missing_rows(writers: "dict[str, ColumnWriter]") -> int:
    from featurize.fill.fill_store import open_shards

    spec = next(iter(writers.values())).spec
    return sum(spec.layout(shard).rows for shard in open_shards(writers))


def _write_examples(job: "Job", corpus: "Corpus") -> None:
    from featurize.generate.text_to_image import prompts_are_cut
    from lugpi_core.store.example_table import ExampleTable, write_example_table

    cut = prompts_are_cut(job.generator, job.plan.prompts)[job.plan.prompt_of_example]
    table = ExampleTable(drawings=job.plan.drawings, prompt_cut=cut, corpus_fingerprint=corpus.fingerprint())
    write_example_table(job.store, corpus, table)


def _progress_bar(rows: int) -> Any:
    from tqdm import tqdm

    # In a log file a line every ten seconds is enough.
    return tqdm(total=rows, unit="image", desc="featurize", mininterval=0.1 if sys.stderr.isatty() else 10)


def _announce(corpus: "Corpus", job: "Job") -> None:
    counts = ", ".join(f"{count:,} {split}" for split, count in corpus.counts().items())
    if not corpus.label_names:
        counts = f"{len(corpus.examples):,} texts without labels"
    plan = job.plan
    several = f", {plan.images_per_text} of each prompt" if plan.images_per_text > 1 else ""
    say(f"{corpus.name}: {counts}; {len(plan):,} drawings{several} ({plan.spared:,} spared, their prompt is shared)")
    if notice := job.generator.settings.notice:
        say(f"note: {notice}")


def _compute(job: "Job", models: "Models | None") -> dict[str, Any]:
    """Return what the run computed with, for the record."""
    from featurize.generate.acceleration import memory_format

    if models is None:
        return {**job.compute.record(), "attention": None}
    drawer = models.text_to_image
    return {
        **job.compute.record(),
        "attention": drawer.attention,
        "compiled": drawer.compilation.part,
        "cuda_graphs": drawer.compilation.graphs,
        "memory_format": memory_format(job.compute.device),
    }


def _figures(corpus: "Corpus", job: "Job", writers: "dict[str, ColumnWriter]", work: "Work", *, already_done: bool) -> dict[str, Any]:
    from lugpi_core.runtime.meters import peak_memory_bytes
    from lugpi_core.store.example_table import read_example_table

    flagged = {name: sum(len(record["flagged"]) for record in writer.records.values()) for name, writer in writers.items()}
    cut_share = float(read_example_table(job.store, corpus).prompt_cut.mean())
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
        "drawings_spared": job.plan.spared,
        "prompts_cut_share": round(cut_share, 4),
        "columns": {name: [writer.spec.rows, *writer.spec.row_shape] for name, writer in writers.items()},
        "bytes": {name: sum(record["bytes"] for record in writer.records.values()) for name, writer in writers.items()},
        "failed_rows": flagged,
        "rows": work.rows(),
        "batches": {"rows": work.batches.rows, "halvings": work.batches.halvings},
        "times": work.times.record(),
        "peak_memory": peak_memory_bytes(),
        "notice": job.generator.settings.notice,
    }
