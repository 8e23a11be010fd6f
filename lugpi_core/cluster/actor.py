"""What runs in an actor of Ray: it loads once what its tasks need, then does them one after another. The driver is ``crew``."""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

from lugpi_core.command_line import show_warnings_in_one_line
from lugpi_core.errors import DISK_FAULTS, InputError
from lugpi_core.runtime.libraries import start_up, this_process_is_ours
from lugpi_core.runtime.meters import versions
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted

_PACKAGES = ("lugpi", "lugpi_core", "featurize", "train")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What an actor compares with its own node before it loads anything.

    Attributes:
        folder: the driver's working folder, to which relative paths belong.
        nonce: a file that the driver has just written, with its own name inside, to a folder that every node must see; None = none.
        versions: ``installed()`` of the driver.
        host: the driver's.
        has_gpu: whether the actor was given any.
    """

    folder: str
    nonce: Path | None
    versions: Mapping[str, str]
    host: str
    has_gpu: bool


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a call of an actor came to.

    Attributes:
        host, node, pid: where: the machine's name, Ray's id of the node, and the process.
        value: the task's result.
        lines: that were said to the user meanwhile.
        is_stopped: whether a signal ended the task.
        refusal: the parts of an InputError.
        disk_fault: errno, message and file name of an error of the disk.
    """

    host: str
    node: str
    pid: int
    value: Any = None
    lines: tuple[str, ...] = ()
    is_stopped: bool = False
    refusal: Mapping[str, str] | None = None
    disk_fault: tuple[int, str, str] | None = None

    def raise_error(self) -> None:
        """Raise InputError or OSError if that ended the task."""
        if self.refusal is not None:
            raise InputError(**self.refusal)
        if self.disk_fault is not None:
            raise OSError(*self.disk_fault)


class _Lines(io.TextIOBase):
    """A stderr that keeps whole lines, and writes on to the one before it, which Ray keeps as the actor's log."""

    def __init__(self) -> None:
        self._before, self._text = sys.stderr, io.StringIO()

    def write(self, text: str) -> int:
        self._before.write(text)
        return self._text.write(text)

    def flush(self) -> None:
        self._before.flush()

    def lines(self) -> tuple[str, ...]:
        """Return the lines; those of progress bars, which return to their beginning, are left out."""
        return tuple(line for line in self._text.getvalue().split("\n") if line.strip() and "\r" not in line)


class Worker:
    """What an actor is where its node has this lugpi."""

    def __init__(self) -> None:
        self._is_stopped = False
        signal.signal(signal.SIGUSR1, self._stop)  # between tasks; its default would end the process

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._is_stopped = True

    def start(self, setup: bytes, inputs: bytes) -> Reply:
        """Load what the tasks need, if this node is as the driver's."""

        def load() -> None:
            _require_same(given_setup := pickle.loads(setup))
            if not given_setup.has_gpu:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""  # without num_gpus Ray leaves it unset, and every GPU can be seen
            this_process_is_ours()
            with start_up():  # this imports what the function needs
                function, given = pickle.loads(inputs)
            self._do: Callable[[Any], Any] = function(given)

        return _reply(load)

    def do(self, task: Any) -> Reply:
        """Do a task."""

        def act() -> Any:
            if self._is_stopped:
                raise Stopped(signal.SIGUSR1)
            return self._do(task)

        return _reply(act)


@cache
def installed() -> Mapping[str, str]:
    """Return the versions that decide results, of lugpi a hash of its source: two checkouts of one version may differ."""
    root, digest = package_root(), hashlib.sha256()
    for path in sorted(path for name in _PACKAGES for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    others = {name: version for name, version in versions().items() if name != "lugpi"}
    return {**others, "lugpi's source": digest.hexdigest()[:8]}


def package_root() -> Path:
    """Return the folder of lugpi's packages."""
    return Path(__file__).resolve().parents[2]


def reply_without_lugpi(host: str, node: str, reason: str) -> Reply:
    """Return the reply of a node that cannot give one."""
    refusal = {
        "got": f"no lugpi of this version on {host} ({reason})",
        "expected": "the same on every node",
        "do": "install it there, or put it on a file system that all nodes mount and start the command there",
    }
    return Reply(host=host, node=node, pid=0, refusal=refusal)


def _reply(act: Callable[[], Any]) -> Reply:
    import ray

    said = _Lines()
    ends: dict[str, Any] = {}
    try:
        with contextlib.redirect_stderr(said), _warnings_in_one_line(), terminated_like_interrupted():
            ends = {"value": act()}
    except InputError as error:
        ends = {"refusal": error.parts}
    except OSError as error:
        name = str(error.filename2 or error.filename or "a file")
        if error.errno == errno.ENOENT:
            ends = {"refusal": _missing_file(name)}
        elif error.errno in DISK_FAULTS:
            ends = {"disk_fault": (error.errno, str(error.strerror), name)}
        else:
            raise
    except KeyboardInterrupt:
        ends = {"is_stopped": True}
    node = ray.get_runtime_context().get_node_id()
    return Reply(host=platform.node(), node=node, pid=os.getpid(), lines=said.lines(), **ends)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    with warnings.catch_warnings():
        show_warnings_in_one_line()
        yield


def _missing_file(name: str) -> dict[str, str]:
    return {
        "got": f"no {name} on {platform.node()}",
        "expected": "the same files under the same paths on every node",
        "do": "put it on a file system that all nodes mount, or install it on every node",
    }


def _require_same(setup: Setup) -> None:
    """Go to the driver's working folder; raise InputError if it, the shared folder or the installed versions are not the driver's."""
    here, ours = platform.node(), installed()
    if unlike := [name for name, other in setup.versions.items() if ours.get(name) != other]:
        raise InputError(
            got=", ".join(f"{name} {ours.get(name, 'none')}" for name in unlike) + f" on {here}",
            expected=", ".join(f"{name} {setup.versions[name]}" for name in unlike) + f", as on {setup.host}",
            do="install the same versions on every node (constraints.txt has the tested ones)",
        )
    try:
        os.chdir(setup.folder)
    except OSError as error:
        raise InputError(
            got=f"no folder {setup.folder} on {here} ({error.strerror})",
            expected="the working folder of the command on every node",
            do="start it in a folder that all nodes mount",
        ) from None
    if setup.nonce is not None and not _reads(setup.nonce):
        raise InputError(
            got=f"{setup.nonce.parent} on {here}, where a file that {setup.host} has just written is not",
            expected="a run folder that all nodes see under the same path",
            do="give a --run-dir on a file system that all nodes mount, such as NFS or Lustre",
        )


def _reads(nonce: Path) -> bool:
    try:
        return nonce.read_text(encoding="utf-8") == nonce.name
    except OSError:
        return False
