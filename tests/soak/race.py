"""Several writers on one store, one of them killed; run as a program, for HDF5 reads its locking setting once a process.

python -m tests.soak.race FOLDER WRITERS ROUNDS      prints one JSON object of figures
"""

import json
import random
import sys
import time
from pathlib import Path

from tests.soak import processes
from tests.soak.worker import Log, Small, check_complete, fill_store, open_writers

MANY_SHARDS = Small(rows=48, shard_rows=6, block=2)
ONE_SHARD = Small(rows=40, shard_rows=40, block=2, dtype="float16")


def race(folder: Path, small: Small, writers: int, chance: random.Random) -> dict[str, float]:
    """Fill a store with several writers at once, and kill one of them in the middle; return the figures of it.

    The death is also when its lease is free: the time from there to the first block that another process begins in its shard is the
    takeover, which is only asked for where all others wait for that shard.
    """
    store, log = folder / "tokens", Log(folder / "log", pause=lambda: time.sleep(0.01))
    folder.mkdir()
    pids = [processes.start(lambda: fill_store(store, small, log)) for _ in range(writers)]
    victim, blocks = 0, chance.randrange(2, 9)
    while not victim:
        begun = [pid for _, _, pid, _ in log.lines()]
        victim = next((pid for pid in pids if begun.count(pid) >= blocks), 0)
        time.sleep(0.002)
    assert processes.kill(victim) == processes.KILLED
    died_s = time.monotonic()
    ends = [processes.wait(pid, timeout_s=60) for pid in pids if pid != victim]
    assert ends == [processes.DONE] * (writers - 1), ends
    open_writers(store, small)  # what a dead one left half written beside its rows is swept by the next command
    check_complete(store, small)
    taken_over = [at_s - died_s for _, _, pid, at_s in log.lines() if pid != victim and at_s > died_s]
    assert log.wasted(small.block, small.shard_rows, small.rows) == 0
    return {"redone": log.redone(), "takeover_s": min(taken_over), "working": len({pid for _, _, pid, _ in log.lines()})}


def main(arguments: list[str]) -> None:
    """Run the rounds and print their figures."""
    folder, writers, rounds = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    chance = random.Random(writers)
    many = [race(folder / f"many-{n}", MANY_SHARDS, writers, chance) for n in range(rounds)]
    one = [race(folder / f"one-{n}", ONE_SHARD, writers, chance) for n in range(rounds)]
    figures = {
        "rounds": len(many) + len(one),
        "redone": [figure["redone"] for figure in many + one],
        "working": [figure["working"] for figure in many],
        "takeover_s": [round(figure["takeover_s"], 3) for figure in one],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
