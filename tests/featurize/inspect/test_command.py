"""``python -m featurize inspect``: what is printed and written, and which flags, stores and faults are one line."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from featurize.cli import main
from featurize.inspect import command
from featurize.inspect.inspect_store import inspect
from featurize.inspect.inspection import Inspection
from featurize.options import InspectSettings
from lugpi_core.errors import InputError
from lugpi_core.store.token_store import TokenStore
from tests.support.checkout import ROOT
from tests.support.planted_store import Planted, Run


def test_the_command_prints_the_summary_and_writes_its_last_line(planted: Planted, found: Inspection, run: Run) -> None:
    status, figures, printed = run(planted)
    assert status == 0
    assert json.loads((planted.run_dir / "inspection.json").read_text()) == figures
    assert figures["command"] == "inspect"
    assert figures["corpus"] == planted.corpus.fingerprint()
    assert figures["config"]["near_copy"] == 0.98
    assert figures["examples"]["train"] == {"looked_at": 90, "of": 90}
    assert {"compute", "times", "peak_memory", "provenance", "inspection"} <= figures.keys()
    assert figures["columns"] == found.to_json()["columns"]
    assert f"{planted.run_dir / 'tokens'}: 90 of 90 train, 60 of 60 validation, 30 of 30 test examples inspected\n" in printed
    assert printed.count("\n") == found.summary().count("\n") + 1


def test_an_earlier_runs_record_has_the_same_keys_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store of an earlier run gives the figures under the keys of its own inspection.json; only sentences differ."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "earlier-run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    path = Path("runs/topics/inspection.json")
    old = json.loads(path.read_text())
    assert main(["inspect", "--dataset", "topics.csv", "--split-column", "split", "--thumbnails", "0"]) == 0
    new = json.loads(path.read_text())
    new["config"] = {flag: new["config"][flag] for flag in old["config"]}  # flags may be added
    for question, answers in {"classes": ("prototypes", "by_size", "by_features"), "near_copies": ("by_size",)}.items():
        for answer in answers:  # and so may answers
            new["columns"]["vit-demo"][question].pop(answer)
    for answer in ("bytes_per_image", "transport"):
        new["columns"]["vit-demo"].pop(answer)
    new["times"].pop("transport_s")
    assert _shape(new) == _shape(old)
    for sentence in (old, new):
        sentence["columns"]["vit-demo"]["verdict"].pop("words")
        sentence["columns"]["vit-demo"].pop("agreement")
        for words in ("words", "reasons"):
            sentence["verdict"].pop(words)
        for passing in ("times", "peak_memory", "provenance", "compute", "notice"):
            sentence.pop(passing)
    assert _rounded(new) == _rounded(old)


def _shape(value: Any) -> Any:
    """Return the keys of nested objects."""
    if isinstance(value, dict):
        return {key: _shape(item) for key, item in value.items() if key not in ("versions", "peak_memory")}
    return type(value).__name__ if not isinstance(value, float) else "number"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def _repeatable(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in ("times", "peak_memory", "provenance")}


def test_the_figures_follow_the_seed_and_the_tokens_stay_untouched(with_latents: Planted, run: Run) -> None:
    def state() -> dict[str, tuple[int, bytes]]:
        files = sorted(path for path in (with_latents.run_dir / "tokens").rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    def thumbnails() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (with_latents.run_dir / "thumbnails").iterdir()}

    before = state()
    first = run(with_latents, "--thumbnails", "5")[1]
    images = thumbnails()
    again = run(with_latents, "--thumbnails", "5")[1]
    assert _repeatable(first) == _repeatable(again)
    assert thumbnails() == images
    assert state() == before
    other = run(with_latents, "--seed", "1", "--thumbnails", "0")[1]
    assert other["columns"]["silent"]["classes"]["knn"]["shuffled_mean"] != first["columns"]["silent"]["classes"]["knn"]["shuffled_mean"]


def test_a_store_written_by_featurize_is_inspected_from_end_to_end(small_run: Path, small_csv: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    assert main(["inspect", "--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(run)]) == 0
    figures = json.loads((run / "inspection.json").read_text())
    assert sorted(figures["columns"]) == ["clip-demo", "vit-demo"]
    examples = {"train": 36, "validation": 12, "validation_new": 12, "validation_shared": 0}
    assert figures["columns"]["clip-demo"]["classes"]["examples"] == examples
    assert figures["class_similarity"]["pictures"] == 36
    assert figures["thumbnails"]["examples"] == 12
    assert figures["columns"]["vit-demo"]["agreement"]["left_out"].startswith("got an encoder of the family vit;")


def test_from_python_a_path_or_an_open_store_is_inspected(with_latents: Planted, tmp_path: Path) -> None:
    shutil.rmtree(with_latents.run_dir / "tokens" / "silent")
    store = TokenStore(with_latents.run_dir / "tokens")
    settings = InspectSettings(device="cpu", thumbnails=2)
    by_path = inspect(str(store.path), with_latents.corpus, settings=settings, run_dir=tmp_path / "elsewhere")
    opened = inspect(store, with_latents.corpus, settings=settings)
    assert by_path.columns == opened.columns
    assert by_path.class_similarity == opened.class_similarity
    assert (with_latents.run_dir / "drawings.png").read_bytes() == (tmp_path / "elsewhere" / "drawings.png").read_bytes()
    assert not (with_latents.run_dir / "inspection.json").exists()


def test_without_a_store_it_is_a_one_line_error(planted: Planted, tmp_path: Path, run: Run) -> None:
    nowhere = Planted(table=planted.table, run_dir=tmp_path / "none", corpus=planted.corpus, drawings=planted.drawings)
    status, figures, printed = run(nowhere)
    assert (status, figures) == (2, {})
    assert re.fullmatch(r"error: got no token store in .*/none/tokens; expected .*; run python -m featurize first\n", printed)
    assert not (tmp_path / "none").exists()


def test_the_store_of_another_corpus_is_refused(planted: Planted, run: Run) -> None:
    status, figures, printed = run(planted, "--limit", "50")
    assert (status, figures) == (2, {})
    assert "with other examples, prompts, labels or splits" in printed
    assert not (planted.run_dir / "inspection.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--near-copy", "0"), "got --near-copy 0.0; expected above 0 and at most 1"),
        (("--near-copy", "nan"), "got --near-copy nan; expected above 0"),
        (("--thumbnails", "501"), "got --thumbnails 501; expected 0 to 500"),
        (("--thumbnails", "-1"), "got --thumbnails -1;"),
        (("--decode-tflop", "0"), "got --decode-tflop 0.0; expected a number above 0"),
        (("--decode-tflop", "inf"), "got --decode-tflop inf;"),
        (("--decoder", "tinny"), "did you mean 'tiny'?"),
        (("--decoder", "tiny=nowhere"), "check the folder's name"),
        (("--seed", "-1"), "got --seed -1;"),
        (("--limit", "2"), "got --limit 2;"),
        (("--near-copi", "1"), "did you mean '--near-copy'?"),
    ],
    ids=str,
)
def test_a_bad_flag_is_a_one_line_error(planted: Planted, run: Run, flags: tuple[str, ...], message: str) -> None:
    status, figures, printed = run(planted, *flags)
    assert (status, figures) == (2, {})
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not (planted.run_dir / "inspection.json").exists()


def test_a_failed_run_leaves_the_last_inspection_whole(planted: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run(planted)
    before = (planted.run_dir / "inspection.json").read_bytes()

    def fail(*_: Any) -> None:
        raise InputError(got="a full disk", expected="room", do="make room")

    monkeypatch.setattr(command, "write_json", fail)
    assert run(planted)[0] == 2
    assert (planted.run_dir / "inspection.json").read_bytes() == before
