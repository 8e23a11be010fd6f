"""The stages of a million texts run with a few, and what is promised of them is computed from what was measured; so are other formats."""

import json
from pathlib import Path

import pytest

from benchmarks.cli import main
from benchmarks.scale.many_texts import write_texts
from benchmarks.scale.scale import growth, promises
from benchmarks.scale.stages import STAGES
from benchmarks.store import peers
from lugpi_core.corpora.load import load_corpus


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of 60 texts."""
    path = tmp_path_factory.mktemp("few") / "few.csv"
    write_texts(path, 60)
    return path


def test_synthetic_texts_are_all_different_and_many_are_quoted(few: Path) -> None:
    corpus = load_corpus(few)
    assert len({example.text for example in corpus.examples}) == 60
    assert sum('"' in example.text for example in corpus.examples) == 15
    assert not all(example.text.isascii() for example in corpus.examples)


@pytest.mark.parametrize(
    "stage", ["read", "examples.h5", "token ids", "batches", "predictions", "prompts, chunks", "prompts, keywords", "evaluate"]
)
def test_a_stage_runs(few: Path, tmp_path: Path, stage: str) -> None:
    before = few.read_bytes()
    STAGES[stage](few, tmp_path)
    assert few.read_bytes() == before


def test_promises_are_of_time_per_text_and_of_memory_over_the_file() -> None:
    run = {"before_bytes": 100.0, "peak_bytes": 350.0}
    assert growth(run, 100) == 2.5
    found = promises({"read": {"1000": {"memory": 2.5}, "time_ratio": 11.0}}, large="1000", ratio=10)
    assert [(promise["measured"], promise["met"]) for promise in found] == [(1.1, True), (2.5, False)]


def test_every_format_is_read_or_named_as_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers", "--smoke"]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out.strip().splitlines()[-1])["figures"]
    assert {*figures["hot"]["rows_per_s"], *figures["not_measured"]} == set(peers.PEERS)
    assert all(f"| {name} |" in captured.err for name in peers.PEERS)
    against = {promise["what"] for promise in figures["promises"]}
    assert {"hot: ours against memmap", "cold: ours against memmap", "hot: ours against safetensors, slices"} <= against
