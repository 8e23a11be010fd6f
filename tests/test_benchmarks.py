"""The benchmarks run at smoke size, and the harness counts what it says it counts."""

import json
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.cli import main
from benchmarks.harness import finish, interleaved, median_ratio, medians


def test_candidates_run_in_turn_after_a_warm_up_apart() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert order == ["a", "b"] * 4
    assert [len(one) for one in seconds.values()] == [3, 3]


def test_ratios_are_of_the_same_round() -> None:
    seconds = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 4.0]}
    assert median_ratio(seconds, "slow", "fast") == 2.0
    assert medians(seconds) == {"slow": 4.0, "fast": 4.0}


def test_a_record_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    result = finish("store", {"rows_per_s": 1}, record=True)
    written = json.loads((tmp_path / result["recorded"]).read_text())
    assert written["figures"] == {"rows_per_s": 1}
    assert {"versions", "commit", "platform", "made_at"} <= set(written["provenance"])


@pytest.mark.parametrize("question", ["store", "featurize", "train"])
def test_a_benchmark_runs_at_smoke_size(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([question, "--smoke"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["benchmark"] == question
    assert result["figures"]


def test_records_in_the_repository_are_whole() -> None:
    for path in harness.RESULTS.glob("*.json"):
        record = json.loads(path.read_text())
        assert {"benchmark", "hardware", "figures", "provenance"} <= set(record), path.name
