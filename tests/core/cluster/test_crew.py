"""Tasks on actors of a real Ray: what becomes of them when actors end or raise; and, in ``make soak`` alone, refuse or are interrupted.

The first test is the only one of the suite that starts a Ray. The others of Ray, here and elsewhere, are marked ``soak``.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lugpi_core.cluster.connection import Share, connected
from lugpi_core.cluster.crew import ActorWork, TaskResult
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted
from tests.support.ray_tasks import load, run_tasks


@pytest.fixture(scope="module", autouse=True)
def connection(ray_address: str) -> Iterator[None]:
    """Be connected during the tests of this module."""
    with connected(ray_address):
        yield


def run(folder: Path, *tasks: str) -> dict[str, TaskResult[str]]:
    """Do tasks on two actors; return their results."""
    results: list[TaskResult[str]] = []
    run_tasks(ActorWork(load=load, inputs=folder, share=Share(), most=2, shared=folder), tasks, results.append)
    assert len({result.task for result in results}) == len(results), "each task has one result"
    return {result.task: result for result in results}


def starts(folder: Path) -> Counter[str]:
    """How often each task was started, and how many actors were ("load")."""
    return Counter(path.stem for path in folder.iterdir())


@contextmanager
def interrupted_when(folder: Path, *names: str) -> Iterator[None]:
    """Send this process SIGINT, during the block, once each of these files is there."""

    def send() -> None:
        deadline_s = time.monotonic() + 100
        for name in names:
            while not (folder / name).exists() and time.monotonic() < deadline_s:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(Stopped), terminated_like_interrupted():
        yield
    thread.join()


def test_a_task_whose_actor_ends_goes_to_another(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(tmp_path, "ok-1", "once-2", "die-3", "raise-4", "told-5", "say-6", "gpus-7")
    assert {task for task, result in done.items() if not result.failure} == {"ok-1", "once-2", "told-5", "say-6", "gpus-7"}
    assert done["once-2"].value == "once-2 done"
    assert done["gpus-7"].value == "''", "an actor without GPUs sees none"
    assert "Worker unexpectedly exits" in done["die-3"].failure
    assert "ZeroDivisionError: a bug (ray_tasks.py:" in done["raise-4"].failure
    started = starts(tmp_path)
    assert started.pop("load") >= 8, "an actor that ended or raised does no other task"
    assert started == {"ok-1": 1, "once-2": 2, "die-3": 3, "raise-4": 3, "told-5": 2, "say-6": 1, "gpus-7": 1}
    out, err = capfd.readouterr()
    assert out == "", "nothing of Ray's on stdout"
    assert "a line of a task\n" in err
    assert "10 %" not in err
    assert "once-2: its actor on " in err
    assert "warning: die-3 failed 3 times" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob(".ray-*"))


@pytest.mark.soak
def test_a_refusal_ends_all_and_the_others_stop_at_a_safe_point(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="got a bad task; expected another; give another"):
        run(tmp_path, "wait-1", "refuse-2", "ok-3")
    assert (tmp_path / "wait-1 stopped").exists()
    assert starts(tmp_path)["ok-3"] == 0
    for task, error in (("lack-1", "nothing here on .*; expected the same files under the same paths"), ("full-1", "No space left")):
        with pytest.raises((InputError, OSError), match=error):
            run(tmp_path, task)


@pytest.mark.soak
def test_actors_that_do_not_start_end_all(tmp_path: Path) -> None:
    (tmp_path / "die at start").touch()
    with pytest.raises(InputError, match=r"3 actors that ended while they started, the last: Worker unexpectedly exits .*; expected"):
        run(tmp_path, "ok-1")
    (tmp_path / "die at start").rename(tmp_path / "refuse at start")
    with pytest.raises(InputError, match="got a bad start"):
        run(tmp_path, "ok-1")


@pytest.mark.soak
def test_the_first_interrupt_stops_at_safe_points_and_the_second_at_once(tmp_path: Path) -> None:
    with interrupted_when(tmp_path, "wait-2.0"):
        run(tmp_path, "wait-1", "wait-2", "ok-3")
    assert starts(tmp_path) == {"load": 2, "wait-1": 1, "wait-2": 1, "wait-1 stopped": 1, "wait-2 stopped": 1}
    with interrupted_when(tmp_path, "deaf-1.0", "deaf-1 asked"):
        run(tmp_path, "deaf-1", "ok-2")
