"""A column gets more rows: its own are kept, under another fingerprint; whoever is killed on the way is continued."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.grow import grow_column, is_growing, sweep_growth
from lugpi_core.store.manifest import ColumnSpec, load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import FLAG_CONSTANT, FLAG_NOT_FINITE
from lugpi_core.store.verify import check_store
from lugpi_core.store.writer import ColumnWriter
from tests.support.shards import shard_file
from tests.support.small_column import SPEC, claimed, filled, token_rows

LARGER = replace(SPEC, rows=11, fingerprint={"seed": 0, "more": True})


def finished(store: Path, spec: ColumnSpec = LARGER) -> ColumnReader:
    """Write the rows that a grown column lacks, as ones, and return it."""
    column = ColumnWriter(store, spec)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        if writer is None:
            continue
        for row in np.flatnonzero(~writer.valid).tolist():
            writer.write(row, np.ones((1, *spec.row_shape), np.float16), np.zeros(1, np.uint8))
        column.commit(shard, writer)
    return ColumnReader(store, spec.name)


@pytest.mark.parametrize("shard_rows", [4, 3, 100])
def test_a_grown_column_has_its_rows_first_and_lacks_the_others(tmp_path: Path, shard_rows: int) -> None:
    filled(tmp_path)
    larger = replace(LARGER, shard_rows=shard_rows)
    grow_column(tmp_path, larger)
    spec, records = load_manifest(tmp_path / "clip")
    assert (spec, sorted(records)) == (larger, list(range(7 // shard_rows)))
    reader = finished(tmp_path, larger)
    np.testing.assert_array_equal(reader.gather(range(7)), token_rows())
    assert (reader.gather(range(7, 11)) == 1).all()
    assert not is_growing(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip"]


def test_rows_that_failed_are_kept_as_failed_rows_with_their_reasons(tmp_path: Path) -> None:
    column = ColumnWriter(tmp_path, SPEC)
    for shard in range(2):
        writer = claimed(column, shard)
        flags = np.zeros(writer.layout.rows, np.uint8)
        flags[1:3] = [FLAG_CONSTANT, FLAG_NOT_FINITE]
        writer.write(0, np.zeros((writer.layout.rows, 2, 3), np.float16), flags)
        column.commit(shard, writer)
    before = ColumnReader(tmp_path, "clip").flagged
    grow_column(tmp_path, LARGER)
    assert finished(tmp_path).flagged == before == {1: "constant picture", 2: "not finite", 5: "constant picture", 6: "not finite"}


def test_int8_rows_keep_their_scales(tmp_path: Path) -> None:
    spec, rng = replace(SPEC, dtype="int8"), np.random.default_rng(0)
    values, scales = rng.integers(-127, 128, (7, 2, 3)).astype(np.int8), rng.random((7, 2)).astype(np.float32)
    column = ColumnWriter(tmp_path, spec)
    for shard, rows in enumerate((slice(0, 4), slice(4, 7))):
        writer = claimed(column, shard)
        writer.write(0, values[rows], np.zeros(writer.layout.rows, np.uint8), scales[rows])
        column.commit(shard, writer)
    larger = replace(LARGER, dtype="int8", rows=8, shard_rows=7)
    grow_column(tmp_path, larger)
    last = ColumnWriter(tmp_path, larger)
    writer = claimed(last, 1)
    writer.write(0, values[:1], np.zeros(1, np.uint8), scales[:1])
    last.commit(1, writer)
    stored = ColumnReader(tmp_path, "clip").gather_stored(range(7))
    np.testing.assert_array_equal(stored["tokens"], values)
    np.testing.assert_array_equal(stored["scale"], scales)


def killed_at(call: int, patch: pytest.MonkeyPatch) -> None:
    """Let the n-th move of a column's folder, and all later ones, fail as if the process were gone."""
    move, moved = os.replace, 0

    def replace_unless_killed(source: Any, target: Any) -> None:
        nonlocal moved
        if Path(source).is_dir():
            moved += 1
            if moved > call:
                raise KeyboardInterrupt
        move(source, target)

    patch.setattr(os, "replace", replace_unless_killed)


def during_the_copy(_: int, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KeyboardInterrupt

    patch.setattr(ColumnWriter, "commit", refuse)


@pytest.mark.parametrize(("kill", "call"), [(during_the_copy, 0), (killed_at, 0), (killed_at, 1)])
def test_a_column_whose_growth_was_killed_is_whole_again(
    tmp_path: Path, kill: Callable[[int, pytest.MonkeyPatch], None], call: int
) -> None:
    filled(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        kill(call, patch)
        with pytest.raises(KeyboardInterrupt):
            grow_column(tmp_path, LARGER)
    assert is_growing(tmp_path)
    sweep_growth(tmp_path)
    assert not is_growing(tmp_path)
    assert [finding for finding in check_store(tmp_path, deep=True) if finding.column] == []
    assert load_manifest(tmp_path / "clip")[0] == SPEC
    grow_column(tmp_path, LARGER)
    np.testing.assert_array_equal(finished(tmp_path).gather(range(7)), token_rows())


def test_a_damaged_column_is_not_copied(tmp_path: Path) -> None:
    filled(tmp_path)
    path = shard_file(tmp_path / "clip", 1)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="its content differs from its hash") as caught:
        grow_column(tmp_path, LARGER)
    assert "\n" not in str(caught.value)
    assert load_manifest(tmp_path / "clip")[0] == SPEC
