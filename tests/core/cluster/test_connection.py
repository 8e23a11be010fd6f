"""Addresses of Ray: what is none is refused in one line and a few seconds, and nodes that differ from the driver are refused too."""

import platform
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lugpi_core.cluster import actor, connection
from lugpi_core.cluster.actor import Setup
from lugpi_core.cluster.connection import AUTO, LOCAL, Cluster, Share, actors_for, connected
from lugpi_core.cluster.node import actor_class
from lugpi_core.errors import InputError

CONNECT = connection._connect
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@pytest.fixture
def serve() -> Iterator[Callable[[bytes | None], str]]:
    """Start a server that answers its first client so, or never (None); return its address."""
    sockets: list[socket.socket] = []

    def serve(answer: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def run() -> None:
            client, _ = server.accept()
            sockets.append(client)
            client.recv(100)
            client.sendall(answer or b"")

        if answer is not None:
            threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield serve
    for each in sockets:
        each.close()


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Ray runs on this machine, and nothing connects to one."""
    monkeypatch.setattr(connection, "ANSWER_S", 0.3)
    monkeypatch.setattr(connection, "_connect", lambda address: pytest.fail(f"connects to {address}"))
    monkeypatch.setattr(connection, "_set_environment", lambda _: None)
    monkeypatch.delitem(connection.sys.modules, "ray", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refused(address: str) -> str:
    with pytest.raises(InputError) as caught, connected(address):
        pass
    return str(caught.value)


def test_an_address_where_no_ray_answers_is_refused(serve: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    assert f"got --ray {closed}, where nothing answers (Connection refused)" in refused(closed)
    assert "where nothing answers (timed out)" in refused(serve(None))
    assert "where something else than Ray answers" in refused(serve(b"HTTP/1.0 404 Not Found\r\n"))
    for word in ("head", "head:", ":6379", "head:six", "head:66000"):
        assert f"got --ray {word}, which is no HOST:PORT" in refused(word)
    assert "ray job submit" in refused("ray://head:10001")
    monkeypatch.setenv("RAY_ADDRESS", closed)
    assert f"got RAY_ADDRESS {closed}" in refused(AUTO)


def test_no_ray_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.importlib.util, "find_spec", lambda _: None)
    assert "pip install 'lugpi[ray]'" in refused(LOCAL)


def test_auto_is_the_cluster_that_runs_here_or_one_of_its_own(
    serve: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert connection._resolved(AUTO) == LOCAL
    (tmp_path / "ray").mkdir()
    record = tmp_path / "ray" / "ray_current_cluster"
    record.write_text("127.0.0.1:1")
    assert connection._resolved(AUTO) == LOCAL, "that one has ended"
    record.write_text(serve(SETTINGS))
    assert connection._resolved(AUTO) == AUTO
    monkeypatch.setenv("RAY_ADDRESS", address := serve(SETTINGS))
    assert connection._resolved(AUTO) == address
    assert connection._resolved(LOCAL) == LOCAL


@pytest.mark.parametrize(
    ("share", "given", "expected"),
    [
        (Share(), None, 6),
        (Share(), 9, 9),
        (Share(cpus=0.5), None, 12),
        (Share(gpus=1), None, 1),
        (Share(gpus=0.25), None, 4),
        (Share(cpus=2, gpus=0.1), None, 2),
        (Share(cpus=8), None, 1),
    ],
)
def test_actors_are_as_many_as_nodes_have_room_for(share: Share, given: int | None, expected: int) -> None:
    cluster = Cluster(resources=({"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}), is_own=False)
    assert actors_for(cluster, share, given, flag="--gpus-per-model") == expected


def test_a_ray_of_its_own_without_room_is_refused() -> None:
    own = Cluster(resources=({"CPU": 2.0},), is_own=True)
    with pytest.raises(InputError, match="2 CPU and 0 GPU; expected 1 CPU and 1 GPU for each actor"):
        actors_for(own, Share(gpus=1), None, flag="--gpus-per-model")


def setup(tmp_path: Path, **more: Any) -> Setup:
    return Setup(**{"folder": str(tmp_path), "nonce": None, "versions": {"torch": "2"}, "host": "head", "has_gpu": False, **more})


def test_a_node_that_differs_from_the_driver_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(actor, "installed", lambda: {"torch": "2"})
    nonce = tmp_path / ".ray-1"
    nonce.write_text(nonce.name)
    actor._require_same(setup(tmp_path, nonce=nonce))
    for more, told in (
        ({"versions": {"torch": "3"}}, "got torch 2 on .*; expected torch 3, as on head"),
        ({"versions": {"torch": "2", "timm": "1"}}, "got timm none on .*; expected timm 1"),
        ({"folder": str(tmp_path / "elsewhere")}, "got no folder .*elsewhere on .*; expected the working folder"),
        ({"nonce": tmp_path / ".ray-2"}, "where a file that head has just written is not"),
    ):
        with pytest.raises(InputError, match=told):
            actor._require_same(setup(tmp_path, **more))


def test_a_checkout_with_another_source_is_another_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lugpi_core").mkdir()
    (source := tmp_path / "lugpi_core" / "a.py").write_text("one")
    monkeypatch.setattr(actor, "package_root", lambda: tmp_path)
    of_driver = actor.installed.__wrapped__()
    assert actor.installed.__wrapped__() == of_driver
    source.write_text("two")
    monkeypatch.setattr(actor, "installed", actor.installed.__wrapped__)
    with pytest.raises(InputError, match=r"got lugpi's source \w+ on .*; expected lugpi's source \w+, as on head; install"):
        actor._require_same(setup(tmp_path, versions=of_driver))


def test_a_node_without_lugpi_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = SimpleNamespace(get_node_id=lambda: "a-node")
    monkeypatch.setitem(connection.sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: node))
    monkeypatch.delitem(connection.sys.modules, "lugpi_core.cluster.actor")
    monkeypatch.setattr(connection.sys, "path", [])
    monkeypatch.setattr(sys.modules["lugpi_core.cluster"], "__path__", [])
    host, name, reason = actor_class()().start(str(tmp_path), b"", b"")
    assert (host, name) == (platform.node(), "a-node")
    told = str(actor.reply_without_lugpi(host, name, reason).refusal)
    assert "(No module named 'lugpi_core.cluster.actor')" in told
    assert "install it there" in told


def test_a_driver_takes_the_node_of_its_own_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray takes the head's, where machines share their processes. 192.0.2.0/24 is nobody's (RFC 5737)."""
    nodes: list[dict[str, object]] = [{"NodeManagerAddress": "192.0.2.1", "Alive": True}]
    util = SimpleNamespace(get_node_ip_address=lambda: nodes[0]["NodeManagerAddress"])
    monkeypatch.setitem(connection.sys.modules, "ray", SimpleNamespace(util=util, nodes=lambda: nodes))
    assert connection._own_node() is None
    assert "note: no node of the cluster has an address of this machine" in capsys.readouterr().err
    nodes.append({"NodeManagerAddress": "127.0.0.1", "Alive": True})
    assert connection._own_node() == "127.0.0.1"
    nodes.reverse()
    assert connection._own_node() is None
    assert capsys.readouterr().err == ""


def test_a_head_that_answers_no_more_ends_the_command(
    serve: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connection, "ANSWER_S", 0.01)
    monkeypatch.setattr(connection, "LOST_S", 0.1)
    statuses: queue.SimpleQueue[int] = queue.SimpleQueue()
    monkeypatch.setattr(connection.os, "_exit", statuses.put)
    address = serve(SETTINGS)  # one answer
    with connection._head_watched(address):
        assert statuses.get(timeout=60) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: got the cluster's head {address}, where nothing answers (timed out) for 0.1 seconds; expected")
    assert "the same command goes on" in err


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray 2.60 does

    monkeypatch.setitem(connection.sys.modules, "ray", SimpleNamespace(init=init, exceptions=SimpleNamespace(RayError=KeyError)))
    with pytest.raises(InputError, match=r"timed out during startup.*less busy"):
        CONNECT(LOCAL)
