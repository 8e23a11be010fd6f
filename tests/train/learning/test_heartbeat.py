"""Signs of life: who ends in order is not missed; who ends otherwise, or falls silent, is named to all others."""

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.several_processes import free_port
from train.learning import heartbeat
from train.learning.heartbeat import Heartbeat
from train.learning.launch import Launch

COUNT = 3
ENDED = ["asked by SIGTERM", "ended with 2"]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_EVERY_S": 0.05, "_MISSED": 8, "_GRACE_S": 0.1}.items():
        monkeypatch.setattr(heartbeat, name, value)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been done to this process."""
    done: list[str] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: done.append(f"asked by {signal.Signals(number).name}"))
    monkeypatch.setattr(os, "_exit", lambda status: done.append(f"ended with {status}"))
    return done


class Three:
    """The heartbeats of three processes, all in this one."""

    def __init__(self) -> None:
        port = free_port()
        launches = [Launch(by="a test", rank=rank, count=COUNT, local_rank=rank, address="127.0.0.1", port=port) for rank in range(COUNT)]
        self.beats = {launch.rank: Heartbeat(launch) for launch in launches}
        for beat in self.beats.values():
            beat.start(self.beats[0].place)
        until(lambda: {peer.rank for _, peer in self.beats[0].peers()} == {1, 2})

    def leave(self, rank: int, error: Exception | None = None) -> None:
        """End the block of one process."""
        self.beats.pop(rank).__exit__(None if error is None else type(error), error, None)


@pytest.fixture
def three(killed: list[str]) -> Iterator[Three]:
    processes = Three()
    yield processes
    for rank in list(processes.beats):
        processes.leave(rank)


def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; the test's own limit ends it."""
    while not is_so():
        time.sleep(0.01)


def test_processes_that_live_are_left_alone(three: Three, killed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    time.sleep(0.8)
    assert killed == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("first", range(COUNT))
def test_a_process_that_leaves_in_order_is_not_missed(three: Three, killed: list[str], first: int) -> None:
    three.leave(first)
    time.sleep(0.8)
    assert killed == []


@pytest.mark.parametrize("gone", range(COUNT))
def test_an_end_of_one_process_reaches_all_others(three: Three, killed: list[str], gone: int, capsys: pytest.CaptureFixture[str]) -> None:
    three.leave(gone, RuntimeError("killed"))
    until(lambda: len(killed) == 2 * len(ENDED))
    assert sorted(killed) == sorted(2 * ENDED)
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert sorted(lines) == [
        f"error: got an end of process {gone} of 3, seen by process {rank}; expected all of them until the model is trained; see its own "
        "output for the reason; the same command continues from the last checkpoint"
        for rank in range(COUNT)
        if rank != gone
    ]


@pytest.mark.parametrize("silent", range(COUNT))
def test_a_silence_of_one_process_reaches_all_others(
    three: Three, killed: list[str], silent: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(three.beats[silent], "_say", lambda words: None)
    monkeypatch.setattr(three.beats[silent], "_listen", lambda connection, peer: connection.recv(4096) and "")
    monkeypatch.setattr(three.beats[silent], "_silent", lambda: "")
    until(lambda: len(killed) == 2 * len(ENDED))
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert {line.partition(",")[0] for line in lines} == {f"error: got no sign of process {silent} of 3 for 0 seconds"}
    assert {re.findall(r"seen by process (\d)", line)[0] for line in lines} == {str(rank) for rank in range(COUNT) if rank != silent}


def test_a_process_that_ends_by_itself_is_not_killed(three: Three, killed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_GRACE_S", 60.0)
    three.leave(1, RuntimeError("killed"))
    time.sleep(0.3)
    for rank in (0, 2):
        three.leave(rank, RuntimeError("connection closed"))
    assert killed == []


def test_strangers_are_not_listened_to(three: Three, killed: list[str]) -> None:
    port = int(re.findall(r'"port": (\d+)', three.beats[0].place)[0])
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 1000, b"\xff 1\n!lies\n"):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(words)
            time.sleep(0.1)
    time.sleep(0.8)
    assert killed == []
    assert sorted(peer.rank or 0 for _, peer in three.beats[0].peers()) == [1, 2]


def test_a_place_that_nobody_reaches_is_not_watched(killed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    launch = Launch(by="a test", rank=1, count=2, local_rank=1, address="127.0.0.1", port=free_port())
    with Heartbeat(launch) as beat:
        beat.start(json.dumps({"hosts": ["127.0.0.1", "no such host"], "port": free_port(), "token": "0123456789abcdef"}))
        time.sleep(0.6)
        assert beat.peers() == []
    assert killed == []
    said = "note: process 1 sends no signs of life (no free port of process 0 is open to it): if it hangs, so do others\n"
    assert capsys.readouterr().err == said


def test_without_ipv6_process_0_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], *, family: int = socket.AF_INET, **more: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError("Cannot assign requested address")
        return create(address, family=family, **more)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    with Heartbeat(Launch(by="a test", rank=0, count=2, local_rank=0, address="127.0.0.1", port=free_port())) as beat:
        port = json.loads(beat.place)["port"]
        socket.create_connection(("127.0.0.1", port)).close()
