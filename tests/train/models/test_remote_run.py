"""Training on a run in an object store: columns are brought once, models go there and are found from another machine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lugpi_core.store.layout import LATENTS
from tests.support.faulty_store import FaultyStore
from train.cli import main
from train.file_names import METRICS, WEIGHTS
from train.models.plan import ModelPlan

ADDRESS = "memory://bucket/run"
Train = Callable[..., tuple[int, str]]
SETTINGS = ("--split-column", "split", "--text-model", "demo", "--epochs", "1", "--device", "cpu")


@pytest.fixture
def remote_run(small_run: Path, faulty_store: type[FaultyStore]) -> type[FaultyStore]:
    """The store of ``small_run`` in the object store, copied there by another tool."""
    for path in sorted((small_run / "tokens").rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            faulty_store().pipe_file(f"{ADDRESS}/{path.relative_to(small_run)}", path.read_bytes())
    return faulty_store


@pytest.fixture
def train(small_csv: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Run ``python -m train`` on the address with a scratch folder, which stands for a machine; return the exit status and what it said."""

    def run(command: str, scratch: Path, *more: str) -> tuple[int, str]:
        where = ("--dataset", str(small_csv), "--run-dir", ADDRESS, "--scratch", str(scratch))
        status = main([command, *where, *SETTINGS, *more])
        said = capsys.readouterr()
        return status, said.err + said.out

    return run


def objects() -> dict[str, bytes]:
    return {name.removeprefix("/bucket/run/"): file.getvalue() for name, file in FaultyStore.store.items()}


def shards_of(scratch: Path) -> list[str]:
    return sorted(path.parent.name for path in scratch.rglob("shard-*.h5"))


def test_a_teacher_brings_its_column_alone_and_goes_there(remote_run: object, train: Train, tmp_path: Path) -> None:
    status, said = train("teacher", tmp_path / "here", "--image-tokens", "vit-demo")
    assert status == 0, said
    assert set(shards_of(tmp_path / "here")) == {"vit-demo"}
    there = objects()
    record = json.loads(there["teacher/files.json"])
    assert {METRICS, WEIGHTS} <= record.keys()
    assert all(f"teacher/{name}" in there for name in record)
    assert len(there[f"teacher/{WEIGHTS}"]) == record[WEIGHTS][0]
    assert not any(name.startswith(("token-ids", "tokens/.", ".")) for name in there)

    status, said = train("teacher", tmp_path / "there", "--image-tokens", "vit-demo")
    assert status == 0
    assert "already done" in said
    status, said = train("student", tmp_path / "there")
    assert status == 0
    assert "student/files.json" in objects()
    assert LATENTS not in shards_of(tmp_path / "there")


def test_a_model_is_evaluated_from_its_address(remote_run: object, train: Train, tmp_path: Path, small_csv: Path) -> None:
    assert train("baseline", tmp_path / "here")[0] == 0
    output = tmp_path / "labels.csv"
    flags = ("--model", f"{ADDRESS}/baseline", "--scratch", str(tmp_path / "there"), "--input", str(small_csv), "--output", str(output))
    assert main(["evaluate", *flags]) == 0
    assert output.read_text().count("\n") == 61
    assert main(["evaluate", "--model", f"{ADDRESS}/no-model", *flags[2:]]) == 2
    assert shards_of(tmp_path) == []


def test_tables_find_the_models_of_another_machine(remote_run: object, train: Train, tmp_path: Path) -> None:
    rows = ("--rows", "baseline", "teacher-none", "--seeds", "1", "--processes", "1")
    status, said = train("tables", tmp_path / "here", *rows)
    assert status == 0, said
    assert {"tables.md", "tables.json", "baseline/files.json"} <= objects().keys()
    first = objects()["tables.md"]
    status, said = train("tables", tmp_path / "there", *rows)
    assert status == 0
    assert "done: " not in said.replace("already done: ", "")
    assert objects()["tables.md"] == first
    assert shards_of(tmp_path) == []


def test_two_machines_with_one_name_and_other_weights_is_one_line(remote_run: object, train: Train, tmp_path: Path) -> None:
    assert train("baseline", tmp_path / "here")[0] == 0
    (kept,) = tmp_path.glob("here/*/baseline")
    there = tmp_path / "there" / kept.parent.name / "baseline"
    shutil.copytree(kept, there)
    with (there / WEIGHTS).open("ab") as file:
        file.write(b"other")
    status, said = train("baseline", tmp_path / "there")
    assert status == 2
    assert said.count("\n") == 1
    assert "error: got baseline here, whose model.safetensors has the sha256 " in said
    assert f"and {ADDRESS}/baseline" in said


def test_a_damaged_shard_in_the_store_is_not_read(remote_run: object, train: Train, tmp_path: Path) -> None:
    (name,) = [name for name in objects() if name.startswith("tokens/vit-demo/shard-00001")]
    data = bytearray(objects()[name])
    data[len(data) // 2] ^= 1
    FaultyStore().pipe_file(f"{ADDRESS}/{name}", bytes(data))
    status, said = train("teacher", tmp_path / "here", "--image-tokens", "vit-demo")
    assert status == 2
    assert f"got {ADDRESS}/{name}" in said
    assert "whose content differs from its record" in said
    assert "teacher/files.json" not in objects()


def test_a_sweep_goes_on_with_the_trials_of_a_machine_that_is_gone(
    remote_run: type[FaultyStore], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, str]] = []
    machine = "first"

    def no_training(plan: ModelPlan, score_name: str) -> dict[str, Any]:
        if machine == "ends" and len(trained) == 4:
            raise KeyboardInterrupt
        trained.append((machine, plan.folder.name))
        record = {"epoch": 1, score_name: len(trained) / 8, "seconds": 1.0}
        return {"failed": None, score_name: record[score_name], "best_epoch": 0, "history": [record], "seconds": 1.0}

    def sweep(*more: str) -> tuple[int, str]:
        return train("sweep", tmp_path / machine, "--over", "temperature=1:10", *more)

    monkeypatch.setattr("train.tools.sweep._train", no_training)
    assert train("teacher", tmp_path / machine, "--privileged", "none", "--name", "teacher")[0] == 0
    status, said = sweep("--trials", "3")
    assert status == 0, said
    assert {f"sweep/student/trial-{number:03d}/trial.json" for number in range(3)} | {"sweep/student/space.json"} <= objects().keys()
    machine = "ends"
    assert sweep("--trials", "5")[0] == 130
    machine = "next"
    torn = "sweep/student/trial-001/trial.json"
    whole = objects()[torn]
    FaultyStore().pipe_file(f"{ADDRESS}/{torn}", whole[:100])  # by a machine that is gone, to a store that shows unfinished objects
    status, said = sweep("--trials", "5")
    assert status == 0, said
    by_machine = {by: [name[-3:] for each, name in trained if each == by] for by, _ in trained}
    assert by_machine == {"first": ["000", "001", "002"], "ends": ["003"], "next": ["001", "004"]}
    parameters = [json.loads(data)["parameters"] for data in (whole, objects()[torn])]
    assert parameters[0] == parameters[1]
    assert sweep("--trials", "5", "--sampler-seed", "1")[0] == 2, "another space"


def test_of_two_machines_that_train_one_trial_the_first_to_send_it_stays(
    remote_run: type[FaultyStore], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def while_another_sends(plan: ModelPlan, score_name: str) -> dict[str, Any]:
        score = 0.75
        record = {"failed": None, score_name: score, "best_epoch": 0, "history": [{"epoch": 1, score_name: score}], "seconds": 1.0}
        other = {"trial": 0, "parameters": {"temperature": 2.5}, **record}
        FaultyStore().pipe_file(f"{ADDRESS}/sweep/student/trial-000/trial.json", json.dumps(other).encode())
        return record | {score_name: 0.25, "history": [{"epoch": 1, score_name: 0.25}]}

    monkeypatch.setattr("train.tools.sweep._train", while_another_sends)
    assert train("teacher", tmp_path, "--privileged", "none", "--name", "teacher")[0] == 0
    status, said = train("sweep", tmp_path, "--over", "temperature=1:10", "--trials", "1")
    assert status == 0, said
    assert json.loads(said.splitlines()[-1])["best"] == {"trial": 0, "parameters": {"temperature": 2.5}, "validation_accuracy": 0.75}


def test_a_store_that_cannot_be_written_to_is_refused_before_the_training(
    remote_run: type[FaultyStore], train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote_run.every = {"PUT": 1}
    monkeypatch.setattr(FaultyStore, "error", staticmethod(lambda: PermissionError("Access Denied")))
    monkeypatch.delattr("train.learning.loop.Learner.learn")
    status, said = train("baseline", tmp_path)
    assert status == 2
    assert "baseline/training.json failed (PermissionError: Access Denied); expected credentials that may list, read and write" in said
