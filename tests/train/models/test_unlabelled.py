"""Unlabelled texts: read, turned into images, and used for distillation."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusOptions, CorpusSettings, store_folder
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from tests.support.topics import topic_texts
from train.cli import main
from train.data.teacher_outputs import outputs_path, read_teacher_outputs
from train.models.teachers import _require_same_tokens

MORE = 15


def options(**flags: Any) -> CorpusOptions:
    return CorpusOptions(dataset="corpus.csv", **flags)


def texts_of(path: Path, **flags: Any) -> list[str]:
    return [example.text for example in load_unlabelled(path, options(**flags)).examples]


def test_a_text_file_has_one_text_per_line(tmp_path: Path) -> None:
    path = tmp_path / "more.txt"
    path.write_bytes('\ufeffa dog\r\n\n  \n, "quoted" and, commas\nשלום\u2028still this line\n last without an end'.encode())
    corpus = load_unlabelled(path, options())
    assert [example.text for example in corpus.examples] == [
        "a dog",
        ', "quoted" and, commas',
        "שלום\u2028still this line",
        " last without an end",
    ]
    assert (corpus.name, corpus.label_names, corpus.license) == ("more", (), "not stated")
    assert {(example.label, example.split) for example in corpus.examples} == {(UNLABELLED, "train")}
    assert [example.prompt for example in corpus.examples] == texts_of(path)
    assert [example.id for example in corpus.examples] == [f"row/{row}" for row in range(4)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_needs_the_text_column_and_no_label(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "a", "body": "first text", "draw": "a picture", "other": "x"}, {"id": "b", "body": "second", "draw": "no", "other": ""}]
    path = tmp_path / f"more.{suffix}"
    if suffix == "csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    elif suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    corpus = load_unlabelled(path, options(text_column="body", prompt_column="draw", label_column="label", split_column="split"))
    found = [(example.id, example.text, example.prompt, example.label, example.split) for example in corpus.examples]
    assert found == [("a", "first text", "a picture", -1, "train"), ("b", "second", "no", -1, "train")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "No such file"),
        ("empty.txt", b"", "no rows"),
        ("blank.txt", b"\n \n\t\n", "no rows"),
        ("latin.txt", b"caf\xe9\n", "UTF-8"),
        ("nul.txt", b"a\0b\n", "NUL character"),
        ("other.xlsx", b"text\na\n", ".csv, .tsv, .json, .jsonl, .ndjson, .parquet"),
        ("header.csv", b"text\n", "no rows"),
        ("named.csv", b"body\na\n", "no column 'text'"),
        ("gap.csv", b"text,x\n ,1\n", "empty text"),
        ("torn.jsonl", b'{"text": "a"}\n{"te', "malformed JSON"),
    ],
)
def test_unusable_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message.replace(".", r"\.")) as caught:
        load_unlabelled(path, options())
    assert name in str(caught.value)


def test_unlabelled_texts_have_their_own_store(tmp_path: Path) -> None:
    assert [store_folder(tmp_path, path).name for path in (None, Path("somewhere/more.txt"))] == ["tokens", "tokens-more"]


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("more") / "more.txt"
    path.write_text("\n".join(f"{text} again" for text, _ in topic_texts(MORE)))
    return path


@pytest.fixture(scope="module")
def flags(small_csv: Path) -> tuple[str, ...]:
    corpus = ("--dataset", str(small_csv), "--split-column", "split", "--text-model", "demo", "--device", "cpu")
    return (*corpus, "--epochs", "2", "--learning-rate", "1e-3")


@pytest.fixture(scope="module")
def run(small_run: Path, small_csv: Path, more: Path, flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher, the images of ``more``, and a student that learnt from both."""
    folder = tmp_path_factory.mktemp("unlabelled") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    settings = {"dataset": str(small_csv), "split_column": "split", "generator": "demo", "encoders": ("clip-demo",), "run_dir": folder}
    figures = featurize_command(FeaturizeOptions(**settings, unlabelled=more))  # type: ignore[arg-type]
    assert figures["complete"]
    assert main(["teacher", *flags, "--run-dir", str(folder), "--image-tokens", "clip-demo"]) == 0
    assert main(["student", *flags, "--run-dir", str(folder), "--unlabelled", str(more)]) == 0
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def test_their_images_are_in_a_second_store(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir() if path.name.startswith("tokens")) == ["tokens", "tokens-more"]


def test_the_student_trains_on_both_and_is_scored_on_the_labelled(run: Path) -> None:
    metrics = metrics_of(run / "student")
    assert metrics["examples"] == {"train": 36, "validation": 12, "test": 12, "unlabelled": MORE}
    assert len((run / "student" / "predictions.csv").read_text().splitlines()) == 61
    assert {"student", "teacher"} <= {path.name for path in run.iterdir()}
    log = [json.loads(line) for line in (run / "student" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [4, 8], "51 examples are four steps of 14"


def test_the_teachers_outputs_for_unlabelled_texts_are_kept(run: Path, more: Path, small_csv: Path) -> None:
    extra = load_unlabelled(more, options())
    path = outputs_path(run / "teacher", "more")
    found = read_teacher_outputs(path, corpus_fingerprint=extra.fingerprint())
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    own = read_teacher_outputs(outputs_path(run / "teacher"), corpus_fingerprint=corpus.fingerprint())
    assert found.logits.shape == (MORE, 3)
    assert found.teacher == own.teacher
    assert np.isfinite(found.logits.numpy()).all()


def test_without_them_another_student_is_trained(run: Path, flags: tuple[str, ...], more: Path) -> None:
    assert main(["student", *flags, "--run-dir", str(run), "--name", "without"]) == 0
    one, other = (metrics_of(run / name) for name in ("student", "without"))
    assert "unlabelled" not in other["examples"]
    assert one["history"][0]["loss"] != other["history"][0]["loss"]


def test_repeating_the_command_runs_no_teacher(run: Path, flags: tuple[str, ...], more: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = outputs_path(run / "teacher", "more").stat().st_mtime_ns
    assert main(["student", *flags, "--run-dir", str(run), "--unlabelled", str(more)]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["already_done"] is True
    assert "teacher reads" not in captured.err
    assert outputs_path(run / "teacher", "more").stat().st_mtime_ns == written


def test_a_finished_student_refuses_other_texts(run: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["student", *flags, "--run-dir", str(run)]) == 2
    assert "unlabelled" in capsys.readouterr().err


def test_held_out_texts_are_warned_of(
    run: Path, flags: tuple[str, ...], tmp_path: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    held_out = [corpus.examples[row].text for row in corpus.rows("test")[:3]]
    (tmp_path / "leak.txt").write_text("\n".join([*held_out, "nobody knows this"]))
    # There are no images for them, which is reported as well.
    assert main(["student", *flags, "--run-dir", str(run), "--unlabelled", str(tmp_path / "leak.txt"), "--name", "leaky"]) == 2
    captured = capsys.readouterr().err
    assert "warning: 3 texts of " in captured
    assert "run python -m featurize first" in captured


def test_tables_compare_students_of_more_texts_with_their_control(
    run: Path, flags: tuple[str, ...], more: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ("--rows", "unlabelled", "baseline", "--seeds", "1", "--unlabelled", str(more), "--run-dir", str(run))
    assert main(["tables", *flags, *rows]) == 2
    assert "vit-demo" in capsys.readouterr().err, "no images of these texts, reported before anything is trained"
    assert not (run / "teacher-none").exists()
    shown = tuple(f"student-{kind}-more" for kind in ("clip-demo", "none", "shuffled"))
    assert main(["tables", *flags, *rows[:1], "baseline", *shown, *rows[3:], "--columns", "clip-demo"]) == 0
    captured = capsys.readouterr()
    report = json.loads((run / "tables.json").read_text())
    trained = ["baseline", "teacher-none", "teacher-shuffled", "student-none-more", "student-shuffled-more"]
    assert report["trained"] == trained, "teacher and student exist under other names"
    assert [model["folder"] for model in report["rows"]["student-clip-demo-more"]["models"]] == ["student"]
    of_table = next(table for table in report["tables"] if table["name"] == "unlabelled")
    compared = [(one["row"], one["reference"]) for one in of_table["comparisons"]]
    assert compared == [
        ("student-clip-demo-more", "baseline"),
        ("student-clip-demo-more", "student-none-more"),
        ("student-none-more", "baseline"),
        ("student-shuffled-more", "baseline"),
        ("student-shuffled-more", "student-none-more"),
    ]
    assert "student-none-more" in captured.out
    assert main(["tables", *flags, "--run-dir", str(run), "--no-train", "--seeds", "1"]) == 0
    assert set(json.loads((run / "tables.json").read_text())["rows"]) >= {*shown}


def test_a_student_of_text_vectors_reads_those_of_more_texts_too(
    small_csv: Path, flags: tuple[str, ...], more: Path, tmp_path: Path
) -> None:
    vectors: dict[str, Any] = {"dataset": str(small_csv), "split_column": "split", "run_dir": tmp_path, "generator": "demo"}
    for unlabelled in (None, more):
        featurize_command(FeaturizeOptions(**vectors, encoders=("prompt-text",), unlabelled=unlabelled))
    rows = ("--rows", "student-text-more", "--seeds", "1", "--unlabelled", str(more), "--run-dir", str(tmp_path))
    assert main(["tables", *flags, *rows]) == 0
    assert json.loads((tmp_path / "tables.json").read_text())["rows"]["student-text-more"]["seeds"] == [0]


def test_texts_that_no_row_reads_are_warned_of(run: Path, flags: tuple[str, ...], more: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("--rows", "baseline", "--seeds", "1", "--unlabelled", str(more), "--run-dir", str(run))
    assert main(["tables", *flags, *rows]) == 0
    assert "warning: --unlabelled has no effect without its rows: --rows unlabelled" in capsys.readouterr().err


def test_failed_images_of_one_store_do_not_matter() -> None:
    same = {"generation": {"drawings": "abc", "steps": 4}}
    ours = SimpleNamespace(reader=SimpleNamespace(spec=SimpleNamespace(name="clip-demo")))
    ours.fingerprint = lambda: {"generation": {"drawings": "def", "steps": 4}, "failed_rows": "abc"}
    for theirs in (same, {**same, "failed_rows": "xyz"}):
        _require_same_tokens(SimpleNamespace(fingerprint={"tokens": theirs}), ours)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="steps"):
        _require_same_tokens(SimpleNamespace(fingerprint={"tokens": {"generation": {"steps": 5}}}), ours)  # type: ignore[arg-type]
