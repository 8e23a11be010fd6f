"""The benchmarks run in smoke size, and the harness measures what it claims."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from benchmarks import harness
from benchmarks.cli import main
from benchmarks.harness import finish, interleaved, median_ratio, medians, promise
from benchmarks.store.page_cache import cached_share, drop_pages
from benchmarks.store.store_reading import COLD, FANCY, HOT, IN_ORDER, OURS, pick, rates
from benchmarks.store.store_speed import promises
from benchmarks.store.store_writing import FILLS, PUBLISHED, RAW
from benchmarks.store.store_writing import OURS as OUR_WRITING
from benchmarks.store.token_files import COLUMN, TokenFiles, random_tokens, write_everywhere
from benchmarks.train.epoch_speed import counted_padding
from benchmarks.train.int8_drift import compare, with_outliers
from benchmarks.train.prefix_speed import texts_of_batches
from lugpi_core.store.manifest import load_manifest, read_manifest
from lugpi_core.store.reader import ColumnReader

ROW_SHAPE = (5, 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TokenFiles:
    """40 small rows in every format; the store has three shards."""
    return write_everywhere(tmp_path_factory.mktemp("formats") / "files", random_tokens(40, ROW_SHAPE), shard_rows=16)


def test_candidates_alternate_after_an_untimed_warm_up() -> None:
    order: list[str] = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(rounds) for rounds in seconds.values()] == [3, 3]


def test_preparation_before_a_run_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def spend(seconds: float) -> None:
        clock[0] += seconds

    prepared: list[str] = []

    def before(name: str) -> None:
        prepared.append(name)
        spend(100)

    seconds = interleaved({"a": lambda: spend(1), "b": lambda: spend(2)}, repeats=2, before=before)
    assert "".join(prepared) == "ab" + "ab" + "ba"
    assert seconds == {"a": [1, 1], "b": [2, 2]}


def test_ratios_are_taken_within_a_round() -> None:
    seconds = {"slow": [2.0, 30.0, 4.0], "fast": [1.0, 10.0, 4.0]}
    assert median_ratio(seconds, "slow", "fast") == 2.0
    assert medians(seconds) == {"slow": 4.0, "fast": 4.0}


def test_a_promise_is_met_within_its_limit_and_never_by_what_was_not_measured() -> None:
    assert promise("ours over theirs", 2.0, at_least=2.0) == {"what": "ours over theirs", "measured": 2.0, "at_least": 2.0, "met": True}
    assert promise("memory", 3.0, at_most=2.0) == {"what": "memory", "measured": 3.0, "at_most": 2.0, "met": False}
    assert not promise("images/s", None, at_least=0.0)["met"]


def test_a_few_batches_favour_a_plain_shuffle_over_ours() -> None:
    lengths_N = np.random.default_rng(0).geometric(1 / 40, 2000)
    few = texts_of_batches(lengths_N, 8)
    whole, sample = counted_padding(lengths_N), counted_padding(few)
    assert len(few) == 8 * 14
    assert 1.2 < sample["tokens_ratio"] < whole["tokens_ratio"], "the longest texts are in none"


def test_a_record_contains_its_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    result = finish("store", {"rows_per_s": 1}, record=True)
    written = json.loads((tmp_path / result["recorded"]).read_text())
    assert written["figures"] == {"rows_per_s": 1}
    assert {"versions", "commit", "platform", "made_at"} <= set(written["provenance"])


@pytest.mark.filterwarnings("ignore:--limit leaves no (train|validation|test) example:UserWarning")
@pytest.mark.parametrize("question", ["store", "featurize", "train", "memory", "fidelity", "evaluate"])
def test_a_benchmark_runs_in_smoke_size(question: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([question, "--smoke"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["benchmark"] == question
    assert result["figures"]


def test_all_runs_the_five_benchmarks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[str] = []
    names = ("store.store_speed", "featurize.featurize_speed", "train.train_speed", "train.training_memory", "train.int8_drift")
    for name in names:

        def measure(*, smoke: bool, record: bool, name: str = name, **others: Any) -> dict[str, bool]:
            assert others in ({}, {"cases": ()}, {"data_dir": Path("data")})
            called.append(name)
            return {"smoke": smoke, "record": record}

        monkeypatch.setattr(f"benchmarks.{name}.measure", measure)
    assert main(["all", "--smoke"]) == 0
    assert called == list(names)
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert list(result) == ["store", "featurize", "train", "memory", "fidelity"]
    assert all(figures == {"smoke": True, "record": False} for figures in result.values())


def test_every_format_holds_the_same_tokens(files: TokenFiles) -> None:
    tokens = random_tokens(40, ROW_SHAPE)
    assert np.isfinite(tokens).all()
    assert np.unique(tokens).size > 500
    assert np.array_equal(np.fromfile(files.raw, np.float16).reshape(tokens.shape), tokens)
    assert np.array_equal(np.load(files.npy), tokens)
    for path in files.hdf5.values():
        with h5py.File(path) as file:
            assert np.array_equal(file["tokens"][:], tokens)
    assert np.array_equal(ColumnReader(files.store, COLUMN).gather(np.arange(40)), tokens)
    assert len(files.shards) == 3


def test_the_hdf5_files_have_the_chunks_they_are_named_after(files: TokenFiles) -> None:
    chunks = {}
    for layout, path in files.hdf5.items():
        with h5py.File(path) as file:
            chunks[layout] = file["tokens"].chunks
    assert chunks["contiguous"] is None
    assert chunks["one-row chunks"] == (1, *ROW_SHAPE)
    assert chunks["chunks=True"] is not None


def test_batches_are_ascending_without_repetition_and_different() -> None:
    batches = pick(40, 3)
    assert all((np.diff(rows) > 0).all() and len(rows) == 14 and 0 <= rows[0] <= rows[-1] < 40 for rows in batches)
    assert not np.array_equal(batches[0], batches[1])


@pytest.mark.parametrize("name", sorted({*HOT, *COLD} - {IN_ORDER}))
def test_every_way_of_reading_reads_the_same_rows(files: TokenFiles, name: str) -> None:
    batches = pick(40, 3)
    assert np.array_equal((HOT | COLD)[name](files)(batches), random_tokens(40, ROW_SHAPE)[batches[-1]])


def test_rates_are_per_row_and_ratios_within_a_round() -> None:
    figures = rates({OURS: [0.5, 1.0, 1.0], "other": [1.0, 3.0, 8.0]}, ours=OURS)
    assert figures == {"rows_per_s": {OURS: 1, "other": 0}, "ours_against": {"other": 3.0}}


def test_dropped_pages_are_gone_and_read_pages_are_cached(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert cached_share([path]) == 1.0
    drop_pages([path])
    if cached_share([path]) == 1.0:
        pytest.skip("this file system keeps its pages (a memory file system)")
    assert cached_share([path]) == 0.0
    path.read_bytes()
    assert cached_share([path]) == 1.0


@pytest.mark.parametrize("name", sorted(FILLS))
def test_every_way_of_writing_writes_every_row(tmp_path: Path, name: str) -> None:
    tokens = random_tokens(40, ROW_SHAPE)
    FILLS[name](tmp_path / "written", tokens, shard_rows=16)
    if name in (OUR_WRITING, PUBLISHED):
        records = load_manifest(tmp_path / "written" / COLUMN)[1]
        assert all("sha256" in record for record in records.values())
        assert set(read_manifest(tmp_path / "written" / COLUMN)[1]) == (set(records) if name == PUBLISHED else set())
        assert np.array_equal(ColumnReader(tmp_path / "written", COLUMN).gather(np.arange(40)), tokens)
    elif name == RAW:
        parts = sorted((tmp_path / "written").iterdir(), key=lambda path: int(path.stem))
        assert b"".join(part.read_bytes() for part in parts) == tokens.tobytes()
    else:
        for first in (0, 16, 32):
            with h5py.File(tmp_path / "written" / f"{first}.h5") as file:
                assert np.array_equal(file["tokens"][:], tokens[first : first + 16])


def test_a_broken_promise_is_reported() -> None:
    ratios = dict.fromkeys(HOT, 1000.0)
    figures = {
        "B/32": {"hot": {"ours_against": ratios}, "cold": {"ours_against": dict(ratios)}, "writing": {"ours_over": {RAW: 0.9}}},
        "memory": {"growth": 0.01},
    }
    assert len(promises(figures)) == 6
    assert all(promise["met"] for promise in promises(figures))
    ratios[FANCY["one-row chunks"]] = 99.0
    figures["memory"] = {"growth": 0.06}
    broken = [promise["what"] for promise in promises(figures) if not promise["met"]]
    assert broken == ["hot: ours against h5py fancy, one-row chunks", "a store 20 times as large: growth of a reader's memory"]


def test_int8_is_compared_by_the_logits_of_a_model() -> None:
    tokens_NTD = torch.randn(6, 3, 32, generator=torch.Generator().manual_seed(0))
    weight_DK = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float()[:, 0] @ weight_DK

    fine = compare(tokens_NTD, logits)
    assert 0.999 < fine["cosine"]["min"] <= fine["cosine"]["mean"] <= 1.0
    assert fine["int8_over_float16_bytes"] == round((32 + 4) / 64, 5)
    assert 0 < fine["moved_beside_another_picture"] < 0.05
    stressed = compare(with_outliers(tokens_NTD), logits)
    assert stressed["cosine"]["min"] < 1.0


def test_a_model_that_flips_with_the_rounding_is_detected() -> None:
    tokens_NTD = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(0)).half()

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        sign = 1.0 if torch.equal(tokens, tokens_NTD) else -1.0
        return sign * tokens_NTD.float()[:, 0]

    turned = compare(tokens_NTD, logits)
    assert turned["cosine"]["mean"] == -1.0
    assert turned["same_argmax"] == 0.0


def test_records_in_the_repository_are_complete() -> None:
    for path in harness.RESULTS.glob("*.json"):
        record = json.loads(path.read_text())
        assert {"benchmark", "hardware", "figures", "provenance"} <= set(record), path.name
