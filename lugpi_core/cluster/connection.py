"""Connect to Ray: to a cluster that runs, or to one that is started on this machine for one command.

Ray's own ``init`` (2.60) waits a quarter of an hour for an address where nothing answers, replaces the handler of SIGTERM, and prints the
deaths of workers to stdout. Here an address is asked first, the handler stays, and what becomes of workers is told by ``crew``.
"""

import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lugpi_core.command_line import say
from lugpi_core.errors import EXIT_BAD_INPUT, InputError, one_line

AUTO, LOCAL = "auto", "local"
ANSWER_S = 5.0
LOST_S = 45.0
# RFC 9113, section 3.4: what a client of HTTP/2, and so of gRPC, sends first, with an empty SETTINGS frame (type 4), which the server
# sends too.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one actor takes of a node; Ray counts it, and limits nothing."""

    cpus: float = 1.0
    gpus: float = 0.0

    def times_in(self, resources: dict[str, float]) -> int:
        """Return how many actors have room in a node's resources."""
        times = [resources.get(name, 0.0) / each for name, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each > 0]
        return int(min(times) + 1e-9)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The nodes that are there now; an autoscaler may add others.

    Attributes:
        resources: of each node: CPU, GPU and others.
        is_own: whether it was started on this machine for this command alone, so that no node is ever added.
    """

    resources: tuple[dict[str, float], ...]
    is_own: bool

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.get("GPU", 0.0) for node in self.resources)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.get("CPU", 0.0) for node in self.resources)

    def room(self, share: Share) -> int:
        """Return how many actors of a share there is room for."""
        return sum(share.times_in(node) for node in self.resources)

    def __str__(self) -> str:
        nodes = "a Ray of its own on this machine" if self.is_own else f"{len(self.resources)} node{'s' * (len(self.resources) != 1)}"
        return f"{nodes} with {self.cpus:g} CPU and {self.gpus:g} GPU"


def share_of(cluster: Cluster, *, gpus: float, actors: int | None) -> Share:
    """Return what each of ``actors`` takes of a node: a CPU and its GPUs. More actors without GPUs than a Ray of its own has CPUs share
    these."""
    few = actors is not None and not gpus and cluster.is_own and actors > cluster.cpus
    return Share(cpus=int(100 * cluster.cpus / actors) / 100 if few and actors else 1.0, gpus=gpus)


def actors_for(cluster: Cluster, share: Share, given: int | None, *, flag: str) -> int:
    """Return how many actors to ask for: ``given``, else as many as there is room for, at least one.

    Raises:
        InputError: there is no room for one, nor will there be.
    """
    room = cluster.room(share)
    if room == 0 and cluster.is_own:
        raise InputError(got=f"{cluster}", expected=f"{share} for each actor", do=f"lower {flag}, or give the address of a larger cluster")
    if room == 0:
        say(f"note: {cluster} now, and none has {share} for an actor: waiting for one that an autoscaler adds")
    return given or max(1, room)


def threads_of_actor() -> int:
    """Return how many threads an actor computes with: OMP_NUM_THREADS as it is set here, else one."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else 1


def require_cluster(address: str) -> None:
    """Raise InputError, before anything is written, unless Ray is installed and something answers at an address, as ``connected`` does."""
    _require_ray()
    _resolved(address)


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise InputError(got="no package ray", expected="it, for --ray", do="pip install 'lugpi[ray]', here and on every node")


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Yield the cluster that an address names, connected to inside the block. A program that is connected already stays so.

    One that has imported Ray before sees the deaths of workers on stdout, unless it set RAY_DEDUP_LOGS_SKIP_REGEX=. before that import.

    Args:
        address: ``host:port``; ``local`` = a Ray of its own, which ends with the block; ``auto`` = that of RAY_ADDRESS, or the one that
            runs on this machine, or else ``local``.

    Raises:
        InputError: Ray is not installed, or the address is none, does not answer, or is another version's.
    """
    _require_ray()
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield cluster_now(is_own=False)
        return
    resolved = _resolved(address)
    _set_environment(resolved)
    _connect(resolved)
    ray = sys.modules["ray"]
    try:
        with _head_watched(ray.get_runtime_context().gcs_address):
            yield cluster_now(is_own=resolved == LOCAL)
    finally:
        ray.shutdown()


@contextmanager
def _head_watched(address: str) -> Iterator[None]:
    """End this process with a line if, during the block, the cluster's head answers no more: calls of Ray wait for it, and cannot be
    interrupted. Ray 2.60 would end the process after a minute, with lines of its log."""
    is_over = threading.Event()

    def watch() -> None:
        answered_s, fault = time.monotonic(), None
        while fault is None or time.monotonic() - answered_s < LOST_S:
            if is_over.wait(ANSWER_S):
                return
            fault = _fault(address)
            if fault is None:
                answered_s = time.monotonic()
        error = InputError(
            got=f"the cluster's head {address}, {fault} for {LOST_S:g} seconds",
            expected="a head that stays",
            do="start the cluster again; the same command goes on from what is done",
        )
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(EXIT_BAD_INPUT)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def cluster_now(*, is_own: bool) -> Cluster:
    """Return the nodes of the cluster that this process is connected to."""
    import ray

    return Cluster(resources=tuple(node["Resources"] for node in ray.nodes() if node["Alive"]), is_own=is_own)


def _resolved(address: str) -> str:
    """Return ``local``, ``auto`` for Ray to find one that does answer, or an address that does."""
    if address == LOCAL:
        return LOCAL
    named = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    recorded = _recorded_address()
    if named in ("", AUTO):
        return AUTO if recorded is not None and _fault(recorded) is None else LOCAL
    source = "RAY_ADDRESS" if address == AUTO else "--ray"
    if "://" in named:
        raise InputError(
            got=f"{source} {named}",
            expected="HOST:PORT of the cluster's head, or auto",
            do="run the command on a node of the cluster: ray job submit -- python -m …",
        )
    if (fault := _fault(named)) is not None:
        raise InputError(
            got=f"{source} {named}, {fault}",
            expected="HOST:PORT of a Ray cluster's head that answers",
            do="start one there (ray start --head), or give auto or local",
        )
    return named


def _recorded_address() -> str | None:
    """Return the address of the last cluster that ``ray start`` began on this machine, or None."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()
    path = Path(folder) / "ray" / "ray_current_cluster"
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def _fault(address: str) -> str | None:
    """Return why an address is none of Ray, or None if a server of gRPC answers there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        return "which is no HOST:PORT"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return None
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
    except OSError as error:
        return f"where nothing answers ({error.strerror or error})"
    return None if answer[3:4] == bytes((_SETTINGS,)) else "where something else than Ray answers"


def _set_environment(address: str) -> None:
    """Set what Ray reads from the environment when it is imported, unless it is set."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # the deaths of workers, which it prints to stdout
    if address == LOCAL:
        return
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # how often an address is asked, 40 s each time; by default 20 times
    # Where there is a token, ``ray start`` asks for it, and ``ray.init`` sends it only if it is given no address. A cluster that asks for
    # none takes a client that has one.
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    if any(name in os.environ for name in names) or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _own_node() -> str | None:
    """Return the address of this machine's node if Ray has taken another machine's for it, else None.

    Ray 2.60 looks for raylets among the processes, and takes the head's first: where machines share their processes, as network namespaces
    do, nodes then ask another machine for what this one has to give, and wait without end.
    """
    import ray

    if _is_here(ray.util.get_node_ip_address()):
        return None
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and _is_here(node["NodeManagerAddress"])]
    if not addresses:
        say("note: no node of the cluster has an address of this machine: if nothing happens, run the command on a node")
        return None
    return str(addresses[0])


def _is_here(address: str) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


def _connect(address: str) -> None:
    import ray

    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    more = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **more)
        if (own := _own_node()) is not None:
            ray.shutdown()
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", _node_ip_address=own)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            got=f"--ray {address}: {one_line(str(error))[:300]}",
            expected="a connection to that cluster",
            do="run the command on a node of it (ray start --address=…), with the same Python, Ray and token (~/.ray/auth_token) as there",
        ) from None
    except Exception as error:
        if type(error) is not Exception:  # Ray 2.60 raises the bare class where a node that it starts is not up in time
            raise
        raise InputError(
            got=f"--ray {address}: {one_line(str(error))[:300]}",
            expected="Ray to start on this machine within its time limit",
            do="run the same command again when the machine is less busy",
        ) from None
    finally:
        if in_main and handler is not None:
            signal.signal(signal.SIGTERM, handler)
