"""A model's folder: done, to be continued, or refused."""

from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from train.file_names import METRICS, PREDICTIONS, WEIGHTS
from train.learning.checkpoint import CHECKPOINTS, save_checkpoint
from train.models.model_folder import finish, finished_metrics, require_finished

FINGERPRINT = {"command": "baseline", "flags": {"epochs": 3, "seed": 0}, "corpus": "abc"}


def make_whole(folder: Path) -> None:
    finished_metrics(folder, FINGERPRINT)
    for name in (WEIGHTS, PREDICTIONS):
        (folder / name).write_bytes(b"x")
    finish(folder, {"accuracy": 0.5})


def test_a_new_folder_is_to_be_trained(tmp_path: Path) -> None:
    assert finished_metrics(tmp_path / "baseline", FINGERPRINT) is None
    assert finished_metrics(tmp_path / "baseline", FINGERPRINT) is None, "started, not finished"


def test_a_finished_folder_gives_its_metrics(tmp_path: Path) -> None:
    make_whole(tmp_path)
    assert finished_metrics(tmp_path, FINGERPRINT) == {"accuracy": 0.5}


@pytest.mark.parametrize("lost", [WEIGHTS, PREDICTIONS, METRICS])
def test_a_folder_that_lost_a_file_is_not_done(tmp_path: Path, lost: str) -> None:
    make_whole(tmp_path)
    (tmp_path / lost).unlink()
    assert finished_metrics(tmp_path, FINGERPRINT) is None
    for name in (WEIGHTS, PREDICTIONS):
        (tmp_path / name).write_bytes(b"new")
    assert finished_metrics(tmp_path, FINGERPRINT) is None, "until the new figures are written"


def test_a_command_that_failed_before_it_trained_binds_nothing(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    assert finished_metrics(tmp_path, {**FINGERPRINT, "corpus": "other"}) is None


def test_a_training_under_way_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    save_checkpoint(tmp_path, 1, {})
    with pytest.raises(InputError, match="corpus"):
        finished_metrics(tmp_path, {**FINGERPRINT, "corpus": "other"})


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
    make_whole(tmp_path)
    with pytest.raises(InputError, match=field):
        finished_metrics(tmp_path, {**FINGERPRINT, **changed})
    assert (tmp_path / METRICS).is_file()


def test_a_training_under_way_is_continued_with_the_same_settings(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    save_checkpoint(tmp_path, 1, {})
    assert finished_metrics(tmp_path, FINGERPRINT) is None
    assert (tmp_path / CHECKPOINTS).is_dir()


def test_finishing_removes_what_only_a_continued_training_needs(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"x")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {})
    finish(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, WEIGHTS]


def test_a_model_that_another_step_needs_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished teacher.*run python -m train teacher first"):
        require_finished(tmp_path, what="teacher", command="python -m train teacher")
