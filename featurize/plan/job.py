"""From settings to a job: which images to generate, with which models, into which columns. Files are found; no model is loaded."""

import shutil
import warnings
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.generate.decoders import DecoderFiles, find_decoder, image_side_px
from featurize.generate.generators import SAMPLING, Generator, find_generator, generator_settings
from featurize.options import Execution, FeaturizeSettings, PromptStrategy
from featurize.plan.candidates import candidates_column, scoring_encoder
from featurize.plan.images import ImagePlan, require_prompts
from featurize.plan.prompt_reader import prompt_reader
from featurize.plan.prompt_text import TEXT_ENCODER, prompts_fingerprint, text_column, text_encoder
from featurize.plan.prompts import plan_of
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.fingerprint import Fingerprint, differences
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.store.clip_scores import CLIP_SCORES
from lugpi_core.store.example_table import EXAMPLES, read_example_table
from lugpi_core.store.layout import CANDIDATES, LATENTS, PROMPT_TEXT, Dtype, structure
from lugpi_core.store.manifest import MOST_SHARDS, ColumnSpec, is_empty, load_manifest
from lugpi_core.store.mirror import Mirror
from lugpi_core.store.reader import columns_of
from lugpi_core.store.virtual_view import VIEW
from lugpi_core.store.writer import missing_bytes

OVERRIDES = (*SAMPLING, "fidelity", "lora", "unet", "generator_config")
# Prompts that are encoded together; a fixed number, counted from the start of a window, so that a resumed run encodes the same batches.
TEXT_BATCH = 32
# Of the prompts whose embeddings are held at once, in float32.
MOST_EMBEDDING_BYTES = 4 * 10**9
# So few failures are accepted in any run, however small.
FEWEST_FAILED = 16
_MOST_WAITING = 2  # shards of a column with a mirror: one being sent, one being computed
# Fields of a column's fingerprint that decide which image each of its rows is.
NUMBERING = ("generation", "prompts")
# Fields of a fingerprint that are hashes of prompts: what a user can compare are the flags.
_OF_PROMPTS = ("generation.drawings: ", "prompts: ")
# Fields of a fingerprint that say again what a flag does which differs.
_OF_FLAGS = (
    ("generation.seed: ", "--seed"),
    ("generation.best_of.", "--best-of"),
    ("generation.subset.", "--subset"),
    ("generation.subset.by: ", "--subset-by"),
)
# Flags that decide the prompts, beside those of the corpus.
_FLAGS_OF_PROMPTS = ("dataset", "unlabelled", "prompts", "images_per_text", "best_of", "subset", "subset_by", "seed", "generator")


class StoreJob(Protocol):
    """What every job has in common, whether its images are generated or a user's own."""

    @property
    def store(self) -> Path:
        """The store's folder."""

    @property
    def every_column(self) -> tuple[ColumnSpec, ...]:
        """Those that the job fills."""

    @property
    def numbering(self) -> Mapping[str, Any]:
        """What decides which image each row of the store is: fields of the fingerprint that all of its columns agree in."""

    @property
    def mirror(self) -> Mirror | None:
        """Where final shards go, too."""


class ImageRows(Protocol):
    """Which rows of the store each example has."""

    @property
    def images_of_example(self) -> NDArray[np.int64]:
        """int64 [N, K]."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that is known before a model is loaded: which images to generate, with which models, into which columns.

    Attributes:
        encoders: by the name of their column.
        batch_size: rows of a block.
        prompts: what of a text the generator reads.
        decoder: replaces the generator's own, or None.
        most_failed: rows that may fail before the run is given up.
        encoder_compute: of the image encoders, if another than ``compute``: with ``--dtype auto`` on CUDA they stay in float16.
        most_prompts: whose embeddings are held in the host's memory at once.
        execution: how to compute.
        retry: images that failed before and are generated in float32 from the prompt on.
        numbering: of the rows.
        columns: of the images; there may be none.
        text_column: of the generator's own text vectors, or None.
        mirror: where final shards go, too, or None.
        scorer: the name of the encoder's column whose text tower chooses among candidates; None without candidates.
    """

    store: Path
    plan: ImagePlan
    generator: Generator
    encoders: Mapping[str, EncoderFiles]
    compute: Compute
    columns: tuple[ColumnSpec, ...]
    batch_size: int = 16
    prompts: PromptStrategy = "whole"
    decoder: DecoderFiles | None = None
    execution: Execution = field(default_factory=Execution)
    most_failed: int = 1 << 62
    encoder_compute: Compute | None = None
    most_prompts: int = 1 << 62
    retry: frozenset[int] = frozenset()
    numbering: Mapping[str, Any] = field(default_factory=dict)
    text_column: ColumnSpec | None = None
    mirror: Mirror | None = None
    scorer: str | None = None

    @property
    def every_column(self) -> tuple[ColumnSpec, ...]:
        """Those that the job fills."""
        return self.columns if self.text_column is None else (*self.columns, self.text_column)


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """What the columns of a run have in common.

    Attributes:
        latents: whether there is a column of latents.
        shard_rows: rows of a shard.
        token_dtype: of the token columns.
        made_by: the run's flags, for the manifests of new columns.
        decoder: replaces the generator's own; then it is part of the columns' names.
        encoder_dtype: of the image encoders, if another than the generator's.
    """

    latents: bool
    shard_rows: int
    token_dtype: Dtype = "float16"
    made_by: dict[str, Any] | None = None
    decoder: DecoderFiles | None = None
    encoder_dtype: str | None = None

    def column_name(self, encoder: EncoderFiles) -> str:
        """Return the name of an encoder's column."""
        return encoder.name if self.decoder is None else encoder.name + self.decoder.column_suffix


def column_specs(
    plan: ImagePlan,
    generator: Generator,
    encoders: tuple[EncoderFiles, ...],
    generation: dict[str, Any],
    settings: ColumnSettings,
) -> tuple[ColumnSpec, ...]:
    """Return the columns of a run: the latents, if they are kept, and one for each encoder.

    Raises:
        InputError: too many shards, or two columns of one name.
    """
    notice = generator.settings.notice
    if len(plan) > settings.shard_rows * MOST_SHARDS:
        raise InputError(
            got=f"--shard-rows {settings.shard_rows} for {len(plan):,} images",
            expected=f"at most {MOST_SHARDS:,} shards",
            do="give more rows a shard",
        )
    shard_rows = _shard_rows(plan, settings.shard_rows)
    common: dict[str, Any] = {"rows": len(plan), "shard_rows": shard_rows, "notice": notice, "made_by": settings.made_by}
    common["notes"] = generator.family.notes
    drawn_by = f"drawn by {generator.origin}: {generator.license}"
    latent = ColumnSpec(
        name=LATENTS, what="latents", row_shape=generator.latent_shape, fingerprint={"generation": generation}, license=drawn_by, **common
    )
    decoder: Any = "the generator's"
    images_by = drawn_by
    if settings.decoder is not None:
        decoder = settings.decoder.fingerprint()
        if not settings.decoder.halves:
            images_by = f"{drawn_by}, decoded by {settings.decoder.origin}: {settings.decoder.license}"
    tokens = [
        ColumnSpec(
            name=settings.column_name(files),
            what="tokens",
            row_shape=(files.tokens, files.width),
            fingerprint={
                "generation": generation,
                "decoder": decoder,
                "encoder": {
                    **files.fingerprint(),
                    "dtype": settings.encoder_dtype or generation["dtype"],
                    "stored_as": settings.token_dtype,
                },
            },
            dtype=settings.token_dtype,
            license=f"images {images_by}; tokens by {files.name}: {files.license}",
            **common,
        )
        for files in encoders
    ]
    scores = candidates_column(plan, {"generation": generation}, {**common, "license": f"scores of images {images_by}"})
    specs = ((latent,) if settings.latents else ()) + ((scores,) if plan.candidates > 1 and tokens else ()) + tuple(tokens)
    require_names_of_columns(spec.name for spec in tokens)
    return specs


def require_names_of_columns(encoders: Iterable[str]) -> None:
    """Raise InputError unless encoders' columns have names of their own, which nothing else in a store has."""
    for name, count in Counter(encoders).items():
        if count > 1 or name in (LATENTS, PROMPT_TEXT, CANDIDATES, CLIP_SCORES, EXAMPLES, VIEW):
            what = "two columns named" if count > 1 else "an encoder's column named as another part of a store,"
            raise InputError(got=f"{what} {name}", expected="one name a column", do="rename the encoder's folder")


def _shard_rows(plan: ImagePlan, asked: int) -> int:
    """Return the rows of a shard: the images of a prompt are in one, so that the prompt is encoded only once, by one process."""
    return -(-asked // plan.images_per_prompt) * plan.images_per_prompt


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
        encoders: presets, ``open_clip:<model>/<pretrained>``, folders or hub ids; ``prompt-text`` is the generator's own text encoder, and
            with it alone no image is generated.
        settings: everything else.
        made_by: the run's flags, for the manifests of new columns.

    Raises:
        InputError: a setting, a prompt or a model's files are not as they must be.
    """
    encoder_compute = resolve_compute(settings.device, settings.dtype, half="float16")
    require_prompts(corpus)
    preset = generator_settings(generator, {name: getattr(settings, name) for name in OVERRIDES})
    sources = [name for name in expand_encoders(tuple(encoders)) if name != PROMPT_TEXT]
    encoder_files = tuple(find_encoder(name, settings.encoder_size, settings.encoder_layer, settings.pool) for name in sources)
    generator_files = find_generator(generator, preset, half=encoder_compute.dtype != "float32")
    compute = resolve_compute(settings.device, settings.dtype, half=generator_files.family.half)
    decoder = find_decoder(settings.decoder, generator_files)
    for files in encoder_files:
        _require_images_for(files, generator_files, decoder)
    plan = plan_of(corpus, settings, partial(prompt_reader, generator_files))
    column_settings = ColumnSettings(
        # Stored latents are used and completed even with --no-latents.
        latents=settings.latents or LATENTS in columns_of(store),
        shard_rows=settings.shard_rows,
        token_dtype=settings.token_dtype,
        made_by=made_by,
        decoder=decoder,
        encoder_dtype=encoder_compute.dtype,
    )
    # Everything that decides an image, and nothing else: batch size and device do not.
    generation = {"drawings": plan.fingerprint(), "seed": settings.seed, "dtype": compute.dtype}
    generation |= {"generator": _record(generator_files, store), **({} if plan.subset is None else {"subset": plan.subset.fingerprint()})}
    scorer = None
    if settings.best_of > 1:
        scorer = scoring_encoder(encoder_files)
        how = {**scorer.unpooled().fingerprint(), "dtype": encoder_compute.dtype}
        generation["best_of"] = {"candidates": settings.best_of, "encoder": how, "decoder": decoder.fingerprint() if decoder else "full"}
    if dtypes := _other_dtypes(generator_files, compute):
        generation["dtypes"] = dtypes
    columns, text = column_specs(plan, generator_files, encoder_files, generation, column_settings), None
    numbering = {"generation": generation, "prompts": prompts_fingerprint(plan)}
    has_text = PROMPT_TEXT in columns_of(store)
    encoder = text_encoder(generator_files) if has_text or PROMPT_TEXT in encoders else {}
    if has_text:
        numbering[TEXT_ENCODER] = encoder
    if PROMPT_TEXT in encoders:
        shared: dict[str, Any] = {"rows": len(plan), "shard_rows": _shard_rows(plan, settings.shard_rows)}
        shared |= {"notice": generator_files.settings.notice, "made_by": made_by, "notes": generator_files.family.notes}
        text = text_column(plan, generator_files, encoder, dtype=compute.dtype, token_dtype=settings.token_dtype, common=shared)
    return Job(
        store=store,
        plan=plan,
        generator=generator_files,
        encoders={column_settings.column_name(files): files for files in encoder_files},
        compute=compute,
        encoder_compute=encoder_compute,
        columns=columns if encoder_files else (),
        prompts=settings.prompts,
        decoder=decoder,
        execution=part_of(settings, Execution),
        numbering=numbering,
        text_column=text,
        most_prompts=max(1, MOST_EMBEDDING_BYTES // generator_files.family.embedding_bytes),
        scorer=None if scorer is None else column_settings.column_name(scorer),
        most_failed=max(FEWEST_FAILED, len(plan) // 20) if settings.max_failed is None else settings.max_failed,
    )


def _record(generator: Generator, store: Path) -> dict[str, Any]:
    """Return a generator's fingerprint, with the guidance scale that the store states where neither that nor this one does anything."""
    record, kind = generator.fingerprint(), generator.family.guidance_kind
    if kind(record["guidance"]) != "none":
        return record
    for name in columns_of(store):
        try:
            generation = load_manifest(store / name)[0].fingerprint.get("generation")
        except InputError:
            continue  # reported when the store is opened
        stated = generation.get("generator") if isinstance(generation, Mapping) else None
        scale = stated.get("guidance") if isinstance(stated, Mapping) else None
        if isinstance(scale, (int, float)) and kind(scale) == "none":
            return record | {"guidance": scale}
    return record


def _other_dtypes(generator: Generator, compute: Compute) -> dict[str, str]:
    """Return the dtypes of the parts that decide a latent and are kept in another than ``compute`` says."""
    dtypes = generator.family.dtypes(compute.torch_dtype)
    return {
        part: str(dtype).removeprefix("torch.") for part, dtype in sorted(dtypes.items()) if part != "vae" and dtype != compute.torch_dtype
    }


def _require_images_for(encoder: EncoderFiles, generator: Generator, decoder: DecoderFiles | None) -> None:
    """Raise InputError if an encoder's processor does not resize, and the decoded images have another size than it needs; warn if halved
    ones are enlarged for it."""
    how, side_px = encoder.preprocessing, image_side_px(generator, decoder)
    if not how.is_resized and (side_px < how.size_px or (not how.is_cropped and side_px != how.size_px)):
        raise InputError(
            got=f"images of {side_px} px for {encoder.name}, whose {encoder.processor} does not resize them",
            expected=f"images of {how.size_px} px",
            do=f"generate them with --size-px {how.size_px * generator.size_px // side_px}, or choose another encoder",
        )
    read_px = how.crop_from_px or how.size_px
    if side_px < min(read_px, generator.size_px):
        warnings.warn(
            f"--decoder half makes images of {side_px} px, which are enlarged to the {read_px} px that {encoder.name} reads", stacklevel=3
        )


def refuse_other_images(job: StoreJob, but: Container[str] = ()) -> None:
    """Refuse a store of other images before anything in it is touched: the rows of all its columns are numbered by one table.

    Args:
        job: which images there should be.
        but: columns that are not looked at.

    Raises:
        InputError: a column of the store has another fingerprint.
    """
    ours = {spec.name: spec for spec in job.every_column}
    for name in columns_of(job.store):
        spec, _ = load_manifest(job.store / name)
        stated = [key for key in NUMBERING if key in spec.fingerprint]
        if not stated or name in but or is_empty(job.store / name):
            continue  # a foreign column, whose rows we do not check; or an empty one
        wanted: Fingerprint = {**spec.fingerprint, **{key: job.numbering.get(key, {}) for key in stated}}
        if TEXT_ENCODER in spec.fingerprint and TEXT_ENCODER in job.numbering:
            wanted = {**wanted, TEXT_ENCODER: {**spec.fingerprint[TEXT_ENCODER], **job.numbering[TEXT_ENCODER]}}
        wanted = ours[name].fingerprint if name in ours else wanted
        if unlike := differences(spec.fingerprint, wanted):
            raise InputError(
                got=f"a store in {job.store / name} that was made with other settings: {'; '.join(_in_flags(unlike, spec, job))}",
                expected="the same settings as the store's",
                do="repeat those settings, or give another --run-dir for a new store",
            )


def _in_flags(unlike: Sequence[str], found: ColumnSpec, job: StoreJob) -> list[str]:
    """Return differences, with the flags that differ in place of hashes of prompts."""
    others = [one for one in unlike if not one.startswith(_OF_PROMPTS)]
    if len(others) == len(unlike):
        return others
    names = {*_FLAGS_OF_PROMPTS, *(item.name for item in fields(CorpusSettings))} - {"data_dir"}
    wanted = job.every_column[0].made_by or {}
    flags: list[dict[str, Any]] = [{}, {}]
    for name in names & wanted.keys():  # flags that were added since the store was made had their default
        flags[0][name], flags[1][name] = (found.made_by or {}).get(name, _default(name, wanted[name])), wanted[name]
    typed = differences({"flags": flags[0]}, {"flags": flags[1]})
    if found.made_by is None:
        typed = ["other prompts, by flags that the column does not state"]
    elif not typed:
        typed = ["other prompts, though no flag differs: the texts are others"]
        if wanted.get("prompts") == "keywords":
            typed = [f"{typed[0]}, or the version of lugpi that began the store chose other keywords of them"]
        if wanted.get("prompts") == "wordnet":
            typed = [f"{typed[0]}, or the class names are, or the version of lugpi that began the store chose other hypernyms"]
    told = {flag.partition(":")[0] for flag in typed}
    of_flags = [prefix for prefix, flag in _OF_FLAGS if flag in told]
    return typed + [one for one in others if not one.startswith(tuple(of_flags))]


def _default(name: str, otherwise: Any) -> Any:
    settings = {item.name: item.default for item in (*fields(FeaturizeSettings), *fields(CorpusSettings))}
    return settings.get(name, otherwise)


def missing_disk_bytes(job: StoreJob) -> int:
    """Return the disk space that the missing shards take; with a mirror, that of the few which wait to be sent there."""
    if job.mirror is not None:
        return sum(_MOST_WAITING * structure(spec.layout(0)).file_bytes for spec in job.every_column)
    return sum(missing_bytes(job.store, spec) for spec in job.every_column)


def require_room(job: StoreJob) -> None:
    """Raise InputError unless the disk has room for all that is missing."""
    missing, free = missing_disk_bytes(job), shutil.disk_usage(job.store).free
    if missing > free:
        raise InputError(
            got=f"{free / 1e6:,.0f} MB free for {job.store}",
            expected=f"{missing / 1e6:,.0f} MB for the missing shards",
            do="free some space, choose another --run-dir, or keep less (--no-latents, --token-dtype int8, a smaller encoder)",
        )


def table_is_stale(store: Path, corpus: Corpus, plan: ImageRows) -> bool:
    """Whether ``examples.h5`` is missing or does not match the corpus and the plan."""
    try:
        return not np.array_equal(read_example_table(store, corpus).drawings, plan.images_of_example)
    except InputError:
        return True
