"""The manifest: one record per committed shard, differences by name, records of two processes at once, bad files refused."""

import copy
import json
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest
from lugpi_core.store.layout import structure
from lugpi_core.store.lease import locked
from lugpi_core.store.manifest import (
    MANIFEST,
    ColumnSpec,
    drop_record,
    is_empty,
    load_manifest,
    merge_records,
    open_manifest,
    refuse_difference,
    write_record,
)

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


def _record(shard: int, spec: ColumnSpec = SPEC) -> dict[str, Any]:
    layout = spec.layout(shard)
    return {
        "file": spec.shard_name(shard),
        "first_row": layout.first_row,
        "rows": layout.rows,
        "bytes": structure(layout).file_bytes,
        "offsets": dict(structure(layout).offsets),
        "fingerprint": layout.fingerprint_digest,
        "flagged": {},
        "xxh3_128": "0" * 32,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A column's folder, which does not exist yet."""
    return tmp_path / "tokens" / "clip"


def _opened(folder: Path, spec: ColumnSpec = SPEC, *, records: tuple[int, ...] = ()) -> Path:
    """Begin a column with one shard file, so that its settings are fixed."""
    open_manifest(folder, spec)
    (folder / "shard-00000.h5.partial").touch()
    for shard in records:
        _add(folder, shard, _record(shard, spec), spec)
    return folder


def _add(folder: Path, shard: int, record: dict[str, Any], spec: ColumnSpec = SPEC) -> None:
    with locked(folder):
        write_record(folder, spec, shard, record)


def _drop(folder: Path, shard: int) -> None:
    with locked(folder):
        drop_record(folder, shard)


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


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_layout_carries_what_the_column_is(dtype: Any) -> None:
    layout = replace(SPEC, dtype=dtype).layout(2)
    assert (layout.what, layout.rows, layout.row_shape, layout.first_row, layout.dtype) == ("tokens", 2, (2, 3), 8, dtype)
    assert layout.fingerprint_digest == digest(FINGERPRINT)


def test_a_new_column_has_no_records_and_reads_back_the_same(folder: Path) -> None:
    spec = replace(SPEC, dtype="int8", made_by={"encoders": ["clip"], "seed": 0})
    assert open_manifest(folder, spec) == spec
    assert load_manifest(folder) == (spec, {})
    _opened(folder, spec)
    assert open_manifest(folder, spec) == spec
    assert load_manifest(folder) == (spec, {})


def test_the_manifest_describes_the_column_in_plain_json(folder: Path) -> None:
    _opened(folder, replace(SPEC, made_by={"seed": 0}))
    for shard in (2, 0):
        _add(folder, shard, _record(shard), replace(SPEC, made_by={"seed": 0}))
    assert merge_records(folder) == 2
    value = json.loads((folder / MANIFEST).read_text())
    assert (value["format"], value["version"], value["dtype"]) == ("lugpi-token-store", 1, "float16")
    assert value["fingerprint"] == FINGERPRINT
    assert (value["license"], value["notice"], value["made_by"]) == ("l", "n", {"seed": 0})
    assert list(value["shards"]) == ["0", "2"]
    assert value.pop("xxh3_128") == digest(value)


def test_notes_are_kept_and_change_no_manifest_without_them(folder: Path) -> None:
    noted = replace(SPEC, notes={"instruction": "describe"})
    open_manifest(folder, noted)
    assert load_manifest(folder) == (noted, {})
    assert "notes" in json.loads((folder / MANIFEST).read_text())
    open_manifest(folder, SPEC)  # a column without rows is begun again
    assert "notes" not in json.loads((folder / MANIFEST).read_text())


def test_records_are_added_replaced_and_dropped(folder: Path) -> None:
    _opened(folder, records=(1, 0))
    longer = {**_record(1), "bytes": 5000, "xxh3_128": "1" * 32}
    _add(folder, 1, longer)
    assert load_manifest(folder)[1] == {0: _record(0), 1: longer}
    _drop(folder, 1)
    _drop(folder, 1)  # a second time does nothing
    assert load_manifest(folder)[1] == {0: _record(0)}


@pytest.mark.parametrize("field", OTHER_VALUES)
def test_a_column_of_other_settings_is_refused_by_the_differing_field(folder: Path, field: str) -> None:
    content = (_opened(folder) / MANIFEST).read_bytes()
    with pytest.raises(InputError) as raised:
        open_manifest(folder, replace(SPEC, fingerprint=_fingerprint_with(field, OTHER_VALUES[field])))
    assert f"made with other settings: {field}: found " in str(raised.value)
    assert str(raised.value).count("found ") == 1
    assert f"wanted {json.dumps(OTHER_VALUES[field])}; expected the same settings" in str(raised.value)
    assert (folder / MANIFEST).read_bytes() == content


def test_every_differing_field_is_named_at_once() -> None:
    changed = _fingerprint_with("generation.steps", 20)
    changed["encoder"] = None
    with pytest.raises(InputError) as raised:
        refuse_difference(Path("store"), FINGERPRINT, changed)
    named = ("encoder:", "encoder.id:", "encoder.layer:", "encoder.preprocessing.mean:", "encoder.weights:", "generation.steps:")
    assert all(name in str(raised.value) for name in named)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": 11}, "rows: found 10, wanted 11"),
        ({"row_shape": (3, 2)}, "row_shape: found [2, 3], wanted [3, 2]"),
        ({"shard_rows": 5}, "shard_rows: found 4, wanted 5"),
        ({"what": "latents"}, 'what: found "tokens", wanted "latents"'),
        ({"dtype": "int8"}, 'dtype: found "float16", wanted "int8"'),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_a_column_of_another_shape_is_refused(folder: Path, change: dict[str, Any], named: str) -> None:
    _opened(folder)
    with pytest.raises(InputError) as raised:
        open_manifest(folder, replace(SPEC, **change))
    assert named in str(raised.value)


@pytest.mark.parametrize("name", [SPEC.shard_name(0), "shard-00001.h5.partial", "shard-00000.h5.suspect"])
def test_only_a_column_with_a_shard_refuses_other_settings(folder: Path, name: str) -> None:
    open_manifest(folder, SPEC)
    (folder / ".shard-00000.h5.1234abcd-1-1234abcd.partial").touch()  # an unfinished creation is no shard
    assert is_empty(folder)
    other = replace(SPEC, rows=3, fingerprint={"seed": 1})
    assert open_manifest(folder, other) == other
    assert load_manifest(folder) == (other, {})
    (folder / name).touch()
    assert not is_empty(folder)
    with pytest.raises(InputError, match=r"made with other settings: .*seed: found 1, wanted nothing"):
        open_manifest(folder, SPEC)


def test_a_record_of_other_settings_counts_for_nothing(folder: Path) -> None:
    other = replace(SPEC, fingerprint=_fingerprint_with("generation.steps", 20))
    open_manifest(folder, SPEC)
    open_manifest(folder, other)  # there is no shard yet, so no settings are fixed
    _add(folder, 0, _record(0))
    assert load_manifest(folder) == (other, {})


def test_another_licence_notice_or_command_is_accepted(folder: Path) -> None:
    _opened(folder, records=(0,))
    open_manifest(folder, replace(SPEC, license="other", notice=None, made_by={"batch_size": 2}))
    assert load_manifest(folder) == (SPEC, {0: _record(0)})


def test_a_folder_without_a_manifest_is_not_a_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*manifest\.json"):
        load_manifest(tmp_path)


def _add_all(folder: Path, spec: ColumnSpec, shards: list[int]) -> None:
    for shard in shards:
        _add(folder, shard, _record(shard, spec), spec)


def test_two_processes_that_add_records_at_once_lose_none(folder: Path) -> None:
    spec = replace(SPEC, rows=60, shard_rows=1)
    _opened(folder, spec)
    context = multiprocessing.get_context("spawn")
    halves = [list(range(0, 60, 2)), list(range(1, 60, 2))]
    processes = [context.Process(target=_add_all, args=(folder, spec, half)) for half in halves]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert load_manifest(folder)[1] == {shard: _record(shard, spec) for shard in range(60)}
