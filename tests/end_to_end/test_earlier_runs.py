"""A store and a run from before the folders were rearranged (commit 9eb8d91) open today: tokens, models and tables.

``tests/fixtures/earlier-run.tar.gz`` holds a corpus, a text model and a run folder. The run was generated and trained by that commit with
the commands below, so each of them must find its work done.
"""

import json
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import featurize.cli
import train.cli
from tests.support.checkout import ROOT

CORPUS = ("--dataset", "topics.csv", "--split-column", "split")
GENERATION = ("--generator", "demo", "--encoders", "vit-demo", "--steps", "2", "--shard-rows", "32")
TRAINING = (*CORPUS, "--text-model", "text-model", "--epochs", "2")
ROWS = ("baseline", "teacher-vit-demo", "student-vit-demo", "teacher-none", "student-none")
# Keys of tables.json whose values are written for people.
SENTENCES = {"title", "caption", "verdicts", "finding", "notes"}
# What a command did this time, not what the run holds.
THIS_TIME = {"trained", "written"}
RUN = Path("runs/topics")

Succeed = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(ROOT / "tests" / "fixtures" / "earlier-run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def succeed(capsys: pytest.CaptureFixture[str]) -> Succeed:
    """Run a command in this process and return the JSON object of its last line."""

    def run(package: str, *arguments: str) -> dict[str, Any]:
        main = {"featurize": featurize.cli.main, "train": train.cli.main}[package]
        status = main(arguments)
        output = capsys.readouterr()
        assert status == 0, output.err
        last: dict[str, Any] = json.loads(output.out.splitlines()[-1])
        return last

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Return every number, name and empty container of a JSON value by its path; sentences count as present."""
    if isinstance(value, dict) and value:
        inner = {key: "…" if key in SENTENCES else item for key, item in value.items() if key not in THIS_TIME}
        return {place: leaf for key, item in inner.items() for place, leaf in leaves(item, f"{path}/{key}").items()}
    if isinstance(value, list) and value:
        return {place: leaf for n, item in enumerate(value) for place, leaf in leaves(item, f"{path}/{n}").items()}
    return {path: value}


def test_featurize_finds_the_store_complete(succeed: Succeed) -> None:
    before = contents(RUN / "tokens")
    figures = succeed("featurize", *CORPUS, *GENERATION)
    assert figures["already_done"]
    assert set(figures["rows"].values()) == {0}
    assert contents(RUN / "tokens") == before


def test_verify_finds_every_row_intact(succeed: Succeed) -> None:
    before = contents(RUN / "tokens")
    assert succeed("featurize", "verify", "--dataset", "topics.csv", "--deep")["complete"]
    assert contents(RUN / "tokens") == before


def test_info_describes_the_store(succeed: Succeed) -> None:
    columns = succeed("featurize", "info", "--dataset", "topics.csv")["columns"]
    assert {name: (column["rows_final"], column["shards"]) for name, column in columns.items()} == {"latents": (60, 2), "vit-demo": (60, 2)}


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (("baseline",), "baseline"),
        (("images",), "images"),
        (("teacher",), "teacher"),
        (("teacher", "--privileged", "none"), "teacher-none"),
        (("student",), "student"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_trained_model_is_not_trained_again(succeed: Succeed, arguments: tuple[str, ...], folder: str) -> None:
    before = contents(RUN)
    figures = succeed("train", *arguments, *TRAINING)
    assert figures["already_done"]
    assert figures["model"] == f"runs/topics/{folder}"
    recorded = json.loads((RUN / folder / "metrics.json").read_text())
    assert figures["accuracy"] == {split: pytest.approx(value, abs=1e-6) for split, value in recorded["accuracy"].items()}
    after = contents(RUN)
    assert {name: after.get(name) for name in before} == before


def test_tables_have_the_same_figures(succeed: Succeed) -> None:
    before = leaves(json.loads((RUN / "tables.json").read_text()))
    figures = succeed("train", "tables", *TRAINING, "--no-train", "--seeds", "1", "--rows", *ROWS)
    assert figures["trained"] == []
    after = leaves(figures)
    numbers = {place: value for place, value in before.items() if isinstance(value, float)}
    others = {place: value for place, value in before.items() if place not in numbers}
    assert {place: after.get(place) for place in others} == others
    # A processor of another kind adds in another order.
    assert {place: after.get(place) for place in numbers} == pytest.approx(numbers, rel=1e-9)
    assert leaves(json.loads((RUN / "tables.json").read_text())) == after


def test_the_report_reads_the_old_models(succeed: Succeed) -> None:
    figures = succeed("train", "report", *CORPUS)
    page = Path(figures["report"]).read_text(encoding="utf-8")
    assert all(row in page for row in ROWS)


def test_the_student_loads_in_transformers() -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(RUN / "student"), device="cpu")
    assert classify("a dog at the sea")[0]["score"] > 1 / 3


def test_a_damaged_shard_is_repaired_and_the_view_renewed(succeed: Succeed) -> None:
    """The shards' names had no piece of the fingerprint, and the hashes of models were of files alone."""
    shard, view = RUN / "tokens" / "vit-demo" / "shard-00001.h5", RUN / "tokens" / "tokens.h5"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3000] + bytes(3000))
    assert succeed("featurize", *CORPUS, *GENERATION)["rows"]["encoded"] > 0
    (repaired,) = (RUN / "tokens" / "vit-demo").glob("shard-00001*")
    assert repaired.name != shard.name
    with h5py.File(repaired) as again, h5py.File(BytesIO(whole)) as before:
        # A processor of another kind than the one that drew the images rounds otherwise, by a step of float16 here and there.
        np.testing.assert_allclose(again["tokens"][:], before["tokens"][:], atol=4e-3, rtol=4e-3)
    assert succeed("featurize", "verify", "--dataset", "topics.csv", "--deep")["complete"]
    with h5py.File(view) as file:
        assert np.isfinite(file["vit-demo/tokens"][:]).all()
    repaired.unlink()
    with h5py.File(view) as file:
        assert np.isnan(file["vit-demo/tokens"][32:]).all()


@pytest.mark.parametrize("name", ["shard-00001.h5.partial", "shard-00001.h5.suspect", "shard-00001.h5"])
def test_a_store_whose_manifests_are_lost_keeps_its_rows(succeed: Succeed, name: str) -> None:
    shard = RUN / "tokens" / "vit-demo" / "shard-00001.h5"
    shard.rename(shard.with_name(name))
    for path in (RUN / "tokens").glob("*/manifest.json"):
        path.unlink()
    figures = succeed("featurize", *CORPUS, *GENERATION)
    assert set(figures["rows"].values()) == {0}
    assert succeed("featurize", "verify", "--dataset", "topics.csv", "--deep")["complete"]
