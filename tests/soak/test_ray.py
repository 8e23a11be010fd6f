"""Ray whose driver, workers and nodes are killed: every task is done, and none is waited for in vain."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, Command

TASKS = 40
# A head with so many CPUs; "add CPUS [PYTHONPATH]" adds a node, "remove" kills the last.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1]), "include_dashboard": False})
print(cluster.address, flush=True)
for line in sys.stdin:
    what, *given = line.split()
    if what == "remove":
        cluster.remove_node(node, allow_graceful=False)
    else:
        node = cluster.add_node(num_cpus=int(given[0]), env_vars={"PYTHONPATH": path for path in given[1:]})
    print("done", flush=True)
cluster.shutdown()
"""
pytestmark = pytest.mark.soak


def start(*words: str, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words], cwd=cwd, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@contextmanager
def cluster(cpus: int) -> Iterator[tuple[str, Callable[[str], None]]]:
    """Yield the address of a cluster, and what tells it to add and remove nodes."""
    with start("-c", CLUSTER, str(cpus)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def tell(what: str) -> None:
            print(what, file=stdin, flush=True)
            assert stdout.readline() == "done\n"

        yield stdout.readline().strip(), tell
        process.communicate(timeout=60)


def drive(folder: Path, address: str, tasks: int, *actors: int) -> "subprocess.Popen[str]":
    """Start a driver in the folder of its tasks: Ray puts the working folder of the driver before the PYTHONPATH of a node."""
    return start("-m", "tests.support.ray_driver", str(folder), address, str(tasks), *map(str, actors), cwd=folder)


def wait_for(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert condition()


def running(folder: Path) -> dict[str, int]:
    """The tasks that have been started and are not done, with the processes that started them last."""
    last: dict[str, int] = {}
    for path in sorted(folder.glob("slow-*.*"), key=lambda path: path.stat().st_mtime):
        if (text := path.read_text()) and not (folder / f"{path.stem} done").exists():
            last[path.stem] = int(text)
    return last


def assert_done(folder: Path, tasks: int, driver: "subprocess.Popen[str]", lost: int) -> str:
    """Return what the driver said."""
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    assert json.loads(out) == []
    assert "Traceback" not in err
    assert len(list(folder.glob("slow-* done"))) == tasks
    assert len(list(folder.glob("slow-*.*"))) <= tasks + lost, "only what was in hand is done again"
    return err


def test_killed_workers_cost_what_they_had_in_hand(
    tmp_path: Path, ray_address: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    kills, chance = campaign(0, 50), random.Random(5)
    tasks = 4 + 2 * kills
    driver = drive(tmp_path, ray_address, tasks, 2)
    killed: set[int] = set()
    while len(killed) < kills:
        wait_for(lambda: bool(set(running(tmp_path).values()) - killed))
        pid = chance.choice(sorted(set(running(tmp_path).values()) - killed))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    assert_done(tmp_path, tasks, driver, lost=kills)
    report(f"Ray: {kills} workers killed, all of {tasks} tasks done")


def test_a_killed_driver_is_followed_by_another_at_once(
    tmp_path: Path, ray_address: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    kills = campaign(0, 10)
    tasks = 6 + 4 * kills
    for number in range(kills):
        driver = drive(tmp_path, ray_address, tasks, 2)
        wait_for(lambda number=number: len(list(tmp_path.glob("slow-* done"))) > 2 * number and bool(running(tmp_path)))  # type: ignore[misc]
        driver.kill()
        driver.communicate()
    # A task of an actor that outlives its driver may be done twice at the same time.
    assert_done(tmp_path, tasks, drive(tmp_path, ray_address, tasks, 2), lost=2 * kills)
    assert not list(tmp_path.glob("*.tmp"))
    report(f"Ray: {kills} drivers killed, all of {tasks} tasks done")


def test_the_task_of_a_removed_node_is_done_though_no_cpu_is_free(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    """A restarted actor would wait for the CPU that the idle one holds. The last time, the node does not come back."""
    planned, removed, runs = campaign(0, 10), 0, 0
    with cluster(1) as (address, tell):
        tell("add 1")
        while removed < planned:
            (folder := tmp_path / f"run-{runs}").mkdir()
            driver, before, seen = drive(folder, address, TASKS, 2), removed, set[int]()
            while driver.poll() is None and removed < planned:
                wait_for(partial(has_ended_or_both_work, driver, folder, seen))
                if driver.poll() is None:
                    seen = set(running(folder).values())
                    tell("remove")
                    removed += 1
                    if removed < planned:
                        tell("add 1")
            assert_done(folder, TASKS, driver, lost=removed - before)
            runs += 1
    report(f"Ray: a node removed {removed} times, all of {runs} times {TASKS} tasks done")


def has_ended_or_both_work(driver: "subprocess.Popen[str]", folder: Path, seen: set[int]) -> bool:
    """Whether two actors work, one of which did not when the last was lost, whose task may not have been started again."""
    working = set(running(folder).values())
    return driver.poll() is not None or (len(working) > 1 and not working <= seen)


def test_nodes_that_go_while_actors_start_are_no_failed_starts(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    """No actor has ever started, and three are lost with each node: before they run, or while they load."""
    removals, chance, tasks = campaign(0, 6), random.Random(7), 9
    (tmp_path / "slow start").touch()
    with cluster(0) as (address, tell):
        tell("add 3")
        driver = drive(tmp_path, address, tasks, 3)
        for number in range(removals):
            if number % 2:
                wait_for(partial(has_ended_or_loads_again, driver, tmp_path, len(list(tmp_path.glob("load.*")))))
            else:
                time.sleep(chance.uniform(0, 3))
            tell("remove")
            tell("add 3")
        (tmp_path / "slow start").unlink()
        assert_done(tmp_path, tasks, driver, lost=0)
    report(f"Ray: a node removed {removals} times while three actors started on it, all of {tasks} tasks done")


def has_ended_or_loads_again(driver: "subprocess.Popen[str]", folder: Path, loads: int) -> bool:
    return driver.poll() is not None or len(list(folder.glob("load.*"))) > loads


def test_a_node_that_joins_late_takes_part_unless_its_lugpi_differs(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(ROOT / "lugpi_core", other / "lugpi_core", ignore=shutil.ignore_patterns("__pycache__"))
    (folder := tmp_path / "run").mkdir()
    with cluster(1) as (address, tell):
        driver = drive(folder, address, 2 * TASKS)
        wait_for(lambda: bool(running(folder)))
        tell(f"add 1 {other}")
        tell("add 1")
        wait_for(lambda: len(running(folder)) > 1)
        err = assert_done(folder, 2 * TASKS, driver, lost=0)
    told = [line for line in err.splitlines() if line.startswith("warning")]
    assert len(told) == 1
    assert told[0].startswith("warning: a node that has joined the cluster is left out: got lugpi's source ")
    assert told[0].endswith("; the others go on")
    assert len({path.read_text() for path in folder.glob("slow-*.*")}) == 2, "processes"


def test_every_part_of_the_benchmark_runs(new_command: Command) -> None:
    done = new_command("-m", "benchmarks", "ray", "--smoke", timeout_s=1800)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert len(figures["shard"]["rounds"]["actor"]) == len(figures["actors"]["rounds"]["two"]) == 1
    assert figures["tables"]["faster"] > 0
