"""Every task from the baseline to the student, and what a plain pipeline and ``train evaluate`` make of the student."""

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lugpi
from lugpi_core.corpora.corpus import Corpus
from tests.support.small_tasks import SPLITS, multi_label_corpus, pairs_corpus, plant_tokens, regression_corpus
from tests.support.topics import topic_texts
from train.models.classifier import load_classifier
from train.models.predictions import read_predictions
from train.options.tools import EvaluateOptions
from train.tools.evaluate import evaluate

FAST: dict[str, Any] = {"text_model": "demo", "optimization": lugpi.Optimization(epochs=2, learning_rate=1e-3, optimizer="adamw")}
CORPORA = {"multi-label": multi_label_corpus, "regression": regression_corpus, "pairs": pairs_corpus}


@dataclass(frozen=True)
class Chain:
    """A run with every kind of model."""

    corpus: Corpus
    run: Path
    baseline: lugpi.TrainedModel
    teacher: lugpi.TrainedModel
    student: lugpi.TrainedModel


@pytest.fixture(scope="module", params=CORPORA)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    corpus = CORPORA[request.param]()
    run = tmp_path_factory.mktemp("runs") / corpus.name
    store = plant_tokens(corpus, run)
    teacher = lugpi.train_teacher(corpus, store, **FAST)
    return Chain(corpus, run, lugpi.train_baseline(corpus, run, **FAST), teacher, lugpi.distill(corpus, [teacher], **FAST))


def pipeline_scores(folder: Path, corpus: Corpus) -> list[dict[str, float]]:
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device="cpu")
    found = []
    for example in corpus.examples:
        given: Any = example.text if example.pair is None else {"text": example.text, "text_pair": example.pair}
        answers = classify(given, top_k=None, truncation=True)
        found.append({answer["label"]: answer["score"] for answer in answers})
    return found


def input_file(folder: Path, corpus: Corpus) -> Path:
    """The corpus as a user has it."""
    path = folder / "texts.jsonl"
    lines = []
    for example in corpus.examples:
        target = example.target
        label = corpus.label_names[example.label] if corpus.task == "single-label" else target
        if isinstance(target, tuple):
            label = [corpus.label_names[k] for k in target]
        lines.append({"text": example.text, "label": label} | ({} if example.pair is None else {"pair": example.pair}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def evaluated(folder: Path, corpus: Corpus, tmp_path: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    pair_column = "pair" if corpus.has_pairs else None
    options = EvaluateOptions(model=folder, input=input_file(tmp_path, corpus), text_pair_column=pair_column, device="cpu")
    figures = evaluate(options)
    with options.written.open(newline="") as file:
        return figures, list(csv.DictReader(file))


def test_a_pipeline_and_evaluate_agree_on_the_student_and_the_baseline(chain: Chain, tmp_path: Path) -> None:
    for model in (chain.student, chain.baseline):
        _, rows = evaluated(model.folder, chain.corpus, tmp_path)
        for row, scores in zip(rows, pipeline_scores(model.folder, chain.corpus), strict=True):
            if chain.corpus.task == "regression":
                assert float(row["label"]) == pytest.approx(scores["label"], abs=1e-6)
            else:
                assert {name: float(row[name]) for name in scores} == pytest.approx(scores, abs=1e-6)


def test_evaluate_scores_as_the_training_did(chain: Chain, tmp_path: Path) -> None:
    corpus = chain.corpus
    test = replace(corpus, examples=tuple(example for example in corpus.examples if example.split == "test"))
    figures, rows = evaluated(chain.student.folder, test, tmp_path)
    for metric, by_split in chain.student.scores.items():
        assert figures[metric] == pytest.approx(by_split["test"], rel=1e-4, abs=1e-6), metric
    predicted = read_predictions(chain.student.folder / "predictions.csv")["test"]
    for metric, value in predicted.scores.items():
        assert value == pytest.approx(figures[metric], rel=1e-4, abs=1e-5), metric
    if corpus.task == "multi-label":
        answers = [[corpus.label_names[k] for k in np.flatnonzero(row)] for row in predicted.predicted]
        assert [row["label"] for row in rows] == ["|".join(names) for names in answers]
        assert any(len(names) > 1 for names in answers), "a model that names several classes"


def test_the_recorded_scores_are_those_of_the_recorded_predictions(chain: Chain) -> None:
    for model in (chain.baseline, chain.teacher, chain.student):
        assert json.loads((model.folder / "metrics.json").read_text()) == model.metrics
        for split, predicted in read_predictions(model.folder / "predictions.csv").items():
            for metric, value in predicted.scores.items():
                assert value == pytest.approx(model.metrics[metric][split], rel=1e-4, abs=1e-5)
        if chain.corpus.task == "single-label":
            assert not {"task", "metric", "thresholds"} & model.metrics.keys()
        else:
            assert (model.task, model.metric) == (chain.corpus.task, model.metrics["metric"])
        best = model.history[model.metrics["best_epoch"]]
        assert best[f"validation_{model.metric}"] == pytest.approx(model.score["validation"], abs=1e-5)
        assert best[f"validation_{model.metric}"] == max(record[f"validation_{model.metric}"] for record in model.history)


def test_the_exported_config_says_what_the_model_answers(chain: Chain) -> None:
    config = json.loads((chain.student.folder / "config.json").read_text())
    task = chain.corpus.task
    assert config["problem_type"] == task.replace("-", "_") + ("" if task == "regression" else "_classification")
    assert [config["id2label"][str(k)] for k in range(len(config["id2label"]))] == list(chain.corpus.label_names)
    assert config.get("thresholds") == (list(chain.student.thresholds or ()) if task == "multi-label" else None)
    card = (chain.student.folder / "README.md").read_text()
    assert {"single-label": "accuracy", "multi-label": "macro-F1", "regression": "Spearman"}[task] in card


def test_a_finished_model_is_recognized(chain: Chain) -> None:
    assert lugpi.train_baseline(chain.corpus, chain.run, **FAST).already_done
    assert lugpi.distill(chain.corpus, [chain.teacher], **FAST).already_done


def test_a_teachers_lost_outputs_are_computed_again(chain: Chain, tmp_path: Path) -> None:
    run = shutil.copytree(chain.run, tmp_path / "run")
    outputs = run / "teacher" / "outputs.safetensors"
    before = outputs.read_bytes()
    outputs.unlink()
    lugpi.train_teacher(chain.corpus, run / "tokens", **FAST)
    assert outputs.read_bytes() == before, "also those of a regression, whose weights are rescaled"


def test_images_alone_and_every_control_are_trained(chain: Chain) -> None:
    models = [lugpi.train_images(chain.corpus, chain.run / "tokens", **FAST)]
    for privileged in ("shuffled", "blank", "none"):
        models.append(lugpi.train_teacher(chain.corpus, chain.run / "tokens", privileged=privileged, **FAST))  # type: ignore[arg-type]
    for model in models:
        assert set(model.score) == {"train", "validation", "test"}


@pytest.mark.parametrize("preset", ["hinton", "lopez-paz"])
def test_every_preset_distils(chain: Chain, preset: Any) -> None:
    student = lugpi.distill(chain.corpus, [chain.teacher], distillation=preset, name=f"student-{preset}", **FAST)
    assert student.score != chain.student.score


def test_two_teachers_unlabelled_texts_and_fewer_layers(chain: Chain, tmp_path: Path) -> None:
    text_only = lugpi.train_teacher(chain.corpus, None, privileged="none", run_dir=chain.run, **FAST)
    again = lugpi.train_teacher(
        chain.corpus,
        None,
        privileged="none",
        run_dir=chain.run,
        **FAST | {"optimization": lugpi.Optimization(epochs=1, seed=3)},
        name="other",
    )
    if chain.corpus.has_pairs:
        extra = Corpus.from_texts([f"blue {n} cloud" for n in range(7)], pairs=[f"sun {n}" for n in range(7)], name="more")
    else:
        extra = Corpus.from_texts([f"blue {n} cloud" for n in range(7)], name="more")
    student = lugpi.distill(
        chain.corpus, [text_only, again], teacher_weights=[0.7, 0.3], unlabelled=extra, student_layers=1, name="small", **FAST
    )
    assert student.metrics["examples"]["unlabelled"] == 7
    assert all(np.isfinite(record["loss"]) for record in student.history)


def test_unlabelled_texts_are_pairs_where_the_corpus_has_pairs(chain: Chain) -> None:
    extra = Corpus.from_texts(["a", "b"], name="more", pairs=None if chain.corpus.has_pairs else ["c", "d"])
    with pytest.raises(lugpi.InputError, match=r"a corpus of (pairs of|single) texts"):
        lugpi.distill(chain.corpus, [chain.teacher], unlabelled=extra, **FAST)


def test_a_teacher_of_another_task_is_refused_by_its_name(chain: Chain) -> None:
    other = regression_corpus() if chain.corpus.task == "multi-label" else multi_label_corpus()
    with pytest.raises(lugpi.InputError, match=f"a {chain.corpus.task} teacher, for {other.name}, a {other.task} corpus"):
        lugpi.distill(other, [chain.teacher], **FAST)


def of_texts(labels: list[Any], **more: Any) -> Corpus:
    return Corpus.from_texts([text for text, _ in topic_texts(60)], labels, splits=SPLITS, **more)


def test_numbers_of_any_size_are_learnt_alike(tmp_path: Path) -> None:
    """AdamW alone would not reach 1e5 in any number of steps."""
    small, large = (lugpi.train_baseline(regression_corpus(scale=scale), tmp_path / str(scale), **FAST) for scale in (1.0, 1e5))
    assert large.scores["spearman"] == small.scores["spearman"]
    for split, value in small.scores["mse"].items():
        assert large.scores["mse"][split] == pytest.approx(1e10 * value, rel=1e-3)
    targets = regression_corpus().targets()[:36]
    assert small.scores["mse"]["train"] < targets.var(), "better than the mean of the train split"


@pytest.mark.filterwarnings("ignore:.*all")
def test_equal_validation_numbers_leave_the_last_epoch_and_no_nan(tmp_path: Path) -> None:
    corpus = of_texts([float(n % 5) if split != "validation" else 3.0 for n, split in enumerate(SPLITS)], task="regression", name="equal")
    model = lugpi.train_baseline(corpus, tmp_path, **FAST)
    assert model.score["validation"] is None
    assert model.scores["mse"]["validation"] is not None
    assert model.metrics["best_epoch"] == 1
    assert "NaN" not in (model.folder / "metrics.json").read_text()
    assert "undefined" in (model.folder / "README.md").read_text()
    assert "validation undefined" in repr(model)


def test_classes_that_are_always_or_never_there_and_texts_without_any(tmp_path: Path) -> None:
    labels = [["always", *(["rare"] if n in (5, 40, 50) else [])] for n in range(60)]
    model = lugpi.train_baseline(of_texts(labels, task="multi-label", name="ends", label_names=["always", "rare"]), tmp_path, **FAST)
    assert model.thresholds is not None
    answers = read_predictions(model.folder / "predictions.csv")["test"].predicted
    assert answers[:, 0].all()
    nothing: list[Any] = [[] for _ in range(60)]
    nothing[0], nothing[1] = ["rare"], ["rarer"]
    model = lugpi.train_baseline(of_texts(nothing, task="multi-label", name="nothing"), tmp_path / "nothing", **FAST)
    assert model.thresholds == (0.5, 0.5)
    assert model.scores["macro_f1"]["test"] == 0
    assert model.scores["subset_accuracy"]["test"] == 1


def test_as_many_classes_as_go_emotions_has(tmp_path: Path) -> None:
    labels = [[f"e{n % 28:02d}", *([f"e{(n * 7) % 28:02d}"] if n % 3 else [])] for n in range(60)]
    model = lugpi.train_baseline(of_texts(labels, task="multi-label", name="emotions"), tmp_path, **FAST)
    assert len(model.thresholds or ()) == 28
    assert len(json.loads((model.folder / "config.json").read_text())["thresholds"]) == 28


def test_balanced_weights_find_more_of_a_rare_class(tmp_path: Path) -> None:
    # Every third text about animals is rare: without weights, two to one against it.
    labels = ["rare" if topic == "animals" and n % 9 == 0 else "common" for n, (_, topic) in enumerate(topic_texts(60))]
    found = {}
    for class_weights in ("none", "balanced"):
        optimization = lugpi.Optimization(epochs=6, learning_rate=2e-3, optimizer="adamw", class_weights=class_weights)  # type: ignore[arg-type]
        model = lugpi.train_baseline(of_texts(labels, name="rare"), tmp_path / class_weights, text_model="demo", optimization=optimization)
        found[class_weights] = (read_predictions(model.folder / "predictions.csv")["train"].predicted == 1).sum()
        record = json.loads((model.folder / "training.json").read_text())["flags"]
        assert ("class_weights" in record) == (class_weights == "balanced"), "older models are recognized"
        assert f"validation_{'macro_f1' if class_weights == 'balanced' else 'accuracy'}" in model.history[0]
    assert found["balanced"] > found["none"]


def test_balanced_weights_reach_every_kind_of_model_and_are_refused_for_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimization = lugpi.Optimization(epochs=1, class_weights="balanced")
    corpus = multi_label_corpus()
    store = plant_tokens(corpus, tmp_path)
    balanced: dict[str, Any] = {"text_model": "demo", "optimization": optimization}
    even: dict[str, Any] = {"text_model": "demo", "optimization": lugpi.Optimization(epochs=1)}
    teacher = lugpi.train_teacher(corpus, store, **balanced)
    losses = [model.history[0]["loss"] for model in (teacher, lugpi.train_teacher(corpus, store, **even, name="even"))]
    losses += [
        model.history[0]["loss"]
        for model in (lugpi.train_images(corpus, store, **balanced), lugpi.train_images(corpus, store, **even, name="i"))
    ]
    losses += [lugpi.distill(corpus, [teacher], **how, name=f"s{n}").history[0]["loss"] for n, how in enumerate((balanced, even))]
    assert len(set(losses)) == 6
    assert "--class-weights" not in capsys.readouterr().err
    soft = lugpi.DistillationSettings(hard=0.0)
    lugpi.distill(corpus, [teacher], distillation=soft, name="soft", **balanced)
    assert "--class-weights balanced has no effect on the loss with --hard 0" in capsys.readouterr().err
    with pytest.raises(lugpi.InputError, match="balanced for a regression"):
        lugpi.train_baseline(regression_corpus(), tmp_path / "numbers", **balanced)
    assert not (tmp_path / "numbers").exists()


def test_a_temperature_without_effect_is_told(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    settings = lugpi.DistillationSettings(temperature=2.0)
    lugpi.distill(chain.corpus, [chain.teacher], distillation=settings, name="warm", **FAST)
    assert ("--temperature has no effect on a regression" in capsys.readouterr().err) == (chain.corpus.task == "regression")


def test_scores_of_other_tasks_are_told_apart(chain: Chain) -> None:
    if chain.corpus.task == "single-label":
        assert chain.student.score == chain.student.accuracy
        return
    with pytest.raises(lugpi.InputError, match="accuracy of"):
        _ = chain.student.accuracy
    if chain.corpus.task == "multi-label":
        assert chain.student.macro_f1 == chain.student.score


def test_a_model_of_pairs_reads_no_single_texts(chain: Chain, tmp_path: Path) -> None:
    path = input_file(tmp_path, chain.corpus)
    options = EvaluateOptions(model=chain.student.folder, input=path, text_pair_column=None if chain.corpus.has_pairs else "text2")
    if chain.corpus.has_pairs:
        with pytest.raises(lugpi.InputError, match="trained on pairs of texts"):
            evaluate(options)
    else:
        path.write_text(path.read_text().replace('"text"', '"text2": "b", "text"'))
        with pytest.raises(lugpi.InputError, match="trained on single texts"):
            evaluate(options)
    assert load_classifier(chain.student.folder).reads_pairs is chain.corpus.has_pairs
