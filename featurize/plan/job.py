"""From the flags to a job: what to draw, with what, into which columns. Files are found and compared; no model is loaded."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.generate.decoders import DecoderFiles, find_decoder
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.options import Execution, FeaturizeSettings
from featurize.plan.images import ImagePlan, plan_images
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.layout import LATENTS, TINY, Dtype
from lugpi_core.store.manifest import MOST_SHARDS, ColumnSpec, is_empty, load_manifest, refuse_difference
from lugpi_core.store.reader import columns_of
from lugpi_core.store.writer import missing_bytes

OVERRIDES = ("steps", "guidance", "scheduler", "size_px", "deepcache")
# Prompts that are encoded together; a fixed number, counted from the start of a window, so that a resumed run encodes the same batches.
TEXT_BATCH = 32
# Failures that say nothing yet about a run, however small it is.
FEWEST_FAILED = 16


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that is known before a model is loaded: what to draw, with what, into which columns.

    Attributes:
        encoders: by the name of their column.
        batch_size: rows of a block.
        decoder: in the place of the generator's own, or None.
        most_failed: rows that may fail before the run is given up.
        execution: how to compute.
        retry: images that failed before and are generated in float32 from the prompt on.
    """

    store: Path
    plan: ImagePlan
    generator: Generator
    encoders: Mapping[str, EncoderFiles]
    compute: Compute
    columns: tuple[ColumnSpec, ...]
    batch_size: int = 16
    decoder: DecoderFiles | None = None
    execution: Execution = field(default_factory=Execution)
    most_failed: int = 1 << 62
    retry: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """How a run keeps what it makes.

    Attributes:
        latents: whether the latents are kept too.
        decoder: what makes pictures of them, in the place of the generator's own; part of the columns' names.
        token_dtype: of the token columns.
        shard_rows: rows of a shard.
        made_by: the run's flags, for the manifests of new columns.
    """

    latents: bool
    shard_rows: int
    token_dtype: Dtype = "float16"
    made_by: dict[str, Any] | None = None
    decoder: DecoderFiles | None = None

    def column_name(self, encoder: EncoderFiles) -> str:
        """Return the name of an encoder's column."""
        return encoder.name if self.decoder is None else encoder.name + TINY


def column_specs(
    plan: ImagePlan,
    generator: Generator,
    encoders: tuple[EncoderFiles, ...],
    generation: dict[str, Any],
    settings: ColumnSettings,
) -> tuple[ColumnSpec, ...]:
    """Return the columns that a run makes: the latents unless they are not wanted, and one for each encoder."""
    notice = generator.settings.notice
    if len(plan) > settings.shard_rows * MOST_SHARDS:
        raise InputError(
            got=f"--shard-rows {settings.shard_rows} for {len(plan):,} drawings",
            expected=f"at most {MOST_SHARDS:,} shards",
            do="give more rows a shard",
        )
    # The K pictures of a prompt lie in one shard, so that one process encodes the prompt, and once.
    shard_rows = -(-settings.shard_rows // plan.images_per_text) * plan.images_per_text
    common: dict[str, Any] = {"rows": len(plan), "shard_rows": shard_rows, "notice": notice, "made_by": settings.made_by}
    drawn_by = f"drawn by {generator.origin}: {generator.settings.license}"
    latent = ColumnSpec(
        name=LATENTS, what="latents", row_shape=generator.latent_shape, fingerprint={"generation": generation}, license=drawn_by, **common
    )
    decoder: Any = "the generator's"
    pictures_by = drawn_by
    if settings.decoder is not None:
        decoder = settings.decoder.fingerprint()
        pictures_by = f"{drawn_by}, decoded by {settings.decoder.origin}: {settings.decoder.license}"
    tokens = [
        ColumnSpec(
            name=settings.column_name(files),
            what="tokens",
            row_shape=(files.tokens, files.width),
            fingerprint={
                "generation": generation,
                "decoder": decoder,
                "encoder": {**files.fingerprint(), "dtype": generation["dtype"], "stored_as": settings.token_dtype},
            },
            dtype=settings.token_dtype,
            license=f"images {pictures_by}; tokens by {files.name}: {files.license}",
            **common,
        )
        for files in encoders
    ]
    specs = ((latent,) if settings.latents else ()) + tuple(tokens)
    names = [LATENTS, *(spec.name for spec in tokens)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(got=f"two columns named {', '.join(twice)}", expected="one name a column", do="rename the encoder's folder")
    return specs


def plan_job(
    corpus: Corpus,
    store: Path,
    *,
    generator: str,
    encoders: Sequence[str],
    settings: FeaturizeSettings,
    made_by: dict[str, Any],
) -> Job:
    """Return everything that is known before a model is loaded. Model files are found, or downloaded; nothing in the store is touched.

    Args:
        corpus: whose prompts are read.
        store: the store's folder, which exists.
        generator: a preset, ``PRESET=FOLDER``, a folder or a hub id.
        encoders: presets, ``open_clip:<model>/<pretrained>``, folders or hub ids.
        settings: everything else.
        made_by: the command that makes the columns, for their manifests.

    Raises:
        InputError: a setting, a prompt or a model's files are not as they must be.
    """
    compute = resolve_compute(settings.device, settings.dtype, half="float16")
    plan = plan_images(corpus, seed=settings.seed, images_per_text=settings.images_per_text)
    preset = generator_settings(generator, {name: getattr(settings, name) for name in OVERRIDES})
    encoder_files = tuple(find_encoder(name) for name in expand_encoders(tuple(encoders)))
    generator_files = find_generator(generator, preset, half=compute.dtype != "float32")
    decoder = find_decoder(settings.decoder, generator_files)
    column_settings = ColumnSettings(
        # Latents that are there are used, whether more of them are wanted or not.
        latents=settings.latents or LATENTS in columns_of(store),
        shard_rows=settings.shard_rows,
        token_dtype=settings.token_dtype,
        made_by=made_by,
        decoder=decoder,
    )
    # Everything that decides an image, and nothing else: batch size and device do not.
    generation = {"drawings": plan.fingerprint(), "seed": settings.seed, "dtype": compute.dtype, "generator": generator_files.fingerprint()}
    return Job(
        store=store,
        plan=plan,
        generator=generator_files,
        encoders={column_settings.column_name(files): files for files in encoder_files},
        compute=compute,
        columns=column_specs(plan, generator_files, encoder_files, generation, column_settings),
        decoder=decoder,
        execution=part_of(settings, Execution),
        most_failed=max(FEWEST_FAILED, len(plan) // 20) if settings.max_failed is None else settings.max_failed,
    )


def refuse_other_images(job: Job) -> None:
    """Refuse a store that was made otherwise before anything in it is touched: rows of all its columns are numbered by one table."""
    wanted = {spec.name: spec.fingerprint for spec in job.columns}
    generation = job.columns[0].fingerprint["generation"]
    for name in columns_of(job.store):
        found, _ = load_manifest(job.store / name)
        if "generation" not in found.fingerprint or is_empty(job.store / name):
            continue  # brought by somebody else, whose affair its rows are; or nothing was made with those settings
        refuse_difference(job.store / name, found.fingerprint, wanted.get(name, {**found.fingerprint, "generation": generation}))


def missing_disk_bytes(job: Job) -> int:
    """Return the disk space that the missing shards take."""
    return sum(missing_bytes(job.store, spec) for spec in job.columns)


def require_room(job: Job) -> None:
    """Raise InputError unless the disk has room for all that is missing."""
    wanted, free = missing_disk_bytes(job), shutil.disk_usage(job.store).free
    if wanted > free:
        raise InputError(
            got=f"{free / 1e6:,.0f} MB free for {job.store}",
            expected=f"{wanted / 1e6:,.0f} MB for the shards that are missing",
            do="make room, choose another --run-dir, or keep less (--no-latents, --token-dtype int8, a smaller encoder)",
        )


def table_is_stale(store: Path, corpus: Corpus, plan: ImagePlan) -> bool:
    """Whether ``examples.h5`` is not that of the corpus as it is now."""
    try:
        return not np.array_equal(read_example_table(store, corpus).drawings, plan.images_of_example)
    except InputError:
        return True
