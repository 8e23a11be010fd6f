"""SIGTERM and Ctrl-C: the work ends at the next safe place, and what is done is kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has stopped at a safe place; ``signal_number`` is what asked."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def raise_wrapped_stop(error: BaseException) -> None:
    """Raise the interrupt that a library has turned into an error of its own, if there is one behind it."""
    behind = error.__cause__ or error.__context__
    while behind is not None:
        if isinstance(behind, KeyboardInterrupt):
            raise behind
        behind = behind.__cause__ or behind.__context__


class StopRequest:
    """Whether somebody has asked the run to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def check(self) -> None:
        """Raise Stopped when a stop is asked for; to be called wherever the work can be left."""
        if self.signal_number is not None:
            raise Stopped(self.signal_number)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise inside the block as Ctrl-C does, so that what is open is closed and the run says how to go on; unless the process
    was told to ignore it."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT inside the block into a request; the second one ends the process as it always did. A request that
    nobody has heeded is raised at the end of the block.

    Signals reach the main thread only: elsewhere the request is never made. A SIGINT that the process was told to ignore stays ignored, as
    in the background jobs of a shell.
    """
    request = StopRequest()
    before: dict[signal.Signals, Any] = {}

    def ask(number: int, _: FrameType | None) -> None:
        request.signal_number = number
        for one, handler in before.items():
            signal.signal(one, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    request.check()  # asked for after the last look
