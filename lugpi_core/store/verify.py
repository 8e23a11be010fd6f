"""Find every damaged, missing and flagged row of a store by its number, and let them be regenerated."""

import hashlib
import os
import re
from collections.abc import Container, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.files import open_file, read_json
from lugpi_core.store.column_map import ShardPlace
from lugpi_core.store.example_table import EXAMPLES
from lugpi_core.store.foreign_files import structure_faults
from lugpi_core.store.layout import BASIS, DECODER_SUFFIXES, FLAGS, LATENTS, ShardLayout
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.manifest import (
    MANIFEST,
    RECORDS,
    ColumnSpec,
    Record,
    final_names,
    is_of_components,
    load_manifest,
    plain_shard_name,
)
from lugpi_core.store.object_store import mirror_of
from lugpi_core.store.sealed_file import read_sealed
from lugpi_core.store.shard import check_record, check_rows, flagged_rows, read_back, read_dataset
from lugpi_core.store.virtual_view import VIEW, view_is_current
from lugpi_core.store.writer import ColumnWriter

Kind = Literal["missing", "damaged", "flagged"]
# What --encoder-layer, --encoder-size and --pool add to the name of an encoder's column.
_CHOSEN = re.compile(r"(.+?)(?:-layer([0-9]+))?(?:-([0-9]+)px)?(?:-pool-(cls|1|[0-9]+x[0-9]+))?")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong in a store.

    Attributes:
        place: the file, relative to the store.
        kind: missing, damaged or flagged.
        rows: the affected images, numbered as in the column; empty if the file as a whole is affected but its rows are valid.
        detail: why, in a few words.
        column, shard: where, if it is in a shard.
    """

    place: str
    kind: Kind
    rows: tuple[int, ...]
    detail: str
    column: str | None = None
    shard: int | None = None

    def __str__(self) -> str:
        rows = f" rows {row_ranges(self.rows)}" if self.rows else ""
        return f"{self.place}:{rows} {self.kind} ({self.detail})"

    def record(self) -> dict[str, Any]:
        """Return the finding as a JSON value."""
        return {**asdict(self), "rows": list(self.rows)}


def check_store(store: Path, *, deep: bool, shards: Container[int] | None = None) -> list[Finding]:
    """Return what is wrong in a store; nothing is changed.

    Args:
        store: the ``tokens`` folder.
        shards: those that are looked at; None = all.
        deep: read every byte, and compare each row and each file with its hashes; otherwise check records, sizes and structure.

    Raises:
        InputError: there is no store.
    """
    folders = column_folders(store)
    if not folders:
        raise InputError(got=f"no token store in {store}", expected="one that featurize wrote", do="run python -m featurize first")
    findings = [finding for folder in folders for finding in check_column(folder, deep=deep, shards=shards)]
    return findings + _check_small_files(store, columns_are_valid=not any(finding.kind != "flagged" for finding in findings))


def column_folders(store: Path) -> list[Path]:
    """Return the folders of a store that contain shards or records of some, sorted."""
    with_shards = {path.parent for path in store.glob("*/shard-*")} | {path.parent.parent for path in store.glob(f"*/{RECORDS}/*.json")}
    return sorted(with_shards | {path.parent for path in store.glob(f"*/{MANIFEST}") if (_raw_manifest(path.parent) or {}).get("shards")})


def check_column(folder: Path, *, deep: bool, shards: Container[int] | None = None) -> list[Finding]:
    """Return what is wrong in one column; of ``shards`` alone if they are given."""
    try:
        spec, records = load_manifest(folder)
    except InputError as error:
        return [Finding(place=f"{folder.name}/{MANIFEST}", kind="damaged", rows=(), detail=str(error), column=folder.name)]
    looked_at = [shard for shard in range(spec.shards) if shards is None or shard in shards]
    faults = _faults(folder, spec, {shard: records[shard] for shard in looked_at if shard in records}, deep=deep)
    findings: list[Finding] = []
    for shard in looked_at:
        if shard not in records:
            findings.append(_unfinished(folder, spec, shard))
            continue
        if shard in faults:
            findings.append(_faulty(folder, spec, records[shard], faults[shard]))
        if records[shard]["flagged"]:
            findings.append(_flagged(folder, spec, records[shard]))
    return findings


def take_back(store: Path, findings: Iterable[Finding]) -> list[ShardBusy]:
    """Reopen the shards of the findings, so that the next featurize command regenerates the bad rows, and only those.

    Valid rows stay. Flagged rows are forgotten in every column, because a failed image has to be generated again; in columns of components,
    too, which ``featurize reduce`` fills. Shards that another process is writing are skipped and returned.
    """
    findings = list(findings)
    for column in sorted({finding.column for finding in findings if finding.column and finding.shard is None}):
        path = store / column / MANIFEST
        if path.exists():
            os.replace(path, path.with_suffix(".damaged"))
    flagged = {row for finding in findings if finding.kind == "flagged" for row in finding.rows}
    busy: list[ShardBusy] = []
    for folder in column_folders(store):
        if not (folder / MANIFEST).exists():
            continue
        spec, _ = load_manifest(folder)
        mirror = mirror_of(store)
        writer = ColumnWriter(store, spec, check_content=False, mirror=mirror)
        # A missing file of a local store has been noticed by the writer.
        kinds = ("damaged",) if mirror is None else ("damaged", "missing")
        of_column = [finding for finding in findings if finding.column == folder.name and finding.kind in kinds]
        damaged = {finding.shard for finding in of_column if finding.shard is not None}
        # A column from another program cannot be regenerated here.
        failed = flagged if spec.made_by is not None or is_of_components(spec) else set()
        for shard in sorted((damaged | {row // spec.shard_rows for row in failed}) & set(range(spec.shards))):
            try:
                _take_back(writer, shard, failed)
            except ShardBusy as error:
                busy.append(error)
    return busy


def flags_of_the_maker(store: Path, column: str) -> dict[str, Any] | None:
    """Return the flags of the featurize command that began a column; None for a column from another program.

    If its manifest cannot be read, the flags are taken from another column of the store.
    """
    manifest = _raw_manifest(store / column)
    if manifest is not None:
        return manifest.get("made_by")
    candidates = [(_raw_manifest(folder) or {}).get("made_by") for folder in column_folders(store)]
    others = [flags for flags in candidates if isinstance(flags, dict)]
    if not others or column == LATENTS:
        return others[0] if others else None
    for decoder, suffix in DECODER_SUFFIXES.items():
        if column.endswith(suffix) and not any(column in flags.get("encoders", ()) for flags in others):
            same = [flags for flags in others if str(flags.get("decoder")).partition("=")[0] == decoder]
            return {**(same[0] if same else others[0] | {"decoder": decoder}), **_encoder_flags(column.removesuffix(suffix), others)}
    return {**others[0], **_encoder_flags(column, others), "decoder": "full"}


def _encoder_flags(column: str, others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the flags that give a column of one encoder its name, of which ``others`` are flags of the same store."""
    match = None if any(column in flags.get("encoders", ()) for flags in others) else _CHOSEN.fullmatch(column)
    name, layer, size_px, pool = (column, None, None, None) if match is None else match.groups()
    numbers = {"encoder_layer": layer, "encoder_size": size_px}
    chosen = {flag: None if number is None else int(number) for flag, number in numbers.items()} | {"pool": pool}
    known = {flag for flags in others for flag in flags}
    return {"encoders": [name], **{flag: value for flag, value in chosen.items() if value is not None or flag in known}}


def row_ranges(rows: Iterable[int]) -> str:
    """Return ascending numbers as ranges: ``3-5, 9``."""
    numbers = np.asarray(list(rows), dtype=np.int64)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs if len(run))


def _raw_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the content of a column's manifest, even a damaged one, as long as it is JSON."""
    for path in (folder / MANIFEST, (folder / MANIFEST).with_suffix(".damaged")):
        try:
            value = read_json(path)
        except InputError:
            continue
        if isinstance(value, dict):
            return value
    return None


def _faults(folder: Path, spec: ColumnSpec, records: Mapping[int, Record], *, deep: bool) -> dict[int, str]:
    """Return what is wrong with each damaged committed shard; of a run in an object store, there."""
    if (mirror := mirror_of(folder.parent)) is not None:
        return mirror.faults(folder.name, records, deep=deep)
    faults = {shard: fault for shard, record in records.items() if (fault := check_record(folder, record, content=False))}
    whole = {folder / record["file"]: shard for shard, record in records.items() if shard not in faults}
    places = [ShardPlace(path, spec.layout(shard), records[shard]["offsets"], records[shard]["bytes"]) for path, shard in whole.items()]
    faults |= {whole[path]: fault for path, fault in structure_faults(places).items()}
    if deep:
        for place in places:
            shard = whole[place.path]
            if shard not in faults and (fault := _content_fault(place.path, place.layout, records[shard])):
                faults[shard] = fault
    return faults


def _content_fault(path: Path, layout: ShardLayout, record: Record) -> str | None:
    strong = hashlib.sha256() if "sha256" in record else None
    with open_file(path, os.O_RDONLY) as descriptor:
        valid, file_hash = read_back(descriptor, layout, record["offsets"], sha256=strong)
    hashes = {"xxh3_128": file_hash, **({} if strong is None else {"sha256": strong.hexdigest()})}
    if unlike := [name for name, value in hashes.items() if value != record[name]]:
        return f"its content differs from its {' and '.join(unlike)}"
    if not valid.all():
        return "rows differ from their hashes"
    if flagged_rows(read_dataset(path, layout, FLAGS, record["offsets"][FLAGS])) != record["flagged"]:
        return "its flags differ from its record"
    return None


def _faulty(folder: Path, spec: ColumnSpec, record: Record, fault: str) -> Finding:
    shard, path = record["first_row"] // spec.shard_rows, folder / record["file"]
    layout = spec.layout(shard)
    rows = np.flatnonzero(~check_rows(path, layout, record["offsets"]))
    kind: Kind = "missing" if fault == "missing" else "damaged"
    place = f"{folder.name}/{path.name}"
    return Finding(place=place, kind=kind, rows=_numbered(layout, rows), detail=fault, column=folder.name, shard=shard)


def _flagged(folder: Path, spec: ColumnSpec, record: Record) -> Finding:
    shard = record["first_row"] // spec.shard_rows
    rows = _numbered(spec.layout(shard), np.array(sorted(map(int, record["flagged"]))))
    why = ", ".join(sorted(set(record["flagged"].values())))
    return Finding(place=f"{folder.name}/{record['file']}", kind="flagged", rows=rows, detail=why, column=folder.name, shard=shard)


def _unfinished(folder: Path, spec: ColumnSpec, shard: int) -> Finding:
    layout, partial = spec.layout(shard), folder / f"{plain_shard_name(shard)}.partial"
    files = (*(folder / name for name in final_names(spec, shard)), partial, partial.with_suffix(".suspect"))
    valid = np.logical_or.reduce([check_rows(path, layout) for path in files])
    detail = f"not final; {np.count_nonzero(valid)} of {layout.rows} rows are there"
    if is_of_components(spec):
        detail += "; run python -m featurize reduce again"
    rows, place = _numbered(layout, np.flatnonzero(~valid)), f"{folder.name}/{spec.shard_name(shard)}"
    return Finding(place=place, kind="missing", rows=rows, detail=detail, column=folder.name, shard=shard)


def _numbered(layout: ShardLayout, rows: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple((rows + layout.first_row).tolist())


def _check_small_files(store: Path, *, columns_are_valid: bool) -> list[Finding]:
    findings = []
    if (store / EXAMPLES).exists():
        try:
            read_sealed(store / EXAMPLES)
        except InputError as error:
            findings.append(Finding(place=EXAMPLES, kind="damaged", rows=(), detail=str(error)))
    else:
        findings.append(Finding(place=EXAMPLES, kind="missing", rows=(), detail="the table of examples"))
    if columns_are_valid and not findings and not view_is_current(store):
        kind: Kind = "damaged" if (store / VIEW).exists() else "missing"
        findings.append(Finding(place=VIEW, kind=kind, rows=(), detail="it is not the view of this store"))
    for path in sorted(store.glob(f"*/{BASIS}")):
        try:
            read_sealed(path)
        except InputError:
            detail = "it differs from its hash; remove it and run python -m featurize reduce again"
            findings.append(Finding(place=f"{path.parent.name}/{BASIS}", kind="damaged", rows=(), detail=detail))
    return findings


def _take_back(writer: ColumnWriter, shard: int, failed: set[int]) -> None:
    if shard in writer.records and not writer.reopen(shard, writer.records[shard]):
        return  # replaced by another process in the meantime
    file = writer.claim(shard)
    if file is not None:
        with closing(file):
            first = file.layout.first_row
            file.forget([row - first for row in sorted(failed) if 0 <= row - first < file.layout.rows])
