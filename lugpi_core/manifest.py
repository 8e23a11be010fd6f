"""The manifest of a column: what its bytes depend on, and one record a committed shard. A shard without a record does not exist."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, read_json, write_json
from lugpi_core.fingerprint import Fingerprint, differences, digest
from lugpi_core.shard import ShardLayout

FORMAT = "lugpi-token-store"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """A column of the store before anything is in it.

    Attributes:
        name: folder of the column, such as ``clip-vit-b32`` or ``latents``.
        what: name of the dataset inside a shard: ``tokens`` or ``latents``.
        rows: number of drawings M.
        row_shape: (T, D) of tokens, (C, h, w) of latents.
        shard_rows: rows of every shard but the last.
        fingerprint: everything that decides the column's bytes, as nested plain values.
        license: the licences of the models that made the column, in one line.
        notice: what a reader must know about the content, in one sentence, or None.
    """

    name: str
    what: str
    rows: int
    row_shape: tuple[int, ...]
    shard_rows: int
    fingerprint: Fingerprint = field(repr=False)
    license: str = ""
    notice: str | None = None

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.rows // self.shard_rows)

    def layout(self, shard: int) -> ShardLayout:
        """Return the layout of one shard."""
        first = shard * self.shard_rows
        rows = min(self.shard_rows, self.rows - first)
        return ShardLayout(
            what=self.what, rows=rows, row_shape=self.row_shape, first_row=first, fingerprint_digest=digest(self.fingerprint)
        )


def shard_name(shard: int) -> str:
    """Return the file name of a committed shard."""
    return f"shard-{shard:05d}.h5"


def load_manifest(folder: Path) -> tuple[ColumnSpec, dict[int, dict[str, Any]]]:
    """Return a column's spec and its records by shard number.

    Raises:
        InputError: there is no manifest, or it is not one of this format.
    """
    path = folder / MANIFEST
    value = read_json(path)
    try:
        if value["format"] != FORMAT or value["version"] != FORMAT_VERSION:
            raise ValueError(f"format {value['format']!r} version {value['version']!r}")
        stated = {key: value[key] for key in ("name", "what", "rows", "shard_rows", "fingerprint", "license", "notice")}
        spec = ColumnSpec(**stated, row_shape=tuple(value["row_shape"]))
        records = {int(shard): record for shard, record in value["shards"].items()}
        for shard, record in records.items():
            _check_place(spec, shard, record)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            got=f"{path} ({error!r})",
            expected=f"a manifest of {FORMAT} version {FORMAT_VERSION}",
            do=f"move the folder {folder} away and run featurize again",
        ) from None
    return spec, records


def open_manifest(folder: Path, spec: ColumnSpec) -> dict[int, dict[str, Any]]:
    """Create the manifest of a new column, or check an existing one against ``spec``; return its records.

    Raises:
        InputError: the column there has another fingerprint or shape; the fields that differ are named.
    """
    make_folder(folder)
    with _locked(folder):
        if not (folder / MANIFEST).exists():
            _write(folder, spec, {})
            return {}
        found, records = load_manifest(folder)
    refuse_difference(folder, found.fingerprint, spec.fingerprint)
    refuse_difference(folder, _shape(found), _shape(spec))
    return records


def refuse_difference(folder: Path, found: Fingerprint, wanted: Fingerprint) -> None:
    """Raise InputError naming the differing fields unless the two fingerprints agree."""
    if unlike := differences(found, wanted):
        raise InputError(
            got=f"a store in {folder} that was made otherwise: {'; '.join(unlike)}",
            expected="the same settings as the store's",
            do="repeat those settings, or give another --run-dir for a new store",
        )


def add_record(folder: Path, spec: ColumnSpec, shard: int, record: dict[str, Any]) -> None:
    """Add one shard's record to the manifest; two processes may do so at once."""
    with _locked(folder):
        _, records = load_manifest(folder)
        records[shard] = record
        _write(folder, spec, records)


def drop_record(folder: Path, spec: ColumnSpec, shard: int) -> None:
    """Take a shard out of the manifest: from now on it does not exist."""
    with _locked(folder):
        _, records = load_manifest(folder)
        records.pop(shard, None)
        _write(folder, spec, records)


def _shape(spec: ColumnSpec) -> Fingerprint:
    return {"what": spec.what, "rows": spec.rows, "row_shape": list(spec.row_shape), "shard_rows": spec.shard_rows}


def _write(folder: Path, spec: ColumnSpec, records: dict[int, dict[str, Any]]) -> None:
    stated = {**asdict(spec), "row_shape": list(spec.row_shape), "dtype": "float16"}
    shards = {str(shard): records[shard] for shard in sorted(records)}
    write_json(folder / MANIFEST, {"format": FORMAT, "version": FORMAT_VERSION, **stated, "shards": shards})


def _check_place(spec: ColumnSpec, shard: int, record: dict[str, Any]) -> None:
    # A manifest may come from anywhere: a record is of its own shard's file, in this folder, and its rows lie inside that file.
    layout = spec.layout(shard)
    stated = {key: record[key] for key in ("file", "first_row", "rows")}
    if shard not in range(spec.shards) or stated != {"file": shard_name(shard), "first_row": layout.first_row, "rows": layout.rows}:
        raise ValueError(f"shard {shard} is recorded as {stated}")
    if not 0 <= record["rows_offset"] <= record["bytes"] - layout.rows * layout.row_bytes:
        raise ValueError(f"shard {shard} has its rows outside its file")
    if absent := {"xxh3_128", "flagged"} - record.keys():
        raise ValueError(f"shard {shard} is recorded without {', '.join(sorted(absent))}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The kernel drops the lock with its owner, so a killed process leaves none behind.
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
