"""From the flags to a job: what to draw, with what, into which columns. Files are found and compared; no model is loaded."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from featurize.encode.image_encoder import expand_encoders, find_encoder
from featurize.fill.fill_store import Job, Kept, column_specs
from featurize.generate.decoders import find_decoder
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.options import FeaturizeOptions
from featurize.plan.drawings import DrawingPlan, plan_drawings
from lugpi_core.command_line import resolved_flags
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import default_run_dir, store_folder
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.manifest import is_empty, load_manifest, refuse_difference
from lugpi_core.store.reader import LATENTS, columns_of
from lugpi_core.store.writer import missing_bytes

OVERRIDES = ("steps", "guidance", "scheduler", "size_px", "deepcache")
# Failures that say nothing yet about a run, however small it is.
FEWEST_FAILED = 16


def prepare(options: FeaturizeOptions, afresh: frozenset[int] = frozenset()) -> tuple[Corpus, Job]:
    """Return the corpus and all that is known before a model is loaded; nothing in the store is touched.

    Raises:
        InputError: a flag, a corpus, a model's files or the store's folder is not as it must be.
    """
    corpus = load_corpus(options.dataset, options) if options.unlabelled is None else load_unlabelled(options.unlabelled, options)
    store = make_folder(store_folder(options.run_dir or default_run_dir(options.dataset, options.limit), options.unlabelled))
    return corpus, _plan(options, corpus, store, afresh)


def _plan(options: FeaturizeOptions, corpus: Corpus, store: Path, afresh: frozenset[int]) -> Job:
    compute = resolve_compute(options.device, options.dtype, half="float16")
    plan = plan_drawings(corpus, seed=options.seed, images_per_text=options.images_per_text)
    settings = generator_settings(options.generator, {name: getattr(options, name) for name in OVERRIDES})
    encoders = tuple(find_encoder(name) for name in expand_encoders(options.encoders))
    generator = find_generator(options.generator, settings, half=compute.dtype != "float32")
    decoder = find_decoder(options.decoder, generator)
    kept = Kept(
        # Latents that are there are used, whether more of them are wanted or not.
        latents=options.latents or LATENTS in columns_of(store),
        shard_rows=options.shard_rows,
        token_dtype=options.token_dtype,
        made_by=_repeatable(options),
        decoder=decoder,
    )
    most_failed = max(FEWEST_FAILED, len(plan) // 20) if options.max_failed is None else options.max_failed
    return Job(
        store=store,
        plan=plan,
        generator=generator,
        encoders={kept.column_name(files): files for files in encoders},
        compute=compute,
        columns=column_specs(plan, generator, encoders, _generation(options, plan, generator, compute), kept),
        decoder=decoder,
        most_failed=most_failed,
        afresh=afresh,
    )


def _generation(options: FeaturizeOptions, plan: DrawingPlan, generator: Generator, compute: Compute) -> dict[str, Any]:
    """Return the fingerprint of the latents: everything that decides a drawing, and nothing else (batch size and device do not)."""
    return {"drawings": plan.fingerprint(), "seed": options.seed, "dtype": compute.dtype, "generator": generator.fingerprint()}


def _repeatable(options: FeaturizeOptions) -> dict[str, Any]:
    """Return the flags for the manifest, good in any folder; where the store lies is not one of them, for it may be moved."""
    flags = {name: value for name, value in resolved_flags(options).items() if name not in ("run_dir", "dry_run")}
    own = ("dataset", "validation_file", "test_file") if Path(options.dataset).is_file() else ("data_dir",)
    return {**flags, **{name: str(Path(flags[name]).resolve()) for name in (*own, "unlabelled") if flags[name] is not None}}


def refuse_other_drawings(job: Job) -> None:
    """Refuse a store that was made otherwise before anything in it is touched: rows of all its columns are numbered by one table."""
    wanted = {spec.name: spec.fingerprint for spec in job.columns}
    generation = job.columns[0].fingerprint["generation"]
    for name in columns_of(job.store):
        found, _ = load_manifest(job.store / name)
        if "generation" not in found.fingerprint or is_empty(job.store / name):
            continue  # brought by somebody else, whose affair its rows are; or nothing was made with those settings
        refuse_difference(job.store / name, found.fingerprint, wanted.get(name, {**found.fingerprint, "generation": generation}))


def wanted_bytes(job: Job) -> int:
    """Return the disk that the shards ask for that are not there."""
    return sum(missing_bytes(job.store, spec) for spec in job.columns)


def require_room(job: Job) -> None:
    """Raise InputError unless the disk has room for all that is missing."""
    wanted, free = wanted_bytes(job), shutil.disk_usage(job.store).free
    if wanted > free:
        raise InputError(
            got=f"{free / 1e6:,.0f} MB free for {job.store}",
            expected=f"{wanted / 1e6:,.0f} MB for the shards that are missing",
            do="make room, choose another --run-dir, or keep less (--no-latents, --token-dtype int8, a smaller encoder)",
        )


def table_is_stale(store: Path, corpus: Corpus, plan: DrawingPlan) -> bool:
    """Whether ``examples.h5`` is not that of the corpus as it is now."""
    try:
        return not np.array_equal(read_example_table(store, corpus).drawings, plan.drawings)
    except InputError:
        return True
