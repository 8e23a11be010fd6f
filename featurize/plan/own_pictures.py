"""A user's own pictures beside the texts: with which encoders, into which columns they are encoded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.options import Execution, FeaturizeSettings, Generation
from featurize.plan.job import FEWEST_FAILED, require_names_of_columns
from featurize.plan.picture_plan import PicturePlan, plan_pictures
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.store.layout import OWN_IMAGES, PROMPT_TEXT
from lugpi_core.store.manifest import MOST_SHARDS, ColumnSpec, is_of_own_pictures, load_manifest
from lugpi_core.store.mirror import Mirror
from lugpi_core.store.picture_table import PICTURES, read_picture_table
from lugpi_core.store.reader import columns_of
from lugpi_core.store.shard import FLAG_NO_PICTURE, FLAG_REASONS, FLAG_UNREADABLE

_OF_GENERATING = tuple(item.name for item in fields(Generation))
_WITHOUT_PICTURE = (FLAG_REASONS[FLAG_NO_PICTURE], FLAG_REASONS[FLAG_UNREADABLE])


@dataclass(frozen=True, kw_only=True)
class OwnJob:
    """Everything that is known before an encoder is loaded: which pictures to encode, with which encoders, into which columns.

    Attributes:
        encoders: by the name of their column.
        numbering: what the rows of all columns of the store have in common.
        most_failed: rows that may fail before the run is given up.
        execution: how to compute.
        mirror: where final shards go, too, or None.
    """

    store: Path
    plan: PicturePlan
    encoders: Mapping[str, EncoderFiles]
    compute: Compute
    columns: tuple[ColumnSpec, ...]
    numbering: Mapping[str, Any]
    most_failed: int
    execution: Execution
    mirror: Mirror | None = None

    @property
    def every_column(self) -> tuple[ColumnSpec, ...]:
        """Those that the job fills."""
        return self.columns

    def rows_to_fill_in(self, column: str) -> dict[int, list[int]]:
        """Return the rows of a column's final shards that are flagged for want of a picture that is there now, by shard."""
        if column not in columns_of(self.store):
            return {}
        rows: dict[int, list[int]] = {}
        for shard, record in load_manifest(self.store / column)[1].items():
            flagged = [record["first_row"] + int(row) for row, why in record["flagged"].items() if why in _WITHOUT_PICTURE]
            if found := sorted(row for row in flagged if not self.plan.rows[row].fault):
                rows[shard] = found
        return rows


def plan_own_job(
    corpus: Corpus, store: Path, *, encoders: Sequence[str], settings: FeaturizeSettings, made_by: Mapping[str, Any]
) -> OwnJob:
    """Return the job of encoding a corpus's own pictures. Encoders' files are found, or downloaded; nothing in the store is touched.

    Args:
        corpus: whose texts have pictures.
        store: the store's folder, which exists.
        encoders: presets, ``open_clip:<model>/<pretrained>``, folders or hub ids.
        settings: everything else; those of generating must be the defaults.
        made_by: the run's flags, for the manifests of new columns.

    Raises:
        InputError: a setting, a picture's cell or an encoder's files are not as they must be.
    """
    compute = resolve_compute(settings.device, settings.dtype, half="float16")
    _refuse_generating(encoders, settings, made_by)
    chosen = (settings.encoder_size, settings.encoder_layer, settings.pool)
    files = tuple(find_encoder(name, *chosen) for name in expand_encoders(tuple(encoders)))
    require_names_of_columns(one.name for one in files)
    plan = _plan_in(store, corpus)
    if len(plan) > settings.shard_rows * MOST_SHARDS:
        raise InputError(
            got=f"--shard-rows {settings.shard_rows} for {len(plan):,} pictures",
            expected=f"at most {MOST_SHARDS:,} shards",
            do="give more rows a shard",
        )
    most_failed = max(FEWEST_FAILED, len(plan) // 20) if settings.max_failed is None else settings.max_failed
    if len(plan.faulty) > most_failed:
        first = plan.faulty[0]
        raise InputError(
            got=f"{len(plan.faulty):,} of {len(plan):,} pictures that are missing or cannot be read, the first {first.words()} "
            f"({first.fault})",
            expected=f"at most {most_failed:,} (--max-failed)",
            do="check the paths, which are relative to the corpus file; or allow so many with --max-failed: they count as blank",
        )
    numbering = {"generation": {"generator": OWN_IMAGES, "pictures": plan.fingerprint}}
    common = {
        "rows": len(plan),
        "shard_rows": settings.shard_rows,
        "license": f"images of the corpus {corpus.name}: {corpus.license}",
        "made_by": {name: value for name, value in made_by.items() if name != "generator"},
    }
    stored = {"dtype": compute.dtype, "stored_as": settings.token_dtype}
    return OwnJob(
        store=store,
        plan=plan,
        encoders={one.name: one for one in files},
        compute=compute,
        columns=tuple(_column(one, numbering, common, stored) for one in files),
        numbering=numbering,
        most_failed=most_failed,
        execution=part_of(settings, Execution),
    )


def _plan_in(store: Path, corpus: Corpus) -> PicturePlan:
    """Return the pictures of a corpus; the rows of a store that is continued keep their numbers.

    A store of generated images is refused later, with all that differs.
    """
    table, begun, is_damaged = read_picture_table(store), set(), False
    for name in columns_of(store):
        try:
            spec = load_manifest(store / name)[0]
        except InputError:
            is_damaged = True
            continue
        if is_of_own_pictures(spec):
            begun.add(spec.fingerprint["generation"].get("pictures"))
    if table is not None and (table.fingerprint in begun or (is_damaged and not begun)):
        return plan_pictures(corpus, store, table)
    plan = plan_pictures(corpus, store, None)
    if begun and plan.fingerprint not in begun:
        raise InputError(
            got=f"other pictures than those of the store in {store}, whose {PICTURES}, which says which they are, is not there or damaged",
            expected="the pictures that it was begun with",
            do="put the earlier files back, or encode all as they are now in another --run-dir",
        )
    return plan


def _refuse_generating(encoders: Sequence[str], settings: FeaturizeSettings, made_by: Mapping[str, Any]) -> None:
    """Raise InputError if something is set that only matters where images are generated."""
    defaults = FeaturizeSettings()
    idle = {name: getattr(settings, name) for name in _OF_GENERATING if getattr(settings, name) != getattr(defaults, name)}
    if made_by.get("generator", "fast") != "fast":
        idle = {"generator": made_by["generator"], **idle}
    if PROMPT_TEXT in encoders:
        idle = {"encoders": PROMPT_TEXT, **idle}
    if idle:
        name, value = next(iter(idle.items()))
        raise InputError(
            got=f"--{name.replace('_', '-')} {value} for a corpus with pictures of its own (--images-from)",
            expected="encoders of images: no generator is loaded, and nothing is generated",
            do="leave it out, or generate images without --images-from, in another --run-dir",
        )


def _column(files: EncoderFiles, numbering: Mapping[str, Any], common: Mapping[str, Any], stored: Mapping[str, Any]) -> ColumnSpec:
    """Return an encoder's column, from what all columns have in common and how tokens are computed and stored."""
    images = common["license"]
    return ColumnSpec(
        **{**common, "license": f"{images}; tokens by {files.name}: {files.license}"},
        name=files.name,
        what="tokens",
        row_shape=(files.tokens, files.width),
        fingerprint={**numbering, "encoder": {**files.fingerprint(), **stored, **({} if files.fit == "shortest" else {"fit": files.fit})}},
        dtype=stored["stored_as"],
    )
