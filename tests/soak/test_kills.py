"""Writers killed at random moments and continued: the same bytes as without a kill, and only the blocks in flight are lost."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.soak import processes
from tests.soak.operations import Operation, operations_through
from tests.soak.worker import MOST_IN_FLIGHT, Log, Small, check_complete, check_recorded, fill_store, undisturbed

SMALL = Small(rows=30, shard_rows=8, block=3)


def _slow_fill(store: Path, log: Log, seed: int) -> None:
    """Fill a store with naps before some operations, so that a kill can hit any of them, not mostly the slowest."""
    chance = random.Random(seed)

    def nap(name: str, operation: Operation, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if chance.random() < 0.1:
            time.sleep(chance.uniform(0, 0.004))
        return operation(*arguments, **named)

    with operations_through(store, nap):
        fill_store(store, SMALL, log)


def test_killed_writers_continue_to_the_same_bytes(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    planned, kills, stores, redone = campaign(8, 200), 0, 0, 0
    chance = random.Random(0)
    undisturbed(SMALL)  # made here, not in every child
    begun_s = time.monotonic()
    assert processes.run(lambda: _slow_fill(tmp_path / "straight", Log(tmp_path / "log"), 0)) == processes.DONE
    whole_s = time.monotonic() - begun_s
    while kills < planned:
        store, log = tmp_path / f"store-{stores}", Log(tmp_path / f"log-{stores}")
        killed_here = 0
        while True:
            pid = processes.start(lambda store=store, log=log, seed=1000 * stores + killed_here: _slow_fill(store, log, seed))
            if processes.ended(pid, chance.uniform(0.005, whole_s)):
                assert processes.wait(pid) == processes.DONE
                break
            killed_here += processes.kill(pid) == processes.KILLED
            check_recorded(store, SMALL)
        check_complete(store, SMALL)
        assert log.redone() <= killed_here * MOST_IN_FLIGHT
        assert log.wasted(SMALL.block, SMALL.shard_rows, SMALL.rows) == 0
        kills, stores, redone = kills + killed_here, stores + 1, redone + log.redone()
    report(f"kills: {kills} over {stores} stores, rows lost, wrong or twice 0, blocks redone {redone}")
