"""One of several images of a text for some epochs, then the next: ``--redraw``."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped
from tests.support.interruption import stop_once
from tests.support.planted_store import Planted, plant, plant_column, telling_tokens
from train.data.privileged import PrivilegedImages, next_of_each
from train.evidence.compare import compare
from train.evidence.shadows import Recorded
from train.models.api import train_baseline, train_images, train_teacher
from train.options.settings import Optimization, Placement
from train.options.training import TeacherOptions

TRAINING: Any = {"text_model": "demo", "placement": Placement(device="cpu")}
DRAWINGS = np.arange(400)[:, None] * 4 + np.arange(4)


def planted(folder: Path, images_per_text: int = 3) -> Planted:
    store = plant(folder, counts=(20, 6, 6), images_per_text=images_per_text)
    plant_column(store, "telling", telling_tokens(store.labels, strength=1.0))
    return store


def optimization(**more: Any) -> Optimization:
    return Optimization(**{"epochs": 4, "redraw": 2, "learning_rate": 1e-3, "optimizer": "adamw", **more})


def images(store: Planted, name: str, **more: Any) -> Path:
    return train_images(store.corpus, store.run_dir / "tokens", name=name, optimization=optimization(**more), **TRAINING).folder


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return found


def test_each_text_shows_all_its_images_in_an_order_of_its_own() -> None:
    turns = np.stack([next_of_each(DRAWINGS, 7, turn) for turn in range(8)])
    assert (np.sort(turns[:4], axis=0) == DRAWINGS.T).all(), "each of them once before any comes again"
    assert np.array_equal(turns[4:], turns[:4])
    orders = {tuple(order) for order in (turns[:4] - DRAWINGS[:, 0]).T.tolist()}
    assert len(orders) == 24, "of 400 texts each order of four images is that of some"
    assert not np.array_equal(next_of_each(DRAWINGS, 8, 0), turns[0]), "the seed decides"
    by_hand = [np.random.default_rng([7, 2]).permuted(np.tile(np.arange(4), (400, 1)), axis=1)[n, 1] + 4 * n for n in range(400)]
    assert turns[1].tolist() == by_hand


def test_an_image_that_fills_up_the_places_of_a_text_has_no_turn_of_its_own() -> None:
    """Three passages of a text have the images a, b, c, a where four are stored; one passage has a, a, a, a."""
    repeated = np.array([[0, 1, 2, 0], [4, 4, 4, 4], [8, 9, 8, 9], [12, 13, 14, 15]])
    turns = np.stack([next_of_each(repeated, 7, turn) for turn in range(12)]).T
    for images, row in zip((3, 1, 2, 4), turns, strict=True):
        rounds = row.reshape(-1, images)
        assert len(set(rounds[0])) == images, "each before any comes again"
        assert (rounds == rounds[0]).all(), "in the same order every time"
    whole = [next_of_each(np.arange(16).reshape(4, 4), 7, turn)[3] for turn in range(12)]
    assert turns[3].tolist() == whole, "the order of a text does not depend on those of others"


def test_an_image_stays_for_as_many_epochs_as_are_asked_for() -> None:
    source: Any = type("Numbers", (), {"gather": lambda _, drawings: drawings})()
    once = PrivilegedImages(source=source, drawings=DRAWINGS, seed=7)
    kept, rows = once.redrawn_every(3), np.arange(400)
    read: Any = [kept.gather(rows, epoch) for epoch in range(7)]
    assert [np.array_equal(one, other) for one, other in pairwise(read)] == [True, True, False, True, True, False]
    assert all(np.array_equal(read[epoch], next_of_each(DRAWINGS, 7, epoch // 3)) for epoch in range(7))
    first: Any = kept.gather(rows, None)
    assert np.array_equal(first, DRAWINGS[:, 0]), "predictions read the first"
    jumped: Any = once.redrawn_every(3).gather(rows, 5)
    assert np.array_equal(jumped, read[5]), "nothing depends on the epochs before"


def test_a_stopped_training_resumes_to_the_same_model_and_the_epochs_decide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = planted(tmp_path)
    whole = images(store, "whole")
    stop_once(monkeypatch, step=5)
    with pytest.raises(Stopped):
        images(store, "stopped")
    assert (images(store, "stopped") / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    drawn = images(store, "drawn", redraw=None)
    assert "redraw" not in record(drawn), "older models are recognized"
    assert record(whole) == {**record(drawn), "redraw": 2}
    assert (drawn / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="redraw: found 2, wanted 1"):
        images(store, "whole", redraw=1)
    assert Recorded.of(whole).optimization.redraw == 2, "shadows of an audit redraw as well"


def test_what_nothing_is_redrawn_of_is_refused_before_there_is_a_folder(tmp_path: Path) -> None:
    store = planted(tmp_path)
    with pytest.raises(InputError, match=r"--redraw 2 for baseline: it reads no images; expected .*; leave it out"):
        train_baseline(store.corpus, store.run_dir, optimization=optimization(), **TRAINING)
    for privileged, why in (("blank", "it reads blank images"), ("none", "it reads no images")):
        with pytest.raises(InputError, match=why):
            train_teacher(store.corpus, store.run_dir / "tokens", privileged=privileged, optimization=optimization(), **TRAINING)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--redraw 2 for models of which none reads one of several"):
        compare(store.corpus, store.run_dir, seeds=1, rows=["baseline", "teacher-blank"], optimization=optimization(), **TRAINING)
    single = planted(tmp_path / "single", images_per_text=1)
    with pytest.raises(InputError, match=r"each text has one image.*--images-per-text"):
        images(single, "images")
    assert not [path for path in (*store.run_dir.iterdir(), *single.run_dir.iterdir()) if (path / "training.json").exists()]


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"several_images": "mean"}, "--redraw 2 with --several-images mean"),
        ({"redraw": 4}, "--redraw 4 with --epochs 4; expected .*; give for instance --redraw 1"),
        ({"redraw": 1, "epochs": 1}, "--redraw 1 with --epochs 1; expected .*; give more --epochs, or leave --redraw out"),
        ({"redraw": 0}, "--redraw 0"),
        ({"redraw": "2"}, "redraw="),
    ],
)
def test_settings_that_redraw_nothing_are_refused(given: dict[str, Any], refused: str) -> None:
    with pytest.raises(InputError, match=refused):
        optimization(**given)
    assert TeacherOptions(dataset="demo", redraw=3).redraw == 3
