"""A signal becomes a request; the second one ends the process; what was there before is there again."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT

from lugpi_core.stopping import Stopped, StopRequest, stop_on_signals, terminated_like_interrupted

BOTH = (signal.SIGTERM, signal.SIGINT)


class _Before(Exception):
    """What the handlers of before raise."""


def _as_before(number: int, _: Any) -> None:
    raise _Before(signal.Signals(number).name)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers of our own under every test: the suite may have been started with a signal ignored."""
    before = {number: signal.signal(number, _as_before) for number in BOTH}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _handlers() -> list[Any]:
    return [signal.getsignal(number) for number in BOTH]


def test_nothing_is_asked_for_until_somebody_asks() -> None:
    StopRequest().check()
    with stop_on_signals() as stop:
        stop.check()
        assert stop.signal_number is None


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_waits_for_a_check(number: int) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(number)
        assert stop.signal_number == number
        with pytest.raises(Stopped, match=signal.Signals(number).name) as stopped:
            stop.check()
    assert stopped.value.signal_number == number
    assert isinstance(stopped.value, KeyboardInterrupt), "what is open is closed as after Ctrl-C"
    assert not isinstance(stopped.value, Exception), "no handler of errors catches it"


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_the_second_signal_does_at_once_what_it_did_before(first: int, second: int) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(first)
        with pytest.raises(_Before, match=signal.Signals(second).name):
            signal.raise_signal(second)
        assert stop.signal_number == first


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("asked", [True, False])
def test_the_handlers_of_before_are_there_again_however_the_block_ends(ending: type[BaseException] | None, asked: bool) -> None:
    def block() -> None:
        with stop_on_signals():
            assert _as_before not in _handlers()
            if asked:
                signal.raise_signal(signal.SIGTERM)
            if ending is not None:
                raise ending

    if ending is None:
        block()
    else:
        with pytest.raises(ending):
            block()
    assert _handlers() == [_as_before, _as_before]


@pytest.mark.parametrize("ignored", BOTH)
def test_a_signal_that_is_ignored_stays_so(ignored: int) -> None:
    signal.signal(ignored, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(ignored)
        stop.check()
        assert signal.getsignal(ignored) is signal.SIG_IGN
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_a_command_that_was_told_to_ignore_sigterm_ignores_it() -> None:
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
    assert found == [None, [_as_before, _as_before]]


def test_sigterm_ends_a_block_as_an_interrupt_does() -> None:
    with pytest.raises(KeyboardInterrupt) as stopped, terminated_like_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert isinstance(stopped.value, Stopped)
    assert stopped.value.signal_number == signal.SIGTERM
    assert _handlers() == [_as_before, _as_before]


def test_inside_a_command_the_second_sigterm_ends_it_at_once_and_a_later_one_too() -> None:
    with terminated_like_interrupted():
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
            with pytest.raises(Stopped):
                signal.raise_signal(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert _handlers() == [_as_before, _as_before]


def test_one_inside_another_asks_the_inner_one_first_then_the_outer_one_and_then_ends() -> None:
    with stop_on_signals() as outer, stop_on_signals() as inner:
        signal.raise_signal(signal.SIGTERM)
        assert (inner.signal_number, outer.signal_number) == (signal.SIGTERM, None)
        signal.raise_signal(signal.SIGINT)
        assert (inner.signal_number, outer.signal_number) == (signal.SIGTERM, signal.SIGINT)
        with pytest.raises(_Before):
            signal.raise_signal(signal.SIGTERM)
    assert _handlers() == [_as_before, _as_before]


# Asks itself twice, and never looks whether it was asked.
DEAF = """
import os, signal, time
from lugpi_core.stopping import stop_on_signals
with stop_on_signals():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
    time.sleep(60)
"""


def test_a_process_that_never_checks_is_ended_by_the_second_signal() -> None:
    done = subprocess.run([sys.executable, "-c", DEAF], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=30, check=False)
    assert done.returncode == -signal.SIGTERM
