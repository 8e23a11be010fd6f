"""The privileged information of a teacher and of its controls."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.planted_store import plant, plant_column, telling_tokens
from train.cli import main
from train.data.privileged import BlankTokens, MeanImages, PrivilegedImages, of_others, one_of_each
from train.models.api import train_images
from train.options.settings import Optimization, Placement

CPU = torch.device("cpu")
CONTROLS = ("shuffled", "blank", "none")


class Numbered:
    """Image tokens equal to the number of their image."""

    place = "here"

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(drawings).half()[:, None, None].expand(-1, 2, 3)

    def ahead(self, batches: Any) -> Any:
        yield from batches


def drawings(examples: int, several: int, sharing: int = 1) -> NDArray[np.int64]:
    """Drawings [N, K]; that many examples that follow each other share theirs."""
    return (np.arange(examples) // sharing)[:, None] * several + np.arange(several)


@given(examples=st.integers(2, 200), several=st.integers(1, 4), sharing=st.integers(1, 5), seed=st.integers(0, 99), order=st.randoms())
def test_no_example_keeps_its_own_image_if_possible(examples: int, several: int, sharing: int, seed: int, order: Any) -> None:
    own = drawings(examples, several, sharing)[order.sample(range(examples), examples)]
    shown = of_others(own, seed)
    assert shown.shape == own.shape
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, own.tolist())), "the same images, as often, K together"
    if sharing <= examples // 2:  # no image belongs to more than half of the examples
        assert not (shown[:, 0] == own[:, 0]).any()


@pytest.mark.parametrize("counts", [(500, 300, 200), (3, 3), (50, 50), (2, 1, 1), (10, 4, 3, 3)])
def test_no_example_keeps_an_image_that_half_of_them_share(counts: tuple[int, ...]) -> None:
    own = np.repeat(np.arange(len(counts)), counts)[:, None]
    for seed in range(5):
        assert not (of_others(own, seed) == own).any()


def test_the_shuffled_order_follows_the_seed() -> None:
    own = drawings(100, 2)
    assert np.array_equal(of_others(own, 3), of_others(own, 3))
    assert not np.array_equal(of_others(own, 3), of_others(own, 4))


def test_an_image_shared_by_all_stays() -> None:
    own = np.zeros((5, 1), np.int64)
    assert np.array_equal(of_others(own, 0), own)


def test_the_order_is_not_that_of_the_splits() -> None:
    own = drawings(1000, 1)
    moved = of_others(own, 0)[:, 0] == np.random.default_rng(0).permutation(1000)
    assert moved.mean() < 0.02


def test_examples_sharing_an_image_get_different_ones() -> None:
    own = drawings(1000, 1, sharing=10)
    shown = of_others(own, 0)
    assert len(np.unique(shown[:10])) > 5, "a fixed replacement would still identify the prompt"


def test_each_epoch_reads_another_image_of_an_example() -> None:
    own = drawings(400, 3)
    epochs = [one_of_each(own, 7, epoch) for epoch in range(40)]
    assert all((shown // 3 == np.arange(400)).all() for shown in epochs)
    assert np.array_equal(one_of_each(own, 7, 5), epochs[5])
    assert not np.array_equal(one_of_each(own, 8, 5), epochs[5])
    assert not np.array_equal(epochs[4], epochs[5])
    counted = np.stack([np.bincount(shown % 3, minlength=3) for shown in epochs])
    assert abs(counted.sum(axis=0) / (400 * 40) - 1 / 3).max() < 0.02
    assert all(len({int(shown[example]) for shown in epochs}) == 3 for example in range(400)), "all of each are seen"


def test_scoring_reads_the_first_image_an_epoch_its_own() -> None:
    own = drawings(50, 3)
    images = PrivilegedImages(source=Numbered(), drawings=own, seed=7)
    rows = np.array([40, 3, 3])
    assert images.gather(rows, None)[:, 0, 0].tolist() == own[rows, 0].tolist()
    assert images.gather(rows, 2)[:, 0, 0].tolist() == one_of_each(own, 7, 2)[rows].tolist()


def test_prefetched_images_are_those_that_are_read() -> None:
    requested: list[list[int]] = []

    class Asked(Numbered):
        def ahead(self, batches: Any) -> Any:
            requested.extend(rows.tolist() for rows in batches)
            yield from batches

    own = drawings(50, 3)
    images = PrivilegedImages(source=Asked(), drawings=own, seed=7)
    batches = [np.array([1, 2]), np.array([30])]
    assert [rows.tolist() for rows in images.ahead(batches, 4)] == [[1, 2], [30]]
    assert requested == [one_of_each(own, 7, 4)[rows].tolist() for rows in batches]


def test_the_mean_counts_each_distinct_image_once_and_no_failed_one() -> None:
    own = np.array([[0, 1, 2, 3], [4, 5, 4, 5], [6, 6, 6, 6], [8, 9, 10, 8], [11, 12, 11, 12]])
    images = MeanImages(source=Numbered(), drawings=own, failed=[9, 11, 12])
    mean = images.gather(np.array([4, 0, 1, 2, 3, 0]), None)
    assert (tuple(mean.shape), mean.dtype) == ((6, 2, 3), torch.float16)
    assert mean[:, 0, 0].tolist() == [0.0, 1.5, 4.5, 6.0, 9.0, 1.5]
    assert torch.equal(mean, images.gather(np.array([4, 0, 1, 2, 3, 0]), 5)), "the same in every epoch"


def test_all_images_of_a_mean_are_prefetched() -> None:
    requested: list[list[int]] = []

    class Asked(Numbered):
        def ahead(self, batches: Any) -> Any:
            requested.extend(rows.tolist() for rows in batches)
            yield from batches

    images = MeanImages(source=Asked(), drawings=drawings(50, 2), failed=[])
    assert [rows.tolist() for rows in images.ahead([np.array([3, 1])], 4)] == [[3, 1]]
    assert requested == [[6, 7, 2, 3]]


@pytest.mark.parametrize("images_per_text", [1, 2])
def test_a_model_that_reads_the_mean_is_another_where_there_are_several(
    tmp_path: Path, images_per_text: int, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = plant(tmp_path, images_per_text=images_per_text)
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))
    losses, records = {}, {}
    for several in ("drawn", "mean"):
        model = train_images(
            planted.corpus,
            planted.run_dir / "tokens",
            name=several,
            text_model="demo",
            optimization=Optimization(epochs=1, several_images=several),  # type: ignore[arg-type]
            placement=Placement(device="cpu"),
        )
        losses[several], records[several] = model.history[0]["loss"], json.loads((model.folder / "training.json").read_text())
    assert "several_images" not in records["drawn"], "older models are recognized"
    told = "warning: --several-images mean has no effect on mean: each text has one image" in capsys.readouterr().err
    if images_per_text == 1:
        assert (records["mean"], losses["mean"], told) == (records["drawn"], losses["drawn"], True)
    else:
        assert (records["mean"], told) == ({**records["drawn"], "several_images": "mean"}, False)
        assert losses["mean"] != losses["drawn"]


def test_blank_tokens_have_the_shape_of_the_real_ones() -> None:
    blank = BlankTokens((5, 8), CPU)
    tokens = blank.gather(np.array([3, 1]))
    assert (tuple(tokens.shape), tokens.dtype) == ((2, 5, 8), torch.float16)
    assert not tokens.any()
    assert [list(rows) for rows in blank.ahead([np.array([1]), np.array([2, 3])])] == [[1], [2, 3]]


@pytest.fixture(scope="module")
def flags(small_csv: Path) -> tuple[str, ...]:
    corpus = ("--dataset", str(small_csv), "--split-column", "split", "--text-model", "demo", "--device", "cpu")
    return (*corpus, "--epochs", "2", "--learning-rate", "1e-3")


@pytest.fixture(scope="module")
def run(small_run: Path, flags: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher and all its controls."""
    folder = tmp_path_factory.mktemp("controls") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    for control in ("images", "shuffled", "blank"):
        assert main(["teacher", *flags, "--run-dir", str(folder), "--image-tokens", "clip-demo", "--privileged", control]) == 0
    shutil.rmtree(folder / "tokens")
    assert main(["teacher", *flags, "--run-dir", str(folder), "--privileged", "none"]) == 0, "it needs no store"
    return folder


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_has_its_own_folder_name(run: Path, control: str) -> None:
    metrics = json.loads((run / f"teacher-{control}" / "metrics.json").read_text())
    assert metrics["command"] == "teacher"
    assert metrics["config"]["privileged"] == control
    assert json.loads((run / f"teacher-{control}" / "training.json").read_text())["privileged"] == control
    assert (run / f"teacher-{control}" / "outputs.safetensors").is_file()
    place = {"shuffled": {"tokens_on": "disk"}, "blank": {"tokens_on": "nowhere"}, "none": {}}[control]
    assert {name: value for name, value in metrics["compute"].items() if name == "tokens_on"} == place
    assert (metrics["notice"] is None) == (control == "none")


def test_every_control_with_images_has_the_teachers_weight_count(run: Path) -> None:
    found = {name: json.loads((run / name / "metrics.json").read_text()) for name in ("teacher", *(f"teacher-{one}" for one in CONTROLS))}
    losses = [tuple(record["loss"] for record in metrics["history"]) for metrics in found.values()]
    assert len(set(losses)) == 4
    parameters = {name: metrics["parameters"] for name, metrics in found.items()}
    assert parameters["teacher"] == parameters["teacher-shuffled"] == parameters["teacher-blank"] > parameters["teacher-none"]


def test_a_student_is_distilled_on_a_control(run: Path, flags: tuple[str, ...]) -> None:
    assert main(["student", *flags, "--run-dir", str(run), "--teachers", "teacher-none", "--name", "student-none"]) == 0
    assert json.loads((run / "student-none" / "metrics.json").read_text())["notice"] is None


def test_flags_of_images_without_images_are_warned_of(run: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher", *flags, "--run-dir", str(run), "--privileged", "none", "--image-tokens", "clip-demo"]) == 0
    captured = capsys.readouterr()
    assert "warning: --image-tokens has no effect with --privileged none" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["already_done"] is True
