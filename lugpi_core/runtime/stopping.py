"""SIGTERM, Ctrl-C, SIGUSR1 and SIGUSR2: the work stops at the next safe point, and what is done is kept.

A batch system sends SIGTERM, or what the job asked for (``sbatch --signal=USR1@120``), some time before it kills the job.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(KeyboardInterrupt):
    """The run has stopped at a safe point, because of the signal ``signal_number``."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def raise_wrapped_stop(error: BaseException) -> None:
    """Raise the interrupt that a library has wrapped in an error of its own, if there is one."""
    cause = error.__cause__ or error.__context__
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise cause
        cause = cause.__cause__ or cause.__context__


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def check(self) -> None:
        """Raise Stopped if a stop was requested. Called wherever the work can be interrupted."""
        if self.signal_number is not None:
            raise Stopped(self.signal_number)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let the signals ``STOPPING`` raise ``Stopped`` inside the block, so that files are closed and the run says how to continue.

    The block ends with ``Stopped`` even if a library has turned the interrupt into an error of its own, such as a file that does not load,
    or into another KeyboardInterrupt, as Ray does.
    A signal that the process ignores stays ignored.
    """
    request = StopRequest()

    def stop(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        raise Stopped(number)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    except BaseException as error:
        if request.signal_number is None or isinstance(error, Stopped):
            raise
        raise Stopped(request.signal_number) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_on_signals(*, echo_s: float = 0.0) -> Iterator[StopRequest]:
    """Turn the first of the signals ``STOPPING`` inside the block into a request; the second one ends the process as usual.

    Others within ``echo_s`` seconds after the first are the same request, passed on by a launcher.

    An unhandled request raises ``Stopped`` when the block ends. Signals reach only the main thread: in other threads no request is ever
    made. A signal that the process ignores stays ignored, like SIGINT in the background jobs of a shell.
    """
    request, asked_at_s = StopRequest(), 0.0
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked_at_s
        now_s = time.monotonic()
        is_first = request.signal_number is None
        if is_first:
            request.signal_number, asked_at_s = number, now_s
        if (is_first and echo_s) or now_s - asked_at_s < echo_s:
            return
        for earlier, handler in before.items():
            signal.signal(earlier, handler)
        if not is_first:
            signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    request.check()  # it may have come after the last check
