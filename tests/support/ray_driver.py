"""``python -m tests.support.ray_driver FOLDER ADDRESS TASKS [ACTORS]``: a driver whose tasks take a second, and write a file each.

Without a number of actors there are as many as there is room for. Prints the tasks that failed.
"""

import json
import sys
from pathlib import Path

from lugpi_core.cluster.connection import Share, connected
from lugpi_core.cluster.crew import ActorWork
from lugpi_core.errors import EXIT_BAD_INPUT, InputError
from tests.support.ray_tasks import load, run_tasks


def drive(folder: Path, address: str, tasks: int, actors: int | None) -> list[str]:
    """Do the tasks that have no file; return those that failed."""
    todo = [f"slow-{n}" for n in range(tasks) if not (folder / f"slow-{n} done").exists()]
    failed: list[str] = []
    with connected(address) as cluster:
        most = actors or cluster.room(Share())
        work = ActorWork(load=load, inputs=folder, share=Share(), most=most, grows=actors is None, shared=folder)
        run_tasks(work, todo, lambda result: failed.append(result.task) if result.failure else None)
    return failed


if __name__ == "__main__":
    folder, address, tasks, *actors = sys.argv[1:]
    try:
        print(json.dumps(drive(Path(folder), address, int(tasks), int(actors[0]) if actors else None)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
