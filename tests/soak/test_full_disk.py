"""A disk of 16 MB that is really full: detected before the first image, no committed shard is harmed, and with space the run continues."""

import json
from collections.abc import Callable
from pathlib import Path

from lugpi_core.store.layout import structure
from tests.soak import processes
from tests.soak.small_disk import DISK_BYTES, leave_free, on_a_small_disk
from tests.soak.worker import MOST_IN_FLIGHT, Log, Small, check_complete, check_recorded, fill_store, undisturbed

SMALL = Small(rows=10_000, shard_rows=3_000, block=1_000, dtype="float16")


def _fill(store: Path, log: Log) -> int:
    return processes.run(lambda: fill_store(store, SMALL, log))


def test_a_full_disk_is_detected_before_the_first_image(tmp_path: Path) -> None:
    shard_bytes = [structure(spec.layout(0)).file_bytes for spec in SMALL.specs]
    assert sum(shard_bytes) * 3 < DISK_BYTES
    undisturbed(SMALL)

    def work(disk: Path) -> None:
        store, log = disk / "tokens", Log(tmp_path.parent / f"{tmp_path.name}.log")
        ballast = leave_free(disk, sum(shard_bytes) // 2)
        assert _fill(store, log) == processes.REFUSED
        assert log.lines() == []
        ballast = leave_free(
            disk, sum(shard_bytes) + shard_bytes[0] // 2
        )  # enough for the first shards of both columns, not for the second
        assert _fill(store, log) == processes.REFUSED
        assert {row for _, row, _, _ in log.lines()} == {0, 1000, 2000}
        assert check_recorded(store, SMALL) == 2
        ballast.unlink()
        assert _fill(store, log) == processes.DONE
        check_complete(store, SMALL)
        assert log.redone() == 0

    on_a_small_disk(tmp_path, work)


def test_a_disk_that_fills_up_harms_no_committed_shard(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    levels, figures = campaign(4, 120), tmp_path.parent / f"{tmp_path.name}.json"
    undisturbed(SMALL)
    store_bytes = sum(len(data) for data in undisturbed(SMALL).values())

    def work(disk: Path) -> None:
        ends = dict.fromkeys((processes.DONE, processes.REFUSED, processes.FAILED), 0)
        for level in range(levels):
            log = Log(figures.with_suffix(f".{level}"))
            store = disk / f"store-{level}"
            ballast = leave_free(disk, 4096 + level * (store_bytes + 40_000) // levels // 4096 * 4096)
            ends[_fill(store, log)] += 1
            recorded = check_recorded(store, SMALL)
            ballast.unlink()
            assert _fill(store, log) == processes.DONE
            check_complete(store, SMALL)
            assert check_recorded(store, SMALL) >= recorded
            assert log.redone() <= MOST_IN_FLIGHT  # blocks queued behind a failing write are not written
            _remove(store)
        figures.write_text(json.dumps(ends))

    on_a_small_disk(tmp_path, work)
    ends = json.loads(figures.read_text())
    report(f"full disk: {levels} levels of room; refused {ends['2']}, OSError {ends['3']}, enough {ends['0']}; nothing final harmed")


def _remove(store: Path) -> None:
    for path in sorted(store.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    store.rmdir()
