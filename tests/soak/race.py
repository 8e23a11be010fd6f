"""Several writers fill one store and one of them is killed. A program, because HDF5 reads its locking setting once per process.

``python -m tests.soak.race FOLDER WRITERS ROUNDS`` prints one JSON object.
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
    """Fill a store with several writers at once, kill one of them in the middle and return what happened.

    ``takeover_s`` is the time from the kill to the next block that another process begins. It means something only if all other writers
    wait for the shard of the killed one.
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
    open_writers(store, small)  # the next command removes the temporary files of the killed one
    check_complete(store, small)
    taken_over = [at_s - died_s for _, _, pid, at_s in log.lines() if pid != victim and at_s > died_s]
    assert log.wasted(small.block, small.shard_rows, small.rows) == 0
    return {"redone": log.redone(), "takeover_s": min(taken_over), "working": len({pid for _, _, pid, _ in log.lines()})}


def main(arguments: list[str]) -> None:
    """Run the rounds and print their figures."""
    folder, writers, rounds = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    chance = random.Random(writers)
    many = [race(folder / f"many-{n}", MANY_SHARDS, writers, chance) for n in range(rounds)]
    single = [race(folder / f"one-{n}", ONE_SHARD, writers, chance) for n in range(rounds)]
    figures = {
        "rounds": len(many) + len(single),
        "redone": [figure["redone"] for figure in many + single],
        "working": [figure["working"] for figure in many],
        "takeover_s": [round(figure["takeover_s"], 3) for figure in single],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
