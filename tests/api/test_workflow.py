"""The method from Python: texts in memory → tokens → teacher → student → comparison."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import lugpi
from tests.support.topics import topic_texts

FAST: dict[str, Any] = {"text_model": "demo", "optimization": lugpi.Optimization(epochs=1)}
ROWS = ["baseline", "teacher-clip-demo", "student-clip-demo", "teacher-none", "student-none"]


@pytest.fixture(scope="module")
def corpus() -> lugpi.Corpus:
    texts, labels = zip(*topic_texts(30), strict=True)
    return lugpi.Corpus.from_texts(texts, labels, splits=["train"] * 18 + ["validation"] * 6 + ["test"] * 6, name="topics")


@pytest.fixture(scope="module")
def store(corpus: lugpi.Corpus, tmp_path_factory: pytest.TempPathFactory) -> lugpi.TokenStore:
    run = tmp_path_factory.mktemp("runs") / "topics"
    return lugpi.featurize(corpus, run, generator="demo", encoders=["clip-demo"], settings=lugpi.FeaturizeSettings(steps=1))


def test_featurize_returns_the_store_and_then_finds_it_done(corpus: lugpi.Corpus, store: lugpi.TokenStore) -> None:
    files = {path: path.stat().st_mtime_ns for path in store.path.rglob("*.h5")}
    calls: list[Any] = []
    again = lugpi.featurize(
        corpus,
        store.path.parent,
        generator="demo",
        encoders=["clip-demo"],
        settings=lugpi.FeaturizeSettings(steps=1),
        progress=calls.append,
    )
    assert (again.path, again.columns) == (store.path, ("clip-demo",))
    assert not calls
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*.h5")} == files


def test_a_loader_yields_what_indexing_returns(store: lugpi.TokenStore) -> None:
    loaded = torch.cat([batch["clip-demo"] for batch in DataLoader(store, batch_size=7)])
    assert np.array_equal(loaded.numpy(), store["clip-demo"][:])


def test_teacher_student_and_comparison(corpus: lugpi.Corpus, store: lugpi.TokenStore) -> None:
    teacher = lugpi.train_teacher(corpus, store, column="clip-demo", **FAST)
    student = lugpi.distill(corpus, [teacher], **FAST)
    assert student.accuracy == json.loads((student.folder / "metrics.json").read_text())["accuracy"]
    assert not student.already_done
    assert lugpi.distill(corpus, [teacher], **FAST).already_done

    report = lugpi.compare(corpus, store.path.parent, rows=ROWS, seeds=1, **FAST)
    assert {row.row for row in report.rows.values()} == set(ROWS)
    frame = report.to_frame()
    assert len(frame) == len(ROWS)
    assert {finding.row for finding in report.findings} == set(ROWS) - {"baseline"}
    assert "student-clip-demo" in report.to_markdown()


def test_a_misspelt_setting_is_a_type_error(corpus: lugpi.Corpus, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected argument 'epoch'"):
        lugpi.train_baseline(corpus, tmp_path, epoch=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected argument 'epochs'"):
        lugpi.compare(corpus, tmp_path, epochs=3)  # type: ignore[call-arg]


def test_bad_input_is_an_input_error(corpus: lugpi.Corpus, store: lugpi.TokenStore, tmp_path: Path) -> None:
    with pytest.raises(lugpi.InputError, match="nowhere"):
        lugpi.load_corpus("nowhere.csv")
    with pytest.raises(lugpi.InputError, match="vit-b16"):
        lugpi.train_teacher(corpus, store, column="vit-b16", **FAST)
    with pytest.raises(lugpi.InputError, match="no teacher"):
        lugpi.distill(corpus, [])
    with pytest.raises(lugpi.InputError):
        lugpi.TokenStore(tmp_path)
    for encoders in ([], "demo", [None]):
        with pytest.raises(lugpi.InputError, match="encoders="):
            lugpi.featurize(corpus, tmp_path / "run", generator="demo", encoders=encoders)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_name_is_no_corpus(store: lugpi.TokenStore, tmp_path: Path) -> None:
    corpus: Any = "demo"
    for call in (
        lambda: lugpi.featurize(corpus, tmp_path, generator="demo", encoders=["demo"]),
        lambda: lugpi.inspect(store, corpus),
        lambda: lugpi.compare_stores([store, tmp_path], corpus, run_dir=tmp_path),
        lambda: lugpi.compare(corpus, tmp_path),
    ):
        with pytest.raises(TypeError, match="corpus: got 'demo'; expected Corpus"):
            call()


def test_open_stores_are_compared(corpus: lugpi.Corpus, store: lugpi.TokenStore, tmp_path: Path) -> None:
    other = shutil.copytree(store.path, tmp_path / "other" / "tokens")
    settings = lugpi.InspectSettings(thumbnails=0, device="cpu")
    comparison = lugpi.compare_stores([store, other], corpus, settings=settings, run_dir=tmp_path)
    assert isinstance(comparison, lugpi.Comparison)
    assert [each.store for each in comparison.stores] == [store.path, other]
    for alone in ([store], str(store.path)):
        with pytest.raises(lugpi.InputError, match="got 1 store to compare"):
            lugpi.compare_stores(alone, corpus, run_dir=tmp_path)


def test_the_loss_is_usable_by_itself() -> None:
    logits, embeddings = torch.randn(2, 3), torch.randn(2, 8)
    target = lugpi.TeacherTarget(weight=1.0, logits_BK=torch.randn(2, 3), embeddings_BD=torch.randn(2, 8), student_BD=embeddings)
    assert lugpi.distillation_loss(lugpi.distillation("hinton", alpha=2.0), logits, [target], torch.tensor([0, 2])) > 0


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lugpi.train_baseline, lugpi.TrainingArguments),
        (lugpi.train_images, lugpi.TrainingArguments),
        (lugpi.train_teacher, lugpi.TeacherArguments),
        (lugpi.distill, lugpi.StudentArguments),
        (lugpi.compare, lugpi.ComparisonArguments),
    ],
)
def test_the_help_lists_every_keyword_argument(function: Any, arguments: type) -> None:
    assert [name for name in arguments.__annotations__ if f"        {name}: " not in function.__doc__] == []


def test_settings_and_images_of_a_wrong_type_are_type_errors(corpus: lugpi.Corpus, store: lugpi.TokenStore, tmp_path: Path) -> None:
    empty: Any = {}
    with pytest.raises(TypeError, match="settings: got"):
        lugpi.load_corpus("demo", empty)
    with pytest.raises(TypeError, match="settings: got"):
        lugpi.featurize(corpus, tmp_path / "run", settings=empty)
    with pytest.raises(TypeError, match="settings: got"):
        lugpi.inspect(store, corpus, settings=empty)
    for image in (True, False, "1"):
        with pytest.raises(TypeError, match=f"image: got {image!r}"):
            lugpi.TokenStore(store.path, image=image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"paper_dataset": "nope"}, lugpi.InputError, "paper_dataset='nope'; expected imdb"),
        ({"distillation": {}}, TypeError, "distillation: got {}; expected DistillationSettings or str"),
        ({"distillation": "hintn"}, lugpi.InputError, "hintn"),
    ],
)
def test_odd_arguments_of_a_comparison_are_refused(
    corpus: lugpi.Corpus, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lugpi.compare(corpus, tmp_path, rows=["baseline"], **arguments)
    with pytest.raises(TypeError, match="run_dir: got 1"):
        lugpi.compare(corpus, 1, rows=["baseline"], **arguments)  # type: ignore[arg-type]
