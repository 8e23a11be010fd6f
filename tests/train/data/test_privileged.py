"""The privileged information of a teacher and of its controls."""

import json
import shutil
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from featurize.plan.images import plan_images
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.clip_scores import CLIP_SCORES, ClipScores, content_of, write_clip_scores
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.manifest import load_manifest
from tests.support.planted_store import Planted, plant, plant_column, telling_tokens
from train.cli import main
from train.data.image_tokens import TokenSource, open_image_tokens
from train.data.privileged import (
    BlankTokens,
    PrivilegedImages,
    WeightedImages,
    agreement_weights,
    mean_weights,
    of_others,
    one_of_each,
    order_of_others,
    usable_images,
)
from train.models.api import distill, train_images, train_teacher
from train.models.teachers import privileged_images
from train.models.train_model import TrainedModel
from train.options.settings import Optimization, Placement, Privileged, SeveralImages

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
    images = WeightedImages(source=Numbered(), drawings=own, weights_NK=mean_weights(usable_images(own, [9, 11, 12])))
    mean = images.gather(np.array([4, 0, 1, 2, 3, 0]), None)
    assert (tuple(mean.shape), mean.dtype) == ((6, 2, 3), torch.float16)
    assert mean[:, 0, 0].tolist() == [0.0, 1.5, 4.5, 6.0, 9.0, 1.5]
    assert torch.equal(mean, images.gather(np.array([4, 0, 1, 2, 3, 0]), 5)), "the same in every epoch"


def test_the_weights_are_the_softmax_of_the_scores_of_usable_images() -> None:
    scores = np.array([[0.21, 0.35, 0.30], [0.1, 0.1, np.nan], [0.9, -0.9, 0.0], [0.2, 0.2, 0.2]], np.float32)
    usable = np.array([[True, True, True], [True, True, False], [False, True, True], [False, False, False]])
    weights = agreement_weights(scores, usable, 20.0)
    for row, its in enumerate(weights):
        shares = [np.exp(20.0 * float(score)) if is_usable else 0.0 for score, is_usable in zip(scores[row], usable[row], strict=True)]
        assert its == pytest.approx([share / max(sum(shares), 1e-9) for share in shares])
    assert agreement_weights(scores[:1], usable[:1], 1e6)[0].tolist() == [0.0, 1.0, 0.0], "no overflow"


def test_all_images_of_a_mean_are_prefetched() -> None:
    requested: list[list[int]] = []

    class Asked(Numbered):
        def ahead(self, batches: Any) -> Any:
            requested.extend(rows.tolist() for rows in batches)
            yield from batches

    images = WeightedImages(source=Asked(), drawings=drawings(50, 2), weights_NK=np.full((50, 2), 0.5))
    assert [rows.tolist() for rows in images.ahead([np.array([3, 1])], 4)] == [[3, 1]]
    assert requested == [[6, 7, 2, 3]]


def plant_scores(planted: Planted, scores: NDArray[np.float32], *, column: str = "telling", encoder: str = "tower") -> None:
    store = planted.run_dir / "tokens"
    scored = ClipScores(
        column=column,
        encoder=encoder,
        content=content_of(load_manifest(store / column)[1]),
        corpus_fingerprint=planted.corpus.fingerprint(),
        logit_scale=20.0,
        scores_NK=scores,
    )
    write_clip_scores(store, scored)


@pytest.mark.parametrize("images_per_text", [1, 3])
def test_a_model_that_reads_several_images_at_once_is_another_where_there_are_several(
    tmp_path: Path, images_per_text: int, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = plant(tmp_path, counts=(30, 6, 6), images_per_text=images_per_text)
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))
    scores = np.random.default_rng(0).normal(size=planted.drawings.shape).astype(np.float32)
    plant_scores(planted, scores)
    losses, records, told = {}, {}, {}
    for several in ("drawn", "mean", "best") if images_per_text == 1 else get_args(SeveralImages):
        model = train_images(
            planted.corpus,
            planted.run_dir / "tokens",
            name=several,
            text_model="demo",
            optimization=Optimization(epochs=1, several_images=several),
            placement=Placement(device="cpu"),
        )
        losses[several], records[several] = model.history[0]["loss"], json.loads((model.folder / "training.json").read_text())
        told[several] = capsys.readouterr().err
    others = [several for several in losses if several != "drawn"]
    assert "several_images" not in records["drawn"], "older models are recognized"
    if images_per_text == 1:
        for several in others:
            assert (records[several], losses[several]) == (records["drawn"], losses["drawn"])
            assert f"warning: --several-images {several} has no effect on {several}: each text has one image" in told[several]
        return
    assert "warning" not in "".join(told.values())
    assert records["mean"] == {**records["drawn"], "several_images": "mean"}
    assert "--several-images weighted: by the CLIP scores of telling at its logit scale, 20" in told["weighted"]
    assert "--several-images best: by the CLIP scores of telling\n" in told["best"]
    for several in ("weighted", "best"):
        by = records[several].pop("clip_scores")
        assert records[several] == {**records["drawn"], "several_images": several}
        assert (by["column"], by["encoder"], by["logit_scale"]) == ("telling", "tower", 20.0)
    assert len(set(losses.values())) == 4


def privileged(planted: Planted, several: SeveralImages, privileged: str = "images", seed: int = 3) -> PrivilegedImages:
    """The images of a planted store, read as numbers."""
    tokens = open_image_tokens(planted.run_dir / "tokens", "telling", planted.corpus)
    numbered = cast(TokenSource, Numbered())
    kind = cast(Privileged, privileged)
    images = privileged_images(tokens, kind, lambda _: numbered, seed=seed, device=CPU, several_images=several)
    assert images is not None
    return images


def test_the_best_image_is_that_of_the_highest_score_and_a_control_reads_it_with_its_own_score(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(20, 6, 4), images_per_text=3)
    own = planted.drawings
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0), flagged=(own[4, 1], *own[5]))
    scores = np.random.default_rng(0).uniform(size=own.shape).astype(np.float32)
    scores[4, 1], scores[6, 0], scores[7] = 2.0, np.nan, 0.25
    plant_scores(planted, scores)
    counted = np.where(np.isin(own, [own[4, 1], *own[5]]) | np.isnan(scores), -1.0, scores)
    best = np.array([row[its.argmax()] for row, its in zip(own, counted, strict=True)])
    rows = np.arange(30)
    assert best[4] != own[4, 1], "a failed image is not chosen"
    assert best[[5, 7]].tolist() == own[[5, 7], 0].tolist(), "of equals the first is"
    for epoch in (None, 4):
        assert privileged(planted, "best").gather(rows, epoch)[:, 0, 0].tolist() == best.tolist()
    weights = np.where(counted < 0, 0.0, np.exp(20.0 * counted))
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    mean = (weights * own).sum(axis=1)
    assert privileged(planted, "weighted").gather(rows, 4)[:, 0, 0].numpy() == pytest.approx(mean, rel=1e-3)
    order = order_of_others(own, 3)
    assert not (order == rows).any()
    assert privileged(planted, "best", "shuffled").gather(rows, 0)[:, 0, 0].tolist() == best[order].tolist()
    assert privileged(planted, "weighted", "shuffled").gather(rows, 0)[:, 0, 0].numpy() == pytest.approx(mean[order], rel=1e-3)
    for several in get_args(SeveralImages):
        assert not privileged(planted, several, "blank").gather(rows, 0).any()


def test_what_weights_cannot_be_read_from_is_refused_in_one_line_before_there_is_a_folder(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(20, 6, 4), images_per_text=2)
    plant_column(planted, "telling", telling_tokens(planted.labels, strength=1.0))

    def refusal() -> str:
        with pytest.raises(InputError) as caught:
            train_images(
                planted.corpus,
                planted.run_dir / "tokens",
                column="telling",
                text_model="demo",
                optimization=Optimization(epochs=1, several_images="weighted"),
                placement=Placement(device="cpu"),
            )
        assert not (planted.run_dir / "images").exists()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "without CLIP scores" in refusal()
    assert "add an encoder with a text tower, such as clip-vit-b32, then run python -m featurize score" in refusal()
    plant_column(planted, "clip", telling_tokens(planted.labels, strength=1.0), fingerprint={"encoder": {"family": "open_clip"}})
    assert "; run python -m featurize score with its flags" in refusal()
    scores = np.zeros(planted.drawings.shape, np.float32)
    plant_scores(planted, scores[:, :1])
    assert "scores of other texts" in refusal()
    plant_scores(planted, scores, column="clip")
    shutil.rmtree(planted.run_dir / "tokens" / "clip")
    plant_column(planted, "clip", telling_tokens(planted.labels, strength=2.0), fingerprint={"encoder": {"family": "open_clip"}})
    assert "scores of other images than clip has now" in refusal()
    path = planted.run_dir / "tokens" / CLIP_SCORES
    path.write_bytes(path.read_bytes()[:-1])
    assert "which is damaged" in refusal()


def test_a_teacher_reads_new_texts_by_scores_of_the_same_encoder(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(12, 6, 3), images_per_text=2)
    texts = [f"new {n}" for n in range(5)]
    corpus = Corpus.from_texts(texts, name="more")
    rows = plan_images(corpus, seed=0, images_per_text=2).images_of_example
    more = Planted(table=planted.table, run_dir=tmp_path / "more", corpus=corpus, drawings=rows)
    (more.run_dir / "tokens").mkdir(parents=True)
    table = ExampleTable(drawings=rows, prompt_cut=np.zeros(5, bool), corpus_fingerprint=corpus.fingerprint())
    write_example_table(more.run_dir / "tokens", corpus, table)
    rng = np.random.default_rng(0)
    for one in (planted, more):
        plant_column(one, "telling", rng.normal(size=(one.drawings.size, 3, 8)))
    plant_scores(planted, rng.normal(size=planted.drawings.shape).astype(np.float32))
    training = {"text_model": "demo", "placement": Placement(device="cpu")}
    weighted = Optimization(epochs=1, several_images="weighted")
    teacher = train_teacher(planted.corpus, planted.run_dir / "tokens", optimization=weighted, **training)  # type: ignore[arg-type]

    def student() -> TrainedModel:
        shutil.rmtree(planted.run_dir / "tokens-more", ignore_errors=True)
        shutil.copytree(more.run_dir / "tokens", planted.run_dir / "tokens-more")
        return distill(planted.corpus, [teacher], unlabelled=corpus, optimization=Optimization(epochs=1), **training)  # type: ignore[arg-type]

    with pytest.raises(InputError, match="tokens-more without CLIP scores"):
        student()
    scores = rng.normal(size=rows.shape).astype(np.float32)
    plant_scores(more, scores, encoder="another")
    with pytest.raises(InputError, match="by telling, an encoder of other weights than that of the teacher's scores; "):
        student()
    plant_scores(more, scores)
    assert student().metrics["examples"]["unlabelled"] == 5


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
