"""A user's own pictures beside the texts: which distinct ones there are, which text has which, and into which columns they are encoded.

Shapes: N examples, K pictures each, M distinct pictures.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from featurize.encode.encoders import EncoderFiles, expand_encoders, find_encoder
from featurize.encode.own_pictures import PictureKind, kind_of
from featurize.options import Execution, FeaturizeSettings, Generation
from featurize.plan.job import FEWEST_FAILED, require_names_of_columns
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.pictures import PictureCell, PictureFault
from lugpi_core.errors import InputError, number_of
from lugpi_core.fields import part_of
from lugpi_core.fingerprint import digest
from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.store.layout import OWN_IMAGES, PROMPT_TEXT
from lugpi_core.store.manifest import MOST_SHARDS, ColumnSpec

NO_PICTURE = "no picture"
_OF_GENERATING = tuple(item.name for item in fields(Generation))
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class OwnImages:
    """The M distinct pictures of N texts; rows of every column. Holds no picture.

    Attributes:
        sources: of each picture, its cell and its place there.
        digests: xxh3-128 of its file's bytes; of a picture that cannot be read, why.
        faults: by row, why a picture cannot be read.
        images_of_example: int64 [N, K], the rows of each text's pictures; those of a text with fewer recur in turn.
        kinds: of the pictures that can be read.
    """

    sources: tuple[tuple[PictureCell, int], ...]
    digests: tuple[str, ...]
    faults: Mapping[int, str]
    images_of_example: NDArray[np.int64]
    kinds: tuple[PictureKind, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def images_per_text(self) -> int:
        """K."""
        return int(self.images_of_example.shape[1])

    @property
    def saved(self) -> int:
        """How many more rows there would be if texts with the same picture did not share its row."""
        return self.images_of_example.size - len(self)

    def fingerprint(self) -> str:
        """Return the hash of the contents of all pictures, in order."""
        return digest(self.digests)

    def read(self, row: int) -> bytes:
        """Return the bytes of a picture's file.

        Raises:
            PictureFault: it cannot be read.
            InputError: it is not what it was when the run was planned.
        """
        if row in self.faults:
            raise PictureFault(self.faults[row])
        cell, place = self.sources[row]
        picture = cell.pictures()[place]
        data = picture.read()
        if xxhash.xxh3_128_hexdigest(data) != self.digests[row]:
            raise InputError(
                got=f"{picture.name}, which changed during the run",
                expected="the same pictures from beginning to end",
                do="run the command again in another --run-dir",
            )
        return data

    def words(self) -> list[str]:
        """Return what a user should know of the pictures, a line each."""
        pictures = number_of(len(self), "distinct picture{s}")
        several = f", {self.images_per_text} of a text at most" if self.images_per_text > 1 else ""
        lines = [f"{pictures}{several} ({self.saved:,} saved, their content is shared)"]
        turned, animated, deep = (sum(getattr(kind, name) for kind in self.kinds) for name in ("is_turned", "is_animated", "is_deep"))
        lines += [f"{number_of(turned, 'picture{s}')} turned as their EXIF says"] * bool(turned)
        lines += [f"{number_of(animated, 'picture{s}')} with several frames: the first is read"] * bool(animated)
        lines += [f"{number_of(deep, 'picture{s}')} of more than 8 bits: PIL, as the encoders' libraries, cuts at 255"] * bool(deep)
        if self.faults:
            counted = Counter(self.faults.values()).most_common(_NAMED)
            lines.append(f"{number_of(len(self.faults), 'picture{s}')} cannot be read: {', '.join(f'{n} {why}' for why, n in counted)}")
        return lines


def own_images(corpus: Corpus) -> OwnImages:
    """Return the pictures of a corpus. Every file is read once, to tell its content; none is kept.

    Raises:
        InputError: a cell holds something that is no picture, or none of the texts has a picture.
    """
    rows: dict[str, int] = {}
    sources: list[tuple[PictureCell, int]] = []
    digests: list[str] = []
    kinds: list[PictureKind] = []
    faults: dict[int, str] = {}
    of_example: list[list[int]] = []
    for example in corpus.examples:
        cell = example.pictures
        assert cell is not None
        pictures = cell.pictures()
        its: list[int] = []
        for place, picture in enumerate(pictures or (None,)):
            content, fault = None, NO_PICTURE
            try:
                if picture is not None:
                    data = picture.read()
                    content, fault = xxhash.xxh3_128_hexdigest(data), ""
                    if content not in rows:
                        kinds.append(kind_of(data))
            except PictureFault as error:
                fault = str(error)
            if content is not None and content in rows:
                its.append(rows[content])
                continue
            its.append(len(sources))
            if fault:
                faults[len(sources)] = fault
            if content is not None:
                rows[content] = len(sources)
            sources.append((cell, place))
            digests.append(content or fault)
        of_example.append(its)
    if not kinds:
        raise InputError(
            got=f"no picture that can be read in {corpus.name} ({next(iter(faults.values()), 'no texts')})",
            expected="pictures beside the texts",
            do="check the column and its paths, which are relative to the corpus file",
        )
    most = max(map(len, of_example))
    return OwnImages(
        sources=tuple(sources),
        digests=tuple(digests),
        faults=faults,
        images_of_example=np.stack([np.resize(np.array(its, np.int64), most) for its in of_example]),
        kinds=tuple(kinds),
    )


@dataclass(frozen=True, kw_only=True)
class OwnJob:
    """Everything that is known before an encoder is loaded: which pictures to encode, with which encoders, into which columns.

    Attributes:
        encoders: by the name of their column.
        numbering: what the rows of all columns of the store have in common.
        most_failed: rows that may fail before the run is given up.
        execution: how to compute.
    """

    store: Path
    plan: OwnImages
    encoders: Mapping[str, EncoderFiles]
    compute: Compute
    columns: tuple[ColumnSpec, ...]
    numbering: Mapping[str, Any]
    most_failed: int
    execution: Execution

    @property
    def every_column(self) -> tuple[ColumnSpec, ...]:
        """Those that the job fills."""
        return self.columns


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
    files = tuple(find_encoder(name, settings.encoder_size, settings.encoder_layer) for name in expand_encoders(tuple(encoders)))
    require_names_of_columns(one.name for one in files)
    plan = own_images(corpus)
    if len(plan) > settings.shard_rows * MOST_SHARDS:
        raise InputError(
            got=f"--shard-rows {settings.shard_rows} for {len(plan):,} pictures",
            expected=f"at most {MOST_SHARDS:,} shards",
            do="give more rows a shard",
        )
    most_failed = max(FEWEST_FAILED, len(plan) // 20) if settings.max_failed is None else settings.max_failed
    if len(plan.faults) > most_failed:
        row, why = next(iter(plan.faults.items()))
        first = int(np.flatnonzero((plan.images_of_example == row).any(axis=1))[0])
        raise InputError(
            got=f"{len(plan.faults):,} of {len(plan):,} pictures that cannot be read, the first of {corpus.examples[first].id} ({why})",
            expected=f"at most {most_failed:,} (--max-failed)",
            do="check the paths, which are relative to the corpus file; or allow so many with --max-failed: they count as blank",
        )
    numbering = {"generation": {"generator": OWN_IMAGES, "pictures": plan.fingerprint()}}
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
