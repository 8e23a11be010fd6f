"""A signal becomes a request; the second one ends the process; earlier handlers are restored."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from lugpi_core.runtime.stopping import Stopped, StopRequest, raise_wrapped_stop, stop_on_signals, terminated_like_interrupted
from tests.support.checkout import ROOT

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class _Before(Exception):
    """Raised by the earlier handlers."""


def _as_before(number: int, _: Any) -> None:
    raise _Before(signal.Signals(number).name)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Install handlers of our own, because the suite may have been started with a signal ignored."""
    before = {number: signal.signal(number, _as_before) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in ALL]


def test_without_a_signal_there_is_no_request() -> None:
    StopRequest().check()
    with stop_on_signals() as stop:
        stop.check()
        assert stop.signal_number is None


def _block(*numbers: int, check: bool = False) -> StopRequest:
    """Enter a block, send these signals, and return whether a stop was requested."""
    with stop_on_signals() as stop:
        for number in numbers:
            signal.raise_signal(number)
            assert stop.signal_number == numbers[0]
        if check:
            stop.check()
            pytest.fail("check says nothing")
    return stop


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_waits_for_a_check(number: int) -> None:
    with pytest.raises(Stopped, match=signal.Signals(number).name) as stopped:
        _block(number, check=True)
    assert stopped.value.signal_number == number
    assert isinstance(stopped.value, KeyboardInterrupt), "what is open is closed as after Ctrl-C"
    assert not isinstance(stopped.value, Exception), "no handler of errors catches it"


@pytest.mark.parametrize("first", ALL)
@pytest.mark.parametrize("second", ALL)
def test_the_second_signal_ends_the_process_as_usual(first: int, second: int) -> None:
    with pytest.raises(_Before, match=signal.Signals(second).name):
        _block(first, second)


@pytest.mark.parametrize("second", ALL)
@pytest.mark.parametrize(("after_s", "ends"), [(0.0, False), (9.9, False), (10.1, True)])
def test_what_a_launcher_passes_on_is_the_same_request(second: int, after_s: float, ends: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("lugpi_core.runtime.stopping.time", SimpleNamespace(monotonic=lambda: now_s))

    def block() -> None:
        nonlocal now_s
        with stop_on_signals(echo_s=10.0) as stop:
            signal.raise_signal(signal.SIGUSR1)
            now_s += after_s
            for _ in range(2):
                signal.raise_signal(second)
            assert stop.signal_number == signal.SIGUSR1

    with pytest.raises(_Before, match=signal.Signals(second).name) if ends else pytest.raises(Stopped, match="SIGUSR1"):
        block()
    assert _handlers() == [_as_before] * len(ALL)


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("asked", [True, False])
def test_handlers_are_restored_however_the_block_ends(ending: type[BaseException] | None, asked: bool) -> None:
    def block() -> None:
        with stop_on_signals():
            assert _as_before not in _handlers()
            if asked:
                signal.raise_signal(signal.SIGTERM)
            if ending is not None:
                raise ending

    expected = ending or (Stopped if asked else None)
    with nullcontext() if expected is None else pytest.raises(expected):
        block()
    assert _handlers() == [_as_before] * len(ALL)


def test_an_unhandled_request_is_raised_at_the_end_of_the_block() -> None:
    with pytest.raises(Stopped) as stopped:
        _block(signal.SIGTERM)
    assert stopped.value.signal_number == signal.SIGTERM


@pytest.mark.parametrize("ignored", ALL)
def test_an_ignored_signal_stays_ignored(ignored: int) -> None:
    signal.signal(ignored, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(ignored)
        stop.check()
        assert signal.getsignal(ignored) is signal.SIG_IGN
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_an_ignored_sigterm_stays_ignored() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with terminated_like_interrupted():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_in_another_thread_no_request_is_made_and_no_handler_is_touched() -> None:
    found: list[Any] = []

    def work() -> None:
        with terminated_like_interrupted(), stop_on_signals() as stop:
            found.extend([stop.signal_number, _handlers()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None, [_as_before] * len(ALL)]


def test_sigterm_ends_a_block_as_an_interrupt_does() -> None:
    with pytest.raises(KeyboardInterrupt) as stopped, terminated_like_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert isinstance(stopped.value, Stopped)
    assert stopped.value.signal_number == signal.SIGTERM
    assert _handlers() == [_as_before] * len(ALL)


def test_the_second_sigterm_ends_a_command_at_once() -> None:
    with terminated_like_interrupted():
        with pytest.raises(Stopped):
            _block(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert _handlers() == [_as_before] * len(ALL)


def test_nested_blocks_handle_signals_from_the_inside_out() -> None:
    asked: list[tuple[int | None, int | None]] = []

    def block() -> None:
        with stop_on_signals() as outer, stop_on_signals() as inner:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
                asked.append((inner.signal_number, outer.signal_number))

    with pytest.raises(_Before):
        block()
    assert asked == [(signal.SIGTERM, None), (signal.SIGTERM, signal.SIGINT)]
    assert _handlers() == [_as_before] * len(ALL)


# Signals itself twice and never checks for a request.
DEAF = """
import os, signal, time
from lugpi_core.runtime.stopping import stop_on_signals
with stop_on_signals():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    time.sleep(60)
"""


def test_a_process_that_never_checks_is_ended_by_the_second_signal() -> None:
    done = subprocess.run([sys.executable, "-c", DEAF], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=30, check=False)
    assert done.returncode == -signal.SIGTERM


def test_an_interrupt_that_a_library_wrapped_is_still_one() -> None:
    def load() -> None:
        raise OSError("a folder that does not load")

    try:
        try:
            raise Stopped(signal.SIGTERM)
        except KeyboardInterrupt:
            load()
    except OSError as error:
        with pytest.raises(Stopped):
            raise_wrapped_stop(error)
    raise_wrapped_stop(OSError("of its own"))


@pytest.mark.parametrize("number", ALL)
def test_an_interrupt_that_a_library_swallowed_ends_the_command(number: signal.Signals) -> None:
    def load() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        raise ValueError("a file that does not load")

    with pytest.raises(Stopped) as stopped, terminated_like_interrupted():
        load()
    assert stopped.value.signal_number == number
    assert _handlers() == [_as_before] * len(ALL)


def test_an_error_without_a_signal_stays_itself() -> None:
    with pytest.raises(ValueError, match="does not load"), terminated_like_interrupted():
        raise ValueError("a file that does not load")
