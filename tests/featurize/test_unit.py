"""One shard is a unit of work: whoever computes it, in whatever order and company, the store has the same bytes."""

import json
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lugpi
from featurize.cli import main
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.lease import ShardBusy
from lugpi_core.store.manifest import RECORDS
from lugpi_core.store.run_manifest import RUN, read_run
from tests.support.read_only import make_read_only
from tests.support.small_corpus import load_no_model, small_table

SETTINGS = lugpi.FeaturizeSettings(steps=2, batch_size=4, shard_rows=2)
MODELS: dict[str, Any] = {"generator": "demo", "encoders": ["clip-demo"]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def corpus(table: Path) -> Corpus:
    return lugpi.load_corpus(str(table), lugpi.CorpusSettings(prompt_column="picture"))


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a store of six shards that one process filled."""
    run = tmp_path_factory.mktemp("whole")
    lugpi.featurize(corpus, run, settings=SETTINGS, progress=False, **MODELS)
    return _files(run)


def _files(run: Path) -> dict[str, bytes]:
    """Return every file of a store but locks and record files, which say who computed a shard."""
    store = run / "tokens"
    paths = [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != ".lock" and path.parent.name != RECORDS]
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in paths}


def _without_manifests(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out what says with which flags a column was begun: a command has others than a call."""
    return {name: content for name, content in files.items() if not name.endswith("/manifest.json")}


def _content(run: Path) -> dict[str, bytes]:
    return _without_manifests(_files(run))


def _job(corpus: Corpus, run: Path, **settings: Any) -> lugpi.FeaturizeJob:
    chosen = lugpi.FeaturizeSettings(**{"steps": 2, "batch_size": 4, "shard_rows": 2, **settings})
    return lugpi.FeaturizeJob(corpus=corpus, run_dir=run, settings=chosen, **MODELS)


def _part(table: Path, run: Path, part: str, *flags: str) -> int:
    fast = ["--generator", "demo", "--encoders", "clip-demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "2"]
    return main(["--dataset", str(table), "--prompt-column", "picture", "--run-dir", str(run), *fast, "--part", part, *flags])


def test_shards_in_any_order_make_the_store_of_one_process(corpus: Corpus, tmp_path: Path, whole: dict[str, bytes]) -> None:
    job = _job(corpus, tmp_path)
    with lugpi.ShardFeaturizer(pickle.loads(pickle.dumps(job))) as featurizer:
        assert (featurizer.shards, featurizer.missing()) == (6, [0, 1, 2, 3, 4, 5])
        records = {shard: featurizer.fill(shard) for shard in (5, 1, 4, 0, 3)}
        assert (featurizer.missing(), featurizer.finish()) == ([2], False)
    assert all(record.computed and record.rows == 2 for record in records.values())
    last = lugpi.featurize_shard(job, 2)
    assert _files(tmp_path) == whole
    assert json.loads((tmp_path / "tokens/clip-demo" / RECORDS / "shard-00002.json").read_text())["record"] == last.columns["clip-demo"]


def test_a_shard_that_is_final_is_returned_as_it_is(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lugpi.featurize_shard(_job(corpus, tmp_path), 3)
    load_no_model(monkeypatch)
    again = lugpi.featurize_shard(_job(corpus, tmp_path), 3)
    assert (again, again.computed) == (first, False)
    assert pickle.loads(pickle.dumps(again)) == first


def test_a_shard_is_checked_before_it_counts_as_final(corpus: Corpus, tmp_path: Path) -> None:
    job = _job(corpus, tmp_path)
    first = lugpi.featurize_shard(job, 0)
    path = tmp_path / "tokens" / "clip-demo" / first.columns["clip-demo"]["file"]
    content = path.read_bytes()
    path.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    again = lugpi.featurize_shard(job, 0)
    assert (again, again.computed, path.read_bytes()) == (first, True, content)


def test_no_such_shard_and_a_busy_one_are_one_line(corpus: Corpus, tmp_path: Path) -> None:
    with lugpi.ShardFeaturizer(_job(corpus, tmp_path)) as featurizer, lugpi.ShardFeaturizer(_job(corpus, tmp_path)) as other:
        with pytest.raises(InputError, match="got shard 6; expected a number from 0 to 5"):
            featurizer.fill(6)
        held = [writer.claim(1) for writer in other._writers.values()]
        with pytest.raises(ShardBusy, match=rf"shard-00001\.h5, which process {os.getpid()} on .* is writing"):
            featurizer.fill(1)
        for file in held:
            assert file is not None
            file.close()
        assert featurizer.fill(1).computed


@pytest.mark.parametrize("has_locks", [True, False])
def test_parts_make_the_store_of_one_process(
    table: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_locks: bool,
) -> None:
    monkeypatch.setattr("lugpi_core.store.writer.has_locks", lambda folder: has_locks)
    assert _part(table, tmp_path, "1/4") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["part"], figures["missing_shards"]) == ("1/4", 0 if has_locks else 4)
    assert (figures["complete"], figures["part_complete"]) == (has_locks, True)
    assert (_content(tmp_path) == _without_manifests(whole)) is has_locks, "a part that is done helps the others if there are locks"
    for part in ("0/3", "1/3", "2/3"):  # n changes half-way
        assert _part(table, tmp_path, part) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_done"] is has_locks
    assert _content(tmp_path) == _without_manifests(whole)


def test_a_part_waits_for_its_own_shards_only(
    corpus: Corpus, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lugpi.ShardFeaturizer(_job(corpus, tmp_path)) as other:
        held = {shard: [writer.claim(shard) for writer in other._writers.values()] for shard in (1, 2)}

        def release(seconds: float) -> None:
            for file in held.pop(1):
                assert file is not None
                file.close()

        monkeypatch.setattr("featurize.fill.shards.time", SimpleNamespace(sleep=release))
        assert _part(table, tmp_path, "1/2") == 0
        said = capsys.readouterr()
        assert f"waiting for process {os.getpid()} on " in said.err
        assert "part 1/2 is done; 1 shard of other parts missing: 2" in said.err
        for file in held.pop(2):
            assert file is not None
            file.close()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--seed", "7"), r"generation\.seed: found 0, wanted 7|--seed: 0 then, 7 now"),
        (("--shard-rows", "3"), "shard_rows: found 2, wanted 3"),
        (("--label-column", "picture"), r"corpus: found \S+, wanted \S+"),
    ],
)
def test_another_run_is_refused_by_name_and_changes_nothing(
    corpus: Corpus, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str], named: str
) -> None:
    lugpi.featurize_shard(_job(corpus, tmp_path), 0)
    before = _files(tmp_path)
    capsys.readouterr()
    assert _part(table, tmp_path, "1/2", *flags) == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert complaint.startswith("error: got a store in ")
    assert re.search(named, complaint), complaint
    assert _files(tmp_path) == before


def test_a_bad_part_is_one_line_and_writes_nothing(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _part(table, tmp_path / "run", "4/4") == 2
    assert capsys.readouterr().err.startswith("error: got --part 4/4; expected i/n")
    assert not (tmp_path / "run").exists()


def test_the_run_manifest_says_what_is_filled(corpus: Corpus, tmp_path: Path) -> None:
    lugpi.featurize_shard(_job(corpus, tmp_path), 0)
    run = read_run(tmp_path / "tokens")
    assert run is not None
    assert (run["corpus"], run["rows"], run["shard_rows"], run["shards"]) == (corpus.fingerprint(), 12, 2, 6)
    assert run["images"]["generation"]["generator"]["weights"]
    assert set(run["columns"]) == {"latents", "clip-demo"}
    (tmp_path / "tokens" / RUN).write_text("{}")
    lugpi.featurize_shard(_job(corpus, tmp_path), 1)
    assert read_run(tmp_path / "tokens") == run


def test_missing_merge_and_plan_tell_what_is_left(
    corpus: Corpus, table: Path, tmp_path: Path, whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", str(table), "--run-dir", str(tmp_path)]
    assert main(["missing", *flags]) == 2
    assert "no token store in" in capsys.readouterr().err
    with lugpi.ShardFeaturizer(_job(corpus, tmp_path)) as featurizer:
        for shard in (1, 2):
            featurizer.fill(shard)
    capsys.readouterr()
    assert main(["missing", *flags]) == 0
    assert capsys.readouterr().out == "0,3-5\n"
    assert main(["missing", *flags, "--format", "lines", "--parts", "3"]) == 0
    assert capsys.readouterr().out == "0\n1\n2\n"
    for name in ("merge", "info"):
        assert main([name, *flags]) == 1
        said = capsys.readouterr()
        figures = json.loads(said.out)
        assert (figures["complete"], figures["missing_shards"]) == (False, "0,3-5")
        assert "2 of 6 shards are final (clip-demo 2, latents 2)" in said.err
    settings = [f"--{name.replace('_', '-')}" for name in ("steps", "batch_size")]
    run = [settings[0], "2", settings[1], "4", "--shard-rows", "2", "--generator", "demo", "--encoders", "clip-demo"]
    assert main(["plan", *flags, "--prompt-column", "picture", *run]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["shards"], figures["missing"], figures["rows"]) == (6, 4, 12)
    assert figures["hours"] == pytest.approx(4 * figures["seconds_per_shard"] / 3600)
    with lugpi.ShardFeaturizer(_job(corpus, tmp_path)) as featurizer:
        for shard in featurizer.missing():
            featurizer.fill(shard)
    capsys.readouterr()
    assert main(["info", *flags]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out).items() >= {"complete": False, "merged": False, "missing_shards": ""}.items()
    assert "NOT COMPLETE: tokens.h5 is not that of these shards; run python -m featurize merge\n" in said.err
    assert main(["merge", *flags]) == 0
    assert _files(tmp_path) == whole
    assert main(["info", *flags, "--watch"]) == 0
    assert "6 of 6 shards are final (clip-demo 6, latents 6)" in capsys.readouterr().err


def test_an_unfinished_store_that_is_read_only_is_one_line(
    corpus: Corpus, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with lugpi.ShardFeaturizer(_job(corpus, tmp_path)) as featurizer:
        featurizer.fill(0)
    make_read_only(monkeypatch, tmp_path)
    assert _part(table, tmp_path, "1/2") == 2
    assert "no permission to write), which has no complete latents, clip-demo" in capsys.readouterr().err
