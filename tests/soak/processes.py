"""Forked child processes: cheap, because everything is imported already; no HDF5 handle is open when they start."""

import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import NoReturn

from lugpi_core.errors import InputError

DONE, REFUSED, FAILED, BROKEN = 0, 2, 3, 70
KILLED = -signal.SIGKILL
Work = Callable[[], object]


def start(work: Work) -> int:
    """Do ``work`` in a forked process; return its process id."""
    return os.fork() or _end_after(work)


def wait(pid: int, timeout_s: float = 30) -> int:
    """Return how a process ended: DONE, REFUSED (InputError), FAILED (OSError), BROKEN (anything else) or its negative signal number."""
    if not ended(pid, timeout_s):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise AssertionError(f"the process still runs after {timeout_s} s")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended(pid: int, timeout_s: float) -> bool:
    """Wait until a process ends, without reaping it; return whether it ended in time."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(max(timeout_s, 0) * 1000))
    finally:
        os.close(handle)


def kill(pid: int) -> int:
    """Kill a child process and return how it ended, which may have happened before."""
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def run(work: Work) -> int:
    """Do ``work`` in a forked process and return how it ended."""
    return wait(start(work))


def _end_after(work: Work) -> NoReturn:
    status = BROKEN
    try:
        work()
        status = DONE
    except InputError:
        status = REFUSED
    except OSError as error:
        status = FAILED if error.errno else BROKEN
    finally:
        if status == BROKEN:
            traceback.print_exc()
        os._exit(status)
