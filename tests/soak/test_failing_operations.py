"""Every file operation of the store fails once in every way; the same run then completes with the same bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.verify import Finding, check_store
from tests.soak import processes
from tests.soak.operations import READS, WRITES, Counter, Fault, operations_through
from tests.soak.worker import MOST_IN_FLIGHT, Log, Small, check_complete, check_recorded, check_rows, fill_store, undisturbed
from tests.support.shards import shard_file

SMALL = Small(rows=10, shard_rows=6, block=3)
KINDS = ("EIO", "ENOSPC", "short", "kill", "full")


def _through(store: Path, hook: Counter, work: Callable[[], object]) -> None:
    with operations_through(store, hook):
        work()


def _names_of(store: Path, work: Callable[[], object]) -> list[str]:
    counter = Counter()
    _through(store, counter, work)
    return counter.names


def _filled(folder: Path) -> Path:
    store = folder / "tokens"
    fill_store(store, SMALL, Log(folder / "log"))
    return store


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The file operations of a run without faults, in order."""
    folder = tmp_path_factory.mktemp("counted")
    return _names_of(folder / "tokens", lambda: _filled(folder))


def _points(names: list[str], kind: str, every: int) -> range | list[int]:
    if kind == "short":
        return [k for k, name in enumerate(names) if name in (*WRITES, *READS)][::every]
    return range(0, len(names), every)


@pytest.mark.parametrize("kind", KINDS)
def test_after_any_failed_operation_the_next_run_completes(
    tmp_path: Path, writing: list[str], kind: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    undisturbed(SMALL)  # cached here, not in every child
    ends = dict.fromkeys((processes.DONE, processes.REFUSED, processes.FAILED, processes.KILLED), 0)
    points = _points(writing, kind, campaign(29 if kind == "short" else 71, 1))
    for k in points:
        folder = tmp_path / str(k)
        store, log = folder / "tokens", Log(folder / "log")
        folder.mkdir()
        end = processes.run(lambda k=k, store=store, log=log: _through(store, Fault(k, kind), lambda: fill_store(store, SMALL, log)))
        assert end in ends, f"operation {k}, {writing[k]}: ended with {end}"
        check_recorded(store, SMALL)
        if end == processes.DONE:  # the fault must have had no effect
            check_rows(store, SMALL)
        ends[end] += 1
        assert processes.run(lambda store=store, log=log: fill_store(store, SMALL, log)) == processes.DONE, f"operation {k}, {writing[k]}"
        check_complete(store, SMALL)
        assert log.redone() <= MOST_IN_FLIGHT, f"operation {k}, {writing[k]}: {log.redone()} blocks redone"
    if kind == "short":
        assert ends[processes.DONE] == len(points)
    assert ends[processes.KILLED] == (len(points) if kind == "kill" else 0)
    report(
        f"a writer's operations failing with {kind}: {len(points)} of {len(writing)}; ended well {ends[0]}, InputError {ends[2]}, "
        f"OSError {ends[3]}, killed {ends[processes.KILLED]}; stores wrong after the next run 0"
    )


@pytest.mark.parametrize("kind", ["EIO", "short"])
@pytest.mark.parametrize("content", [True, False])
def test_a_reader_with_a_failing_operation_never_gives_wrong_rows(
    tmp_path: Path, kind: str, content: bool, report: Callable[[str], None]
) -> None:
    store = _filled(tmp_path)
    names = _names_of(store, lambda: check_rows(store, SMALL, check_content=content))
    refused = 0
    for k in _points(names, kind, 1):
        try:
            _through(store, Fault(k, kind), lambda: check_rows(store, SMALL, check_content=content))
        except (InputError, OSError):
            refused += 1
    assert refused == 0 if kind == "short" else refused > len(names) / 2
    report(f"a reader's operations failing with {kind}: {len(_points(names, kind, 1))}; refused {refused}, wrong rows 0")


def _kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings if finding.column}


@pytest.mark.parametrize("kind", ["EIO", "short"])
def test_verify_with_a_failing_operation_never_misses_the_damage(
    tmp_path: Path, kind: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    store = _filled(tmp_path)
    shard = shard_file(store / "clip", 0)
    with shard.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"\xff" * 8)
    assert "damaged" in _kinds(check_store(store, deep=True))
    names = _names_of(store, lambda: check_store(store, deep=True))
    points = _points(names, kind, campaign(7, 1))
    for k in points:
        found: list[Finding] = []
        try:
            _through(store, Fault(k, kind), lambda found=found: found.extend(check_store(store, deep=True)))
        except (InputError, OSError):
            continue
        assert _kinds(found) & {"damaged", "missing"}, f"operation {k}, {names[k]}"
    report(f"verify's operations failing with {kind}: {len(points)}; missed damage 0")
