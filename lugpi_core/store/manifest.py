"""The manifest of a column: what its bytes depend on, and one record per committed shard. A shard without a record does not exist."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, write_json
from lugpi_core.fingerprint import Fingerprint, differences, digest
from lugpi_core.store.layout import OWN_IMAGES, ROW_DTYPES, Dtype, ShardLayout
from lugpi_core.store.lease import locked

FORMAT = "lugpi-token-store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
MOST_SHARDS = 1 << 15  # a process maps each of them, and the kernel allows some 65,000 maps
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """The description of a column, without its rows.

    Attributes:
        name: folder of the column, such as ``clip-vit-b32`` or ``latents``.
        what: name of the dataset inside a shard: ``tokens`` or ``latents``.
        rows: number of images M.
        row_shape: (T, D) of tokens, (C, h, w) of latents.
        shard_rows: rows of every shard but the last.
        fingerprint: everything that determines the column's bytes, as nested plain values.
        dtype: ``float16``, ``int8`` with a float32 scale for each token, or ``float32`` (hidden states of text models).
        license: the licences of the models that computed the column, in one line.
        notice: what a reader must know about the content, in one sentence, or None.
        made_by: the flags of the command that began the column, so that ``verify --repair`` can repeat it; affects no byte.
        notes: what the library does besides that nobody asked for, by name, such as an instruction before every prompt.
    """

    name: str
    what: str
    rows: int
    row_shape: tuple[int, ...]
    shard_rows: int
    fingerprint: Fingerprint = field(repr=False)
    dtype: Dtype = "float16"
    license: str = ""
    notice: str | None = None
    made_by: Mapping[str, Any] | None = field(default=None, repr=False)
    notes: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    @cached_property
    def digest(self) -> str:
        """The hash of the fingerprint, 32 hex digits; it is stored in every shard and seeds the hashes of the rows."""
        return digest(self.fingerprint)

    def shard_name(self, shard: int) -> str:
        """Return the file name of a final shard. No column of other rows has the same, because HDF5 looks for the sources of a view in
        other folders too, and takes any file of that name."""
        return f"shard-{shard:05d}-{digest([self.digest, self.rows, self.shard_rows])[:8]}.h5"

    def layout(self, shard: int) -> ShardLayout:
        """Return the layout of one shard."""
        first = shard * self.shard_rows
        return ShardLayout(
            what=self.what,
            rows=min(self.shard_rows, self.rows - first),
            row_shape=self.row_shape,
            first_row=first,
            fingerprint_digest=self.digest,
            dtype=self.dtype,
        )


def is_of_own_pictures(spec: ColumnSpec) -> bool:
    """Whether a column is of a user's own pictures, which no generator drew."""
    generation = spec.fingerprint.get("generation")
    return isinstance(generation, Mapping) and generation.get("generator") == OWN_IMAGES


def plain_shard_name(shard: int) -> str:
    """Return what the names of a shard's unfinished files and of its lease begin with. Earlier versions named the final file so."""
    return f"shard-{shard:05d}.h5"


def final_names(spec: ColumnSpec, shard: int) -> tuple[str, str]:
    """Return the names that a final shard can have: the one it gets, and that of earlier versions and of some foreign programs."""
    return spec.shard_name(shard), plain_shard_name(shard)


def load_manifest(folder: Path) -> tuple[ColumnSpec, dict[int, Record]]:
    """Return a column's spec and its records by shard number.

    Raises:
        InputError: there is no manifest, it has another format, or it has changed since it was written.
    """
    path = folder / MANIFEST
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}")
        if value["version"] != FORMAT_VERSION:
            raise _other_version(path, value["version"])
        if value.pop("xxh3_128") != digest(value):
            raise ValueError("it differs from its own hash")
        stated = {key: value[key] for key in _SPEC}
        spec = ColumnSpec(**stated, row_shape=tuple(value["row_shape"]), notes=value.get("notes", {}))
        _check_spec(spec)
        if spec.name != folder.name:
            raise ValueError(f"it belongs to a column {spec.name!r}")
        records = {int(shard): record for shard, record in value["shards"].items()}
        for shard, record in records.items():
            _check_place(spec, shard, record)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            got=f"{path} ({error!r})",
            expected=f"a manifest of {FORMAT} version {FORMAT_VERSION}",
            do=f"remove this file and run the same featurize command again: it checks each row of {folder} and keeps the valid ones",
        ) from None
    return spec, records


def open_manifest(folder: Path, spec: ColumnSpec) -> tuple[ColumnSpec, dict[int, Record]]:
    """Create the manifest of a new column, or check an existing one against ``spec``; return the column's spec and records.

    The fingerprint of the returned spec is the manifest's, which seeds the hashes of the rows. That of ``spec`` agrees with it, but its
    hashes of models may be of another form.

    The manifest of a column without any shard, unfinished or final, is replaced.

    Raises:
        InputError: the existing column has another fingerprint or shape; the fields that differ are named.
    """
    make_folder(folder)
    with locked(folder):
        if (folder / MANIFEST).exists() and not is_empty(folder):
            found, records = load_manifest(folder)
        else:
            _write(folder, spec, {})
            return spec, {}
    refuse_other(folder, found, spec)
    return replace(spec, fingerprint=found.fingerprint), records


def is_empty(folder: Path) -> bool:
    """Whether a column's folder contains no shard, neither unfinished nor final."""
    return not any(name.startswith("shard-") for name in os.listdir(folder))  # glob would report an unreadable folder as empty


def refuse_other(folder: Path, found: ColumnSpec, wanted: ColumnSpec) -> None:
    """Raise InputError naming the fields in which a column differs from the expected one."""
    refuse_difference(folder, found.fingerprint, wanted.fingerprint)
    refuse_difference(folder, _shape(found), _shape(wanted))


def refuse_difference(folder: Path, found: Fingerprint, wanted: Fingerprint) -> None:
    """Raise InputError naming the differing fields unless the two fingerprints agree."""
    if unlike := differences(found, wanted):
        raise InputError(
            got=f"a store in {folder} that was made with other settings: {'; '.join(unlike)}",
            expected="the same settings as the store's",
            do="repeat those settings, or give another --run-dir for a new store",
        )


def add_records(folder: Path, spec: ColumnSpec, new: Mapping[int, Record]) -> None:
    """Add records of shards to the manifest, or replace them; the caller holds the folder's lock.

    Raises:
        InputError: the column now has other settings.
    """
    found, records = load_manifest(folder)
    refuse_other(folder, found, spec)
    _write(folder, found, {**records, **new})


def drop_record(folder: Path, shard: int) -> None:
    """Remove a shard from the manifest: from now on it does not exist. The caller holds the folder's lock."""
    spec, records = load_manifest(folder)
    records.pop(shard, None)
    _write(folder, spec, records)


def _shape(spec: ColumnSpec) -> Fingerprint:
    return {
        "what": spec.what,
        "rows": spec.rows,
        "row_shape": list(spec.row_shape),
        "shard_rows": spec.shard_rows,
        "dtype": spec.dtype,
    }


_SPEC = ("name", "what", "rows", "shard_rows", "fingerprint", "dtype", "license", "notice", "made_by")


def _write(folder: Path, spec: ColumnSpec, records: Mapping[int, Record]) -> None:
    shards = {str(shard): records[shard] for shard in sorted(records)}
    described = {key: given for key, given in asdict(spec).items() if key != "notes" or given}
    value = {"format": FORMAT, "version": FORMAT_VERSION, **described, "row_shape": list(spec.row_shape), "shards": shards}
    write_json(folder / MANIFEST, {**value, "xxh3_128": digest(value)})


def _other_version(path: Path, version: Any) -> InputError:
    return InputError(
        got=f"{path} of version {str(version)[:20]}", expected=f"version {FORMAT_VERSION}", do="use the lugpi that made this store"
    )


def _check_spec(spec: ColumnSpec) -> None:
    numbers = {"rows": spec.rows, "shard_rows": spec.shard_rows, **{f"row_shape[{n}]": size for n, size in enumerate(spec.row_shape)}}
    for name, number in numbers.items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} is {number!r}")
    if spec.what not in ("tokens", "latents"):
        raise ValueError(f"rows of {spec.what!r}")
    if len(spec.row_shape) > 31:  # HDF5 allows 32 dimensions, one of which counts the rows
        raise ValueError(f"rows of {len(spec.row_shape)} dimensions")
    if not spec.row_shape or spec.dtype not in ROW_DTYPES or not isinstance(spec.fingerprint, Mapping):
        raise ValueError(f"rows of shape {spec.row_shape!r} and dtype {spec.dtype!r}")
    shard_bytes = spec.layout(0).bytes_of(spec.what, spec.shard_rows)
    limits = {"rows": (spec.rows, 1 << 26), "shards": (spec.shards, MOST_SHARDS), "bytes of a shard": (shard_bytes, 1 << 46)}
    for name, (number, most) in limits.items():
        if number > most:  # above any real corpus, and still cheap to list and loop over
            raise ValueError(f"{name} are {number}, more than {most}")


def _check_place(spec: ColumnSpec, shard: int, record: Record) -> None:
    # A manifest may come from anywhere: a record must name its own shard's file in this folder, and its datasets must lie inside that file.
    layout = spec.layout(shard)
    stated = {key: record[key] for key in ("file", "first_row", "rows")}
    place = {"first_row": layout.first_row, "rows": layout.rows}
    if shard not in range(spec.shards) or stated not in [{"file": name, **place} for name in final_names(spec, shard)]:
        raise ValueError(f"shard {shard} is recorded as {stated}")
    if record["offsets"].keys() != layout.datasets.keys():
        raise ValueError(f"shard {shard} has the datasets {', '.join(record['offsets'])}")
    for name, offset in record["offsets"].items():
        if type(offset) is not int or not 0 <= offset <= record["bytes"] - layout.bytes_of(name, layout.rows):
            raise ValueError(f"shard {shard} has its {name} outside its file")
    if record["fingerprint"] != spec.digest:
        raise ValueError(f"shard {shard} was made under the fingerprint {record['fingerprint']}")
    if absent := {"xxh3_128", "flagged"} - record.keys():
        raise ValueError(f"shard {shard} is recorded without {', '.join(sorted(absent))}")
    if not all(int(row) in range(layout.rows) and isinstance(why, str) for row, why in record["flagged"].items()):
        raise ValueError(f"shard {shard} has failed rows that it does not have")
