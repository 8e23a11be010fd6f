"""Several processes that train one model, forked from the test, so that they import nothing again. They find each other by the variables of
torchrun; process 0 listens itself."""

import contextlib
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO, TextIOWrapper
from pathlib import Path

import torch

CRASHED = 70
# No test waits longer for a process.
_LIMIT_S = 120


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it printed."""

    status: int
    stdout: str
    stderr: str


class Group:
    """Processes that run ``work`` side by side.

    Args:
        count: their number.
        work: what each does, given its rank; returns the exit status.
        folder: for what they print.
    """

    def __init__(self, count: int, work: Callable[[int], int], folder: Path) -> None:
        assert torch.version.cuda is None, "a process that is forked after CUDA was used cannot use it"
        folder.mkdir(exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.pids = [self._fork(rank, count, work) for rank in range(count)]

    def wait(self, ranks: Sequence[int] | None = None) -> list[Ended]:
        """Return how each of these processes ended; by default of all."""
        ended = []
        for rank in range(len(self.pids)) if ranks is None else ranks:
            _, status = os.waitpid(self.pids[rank], 0)
            said = [(self.folder / f"{rank}.{stream}").read_text() for stream in ("out", "err")]
            ended.append(Ended(status=os.waitstatus_to_exitcode(status), stdout=said[0], stderr=said[1]))
        return ended

    def _fork(self, rank: int, count: int, work: Callable[[int], int]) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, of threads, which libraries have
            pid = os.fork()
        if pid:
            return pid
        status = CRASHED
        try:
            signal.alarm(_LIMIT_S)
            for stream, number in (("out", 1), ("err", 2)):
                os.dup2(os.open(self.folder / f"{rank}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (TextIOWrapper(FileIO(number, "w", closefd=False), line_buffering=True) for number in (1, 2))
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            os.environ.update(ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(self.port))
            status = work(rank)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else CRASHED
        except BaseException:  # of a fork nothing else may go on
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)
