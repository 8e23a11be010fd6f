"""The manifest: one record a committed shard, differences by name, records of two processes at once, hostile files refused."""

import copy
import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.manifest import MANIFEST, ColumnSpec, add_record, drop_record, load_manifest, open_manifest, refuse_difference, shard_name

FINGERPRINT = {
    "generation": {
        "prompts": "9f2c",
        "generator": {"id": "sd2-base", "revision": "abc", "weights": "11aa"},
        "scheduler": "DDIM",
        "steps": 50,
        "guidance": 7.5,
        "size": [512, 512],
        "seeds": {"base": 0, "per_prompt": 1},
        "dtype": "float16",
        "decoder": None,
    },
    "encoder": {"id": "clip-vit-b32", "weights": "22bb", "layer": -1, "preprocessing": {"mean": [0.48, 0.45, 0.4]}},
}
SPEC = ColumnSpec(name="clip", what="tokens", rows=10, row_shape=(2, 3), shard_rows=4, fingerprint=FINGERPRINT, license="l", notice="n")
OTHER_VALUES: dict[str, Any] = {
    "generation.prompts": "9f2d",
    "generation.generator.id": "sd2",
    "generation.generator.revision": None,
    "generation.generator.weights": "11ab",
    "generation.scheduler": "DPM",
    "generation.steps": 20,
    "generation.guidance": 7,
    "generation.size": [512, 768],
    "generation.seeds.base": 1,
    "generation.seeds.per_prompt": 4,
    "generation.dtype": "bfloat16",
    "generation.decoder": "taesd",
    "encoder.id": "vit-b16",
    "encoder.weights": "22bc",
    "encoder.layer": -2,
    "encoder.preprocessing.mean": [0.48, 0.45, 0.41],
}


def _record(shard: int) -> dict[str, Any]:
    layout = SPEC.layout(shard)
    return {
        "file": shard_name(shard),
        "first_row": layout.first_row,
        "rows": layout.rows,
        "bytes": 4096,
        "rows_offset": 2048,
        "flagged": {},
        "xxh3_128": "0" * 32,
        "sha256": "0" * 64,
    }


def _fingerprint_with(field: str, value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(FINGERPRINT)
    *groups, last = field.split(".")
    group = changed
    for name in groups:
        group = group[name]
    group[last] = value
    return changed


@given(st.integers(0, 60), st.integers(1, 20))
def test_the_layouts_of_a_column_cover_its_rows_once_and_in_order(rows: int, shard_rows: int) -> None:
    spec = replace(SPEC, rows=rows, shard_rows=shard_rows)
    layouts = [spec.layout(shard) for shard in range(spec.shards)]
    assert [row for layout in layouts for row in range(layout.first_row, layout.first_row + layout.rows)] == list(range(rows))
    assert all(layout.rows == shard_rows for layout in layouts[:-1])
    assert all(0 < layout.rows <= shard_rows for layout in layouts)


def test_a_layout_carries_what_the_column_is() -> None:
    layout = SPEC.layout(2)
    assert (layout.what, layout.rows, layout.row_shape, layout.first_row) == ("tokens", 2, (2, 3), 8)
    assert layout.fingerprint_digest == digest(FINGERPRINT)
    assert layout.row_bytes == 12


def test_a_new_column_has_no_records_and_reads_back_as_it_was_stated(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "clip"
    assert open_manifest(folder, SPEC) == {}
    assert load_manifest(folder) == (SPEC, {})
    assert open_manifest(folder, SPEC) == {}


def test_the_manifest_says_in_plain_json_what_the_column_is(tmp_path: Path) -> None:
    open_manifest(tmp_path, SPEC)
    add_record(tmp_path, SPEC, 2, _record(2))
    add_record(tmp_path, SPEC, 0, _record(0))
    value = json.loads((tmp_path / MANIFEST).read_text())
    assert (value["format"], value["version"], value["dtype"]) == ("lugpi-token-store", 1, "float16")
    assert value["fingerprint"] == FINGERPRINT
    assert (value["license"], value["notice"]) == ("l", "n")
    assert list(value["shards"]) == ["0", "2"]


def test_records_are_added_replaced_and_dropped(tmp_path: Path) -> None:
    open_manifest(tmp_path, SPEC)
    add_record(tmp_path, SPEC, 1, _record(1))
    add_record(tmp_path, SPEC, 0, _record(0))
    add_record(tmp_path, SPEC, 1, {**_record(1), "bytes": 5000})
    assert open_manifest(tmp_path, SPEC) == {0: _record(0), 1: {**_record(1), "bytes": 5000}}
    drop_record(tmp_path, SPEC, 1)
    drop_record(tmp_path, SPEC, 1)  # a second time does nothing
    assert load_manifest(tmp_path)[1] == {0: _record(0)}


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_column_made_otherwise_is_refused_and_exactly_the_differing_field_is_named(tmp_path: Path, field: str) -> None:
    open_manifest(tmp_path, SPEC)
    content = (tmp_path / MANIFEST).read_bytes()
    with pytest.raises(InputError) as raised:
        open_manifest(tmp_path, replace(SPEC, fingerprint=_fingerprint_with(field, OTHER_VALUES[field])))
    assert f"made otherwise: {field}: found " in str(raised.value)
    assert str(raised.value).count("found ") == 1
    assert f"wanted {json.dumps(OTHER_VALUES[field])}; expected the same settings" in str(raised.value)
    assert (tmp_path / MANIFEST).read_bytes() == content


def test_every_differing_field_is_named_at_once() -> None:
    changed = _fingerprint_with("generation.steps", 20)
    changed["encoder"] = None
    with pytest.raises(InputError) as raised:
        refuse_difference(Path("store"), FINGERPRINT, changed)
    named = ("encoder:", "encoder.id:", "encoder.layer:", "encoder.preprocessing.mean:", "encoder.weights:", "generation.steps:")
    assert all(name in str(raised.value) for name in named)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (replace(SPEC, rows=11), "rows: found 10, wanted 11"),
        (replace(SPEC, row_shape=(3, 2)), "row_shape: found [2, 3], wanted [3, 2]"),
        (replace(SPEC, shard_rows=5), "shard_rows: found 4, wanted 5"),
        (replace(SPEC, what="latents"), 'what: found "tokens", wanted "latents"'),
    ],
    ids=["rows", "row_shape", "shard_rows", "what"],
)
def test_a_column_of_another_shape_is_refused(tmp_path: Path, changed: ColumnSpec, named: str) -> None:
    open_manifest(tmp_path, SPEC)
    with pytest.raises(InputError) as raised:
        open_manifest(tmp_path, changed)
    assert named in str(raised.value)


def test_another_licence_text_or_notice_is_no_reason_to_refuse_a_column(tmp_path: Path) -> None:
    open_manifest(tmp_path, SPEC)
    add_record(tmp_path, SPEC, 0, _record(0))
    assert open_manifest(tmp_path, replace(SPEC, license="other", notice=None)) == {0: _record(0)}


def test_a_folder_without_a_manifest_is_not_a_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*manifest\.json"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("content", ['{"format": "lugpi-tok', "", "\x00" * 40])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json, which is not JSON"):
        open_manifest(tmp_path, SPEC)


def _without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for key in keys:
            del value[key]

    return change


def _with(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(values)


def _shard_with(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["shards"]["0"].update(values)


def _shard_named(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda value: value.update(shards={name: value["shards"]["0"]})


def _changed_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    open_manifest(folder, SPEC)
    add_record(folder, SPEC, 0, _record(0))
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    (folder / MANIFEST).write_text(json.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        _with(format="another"),
        _with(version=2),
        *(_without(key) for key in ("format", "version", "name", "what", "rows", "row_shape", "shard_rows", "fingerprint", "shards")),
        _with(shards=[]),
        _with(shards={"first": {}}),
        _with(shards={"0": None}),
        _with(shard_rows=0),
        _with(row_shape=3),
        _shard_with(file="../../etc/passwd"),
        _shard_with(file="/etc/passwd"),
        _shard_with(file=shard_name(1)),
        _shard_with(first_row=4),
        _shard_with(rows=3),
        _shard_with(rows_offset=-1),
        _shard_with(rows_offset=4096 - 4 * 12 + 1),
        _shard_with(rows_offset=None),
        _shard_named("1"),
        _shard_named("-1"),
        _shard_named("3"),
        lambda value: value.update(shards={"3": _record(3)}),
        lambda value: value.update(shards={"-1": _record(-1)}),
        lambda value: value["shards"]["0"].pop("bytes"),
        lambda value: value["shards"]["0"].pop("flagged"),
        lambda value: value["shards"]["0"].pop("xxh3_128"),
    ],
)
def test_a_manifest_that_is_not_as_lugpi_writes_it_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    _changed_manifest(tmp_path, change)
    with pytest.raises(InputError, match=r"expected a manifest of lugpi-token-store version 1; move the folder"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("value", [[], 3, None, "text"])
def test_json_that_is_no_object_is_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(value))
    with pytest.raises(InputError, match="expected a manifest"):
        load_manifest(tmp_path)


def test_rows_may_end_with_the_file(tmp_path: Path) -> None:
    _changed_manifest(tmp_path, _shard_with(rows_offset=4096 - 4 * 12))
    assert load_manifest(tmp_path)[1][0]["rows_offset"] == 4048


def test_keys_that_a_later_version_may_add_do_no_harm(tmp_path: Path) -> None:
    _changed_manifest(tmp_path, lambda value: (value.update(later=1), value["shards"]["0"].update(later=2)))
    spec, records = load_manifest(tmp_path)
    assert spec == SPEC
    assert records[0]["rows"] == 4


def _add_all(folder: Path, spec: ColumnSpec, shards: list[int], records: dict[int, dict[str, Any]]) -> None:
    for shard in shards:
        add_record(folder, spec, shard, records[shard])


def test_two_processes_that_add_records_at_once_lose_none(tmp_path: Path) -> None:
    spec = replace(SPEC, rows=60, shard_rows=1)
    records = {
        shard: {**_record(0), "file": shard_name(shard), "first_row": shard, "rows": 1, "sha256": f"{shard}"}
        for shard in range(spec.shards)
    }
    open_manifest(tmp_path, spec)
    context = multiprocessing.get_context("fork")
    halves = [list(range(0, 60, 2)), list(range(1, 60, 2))]
    processes = [context.Process(target=_add_all, args=(tmp_path, spec, half, records)) for half in halves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert load_manifest(tmp_path)[1] == records
