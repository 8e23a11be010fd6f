"""Signs of life among processes that train one model.

A process that is killed closes its connections, and gloo's operations fail in the others at once. One that hangs, or whose machine or
network is gone, closes none, and NCCL waits even for one that was killed. So every process is connected to process 0, and both sides say
every two seconds that they are there. Plain sockets: a store of torch.distributed writes C++ tracebacks when its server is gone.
"""

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from lugpi_core.errors import EXIT_BAD_INPUT, InputError
from train.learning.launch import Launch

_EVERY_S = 2.0
# Signs that may be missed before a process is lost.
_MISSED = 12
# How long a process has to end by itself: to see that a connection is closed, or to write a checkpoint.
_GRACE_S = 10.0
_ATTEMPT_S = 2.0
_HERE, _LEAVING, _LOST = b".", b"-", b"!"  # and a line that says who is lost


@dataclass(slots=True)
class _Peer:
    """A process at the other end of a connection; of which rank is known once it has said so."""

    rank: int | None
    missed: int = 0
    heard: bytes = b""
    is_leaving: bool = False


class Heartbeat:
    """Says that this process lives while the block is open. If another is lost, says so in a line, asks this process to stop as SIGTERM
    does, and ends it if it cannot.

    Attributes:
        place: where process 0 is reached, for the others; empty in these.
    """

    def __init__(self, launch: Launch) -> None:
        self.place = ""
        self._launch = launch
        self._over = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread: threading.Thread | None = None
        if launch.rank == 0:
            listener = _listener(launch.count)
            self._selector.register(listener, selectors.EVENT_READ, listener)
            self._token = secrets.token_hex(8)
            self.place = json.dumps({"hosts": _own_hosts(launch), "port": listener.getsockname()[1], "token": self._token})

    def __enter__(self) -> Self:
        return self

    def start(self, place: str) -> None:
        """Begin. Where process 0 is not reached at its ``place``, a line says so, and this process is not watched."""
        if self._launch.rank:
            connection = self._reach(json.loads(place))
            if connection is not None:
                self._selector.register(connection, selectors.EVENT_READ, _Peer(0))
            else:
                where = "no free port of process 0 is open to it"
                print(f"note: process {self._launch.rank} sends no signs of life ({where}): if it hangs, so do others", file=sys.stderr)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._say(_LEAVING)
        self._over.set()
        self._wake.send(_HERE)
        if self._thread is not None:
            self._thread.join(_ATTEMPT_S)
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._wake.close()
        self._selector.close()

    def _reach(self, place: dict[str, str]) -> socket.socket | None:
        """Return a connection to process 0 by the first of its names that leads to it."""
        self._token = place["token"]
        for host in place["hosts"]:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((host, int(place["port"])), timeout=_ATTEMPT_S)
                if connection.recv(len(self._token)) == self._token.encode():
                    connection.sendall(f"{self._token} {self._launch.rank}\n".encode())
                    connection.setblocking(False)
                    return connection
                connection.close()
        return None

    def _run(self) -> None:
        """Listen and speak until the block ends or another process is lost."""
        lost, speaks_at_s = "", time.monotonic() + _EVERY_S
        while not self._over.is_set() and not lost:
            for key, _ in self._selector.select(max(0.0, speaks_at_s - time.monotonic())):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj is key.data:
                    self._admit(key.data)
                elif isinstance(key.data, _Peer):
                    lost = lost or self._listen(key.fileobj, key.data)
            if time.monotonic() >= speaks_at_s:
                speaks_at_s = time.monotonic() + _EVERY_S
                self._say(_HERE)
                lost = lost or self._silent()
        if lost:
            self._say(_LOST + f"{lost}\n".encode())
            self._end(lost)

    def _admit(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            connection.send(self._token.encode())
            self._selector.register(connection, selectors.EVENT_READ, _Peer(None))

    def peers(self) -> list[tuple[socket.socket, _Peer]]:
        """Return the connections and who is at their other ends."""
        keys = list(self._selector.get_map().values())
        return [(key.fileobj, key.data) for key in keys if isinstance(key.fileobj, socket.socket) and isinstance(key.data, _Peer)]

    def _say(self, words: bytes) -> None:
        for connection, peer in self.peers():
            if peer.rank is not None:
                with contextlib.suppress(OSError):  # what is wrong shows when it is read
                    connection.send(words)

    def _listen(self, connection: socket.socket, peer: _Peer) -> str:
        """Read what a process says; return in words who is lost, or nothing."""
        try:
            words = connection.recv(4096)
        except BlockingIOError:
            return ""
        except OSError:
            words = b""
        peer.missed = 0
        peer.heard += words
        if peer.rank is None and b"\n" in peer.heard:
            token, _, rank = peer.heard.partition(b"\n")[0].partition(b" ")
            peer.heard = peer.heard.partition(b"\n")[2]
            if token == self._token.encode():
                peer.rank = int(rank)
            else:
                words = b""
        if not words or (peer.rank is None and len(peer.heard) > 64):
            self._selector.unregister(connection)
            connection.close()
        if peer.rank is None:
            return ""
        heard, begins, told = peer.heard.partition(_LOST)
        peer.is_leaving |= _LEAVING in heard
        peer.heard = begins + told
        if told.endswith(b"\n"):
            return told.decode().strip()
        return "" if words or peer.is_leaving else f"an end of process {peer.rank} of {self._launch.count}"

    def _silent(self) -> str:
        """Count a sign as missed by every process; return in words who has missed too many, or nothing."""
        lost = ""
        for _, peer in self.peers():
            peer.missed += 1
            if peer.rank is not None and peer.missed > _MISSED and not peer.is_leaving:
                lost = lost or f"no sign of process {peer.rank} of {self._launch.count} for {_MISSED * _EVERY_S:.0f} seconds"
        return lost

    def _end(self, lost: str) -> None:
        """End this process, unless it is about to: most have seen by themselves that another is gone."""
        if self._over.wait(_GRACE_S):
            return
        error = InputError(
            got=f"{lost}, seen by process {self._launch.rank}",
            expected="all of them until the model is trained",
            do="see its own output for the reason; the same command continues from the last checkpoint",
        )
        print(f"\nerror: {error}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        if not self._over.wait(_GRACE_S):
            os._exit(EXIT_BAD_INPUT)


def _listener(backlog: int) -> socket.socket:
    """Return a socket that listens on a free port of every address of this machine."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # some machines have it switched off
            return socket.create_server(("::", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def _own_hosts(launch: Launch) -> list[str]:
    """Return names and addresses of this machine by which others may reach it; a name may lead them elsewhere, which a token shows."""
    hosts = [launch.address, socket.gethostname()]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((launch.address, launch.port))  # sends nothing
        hosts.append(probe.getsockname()[0])
    return list(dict.fromkeys(hosts))
