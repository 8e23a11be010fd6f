"""Machines of a network, each a namespace of this one: they share the disk, have addresses of their own, and their cables can be pulled."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_SWITCH = "switch"


def lack_of_network() -> str | None:
    """Return why there can be no machines here, or None."""
    if shutil.which("ip") is None:
        return "no ip (iproute2)"
    trial = f"{os.getpid()}-trial"
    if os.geteuid() or subprocess.run(["ip", "netns", "add", trial], capture_output=True, check=False).returncode:
        return "no right to make network namespaces (root)"
    _ip("netns", "del", trial)
    return None


@contextmanager
def machines(*names: str) -> "Iterator[list[Machine]]":
    """Yield machines whose cables end in one switch. What runs on them is killed at the end."""
    space = f"{os.getpid()}-{_SWITCH}"
    with ExitStack() as stack:
        _ip("netns", "add", space)
        stack.callback(_ip, "netns", "del", space)
        _ip("-n", space, "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", space, "link", "set", "dev", "bridge", "up")
        all_machines = [Machine(name, f"10.77.0.{number}") for number, name in enumerate(names, 1)]
        for machine in all_machines:
            _ip("netns", "add", machine.space)
            stack.callback(_ip, "netns", "del", machine.space)
            stack.callback(machine.kill_all)
            peer = ("peer", "name", "eth0", "netns", machine.space)
            _ip("-n", space, "link", "add", "name", machine.name, "type", "veth", *peer)
            _ip("-n", space, "link", "set", "dev", machine.name, "master", "bridge", "up")
            _ip("-n", machine.space, "address", "add", f"{machine.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", machine.space, "link", "set", "dev", device, "up")
        yield all_machines


class Machine:
    """One of ``machines``.

    Attributes:
        name, address: its own.
        space: its namespace.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.space = f"{os.getpid()}-{name}"
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, *words: str | Path, env: Mapping[str, str], cwd: Path) -> "subprocess.Popen[str]":
        """Start a program that knows the machine by its name, without waiting for it."""
        named = ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        process = subprocess.Popen([*named, *map(str, words)], env=env, cwd=cwd, stdin=nothing, stdout=pipe, stderr=pipe, text=True)
        self._processes.append(process)
        return process

    def pids(self, words: str = "") -> list[int]:
        """Return the processes whose command line contains some words."""
        done = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=True)
        return [pid for pid in map(int, done.stdout.split()) if words in _command_line(pid)]

    def kill_all(self) -> None:
        """End everything that runs on it."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.communicate()
        self._processes.clear()

    def lose_connections(self, pid: int) -> None:
        """End the connections of a process that listens; while the cable is pulled, the other side does not learn of it."""
        inside = ["ip", "netns", "exec", self.space, "ss"]
        listening = subprocess.run([*inside, "-tlnp"], check=True, capture_output=True, text=True).stdout
        for port in re.findall(rf":(\d+) .*pid={pid},", listening):
            subprocess.run([*inside, "-tnK", f"( sport = :{port} )"], check=True, capture_output=True)

    def pull_cable(self) -> None:
        """Cut it off."""
        _ip("-n", f"{os.getpid()}-{_SWITCH}", "link", "set", "dev", self.name, "down")

    def plug_cable(self) -> None:
        """Connect it again."""
        _ip("-n", f"{os.getpid()}-{_SWITCH}", "link", "set", "dev", self.name, "up")


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
