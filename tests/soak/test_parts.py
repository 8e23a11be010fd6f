"""Parts of a run that are killed, started again with another n, or started twice: no row is lost, wrong or computed without need."""

import fcntl
import random
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest

from featurize.plan.parts import Part
from tests.soak import processes
from tests.soak.worker import (
    MOST_IN_FLIGHT,
    Log,
    Small,
    check_complete,
    check_recorded,
    fill_store,
    open_writers,
    undisturbed,
)

SMALL = Small(rows=48, shard_rows=6, block=2)


def _fill(store: Path, log: Log, part: Part, has_locks: bool) -> None:
    if has_locks:
        fill_store(store, SMALL, log, part)
        return
    with patch.object(fcntl, "flock", lambda descriptor, kind: None):
        fill_store(store, SMALL, log, part)


@pytest.mark.parametrize("has_locks", [True, False], ids=["locks", "no locks"])
def test_killed_parts_continue_to_the_same_bytes(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None], has_locks: bool
) -> None:
    planned, kills, stores, redone = campaign(3 if has_locks else 1, 50), 0, 0, 0
    chance = random.Random(int(has_locks))
    undisturbed(SMALL)  # made here, not in every child
    while kills < planned:
        store, log = tmp_path / f"store-{stores}", Log(tmp_path / f"log-{stores}", pause=lambda: time.sleep(0.002))
        killed_here, is_done = 0, False
        while not is_done:
            count = chance.choice((1, 3, 4))
            parts = [Part(index, count) for index in range(count)] + [Part(chance.randrange(count), count)]  # one of them twice
            pids = [processes.start(lambda store=store, log=log, part=part: _fill(store, log, part, has_locks)) for part in parts]
            time.sleep(chance.uniform(0.005, 0.4))
            victims = chance.sample(pids, k=min(len(pids), 2 if kills + killed_here < planned else 0))
            killed_here += sum(processes.kill(pid) == processes.KILLED for pid in victims)
            ends = [processes.wait(pid, timeout_s=120) for pid in pids if pid not in victims]
            assert set(ends) <= {processes.DONE}, ends
            check_recorded(store, SMALL)
            is_done = not victims
        for writer in open_writers(store, SMALL).values():  # removes what killed processes left
            assert writer.finish()
        check_complete(store, SMALL)
        if has_locks:
            assert log.redone() <= killed_here * MOST_IN_FLIGHT
            assert log.wasted(SMALL.block, SMALL.shard_rows, SMALL.rows) == 0
        kills, stores, redone = kills + killed_here, stores + 1, redone + log.redone()
    report(f"kills of parts: {kills} over {stores} stores, rows lost or wrong 0, blocks redone {redone}, locks {has_locks}")
