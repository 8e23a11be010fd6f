"""Models of a store in which some texts have no image: teachers learn tokens in its place, models of images alone leave those texts out."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import read_example_table
from tests.support.planted_store import SUBSET, Planted, plant, plant_column, plant_unlabelled, telling_tokens, write_table
from train.data.image_tokens import TokenSource, open_image_tokens
from train.data.privileged import of_others
from train.data.teacher_outputs import TeacherOutputs, outputs_path, read_teacher_outputs, write_teacher_outputs
from train.learning.networks import FusionHead, ImageClassifier
from train.models.api import distill, train_images, train_teacher
from train.models.plan import compute_on
from train.models.teachers import find_teacher, outputs_for, privileged_images
from train.models.train_model import TrainedModel
from train.options.settings import DistillationSettings, Optimization, Placement, Privileged, SeveralImages

CPU = torch.device("cpu")
TRAIN, WITHOUT = 20, tuple(range(1, 20, 2))
COMMON: dict[str, Any] = {
    "column": "telling",
    "text_model": "demo",
    "optimization": Optimization(epochs=1, learning_rate=1e-3),
    "placement": Placement(device="cpu"),
}
STUDENT: dict[str, Any] = {name: COMMON[name] for name in ("text_model", "optimization", "placement")}
NO_IMAGE = "head.no_image"


def plant_subset(folder: Path, *, images_per_text: int = 1, strength: float = 1.0) -> Planted:
    """Return a store in which train texts have no image. Rows of the column are numbered as in a store of all texts."""
    planted = plant(folder, counts=(TRAIN, 6, 4), images_per_text=images_per_text)
    write_table(planted.run_dir / "tokens", planted.corpus, WITHOUT, images_per_text)
    tokens = telling_tokens(np.arange(30 * images_per_text) // images_per_text % 3, strength=strength)
    plant_column(planted, "telling", tokens, fingerprint={"generation": {"subset": SUBSET}})
    return planted


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant_subset(tmp_path_factory.mktemp("subset"))


@pytest.fixture(scope="module")
def teacher(planted: Planted) -> TrainedModel:
    return train_teacher(planted.corpus, planted.run_dir / "tokens", **COMMON)


def training_of(model: TrainedModel) -> Mapping[str, Any]:
    record: dict[str, Any] = json.loads((model.folder / "training.json").read_text())
    return record


def logits_of(planted: Planted, model: TrainedModel) -> torch.Tensor:
    return read_teacher_outputs(outputs_path(model.folder), corpus_fingerprint=planted.corpus.fingerprint()).logits


def test_the_learnt_tokens_stand_where_an_image_is_missing_and_the_gradient_reaches_them_from_there_alone() -> None:
    head = FusionHead(text_width=32, image_width=24, classes=3, no_image_tokens=6).eval()
    assert head.no_image is not None
    images, text, has_image = torch.randn(4, 6, 24), torch.randn(4, 5, 32), torch.tensor([True, False, True, False])
    put = images.clone()
    put[~has_image] = head.no_image.detach()
    torch.testing.assert_close(head(head.image_inputs(images, has_image), text).logits, head(put, text).logits)
    torch.autograd.backward(head(head.image_inputs(images, torch.ones(4, dtype=torch.bool)), text).logits.sum())
    assert head.no_image.grad is not None, "it is part of every step, as torch.distributed requires"
    assert not head.no_image.grad.any()
    torch.autograd.backward(head(head.image_inputs(images, has_image), text).logits.square().sum())
    assert head.no_image.grad.abs().sum(dim=1).all(), "each of the tokens"


def test_the_other_weights_of_a_seed_are_those_of_a_head_that_learns_no_such_tokens() -> None:
    states = []
    for tokens in (None, 6):
        torch.manual_seed(3)
        states.append(FusionHead(text_width=32, image_width=24, classes=3, no_image_tokens=tokens).state_dict())
    assert states[1].keys() - states[0].keys() == {"no_image"}
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert FusionHead(text_width=32, image_width=None, classes=3, no_image_tokens=6).no_image is None


class Numbered:
    """Image tokens equal to one more than the number of their image."""

    place = "here"

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        assert drawings.min() >= 0
        return torch.from_numpy(drawings + 1).half()[:, None, None].expand(-1, 2, 3)

    def ahead(self, batches: Any) -> Any:
        yield from batches


@pytest.mark.parametrize("several", ["drawn", "mean"])
@pytest.mark.parametrize("privileged", ["images", "shuffled", "blank"])
def test_texts_without_an_image_have_none_in_the_controls_either(tmp_path: Path, privileged: Privileged, several: SeveralImages) -> None:
    planted = plant_subset(tmp_path, images_per_text=2)
    tokens, source = open_image_tokens(planted.run_dir / "tokens", "telling", planted.corpus), cast(TokenSource, Numbered())
    images = privileged_images(tokens, privileged, lambda _: source, seed=3, device=CPU, several_images=several)
    assert images is not None
    assert images.has_image_N is not None
    has_image = images.has_image_N.numpy()
    assert np.flatnonzero(~has_image).tolist() == list(WITHOUT)
    rows = np.arange(30)
    found = images.gather(rows, None)[:, 0, 0].numpy()
    assert not found[~has_image].any()
    own = np.where(has_image[:, None], planted.drawings + 1, 0)
    wanted = (own[:, 0] if several == "drawn" else own.mean(axis=1))[has_image]
    match privileged:
        case "images":
            np.testing.assert_array_equal(found[has_image], wanted.astype(np.float16))
        case "shuffled":
            assert sorted(found[has_image]) == sorted(wanted)
            assert (found[has_image] != wanted).all()
        case _:
            assert not found.any()


def test_other_texts_images_are_the_same_as_ever_where_all_have_one() -> None:
    own = np.arange(40).reshape(20, 2)
    without = own.copy()
    without[5] = -1
    assert (of_others(without, 1)[5] == -1).all()
    np.testing.assert_array_equal(of_others(own[np.arange(20) != 5], 1), of_others(without, 1)[np.arange(20) != 5])


def test_a_teacher_learns_its_tokens_and_answers_by_them(planted: Planted, teacher: TrainedModel, tmp_path: Path) -> None:
    weights = load_file(teacher.folder / "model.safetensors")
    assert weights[NO_IMAGE].shape == (5, 16)
    assert (training_of(teacher)["no_image"], teacher.metrics["without_image"]) == ({"tokens": 5, "texts": 10}, 10)
    # The same store with other images: the texts without one are answered as before by the same weights.
    other = plant_subset(tmp_path, strength=3.0)
    shutil.copytree(teacher.folder, other.run_dir / "teacher")
    outputs_path(other.run_dir / "teacher").unlink()
    again = train_teacher(other.corpus, other.run_dir / "tokens", **COMMON)
    before, after = logits_of(planted, teacher), logits_of(other, again)
    same = [row for row in range(30) if torch.equal(before[row], after[row])]
    assert same == list(WITHOUT)


def test_a_teacher_of_a_store_with_all_images_is_as_it_was(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(TRAIN, 6, 4))
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))
    teacher = train_teacher(planted.corpus, planted.run_dir / "tokens", **COMMON)
    assert NO_IMAGE not in load_file(teacher.folder / "model.safetensors")
    assert "no_image" not in training_of(teacher)
    assert "without_image" not in teacher.metrics
    extra = Corpus.from_texts(["new 0", "new 1", "new 2"], name="more")
    fingerprint = {"planted": "telling", "generation": {"subset": SUBSET}}
    plant_unlabelled(planted, extra, without=(1,), fingerprint=fingerprint)
    with pytest.raises(
        InputError, match=r"images of some texts only \(featurize --subset\) for .*teacher, which learnt from images of all"
    ):
        distill(planted.corpus, [teacher], unlabelled=extra, **STUDENT)
    plant_unlabelled(planted, extra, without=(), fingerprint=fingerprint)
    distill(planted.corpus, [teacher], unlabelled=extra, **STUDENT)


def test_a_student_is_a_plain_classifier_also_of_unlabelled_texts_without_images(planted: Planted, teacher: TrainedModel) -> None:
    extra = Corpus.from_texts([f"new {n}" for n in range(5)], name="more")
    plant_unlabelled(planted, extra, without=(0, 3), fingerprint={"generation": {"subset": {**SUBSET, "of": 5}}})
    student = distill(planted.corpus, [teacher], unlabelled=extra, **STUDENT)
    weights = load_file(student.folder / "model.safetensors")
    assert not [name for name in weights if "no_image" in name]
    assert (student.folder / "config.json").is_file()
    outputs = read_teacher_outputs(outputs_path(teacher.folder, "more"), corpus_fingerprint=extra.fingerprint(), with_images=True)
    assert outputs.images is not None
    assert outputs.images.any(dim=1).tolist() == [False, True, True, False, True]
    assert read_example_table(planted.run_dir / "tokens-more", extra).has_image.tolist() == [False, True, True, False, True]


def test_outputs_for_unlabelled_texts_are_of_the_images_that_are_there_now(
    planted: Planted, teacher: TrainedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = Corpus.from_texts([f"new {n}" for n in range(5)], name="grown")
    fingerprint, path = {"generation": {"subset": {**SUBSET, "of": 5}}}, outputs_path(teacher.folder, "grown")

    def outputs() -> TeacherOutputs:
        capsys.readouterr()
        return outputs_for(find_teacher(teacher.folder), planted.corpus, extra, compute_on(STUDENT["placement"]))

    def write_as_earlier_version() -> None:
        found = read_teacher_outputs(path, corpus_fingerprint=extra.fingerprint(), with_images=True)
        of_texts: dict[str, Any] = {"images_NI": found.images, "corpus_fingerprint": extra.fingerprint()}
        write_teacher_outputs(path, found.logits, found.embeddings, **of_texts)

    def train_student(name: str) -> Mapping[str, Any]:
        return training_of(distill(planted.corpus, [teacher], unlabelled=extra, name=name, **STUDENT))

    plant_unlabelled(planted, extra, without=(0, 3), fingerprint=fingerprint)
    first, before, written = train_student("first"), outputs(), os.stat(path).st_mtime_ns
    assert train_student("first") == first
    assert os.stat(path).st_mtime_ns == written, "computed once"
    plant_unlabelled(planted, extra, without=(), fingerprint=fingerprint)
    second, after = train_student("second"), outputs()
    same = [row for row in range(-5, 0) if torch.equal(before.logits[row], after.logits[row])]
    assert same == [-4, -3, -1], "texts whose images are as they were"
    assert first["unlabelled_images"] != second["unlabelled_images"] == [after.unlabelled_images]
    with pytest.raises(InputError, match=r"first, a model trained with other settings: unlabelled_images: found"):
        train_student("first")
    write_as_earlier_version()
    assert outputs().unlabelled_images is None
    assert "earlier version" not in capsys.readouterr().err, "the image vectors show of which texts they are"
    plant_unlabelled(planted, extra, without=(0, 3), fingerprint=fingerprint)
    assert torch.equal(outputs().logits, before.logits)
    assert "texts of grown, whose images have changed since it last did" in capsys.readouterr().err
    write_as_earlier_version()
    plant_unlabelled(planted, extra, without=(), fingerprint=fingerprint)
    assert torch.equal(outputs().logits, after.logits)
    plant_unlabelled(planted, extra, without=(), fingerprint=fingerprint, seed=1)
    assert not any(torch.equal(one, other) for one, other in zip(outputs().logits[-5:], after.logits[-5:], strict=True))
    shutil.rmtree(planted.run_dir / "tokens-grown")
    assert outputs().unlabelled_images is not None, "without a store they are as they were written"


def test_images_that_are_not_there_cannot_be_predicted(planted: Planted, teacher: TrainedModel) -> None:
    with pytest.raises(InputError, match=r"no image was drawn for 10 texts \(featurize --subset\); .* leave --predict-image out") as caught:
        distill(planted.corpus, [teacher], distillation=DistillationSettings(predict_image=1.0), name="predicts", **STUDENT)
    assert "\n" not in str(caught.value)
    assert not (planted.run_dir / "predicts").exists()


def test_a_model_of_images_alone_learns_from_the_texts_that_have_one(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    model = train_images(planted.corpus, planted.run_dir / "tokens", **COMMON)
    told = capsys.readouterr().err
    assert "only those that have an image are read; none was drawn for 10 of 30 texts (featurize --subset)" in told
    assert model.metrics["without_image"] == 10
    assert NO_IMAGE not in load_file(model.folder / "model.safetensors")
    lines = (model.folder / "predictions.csv").read_text().splitlines()[1:]
    answers = {",".join(line.split(",")[3:]) for row, line in enumerate(lines) if row in WITHOUT}
    assert len(answers) == 1, "all of them are blank"
    hits = []
    for row, line in enumerate(lines[:TRAIN]):
        _, _, label, *logits = line.split(",")
        if row not in WITHOUT:
            hits.append(np.argmax(list(map(float, logits))) == int(label))
    assert model.accuracy["train"] == pytest.approx(np.mean(hits), abs=1e-6)


def test_texts_without_an_image_do_not_change_a_model_of_images_alone(planted: Planted, tmp_path: Path) -> None:
    def trained(store: Planted) -> torch.Tensor:
        weights = load_file(train_images(store.corpus, store.run_dir / "tokens", **COMMON).folder / "model.safetensors")
        return torch.cat([weights[name].flatten() for name in sorted(weights)])

    other = plant_subset(tmp_path)
    first, *_ = WITHOUT
    relabelled = replace(other.corpus.examples[first], label=0)
    corpus = replace(other.corpus, examples=(*other.corpus.examples[:first], relabelled, *other.corpus.examples[first + 1 :]))
    write_table(other.run_dir / "tokens", corpus, WITHOUT)
    assert torch.equal(trained(replace(other, corpus=corpus)), trained(planted))


def test_a_classifier_of_images_needs_no_such_tokens() -> None:
    head = FusionHead(text_width=32, image_width=24, classes=3, reads_text=False).eval()
    images = torch.randn(2, 6, 24)
    batch = {"image_tokens": images, "has_image": torch.tensor([True, False])}
    torch.testing.assert_close(ImageClassifier(head)(batch).logits, ImageClassifier(head)({"image_tokens": images}).logits)
