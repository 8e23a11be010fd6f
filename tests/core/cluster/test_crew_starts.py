"""Actors that end while they start, or with their node, without a Ray."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from lugpi_core.cluster import crew as crews
from lugpi_core.cluster.actor import Reply
from lugpi_core.cluster.connection import Share
from lugpi_core.cluster.crew import MOST_TRIES, ActorWork, RayCrew
from lugpi_core.errors import InputError
from tests.support.ray_tasks import load

End = Callable[..., list[object]]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Those that live; ``going`` has ended, but Ray does not know."""
    living = {"here", "going"}
    monkeypatch.setattr(crews, "_living_nodes", lambda: living)
    return living


@pytest.fixture
def crew(tmp_path: Path) -> RayCrew[str]:
    return RayCrew(ActorWork(load=load, inputs=tmp_path, share=Share(), most=2))


@pytest.fixture
def end(crew: RayCrew[str], nodes: set[str], monkeypatch: pytest.MonkeyPatch) -> End:
    """Let an actor end on a node, while it starts or has a task."""
    monkeypatch.setattr(crews, "_node_of", lambda actor, _: actor.place)
    monkeypatch.setattr(RayCrew, "_end", lambda self, actor: None)

    def end(node: str, error: Exception | None, given: object = None) -> list[object]:
        reply = None if given is None else Reply(host="a", node=node, pid=1)
        return list(crew._after_death(crews._Actor(handle=None, place=node, call=None, reply=reply, given=given), error))  # type: ignore[arg-type]

    return end


def died() -> Exception:
    """What Ray says of a process whose end its node has told."""
    from ray.exceptions import ActorDiedError

    return ActorDiedError()


def lost() -> Exception:
    """What Ray says first when a node has ended."""
    from ray.exceptions import ActorUnavailableError

    return ActorUnavailableError("Socket closed", None)


def test_others_go_on_and_the_next_starts_later(
    crew: RayCrew[str], end: End, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(MOST_TRIES - 1):
        end("here", died())
    with pytest.raises(InputError, match="got 3 actors that ended while they started, the last: The actor died"):
        end("here", died())
    crew._actors.append(crews._Actor(handle=None, place=None, call=None, reply=Reply(host="a", node="here", pid=1)))
    end("here", died())
    told = capsys.readouterr().err
    assert "the last 4 actors have ended while they started: The actor died" in told
    assert "the others go on, the next starts in a minute" in told
    for task in "ab":
        crew.give(task)
    crew._start_actors()
    assert len(crew._actors) == 1
    monkeypatch.setattr(crews, "PAUSE_S", 0.0)
    end("here", died())
    assert "another is started" in capsys.readouterr().err


def test_the_end_of_a_node_is_no_failed_start(end: End, nodes: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(8):
        end("going", lost())
    nodes.remove("going")
    for error in (died(), died(), None):
        end("here", error)
        end("going", died())
    assert capsys.readouterr().err.count("another is started") == 14
    with pytest.raises(InputError, match="got 3 actors that ended while they started"):
        end("", died())


def test_a_lost_connection_to_a_node_that_stays_is_a_failed_start(end: End, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(MOST_TRIES):
        end("here", lost())
    monkeypatch.setattr(crews, "NODE_LOST_S", -1.0)
    with pytest.raises(InputError, match="got 4 actors that ended while they started, the last: its connection is lost"):
        end("here", lost())


def test_the_end_of_a_node_is_the_fault_of_no_task(crew: RayCrew[str], end: End) -> None:
    given = crews._Given("a")
    for node, error in (("here", died()), ("here", died()), ("going", lost())):
        assert end(node, error, given) == []
    assert crew.tasks == ["a"] * 3
    assert end("here", died(), given)


def test_a_node_that_went_before_its_actor_ran_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "wait", lambda refs, timeout: ([], refs))
    actor: crews._Actor[str] = crews._Actor(handle=None, place=None, call=None)
    told = "The actor died because its node has died. Node Id: 38db845a\n\tits heartbeats are missing\nThe actor never ran."
    error = ray.exceptions.RayActorError(error_msg=told)
    assert crews._node_of(actor, error) == "38db845a"
    assert crews._reason(error) == "its node has ended"
    assert crews._node_of(actor, died()) == ""


def test_actors_with_something_to_do_are_sent_something_each_minute(
    crew: RayCrew[str], nodes: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[str] = []
    for name, call in (("busy", "a call"), ("idle", None)):
        handle = SimpleNamespace(node=SimpleNamespace(remote=partial(calls.append, name)))
        crew._actors.append(crews._Actor(handle=handle, place=None, call=call, reply=Reply(host="a", node="here", pid=1)))
    crew._say_what_runs()
    assert calls == []
    monkeypatch.setattr(crews, "SAY_EVERY_S", 0.0)
    crew._say_what_runs()
    assert calls == ["busy"]
    assert "0 done, 0 run, 0 to go" in capsys.readouterr().err
