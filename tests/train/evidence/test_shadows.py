"""The shadows of an audit, planned from the records of its models: seeds, settings and losses; nothing is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from tests.support.small_shadows import shadows_from
from tests.support.small_tables import fake_student, fake_teacher, scores
from train.evidence import audit, schedule
from train.evidence.audited import Audited, chosen_models
from train.evidence.schedule import finish_model
from train.evidence.shadows import Recorded, Shadows, halves_of, require_one_setting, shadows_of
from train.file_names import METRICS, PREDICTIONS, TRAINING, WEIGHTS
from train.models.api import plan_model
from train.models.kinds import plain_weights, teacher_kind
from train.options.settings import DistillationSettings, Placement
from train.options.tools import AuditOptions

CPU = Placement(device="cpu")


def record_of(name: str, seed: int, *teachers: str, **training: Any) -> Recorded:
    """A model of which nothing but its records is there."""
    metrics = {"teachers": [{"name": teacher} for teacher in teachers], "config": {"kd_preset": "paper"}}
    return Recorded(folder=Path(name), training={"command": "student", "flags": {"seed": seed}, **training}, metrics=metrics)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.from_texts([f"text {n}" for n in range(40)], ["a", "b"] * 20, splits=["train"] * 20 + ["validation", "test"] * 10)


def planned_teacher(corpus: Corpus, run: Path) -> Recorded:
    """A teacher that was planned and never trained."""
    plan = plan_model(teacher_kind(corpus, None, "none"), run, name="teacher-none", text_model="demo", placement=CPU)
    return Recorded(folder=plan.folder, training=plan.fingerprint(), metrics={"teachers": [], "config": plan.config})


@pytest.mark.parametrize("left", ["finished", "begun", "without a record"])
def test_a_teachers_shadow_of_other_settings_gives_way(
    corpus: Corpus, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = planned_teacher(corpus, tmp_path)
    experiment, halves = shadows_from(corpus, tmp_path, teacher), halves_of(corpus, 4, seed=0)
    old, new = (shadows_of([teacher], corpus, halves, seed=seed)[0] for seed in (0, 1))
    folder = experiment.models / old.name
    fitted: list[int] = []

    def write(plan: Any, _: Any) -> None:
        fitted.append(plan.optimization.seed)
        assert [path.name for path in folder.iterdir()] == [TRAINING]
        for name in (METRICS, PREDICTIONS, WEIGHTS):
            (folder / name).write_text("{}")

    monkeypatch.setattr(schedule, "fit_model", write)
    for _ in range(2):
        finish_model(experiment, old, {})
    assert fitted == [old.seed], "a finished one is found"
    if left != "finished":
        (folder / METRICS).unlink()
        (folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    if left == "without a record":
        (folder / TRAINING).unlink()
    finished = finish_model(experiment, new, {})
    assert finished is not None
    assert finished.is_new
    assert fitted == [old.seed, new.seed]
    assert json.loads((folder / TRAINING).read_text())["flags"]["seed"] == new.seed
    warned = f"{folder} is a shadow of a model with other settings (--seed: {old.seed} then, {new.seed} now): it is trained again"
    assert capsys.readouterr().err.count(warned) == (left != "without a record")


def test_learnt_shares_differ_between_seeds_as_the_teachers_do() -> None:
    def models(*shares: list[float], **more: Any) -> list[Recorded]:
        return [record_of(f"student-{seed}", seed, shares=one, **more) for seed, one in enumerate(shares)]

    given = models([0.5, 0.5], [0.4, 0.6])
    with pytest.raises(InputError, match="models of both with other settings: shares: found"):
        require_one_setting("both", given)
    learnt = [
        replace(model, training={**model.training, "class_shares": {"groups": [[0, 1]], "shares": [model.training["shares"]]}})
        for model in given
    ]
    require_one_setting("both", learnt)
    with pytest.raises(InputError, match="layers: found"):
        require_one_setting("both", [learnt[0], replace(learnt[1], training={**learnt[1].training, "layers": 2})])


def test_models_whose_teachers_have_other_settings_share_no_shadows(corpus: Corpus, tmp_path: Path) -> None:
    common = {"corpus": corpus.fingerprint()}
    for seed, epochs in enumerate((2, 2, 9)):
        end = "" if seed == 0 else f"-seed{seed}"
        fake_teacher(tmp_path, f"teacher-none{end}", scores(5, 10), privileged="none", seed=seed, flags={"epochs": epochs}, **common)
        teachers = [f"teacher-none{end}"]
        fake_student(tmp_path, f"student-none{end}", scores(5, 10), teacher_names=teachers, seed=seed, **common)
        if seed == 1:
            assert chosen_models(tmp_path, corpus, ("student-none",))[0].seeds == (0, 1)
    with pytest.raises(InputError, match=r"student-none and student-none-seed2, .*: --epochs: 2 then, 9 now \(their teachers\)"):
        chosen_models(tmp_path, corpus, ("student-none",))
    assert chosen_models(tmp_path, corpus, ("student-none-seed2",))[0].seeds == (2,)


def test_the_embeddings_of_teachers_have_one_precision(corpus: Corpus) -> None:
    models = [record_of("student", seed, teachers=[f"{seed}"], teachers_embeddings=["float32"]) for seed in (0, 1)]
    require_one_setting("both", models)
    models[1] = replace(models[1], training={**models[1].training, "teachers_embeddings": ["float16"]})
    with pytest.raises(InputError, match="teachers_embeddings: found"):
        require_one_setting("both", models)


def test_teachers_that_cannot_be_trained_again_as_they_were_are_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those whose token store has grown since, of which the student's own record says nothing."""
    teacher = planned_teacher(corpus, tmp_path)
    fake_teacher(tmp_path, "teacher-none", scores(5, 10), privileged="none")
    metrics = json.loads((teacher.folder / METRICS).read_text())
    (teacher.folder / METRICS).write_text(json.dumps(metrics | {"config": teacher.metrics["config"]}))
    student = record_of("student", 0, "teacher-none", max_length=None, dtype="float32")
    student = replace(student, folder=tmp_path / "student", metrics={**student.metrics, "config": {"text_model": "demo"}})
    planned = Shadows.require_same
    monkeypatch.setattr(Shadows, "require_same", lambda self, model: model == student or planned(self, model))
    options = AuditOptions(dataset="texts", run_dir=tmp_path, device="cpu")
    chosen = [Audited(name="student", models=(student,))]
    (teacher.folder / TRAINING).write_text(json.dumps(teacher.training))
    assert list(audit._experiment(options, corpus, chosen).of) == ["student", "teacher-none"]
    (teacher.folder / TRAINING).write_text(json.dumps({**teacher.training, "tokens": {"generation": {"subset": 60}}}))
    with pytest.raises(InputError, match="teacher-none, which cannot be trained again as it was: tokens"):
        audit._experiment(options, corpus, chosen)


def test_shadows_of_an_ensembles_teachers_have_seeds_of_their_own(corpus: Corpus) -> None:
    names = ("teacher-none", "teacher-none-seed1000", "teacher-none-seed2000")
    teachers = [record_of(name, 1000 * n, command="teacher") for n, name in enumerate(names)]
    models = [record_of("student", 0, *names), record_of("baseline", 0, command="baseline"), *teachers]
    halves = halves_of(corpus, 4, seed=0)
    each = shadows_of(models, corpus, halves, seed=3)
    alone = {(shadow.row.name, shadow.number): shadow.seed for shadow in shadows_of(teachers, corpus, halves, seed=3)}
    for number in range(4):
        seeds = {shadow.row.name: shadow.seed for shadow in each if shadow.number == number}
        assert len({seeds[name] for name in names}) == 3
        assert seeds["teacher-none"] == seeds["student"] == seeds["baseline"] == alone["teacher-none-seed1000", number]
        assert len({shadow.left_out for shadow in each if shadow.number == number}) == 1
    later = shadows_of([record_of("student", 1, "teacher-none"), teachers[0]], corpus, halves, seed=3)
    assert later[0].seed not in {shadow.seed for shadow in each}, "a teacher's seed may also be the lower one"


@pytest.mark.parametrize("has_folds", [True, False])
@pytest.mark.parametrize("beta", [None, 1.0, 0.5, 0.0])
def test_the_distance_of_embeddings_is_the_recorded_one(beta: float | None, *, has_folds: bool) -> None:
    weights = plain_weights(DistillationSettings(beta=beta), has_folds=has_folds)
    assert plain_weights(record_of("student", 0, distillation=vars(weights)).loss, has_folds=has_folds) == weights
