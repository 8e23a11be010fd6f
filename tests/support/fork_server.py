"""Commands in processes of their own that import nothing again: each is forked from one process that has imported the libraries.

``python -m tests.support.fork_server SOCKET`` is that process. It reads commands from the socket and forks for each a keeper, which forks
the command, waits for it and tells its exit status. All but the imports is as in a new process: standard streams, signals, environment,
``__main__``, and what the interpreter does at its end.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch

from lugpi_core.runtime.libraries import prepare_libraries
from tests.support.checkout import ROOT

# What featurize and train import on their way, some of it only where they use it.
_IMPORTS = (
    "diffusers.models.autoencoders",
    "diffusers.models.unets.unet_2d_condition",
    "open_clip",
    "sklearn.linear_model",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.distilbert.modeling_distilbert",
    "transformers.models.distilbert.tokenization_distilbert",
    "transformers.models.vit.image_processing_pil_vit",
    "transformers.models.vit.modeling_vit",
    "tyro",
    "featurize.cli",
    "featurize.fill.fillers",
    "featurize.maintain",
    "train.cli",
    "train.evidence.tables",
    "train.tools.sweep",
)


class Process:
    """A command that was forked from the server; as much of ``subprocess.Popen`` as the tests use."""

    def __init__(self, pid: int, ended: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._ended = ended

    def poll(self, timeout_s: float | None = 0) -> int | None:
        """Return the exit status, negative for a signal, or None if it still runs after ``timeout_s`` seconds; None waits forever."""
        if self.returncode is None and select.select([self._ended], [], [], timeout_s)[0]:
            self.returncode = int(os.read(self._ended, 16))
            os.close(self._ended)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status."""
        status = self.poll(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("a forked command", timeout or 0)
        return status

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Return what it and its own children print, and has not been read, until they have all ended."""
        until_s, printed = time.monotonic() + timeout, {self.stdout: b"", self.stderr: b""}
        reading = {stream.fileno(): stream for stream in printed if not stream.closed}
        while reading:
            ready = select.select(list(reading), [], [], max(until_s - time.monotonic(), 0))[0]
            if not ready:
                raise subprocess.TimeoutExpired("a forked command", timeout)
            for number in ready:
                part = os.read(number, 1 << 16)
                printed[reading[number]] += part
                if not part:
                    reading.pop(number).close()
        self.wait(max(until_s - time.monotonic(), 0))
        return printed[self.stdout].decode(), printed[self.stderr].decode()

    def send_signal(self, number: int) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that has imported the libraries."""

    def __init__(self) -> None:
        ours, its = socket.socketpair()
        with its:
            words = [sys.executable, "-m", "tests.support.fork_server", str(its.fileno())]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            self._server = subprocess.Popen(
                words, cwd=ROOT, env=environment, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self._socket = ours

    def start(self, *words: str | Path) -> Process:
        """Start ``python WORDS…``, which begin with ``-m`` or ``-c``, from the checkout."""
        ends = [os.pipe() for _ in range(3)]
        given = {"words": list(map(str, words)), "environment": {**os.environ, "PYTHONPATH": str(ROOT)}}
        message = json.dumps(given).encode()
        socket.send_fds(self._socket, [len(message).to_bytes(8, "big")], [write for _, write in ends])
        self._socket.sendall(message)
        for _, write in ends:
            os.close(write)
        stdout, stderr, told = (read for read, _ in ends)
        return Process(int(os.read(told, 16)), told, os.fdopen(stdout), os.fdopen(stderr))

    def stop(self) -> None:
        """End the server; what was forked goes on."""
        self._socket.close()
        self._server.wait(60)


def _commands(requests: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Yield what each command is given, and where its output and its status go."""
    while True:
        head, streams, _, _ = socket.recv_fds(requests, 8, 3)
        if not head:
            return
        length, message = int.from_bytes(head, "big"), b""
        while len(message) < length:
            message += requests.recv(length - len(message))
        yield json.loads(message), streams


def _serve(requests: socket.socket) -> dict[str, Any]:
    """Serve until the tests end, which ends the process; in each command's own process, return what it is given."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a keeper ended
    for command, (stdout, stderr, told) in _commands(requests):
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            pid = os.fork()
            if not pid:
                os.dup2(stdout, 1)
                os.dup2(stderr, 2)
                for number in (stdout, stderr, told):
                    os.close(number)
                return command
            os.close(stdout)
            os.close(stderr)
            os.write(told, b"%16d" % pid)
            os.write(told, b"%16d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os._exit(0)
        for number in (stdout, stderr, told):
            os.close(number)
    sys.exit()


if __name__ == "__main__":
    prepare_libraries()
    for _name in _IMPORTS:
        import_module(_name)
    gc.freeze()
    _given = _serve(socket.socket(fileno=int(sys.argv[1])))
    torch.set_num_threads(1)  # after a fork torch creates its threads again at first use, which two threads must not do at once
    os.environ.clear()
    os.environ.update(_given["environment"])
    sys.argv = _given["words"][1:]
    if _given["words"][0] == "-m":
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        _code, sys.argv[0] = sys.argv[0], "-c"
        exec(compile(_code, "<string>", "exec"), {"__name__": "__main__"})
