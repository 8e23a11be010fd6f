"""Ray on two machines of a network, while processes are killed and cables pulled: every task is done.

The machines are network namespaces of this one (``tests/support/network.py``).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.network import Machine, lack_of_network, machines

pytestmark = pytest.mark.soak
ACTOR = "TaskActor"
TASKS = 40
FAULTS = ("actor", "driver", "node", "cable", "for good")


def wait_for(condition: Callable[[], object], timeout_s: float = 240) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert condition()


class Cluster:
    """Two machines with a CPU of Ray each."""

    def __init__(self, head: Machine, other: Machine, folder: Path) -> None:
        self.head, self.other = head, other
        self.address = f"{head.address}:6379"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(folder),
        }

    def start(self) -> None:
        self.start_ray(self.head)
        self.start_ray(self.other)

    def start_on(self, machine: Machine, *words: str | Path) -> "subprocess.Popen[str]":
        """Start ``python …`` on a machine."""
        return machine.start(sys.executable, *words, env=self._environment, cwd=ROOT)

    def start_ray(self, machine: Machine) -> None:
        """Start Ray on a machine where nothing of it runs."""
        place = ("--head", "--port", "6379") if machine is self.head else ("--address", self.address)
        words = ("start", *place, "--node-ip-address", machine.address, "--num-cpus", "1", "--object-store-memory", "80000000")
        started = self.start_on(machine, "-m", "ray.scripts.scripts", *words, "--disable-usage-stats")
        assert "Ray runtime started" in "".join(started.communicate(timeout=240))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if lack := lack_of_network():
        pytest.skip(lack)
    with _short_folder() as folder, machines("head", "other") as both:
        cluster = Cluster(*both, folder)
        cluster.start()
        yield cluster


@contextmanager
def _short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it: their names must not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def disturb(cluster: Cluster, driver: "subprocess.Popen[str]", what: str) -> None:
    """Let something happen while a command runs."""
    head, other = cluster.head, cluster.other
    if what == "actor":
        kill(other.pids(ACTOR)[:1] or head.pids(ACTOR)[:1])
    elif what == "driver":
        kill(head.pids("tests.support.ray_driver"))
        driver.communicate(timeout=60)
    elif what == "node":
        other.kill_all()
        cluster.start_ray(other)
    elif what == "cable":
        other.pull_cable()
        time.sleep(5)
        other.plug_cable()
    else:  # for good: Ray gives the node up after a minute, and it comes again as another
        other.pull_cable()
        wait_for(lambda: driver.poll() is not None or not other.pids(ACTOR))
        other.plug_cable()
        other.kill_all()
        cluster.start_ray(other)


def drive(cluster: Cluster, folder: Path, tasks: int, *actors: str) -> "subprocess.Popen[str]":
    return cluster.start_on(cluster.head, "-m", "tests.support.ray_driver", folder, cluster.address, str(tasks), *actors)


def done(folder: Path) -> int:
    return len(list(folder.glob("slow-* done")))


def wait_for_both(cluster: Cluster, driver: "subprocess.Popen[str]", folder: Path) -> None:
    """Wait until both machines work and one has done something, or the driver has ended."""
    before = done(folder)
    wait_for(lambda: driver.poll() is not None or (cluster.other.pids(ACTOR) and done(folder) > before))


@pytest.mark.parametrize("what", FAULTS)
def test_every_task_is_done(
    what: str, cluster: Cluster, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    planned, faults, runs = 1 if what == "for good" else campaign(1, 10), 0, 0
    while faults < planned:
        (folder := tmp_path / f"run-{runs}").mkdir()
        driver, before = drive(cluster, folder, TASKS, "3"), faults
        while driver.poll() is None and faults < planned:
            wait_for_both(cluster, driver, folder)
            if driver.poll() is None:
                disturb(cluster, driver, what)
                faults += 1
                if what == "driver":
                    driver = drive(cluster, folder, TASKS, "3")
        out, err = driver.communicate(timeout=900)
        assert driver.returncode == 0, err
        assert json.loads(out) == []
        assert "Traceback" not in err
        assert done(folder) == TASKS
        in_hand = (faults - before) * (2 if what == "driver" else 1)
        assert len(list(folder.glob("slow-*.*"))) <= TASKS + in_hand, "only what was in hand is done again"
        assert not list(folder.glob(".ray-*"))
        runs += 1
    report(f"Ray on two machines, {what}: {faults} times, all of {runs} times {TASKS} tasks done")
