"""Progress of a training: log.jsonl, trackers, and what a resumed training removes from the log."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lugpi_core.errors import InputError
from tests.support.small_training import at_step, interrupt, training_of
from train.learning.distributed import Processes
from train.learning.loop import fit
from train.learning.progress import EVERY_STEPS, LOG, Progress, Trackers, cut_log, progress, require_trackers


def opened(folder: Path, *, step: int = 0, processes: Processes | None = None, track: tuple[str, ...] = ()) -> Any:
    config = {"epochs": 3, "learning_rate": 1e-3, "limit": None, "track": ["tensorboard"]}
    trackers = Trackers(names=track, config=config)
    return progress(folder, processes or Processes(), examples=(10 * step, 1000), step=step, trackers=trackers)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def take_steps(report: Progress, first: int, last: int, *, loss: float = 2.0, batch: int = 10) -> None:
    for step in range(first, last + 1):
        report.step(step, step * batch, 1 / step, torch.tensor(loss * step * batch))


def test_every_50th_step_and_every_epoch_is_a_line(tmp_path: Path) -> None:
    with opened(tmp_path) as report:
        report.begin_epoch(0, 0.0)
        take_steps(report, 1, 120)
        report.epoch({"epoch": 0, "loss": 2.0, "validation_accuracy": 0.5}, 120, 1200)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [EVERY_STEPS, 2 * EVERY_STEPS, 120]
    assert [line["loss"] for line in found] == [2.0, 2.0, 2.0]
    assert [line["learning_rate"] for line in found[:2]] == [1 / 50, 1 / 100]
    assert all(line["examples_per_s"] > 0 for line in found[:2])
    assert found[2] == {"step": 120, "epoch": 0, "loss": 2.0, "validation_accuracy": 0.5}


def test_a_reported_loss_is_the_mean_since_the_last_report(tmp_path: Path) -> None:
    with opened(tmp_path) as report:
        report.begin_epoch(0, 0.0)
        report.step(50, 100, 0.1, torch.tensor(300.0))
        report.step(100, 300, 0.1, torch.tensor(400.0))
    assert [line["loss"] for line in lines(tmp_path)] == [3.0, 0.5]


def test_a_resumed_epoch_counts_from_its_position(tmp_path: Path) -> None:
    with opened(tmp_path, step=40) as report:
        report.begin_epoch(400, 1200.0)
        report.step(50, 500, 0.1, torch.tensor(1250.0))
    assert [line["loss"] for line in lines(tmp_path)] == [0.5]


def test_a_loss_that_json_cannot_represent_is_left_out(tmp_path: Path) -> None:
    with opened(tmp_path) as report:
        report.begin_epoch(0, 0.0)
        report.step(50, 100, 0.1, torch.tensor(math.nan))
    assert (tmp_path / LOG).read_text() == ""


def test_a_line_is_written_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as report:
        report.begin_epoch(0, 0.0)
        take_steps(report, 1, 50)
        assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"step": 1}\n{"step": 2}\n{"step": 3}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n{"step": 2}', '{"step": 1}\n'),  # torn
        ('{"step": 1}\n{"st\n{"step": 2}\n', '{"step": 1}\n{"step": 2}\n'),
        ('{"step": 1}\n[]\n"x"\nnull\n{"step": "x"}\n{"loss": 1}\n', '{"step": 1}\n'),
        ("\x00\x00\x00", ""),
        ('{"step": 1}\n{"step": 2}\n', '{"step": 1}\n{"step": 2}\n'),
        ("", ""),
    ],
)
def test_lines_that_will_be_repeated_are_removed(tmp_path: Path, text: str, kept: str) -> None:
    (tmp_path / LOG).write_text(text)
    cut_log(tmp_path / LOG, 2)
    assert (tmp_path / LOG).read_text() == kept
    cut_log(tmp_path / "none.jsonl", 2)
    assert [path.name for path in tmp_path.iterdir()] == [LOG]


def test_bytes_that_are_not_text_are_removed(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b'{"step": 1}\n\xff\xfe\n')
    cut_log(tmp_path / LOG, 5)
    assert lines(tmp_path) == [{"step": 1}]


def test_an_interruption_does_not_show_in_the_log(small_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.learning.progress.EVERY_STEPS", 2)
    fit(training_of(small_csv, tmp_path / "straight"))
    with pytest.raises(KeyboardInterrupt):
        fit(training_of(small_csv, tmp_path / "broken", at_step(5, interrupt), checkpoint_minutes=0))
    with (tmp_path / "broken" / LOG).open("a") as log:
        log.write('{"step": 6, "epoch": 1, "lo')
    fit(training_of(small_csv, tmp_path / "broken", checkpoint_minutes=0))
    straight, broken = (lines(tmp_path / name) for name in ("straight", "broken"))
    assert [line["step"] for line in straight] == [2, 3, 4, 6, 6, 8, 9]
    assert [set(line) for line in broken] == [set(line) for line in straight]
    # Losses between epochs are means since the last report; the first one after an interruption covers fewer steps.
    for one, other in zip(straight, broken, strict=True):
        for name in ("step", "learning_rate", "epoch", "validation_accuracy", *(("loss",) if "epoch" in one or one["step"] != 6 else ())):
            assert one.get(name) == pytest.approx(other.get(name), abs=2e-6), (one, name)


def test_only_the_first_process_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path, processes=Processes(rank=1, count=2)) as report:
        report.begin_epoch(0, 0.0)
        take_steps(report, 1, 50)
        report.epoch({"epoch": 0, "validation_accuracy": 0.5}, 50, 500)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as report:
        report.begin_epoch(0, 0.0)
        take_steps(report, 1, 50)
        report.epoch({"epoch": 0, "validation_accuracy": 0.5}, 100, 1000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1000/1000" in captured.err
    assert "loss=2.0000, validation=0.5000" in captured.err


def test_the_bar_of_a_resumed_training_starts_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path, step=40) as report:
        report.begin_epoch(100, 0.0)
        report.epoch({"epoch": 1, "validation_accuracy": 0.5}, 60, 700)
    captured = capsys.readouterr().err
    assert "40%" in captured
    assert "1000/1000" in captured


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(tmp_path, track=("tensorboard",)) as report:
            report.begin_epoch(0, 0.0)
            take_steps(report, 1, 100)
            report.epoch({"epoch": 0, "loss": 2.0, "validation_accuracy": 0.5}, 100, 1000)
    events = EventAccumulator(str(next(path.parent for path in tmp_path.rglob("events.out.tfevents.*") if path.parent.name == "lugpi")))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(50, 2.0), (100, 2.0), (100, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("validation_accuracy")] == [(100, 0.5)]
    assert len(lines(tmp_path)) == 3


def test_tensorboard_keeps_its_figures_when_interrupted(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def train() -> None:
        with opened(tmp_path, track=("tensorboard",)) as report:
            report.begin_epoch(0, 0.0)
            take_steps(report, 1, 50)
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        train()
    events = EventAccumulator(str(next(path.parent for path in tmp_path.rglob("events.out.tfevents.*") if path.parent.name == "lugpi")))
    events.Reload()
    assert "loss" in events.Tags()["scalars"]


def test_a_missing_tracker_is_reported_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--track wandb; expected that package installed; pip install wandb"):
        require_trackers(("wandb",))
    with pytest.raises(InputError, match="--track tensorboard"), opened(tmp_path, track=("tensorboard",)):
        pass
    require_trackers(())
    assert list(tmp_path.iterdir()) == []
