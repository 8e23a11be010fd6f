"""``python -m train audit``: its shadows, its figures from the files beside them, what is kept, and what is refused."""

import csv
import json
import pickle
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from tests.support.small_shadows import shadows_from
from tests.support.small_tables import fake_model, fake_student, fake_teacher, right
from train.cli import main
from train.evidence import membership, schedule
from train.evidence.audited import Answers, attack_all, chosen_models, read_answers, texts_of
from train.evidence.membership import Floats
from train.evidence.shadows import Recorded, halves_of, shadows_of
from train.models import train_model as training_of_model
from train.models.api import distill, plan_model, train_baseline, train_teacher
from train.models.kinds import DistillationSource, baseline_kind, student_kind, teacher_kind
from train.models.plan import compute_on
from train.models.predictions import Predicted, write_predictions
from train.options.settings import DistillationSettings, Optimization, Placement

CPU = Placement(device="cpu")
TRAIN, TEST = 16, 100
FLAGS = ("--split-column", "split", "--processes", "1", "--device", "cpu")


def write_corpus(path: Path) -> Path:
    """Texts whose labels follow from nothing, so that a model can only memorise them; validation texts are train texts and one word."""
    generator = np.random.default_rng(0)
    words = ["cat", "goal", "star", "team", "moon", "dog", "match", "comet", "horse", "orbit"]
    texts = [" ".join(generator.choice(words, 6)) + f" {n}" for n in range(TRAIN + TEST)]
    labels = generator.integers(2, size=len(texts))
    lines = [f"{text},{label},{'train' if n < TRAIN else 'test'}" for n, (text, label) in enumerate(zip(texts, labels, strict=True))]
    lines += [f"{text} again,{label},validation" for text, label in zip(texts[:TRAIN], labels, strict=False)]
    path.write_text("\n".join(["text,label,split", *lines]) + "\n")
    return path


@dataclass(frozen=True)
class Learnt:
    """An audited run, and which rows every training of the audit has learnt, by the names of the models."""

    path: Path
    run: Path
    corpus: Corpus
    rows: dict[str, list[int]]
    trained: list[list[str]]

    def audit(self, *more: str) -> int:
        return main(["audit", "--dataset", str(self.path), "--run-dir", str(self.run), *FLAGS, *more])


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """A run with a baseline that has memorised its train texts, a text-only teacher and its student of one epoch; audited with 4 shadows,
    in two goes."""
    folder = tmp_path_factory.mktemp("audit")
    path, run = write_corpus(folder / "words.csv"), folder / "run"
    corpus = load_corpus(str(path), CorpusSettings(split_column="split"))
    settings: Any = {"text_model": "demo", "placement": CPU}
    memorising = Optimization(epochs=12, learning_rate=2e-3, batch_size=4, optimizer="adamw")
    short = Optimization(epochs=1, learning_rate=1e-3, optimizer="adamw")
    train_baseline(corpus, run, optimization=memorising, **settings)
    teacher = train_teacher(corpus, None, privileged="none", run_dir=run, optimization=short, **settings)
    distill(corpus, [teacher], optimization=short, **settings)
    rows: dict[str, list[int]] = {}
    learnt, fit, is_first = Learnt(path, run, corpus, rows, []), training_of_model.fit, True

    def fit_and_note(training: Any) -> Any:
        if is_first and len(rows) == 5:
            raise KeyboardInterrupt
        rows[training.folder.name] = list(training.learnt)
        return fit(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_of_model, "fit", fit_and_note)
        assert learnt.audit("--shadows", "4") == 130
        learnt.trained.append(list(rows))
        is_first = False
        assert learnt.audit("--shadows", "4") == 0
        learnt.trained.append(list(rows)[5:])
    return learnt


def figures_of(learnt: Learnt) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((learnt.run / "audit.json").read_text())
    return figures


def scores_of(learnt: Learnt, model: str) -> list[dict[str, str]]:
    with (learnt.run / "audit.csv").open(newline="") as file:
        return [line for line in csv.DictReader(file) if line["model"] == model]


def test_a_model_that_has_memorised_its_texts_is_found_out(memorised: Learnt) -> None:
    models = figures_of(memorised)["models"]
    assert list(models) == ["baseline", "teacher-none", "student-none"]
    baseline = models["baseline"]
    for attack in ("loss", "shadow", "lira"):
        assert baseline["attacks"][attack]["auc"]["value"] > 0.7
        assert baseline["attacks"][attack]["auc"]["interval"][0] > 0.6
    low, high = baseline["unseen"]["auc"]["interval"]
    assert low < 0.5 < high
    student = models["student-none"]
    assert student["minus_baseline"]["lira"]["auc"]["interval"][1] < 0
    assert student["attacks"]["loss"]["tpr_at_0.001"] is None
    assert student["attacks"]["loss"]["tpr_at_0.01"] is not None


@pytest.mark.parametrize("model", ["baseline", "student"])
def test_figures_follow_from_the_files_of_the_run(memorised: Learnt, model: str) -> None:
    """Everything once more from predictions.csv and audit.csv, with scikit-learn."""

    def label_confidence(folder: Path) -> dict[str, float]:
        with (folder / "predictions.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        log_p = log_softmax([[float(line["logit_0"]), float(line["logit_1"])] for line in lines], axis=1)
        sure = [of_text[int(line["label"])] - of_text[1 - int(line["label"])] for line, of_text in zip(lines, log_p, strict=True)]
        return dict(zip([line["id"] for line in lines], sure, strict=True))

    own = label_confidence(memorised.run / model)
    shadows = [label_confidence(memorised.run / "audit" / f"{model}-shadow{n:03d}") for n in range(4)]
    lines = scores_of(memorised, model)
    assert [line["member"] for line in lines] == ["1"] * TRAIN + ["0"] * TEST
    labels, lira, loss = [int(line["member"]) for line in lines], [], []
    for line in lines:
        unseen = [shadows[n][line["id"]] for n in range(4) if line["seen_by"][n] == "0"]
        assert len(unseen) == 2
        lira.append(own[line["id"]] - np.mean(unseen))
        loss.append(own[line["id"]])
    name = "student-none" if model == "student" else model
    attacks = figures_of(memorised)["models"][name]["attacks"]
    assert attacks["lira"]["auc"]["value"] == pytest.approx(roc_auc_score(labels, lira), abs=1e-6)
    assert attacks["loss"]["auc"]["value"] == pytest.approx(roc_auc_score(labels, loss), abs=1e-6)
    for attack in attacks:
        area = roc_auc_score(labels, [float(line[attack]) for line in lines])
        assert attacks[attack]["auc"]["value"] == pytest.approx(area, abs=1e-6)


def test_a_shadow_learns_its_half_and_a_students_teacher_the_same(memorised: Learnt) -> None:
    train = memorised.corpus.rows("train")
    ids = [memorised.corpus.examples[row].id for row in train]
    seen_by = {line["id"]: line["seen_by"] for line in scores_of(memorised, "baseline") if line["member"] == "1"}
    for number in range(4):
        half = [row for row, id_ in zip(train, ids, strict=True) if seen_by[id_][number] == "1"]
        assert len(half) == TRAIN // 2
        for model in ("baseline", "teacher-none", "student"):
            assert memorised.rows[f"{model}-shadow{number:03d}"] == half
    for pair in (0, 2):
        assert all(one[pair] != one[pair + 1] for one in seen_by.values())
    training = json.loads((memorised.run / "audit" / "student-shadow001" / "training.json").read_text())
    metrics = json.loads((memorised.run / "audit" / "student-shadow001" / "metrics.json").read_text())
    assert metrics["teachers"][0]["name"] == "teacher-none-shadow001"
    assert training["shadow"]["number"] == 1
    assert training["flags"]["seed"] != 0


def test_an_interrupted_audit_repeats_no_finished_shadow(memorised: Learnt, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    first, second = memorised.trained
    assert len(first) == 5
    assert len(second) == 7
    folders = sorted(path.name for path in (memorised.run / "audit").iterdir() if path.name[0] != ".")
    assert folders == sorted({*first, *second})
    # Of what they compute, only teachers' weights are read again.
    assert {path.parent.name[:7] for path in (memorised.run / "audit").glob("*/model.safetensors")} == {"teacher"}
    monkeypatch.setattr(schedule, "fit_model", None)
    before = figures_of(memorised)
    assert memorised.audit("--shadows", "4") == 0
    printed = capsys.readouterr()
    last = json.loads(printed.out.splitlines()[-1])
    assert (last.pop("audit"), last.pop("trained")) == (str(memorised.run / "audit.json"), 0)
    after = figures_of(memorised)
    assert after == before
    table = after.pop("table")
    assert last == after
    assert "12 models, each on half of the train texts" in printed.err
    assert "; 0 to be trained" in printed.err
    assert f"note: no TPR at 0.1 % FPR: {TEST} test texts; one is 0.1 % of 1,000" in printed.err
    assert all(cell in printed.out for line in table["rows"] for cell in line)
    student = after["models"]["student-none"]["minus_baseline"]["lira"]
    (line,) = [line for line in table["rows"][8:] if line[2] == "lira"]
    assert line[4].split()[0] == f"{student['auc']['value']:+.3f}"
    assert line[6].split()[0] == f"{100 * student['tpr_at_0.01']['value']:+.1f}"
    assert table["header"] == ["model", "right, train / test", "attack", "AUC", "- baseline", "TPR at 1 % FPR", "- baseline, points"]


def test_a_shadow_of_other_settings_is_trained_again(memorised: Learnt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(memorised, run=tmp_path / "run")
    shutil.copytree(memorised.run, other.run)
    path = other.run / "audit" / "student-shadow002" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 5}))
    (other.run / "audit" / "student-shadow003" / "predictions.csv").unlink()
    assert other.audit("--shadows", "4", "--models", "student") == 0
    printed = capsys.readouterr()
    assert "student-shadow002 is a shadow of a model with other settings (max_length: found 5, wanted" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["trained"] == 2
    assert list(figures_of(other)["models"]) == ["student"]
    assert figures_of(other)["models"]["student"]["attacks"] == figures_of(memorised)["models"]["student-none"]["attacks"]


def test_the_report_shows_the_audit_of_these_models(memorised: Learnt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(memorised.run, run, ignore=shutil.ignore_patterns("audit"))

    def page() -> tuple[str, list[str]]:
        capsys.readouterr()
        assert main(["report", "--dataset", str(memorised.path), "--split-column", "split", "--run-dir", str(run)]) == 0
        notes: list[str] = json.loads(capsys.readouterr().out.splitlines()[-1])["notes"]
        return (run / "report.html").read_text(), [note for note in notes if note.startswith("the audit")]

    text, notes = page()
    area = figures_of(memorised)["models"]["student-none"]["attacks"]["lira"]["auc"]["value"]
    assert f">{area:.3f} [" in text
    assert text.count('<th scope="row">student-none</th><td>') >= 4
    assert "Membership inference with 4 shadows" in text
    assert notes == []
    shutil.copy(run / "baseline" / "predictions.csv", run / "student" / "predictions.csv")
    text, notes = page()
    assert "Membership inference" not in text
    assert notes == [f"the audit is not shown: {run / 'audit.json'} is of other models than the run's; run python -m train audit again"]
    (run / "audit.json").write_text('{"models": []}')
    assert page()[1] == [f"the audit is not shown: {run / 'audit.json'} is damaged; run python -m train audit again"]


def test_what_cannot_be_trained_again_as_it_was_is_refused(memorised: Learnt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = replace(memorised, run=tmp_path / "run")
    shutil.copytree(memorised.run, other.run)

    def error(*more: str) -> str:
        capsys.readouterr()
        assert other.audit(*more) == 2
        return capsys.readouterr().err.splitlines()[-1]

    path = other.run / "baseline" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_model": "0" * 32}))
    assert "run/baseline, which cannot be trained again as it was: text_model: found" in error()
    assert "got --models basline; expected one of baseline, teacher-none, student-none, student, finished models of" in error(
        "--models", "basline"
    )
    assert "got --models student-none student, which both have student; expected different models" in error(
        "--models", "student-none", "student"
    )
    path = other.run / "baseline" / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"note": "of my own"}}))
    assert "run/baseline, whose recorded config does not name its text model" in error("--models", "baseline")
    path = other.run / "student" / "metrics.json"
    metrics = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | {"config": metrics["config"] | {"text_model": str(tmp_path / "gone")}}))
    assert f"got the text model of student, {tmp_path / 'gone'}" in error("--models", "student")
    path.write_text(json.dumps(metrics))
    shutil.rmtree(other.run / "teacher-none")
    assert "run/student, whose teacher teacher-none is not in the run; expected the teacher" in error("--models", "student")
    assert "expected an even number, 4 or more" in error("--shadows", "5")
    assert "got --models student student; expected different models" in error("--models", "student", "student")
    (other.run / "student" / "model.safetensors").unlink()
    (other.run / "baseline" / "model.safetensors").unlink()
    assert "got no finished model in" in error()


@pytest.fixture(scope="module")
def numbers() -> Corpus:
    return Corpus.from_texts([f"text {n}" for n in range(40)], ["a", "b"] * 20, splits=["train"] * 20 + ["validation"] * 10 + ["test"] * 10)


def test_a_regression_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{n / 2}\n" for n in range(40)))
    assert main(["audit", "--dataset", str(path), "--task", "regression", "--run-dir", str(tmp_path / "run")]) == 2
    assert "got numbers, a regression; expected a task with classes" in capsys.readouterr().err


def test_models_whose_shadows_would_be_others_are_refused_or_left_out(numbers: Corpus, tmp_path: Path) -> None:
    scores, corpus = {"validation": right(5, 10), "test": right(5, 10)}, numbers.fingerprint()
    fake_teacher(tmp_path, "teacher-none-folds5", scores, privileged="none", corpus=corpus, folds={"count": 5, "seed": 0})
    fake_teacher(tmp_path, "teacher-none", scores, privileged="none", corpus=corpus)
    fake_student(tmp_path, "more", scores, teacher_names=["teacher-none"], corpus=corpus, unlabelled="abc")
    fake_model(tmp_path, "baseline", scores, command="baseline", corpus=corpus)
    fake_model(tmp_path, "baseline-seed1", scores, command="baseline", corpus=corpus, seed=1)
    assert [(one.name, one.seeds) for one in chosen_models(tmp_path, numbers, ())] == [("baseline", (0, 1)), ("teacher-none", (0,))]
    for name, message in {
        "teacher-none-folds5": "whose recorded answers to train texts",
        "more": "distilled on unlabelled texts too",
    }.items():
        with pytest.raises(InputError, match=message):
            chosen_models(tmp_path, numbers, (name,))
    fake_model(tmp_path, "baseline-seed2", scores, command="baseline", corpus=corpus, seed=2, flags={"epochs": 9})
    with pytest.raises(
        InputError, match=r"baseline and baseline-seed2, models of baseline with other settings: --epochs: 2 then, 9 now"
    ) as caught:
        chosen_models(tmp_path, numbers, ("baseline",))
    (advised,) = re.findall(r"name one of them: --models (\S+)$", str(caught.value))
    assert chosen_models(tmp_path, numbers, (advised,))[0].seeds == (1,)
    assert chosen_models(tmp_path, numbers, ("baseline-seed2",))[0].seeds == (2,)


def test_a_run_of_which_nothing_is_audited_unasked_says_why(numbers: Corpus, tmp_path: Path) -> None:
    scores, corpus = {"validation": right(5, 10), "test": right(5, 10)}, numbers.fingerprint()
    name = "images-clip-demo"
    fake_model(tmp_path, name, scores, command="images", image_tokens="clip-demo", corpus=corpus)
    with pytest.raises(InputError, match=f"are of images alone; expected a baseline, a teacher or a student, .*: --models {name}"):
        chosen_models(tmp_path, numbers, ())
    assert [one.name for one in chosen_models(tmp_path, numbers, (name,))] == [name]
    fake_teacher(tmp_path, "teacher-none-folds5", scores, privileged="none", corpus=corpus, folds={"count": 5, "seed": 0})
    with pytest.raises(InputError, match="teacher-none-folds5, whose recorded answers to train texts"):
        chosen_models(tmp_path, numbers, ())


def test_a_model_of_a_few_shots_is_refused(numbers: Corpus, tmp_path: Path) -> None:
    run, scores = tmp_path / "shots-5", {"validation": right(5, 10), "test": right(5, 10)}
    fake_model(run, "baseline", scores, command="baseline", corpus=numbers.fingerprint(), shots=5)
    for names in ((), ("baseline",)):
        with pytest.raises(InputError, match="baseline, which was trained on 5 texts of each class; expected a model of all train texts"):
            chosen_models(run, numbers, names)


def test_a_class_with_one_text_is_in_one_half() -> None:
    labels = ["a"] * 9 + ["b"] * 10 + ["c"]
    corpus = Corpus.from_texts([f"text {n}" for n in range(24)], [*labels, *"abab"], splits=["train"] * 20 + ["validation", "test"] * 2)
    halves = halves_of(corpus, 6, seed=0)
    assert halves.shape == (6, 24)
    assert (halves[::2, :20] ^ halves[1::2, :20]).all()
    assert not halves[:, 20:].any()
    assert {4, 5} == {int(half[:9].sum()) for half in halves}
    assert (halves[0] != halves[2]).any()
    np.testing.assert_array_equal(halves_of(corpus, 4, seed=0), halves[:4])


def test_test_texts_that_are_train_texts_count_as_neither() -> None:
    texts = ["one  text", "two", "three", "four", "five", "six", "one text", "seven"]
    with pytest.warns(UserWarning, match="repeat an earlier one"):
        corpus = Corpus.from_texts(texts, ["a", "b"] * 4, splits=["train"] * 4 + ["validation"] * 2 + ["test"] * 2)
    texts_found = texts_of(corpus, halves_of(corpus, 4, seed=0), seed=0)
    assert texts_found.kept_O.tolist() == [False, True]
    assert (texts_found.counts, texts_found.repeated) == ((4, 1), 1)
    with pytest.warns(UserWarning, match="repeat an earlier one"):
        corpus = Corpus.from_texts([*texts[:7], "two"], ["a", "b"] * 4, splits=["train"] * 4 + ["validation"] * 2 + ["test"] * 2)
    with pytest.raises(InputError, match="all of whose test texts are train texts too"):
        texts_of(corpus, halves_of(corpus, 4, seed=0), seed=0)


OPTIMIZATIONS = [
    Optimization(epochs=3, patience=2, class_weights="balanced", seed=4, batch_size=8, max_grad_norm=0.5, optimizer="adamw8bit"),
    Optimization(update="lp-ft", head_learning_rate=3e-3, freeze_layers=1, prefix_dtype="float32", gradient_accumulation_steps=2),
    Optimization(update="head", weight_decay=0.1),
]


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize(
    "loss",
    [
        DistillationSettings(),
        DistillationSettings(kd_preset="hinton", temperature=3.0, beta=0.5, embedding_loss="cosine"),
        DistillationSettings(alpha=0.0),
    ],
)
def test_every_setting_is_planned_again_from_the_records(
    memorised: Learnt, tmp_path: Path, optimization: Optimization, loss: DistillationSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models that were only planned: each plan from its records must be the same."""
    corpus, run = memorised.corpus, tmp_path / "run"
    shutil.copytree(memorised.run / "teacher-none", run / "teacher-none")
    source = DistillationSource(teachers=[run / "teacher-none"], loss=loss, shares=(1.0,), layers=2)
    kinds = {
        "baseline": baseline_kind(corpus),
        "teacher": teacher_kind(corpus, None, "none", outputs_dtype="float16", folds=3),
        "student": student_kind(corpus, source, compute_on(CPU)),
    }
    for name, kind in kinds.items():
        plan = plan_model(kind, run, name=name, text_model="demo", optimization=optimization, placement=CPU)
        folder = run / name
        folder.mkdir()
        (folder / "training.json").write_text(json.dumps(plan.fingerprint()))
        metrics = json.loads((memorised.run / "baseline" / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"config": plan.config, "teachers": list(kind.teacher_records)}))
        recorded = Recorded.of(folder)
        experiment = pickle.loads(pickle.dumps(shadows_from(corpus, run, recorded)))  # as the processes get it
        capsys.readouterr()
        experiment.require_same(recorded)
        assert capsys.readouterr().err == ""


def test_a_shadow_with_folds_leaves_out_its_half_in_each_of_them(memorised: Learnt, tmp_path: Path, monkeypatch: Any) -> None:
    from train.learning.distributed import Processes
    from train.models import folds

    corpus = memorised.corpus
    plan = plan_model(teacher_kind(corpus, None, "none", folds=2), tmp_path, name="teacher", text_model="demo", placement=CPU)
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "training.json").write_text(json.dumps(plan.fingerprint()))
    metrics = json.loads((memorised.run / "baseline" / "metrics.json").read_text()) | {"config": plan.config}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    recorded, learnt = Recorded.of(folder), list[list[int]]()
    halves = halves_of(corpus, 4, seed=0)
    shadow = shadows_of([recorded], corpus, halves, seed=0)[2]
    record = {"seconds": 1.0}
    monkeypatch.setattr(folds, "_train", lambda plan, _: learnt.append(plan.learnt_rows) or SimpleNamespace(record=record))
    folds.fold_outputs(shadows_from(corpus, tmp_path, recorded).plan_of(shadow, {}), Processes())
    half = np.flatnonzero(halves[2]).tolist()
    assert sorted(learnt[0] + learnt[1]) == half
    assert learnt[0]


def planted(*, leak: float, texts: int, shadows: int) -> dict[str, Any]:
    """Figures for a model that is surer of its members by ``leak`` than models that have not seen them; half of the texts are members."""
    generator = np.random.default_rng(1)
    corpus = Corpus.from_texts(
        [f"text {n}" for n in range(2 * texts + 1)],
        ["a", "b"] * texts + ["a"],
        splits=["train"] * texts + ["test"] * texts + ["validation"],
    )
    halves = halves_of(corpus, shadows, seed=0)
    found = texts_of(corpus, halves, seed=0)
    difficulty_N = generator.normal(0, 2, 2 * texts)

    def answers(seen_N: Any) -> Answers:
        sure_N: Floats = difficulty_N + generator.normal(0, 1, 2 * texts) + leak * seen_N
        labels = np.arange(2 * texts) % 2
        logits = np.where(labels[:, None] == [0, 1], sure_N[:, None], 0.0)
        parts = [
            Predicted(ids=tuple(map(str, rows)), labels=labels[rows], logits=logits[rows]) for rows in np.split(np.arange(2 * texts), 2)
        ]
        return Answers(members=parts[0], others=parts[1])

    own = answers(np.arange(2 * texts) < texts)
    of_shadows = (answers(np.concatenate([seen_M, np.zeros(texts)])) for seen_M in found.seen_HM)
    return dict(attack_all([own], of_shadows, found, seed=0).figures)


def test_a_model_trained_on_other_texts_gives_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the tail, where LiRA with more shadows for test texts than for train texts would be too sure: 1.7 % in place of 1."""
    monkeypatch.setattr(membership, "RESAMPLES", 2)
    figures = planted(leak=0.0, texts=6_000, shadows=4)
    for attack in figures:
        assert figures[attack]["auc"].values_S[0] == pytest.approx(0.5, abs=0.02)
        assert figures[attack]["tpr_at_0.01"].values_S[0] == pytest.approx(0.01, abs=0.004)


def test_a_model_that_gives_all_away_is_found_by_every_attack() -> None:
    assert all(figures["auc"].values_S[0] > 0.99 for figures in planted(leak=20.0, texts=300, shadows=4).values())


def test_answers_with_several_labels_keep_their_thresholds(tmp_path: Path) -> None:
    labels = [["a"], ["b"], ["a", "b"], []] * 10
    splits = ["train"] * 20 + ["test"] * 19 + ["validation"]
    corpus = Corpus.from_texts([f"text {n}" for n in range(40)], labels, splits=splits, task="multi-label")
    halves = halves_of(corpus, 4, seed=0)
    texts = texts_of(corpus, halves, seed=0)
    generator, folders = np.random.default_rng(0), [tmp_path / name for name in ("own", "0", "1", "2", "3")]
    seen = [np.arange(40) < 20, *halves]
    for folder, seen_N in zip(folders, seen, strict=True):
        folder.mkdir()
        sure_NK = generator.normal(0, 1, (40, 2)) + 9.0 * seen_N[:, None]
        logits = np.where(corpus.targets() > 0, sure_NK, -sure_NK)
        write_predictions(folder / "predictions.csv", corpus, torch.from_numpy(logits))
        (folder / "metrics.json").write_text(json.dumps({"thresholds": [0.1, 0.9]}))
    own = read_answers(folders[0], texts)
    assert {one.thresholds for one in own.both()} == {(0.1, 0.9)}
    found = attack_all([own], (read_answers(folder, texts) for folder in folders[1:]), texts, seed=0)
    assert all(figures["auc"].values_S[0] > 0.95 for figures in found.figures.values())


def test_the_planned_shadows_are_the_teachers_first(memorised: Learnt) -> None:
    models = [Recorded.of(memorised.run / name) for name in ("student", "teacher-none")]
    shadows = shadows_of(models, memorised.corpus, halves_of(memorised.corpus, 4, seed=0), seed=0)
    assert [shadow.name for shadow in shadows[:2]] == ["teacher-none-shadow000", "student-shadow000"]
    assert shadows[1].needs == ("teacher-none-shadow000",)


def test_shadows_learn_the_shares_of_their_teachers_from_their_own_half(small_csv: Path, tmp_path: Path) -> None:
    """Shares of cross-fitted teachers are learnt on train texts, of which a shadow has not seen half."""
    corpus, run = load_corpus(str(small_csv), CorpusSettings(split_column="split")), tmp_path / "run"
    settings: Any = {"text_model": "demo", "placement": CPU, "optimization": Optimization(epochs=1, learning_rate=1e-3, optimizer="adamw")}
    teachers = [train_teacher(corpus, None, privileged="none", folds=2, name=name, run_dir=run, **settings) for name in ("one", "other")]
    student = distill(corpus, teachers, teacher_weights="learnt", **settings)
    flags = ("--dataset", str(small_csv), "--run-dir", str(run), *FLAGS, "--shadows", "4", "--models", "student")
    assert main(["audit", *flags]) == 0
    records = [student.metrics, *(json.loads(path.read_text()) for path in sorted(run.glob("audit/student-shadow*/metrics.json")))]
    shares = [record["learnt_shares"] for record in records]
    assert [share["split"] for share in shares] == ["train"] * 5
    assert [sum(group["texts"] for group in share["groups"]) for share in shares] == [36, 18, 18, 18, 18]
