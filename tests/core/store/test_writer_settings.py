"""A column belongs to the settings that began it: other settings are refused, the differing fields are named, nothing changes."""

import copy
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest, flat
from lugpi_core.store.manifest import RECORDS, load_manifest
from lugpi_core.store.writer import ColumnWriter
from tests.support.small_column import SPEC, claimed, commit_shard, filled, names_in, state_of

OTHER = replace(SPEC, fingerprint={"seed": 1})


def test_unrecorded_shards_of_other_settings_are_refused_and_kept(tmp_path: Path) -> None:
    column = filled(tmp_path)
    column.reopen(1, column.records[1])
    claimed(column, 1).close()
    (tmp_path / "clip" / "manifest.json").unlink()
    state = state_of(tmp_path)
    with pytest.raises(InputError, match=rf"which was made with other settings.*fingerprint {digest({'seed': 1})}; move .*clip away"):
        ColumnWriter(tmp_path, OTHER)
    assert {path: content for path, content in state_of(tmp_path).items() if "shard-" in path} == {
        path: content for path, content in state.items() if "shard-" in path
    }


def test_a_refused_owner_leaves_nothing_behind(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "clip" / "manifest.json").unlink()
    shutil.rmtree(tmp_path / "clip" / RECORDS)
    with pytest.raises(InputError):
        ColumnWriter(tmp_path, OTHER)
    writer = claimed(ColumnWriter(tmp_path, SPEC), 0)
    assert writer.valid.all()
    writer.close()


def test_of_two_settings_for_an_empty_column_one_is_refused(tmp_path: Path) -> None:
    first, second = ColumnWriter(tmp_path, SPEC), ColumnWriter(tmp_path, OTHER)
    with pytest.raises(InputError, match="made with other settings: seed: found 1, wanted 0"):
        first.claim(0)
    commit_shard(second, 0)
    assert list(load_manifest(tmp_path / "clip")[1]) == [0]
    assert names_in(tmp_path) == ["manifest.json", OTHER.shard_name(0)]


def _others(value: Any) -> Iterator[Any]:
    """Yield values that differ from ``value``, some of them slightly."""
    yield f"{value}"[::-1] + "x"
    yield {"within": value}
    if isinstance(value, bool):
        yield from (not value, int(value))
    elif isinstance(value, int | float):
        yield from (value + 1, f"{value}", int(value) if isinstance(value, float) else float(value))
    elif isinstance(value, list):
        yield from (value[::-1] + value[:1], value[:-1], [])
    yield "null" if value is None else None


def _with_field(fingerprint: Any, field: str, value: Any = ...) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(fingerprint))
    *groups, last = field.split(".")
    group = changed
    for name in groups:
        group = group.setdefault(name, {})
    if value is ...:
        del group[last]
    else:
        group[last] = value
    return changed


def test_a_real_column_is_refused_by_any_differing_field(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run / "tokens" / "clip-demo", tmp_path / "clip-demo")
    spec, _ = load_manifest(tmp_path / "clip-demo")
    fields, state = dict(flat(spec.fingerprint)), state_of(tmp_path)
    assert len(fields) >= 20
    cases = [(field, _with_field(spec.fingerprint, field, other)) for field, value in fields.items() for other in _others(value)]
    cases += [(field, _with_field(spec.fingerprint, field)) for field in fields]
    cases += [(field, _with_field(spec.fingerprint, field, 0)) for field in ("added", "encoder.added", "generation.generator.added")]
    for field, changed in cases:
        assert digest(changed) != digest(spec.fingerprint)
        with pytest.raises(InputError, match="that was made with other settings: ") as raised:
            ColumnWriter(tmp_path, replace(spec, fingerprint=changed))
        named = set(re.findall(r"(?:with other settings|wanted [^;]*;)[ :]+([\w.]+): found ", str(raised.value)))
        assert {name.removesuffix(".within") for name in named} == {field}
    assert state_of(tmp_path) == state
    assert ColumnWriter(tmp_path, spec).taken_back == {}
