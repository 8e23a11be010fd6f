"""Students that are held near to the answers of an earlier model: the loss, the churn, what is kept, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from tests.support.small_tasks import SPLITS, multi_label_corpus, pairs_corpus, plant_tokens, regression_corpus
from tests.support.topics import topic_texts
from train.evidence.compare import compare
from train.learning.losses import anchored_loss
from train.models import anchor as anchor_room
from train.models.api import distill, train_baseline, train_images, train_teacher
from train.models.predictions import read_predictions
from train.options.distillation import StudentOptions
from train.options.settings import DistillationSettings, Optimization, Placement
from train.options.sweep import SweepOptions

TRAINING: Any = {"text_model": "demo", "placement": Placement(device="cpu")}
Student = Callable[..., Path]


def optimization(**more: Any) -> Optimization:
    return Optimization(**{"epochs": 2, "learning_rate": 1e-3, "optimizer": "adamw", **more})


def topics_corpus(*, moved: bool = True, **more: Any) -> Corpus:
    """Texts of three topics; if ``moved``, most of the train texts of the sky are labelled as food, as if a guideline had changed."""
    texts, topics = zip(*topic_texts(60), strict=True)
    labels = [
        "food" if moved and (topic, split) == ("sky", "train") and n % 4 else topic
        for n, (topic, split) in enumerate(zip(topics, SPLITS, strict=True))
    ]
    return Corpus.from_texts(texts, labels, splits=SPLITS, name="topics", **more)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return topics_corpus()


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a text-only teacher, and an earlier baseline ``old``."""
    folder = tmp_path_factory.mktemp("anchored") / "topics"
    train_teacher(corpus, None, privileged="none", name="teacher", run_dir=folder, optimization=optimization(), **TRAINING)
    train_baseline(
        topics_corpus(moved=False), folder, name="old", optimization=optimization(seed=5, epochs=14, learning_rate=2e-3), **TRAINING
    )
    return folder


@pytest.fixture(scope="module")
def student(corpus: Corpus, run: Path) -> Student:
    def train(name: str, **more: Any) -> Path:
        return distill(
            corpus, [run / "teacher"], name=name, **{"optimization": optimization(epochs=6, learning_rate=2e-3), **TRAINING, **more}
        ).folder

    return train


@pytest.fixture(scope="module")
def held(student: Student, run: Path) -> Path:
    return student("held", anchor=run / "old", anchor_weight=0.9)


def json_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_the_loss_is_the_mixture_that_is_written() -> None:
    new, old = torch.tensor([[1.0, -0.5, 0.25], [0.0, 2.0, 1.0]]), torch.tensor([[0.5, 0.1, -1.0], [1.5, 0.0, 0.5]])
    loss = anchored_loss(torch.tensor(0.7), new, old, weight=0.25, task="single-label")
    p, q = (np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True) for rows in (old.numpy().astype(float), new.numpy().astype(float)))
    assert float(loss) == pytest.approx(0.75 * 0.7 + 0.25 * -(p * np.log(q)).sum(axis=1).mean(), rel=1e-6)
    number = anchored_loss(torch.tensor(0.7), new[:, :1], old[:, :1], weight=0.25, task="regression")
    assert float(number) == pytest.approx(0.75 * 0.7 + 0.25 * (0.5**2 + 1.5**2) / 2, rel=1e-6)


def test_churn_is_lower_than_without_an_anchor(student: Student, held: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = student("free")
    answers = {name: read_predictions(run / name / "predictions.csv") for name in ("old", "held", "free")}
    churn = {
        name: {split: float((answers[name][split].predicted != answers["old"][split].predicted).mean()) for split in answers["old"]}
        for name in ("held", "free")
    }
    assert len(set(answers["old"]["train"].predicted.tolist())) == 3, "an earlier model that tells texts apart"
    record = json_of(held / "metrics.json")["anchor"]
    assert record["churn"] == pytest.approx(churn["held"], abs=1e-6)
    assert (record["weight"], Path(record["model"])) == (0.9, run / "old")
    for split in ("train", "validation", "test"):
        assert churn["held"][split] < churn["free"][split]
    assert "anchor" not in json_of(free / "metrics.json")
    student("again", anchor=run / "old", optimization=optimization(epochs=1))
    told = capsys.readouterr().err
    assert "; churn against old train " in told
    assert "the anchor old reads" not in told, "what another student has computed is read"
    assert "held near to the answers of an earlier model" in (held / "README.md").read_text()


def test_what_is_kept_are_the_logits_of_the_earlier_model_in_the_order_of_the_classes(corpus: Corpus, held: Path, run: Path) -> None:
    [path] = (run / "anchors").iterdir()
    by_split = read_predictions(run / "old" / "predictions.csv")
    rows = [*corpus.rows("train"), *corpus.rows("validation"), *corpus.rows("test")]
    recorded = np.concatenate([by_split[split].logits for split in ("train", "validation", "test")])
    np.testing.assert_allclose(load_file(path)["logits"][rows].numpy(), recorded, atol=1e-4)
    turned = topics_corpus(label_names=list(reversed(corpus.label_names)))
    anchor = anchor_room.find_anchor(run / "old", turned, 0.5)
    logits = anchor.logits([turned], run, anchor_room_compute())
    np.testing.assert_allclose(logits[rows].numpy(), recorded[:, ::-1], atol=1e-4)
    path.write_bytes(path.read_bytes()[:-1])
    again = anchor_room.find_anchor(run / "old", corpus, 0.5).logits([corpus], run, anchor_room_compute())
    np.testing.assert_allclose(again[rows].numpy(), recorded, atol=1e-4)


def anchor_room_compute() -> Any:
    from lugpi_core.runtime.device import resolve_compute

    return resolve_compute("cpu", "float32", half="bfloat16")


def test_another_anchor_or_weight_is_another_model_and_no_row_of_the_tables(student: Student, held: Path, run: Path) -> None:
    record = json_of(held / "training.json")["anchor"]
    assert record["weight"] == 0.9
    with pytest.raises(InputError, match=r"anchor.weight: found 0.9, wanted 0.5"):
        student("held", anchor=run / "old")
    with pytest.raises(InputError, match=r"anchor.model: found"):
        student("held", anchor=student("free"), anchor_weight=0.9)
    shown = compare(topics_corpus(), run, rows=["student-none"], train=False).to_json()
    assert [model["folder"] for model in shown["rows"]["student-none"]["models"]] == ["free"]


@pytest.mark.parametrize(
    "make", [regression_corpus, *(pytest.param(make, marks=pytest.mark.soak) for make in (multi_label_corpus, pairs_corpus))]
)
def test_every_task_has_an_anchor(make: Callable[[], Corpus], tmp_path: Path, corpus: Corpus, run: Path) -> None:
    mine = make()
    train_teacher(mine, None, privileged="none", name="teacher", run_dir=tmp_path, optimization=optimization(epochs=1), **TRAINING)
    old = train_baseline(mine, tmp_path, name="old", optimization=optimization(seed=3, epochs=1), **TRAINING)
    new = distill(mine, [tmp_path / "teacher"], anchor=old, anchor_weight=0.75, optimization=optimization(epochs=1), **TRAINING)
    record = json_of(new.folder / "metrics.json")["anchor"]
    answers = [read_predictions(model.folder / "predictions.csv")["test"].predicted for model in (old, new)]
    if mine.task == "regression":
        assert record["difference"]["test"] == pytest.approx(np.abs(answers[0] - answers[1]).mean(), abs=1e-5)
    else:
        differ = (answers[0] != answers[1]).reshape(len(answers[0]), -1).any(axis=1)
        assert record["churn"]["test"] == pytest.approx(differ.mean(), abs=1e-6)
    with pytest.raises(InputError, match=r"old, a single-label model of single texts; expected a "):
        distill(mine, [tmp_path / "teacher"], name="other", anchor=run / "old", optimization=optimization(epochs=1), **TRAINING)


def test_unlabelled_texts_are_held_near_too(student: Student, run: Path, corpus: Corpus) -> None:
    more = Corpus.from_texts(["a new text", "and another cat"], name="more")
    folder = student("more", anchor=run / "old", unlabelled=more, optimization=optimization(epochs=1))
    assert json_of(folder / "metrics.json")["anchor"]["churn"].keys() == {"train", "validation", "test"}
    assert {len(load_file(path)["logits"]) for path in (run / "anchors").iterdir()} == {60, 62}


def test_what_is_no_earlier_student_is_refused_in_one_line(student: Student, run: Path, tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"no finished model in .*nowhere"):
        student("refused", anchor=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"a model of python -m train teacher; expected a student or a baseline"):
        student("refused", anchor=run / "teacher")
    other = replace(corpus, label_names=("animals", "food", "water"))
    with pytest.raises(InputError, match=r"with other classes than topics: only one of them has sky, water; expected the same classes"):
        anchor_room.find_anchor(run / "old", other, 0.5)
    store = plant_tokens(corpus, tmp_path / "images")
    images = train_images(corpus, store, optimization=optimization(epochs=1), **TRAINING)
    with pytest.raises(InputError, match=r"a model of python -m train images"):
        student("refused", anchor=images)
    broken = shutil.copytree(run / "old", tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"broken without"):
        student("refused", anchor=broken)
    with pytest.raises(TypeError, match="anchor"):
        student("refused", anchor=3)
    assert not (run / "refused").exists()


@pytest.mark.parametrize("weight", [0.0, 1.0, float("nan"), -0.5])
def test_a_weight_is_a_share(weight: float, student: Student, run: Path) -> None:
    with pytest.raises(InputError, match="expected a share of the loss between 0 and 1"):
        StudentOptions(dataset="demo", anchor=Path("old"), anchor_weight=weight)
    with pytest.raises(InputError, match="expected a share of the loss between 0 and 1"):
        student("refused", anchor=run / "old", anchor_weight=weight)


def test_a_weight_alone_holds_nothing() -> None:
    with pytest.raises(InputError, match=r"--anchor-weight 0.7 without --anchor"):
        StudentOptions(dataset="demo", anchor_weight=0.7)
    with pytest.raises(InputError, match=r"--anchor-weight 0.9 without --anchor|--anchor-weight 0.1 without --anchor"):
        SweepOptions(dataset="demo", over=("anchor_weight=0.1:0.9",))
    assert SweepOptions(dataset="demo", over=("anchor_weight=0.1:0.9",), anchor=Path("old")).space[0].high == 0.9


def test_a_plain_name_is_a_model_of_the_run_and_a_path_is_a_folder(tmp_path: Path) -> None:
    named = StudentOptions(dataset="demo", run_dir=tmp_path, anchor=Path("old"))
    assert named.anchor_folder == tmp_path / "old"
    assert replace(named, anchor=Path("there/old")).anchor_folder == Path("there/old")
    assert replace(named, anchor=None).anchor_folder is None
    assert DistillationSettings()
