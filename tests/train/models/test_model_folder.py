"""A model's folder: finished, to be resumed, or refused."""

from pathlib import Path

import pytest

from lugpi_core.errors import InputError
from tests.support.read_only import make_read_only
from train.file_names import HEAD, METRICS, PREDICTIONS, WEIGHTS
from train.learning.checkpoint import CHECKPOINTS, save_checkpoint
from train.models.model_folder import exclusive, finish, finished_metrics, require_finished

FINGERPRINT = {"command": "baseline", "flags": {"epochs": 3, "seed": 0}, "corpus": "abc"}


def make_whole(folder: Path) -> None:
    finished_metrics(folder, FINGERPRINT)
    for name in (WEIGHTS, PREDICTIONS):
        (folder / name).write_bytes(b"x")
    finish(folder, {"accuracy": 0.5})


def test_a_new_folder_is_to_be_trained(tmp_path: Path) -> None:
    assert finished_metrics(tmp_path / "baseline", FINGERPRINT) is None
    assert finished_metrics(tmp_path / "baseline", FINGERPRINT) is None, "started, not finished"


def test_a_finished_folder_returns_its_metrics(tmp_path: Path) -> None:
    make_whole(tmp_path)
    assert finished_metrics(tmp_path, FINGERPRINT) == {"accuracy": 0.5}


@pytest.mark.parametrize("lost", [WEIGHTS, PREDICTIONS, METRICS])
def test_a_folder_without_one_of_its_files_is_unfinished(tmp_path: Path, lost: str) -> None:
    make_whole(tmp_path)
    (tmp_path / lost).unlink()
    assert finished_metrics(tmp_path, FINGERPRINT) is None
    for name in (WEIGHTS, PREDICTIONS):
        (tmp_path / name).write_bytes(b"new")
    assert finished_metrics(tmp_path, FINGERPRINT) is None, "until the new figures are written"


def test_a_command_that_failed_early_does_not_bind_the_folder(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    assert finished_metrics(tmp_path, {**FINGERPRINT, "corpus": "other"}) is None


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    save_checkpoint(tmp_path, 1, {})
    with pytest.raises(InputError, match="corpus"):
        finished_metrics(tmp_path, {**FINGERPRINT, "corpus": "other"})


def test_a_setting_that_is_not_recorded_is_told_by_its_default(tmp_path: Path) -> None:
    make_whole(tmp_path)
    newer = {"update": "lp-ft", "head_learning_rate": 1e-3}
    with pytest.raises(InputError, match=r"other settings: --update: full then, lp-ft now; expected"):
        finished_metrics(tmp_path, {**FINGERPRINT, "flags": {"epochs": 3, "seed": 0, **newer}})


def test_a_checkpoint_of_the_first_part_binds_the_folder(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    save_checkpoint(tmp_path / HEAD, 1, {})
    with pytest.raises(InputError, match="--seed: 0 then, 1 now"):
        finished_metrics(tmp_path, {**FINGERPRINT, "flags": {"epochs": 3, "seed": 1}})
    assert finished_metrics(tmp_path, FINGERPRINT) is None, "to be resumed"
    assert (tmp_path / HEAD / CHECKPOINTS).exists()


def test_a_first_part_without_a_checkpoint_leaves_nothing_to_a_model_of_other_settings(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    (tmp_path / HEAD).mkdir()
    assert finished_metrics(tmp_path, {**FINGERPRINT, "corpus": "other"}) is None
    assert not (tmp_path / HEAD).exists()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"command": "student"}, "command"),
        ({"flags": {"epochs": 4, "seed": 0}}, "--epochs: 3 then, 4 now"),
        ({"flags": {"epochs": 3, "seed": 1}}, "--seed: 0 then, 1 now"),
        ({"corpus": "abd"}, "corpus"),
        ({"teacher": "new"}, "teacher: found nothing"),
    ],
)
def test_a_model_with_other_settings_is_refused_with_the_field(tmp_path: Path, changed: dict[str, object], field: str) -> None:
    make_whole(tmp_path)
    with pytest.raises(InputError, match=field):
        finished_metrics(tmp_path, {**FINGERPRINT, **changed})
    assert (tmp_path / METRICS).is_file()


def test_a_checkpoint_of_the_same_settings_is_resumed(tmp_path: Path) -> None:
    finished_metrics(tmp_path, FINGERPRINT)
    save_checkpoint(tmp_path, 1, {})
    assert finished_metrics(tmp_path, FINGERPRINT) is None
    assert (tmp_path / CHECKPOINTS).is_dir()


def test_finishing_removes_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"x")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {})
    finish(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS, WEIGHTS]


def test_a_missing_model_is_named_with_its_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished teacher.*run python -m train teacher first"):
        require_finished(tmp_path, what="teacher", command="python -m train teacher")


def test_a_finished_model_that_cannot_be_written_to_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_whole(tmp_path / "baseline")
    make_read_only(monkeypatch, tmp_path)
    with exclusive(tmp_path, "baseline"):
        assert finished_metrics(tmp_path / "baseline", FINGERPRINT) == {"accuracy": 0.5}
    with pytest.raises(InputError, match="other settings"):
        finished_metrics(tmp_path / "baseline", {**FINGERPRINT, "corpus": "other"})
    with pytest.raises(InputError, match=r"expected a folder that can be written"), exclusive(tmp_path, "other"):
        pass
