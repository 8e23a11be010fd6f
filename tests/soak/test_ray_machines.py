"""Ray on two machines of a network, and S3 on a third, while processes are killed and cables pulled: the bytes of one process.

The machines are network namespaces of this one (``tests/support/network.py``).
"""

import hashlib
import json
import os
import random
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

from tests.support.checkout import ROOT, Command
from tests.support.network import Machine, lack_of_network, machines
from tests.support.s3_server import ENVIRONMENT

pytestmark = pytest.mark.soak
ACTOR = "TaskActor"
TASKS = 40
FAULTS = ("actor", "driver", "node", "cable", "for good")
ROWS, SHARD_ROWS = 240, 8
FLAGS = ("--dataset", "demo", "--limit", str(ROWS), "--generator", "demo", "--encoders", "clip-demo", "--shard-rows", str(SHARD_ROWS))
# It logs every request; nobody reads that, and it would stand still once the pipe is full.
SERVER = """
import os, sys
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
from moto.server import main
main(["-H", sys.argv[1], "-p", "5000"])
"""
OBJECTS = """
import boto3, hashlib, json, sys
client = boto3.client("s3")
if sys.argv[1] == "make":
    client.create_bucket(Bucket="runs")
else:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="runs")
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    read = lambda key: client.get_object(Bucket="runs", Key=key)["Body"].read()
    print(json.dumps({key: hashlib.sha256(read(key)).hexdigest() for key in keys if "/shard-" in key and key.endswith(".h5")}))
"""


def wait_for(condition: Callable[[], object], timeout_s: float = 240) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert condition()


class Cluster:
    """Two machines with a CPU of Ray each, and one with an S3 server."""

    def __init__(self, head: Machine, other: Machine, server: Machine, folder: Path) -> None:
        self.head, self.other, self._server = head, other, server
        self.address, self.server_address = f"{head.address}:6379", f"{server.address}:5000"
        self._folder = folder
        self._environment = {
            **os.environ,
            **ENVIRONMENT,
            "AWS_ENDPOINT_URL": f"http://{self.server_address}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "disabled",
            "RAY_TMPDIR": str(folder),
        }

    def start(self) -> None:
        self.start_on(self._server, "-c", SERVER, self._server.address)
        self.start_ray(self.head)
        self.start_ray(self.other)
        assert "Error" not in self.start_on(self.head, "-c", OBJECTS, "make").communicate(timeout=120)[1]

    def start_on(self, machine: Machine, *words: str | Path) -> "subprocess.Popen[str]":
        """Start ``python …`` on a machine."""
        return machine.start(sys.executable, *words, env=self._environment, cwd=ROOT)

    def start_ray(self, machine: Machine) -> None:
        """Start Ray on a machine where nothing of it runs."""
        place = ("--head", "--port", "6379") if machine is self.head else ("--address", self.address)
        words = ("start", *place, "--node-ip-address", machine.address, "--num-cpus", "1", "--object-store-memory", "80000000")
        started = self.start_on(machine, "-m", "ray.scripts.scripts", *words, "--disable-usage-stats")
        assert "Ray runtime started" in "".join(started.communicate(timeout=240))

    def command(self, *words: str | Path) -> "subprocess.Popen[str]":
        """Start a command on the head."""
        return self.start_on(self.head, "-m", *words, "--ray", self.address)

    def objects(self) -> dict[str, str]:
        """Return the sha256 of all shards in the bucket."""
        hashes: dict[str, str] = json.loads(self.start_on(self.head, "-c", OBJECTS, "read").communicate(timeout=120)[0])
        return hashes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if lack := lack_of_network():
        pytest.skip(lack)
    with _short_folder() as folder, machines("head", "other", "server") as three:
        cluster = Cluster(*three, folder)
        cluster.start()
        yield cluster


@contextmanager
def _short_folder() -> Iterator[Path]:
    """Ray's sockets lie in it: their names must not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(new_command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of one process."""
    run = tmp_path_factory.mktemp("alone")
    assert new_command("-m", "featurize", *FLAGS, "--run-dir", run, timeout_s=1200).returncode == 0
    return shards(run)


def shards(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.glob("tokens/*/shard-*.h5"))}


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
        kill([pid for words in ("tests.support.ray_driver", f"--ray {cluster.address}") for pid in head.pids(words)])
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


def run_through(cluster: Cluster, given: tuple[str | Path, ...], what: str, *, within_s: float) -> str:
    """Run a command, let something happen to it, and run it again if that ended it; return what the last printed."""
    driver = cluster.command(*given)
    wait_for(lambda: cluster.other.pids(ACTOR) or driver.poll() is not None)
    time.sleep(random.Random(what).uniform(5, within_s))
    disturb(cluster, driver, what)
    if what == "driver":
        driver = cluster.command(*given)
    out, err = driver.communicate(timeout=900)
    assert driver.returncode == 0, err
    assert "Traceback" not in err
    return out


def fill(cluster: Cluster, given: tuple[str | Path, ...], what: str) -> float:
    """Fill a store by ``run_through``; return how many images the last command drew."""
    figures = json.loads(run_through(cluster, given, what, within_s=20).splitlines()[-1])
    assert figures["complete"]
    return float(figures["rows"].get("drawn", 0))


@pytest.mark.parametrize("what", FAULTS)
def test_a_folder_of_two_machines_is_that_of_one_process(
    what: str, cluster: Cluster, alone: dict[str, bytes], tmp_path: Path, report: Callable[[str], None]
) -> None:
    run = tmp_path / "run"
    drawn = fill(cluster, ("featurize", *FLAGS, "--run-dir", run, "--ray-actors", "3"), what)
    assert shards(run) == alone
    assert drawn <= ROWS
    assert not list(run.glob(".ray-*"))
    report(f"Ray on two machines, {what}: {len(alone)} shards, the same bytes; the last command drew {drawn:g} of {ROWS} images")


@pytest.mark.parametrize("what", ["driver", "node", "for good"])
def test_a_bucket_of_two_machines_is_that_of_one_process(
    what: str, cluster: Cluster, alone: dict[str, bytes], tmp_path: Path, report: Callable[[str], None]
) -> None:
    run = f"s3://runs/{what.replace(' ', '-')}"
    drawn = fill(cluster, ("featurize", *FLAGS, "--run-dir", run, "--scratch", tmp_path), what)
    prefix = run.removeprefix("s3://runs/")
    hashes = {key.removeprefix(f"{prefix}/"): value for key, value in cluster.objects().items() if key.startswith(f"{prefix}/")}
    assert hashes == {name: hashlib.sha256(data).hexdigest() for name, data in alone.items()}
    report(f"Ray on two machines and S3, {what}: {len(alone)} shards, the same bytes; the last command drew {drawn:g} of {ROWS} images")


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


def test_a_reply_that_was_lost_with_its_connection_is_not_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """Only one side knows of it: Ray sends nothing there that would be answered by that, for minutes."""
    busy = f"ray::{ACTOR}.do"
    driver = drive(cluster, tmp_path, TASKS, "3")
    wait_for(lambda: cluster.other.pids(busy) and done(tmp_path) > 4)
    (pid,) = cluster.other.pids(busy)
    cluster.other.pull_cable()
    time.sleep(1.5)  # a task takes a second
    cluster.other.lose_connections(pid)
    time.sleep(4)  # what waits for the address of the other machine is given up
    cluster.other.plug_cable()
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err
    assert json.loads(out) == []
    assert "its connection is lost; it is given out again" in err
    assert done(tmp_path) == TASKS


@pytest.mark.parametrize("what", ["driver", "node"])
def test_tables_and_trials_of_two_machines_are_those_of_one_process(what: str, cluster: Cluster, command: Command, tmp_path: Path) -> None:
    flags = ("--dataset", "demo", "--limit", "240", "--text-model", "demo", "--epochs", "6", "--device", "cpu", "--checkpoint-minutes", "0")
    tables = ("train", "tables", *flags, "--seeds", "1", "--rows", "baseline", "teacher-none", "student-none", "--run-dir")
    assert command(*tables, tmp_path / "alone").returncode == 0
    sweep = ("train", "sweep", *flags, "--teachers", "teacher-none", "--trials", "4", "--over", "learning_rate=1e-4:1e-2", "--run-dir")
    assert command(*sweep, tmp_path / "alone").returncode == 0
    for given in ((*tables, tmp_path / "run"), (*sweep, tmp_path / "run")):
        run_through(cluster, given, what, within_s=15)
    assert predictions(tmp_path / "run") == predictions(tmp_path / "alone")
    assert trials(tmp_path / "run") == trials(tmp_path / "alone")


def predictions(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.glob("*/predictions*"))}


def trials(run: Path) -> dict[str, object]:
    records = {path.parent.name: json.loads(path.read_text()) for path in sorted(run.glob("sweep/*/trial-*/trial.json"))}
    return {name: [record["parameters"], record["validation_accuracy"]] for name, record in records.items()}


def test_what_is_no_cluster_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    for address, told in (
        (f"{cluster.head.address}:1", "where nothing answers (Connection refused)"),
        ("10.77.0.99:6379", "where nothing answers"),
        (cluster.server_address, "where something else than Ray answers"),
    ):
        refused = cluster.start_on(cluster.head, "-m", "featurize", *FLAGS, "--run-dir", tmp_path / "run", "--ray", address)
        _, err = refused.communicate(timeout=120)
        assert refused.returncode == 2
        assert f"error: got --ray {address}, {told}" in err
        assert not (tmp_path / "run").exists()
