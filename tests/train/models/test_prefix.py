"""``--freeze-layers`` as a user sees it: states computed once for all models of a run, and whole models that transformers reads."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import train.models.prefix
from lugpi_core.errors import InputError
from tests.support.small_training import deep_folder
from train.cli import main
from train.learning.compile import encoder_of

WAYS = {"upper": ("--freeze-layers", "3"), "head": ("--update", "head"), "lp-ft": ("--update", "lp-ft")}
SETTINGS = ("--epochs", "2", "--learning-rate", "1e-3", "--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of DistilBERT."""
    return deep_folder(tmp_path_factory.mktemp("deep") / "model", "distilbert")


class Trained:
    """Trains models in a run folder, and counts the texts whose states are computed."""

    def __init__(self, texts: Path, run: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.texts = run, 0
        with texts.open() as file:
            self.first_text = next(csv.DictReader(file))["text"]
        self._flags = (
            "--dataset",
            str(texts),
            "--split-column",
            "split",
            "--run-dir",
            str(run),
            "--text-model",
            str(text_model),
            *SETTINGS,
        )
        states_of = train.models.prefix.states_of_texts

        def counted(*given: Any) -> torch.Tensor:
            self.texts += len(given[-1])
            return states_of(*given)

        monkeypatch.setattr("train.models.prefix.states_of_texts", counted)

    def __call__(self, command: str, *more: str) -> int:
        self.texts = 0
        return main([command, *self._flags, *more])

    def metrics(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / name / "metrics.json").read_text())
        return found


@pytest.fixture(scope="module")
def finished(small_csv: Path, text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a baseline of each way of training, none of which was interrupted."""
    run = tmp_path_factory.mktemp("finished") / "run"
    flags = ("--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(run), "--text-model", str(text_model), *SETTINGS)
    for name, more in WAYS.items():
        assert main(["baseline", *flags, "--name", name, *more]) == 0
    return run


@pytest.fixture
def trained(small_csv: Path, tmp_path: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """A new run folder."""
    return Trained(small_csv, tmp_path / "run", text_model, monkeypatch)


def rows_of_columns(run: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["rows"] for path in (run / "prefix").glob("*/manifest.json"))


def test_a_baseline_above_frozen_layers_is_a_whole_model(trained: Trained, text_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import pipeline

    assert trained("baseline", "--freeze-layers", "3") == 0
    told = capsys.readouterr().err
    assert "computing hidden states once" in told
    assert "read from disk" in told
    ours, before = (load_file(folder / "model.safetensors") for folder in (trained.run / "baseline", text_model))
    kept = {name for name, weight in before.items() if torch.equal(weight, ours[f"distilbert.{name}"])}
    frozen = {name for name in before if name.startswith(("embeddings", *(f"transformer.layer.{number}." for number in range(3))))}
    assert kept >= frozen
    assert not [name for name in kept - frozen if name.endswith("weight")]
    with (trained.run / "baseline" / "predictions.csv").open() as file:
        expected = next(csv.DictReader(file))
    classify = pipeline("text-classification", model=str(trained.run / "baseline"), top_k=None, function_to_apply="none")
    scores = {answer["label"]: answer["score"] for answer in classify([trained.first_text])[0]}
    for number, name in classify.model.config.id2label.items():
        assert scores[name] == pytest.approx(float(expected[f"logit_{number}"]), abs=1e-5)


def test_training_on_kept_states_is_training_on_computed_ones(
    small_csv: Path, tmp_path: Path, text_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import DistilBertModel

    zero = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
    shutil.copytree(text_model, tmp_path / "model")
    DistilBertModel.from_pretrained(text_model, **zero).save_pretrained(tmp_path / "model")
    trained = Trained(small_csv, tmp_path / "run", tmp_path / "model", monkeypatch)
    flags = ("--freeze-layers", "3", "--prefix-dtype", "float32", "--learning-rate", "1e-4")
    assert trained("baseline", *flags, "--name", "kept") == 0
    monkeypatch.setattr("train.models.prefix.replace", lambda data, **_: data)
    assert trained("baseline", *flags, "--name", "computed") == 0
    kept, computed = (load_file(trained.run / name / "model.safetensors") for name in ("kept", "computed"))
    for name, weight in kept.items():
        torch.testing.assert_close(weight, computed[name], rtol=0, atol=1e-5)
    assert [record["loss"] for record in trained.metrics("kept")["history"]] == pytest.approx(
        [record["loss"] for record in trained.metrics("computed")["history"]], abs=1e-5
    )


def test_models_and_seeds_share_the_states_of_a_run(trained: Trained) -> None:
    assert trained("teacher", "--freeze-layers", "3", "--privileged", "none", "--name", "teacher") == 0
    assert trained.texts == 60
    assert trained("student", "--freeze-layers", "3", "--seed", "1") == 0
    assert trained.texts == 0
    assert trained("baseline", "--freeze-layers", "3") == 0
    assert trained.texts == 0
    assert len(rows_of_columns(trained.run)) == 1


def test_the_number_of_frozen_layers_decides_the_model(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("baseline", "--freeze-layers", "3") == 0
    assert trained("baseline", "--freeze-layers", "3") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["already_done"] is True
    assert trained("baseline") == 2
    assert "--freeze-layers: 3 then" in capsys.readouterr().err
    record = json.loads((trained.run / "baseline" / "training.json").read_text())
    assert record["flags"]["freeze_layers"] == 3
    assert trained.metrics("baseline")["config"]["freeze_layers"] == 3


@pytest.mark.parametrize(("way", "step"), [("upper", 4), ("lp-ft", 4), ("lp-ft", 10)])
def test_a_stopped_training_resumes_to_the_same_model(
    trained: Trained, finished: Path, monkeypatch: pytest.MonkeyPatch, way: str, step: int
) -> None:
    # Three steps an epoch, two epochs: of lp-ft the steps from the seventh on are in its second part.
    import train.learning.loop

    one_step, steps = train.learning.loop.Learner.one_step, 0

    def stops(learner: Any, *given: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(learner, *given)

    monkeypatch.setattr(train.learning.loop.Learner, "one_step", stops)
    assert trained("baseline", *WAYS[way]) == 143
    assert trained("baseline", *WAYS[way]) == 0
    assert steps == (12 if way == "lp-ft" else 6)
    assert (trained.run / "baseline" / "model.safetensors").read_bytes() == (finished / way / "model.safetensors").read_bytes()
    assert not list((trained.run / "baseline").rglob("checkpoints"))
    histories = [len(trained.metrics("baseline").get(name, ())) for name in ("head_history", "history")]
    assert histories == [2 if way == "lp-ft" else 0, 2]


def test_a_head_is_trained_on_one_kept_token_of_each_text(finished: Path, text_model: Path) -> None:
    ours, before = (load_file(folder / "model.safetensors") for folder in (finished / "head", text_model))
    assert all(torch.equal(weight, ours[f"distilbert.{name}"]) for name, weight in before.items())
    assert rows_of_columns(finished)[0] == 4  # of 16 tokens each, of 60 texts
    history = json.loads((finished / "head" / "metrics.json").read_text())["history"]
    assert {record["padding"] for record in history} == {0.0}


def test_the_head_of_a_teacher_reads_all_tokens_and_that_of_its_student_one(trained: Trained) -> None:
    assert trained("teacher", "--privileged", "none", "--update", "head", "--name", "teacher") == 0
    assert trained("student", "--update", "head") == 0
    few, many = rows_of_columns(trained.run)
    assert few == 4 < many


def test_trials_of_a_sweep_share_the_states(trained: Trained) -> None:
    assert trained("teacher", "--privileged", "none", "--freeze-layers", "3", "--name", "teacher") == 0
    assert trained("sweep", "--freeze-layers", "3", "--update", "lp-ft", "--over", "temperature=1:10", "--trials", "2") == 0
    assert len(rows_of_columns(trained.run)) == 2
    assert trained.texts == 60
    assert not list((trained.run / "sweep").rglob("checkpoints"))


def test_after_the_head_everything_is_trained(trained: Trained, finished: Path, text_model: Path) -> None:
    ours, before = (load_file(folder / "model.safetensors") for folder in (finished / "lp-ft", text_model))
    assert not [name for name, weight in before.items() if name.endswith("lin.weight") and torch.equal(weight, ours[f"distilbert.{name}"])]
    assert len((finished / "lp-ft" / "head" / "log.jsonl").read_text().splitlines()) == 2
    assert trained("baseline", "--update", "lp-ft", "--freeze-layers", "3", "--name", "upper") == 0
    upper = load_file(trained.run / "upper" / "model.safetensors")
    kept = {name for name, weight in before.items() if torch.equal(weight, upper[f"distilbert.{name}"]) and name.endswith("lin.weight")}
    assert {name.split(".")[2] for name in kept} == {"0", "1", "2"}


def test_what_is_tried_after_the_head_is_not_compiled(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """TORCH_LOGS=recompiles shows the same of a whole training: 5 graphs; 25 and PyTorch's limit of variants if trials are compiled."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled_head(_: object, model: torch.nn.Module, *__: object) -> None:
        encoder_of(model).compile(backend=backend)

    def stop(*_: object) -> None:
        raise InputError(got="a prefix", expected="no more", do="stop")

    monkeypatch.setattr("train.models.loading._fit_head", compiled_head)
    monkeypatch.setattr("train.models.loading._training", stop)
    assert trained("baseline", "--update", "lp-ft", "--freeze-layers", "3") == 2
    assert not graphs


def test_a_head_with_a_number_of_layers_is_refused(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("baseline", "--update", "head", "--freeze-layers", "3") == 2
    assert "--update head and --freeze-layers 3; expected one of them" in capsys.readouterr().err


def test_the_place_of_the_states_changes_no_model(trained: Trained) -> None:
    for place in ("disk", "device"):
        assert trained("baseline", "--freeze-layers", "3", "--name", place, "--tokens-on", place) == 0
        assert trained.metrics(place)["compute"]["prefix_on"] == place
    one, other = ((trained.run / name / "model.safetensors").read_bytes() for name in ("disk", "device"))
    assert one == other


def test_what_has_no_effect_is_warned_of(trained: Trained, small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(small_run / "tokens", trained.run / "tokens")
    assert trained("images", "--image-tokens", "clip-demo", "--freeze-layers", "3") == 0
    assert "--freeze-layers and --update have no effect on images" in capsys.readouterr().err
    assert not (trained.run / "prefix").exists()
    assert trained("baseline", "--tokens-on", "disk") == 0
    assert "--tokens-on has no effect on baseline" in capsys.readouterr().err
    assert trained("baseline", "--tokens-on", "disk", "--head-learning-rate", "0.1", "--prefix-dtype", "float32") == 0
    told = capsys.readouterr().err
    assert "--head-learning-rate has no effect without --update lp-ft" in told
    assert "--prefix-dtype has no effect on baseline: no layers are frozen" in told
    assert "already done" in told


def test_a_head_that_diverges_names_its_own_rate(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("baseline", "--update", "lp-ft", "--head-learning-rate", "1e30") == 2
    assert "lower --head-learning-rate and give another name" in capsys.readouterr().err


def test_more_layers_than_the_text_model_has_are_one_line(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert trained("baseline", "--freeze-layers", "7") == 2
    assert "--freeze-layers 7; expected 0 to 6, as this model has" in capsys.readouterr().err
    assert not (trained.run / "baseline").exists(), "told before anything is loaded"
    assert trained("baseline", "--freeze-layers", "-1") == 2
    assert "--freeze-layers -1" in capsys.readouterr().err
