"""Verify names exactly the bad rows by their numbers; shards taken back keep every valid row."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from lugpi_core.corpora.corpus import Corpus, Example
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.store.example_table import EXAMPLES, ExampleTable, write_example_table
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import MANIFEST, ColumnSpec
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.verify import Finding, check_store, flags_of_the_maker, row_ranges, take_back
from lugpi_core.store.virtual_view import VIEW, write_view
from lugpi_core.store.writer import ColumnWriter

EXAMPLE = Example(id="1", text="t", prompt="p", label=0, split="train")
CORPUS = Corpus(name="c", label_names=("a",), examples=(EXAMPLE,), license="none")
COLUMNS: dict[str, dict[str, Any]] = {
    "clip": {"what": "tokens", "row_shape": (2, 3), "dtype": "float16"},
    "eight": {"what": "tokens", "row_shape": (2, 3), "dtype": "int8"},
    "latents": {"what": "latents", "row_shape": (4, 2, 2), "dtype": "float16"},
}


def _spec(name: str) -> ColumnSpec:
    return ColumnSpec(name=name, rows=10, shard_rows=4, fingerprint={"column": name}, **COLUMNS[name])


def _place(name: str, shard: int) -> str:
    return f"{name}/{_spec(name).shard_name(shard)}"


def _fill(store: Path, name: str, flagged: tuple[int, ...] = ()) -> None:
    spec = _spec(name)
    column = ColumnWriter(store, spec)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        assert writer is not None
        first, count, random = writer.layout.first_row, writer.layout.rows, np.random.default_rng(shard)
        values = random.integers(-100, 100, size=(count, *spec.row_shape)).astype(spec.dtype)
        scales = random.random((count, *spec.row_shape[:-1]), np.float32) if spec.dtype == "int8" else None
        writer.write(0, values, np.isin(np.arange(first, first + count), flagged).astype(np.uint8), scales)
        column.commit(shard, writer)
    column.finish()


def _finish(store: Path) -> None:
    table = ExampleTable(drawings=np.array([[3]]), prompt_cut=np.array([True]), corpus_fingerprint=CORPUS.fingerprint())
    write_example_table(store, CORPUS, table)
    write_view(store)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("made") / "tokens"
    for name in COLUMNS:
        _fill(store, name)
    _finish(store)
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "tokens"))


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def _told(findings: list[Finding]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(finding.place, finding.kind, finding.rows) for finding in findings]


def _state(store: Path) -> dict[str, tuple[int, int, bytes]]:
    files = (path for path in sorted(store.rglob("*")) if path.is_file())
    return {str(path.relative_to(store)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("deep", [False, True])
def test_a_good_store_has_no_findings_and_is_not_changed(store: Path, deep: bool) -> None:
    before = _state(store)
    assert check_store(store, deep=deep) == []
    assert _state(store) == before


@pytest.mark.parametrize("deep", [False, True])
def test_without_a_store_the_error_says_how_to_create_one(tmp_path: Path, deep: bool) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=r"got no token store in .*; run python -m featurize first"):
            check_store(folder, deep=deep)


@pytest.mark.parametrize("dataset", ["tokens", "scale", "row_hash", "flags"])
def test_a_deep_check_names_exactly_the_row_of_a_flipped_bit(store: Path, dataset: str) -> None:
    layout = _spec("eight").layout(1)
    _flip(store / _place("eight", 1), structure(layout).offsets[dataset] + 3 * layout.bytes_of(dataset) - 1)
    assert check_store(store, deep=False) == []
    (finding,) = check_store(store, deep=True)
    assert _told([finding]) == [(_place("eight", 1), "damaged", (6,))]
    assert (finding.column, finding.shard) == ("eight", 1)
    assert "xxh3_128 and sha256" in finding.detail
    assert str(finding).startswith(f"{_place('eight', 1)}: rows 6 damaged (")


def test_a_shallow_check_finds_a_flipped_bit_outside_the_rows(store: Path) -> None:
    _flip(store / _place("clip", 2), 0)
    for deep in (False, True):
        assert _told(check_store(store, deep=deep)) == [(_place("clip", 2), "damaged", ())]


def test_a_deep_check_finds_every_flipped_bit(store: Path) -> None:
    layout, path = _spec("eight").layout(0), store / _place("eight", 0)
    content, offsets = path.read_bytes(), structure(layout).offsets
    owners: dict[int, int] = {}
    for name, offset in offsets.items():
        size = layout.bytes_of(name)
        owners |= {offset + n: n // size for n in range(size * layout.rows)}
    for place in sorted({*owners, *range(0, len(content), 401)}):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        told = _told(check_store(store, deep=True))
        assert told == [(_place("eight", 0), "damaged", (owners[place],) if place in owners else ())], place


def test_a_cut_shard_names_its_lost_rows(store: Path) -> None:
    layout, path = _spec("clip").layout(0), store / _place("clip", 0)
    os.truncate(path, structure(layout).offsets["flags"] + 2)
    for deep in (False, True):
        assert _told(check_store(store, deep=deep)) == [(_place("clip", 0), "damaged", (2, 3))]
    os.truncate(path, 10)
    assert _told(check_store(store, deep=False)) == [(_place("clip", 0), "damaged", (0, 1, 2, 3))]


def test_a_removed_shard_is_missing_with_all_its_rows(store: Path) -> None:
    (store / _place("latents", 2)).unlink()
    for deep in (False, True):
        assert _told(check_store(store, deep=deep)) == [(_place("latents", 2), "missing", (8, 9))]


def test_an_unfinished_shard_lacks_its_unwritten_rows(store: Path) -> None:
    column = ColumnWriter(store, _spec("clip"))
    column.reopen(1, column.records[1])
    writer = column.claim(1)
    assert writer is not None
    writer.forget([0, 2])
    writer.close()
    (finding,) = check_store(store, deep=False)
    assert _told([finding]) == [(_place("clip", 1), "missing", (4, 6))]
    assert finding.detail == "not final; 2 of 4 rows are there"


def test_a_final_shard_without_its_record_is_missing_no_row(store: Path) -> None:
    column = ColumnWriter(store, _spec("clip"))
    column.reopen(1, column.records[1])
    assert _told(check_store(store, deep=False)) == [(_place("clip", 1), "missing", ())]


def test_a_shallow_check_names_flagged_rows(store: Path) -> None:
    shutil.rmtree(store / "clip")
    _fill(store, "clip", flagged=(1, 4, 6, 7))
    write_view(store)
    for deep in (False, True):
        findings = check_store(store, deep=deep)
        assert _told(findings) == [(_place("clip", 0), "flagged", (1,)), (_place("clip", 1), "flagged", (4, 6, 7))]
        assert str(findings[1]) == f"{_place('clip', 1)}: rows 4, 6-7 flagged (not finite)"


def _rewrite(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of clip and update its hash."""
    path = store / "clip" / MANIFEST
    value = json.loads(path.read_text())
    del value["xxh3_128"]
    change(value)
    path.write_text(json.dumps({**value, "xxh3_128": digest(value)}))


def _changed_record(store: Path, **changes: Any) -> None:
    def change(value: dict[str, Any]) -> None:
        value["shards"]["1"] |= changes

    _rewrite(store, change)


def test_a_deep_check_finds_flags_that_are_not_recorded(store: Path) -> None:
    _changed_record(store, flagged={"2": "not finite"})
    kinds = {(finding.place, finding.kind) for finding in check_store(store, deep=True)}
    assert (_place("clip", 1), "damaged") in kinds


@pytest.mark.parametrize("changes", [{"xxh3_128": "0" * 32}, {"sha256": "0" * 64}], ids=["xxh3_128", "sha256"])
def test_each_of_the_two_hashes_of_a_file_counts(store: Path, changes: dict[str, str]) -> None:
    _changed_record(store, **changes)
    (finding,) = check_store(store, deep=True)
    assert _told([finding]) == [(_place("clip", 1), "damaged", ())]
    assert finding.detail == f"its content differs from its {next(iter(changes))}"


def test_a_shard_without_sha256_is_checked_by_its_other_hash(store: Path) -> None:
    _rewrite(store, lambda value: value["shards"]["1"].pop("sha256"))
    assert check_store(store, deep=True) == []
    _flip(store / _place("clip", 1), structure(_spec("clip").layout(1)).offsets["tokens"])
    (finding,) = check_store(store, deep=True)
    assert finding.detail == "its content differs from its xxh3_128"


def _cut_manifest(store: Path) -> None:
    (store / "clip" / MANIFEST).write_bytes((store / "clip" / MANIFEST).read_bytes()[:-30])


def _nested_manifest(store: Path) -> None:
    (store / "clip" / MANIFEST).write_text("[" * 100_000)


def _long_number(store: Path) -> None:
    (store / "clip" / MANIFEST).write_text("7" * 1_000_000)


def _renamed_column(store: Path) -> None:
    # Repairing "clip" must not touch another folder.
    _rewrite(store, lambda value: value.update(name="../elsewhere/clip"))


@pytest.mark.parametrize("damage", [_cut_manifest, _nested_manifest, _long_number, _renamed_column])
def test_a_damaged_manifest_is_a_finding_of_its_column(store: Path, damage: Callable[[Path], None]) -> None:
    damage(store)
    (finding,) = check_store(store, deep=False)
    assert _told([finding]) == [("clip/manifest.json", "damaged", ())]
    assert (finding.column, finding.shard) == ("clip", None)


def test_shards_without_a_manifest_are_a_finding(store: Path) -> None:
    (store / "clip" / MANIFEST).unlink()
    assert _told(check_store(store, deep=False)) == [("clip/manifest.json", "damaged", ())]


@pytest.mark.parametrize("name", [EXAMPLES, VIEW])
def test_the_small_files_are_always_checked_whole(store: Path, name: str) -> None:
    _flip(store / name, -1)
    assert _told(check_store(store, deep=False)) == [(name, "damaged", ())]
    (store / name).unlink()
    assert _told(check_store(store, deep=False)) == [(name, "missing", ())]


def test_every_finding_is_reported_and_none_hides_another(store: Path) -> None:
    _flip(store / _place("clip", 0), structure(_spec("clip").layout(0)).offsets["tokens"])
    (store / _place("eight", 1)).unlink()
    _flip(store / _place("latents", 2), structure(_spec("latents").layout(2)).offsets["latents"])
    _flip(store / EXAMPLES, 5000)
    assert _told(check_store(store, deep=True)) == [
        (_place("clip", 0), "damaged", (0,)),
        (_place("eight", 1), "missing", (4, 5, 6, 7)),
        (_place("latents", 2), "damaged", (8,)),
        (EXAMPLES, "damaged", ()),
    ]


def _laid_down_otherwise(store: Path, change: Callable[[h5py.File], object] = lambda file: None) -> None:
    """Write shard 1 of clip as another version of HDF5 would, with a matching record."""
    path = store / _place("clip", 1)
    with h5py.File(path, "r") as file:
        values, attributes = {name: file[name][:] for name in file}, dict(file.attrs)
    with h5py.File(path, "w") as file:
        for name, array in values.items():
            file[name] = array
        for name, value in attributes.items():
            file.attrs[name] = value
        change(file)
        offsets = {name: file[name].id.get_offset() for name in values}
    content = path.read_bytes()
    hashes = {"xxh3_128": xxhash.xxh3_128_hexdigest(content), "sha256": hashlib.sha256(content).hexdigest()}
    _changed_record(store, bytes=len(content), offsets=offsets, **hashes)
    write_view(store)


@pytest.mark.parametrize("deep", [False, True])
def test_a_shard_written_by_another_version_of_hdf5_is_valid(store: Path, deep: bool) -> None:
    _laid_down_otherwise(store)
    assert len(ColumnReader(store, "clip")) == 10
    assert check_store(store, deep=deep) == []


@pytest.mark.parametrize("deep", [False, True])
def test_a_shard_that_a_reader_refuses_is_a_finding(store: Path, deep: bool) -> None:
    _laid_down_otherwise(store, lambda file: file.__setitem__("more", h5py.SoftLink("/tokens")))
    with pytest.raises(InputError):
        ColumnReader(store, "clip")
    assert [(place, kind) for place, kind, _ in _told(check_store(store, deep=deep))] == [(_place("clip", 1), "damaged")]


def test_a_shard_taken_back_keeps_its_valid_rows(store: Path) -> None:
    before = _state(store)
    _flip(store / _place("clip", 1), structure(_spec("clip").layout(1)).offsets["tokens"] + 14)
    take_back(store, check_store(store, deep=True))
    assert _told(check_store(store, deep=False)) == [(_place("clip", 1), "missing", (5,))]
    writer = ColumnWriter(store, _spec("clip")).claim(1)
    assert writer is not None
    assert writer.valid.tolist() == [True, False, True, True]
    writer.close()
    after = _state(store)
    untouched = [name for name in before if name.endswith(".h5") and name != _place("clip", 1)]
    assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}


@pytest.mark.parametrize(
    ("rows", "shown"), [([], ""), ([3], "3"), ([3, 4, 5, 9], "3-5, 9"), ([0, 2, 4], "0, 2, 4"), (range(100), "0-99"), ([7, 8], "7-8")]
)
def test_rows_are_shown_as_ranges(rows: list[int], shown: str) -> None:
    assert row_ranges(rows) == shown


@pytest.mark.parametrize(
    ("column", "stated"),
    [
        ("clip-b32", {"encoders": ["clip-b32"]}),
        ("clip-b32-layer9-336px-pool-4x4", {"encoders": ["clip-b32"], "encoder_layer": 9, "encoder_size": 336, "pool": "4x4"}),
        ("vit-pool-cls-half", {"encoders": ["vit"], "pool": "cls", "decoder": "half"}),
        ("my-pool-1", {"encoders": ["my-pool-1"]}),  # the name of an encoder of the other command
    ],
)
def test_flags_of_a_column_without_a_manifest_are_read_off_its_name(tmp_path: Path, column: str, stated: dict[str, Any]) -> None:
    """Those of another column of the same store are for other tokens."""
    plain = {"encoder_layer": None, "encoder_size": None, "pool": None, "decoder": "full"}
    flags = {**plain, "encoders": ["my-pool-1"], "encoder_layer": 3, "pool": "2x2", "seed": 7}
    ColumnWriter(tmp_path, ColumnSpec(name="clip", rows=10, shard_rows=4, fingerprint={}, made_by=flags, **COLUMNS["clip"]))
    (tmp_path / "clip" / "shard-00000.h5.partial").touch()
    assert flags_of_the_maker(tmp_path, column) == {**plain, "seed": 7, **stated}
