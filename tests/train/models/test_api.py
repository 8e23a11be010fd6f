"""The Python API of training: what the commands call, with settings instead of flags."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from train.cli import main
from train.data.text_model import find_text_model
from train.evidence.compare import compare
from train.models.api import distill, plan_model, train_baseline, train_images, train_teacher
from train.models.kinds import baseline_kind
from train.models.train_model import TrainedModel
from train.options.settings import DistillationSettings, Optimization, Placement

OPTIMIZATION = Optimization(epochs=1, learning_rate=1e-3)
COMMON: dict[str, Any] = {"text_model": "demo", "optimization": OPTIMIZATION, "placement": Placement(device="cpu")}


@pytest.fixture(scope="module")
def corpus(small_csv: Path) -> Corpus:
    return load_corpus(small_csv, CorpusSettings(split_column="split"))


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    return folder


@pytest.fixture(scope="module")
def teacher(corpus: Corpus, run: Path) -> TrainedModel:
    return train_teacher(corpus, run / "tokens", column="clip-demo", **COMMON)


@pytest.fixture(scope="module")
def student(corpus: Corpus, teacher: TrainedModel) -> TrainedModel:
    return distill(corpus, [teacher], **COMMON)


def test_a_model_has_its_folder_scores_and_history(teacher: TrainedModel, student: TrainedModel, run: Path) -> None:
    assert (teacher.folder, student.folder) == (run / "teacher", run / "student")
    assert (teacher.command, student.command) == ("teacher", "student")
    for model in (teacher, student):
        assert set(model.accuracy) == set(model.macro_f1) == {"train", "validation", "test"}
        assert len(model.history) == 1
        assert not model.already_done
        assert "history" not in model.to_json()
        assert model.to_json()["config"]["epochs"] == 1


def test_a_finished_model_is_confirmed(corpus: Corpus, teacher: TrainedModel, student: TrainedModel) -> None:
    again = distill(corpus, [teacher.folder], **COMMON)
    assert again.already_done
    assert again.accuracy == student.accuracy


def test_settings_of_ones_own_are_recorded_besides_the_models(corpus: Corpus, tmp_path: Path) -> None:
    """The model's card reads the epochs there, and a student its teacher's text model."""
    plain, own = (plan_model(baseline_kind(corpus), tmp_path, **COMMON, **more) for more in ({}, {"config": {"experiment": 7}}))
    assert plain.config["epochs"] == 1
    assert own.config == {**plain.config, "experiment": 7}


def test_other_settings_are_refused(corpus: Corpus, teacher: TrainedModel, student: TrainedModel) -> None:
    with pytest.raises(InputError, match=r"--epochs: 1 then, 2 now"):
        distill(corpus, [teacher], **{**COMMON, "optimization": replace(OPTIMIZATION, epochs=2)})
    with pytest.raises(InputError, match=r"distillation\.beta.*give another name \(--name\)"):
        distill(corpus, [teacher], distillation=DistillationSettings(beta=0.0), **COMMON)


def test_the_commands_find_the_same_model(teacher: TrainedModel, student: TrainedModel, small_csv: Path, run: Path) -> None:
    flags = ["--dataset", str(small_csv), "--split-column", "split", "--text-model", "demo", "--epochs", "1", "--learning-rate", "1e-3"]
    for command, more in (("teacher", ["--image-tokens", "clip-demo"]), ("student", [])):
        before = (run / command / "metrics.json").stat().st_mtime_ns
        assert main([command, *flags, "--run-dir", str(run), "--device", "cpu", *more]) == 0
        assert (run / command / "metrics.json").stat().st_mtime_ns == before


def test_a_student_of_text_only_teachers_needs_no_store(corpus: Corpus, tmp_path: Path) -> None:
    teacher = train_teacher(corpus, None, privileged="none", run_dir=tmp_path, **COMMON)
    assert teacher.folder == tmp_path / "teacher-none"
    student = distill(corpus, [teacher], distillation="hinton", student_layers=1, name="small", **COMMON)
    assert student.folder == tmp_path / "small"
    assert student.metrics["config"]["kd_preset"] == "hinton"
    with pytest.raises(InputError, match="no token store"):
        train_teacher(corpus, None, **COMMON)


def test_baseline_and_images_take_the_same_settings(corpus: Corpus, run: Path) -> None:
    found = find_text_model("demo", max_length=16)
    baseline = train_baseline(corpus, run, **{**COMMON, "text_model": found})
    assert baseline.metrics["config"]["max_length"] == 16
    images = train_images(corpus, run / "tokens", column="vit-demo", name="from-images", **COMMON)
    assert images.folder == run / "from-images"


def test_teachers_of_two_runs_are_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="of one run"):
        distill(corpus, ["runs/a/teacher", "runs/b/teacher"], **COMMON)
    with pytest.raises(InputError, match="no teacher"):
        distill(corpus, [], **COMMON)


def test_a_control_reads_the_generators_text_vectors(
    corpus: Corpus, small_csv: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common: dict[str, Any] = {"dataset": str(small_csv), "split_column": "split", "generator": "demo", "device": "cpu"}
    with pytest.raises(InputError, match="--encoders prompt-text, which generates no image"):
        train_teacher(corpus, run / "tokens", privileged="text", **COMMON)
    featurize_command(FeaturizeOptions(**common, encoders=("prompt-text",), run_dir=run, shard_rows=32))
    teacher = train_teacher(corpus, run / "tokens", privileged="text", **COMMON)
    assert teacher.folder == run / "teacher-text"
    assert re.search(r"text vectors: \d\.\d MB, read from disk", capsys.readouterr().err)
    assert teacher.metrics["config"]["image_tokens"] == "prompt-text"
    student = distill(corpus, [teacher], name="student-text", **COMMON)
    assert "the vectors of an image generator's text encoder, and no image" in (student.folder / "README.md").read_text()
    report = compare(corpus, run, train=False, rows=["controls"], seeds=1)
    assert {"teacher-text", "student-text"} <= set(report.rows)
    assert report.rows["teacher-text"].seeds == report.rows["student-text"].seeds == (0,)
    for refused in (
        lambda: train_images(corpus, run / "tokens", column="prompt-text", **COMMON),
        lambda: train_teacher(corpus, run / "tokens", column="prompt-text", name="odd", **COMMON),
    ):
        with pytest.raises(InputError, match="which are of no image"):
            refused()
    with pytest.raises(InputError, match="leave --image-tokens out"):
        train_teacher(corpus, run / "tokens", column="clip-demo", privileged="text", name="odd", **COMMON)
