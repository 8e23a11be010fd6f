"""``python -m benchmarks ray``: a call of an actor, and what is made of the figures; on a real Ray, so in ``make soak`` alone, where
tests/soak runs all of it."""

import json

import pytest

from benchmarks.cli import main
from benchmarks.cluster import ray_speed
from lugpi_core.cluster.connection import connected


@pytest.mark.soak
def test_promises_are_compared_with_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, ray_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_speed, "connected", lambda _: connected(ray_address))
    for name, figures in (("shard", {"overhead": 0.03}), ("actors", {"faster": 1.9}), ("tables", {"faster": 1.6})):
        monkeypatch.setitem(ray_speed.PARTS, name, lambda *_, figures=figures: figures)
    assert main(["ray", "--smoke"]) == 0
    measured = json.loads(capfd.readouterr().out.splitlines()[-1])["figures"]
    assert measured["call"]["ms"] > 0
    assert measured["met"] == {"overhead": False, "actors": True, "tables": False}
