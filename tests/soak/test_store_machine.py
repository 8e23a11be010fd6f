"""Random histories of a column: recorded shards read exactly or are refused, and nothing is lost without damage."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from lugpi_core.errors import InputError
from lugpi_core.store.layout import SCALE, structure
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.manifest import MANIFEST, Record, load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.shard import ShardWriter, check_record
from lugpi_core.store.verify import check_store, take_back
from lugpi_core.store.writer import ColumnWriter
from tests.soak import processes
from tests.soak.operations import Fault, operations_through
from tests.soak.worker import Small, expected, stored

SPEC = Small(rows=8, shard_rows=3).specs[1]
BLOCK = 2
SHARDS = st.integers(0, SPEC.shards - 1)
# Which operation fails, and how; most steps have no fault.
FAULTS = st.none() | st.none() | st.tuples(st.integers(0, 60), st.sampled_from(["EIO", "ENOSPC", "short", "full"]))
PLACES = st.floats(0, 1, exclude_max=True)
Failing = tuple[int, str] | None


def _write(file: ShardWriter, first: int, count: int) -> None:
    start = file.layout.first_row + first
    parts = expected(SPEC, range(start, start + count))
    file.write(first, parts["tokens"], np.zeros(count, np.uint8), parts[SCALE])


def _fill(store: Path, shards: Iterable[int] = range(SPEC.shards)) -> None:
    """Fill the shards that no other process is writing."""
    column = ColumnWriter(store, SPEC)
    for shard in shards:
        try:
            file = column.claim(shard)
        except ShardBusy:
            continue
        if file is not None:
            with closing(file):
                for first in range(0, file.layout.rows, BLOCK):
                    if not file.valid[first : first + BLOCK].all():
                        _write(file, first, len(file.valid[first : first + BLOCK]))
                column.commit(shard, file)


class StoreMachine(RuleBasedStateMachine):
    """One column, a command in this process, and others that fail or are killed next to it.

    The expected state is three sets of shards and a flag: recorded, recorded but damaged since (``hit``), unfinished and damaged
    (``begun_hit``), and whether the manifest was damaged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="lugpi-machine-"))
        self.store = self.folder / "tokens"
        self.column = self.store / SPEC.name
        self.writer: ColumnWriter | None = None
        self.held: dict[int, ShardWriter] = {}
        self.recorded: set[int] = set()
        self.hit: set[int] = set()
        self.begun_hit: set[int] = set()
        self.manifest_hit = False

    def teardown(self) -> None:
        self._let_go()
        shutil.rmtree(self.folder)

    @rule(failing=FAULTS)
    def open(self, failing: Failing) -> None:
        damaged = self.manifest_hit
        self.writer = self._try(lambda: ColumnWriter(self.store, SPEC), failing, damaged=damaged)
        self._note_unreadable(failing)
        if self.writer is not None and not damaged:
            assert set(self.writer.taken_back) <= self.hit

    @precondition(lambda self: self.writer)
    @rule(shard=SHARDS, failing=FAULTS)
    def claim(self, shard: int, failing: Failing) -> None:
        assume(shard not in self.held)
        column = self._column()
        file = self._try(lambda: column.claim(shard), failing, damaged=self.manifest_hit)
        if file is not None:
            self.held[shard] = file
            self.begun_hit.discard(shard)  # claiming restored its structure and checked its rows
        elif failing is None and not self.manifest_hit:
            assert column.is_committed(shard)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), failing=FAULTS)
    def write(self, data: Any, failing: Failing) -> None:
        file = self.held[data.draw(st.sampled_from(sorted(self.held)))]
        first = data.draw(st.integers(0, file.layout.rows - 1))
        count = data.draw(st.integers(1, file.layout.rows - first))
        self._try(lambda: _write(file, first, count), failing, damaged=False)

    @precondition(lambda self: self.held and self.writer)
    @rule(data=st.data(), failing=FAULTS, complete=st.booleans())
    def commit(self, data: Any, failing: Failing, complete: bool) -> None:
        shard = data.draw(st.sampled_from(sorted(self.held)))
        file, column = self.held.pop(shard), self._column()
        if complete:
            _write(file, 0, file.layout.rows)
        whole = bool(file.valid.all())
        with closing(file):
            damaged = self.manifest_hit or shard in self.begun_hit or not whole
            self._try(lambda: column.commit(shard, file), failing, damaged=damaged)
        if failing is None and not damaged:
            assert shard in load_manifest(self.column)[1]
        assert whole or shard not in self._records()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        self.held.pop(data.draw(st.sampled_from(sorted(self.held)))).close()

    @precondition(lambda self: self.held and self.writer)
    @rule(data=st.data(), k=st.integers(0, 45))
    def die_in_a_commit(self, data: Any, k: int) -> None:
        file, column = self.held.pop(data.draw(st.sampled_from(sorted(self.held)))), self._column()
        _write(file, 0, file.layout.rows)

        def work() -> None:
            with operations_through(self.store, Fault(k, "kill")):
                column.commit(self._shard_of(file), file)

        assert processes.run(work) in (processes.KILLED, processes.DONE, processes.REFUSED)
        file.close()

    @rule(k=st.integers(0, 120), shard=SHARDS)
    def another_command_dies(self, k: int, shard: int) -> None:
        assert self._elsewhere((k, "kill"), shard) in (processes.DONE, processes.KILLED, processes.REFUSED)

    @rule(failing=FAULTS, shard=SHARDS)
    def another_command_fails_or_fills_a_shard(self, failing: Failing, shard: int) -> None:
        end = self._elsewhere(failing, shard)
        self._note_unreadable(failing)
        assert end in (processes.DONE, processes.REFUSED, processes.FAILED)
        if failing is None and not self.manifest_hit:
            assert end == processes.DONE
            assert shard in self.held or shard in self._records()

    @precondition(lambda self: self.column.exists())
    @rule(
        data=st.data(), how=st.sampled_from(["flip", "flip", "cut", "remove"]), in_rows=st.booleans(), place=PLACES, bit=st.integers(0, 7)
    )
    def damage(self, data: Any, how: str, in_rows: bool, place: float, bit: int) -> None:
        names = sorted(path.name for path in self.column.iterdir() if path.name.startswith((MANIFEST, "shard-")))
        assume(names)
        path = self.column / data.draw(st.sampled_from(names))
        shard = None if path.name == MANIFEST else int(path.name[6:11])
        offset = int(place * path.stat().st_size)
        if in_rows and shard is not None:  # most bytes of such a small file are structure
            layout = SPEC.layout(shard)
            offset = structure(layout).offsets["tokens"] + int(place * layout.bytes_of("tokens", layout.rows))
        if how == "remove":
            path.unlink()
        elif how == "cut":
            os.truncate(path, min(offset, path.stat().st_size))
        elif offset < path.stat().st_size:
            with path.open("r+b") as file:
                file.seek(offset)
                flipped = file.read(1)[0] ^ (1 << bit)
                file.seek(offset)
                file.write(bytes([flipped]))
        if shard is None:
            self.manifest_hit = True
        else:
            (self.hit if path.suffix == ".h5" else self.begun_hit).add(shard)

    @precondition(lambda self: self.column.exists())
    @rule()
    def repair(self) -> None:
        self._let_go()
        if any(self.column.glob("shard-*")):
            take_back(self.store, [finding for finding in check_store(self.store, deep=True) if finding.column])
        _fill(self.store)
        self.manifest_hit = False
        self.hit.clear()
        self.begun_hit.clear()
        self.recorded = set(range(SPEC.shards))
        reader = ColumnReader(self.store, SPEC.name)
        got = reader.gather_stored(range(SPEC.rows))
        for name, values in expected(SPEC, range(SPEC.rows)).items():
            np.testing.assert_array_equal(got[name], values)

    def _note_unreadable(self, failing: Failing) -> None:
        # A shard that could not be read even once is taken back: its rows are checked and copied to another file.
        if failing is not None and failing[1] == "EIO":
            self.hit |= self.recorded - self._records().keys()

    @invariant()
    def what_is_recorded_reads_exactly_or_is_refused(self) -> None:
        try:
            records = load_manifest(self.column)[1]
        except InputError:
            assert self.manifest_hit or not (self.column / MANIFEST).exists()
            assert self.manifest_hit or not self.recorded
            return
        if not self.manifest_hit:
            assert self.recorded - records.keys() <= self.hit
        faulty = {shard for shard, record in records.items() if check_record(self.column, record, content=True)}
        assert faulty <= self.hit
        for shard in records.keys() - faulty:
            layout = SPEC.layout(shard)
            for name, values in expected(SPEC, range(layout.first_row, layout.first_row + layout.rows)).items():
                np.testing.assert_array_equal(stored(self.column, layout, records[shard], name), values)
        self.recorded, self.hit, self.manifest_hit = set(records), faulty, False

    def _column(self) -> ColumnWriter:
        assert self.writer is not None
        return self.writer

    def _records(self) -> dict[int, Record]:
        try:
            return load_manifest(self.column)[1]
        except InputError:
            return {}

    def _try(self, work: Callable[[], Any], failing: Failing, *, damaged: bool) -> Any:
        """Do ``work``, with or without a fault. Errors are allowed with a fault or after damage; they must be of the types that
        the commands report in one line."""
        try:
            with operations_through(self.store, Fault(*failing)) if failing else nullcontext():
                return work()
        except (InputError, OSError):
            assert failing is not None or damaged
            return None

    def _shard_of(self, file: ShardWriter) -> int:
        return file.layout.first_row // SPEC.shard_rows

    def _elsewhere(self, failing: Failing, shard: int) -> int:
        def work() -> None:
            with operations_through(self.store, Fault(*failing)) if failing else nullcontext():
                _fill(self.store, [shard])

        return processes.run(work)

    def _let_go(self) -> None:
        for file in self.held.values():
            file.close()
        self.held.clear()
        self.writer = None


def test_no_recorded_row_is_lost_or_wrong_in_random_histories(campaign: Callable[[int, int], int], report: Callable[[str], None]) -> None:
    examples, steps = campaign(6, 500), 30
    run_state_machine_as_test(StoreMachine, settings=settings(max_examples=examples, stateful_step_count=steps))
    report(f"random histories of a column: {examples} of up to {steps} steps; recorded rows lost or wrong 0")
