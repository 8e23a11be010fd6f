"""What a column is, and one record per final shard. A shard without a record does not exist.

``manifest.json`` describes the column. It is written when the column is begun. A process that completes a shard writes its record to a file
of its own, ``records/shard-00012.json``, last of all and under a name that no file has: no two processes write one object.
``merge_records`` copies the records into the manifest. Both places count; a record file is the newer of the two.
"""

import json
import os
import platform
import re
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import create_whole, is_orphan, make_folder, open_file, read_at, read_json, write_bytes
from lugpi_core.fingerprint import Fingerprint, differences, digest
from lugpi_core.store.layout import OWN_IMAGES, ROW_DTYPES, Dtype, ShardLayout
from lugpi_core.store.lease import locked

FORMAT = "lugpi-token-store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
RECORDS, RECORD_FORMAT = "records", "lugpi-shard-record"
MOST_SHARDS = 1 << 20
# An unfinished file of a shard; the second group says whose it is, where there are no leases.
_UNFINISHED = re.compile(r"shard-([0-9]{5,7})\.h5(\.[^.]+)?\.(?:partial|suspect)")
_RECORD_NAME = re.compile(r"shard-([0-9]{5,7})\.json")
Record = dict[str, Any]
# The records of record files by shard, each with what tells whether its file is still the same.
RecordFiles = Mapping[int, tuple[tuple[int, int, int], Record]]


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


def components_of(spec: ColumnSpec) -> Mapping[str, Any] | None:
    """Return what ``featurize reduce`` recorded of a column of components, their number and the hash of their basis; None of another
    column."""
    encoder = spec.fingerprint.get("encoder")
    reduced = encoder.get("pca") if isinstance(encoder, Mapping) else None
    return reduced if isinstance(reduced, Mapping) else None


def is_of_components(spec: ColumnSpec) -> bool:
    """Whether a column is of components of another column's tokens (``featurize reduce``)."""
    return components_of(spec) is not None


def plain_shard_name(shard: int) -> str:
    """Return what the names of a shard's unfinished files and of its lease begin with. Earlier versions named the final file so."""
    return f"shard-{shard:05d}.h5"


def lease_path(folder: Path, shard: int) -> Path:
    """Return where the lease of a shard is."""
    return folder / f".{plain_shard_name(shard)}.lease"


def final_names(spec: ColumnSpec, shard: int) -> tuple[str, str]:
    """Return the names that a final shard can have: the one it gets, and that of earlier versions and of some foreign programs."""
    return spec.shard_name(shard), plain_shard_name(shard)


def load_manifest(folder: Path) -> tuple[ColumnSpec, dict[int, Record]]:
    """Return a column's spec and the records of its final shards by number, from the manifest and from record files.

    Raises:
        InputError: there is no manifest, it has another format, or it has changed since it was written.
    """
    spec, merged = read_manifest(folder)
    return spec, with_files(merged, read_record_files(folder, spec, skip=merged))


def read_manifest(folder: Path) -> tuple[ColumnSpec, dict[int, Record]]:
    """Return a column's spec and the records that its manifest has.

    Raises:
        InputError: as ``load_manifest``.
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


def record_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard's record file."""
    return folder / RECORDS / f"shard-{shard:05d}.json"


def read_record(folder: Path, spec: ColumnSpec, shard: int) -> Record | None:
    """Return the record in a shard's record file; None if there is none, or it is torn, changed or another shard's."""
    try:
        with open_file(record_path(folder, shard), os.O_RDONLY) as descriptor:
            record = record_in(read_at(descriptor, os.fstat(descriptor).st_size, 0), shard)
        if record is not None:
            _check_place(spec, shard, record)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
        return None
    return record


def record_in(data: bytes, shard: int) -> Record | None:
    """Return the record in the content of a shard's record file, None if it is torn, changed or another shard's. What it says of the
    shard's place is not checked."""
    try:
        value = json.loads(data)
        stated, about = value.pop("xxh3_128"), (value["format"], value["version"], value["shard"])
        record: Record = value["record"]
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    is_whole = stated == digest(value) and about == (RECORD_FORMAT, FORMAT_VERSION, shard) and isinstance(record, dict)
    return record if is_whole else None


def read_record_files(
    folder: Path, spec: ColumnSpec, known: RecordFiles | None = None, *, skip: Mapping[int, Any] | None = None
) -> dict[int, tuple[tuple[int, int, int], Record]]:
    """Return the valid record files of a column by shard, but those of ``skip``. Files with other names are ignored.

    Args:
        folder: the column's.
        spec: its description.
        known: what an earlier call returned; only files that are others since then are read.
        skip: shards that are not asked for.
    """
    found: dict[int, tuple[tuple[int, int, int], Record]] = {}
    try:
        with os.scandir(folder / RECORDS) as entries:
            names = [(int(match[1]), entry) for entry in entries if (match := _RECORD_NAME.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError):
        return found
    for shard, entry in names:
        if shard >= spec.shards or (skip is not None and shard in skip):
            continue
        try:
            state = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        stamp = (state.st_ino, state.st_mtime_ns, state.st_size)
        if known is not None and shard in known and known[shard][0] == stamp:
            found[shard] = known[shard]
        elif (record := read_record(folder, spec, shard)) is not None:
            found[shard] = stamp, record
    return found


def with_files(merged: Mapping[int, Record], files: RecordFiles) -> dict[int, Record]:
    """Return the records of a manifest and those of record files, which are newer, by ascending shard."""
    records = {**merged, **{shard: record for shard, (_, record) in files.items()}}
    return dict(sorted(records.items()))


def write_record(folder: Path, spec: ColumnSpec, shard: int, record: Record, *, seconds: float | None = None) -> None:
    """Write a shard's record file, which makes the shard final. An equal record of another process stays; any other is replaced, because
    this one is of the file that lies there.

    Args:
        folder: the column's.
        spec: its description.
        shard: its number.
        record: of its file.
        seconds: that computing the shard took, if that is known.
    """
    path = record_path(folder, shard)
    make_folder(path.parent)
    by = {"host": platform.node(), "pid": os.getpid()}
    value = {"format": RECORD_FORMAT, "version": FORMAT_VERSION, "shard": shard, "record": record, "by": by, "seconds": seconds}
    data = json.dumps({**value, "xxh3_128": digest(value)}, allow_nan=False).encode() + b"\n"
    if not create_whole(path, data):
        standing = read_record(folder, spec, shard)
        if standing is None or standing["xxh3_128"] != record["xxh3_128"]:
            write_bytes(path, data)


def open_manifest(folder: Path, spec: ColumnSpec) -> ColumnSpec:
    """Create the manifest of a new column, or check an existing one against ``spec``; return the column's spec.

    The fingerprint of the returned spec is the manifest's, which seeds the hashes of the rows. That of ``spec`` agrees with it, but its
    hashes of models may be of another form.

    The manifest of a column without any shard, unfinished or final, is replaced.

    Raises:
        InputError: the existing column has another fingerprint or shape; the fields that differ are named.
    """
    make_folder(folder)
    with locked(folder):
        if not (folder / MANIFEST).exists() and create_whole(folder / MANIFEST, _manifest_bytes(spec, {})):
            return spec
        if is_empty(folder):
            if (folder / MANIFEST).read_bytes() != _manifest_bytes(spec, {}):
                _write(folder, spec, {})
            return spec
        found, _ = read_manifest(folder)
    refuse_other(folder, found, spec)
    return replace(spec, fingerprint=found.fingerprint)


def is_empty(folder: Path) -> bool:
    """Whether a column's folder contains no shard, neither unfinished nor final, and no place for records of some."""
    with os.scandir(folder) as entries:  # glob would report an unreadable folder as empty
        return not any(entry.name.startswith("shard-") or entry.name == RECORDS for entry in entries)


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


def merge_records(folder: Path, elsewhere: Mapping[int, Record] | None = None) -> int:
    """Copy the records of all record files, and of shards that are elsewhere, into the manifest, and remove what others left unfinished of
    these shards; return how many shards the manifest has. Any number of processes may do so.

    Raises:
        InputError: as ``load_manifest``.
    """
    with locked(folder):
        spec, merged = read_manifest(folder)
        records = with_files({**merged, **(elsewhere or {})}, read_record_files(folder, spec))
        if records != merged:
            _write(folder, spec, records)
        _sweep_unfinished(folder, records)
    return len(records)


def _sweep_unfinished(folder: Path, final: Container[int]) -> None:
    """Remove unfinished files of final shards, which nobody will continue; the caller holds the folder's lock.

    Such files are left where there are no leases or where another machine has sent the shard. One under a lease stays, and so does one
    whose name tells of a process that may still work.
    """
    with os.scandir(folder) as entries:
        names = [(int(match[1]), match[2], entry.name) for entry in entries if (match := _UNFINISHED.fullmatch(entry.name))]
    for shard, owner, name in names:
        if shard in final and not lease_path(folder, shard).exists() and (owner is None or is_orphan(folder / name)):
            (folder / name).unlink(missing_ok=True)


def drop_record(folder: Path, shard: int) -> None:
    """Remove a shard's record: from now on the shard does not exist. The caller holds the folder's lock."""
    spec, merged = read_manifest(folder)
    if merged.pop(shard, None) is not None:
        _write(folder, spec, merged)
    record_path(folder, shard).unlink(missing_ok=True)


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
    write_bytes(folder / MANIFEST, _manifest_bytes(spec, records))


def _manifest_bytes(spec: ColumnSpec, records: Mapping[int, Record]) -> bytes:
    shards = {str(shard): records[shard] for shard in sorted(records)}
    described = {key: given for key, given in asdict(spec).items() if key != "notes" or given}
    value = {"format": FORMAT, "version": FORMAT_VERSION, **described, "row_shape": list(spec.row_shape), "shards": shards}
    about = json.dumps({**value, "shards": None}, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("null\n}")
    # A record a line: of 100,000, an indented manifest takes five times as long to write.
    lines = ",".join(f'\n    "{shard}": {json.dumps(record, allow_nan=False)}' for shard, record in shards.items())
    return f'{about}{{{lines}\n  }},\n  "xxh3_128": "{digest(value)}"\n}}\n'.encode()


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
    limits = {"rows": (spec.rows, 1 << 28), "shards": (spec.shards, MOST_SHARDS), "bytes of a shard": (shard_bytes, 1 << 46)}
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
