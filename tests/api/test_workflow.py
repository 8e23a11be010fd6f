"""The method from Python: texts in memory → tokens → teacher → student → comparison."""

import json
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
