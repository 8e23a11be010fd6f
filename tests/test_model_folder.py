"""A model's folder: done, to be continued, or refused."""

from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from train.checkpoint import BEST, CHECKPOINT
from train.model_folder import METRICS, finish, finished_metrics, require_finished

FINGERPRINT = {"command": "baseline", "flags": {"epochs": 3, "seed": 0}, "corpus": "abc"}


def test_a_new_folder_is_to_be_trained(tmp_path: Path) -> None:
    assert finished_metrics(tmp_path / "baseline", FINGERPRINT) is None
    assert finished_metrics(tmp_path / "baseline", FINGERPRINT) is None, "started, not finished"


def test_a_finished_folder_gives_its_metrics(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    finish(tmp_path, {"accuracy": 0.5})
    assert finished_metrics(tmp_path, FINGERPRINT) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"command": "student"}, "command"),
        ({"flags": {"epochs": 4, "seed": 0}}, "flags.epochs: found 3, wanted 4"),
        ({"flags": {"epochs": 3, "seed": 1}}, "flags.seed"),
        ({"corpus": "abd"}, "corpus"),
        ({"teacher": "new"}, "teacher: found nothing"),
    ],
)
def test_a_model_that_was_trained_otherwise_is_refused_with_the_field(tmp_path: Path, changed: dict[str, object], field: str) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    finish(tmp_path, {"accuracy": 0.5})
    with pytest.raises(InputError, match=field):
        finished_metrics(tmp_path, {**FINGERPRINT, **changed})
    assert (tmp_path / METRICS).is_file()


def test_finishing_removes_what_only_a_continued_training_needs(tmp_path: Path) -> None:
    for name in (CHECKPOINT, BEST, "model.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    finish(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, "model.safetensors"]


def test_a_model_that_another_step_needs_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished teacher.*run python -m train teacher first"):
        require_finished(tmp_path, what="teacher", command="python -m train teacher")
