"""Ray whose driver, workers and nodes are killed: every task is done, and none is waited for in vain."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, Command

# Two nodes of one CPU each; the second is removed, and added again, whenever a line arrives.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(other, allow_graceful=False)
    print("removed", flush=True)
    if line.strip() == "replace":
        other = cluster.add_node(num_cpus=1)
cluster.shutdown()
"""


pytestmark = pytest.mark.soak


def start(*words: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *words], cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def drive(folder: Path, address: str, tasks: int, actors: int = 2) -> "subprocess.Popen[str]":
    return start("-m", "tests.support.ray_driver", str(folder), address, str(tasks), str(actors))


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


def assert_done(folder: Path, tasks: int, driver: "subprocess.Popen[str]", lost: int) -> None:
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    assert json.loads(out) == []
    assert "Traceback" not in err
    assert len(list(folder.glob("slow-* done"))) == tasks
    assert len(list(folder.glob("slow-*.*"))) <= tasks + lost, "only what was in hand is done again"


def test_killed_workers_cost_what_they_had_in_hand(
    tmp_path: Path, ray_address: str, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    kills, chance = campaign(0, 50), random.Random(5)
    tasks = 4 + 2 * kills
    driver = drive(tmp_path, ray_address, tasks)
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
        driver = drive(tmp_path, ray_address, tasks)
        wait_for(lambda number=number: len(list(tmp_path.glob("slow-* done"))) > 2 * number and bool(running(tmp_path)))  # type: ignore[misc]
        driver.kill()
        driver.communicate()
    # A task of an actor that outlives its driver may be done twice at the same time.
    assert_done(tmp_path, tasks, drive(tmp_path, ray_address, tasks), lost=2 * kills)
    assert not list(tmp_path.glob("*.tmp"))
    report(f"Ray: {kills} drivers killed, all of {tasks} tasks done")


def test_the_task_of_a_removed_node_is_done_though_no_cpu_is_free(
    tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    """A restarted actor would wait for the CPU that the idle one holds. The last time, the node does not come back."""
    kills = campaign(0, 10)
    tasks = 8 + 4 * kills
    cluster = start("-c", CLUSTER)
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    driver = drive(tmp_path, cluster.stdout.readline().strip(), tasks)
    for number in range(kills):
        wait_for(lambda number=number: len(list(tmp_path.glob("slow-* done"))) > 3 * number and len(running(tmp_path)) == 2)  # type: ignore[misc]
        cluster.stdin.write("replace\n" if number < kills - 1 else "remove\n")
        cluster.stdin.flush()
        assert cluster.stdout.readline() == "removed\n"
    assert_done(tmp_path, tasks, driver, lost=kills)
    cluster.communicate(timeout=60)
    report(f"Ray: a node removed {kills} times, all of {tasks} tasks done")


def test_every_part_of_the_benchmark_runs(new_command: Command) -> None:
    done = new_command("-m", "benchmarks", "ray", "--smoke", timeout_s=1800)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])["figures"]
    assert len(figures["shard"]["rounds"]["actor"]) == len(figures["actors"]["rounds"]["two"]) == 1
    assert figures["tables"]["faster"] > 0
