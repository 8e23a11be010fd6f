"""Actors that end while they start, without a Ray."""

from pathlib import Path

import pytest

from lugpi_core.cluster import crew as crews
from lugpi_core.cluster.actor import Reply
from lugpi_core.cluster.connection import Share
from lugpi_core.cluster.crew import MOST_TRIES, ActorWork, RayCrew
from lugpi_core.errors import InputError
from tests.support.ray_tasks import load


def test_others_go_on_and_the_next_starts_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = RayCrew(ActorWork(load=load, inputs=tmp_path, share=Share(), most=2))
    for _ in range(MOST_TRIES - 1):
        crew._after_failed_start("killed")
    with pytest.raises(InputError, match="got 3 actors that ended while they started, the last: killed"):
        crew._after_failed_start("killed")
    crew._actors.append(crews._Actor(handle=None, call=None, reply=Reply(host="a", node="b", pid=1)))
    crew._after_failed_start("killed")
    assert (
        "the last 4 actors have ended while they started: killed; the others go on, the next starts in a minute" in capsys.readouterr().err
    )
    for task in "ab":
        crew.give(task)
    crew._start_actors()
    assert len(crew._actors) == 1
    monkeypatch.setattr(crews, "PAUSE_S", 0.0)
    crew._after_failed_start("killed")
    assert "another is started" in capsys.readouterr().err
