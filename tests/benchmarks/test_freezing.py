"""The price of frozen layers: which models are trained, with which flags, and what of them is in the table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import freezing
from benchmarks.freezing import measure, ways_of
from benchmarks.options import FreezingOptions
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, write_json


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands, each of which writes a record in place of training: more frozen layers are faster and worse."""
    given: list[list[str]] = []

    def run(commands: Sequence[Sequence[str]]) -> None:
        (words,) = (list(command) for command in commands)
        given.append(words)
        value = {flag: words[words.index(flag) + 1] for flag in ("--run-dir", "--name", "--seed")}
        frozen = 2 if "--update" in words else int(words[words.index("--freeze-layers") + 1]) if "--freeze-layers" in words else 0
        record: dict[str, Any] = {
            "accuracy": {"test": 0.8 - 0.1 * frozen + 0.01 * int(value["--seed"])},
            "history": [{"seconds": 8.0 / 2**frozen}],
            "times": {"prefix_s": 3.0} if frozen else {},
            "peak_memory": {"host_bytes": 10**9},
        }
        write_json(make_folder(Path(value["--run-dir"]) / value["--name"]) / "metrics.json", record)

    monkeypatch.setattr(freezing, "run_commands", run)
    return given


def test_each_number_of_layers_is_trained_with_each_seed_once(commands: list[list[str]], tmp_path: Path) -> None:
    options = FreezingOptions(corpora=("demo",), runs=tmp_path)
    rows = measure(options)["figures"]["demo"]["frozen"]
    assert len(commands) == 9
    assert rows["1"] == {"accuracy": 0.71, "sd": 0.01, "epoch_s": 4.0, "prefix_s": 3.0, "peak_gb": 1.0, "epoch_over": 2.0}
    assert [row["epoch_over"] for row in rows.values()] == [1.0, 2.0, 4.0]
    assert measure(options)["figures"]["demo"]["frozen"] == rows
    assert len(commands) == 9


def test_a_head_has_a_learning_rate_of_its_own(commands: list[list[str]], tmp_path: Path) -> None:
    measure(FreezingOptions(corpora=("demo",), runs=tmp_path, seeds=1))
    rates = [words[n + 1] for words in commands for n, word in enumerate(words) if word == "--learning-rate"]
    assert rates == ["5e-4", "5e-4", "1e-3"]


def test_of_six_layers_every_second_number_is_tried() -> None:
    assert list(ways_of(6)) == ["0", "2", "4", "all"]


def test_an_unknown_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--corpora reuters; expected one of cwi-wikinews"):
        measure(FreezingOptions(corpora=("reuters",), runs=tmp_path))
