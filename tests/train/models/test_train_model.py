"""``python -m train`` as a user sees it, in this process unless another one is needed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.checkout import Start
from tests.support.shards import shard_file
from train.cli import main
from train.models.model_folder import model_lock

FLAGS = ("--split-column", "split", "--text-model", "demo", "--epochs", "2", "--learning-rate", "1e-3", "--device", "cpu")


@pytest.fixture(scope="module")
def run_dir(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for this module, with the tokens of the shared one."""
    folder = tmp_path_factory.mktemp("train") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    return folder


def train_(command: str, small_csv: Path, run_dir: Path, *more: str) -> int:
    return main([command, "--dataset", str(small_csv), "--run-dir", str(run_dir), *FLAGS, *more])


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return figures


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return errors[0]


@pytest.fixture(scope="module")
def trained(small_csv: Path, run_dir: Path) -> Path:
    """The run with all four models."""
    assert train_("baseline", small_csv, run_dir) == 0
    assert train_("images", small_csv, run_dir, "--image-tokens", "vit-demo") == 0
    assert train_("teacher", small_csv, run_dir, "--image-tokens", "clip-demo") == 0
    assert train_("student", small_csv, run_dir) == 0
    return run_dir


@pytest.mark.parametrize("name", ["baseline", "images", "teacher", "student"])
def test_every_model_folder_describes_the_model(trained: Path, name: str) -> None:
    metrics = json.loads((trained / name / "metrics.json").read_text())
    assert set(metrics["accuracy"]) == set(metrics["macro_f1"]) == {"train", "validation", "test"}
    assert metrics["examples"] == {"train": 36, "validation": 12, "test": 12}
    assert {"seed", "times", "peak_memory", "config", "provenance", "history"} <= set(metrics)
    assert metrics["config"]["learning_rate"] == 1e-3
    assert metrics["compute"]["attention"] in ("sdpa", "eager")
    assert metrics["provenance"]["versions"]["torch"] == torch.__version__
    assert len((trained / name / "predictions.csv").read_text().splitlines()) == 61
    assert not (trained / name / "checkpoints").exists()
    log = [json.loads(line) for line in (trained / name / "log.jsonl").read_text().splitlines()]
    assert [line["validation_accuracy"] for line in log] == [record["validation_accuracy"] for record in metrics["history"]]


def test_a_notice_about_the_demos_images_reaches_the_card(trained: Path) -> None:
    notices = {name: json.loads((trained / name / "metrics.json").read_text())["notice"] for name in ("baseline", "teacher", "student")}
    assert notices["baseline"] is None
    assert "draws emoji" in notices["teacher"]
    assert "draws emoji" in notices["student"]
    assert "draws emoji" in (trained / "student" / "README.md").read_text()


def test_the_predictions_reproduce_the_accuracy(trained: Path) -> None:
    metrics = json.loads((trained / "student" / "metrics.json").read_text())
    with (trained / "student" / "predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    hits = sum(max(range(3), key=lambda k: float(row[f"logit_{k}"])) == int(row["label"]) for row in rows)
    assert hits / len(rows) == pytest.approx(metrics["accuracy"]["test"], abs=1e-6)


def test_the_same_command_again_is_already_done(trained: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    for command, more in (("baseline", ()), ("teacher", ("--image-tokens", "clip-demo")), ("student", ())):
        assert train_(command, small_csv, trained, *more) == 0
        assert last_line(capsys)["already_done"] is True
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


def test_the_student_is_a_plain_hugging_face_model(trained: Path) -> None:
    from safetensors import safe_open

    folder = trained / "student"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert sorted(config["id2label"].values()) == ["animals", "food", "sky"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert not [name for name in names if "tap" in name or name.startswith("model.")]
    assert not list(folder.glob("*.bin"))


def test_the_student_loads_without_lugpi_and_has_the_same_logits(trained: Path, small_csv: Path, tmp_path: Path) -> None:
    # lugpi cannot be imported there; a torchvision that does not fit the installed torch would break transformers: make removes it.
    code = (
        "import sys, json\n"
        "for name in ('lugpi_core', 'featurize', 'train', 'benchmarks'): sys.modules[name] = None\n"
        "try:\n import lugpi_core; sys.exit('lugpi is here')\nexcept ImportError: pass\n"
        "from transformers import pipeline\n"
        "classify = pipeline('text-classification', model=sys.argv[1], function_to_apply='none', top_k=None)\n"
        "classify('long ' * 5000, truncation=True)\n"
        "print(json.dumps(classify(json.loads(sys.argv[2]))))"
    )
    with (trained / "student" / "predictions.csv").open() as file:
        expected = list(csv.DictReader(file))[:5]
    with small_csv.open() as file:
        texts = [row["text"] for row in csv.DictReader(file)][:5]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(trained / "student"), json.dumps(texts)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    label_names = json.loads((trained / "student" / "config.json").read_text())["id2label"]
    for answers, row in zip(json.loads(done.stdout.splitlines()[-1]), expected, strict=True):
        scores = {answer["label"]: answer["score"] for answer in answers}
        for number, name in label_names.items():
            assert scores[name] == pytest.approx(float(row[f"logit_{number}"]), abs=1e-6)


def test_a_student_reads_neither_images_nor_teacher_weights(small_csv: Path, trained: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(trained / "teacher", alone / "teacher")
    assert not (alone / "tokens").exists()
    assert train_("student", small_csv, alone) == 0
    one, other = (json.loads((folder / "student" / "metrics.json").read_text()) for folder in (alone, trained))
    assert one["accuracy"] == other["accuracy"]


def test_lost_or_damaged_teacher_outputs_are_rewritten(
    trained: Path, small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    outputs = run / "teacher" / "outputs.safetensors"
    before = outputs.read_bytes()
    outputs.write_bytes(before[:100])
    assert train_("student", small_csv, run, "--name", "other") == 2
    assert "run python -m train teacher" in refused(capsys)
    assert train_("teacher", small_csv, run, "--image-tokens", "clip-demo") == 0
    assert outputs.read_bytes() == before
    outputs.unlink()
    assert train_("teacher", small_csv, run, "--image-tokens", "clip-demo") == 0
    assert outputs.read_bytes() == before


def test_another_precision_of_the_outputs_makes_another_student(
    trained: Path, small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    outputs = run / "teacher" / "outputs.safetensors"
    before = outputs.stat().st_size
    assert train_("teacher", small_csv, run, "--image-tokens", "clip-demo", "--outputs-dtype", "float16") == 0
    assert outputs.stat().st_size < 0.7 * before
    capsys.readouterr()
    assert train_("student", small_csv, run) == 2
    assert 'teachers_embeddings: found ["float32"], wanted ["float16"]' in refused(capsys)


def test_bfloat16_trains_float32_weights_on_the_cpu(trained: Path, small_csv: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "tokens", tmp_path / "run" / "tokens")
    assert train_("teacher", small_csv, tmp_path / "run", "--image-tokens", "clip-demo", "--dtype", "bfloat16") == 0
    assert train_("student", small_csv, tmp_path / "run", "--dtype", "bfloat16") == 0
    for name in ("teacher", "student"):
        metrics = json.loads((tmp_path / "run" / name / "metrics.json").read_text())
        assert metrics["compute"]["dtype"] == "bfloat16"
        ours, full = (load_file(folder / name / "model.safetensors") for folder in (tmp_path / "run", trained))
        assert {value.dtype for value in ours.values()} == {torch.float32}
        assert any(not torch.equal(ours[key], full[key]) for key in full)  # it rounds: it was computed otherwise


def test_a_model_that_another_command_is_training_is_refused(trained: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with model_lock(trained, "third"):
        assert train_("baseline", small_csv, trained, "--name", "third") == 2
    assert "which another command is training" in refused(capsys)
    assert train_("baseline", small_csv, trained, "--name", "third", "--epochs", "1") == 0
    shutil.rmtree(trained / "third")


def test_out_of_memory_is_one_line(
    trained: Path, small_csv: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr("train.models.train_model.fit", full)
    assert train_("baseline", small_csv, trained, "--name", "third") == 2
    message = refused(capsys)
    assert "Tried to allocate 20 GiB" in message
    assert "--gradient-accumulation-steps 2" in message
    shutil.rmtree(trained / "third")


def test_checkpoints_of_a_finished_model_are_removed(trained: Path, small_csv: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "baseline", run / "baseline")
    (run / "baseline" / "checkpoints" / "step-000000003").mkdir(parents=True)
    assert train_("baseline", small_csv, run) == 0
    assert not (run / "baseline" / "checkpoints").exists()


def test_a_finished_model_without_training_json_is_refused(
    trained: Path, small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "baseline", run / "baseline")
    (run / "baseline" / "training.json").unlink()
    assert train_("baseline", small_csv, run) == 2
    assert "a finished model without training.json" in refused(capsys)


def test_tables_finds_the_models(trained: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", "--dataset", str(small_csv), "--split-column", "split", "--run-dir", str(trained), "--no-train"]) == 0
    captured = capsys.readouterr().out.splitlines()
    report = json.loads(captured[-1])
    there = {name: [model["folder"] for model in row["models"]] for name, row in report["rows"].items() if row["models"]}
    folders = {"baseline": "baseline", "images-vit-demo": "images", "teacher-clip-demo": "teacher", "student-clip-demo": "student"}
    assert there == {row: [folder] for row, folder in folders.items()}
    assert {test["row"]: test["reference"] for test in report["tables"][0]["comparisons"]} == dict.fromkeys(list(folders)[1:], "baseline")
    assert any(line.startswith("| student-clip-demo ") for line in captured)
    assert any("draws emoji" in line for line in captured)


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("student", ("--temperature", "0", "--name", "n"), "--temperature 0"),
        ("student", ("--alpha", "-1", "--name", "n"), "--alpha -1"),
        ("student", ("--hard", "0", "--alpha", "0", "--beta", "0", "--name", "n"), "at least one positive weight"),
        ("student", ("--teachers", "nobody", "--name", "n"), "no finished teacher"),
        ("student", ("--teachers", "baseline", "--name", "n"), "a baseline; expected a teacher"),
        ("student", ("--teachers", "teacher", "teacher", "--name", "n"), "several different ones"),
        ("student", ("--teacher-weights", "0.5", "0.5", "--name", "n"), "for 1 teacher;"),
        ("student", ("--teacher-weights", "-1", "--name", "n"), "a positive weight for each"),
        ("student", ("--student-layers", "3", "--name", "n"), "--student-layers 3; expected 1 to 2"),
        ("student", ("--student-layers", "0", "--name", "n"), "--student-layers 0"),
        ("student", ("--unlabelled", "nowhere.txt", "--name", "n"), "nowhere.txt"),
        ("student", ("--embedding-loss", "cosine"), 'distillation.embedding_loss: found "mse", wanted "cosine"'),
        ("baseline", ("--gradient-accumulation-steps", "0", "--name", "n"), "--gradient-accumulation-steps 0"),
        ("baseline", ("--patience", "0", "--name", "n"), "--patience 0"),
        ("baseline", ("--max-grad-norm", "-1", "--name", "n"), "--max-grad-norm -1"),
        ("baseline", ("--checkpoint-minutes", "nan", "--name", "n"), "--checkpoint-minutes nan"),
        ("baseline", ("--track", "wandb", "--name", "n"), "--track wandb; expected that package installed; pip install wandb"),
        ("baseline", ("--track", "paper", "--name", "n"), "paper"),
        ("baseline", ("--name", "token-ids"), "plain folder name"),
        ("teacher", ("--privileged", "mine", "--name", "n"), "mine"),
        ("teacher", ("--privileged", "blank", "--name", "teacher", "--image-tokens", "clip-demo"), 'privileged: found "images"'),
        ("student", ("--kd-preset", "papper", "--name", "n"), "papper"),
        ("student", ("--temprature", "3", "--name", "n"), "did you mean '--temperature'"),
        ("baseline", ("--batch-size", "0", "--name", "n"), "--batch-size 0"),
        ("baseline", ("--learning-rate", "0", "--name", "n"), "--learning-rate 0"),
        ("baseline", ("--learning-rate", "nan", "--name", "n"), "--learning-rate nan"),
        ("baseline", ("--weight-decay", "-1", "--name", "n"), "--weight-decay -1"),
        ("baseline", ("--seed", "99999999999999999999", "--name", "n"), "0 to 2147483647"),
        ("baseline", ("--limit", "2", "--name", "n"), "--limit 2"),
        ("baseline", ("--split-seed", "-1", "--name", "n"), "--split-seed -1"),
        ("student", ("--alpha", "nan", "--name", "n"), "--alpha nan"),
        ("teacher", ("--image-tokens", "latents", "--name", "n"), "--image-tokens latents"),
        ("baseline", ("--seed", "1"), "--seed: 0 then, 1 now"),
        ("baseline", ("--name", "../x"), "plain folder name"),
        ("baseline", ("--name", "tokens"), "plain folder name"),
        ("baseline", ("--max-length", "4000", "--name", "n"), "2 to 128"),
        ("baseline", ("--text-model", "no/such-model", "--name", "n"), "no/such-model"),
        ("teacher", ("--name", "n"), "clip-demo, vit-demo"),
        ("teacher", ("--image-tokens", "clip-vit-l14", "--name", "n"), "no column 'clip-vit-l14'"),
        ("teacher", ("--image-tokens", "clip-demo", "--limit", "30", "--name", "n"), "other examples, prompts, labels or splits"),
        ("student", ("--limit", "30", "--name", "n"), "another dataset"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    trained: Path, small_csv: Path, capsys: pytest.CaptureFixture[str], command: str, more: tuple[str, ...], message: str
) -> None:
    capsys.readouterr()
    assert train_(command, small_csv, trained, *more) == 2
    assert message in refused(capsys)


def test_an_unknown_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studnet"]) == 2
    assert "did you mean 'student'" in refused(capsys)


def test_a_store_with_missing_rows_is_refused(trained: Path, small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained / "tokens", tmp_path / "tokens")
    shard = shard_file(tmp_path / "tokens" / "clip-demo", 1)
    shard.unlink()
    capsys.readouterr()
    assert train_("teacher", small_csv, tmp_path, "--image-tokens", "clip-demo") == 2
    assert f"{shard.name}: missing" in refused(capsys)


def test_an_unwritable_run_folder_is_one_line(small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    capsys.readouterr()
    assert train_("baseline", small_csv, tmp_path / "file" / "run") == 2
    assert "folder that can be written" in refused(capsys)


def test_a_killed_training_resumes_to_the_same_model(small_csv: Path, tmp_path: Path, start: Start) -> None:
    own = ("--dataset", str(small_csv), "--split-column", "split", "--text-model", "demo", "--epochs", "8", "--learning-rate", "1e-3")
    broken = ("train", "baseline", *own, "--run-dir", str(tmp_path), "--checkpoint-minutes", "0")
    child = start("-m", *broken)
    checkpoints = tmp_path / "baseline" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(checkpoints.glob("step-*"))
    assert not (tmp_path / "baseline" / "metrics.json").exists()
    # Checkpoint interval and trackers do not decide the model.
    assert main([*broken[1:-1], "5", "--track", "tensorboard"]) == 0
    assert main(["baseline", *own, "--run-dir", str(tmp_path / "straight")]) == 0
    one, other = (folder / "baseline" / "model.safetensors" for folder in (tmp_path, tmp_path / "straight"))
    assert one.read_bytes() == other.read_bytes()


def test_a_stopped_teacher_resumes_to_the_same_outputs(
    trained: Path, small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import train.learning.loop

    shutil.copytree(trained / "tokens", tmp_path / "tokens")
    step = train.learning.loop.Learner.one_step

    def stops(learner: Any, *given: Any) -> float:
        if learner.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(learner, *given)

    monkeypatch.setattr(train.learning.loop.Learner, "one_step", stops)
    assert train_("teacher", small_csv, tmp_path, "--image-tokens", "clip-demo") == 143
    assert "interrupted: what is written is kept" in capsys.readouterr().err
    assert not (tmp_path / "teacher" / "metrics.json").exists()
    assert train_("teacher", small_csv, tmp_path, "--image-tokens", "clip-demo") == 0
    for name in ("model.safetensors", "outputs.safetensors", "predictions.csv"):
        assert (tmp_path / "teacher" / name).read_bytes() == (trained / "teacher" / name).read_bytes(), name


def test_the_same_file_by_another_path_is_the_same_corpus(
    trained: Path, small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / small_csv.name
    shutil.copy(small_csv, elsewhere)
    capsys.readouterr()
    assert train_("baseline", elsewhere, trained) == 0
    assert last_line(capsys)["already_done"] is True


def test_the_card_contains_no_local_path(trained: Path, small_csv: Path, tmp_path: Path) -> None:
    from train.data.text_model import find_text_model

    folder = tmp_path / "my-encoder"
    shutil.copytree(find_text_model("demo", max_length=None).folder, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert train_("baseline", small_csv, trained, "--text-model", str(folder), "--name", "from-folder") == 0
    card = (trained / "from-folder" / "README.md").read_text()
    assert "text model my-encoder: mit" in card
    assert str(tmp_path) not in card
