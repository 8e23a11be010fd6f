"""What actors of Ray do in tests: each task is a word ``WHAT-NUMBER``; what was started is in a folder of the test's."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lugpi_core.cluster.crew import ActorWork, RayCrew, TaskResult
from lugpi_core.errors import InputError
from lugpi_core.files import write_text


def run_tasks(work: ActorWork[str], tasks: Iterable[str], on_result: Callable[[TaskResult[str]], object]) -> None:
    """Do tasks on actors, which end as soon as there is no task for them; ``on_result`` is called with each result as it arrives."""
    with RayCrew(work) as crew:
        for task in tasks:
            crew.give(task)
        while crew.is_working:
            for result in crew.results():
                on_result(result)
            crew.release_idle()


def load(folder: Path) -> Callable[[str], str]:
    """Return what does a task; an actor may end or refuse already here."""
    (folder / f"load.{os.getpid()}").touch()
    if (folder / "die at start").exists():
        os._exit(3)
    if (folder / "refuse at start").exists():
        raise InputError(got="a bad start", expected="another", do="start elsewhere")
    while (folder / "slow start").exists():
        time.sleep(0.01)

    def do(task: str) -> str:
        tries = len(list(folder.glob(f"{task}.*")))
        (folder / f"{task}.{tries}").write_text(str(os.getpid()))
        return WHAT[task.partition("-")[0]](folder, task, tries)

    return do


def _ok(_: Path, task: str, __: int) -> str:
    return f"{task} done"


def _die(*_: object) -> str:
    os._exit(3)


def _once(folder: Path, task: str, tries: int) -> str:
    return _ok(folder, task, tries) if tries else _die()


def _told(folder: Path, task: str, tries: int) -> str:
    if not tries:
        os.kill(os.getpid(), signal.SIGTERM)
    return _ok(folder, task, tries)


def _raise(*_: object) -> str:
    raise ZeroDivisionError("a bug")


def _refuse(*_: object) -> str:
    raise InputError(got="a bad task", expected="another", do="give another")


def _lack(folder: Path, *_: object) -> str:
    return (folder / "nothing here").read_text()


def _full(*_: object) -> str:
    raise OSError(28, "No space left on device", "a file")


def _say(folder: Path, task: str, tries: int) -> str:
    print("a line of a task\n\r10 %", file=sys.stderr)
    return _ok(folder, task, tries)


def _gpus(*_: object) -> str:
    return repr(os.environ.get("CUDA_VISIBLE_DEVICES"))


def _wait(folder: Path, task: str, _: int) -> str:
    """Wait to be interrupted, and note it."""
    try:
        return _sleep()
    except KeyboardInterrupt:
        (folder / f"{task} stopped").touch()
        raise


def _sleep(*_: object) -> str:
    deadline_s = time.monotonic() + 120
    while time.monotonic() < deadline_s:
        time.sleep(0.01)
    return "waited in vain"


def _deaf(folder: Path, task: str, _: int) -> str:
    """Wait, and note that this is to be interrupted, but go on."""
    try:
        return _sleep()
    except KeyboardInterrupt:
        (folder / f"{task} asked").touch()
        return _sleep()


def _slow(folder: Path, task: str, tries: int) -> str:
    """Take a second, then write a file that two may write at the same time."""
    time.sleep(1)
    write_text(folder / f"{task} done", task)
    return _ok(folder, task, tries)


WHAT: dict[str, Callable[[Path, str, int], str]] = {
    "ok": _ok,
    "die": _die,
    "once": _once,
    "told": _told,
    "raise": _raise,
    "refuse": _refuse,
    "lack": _lack,
    "full": _full,
    "say": _say,
    "gpus": _gpus,
    "wait": _wait,
    "deaf": _deaf,
    "slow": _slow,
}
