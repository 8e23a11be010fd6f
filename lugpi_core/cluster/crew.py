"""Tasks on actors of Ray: the queue is here, in the driver, and each actor has one task at a time.

An actor that ends is not restarted by Ray (``max_restarts=0``): its task is given out again from here, to whichever actor is free, at most
``MOST_TRIES`` times in all. A restarted actor would wait for the resources that an idle one holds, and a retried call may be lost in
silence (docs/cluster.md). The results of tasks are on the disk; what comes back is small.
"""

import os
import pickle
import platform
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from lugpi_core.cluster.actor import Reply, Setup, installed, package_root, reply_without_lugpi
from lugpi_core.cluster.connection import Share, cluster_now
from lugpi_core.cluster.node import actor_class
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, one_line
from lugpi_core.files import host_name, is_running, write_text

MOST_TRIES = 3
LOOK_EVERY_S = 1.0
COUNT_EVERY_S = 5.0
PAUSE_S = 60.0
NODE_LOST_S = 90.0  # Ray 2.60 gives a node up 14 s after its raylet was killed, and one that is cut off after 65 s
SAY_EVERY_S = 60.0
Task = TypeVar("Task")


@dataclass(frozen=True, kw_only=True)
class ActorWork(Generic[Task]):
    """What actors are and do.

    Attributes:
        load: called once in each actor with ``inputs``; returns the function that does a task. Both run in the main thread of a process of
            their own, where the signals ``STOPPING`` raise ``Stopped``.
        inputs: pickled once.
        share: what each takes.
        most: how many at once.
        grows: whether there are more when nodes join.
        name_of: a task's name for the user.
        shared: a folder that every node must see under this path; None = none.
    """

    load: Callable[[Any], Callable[[Task], Any]]
    inputs: Any
    share: Share
    most: int
    grows: bool = False
    name_of: Callable[[Task], str] = str
    shared: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TaskResult(Generic[Task]):
    """What became of a task: its value, or why it failed."""

    task: Task
    value: Any = None
    failure: str = ""


@dataclass(frozen=True)
class _End:
    """The end of an actor over a task, or while it started. It may be that of its node, of which Ray may learn later.

    Attributes:
        node: where the actor was; empty = unknown.
        is_explained: whether Ray knows how its process ended, which the node tells it; else the connection is lost.
        at_s: when.
    """

    node: str
    is_explained: bool
    at_s: float = field(default_factory=time.monotonic)

    def counts(self, nodes: set[str]) -> bool:
        """Whether it is not that of its node, given the nodes that live."""
        return (self.node in nodes or not self.node) and (self.is_explained or time.monotonic() - self.at_s > NODE_LOST_S)


@dataclass(eq=False)
class _Given(Generic[Task]):
    """A task that has no result yet, and the ends of the actors that had it."""

    task: Task
    ends: list[_End] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class _Actor(Generic[Task]):
    """An actor as the driver knows it.

    Attributes:
        handle: Ray's.
        place: the reference of its node's id.
        call: the reference of what it does; None = it is idle.
        reply: of its start, once it has started.
        given: the task that it has.
        since_s: when it got that, or was asked for.
    """

    handle: Any
    place: Any
    call: Any
    reply: Reply | None = None
    given: _Given[Task] | None = None
    since_s: float = field(default_factory=time.monotonic)


class RayCrew(Generic[Task]):
    """Actors that do tasks, each started when there is a task for it; open inside a ``with`` block, at whose end all have ended.

    If the block ends with an error, the tasks in hand are asked to stop at their next safe point (SIGUSR1), and that is waited for.
    """

    def __init__(self, work: ActorWork[Task]) -> None:
        self._work, self._most, self._grows = work, work.most, work.grows
        self._todo: deque[_Given[Task]] = deque()
        self._actors: list[_Actor[Task]] = []
        self._said_s = self._counted_s = time.monotonic()
        self._lines: set[str] = set()
        self._failed_starts: list[_End] = []  # since the last actor that did start
        self._paused_until_s = 0.0
        self._has_started = False
        self._left_out: list[str] = []  # nodes
        self._done = 0

    @property
    def is_working(self) -> bool:
        """Whether there is a task that has no result yet."""
        return self._open > 0

    @property
    def has_room(self) -> bool:
        """Whether fewer tasks are given than there may be actors."""
        return self._open < self._most

    @property
    def _open(self) -> int:
        return len(self._todo) + sum(actor.given is not None for actor in self._actors)

    @property
    def tasks(self) -> list[Task]:
        """The tasks that have no result yet."""
        return [given.task for given in (*self._todo, *(actor.given for actor in self._actors)) if given is not None]

    def give(self, task: Task) -> None:
        """Give a task to the actors."""
        self._todo.append(_Given(task))

    def results(self) -> list[TaskResult[Task]]:
        """Wait for the first result, one second at most; return all that there are.

        Raises:
            InputError: a task, or the start of an actor, was refused.
            OSError: of the disk, in a task.
        """
        import ray

        self._start_actors()
        self._give_out()
        calls = {actor.call: actor for actor in self._actors if actor.call is not None}
        results: list[TaskResult[Task]] = []
        if calls:
            ready, _ = ray.wait(list(calls), timeout=LOOK_EVERY_S)
            more, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0) if ready else ([], [])
            for call in more:
                results += self._settle(calls[call])
        self._give_out()
        self._say_what_runs()
        return results

    def do(self, tasks: Iterable[Task]) -> Iterator[TaskResult[Task]]:
        """Give tasks to the actors, and yield what became of each, also of those that failed, as it arrives.

        Raises:
            InputError, OSError: as ``results``.
        """
        for task in tasks:
            self.give(task)
        while self.is_working:
            yield from self.results()

    def release_idle(self, *, keep: int = 0) -> None:
        """If no task waits, end the actors that have nothing to do or have not started, but for the last ``keep``: others get their
        GPUs and CPUs."""
        if self._todo:
            return
        idle = sorted((actor for actor in self._actors if actor.given is None), key=lambda actor: actor.reply is None)
        for actor in idle[max(0, keep - (len(self._actors) - len(idle))) :]:
            self._end(actor)

    def _start_actors(self) -> None:
        import ray

        if self._grows and time.monotonic() - self._counted_s > COUNT_EVERY_S:
            self._count_nodes()
        wanted = min(self._most, self._open)
        is_paused = bool(self._actors) and time.monotonic() < self._paused_until_s
        if len(self._actors) >= wanted or is_paused:
            return
        share, without = self._work.share, {"ray.io/node-id": f"!in({','.join(self._left_out)})"} if self._left_out else None
        kind = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0, label_selector=without)
        for _ in range(wanted - len(self._actors)):
            handle = kind(self._class).remote()
            place, call = handle.node.remote(), handle.start.remote(str(package_root()), self._setup, self._inputs)
            self._actors.append(_Actor(handle=handle, place=place, call=call))

    def _count_nodes(self) -> None:
        """Let there be more actors where nodes have joined."""
        cluster, self._counted_s = cluster_now(is_own=False), time.monotonic()
        room = cluster.room(self._work.share)
        if room > self._most:
            say(f"Ray: {cluster} now; at most {room} actors")
            self._most = room

    def _give_out(self) -> None:
        """Give tasks to idle actors."""
        for actor in self._actors:
            if self._todo and actor.call is None:
                actor.given, actor.since_s = self._todo.popleft(), time.monotonic()
                actor.call = actor.handle.do.remote(actor.given.task)

    def _settle(self, actor: _Actor[Task]) -> list[TaskResult[Task]]:
        """Take what an actor's call came to."""
        import ray

        call, actor.call = actor.call, None
        try:
            answer = ray.get(call)
        except ray.exceptions.RayError as error:
            return self._after_death(actor, error)
        reply = answer if isinstance(answer, Reply) else reply_without_lugpi(*answer)
        if reply.refusal is not None and actor.given is None and self._has_started and reply.node not in self._first_nodes:
            self._leave_out(actor, reply)
            return []
        for line in reply.lines:
            self._say_once(line) if actor.given is None else say(line)
        if reply.is_stopped:  # it was told to end, by the node and not from here
            return self._after_death(actor, None)
        given, actor.given = actor.given, None
        reply.raise_error()
        if given is None:
            actor.reply, self._failed_starts, self._has_started = reply, [], True
            return []
        self._done += 1
        return [TaskResult(task=given.task, value=reply.value)]

    def _after_death(self, actor: _Actor[Task], error: Exception | None) -> list[TaskResult[Task]]:
        """Give the task of an actor that has ended out again, or return it as failed."""
        import ray

        reason, given = "it was told to end" if error is None else _reason(error), actor.given
        where = "" if actor.reply is None else f" on {actor.reply.host}"
        ends = self._failed_starts if given is None else given.ends
        if error is not None:
            ends.append(_End(_node_of(actor, error), not isinstance(error, ray.exceptions.ActorUnavailableError)))
        self._end(actor)
        nodes = _living_nodes()
        failed = sum(end.counts(nodes) for end in ends)  # the end of a node is the fault of no task, and of no start
        if given is None:
            self._after_failed_start(reason, failed)
            return []
        name = self._work.name_of(given.task)
        if failed < MOST_TRIES:
            say(f"{name}: its actor{where} has ended: {reason}; it is given out again")
            self._todo.append(given)
            return []
        say(f"warning: {name} failed {MOST_TRIES} times, the last time{where}: {reason}; the others go on")
        self._done += 1
        return [TaskResult(task=given.task, failure=f"{MOST_TRIES} times, the last time{where}: {reason}")]

    def _after_failed_start(self, reason: str, failed: int) -> None:
        if failed < MOST_TRIES:
            say(f"an actor has ended while it started: {reason}; another is started")
        elif any(actor.reply is not None for actor in self._actors):
            later = "the others go on, the next starts in a minute"
            say(f"warning: the last {failed} actors have ended while they started: {reason}; {later}")
            self._failed_starts, self._paused_until_s = [], time.monotonic() + PAUSE_S
        else:
            raise InputError(
                got=f"{failed} actors that ended while they started, the last: {reason}",
                expected="actors that load what they need",
                do="see that every node has this version of lugpi installed and memory for it; Ray keeps their logs in /tmp/ray",
            )

    def _leave_out(self, actor: _Actor[Task], reply: Reply) -> None:
        """Start no further actor on a node that differs from the driver's, and has come since the others started."""
        assert reply.refusal is not None
        say(f"warning: a node that has joined the cluster is left out: {InputError(**reply.refusal)}; the others go on")
        self._left_out.append(reply.node)
        self._end(actor)

    def _say_once(self, line: str) -> None:
        """Say what every actor says when it starts."""
        if line not in self._lines:
            self._lines.add(line)
            say(line)

    def _say_what_runs(self) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s < SAY_EVERY_S:
            return
        self._said_s = now_s
        self._call_all()
        running = sorted((actor for actor in self._actors if actor.given is not None), key=lambda actor: actor.since_s)
        longest = ", ".join(
            f"{self._work.name_of(actor.given.task)} for {(now_s - actor.since_s) / 60:.0f} min on {actor.reply.host}"
            for actor in running[:3]
            if actor.given is not None and actor.reply is not None
        )
        starting = sum(actor.reply is None for actor in self._actors)
        waiting = f"; {starting} actors wait for {self._work.share} or load" if starting else ""
        say(f"{self._done} done, {len(running)} run, {len(self._todo)} to go{'; longest: ' * bool(longest)}{longest}{waiting}")

    def _call_all(self) -> None:
        """Send something to each actor that has something to do. If its side of a connection has ended while a cable was pulled, its reply
        never comes, and only what is sent there is answered by that: with Ray 2.60 the driver waited for more than five minutes."""
        for actor in self._actors:
            if actor.call is not None:
                actor.handle.node.remote()

    def _stop(self) -> None:
        """Ask the tasks in hand to stop, and wait until they have."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._todo.clear()
        self.release_idle()
        send = ray.remote(num_cpus=0, max_retries=0)(_send_signal)
        for actor in self._actors:
            assert actor.reply is not None
            on_node = NodeAffinitySchedulingStrategy(actor.reply.node, soft=False)
            send.options(scheduling_strategy=on_node).remote(actor.reply.pid, signal.SIGUSR1)
        calls = [actor.call for actor in self._actors if actor.call is not None]
        while calls:
            _, calls = ray.wait(calls, timeout=LOOK_EVERY_S)
            self._say_what_runs()

    def _end(self, actor: _Actor[Task]) -> None:
        import ray

        self._actors.remove(actor)
        ray.kill(actor.handle)

    def __enter__(self) -> "RayCrew[Task]":
        import ray

        self._nonce = nonce = None if self._work.shared is None else _write_nonce(self._work.shared.absolute())
        has_gpu = self._work.share.gpus > 0
        setup = Setup(folder=os.getcwd(), nonce=nonce, versions=installed(), host=platform.node(), has_gpu=has_gpu)
        self._class, self._setup, self._first_nodes = actor_class(), pickle.dumps(setup), _living_nodes()
        self._inputs = ray.put(ray.cloudpickle.dumps((self._work.load, self._work.inputs)))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None:
                self._stop()
        finally:  # a second signal ends them at once
            for actor in list(self._actors):
                self._end(actor)
            if self._nonce is not None:
                self._nonce.unlink(missing_ok=True)


def _write_nonce(folder: Path) -> Path:
    """Write a file with its own name inside; remove those that killed drivers of this machine have left."""
    prefix = f".ray-{host_name()}-"
    for path in folder.glob(f"{prefix}*"):
        if not is_running(int(path.name.removeprefix(prefix).partition("-")[0])):
            path.unlink(missing_ok=True)
    nonce = folder / f"{prefix}{os.getpid()}-{os.urandom(8).hex()}"
    write_text(nonce, nonce.name)
    return nonce


def _node_of(actor: _Actor[Task], error: Exception) -> str:
    """Return the id of the node where an actor was, or nothing if it is unknown."""
    import ray

    if actor.reply is not None:
        return actor.reply.node
    with suppress(ray.exceptions.RayError):
        if ray.wait([actor.place], timeout=0)[0]:
            return str(ray.get(actor.place))
    return _node_that_ended(error)  # before it ran


def _node_that_ended(error: Exception) -> str:
    named = re.search(r"its node has died\. Node Id: (\w+)", str(error))
    return named[1] if named else ""


def _living_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _send_signal(pid: int, number: int) -> None:
    os.kill(pid, number)  # a function of C, which Ray does not take


def _reason(error: Exception) -> str:
    """Return what was raised in a task, and where, or the end of what Ray says of a death."""
    import ray

    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "its connection is lost"
    if _node_that_ended(error):
        return "its node has ended"
    if isinstance(error, ray.exceptions.RayTaskError) and error.cause is not None:
        places = re.findall(r'File ".*?([^/"]+)", line (\d+)', str(error))
        where = f" ({places[-1][0]}:{places[-1][1]})" if places else ""
        return one_line(f"{type(error.cause).__name__}: {error.cause}{where}")[:300]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    detail = lines[-1].partition("Worker exit detail: ")[2] or lines[-1]
    return one_line(detail.partition(" Some common causes include")[0])[:300].rstrip(".")
