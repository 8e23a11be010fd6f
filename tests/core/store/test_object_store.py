"""A store in an object store: what has a record there is whole, however requests fail and whoever else writes."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.remote.folder import RemoteFolder
from lugpi_core.remote.run import open_run
from lugpi_core.store.manifest import MANIFEST, load_manifest, record_path
from lugpi_core.store.object_store import ObjectStore
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.writer import ColumnWriter
from tests.support.faulty_store import FAULTS, Fault, FaultyStore, Verb
from tests.support.small_column import SPEC, claimed, commit_shard, filled, token_rows, write_all

ADDRESS = "memory://bucket/run"
Machine = Callable[[str], tuple[Path, ObjectStore]]


@pytest.fixture
def machine(faulty_store: type[FaultyStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """``machine(name)``: the local store and the mirror of a machine that opens the run."""
    monkeypatch.setattr("lugpi_core.store.object_store.GRACE_S", 0.0)
    monkeypatch.setattr("lugpi_core.store.object_store.LOOK_S", 0.0)

    def open_on(name: str) -> tuple[Path, ObjectStore]:
        store = open_run(Path(ADDRESS), tmp_path / name) / "tokens"
        mirror = ObjectStore(store, RemoteFolder(ADDRESS))
        mirror.pull()
        return store, mirror

    return open_on


def fill_missing(store: Path, mirror: ObjectStore) -> list[int]:
    """Do what featurize does with a column; return the shards that were computed."""
    column = ColumnWriter(store, SPEC, mirror=mirror)
    assert mirror.begin()
    computed = [shard for shard in range(SPEC.shards) if not column.is_committed(shard)]
    for shard in computed:
        commit_shard(column, shard)
    assert column.finish()
    mirror.finish()
    return computed


def shards_there() -> dict[str, bytes]:
    return {name.rsplit("/", 1)[1]: file.getvalue() for name, file in sorted(FaultyStore.store.items()) if name.endswith(".h5")}


def shards_here(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.glob("*/shard-*.h5"))}


def test_a_column_is_the_same_as_in_a_local_folder_and_is_read_elsewhere(machine: Machine, tmp_path: Path) -> None:
    assert fill_missing(*machine("here")) == [0, 1]
    filled(tmp_path / "local")
    assert shards_there() == shards_here(tmp_path / "local") != {}
    store, mirror = machine("there")
    assert fill_missing(store, mirror) == []
    assert shards_here(store) == {}
    np.testing.assert_array_equal(ColumnReader(store, "clip").gather(range(7)), token_rows())
    assert shards_here(store) == shards_there()
    requests = FaultyStore.requests["GET"]
    ColumnReader(store, "clip")
    assert FaultyStore.requests["GET"] == requests


def test_a_shard_is_brought_when_its_rows_are_needed(machine: Machine) -> None:
    fill_missing(*machine("here"))
    store, mirror = machine("there")
    rows = ColumnWriter(store, SPEC, mirror=mirror).read_committed(1)
    np.testing.assert_array_equal(rows, token_rows()[4:])
    assert len(shards_here(store)) == 1


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("verb", "every", "tries"), [("PUT", 2, 4), ("PUT", 3, 2), ("PUT", 5, 1), ("GET", 2, 4), ("GET", 5, 1), ("LIST", 2, 4), ("LIST", 3, 2)]
)
def test_failing_requests_cost_further_runs_and_nothing_else(
    verb: Verb, every: int, tries: int, fault: Fault, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lugpi_core.remote.folder.PAUSES_S", (0.0,) * (tries - 1))
    FaultyStore.every, FaultyStore.fault = {verb: every}, fault
    runs, failed = 0, 1
    while failed:
        runs, failed = runs + 1, 0
        assert runs < 50
        try:
            fill_missing(*machine(f"machine{runs % 2}"))
        except (InputError, AssertionError):
            failed = 1
    assert FaultyStore.broken[verb] > 0
    FaultyStore.every = {}
    store, _ = machine("reader")
    filled(store.parent / "local")
    assert shards_there() == shards_here(store.parent / "local")
    np.testing.assert_array_equal(ColumnReader(store, "clip").gather(range(7)), token_rows())


def test_a_shard_that_was_left_without_a_record_is_replaced(machine: Machine, tmp_path: Path) -> None:
    filled(tmp_path / "local")
    for name, data in shards_here(tmp_path / "local").items():
        FaultyStore().pipe_file(f"{ADDRESS}/tokens/clip/{name}", data[:-9])
    assert fill_missing(*machine("here")) == [0, 1]
    assert shards_there() == shards_here(tmp_path / "local")


def test_a_torn_record_is_none_and_is_replaced(machine: Machine) -> None:
    fill_missing(*machine("here"))
    there = shards_there()
    name = "/bucket/run/tokens/clip/records/shard-00001.json"
    FaultyStore().pipe_file(name, FaultyStore.store[name].getvalue()[:-9])
    FaultyStore.store.pop("/bucket/run/tokens/clip/manifest.json")
    assert fill_missing(*machine("there")) == [1]
    assert shards_there() == there
    assert FaultyStore.store[name].getvalue().endswith(b"}\n")


def test_another_content_with_a_record_is_one_line_and_stays(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    column = ColumnWriter(here[0], SPEC, mirror=here[1])
    other = ColumnWriter(there[0], SPEC, mirror=there[1])
    commit_shard(column, 0)
    kept = shards_there()
    writer = claimed(other, 0)
    writer.write(0, token_rows()[:4] + 1, np.zeros(4, np.uint8))
    with pytest.raises(
        InputError, match=r"^got shard 0 of clip, here with the sha256 [0-9a-f]{64}, in memory://bucket/run with [0-9a-f]{64};"
    ):
        other.commit(0, writer)
    writer.close()
    assert shards_there() == kept
    assert fill_missing(*machine("there")) == [1]
    np.testing.assert_array_equal(ColumnReader(machine("there")[0], "clip").gather(range(7)), token_rows())


def test_two_machines_that_write_the_same_shard_both_succeed(machine: Machine) -> None:
    columns = [ColumnWriter(store, SPEC, mirror=mirror) for store, mirror in (machine("here"), machine("there"))]
    writers = [write_all(claimed(column, 0)) for column in columns]
    for column, writer in zip(columns, writers, strict=True):
        column.commit(0, writer)
    assert len(shards_there()) == 1


def test_a_shard_that_was_not_sent_is_sent_by_the_next_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    store, mirror = machine("here")
    column = ColumnWriter(store, SPEC, mirror=mirror)
    FaultyStore.every = {"PUT": 1}
    with pytest.raises(InputError, match="uploading tokens/clip/shard-00000"):
        commit_shard(column, 0)
    assert len(shards_here(store)) == 1
    assert shards_there() == {}
    FaultyStore.every = {}
    assert fill_missing(*machine("here")) == [1]
    assert len(shards_there()) == 2
    assert shards_here(store) == {}


def test_a_local_shard_that_was_damaged_is_not_sent(machine: Machine) -> None:
    store, mirror = machine("here")
    FaultyStore.every = {"PUT": 1}
    with pytest.raises(InputError):
        commit_shard(ColumnWriter(store, SPEC, mirror=mirror), 0)
    FaultyStore.every = {}
    (path,) = store.glob("clip/shard-*.h5")
    _, records = load_manifest(store / "clip")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="whose content differs from its record"):
        mirror.publish("clip", 0, records[0])
    assert shards_there() == {}


def test_another_run_of_the_store_is_refused(machine: Machine) -> None:
    fill_missing(*machine("here"))
    store, mirror = machine("there")
    with pytest.raises(InputError, match="made with other settings: seed: found 0, wanted 1"):
        ColumnWriter(store, replace(SPEC, fingerprint={"seed": 1}), mirror=mirror)


def test_of_two_machines_that_begin_with_other_settings_the_second_is_told(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    ColumnWriter(here[0], SPEC, mirror=here[1])
    ColumnWriter(there[0], replace(SPEC, fingerprint={"seed": 1}), mirror=there[1])
    assert here[1].begin()
    assert not there[1].begin()
    with pytest.raises(InputError, match="made with other settings"):
        ColumnWriter(there[0], replace(SPEC, fingerprint={"seed": 1}), mirror=there[1])


def test_a_shard_that_is_taken_back_is_computed_again(machine: Machine) -> None:
    store, mirror = machine("here")
    fill_missing(store, mirror)
    there = shards_there()
    _, records = load_manifest(store / "clip")
    column = ColumnWriter(store, SPEC, mirror=mirror)
    assert column.reopen(0, records[0])
    assert len(shards_there()) == 1
    assert fill_missing(*machine("there")) == [0]
    assert shards_there() == there


def test_what_is_left_of_an_earlier_run_at_the_address_is_forgotten(machine: Machine) -> None:
    store, mirror = machine("here")
    fill_missing(store, mirror)
    FaultyStore.store.clear()
    assert record_path(store / "clip", 0).exists()
    assert (store / "clip" / MANIFEST).exists()
    assert fill_missing(*machine("here")) == [0, 1]
    shutil.rmtree(store)
    assert fill_missing(*machine("here")) == []
