"""Students that predict the image vectors of their teachers: what is left of it, what resumes, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped
from lugpi_core.store.token_store import TokenStore
from tests.support.interruption import stop_once
from tests.support.small_training import tiny_classifier
from train.data.teacher_outputs import TeacherOutputs, outputs_path, read_teacher_outputs, write_teacher_outputs
from train.learning.losses import Distillation, TeacherTarget, distillation_loss
from train.learning.networks import Student, TextClassifier
from train.models.api import distill, train_teacher
from train.options.settings import DistillationSettings, Optimization, Placement

OPTIMIZATION = Optimization(epochs=2, learning_rate=1e-3, optimizer="adamw")
BOTH = DistillationSettings(predict_image=2.0, embedding_loss="infonce")
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def corpus(small_csv: Path) -> Corpus:
    return load_corpus(str(small_csv), CorpusSettings(split_column="split"))


@pytest.fixture(scope="module")
def run(corpus: Corpus, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher of images, and one of other texts' images."""
    folder = tmp_path_factory.mktemp("predict") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    for privileged in ("images", "shuffled"):
        teach(corpus, folder, privileged=privileged)
    return folder


def teach(corpus: Corpus, run: Path, **more: Any) -> Path:
    own = {"column": "clip-demo", "text_model": "demo", "optimization": OPTIMIZATION, "placement": Placement(device="cpu")}
    return train_teacher(corpus, run / "tokens", **{**own, **more}).folder


@pytest.fixture(scope="module")
def student(corpus: Corpus, run: Path) -> Train:
    """Distil a student from teachers of a run, and return its folder."""

    def train(name: str, loss: DistillationSettings, *teachers: str, place: Path = run, **more: Any) -> Path:
        folders = [place / teacher for teacher in teachers or ("teacher",)]
        own = {"text_model": "demo", "optimization": OPTIMIZATION, "placement": Placement(device="cpu")}
        return distill(corpus, folders, distillation=loss, name=name, **{**own, **more}).folder

    return train


@pytest.fixture(scope="module")
def both(student: Train) -> Path:
    """A student that predicts images, and whose distances are contrastive."""
    return student("both", BOTH)


def outputs_of(corpus: Corpus, folder: Path) -> TeacherOutputs:
    return read_teacher_outputs(outputs_path(folder), corpus_fingerprint=corpus.fingerprint(), with_images=True)


def json_of(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_the_gradient_reaches_the_text_encoder_and_not_the_classes() -> None:
    classifier = tiny_classifier("distilbert")
    network = Student(TextClassifier(classifier), [], [7])
    output = network({"input_ids": torch.arange(8).reshape(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)})
    target = TeacherTarget(1.0, torch.zeros(2, 5), output.embeddings, output.embeddings, torch.randn(2, 7), output.predicted[0])
    weights = Distillation(hard=0.0, alpha=0.0, beta=0.0, temperature=1.0, predict_image=1.0)
    torch.autograd.backward(distillation_loss(weights, output.logits, [target], torch.zeros(2, dtype=torch.long)))
    reached = {name for name, weight in network.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    assert {"predict_image.0.weight", "classifier.model.pre_classifier.weight"} < reached
    assert any("transformer.layer.0" in name for name in reached)
    assert "classifier.model.classifier.weight" not in reached


def test_a_teacher_keeps_the_first_token_of_the_image_that_it_reads(corpus: Corpus, run: Path) -> None:
    own = TokenStore(run / "tokens")["clip-demo"].torch(slice(None))[:, 0]
    found, shuffled = outputs_of(corpus, run / "teacher").images, outputs_of(corpus, run / "teacher-shuffled").images
    assert found is not None
    assert shuffled is not None
    assert torch.equal(found, own)
    assert torch.equal(shuffled.sort(dim=0).values, own.sort(dim=0).values)
    assert not (shuffled == own).all(dim=1).any(), "every text has another's"


def test_what_is_exported_does_not_tell_that_images_were_predicted(student: Train, both: Path) -> None:
    plain = student("plain", DistillationSettings())
    names = sorted(path.name for path in plain.iterdir())
    assert sorted(path.name for path in both.iterdir()) == names
    assert (both / "config.json").read_bytes() == (plain / "config.json").read_bytes()
    assert (both / "model.safetensors").stat().st_size == (plain / "model.safetensors").stat().st_size
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (both, plain))
    assert {name: weight.shape for name, weight in ours.items()} == {name: weight.shape for name, weight in theirs.items()}
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if "transformer.layer.0" in name), "but they were learnt from"
    assert "predict_image" not in json_of(plain / "training.json")["distillation"], "older students are recognized"
    assert json_of(both / "training.json")["distillation"]["predict_image"] == 2.0


def test_a_student_with_other_weights_is_another_model(student: Train, both: Path) -> None:
    with pytest.raises(InputError, match=r"distillation.predict_image: found 2.0, wanted nothing"):
        student("both", DistillationSettings(embedding_loss="infonce"))
    with pytest.raises(InputError, match=r'distillation.embedding_loss: found "infonce", wanted "mse"'):
        student("both", DistillationSettings(predict_image=2.0))


def test_a_stopped_student_resumes_to_the_same_model(student: Train, both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_once(monkeypatch, step=4)
    with pytest.raises(Stopped):
        student("stopped", BOTH)
    again = student("stopped", BOTH)
    assert (again / "model.safetensors").read_bytes() == (both / "model.safetensors").read_bytes()


def test_each_of_several_teachers_has_a_linear(student: Train, both: Path) -> None:
    of_two = student("of-two", BOTH, "teacher", "teacher-shuffled")
    parameters = [json_of(folder / "metrics.json")["parameters"] for folder in (of_two, both)]
    with_image = load_file(both / "model.safetensors")
    assert parameters[0] - parameters[1] == parameters[1] - sum(weight.numel() for weight in with_image.values())


def test_teachers_of_folds_have_the_same_image_vectors(corpus: Corpus, run: Path, student: Train) -> None:
    folder = teach(corpus, run, folds=2)
    found, whole = outputs_of(corpus, folder).images, outputs_of(corpus, run / "teacher").images
    assert found is not None
    assert whole is not None
    assert torch.equal(found, whole)
    distillation = json_of(student("of-folds", BOTH, folder.name) / "training.json")["distillation"]
    assert (distillation["beta"], distillation["predict_image"]) == (0.0, 2.0)


def test_image_vectors_are_added_to_outputs_of_an_earlier_version(corpus: Corpus, run: Path, student: Train, tmp_path: Path) -> None:
    place = tmp_path / "earlier"
    for name in ("teacher-shuffled", "tokens"):
        shutil.copytree(run / name, place / name)
    path, whole = outputs_path(place / "teacher-shuffled"), outputs_of(corpus, run / "teacher-shuffled")
    write_teacher_outputs(path, whole.logits, whole.embeddings, images_NI=None, corpus_fingerprint=corpus.fingerprint())
    earlier = path.read_bytes()
    student("plain", DistillationSettings(), "teacher-shuffled", place=place)
    assert path.read_bytes() == earlier
    student("predicts", BOTH, "teacher-shuffled", place=place)
    assert path.read_bytes() == outputs_path(run / "teacher-shuffled").read_bytes()
    path.write_bytes(earlier)
    shutil.rmtree(place / "tokens")
    with pytest.raises(InputError, match="run python -m featurize first"):
        student("without", BOTH, "teacher-shuffled", place=place)


@pytest.mark.parametrize("privileged", ["none", "blank"])
def test_a_teacher_without_images_has_none_to_predict(corpus: Corpus, run: Path, student: Train, privileged: str) -> None:
    folder = teach(corpus, run, privileged=privileged)
    with pytest.raises(InputError, match=r"reads (no|blank) images; expected .*--privileged shuffled"):
        student("of-none", BOTH, "teacher", folder.name)
    assert not (run / "of-none").exists()


@pytest.mark.parametrize("more", [{"batch_size": 1}, {"batch_size": 4, "gradient_accumulation_steps": 3}])
def test_a_text_alone_in_a_forward_pass_is_told_from_nothing(student: Train, more: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"expected two texts or more in each forward pass.*--batch-size"):
        student("alone", BOTH, optimization=Optimization(epochs=1, optimizer="adamw", **more))
