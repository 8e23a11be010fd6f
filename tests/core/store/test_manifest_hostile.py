"""A manifest may come from anywhere: a malformed one is refused, whether its own hash matches or not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.store.layout import structure
from lugpi_core.store.manifest import (
    MANIFEST,
    RECORDS,
    ColumnSpec,
    Record,
    load_manifest,
    merge_records,
    open_manifest,
    write_record,
)

SPEC = ColumnSpec(
    name="clip",
    what="tokens",
    rows=10,
    row_shape=(2, 3),
    shard_rows=4,
    fingerprint={"generation": {"steps": 50, "guidance": 7.5}, "encoder": {"mean": [0.48, 0.45], "weights": None}},
    license="l",
)
Change = Callable[[dict[str, Any]], object]


def _record(shard: int) -> Record:
    layout = SPEC.layout(shard)
    return {
        "file": SPEC.shard_name(shard),
        "first_row": layout.first_row,
        "rows": layout.rows,
        "bytes": structure(layout).file_bytes,
        "offsets": dict(structure(layout).offsets),
        "fingerprint": layout.fingerprint_digest,
        "flagged": {"1": "not finite"},
        "xxh3_128": "0" * 32,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A column with one shard's record."""
    folder = tmp_path / "clip"
    open_manifest(folder, SPEC)
    (folder / SPEC.shard_name(0)).touch()
    write_record(folder, SPEC, 0, _record(0))
    merge_records(folder)
    shutil.rmtree(folder / RECORDS)
    return folder


def _change(folder: Path, change: Change, *, seal: bool) -> None:
    """Change the manifest's value; with ``seal``, update its hash as an attacker would."""
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    if seal:
        value.pop("xxh3_128", None)
        value["xxh3_128"] = digest(value)
    (folder / MANIFEST).write_text(json.dumps(value))


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [leaf for key, one in inner for leaf in _leaves(one, (*path, key))] or [path]


def _set(value: Any, path: tuple[Any, ...], new: object) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def test_any_changed_value_is_found_by_the_manifests_own_hash(folder: Path) -> None:
    content = (folder / MANIFEST).read_text()
    leaves = _leaves(json.loads(content))
    assert len(leaves) > 25
    for path in leaves:
        for new in ("other", 1 << 20):
            _change(folder, lambda value, path=path, new=new: _set(value, path, new), seal=False)
            with pytest.raises(InputError, match=r"manifest\.json .*expected (a manifest of lugpi-token-store )?version 1"):
                load_manifest(folder)
            (folder / MANIFEST).write_text(content)
    assert load_manifest(folder) == (SPEC, {0: _record(0)})


def test_a_changed_byte_is_refused_or_changes_nothing(folder: Path) -> None:
    content, harmless = (folder / MANIFEST).read_bytes(), 0
    for offset in range(len(content)):
        (folder / MANIFEST).write_bytes(content[:offset] + bytes([content[offset] ^ 1 << offset % 8]) + content[offset + 1 :])
        try:
            assert load_manifest(folder) == (SPEC, {0: _record(0)})
            harmless += 1  # white space, or another spelling of an exponent
        except InputError:
            pass
    assert harmless < len(content) / 3


@pytest.mark.parametrize("content", ['{"format": "lugpi-tok', "", "\x00" * 40])
def test_a_damaged_manifest_of_a_column_with_shards_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json, which is not JSON"):
        open_manifest(folder, SPEC)


@pytest.mark.parametrize("content", ["", "{}", "[]"])
def test_a_damaged_manifest_without_shards_is_replaced(folder: Path, content: str) -> None:
    (folder / SPEC.shard_name(0)).unlink()
    (folder / MANIFEST).write_text(content)
    assert open_manifest(folder, SPEC) == SPEC
    assert load_manifest(folder) == (SPEC, {})


def _without(key: str) -> Change:
    return lambda value: value.pop(key)


def _with(**values: Any) -> Change:
    return lambda value: value.update(values)


def _shard_without(key: str) -> Change:
    return lambda value: value["shards"]["0"].pop(key)


def _shard_with(**values: Any) -> Change:
    return lambda value: value["shards"]["0"].update(values)


def _at(**offsets: Any) -> Change:
    return lambda value: value["shards"]["0"]["offsets"].update(offsets)


def _shard_named(name: str) -> Change:
    return lambda value: value.update(shards={name: value["shards"]["0"]})


def _shard_placed(shard: int, **place: int) -> Change:
    return lambda value: value.update(shards={str(shard): {**_record(0), "file": SPEC.shard_name(shard), **place}})


def _of(what: str) -> Change:
    """Rename the dataset of the rows in the manifest."""

    def change(value: dict[str, Any]) -> None:
        offsets = value["shards"]["0"]["offsets"]
        offsets[what] = offsets.pop("tokens")
        value["what"] = what

    return change


NOT_SIZES = (0, -1, True, 2.0, "4", None, [4])
NOT_OFFSETS = (-1, -(1 << 70), 1 << 70, True, False, 640.0, "640", None)
SPEC_KEYS = ("format", "version", "name", "what", "rows", "row_shape", "shard_rows", "fingerprint", "dtype", "license", "notice", "made_by")
FILE_BYTES = structure(SPEC.layout(0)).file_bytes
CHANGES: dict[str, Change] = {
    **{f"without {key}": _without(key) for key in (*SPEC_KEYS, "shards")},
    **{f"rows {size!r}": _with(rows=size) for size in NOT_SIZES},
    **{f"shard_rows {size!r}": _with(shard_rows=size) for size in NOT_SIZES},
    **{f"row_shape {size!r}": _with(row_shape=[2, size]) for size in NOT_SIZES},
    **{f"row_shape is {shape!r}": _with(row_shape=shape) for shape in (3, [], "23", None)},
    **{f"{name} at {offset!r}": _at(**{name: offset}) for name in ("tokens", "row_hash", "flags") for offset in NOT_OFFSETS},
    **{f"record without {key}": _shard_without(key) for key in _record(0)},
    **{f"file {file}": _shard_with(file=file) for file in ("../../etc/passwd", "/etc/passwd", SPEC.shard_name(1), 0)},
    **{f"shard {name}": _shard_named(name) for name in ("1", "-1", "3", "first")},
    **{f"flagged {flagged}": _shard_with(flagged=flagged) for flagged in ([], None, {"4": "x"}, {"-1": "x"}, {"one": "x"}, {"1": 2})},
    **{f"bytes {size!r}": _shard_with(bytes=size) for size in (0, -1, True, "1649", None)},
    "another format": _with(format="another"),
    "another version": _with(version=2),
    "another dtype": _with(dtype="float64"),
    "a dtype that is none": _with(dtype=[]),
    "the dtype of other datasets": _with(dtype="int8"),
    "fingerprint of one word": _with(fingerprint="f"),
    "shards as a list": _with(shards=[]),
    "no record": _with(shards={"0": None}),
    "a record behind the end": _shard_placed(3, first_row=12, rows=-2),
    "a record before the start": _shard_placed(-1, first_row=-4, rows=4),
    "a record under another fingerprint": _shard_with(fingerprint="0" * 32),
    "another first row": _shard_with(first_row=4),
    "another number of rows": _shard_with(rows=3),
    "rows behind the end": _at(tokens=FILE_BYTES - 4 * 12 + 1),
    "a dataset missing": lambda value: value["shards"]["0"]["offsets"].pop("flags"),
    "a dataset too many": _at(scale=0),
    "offsets as a list": _shard_with(offsets=[576]),
    "the name of another folder": _with(name="../other"),
    "the name of a root": _with(name="/tmp"),
    "no name": _with(name=""),
    "rows that are the flags": _of("flags"),
    "rows that are the hashes": _of("row_hash"),
    "rows in a group": _of("a/b"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_malformed_manifest_with_a_matching_hash_is_refused(folder: Path, name: str) -> None:
    _change(folder, CHANGES[name], seal=True)
    with pytest.raises(
        InputError,
        match=r"expected (a manifest of lugpi-token-store version 1; remove this file and run the same|version 1; use the lugpi that made)",
    ):
        load_manifest(folder)


@pytest.mark.parametrize("value", [[], 3, None, "text"])
def test_json_that_is_no_object_is_refused(folder: Path, value: object) -> None:
    (folder / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(InputError, match="expected a manifest"):
        load_manifest(folder)


def test_rows_may_end_with_the_file(folder: Path) -> None:
    _change(folder, _at(tokens=FILE_BYTES - 4 * 12), seal=True)
    assert load_manifest(folder)[1][0]["offsets"]["tokens"] == FILE_BYTES - 48


def test_keys_of_a_later_version_are_ignored(folder: Path) -> None:
    _change(folder, lambda value: (value.update(later=1), value["shards"]["0"].update(later=2)), seal=True)
    spec, records = load_manifest(folder)
    assert spec == SPEC
    assert records[0]["rows"] == 4
