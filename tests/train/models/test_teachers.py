"""Teachers from a student's point of view: found, several at once, and their outputs for new texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from tests.support.small_training import deep_folder
from tests.support.topics import topic_texts
from train.cli import main
from train.data.teacher_outputs import TeacherOutputs, outputs_path, write_teacher_outputs
from train.models import teachers
from train.models.teachers import find_teacher, outputs_for


@pytest.fixture(scope="module")
def flags(small_csv: Path) -> tuple[str, ...]:
    return ("--dataset", str(small_csv), "--split-column", "split", "--device", "cpu", "--epochs", "2", "--learning-rate", "1e-3")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text model of width 32 with six layers."""
    return deep_folder(tmp_path_factory.mktemp("narrow") / "narrow", "distilbert")


@pytest.fixture(scope="module")
def run(small_run: Path, flags: tuple[str, ...], narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two teachers of different widths, 128 and 32."""
    folder = tmp_path_factory.mktemp("teachers") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    common = ("teacher", *flags, "--run-dir", str(folder))
    assert main([*common, "--name", "a", "--text-model", "demo", "--image-tokens", "clip-demo", "--outputs-dtype", "float16"]) == 0
    assert main([*common, "--name", "b", "--text-model", str(narrow), "--image-tokens", "vit-demo"]) == 0
    return folder


def outputs_of(small_csv: Path, run: Path, unlabelled: Path, name: str = "a", *, with_images: bool = False) -> TeacherOutputs:
    settings = CorpusSettings(split_column="split")
    corpus, extra = load_corpus(str(small_csv), settings), load_unlabelled(unlabelled, settings)
    compute = resolve_compute("cpu", "float32", half="bfloat16")
    return outputs_for(find_teacher(run / name), corpus, extra, compute, with_images=with_images)


def test_a_student_has_two_teachers_of_different_widths(run: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    common = ("student", *flags, "--run-dir", str(run), "--text-model", "demo")
    assert main([*common, "--teachers", "a", "b", "--teacher-weights", "3", "1", "--name", "of-both"]) == 0
    assert "warning: b reads" in capsys.readouterr().err
    metrics = json.loads((run / "of-both" / "metrics.json").read_text())
    fingerprint = json.loads((run / "of-both" / "training.json").read_text())
    assert fingerprint["shares"] == [0.75, 0.25]
    assert len(set(fingerprint["teachers"])) == 2
    with safe_open(run / "of-both" / "model.safetensors", framework="pt") as file:
        exported = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
        assert not [name for name in file.keys() if "project" in name]  # noqa: SIM118
    assert metrics["parameters"] == exported + 128 * 32 + 32, "the Linear to the narrow teacher was trained and discarded"
    assert main([*common, "--teachers", "a", "b", "--name", "equal"]) == 0
    assert json.loads((run / "equal" / "training.json").read_text())["shares"] == [0.5, 0.5]
    equal = json.loads((run / "equal" / "metrics.json").read_text())
    assert equal["history"][0]["loss"] != metrics["history"][0]["loss"]


def test_without_the_embedding_distance_nothing_is_projected(run: Path, flags: tuple[str, ...]) -> None:
    common = ("student", *flags, "--run-dir", str(run), "--text-model", "demo", "--teachers", "b")
    parameters = []
    for name, more in (("with", ()), ("without", ("--beta", "0"))):
        assert main([*common, *more, "--name", name]) == 0
        parameters.append(json.loads((run / name / "metrics.json").read_text())["parameters"])
    assert parameters[0] - parameters[1] == 128 * 32 + 32


def test_a_student_with_fewer_layers_is_a_plain_model(run: Path, flags: tuple[str, ...], narrow: Path, small_csv: Path) -> None:
    import csv

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    common = ("student", *flags, "--run-dir", str(run), "--text-model", str(narrow), "--teachers", "a")
    assert main([*common, "--student-layers", "2", "--name", "shallow"]) == 0
    folder = run / "shallow"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.num_hidden_layers, len(model.distilbert.transformer.layer)) == (2, 2)
    with (folder / "predictions.csv").open() as file:
        expected = [[float(row[f"logit_{k}"]) for k in range(3)] for row in csv.DictReader(file)]
    with small_csv.open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(logits, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    assert main([*common, "--student-layers", "3", "--name", "shallow"]) == 2, "another model"


def test_a_model_that_is_no_teacher_is_refused(run: Path, flags: tuple[str, ...]) -> None:
    assert main(["baseline", *flags, "--run-dir", str(run), "--text-model", "demo"]) == 0
    with pytest.raises(InputError, match=r"a baseline; expected a teacher"):
        find_teacher(run / "baseline")
    with pytest.raises(InputError, match=r"no finished teacher.*run python -m train teacher first"):
        find_teacher(run / "nobody")
    assert find_teacher(run / "a").fingerprint["image_tokens"] == "clip-demo"


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A run for one test, with the teachers of the shared one."""
    for name in ("a", "b"):
        shutil.copytree(run / name, tmp_path / "topics" / name)
    return tmp_path / "topics"


def unlabelled_file(folder: Path) -> Path:
    path = folder / "more.txt"
    path.write_text("\n".join(text for text, _ in topic_texts(10)))
    return path


def generate_images(small_csv: Path, run: Path, unlabelled: Path, **more: Any) -> None:
    settings = {"dataset": str(small_csv), "split_column": "split", "generator": "demo", "encoders": ("clip-demo",), "run_dir": run}
    featurize_command(FeaturizeOptions(**{**settings, **more}, unlabelled=unlabelled))


def test_a_teacher_reads_other_texts_once(
    own: Path, small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = unlabelled_file(tmp_path)
    generate_images(small_csv, own, more)
    first = outputs_of(small_csv, own, more)
    assert "a reads 10 texts of more" in capsys.readouterr().err
    path = outputs_path(own / "a", "more")
    written = path.read_bytes()
    calls: list[int] = []
    predict = teachers.predict
    monkeypatch.setattr(teachers, "predict", lambda *given, **how: (calls.append(1), predict(*given, **how))[1])
    second = outputs_of(small_csv, own, more)
    assert (calls, path.read_bytes()) == ([], written)
    assert torch.equal(first.logits, second.logits)
    assert first.logits.shape == (70, 3)
    # The texts are the first ten of the corpus, with the same images, so the outputs are the same.
    torch.testing.assert_close(first.logits[60:], first.logits[:10], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first.embeddings[60:], first.embeddings[:10], atol=1e-2, rtol=1e-2)
    path.write_bytes(written[:100])
    third = outputs_of(small_csv, own, more)
    assert calls == [1]
    assert torch.equal(third.logits, first.logits)
    with_images = outputs_of(small_csv, own, more, with_images=True)
    assert calls == [1]
    assert with_images.images is not None
    assert torch.equal(with_images.images[60:], with_images.images[:10])
    fingerprint = load_unlabelled(more, CorpusSettings(split_column="split")).fingerprint()  # an earlier version's file:
    write_teacher_outputs(path, third.logits[60:], third.embeddings[60:], images_NI=None, corpus_fingerprint=fingerprint)
    again = outputs_of(small_csv, own, more, with_images=True)
    assert calls == [1, 1]
    assert again.images is not None
    assert torch.equal(again.images, with_images.images)


def test_another_teacher_of_that_name_reads_them_again(
    own: Path, small_csv: Path, tmp_path: Path, run: Path, flags: tuple[str, ...]
) -> None:
    more = unlabelled_file(tmp_path)
    generate_images(small_csv, own, more)
    first = outputs_of(small_csv, own, more)
    shutil.copytree(run / "tokens", own / "tokens")
    shutil.rmtree(own / "b")
    again = ("teacher", *flags, "--run-dir", str(own), "--name", "b", "--text-model", "demo", "--image-tokens", "clip-demo", "--seed", "1")
    assert main(list(again)) == 0
    shutil.copy(outputs_path(own / "a", "more"), outputs_path(own / "b", "more"))
    other = outputs_of(small_csv, own, more, name="b")
    assert other.teacher != first.teacher
    assert not torch.equal(other.logits[60:], first.logits[60:])


def test_images_of_another_generator_are_refused(own: Path, small_csv: Path, tmp_path: Path) -> None:
    more = unlabelled_file(tmp_path)
    generate_images(small_csv, own, more, steps=3)
    with pytest.raises(InputError, match=r"images of clip-demo for --unlabelled that differ from the teacher's: .*steps"):
        outputs_of(small_csv, own, more)
    assert not outputs_path(own / "a", "more").exists()


def test_the_teachers_token_column_has_to_exist(own: Path, small_csv: Path, tmp_path: Path) -> None:
    more = unlabelled_file(tmp_path)
    generate_images(small_csv, own, more)
    with pytest.raises(InputError, match=r"no column 'vit-demo'"):
        outputs_of(small_csv, own, more, name="b")


def test_another_text_model_of_the_same_name_is_refused(own: Path, small_csv: Path, tmp_path: Path) -> None:
    fingerprint = json.loads((own / "a" / "training.json").read_text())
    (own / "a" / "training.json").write_text(json.dumps({**fingerprint, "text_model": "another"}))
    with pytest.raises(InputError, match=r"another demo than .* was trained from"):
        outputs_of(small_csv, own, unlabelled_file(tmp_path))


def test_a_text_only_teacher_needs_no_images_for_other_texts(own: Path, small_csv: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    control = ("teacher", *flags, "--run-dir", str(own), "--text-model", "demo", "--privileged", "none")
    assert main(list(control)) == 0
    found = outputs_of(small_csv, own, unlabelled_file(tmp_path), name="teacher-none")
    torch.testing.assert_close(found.logits[60:], found.logits[:10], atol=1e-5, rtol=1e-5)
