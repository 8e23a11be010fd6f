"""``featurize score``: cosines of images and their own prompts, whatever of a text these are, and what it is refused for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import lugpi
from featurize.cli import main
from featurize.encode.encoders import EncoderFiles, find_encoder
from featurize.encode.joint_space import JointSpace
from featurize.inspect.clip_scores import score_images
from featurize.options import Generation
from featurize.plan.prompts import plan_of
from featurize.plan.words import passages_of
from lugpi_core.errors import InputError
from lugpi_core.store.clip_scores import CLIP_SCORES, ClipScores, read_clip_scores
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.layout import OWN_IMAGES
from tests.support.planted_store import Planted, plant, plant_column
from tests.support.small_clip import CPU, WIDTH, clip_folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return find_encoder(str(clip_folder(tmp_path_factory.mktemp("clip") / "small-clip")))


def plant_clip(planted: Planted, files: EncoderFiles, *, flagged: tuple[int, ...] = (), **fingerprint: Any) -> NDArray[np.float32]:
    """Plant a column of the encoder with random tokens, and return them."""
    tokens = np.random.default_rng(0).normal(size=(int(planted.drawings.max()) + 1, 3, WIDTH)).astype(np.float16)
    encoder = {"encoder": files.fingerprint(), **fingerprint}
    plant_column(planted, files.name, tokens, flagged=flagged, fingerprint=encoder, made_by={"encoders": [str(files.folder)]})
    return tokens.astype(np.float32)


def cosines(files: EncoderFiles, tokens: NDArray[np.float32], prompts: list[list[str]], drawings: NDArray[np.int64]) -> NDArray[np.float64]:
    """The cosine of each image and its prompt, one by one."""
    space = JointSpace(files, CPU)
    found = np.zeros(drawings.shape)
    for (row, place), drawing in np.ndenumerate(drawings):
        image = space.images(torch.from_numpy(tokens[drawing, :1]))
        found[row, place] = float(image[0] @ space.embed_texts([prompts[row][place]])[0])
    return found


def test_a_score_is_the_cosine_of_an_image_and_its_prompt(files: EncoderFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = ["a dog", "two cats", "a dog", *[f"picture {n}" for n in range(33)]]
    planted = plant(tmp_path, counts=(30, 4, 2), prompts=pictures, images_per_text=2)
    tokens = plant_clip(planted, files, flagged=(3, 5))
    assert main(["score", *planted.flags]) == 0
    captured = capsys.readouterr()
    expected = cosines(files, tokens, [[prompt] * 2 for prompt in pictures], planted.drawings)
    expected[1, 1] = expected[3, 1] = np.nan  # row 3 is the second image of the second prompt, row 5 of the third: example 3's
    store = planted.run_dir / "tokens"
    scores = read_clip_scores(store, corpus_fingerprint=planted.corpus.fingerprint(), shape=planted.drawings.shape)
    np.testing.assert_allclose(scores.scores_NK, expected, atol=1e-5)
    assert scores.scores_NK[0].tolist() == scores.scores_NK[2].tolist(), "one prompt"
    model = JointSpace(files, CPU)._model
    assert scores.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    best = np.nanmax(expected, axis=1)
    record = json.loads(captured.out)
    assert record["mean"] == pytest.approx(np.nanmean(expected), abs=1e-5)
    assert record["mean_of_best"] == pytest.approx(best.mean(), abs=1e-5)
    assert record["first_is_best"] == np.mean(expected[:, 0] == best)
    assert f"of the best of 2 images of each text, 50.0% of all, {best.mean():.3f}, and " in captured.err
    before = (store / CLIP_SCORES).stat()
    assert lugpi.score_images(store, planted.corpus, device="cpu").scores_NK.tobytes() == scores.scores_NK.tobytes()
    assert "already done" in capsys.readouterr().err
    assert (store / CLIP_SCORES).stat() == before
    assert main(["inspect", *planted.flags, "--thumbnails", "0"]) == 0
    captured = capsys.readouterr()
    assert f"CLIP scores by small-clip: mean {record['mean']:.3f}; of the best" in captured.err
    assert json.loads(captured.out)["clip_scores"]["first_is_best"] == record["first_is_best"]


def test_a_passage_is_scored_with_its_own_image(files: EncoderFiles, tmp_path: Path) -> None:
    texts = [f"one thing {n}. and another one, which is {n * 7 % 5}" for n in range(5)] + ["word"]
    planted = plant(tmp_path, counts=(4, 1, 1), prompts=texts)
    plan = plan_of(planted.corpus, Generation(images_per_text=3, prompts="chunks"), lambda: pytest.fail("no reader is needed"))
    drawings = plan.images_of_example
    table = ExampleTable(drawings=drawings, prompt_cut=np.zeros(6, bool), corpus_fingerprint=planted.corpus.fingerprint())
    write_example_table(planted.run_dir / "tokens", planted.corpus, table)
    chunks = Planted(table=planted.table, run_dir=planted.run_dir, corpus=planted.corpus, drawings=drawings)
    tokens = np.random.default_rng(0).normal(size=(len(plan), 2, WIDTH)).astype(np.float16)
    made_by = {"encoders": [str(files.folder)], "prompts": "chunks"}
    plant_column(chunks, files.name, tokens, fingerprint={"encoder": files.fingerprint()}, made_by=made_by)
    passages = [passages_of(text, 3) for text in texts]
    prompts = [[its[place % len(its)] for place in range(3)] for its in passages]
    assert len(passages[-1]) == 1
    scores = score_images(planted.run_dir / "tokens", planted.corpus, device="cpu").scores_NK
    np.testing.assert_allclose(scores, cosines(files, tokens.astype(np.float32), prompts, drawings), atol=1e-5)


def test_a_picture_of_several_texts_has_a_score_for_each(files: EncoderFiles, tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(4, 1, 1), prompts=[f"text {n}" for n in range(6)])
    drawings = np.array([[0, 1], [1, 0], [2, 1], [2, 2], [0, 2], [1, 1]])
    table = ExampleTable(drawings=drawings, prompt_cut=np.zeros(6, bool), corpus_fingerprint=planted.corpus.fingerprint())
    write_example_table(planted.run_dir / "tokens", planted.corpus, table)
    own = Planted(table=planted.table, run_dir=planted.run_dir, corpus=planted.corpus, drawings=drawings)
    tokens = plant_clip(own, files, generation={"generator": OWN_IMAGES})
    expected = cosines(files, tokens, [[f"text {n}"] * 2 for n in range(6)], drawings)
    scores = score_images(planted.run_dir / "tokens", planted.corpus, device="cpu").scores_NK
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_what_cannot_be_scored_is_refused_in_one_line(
    files: EncoderFiles, original: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", *original.flags]) == 2
    assert "without a text tower that is read here; expected a column of an open_clip encoder" in (told := capsys.readouterr().err)
    assert told.count("\n") == 1
    assert main(["score", *original.flags, "--column", "none"]) == 2
    assert "got --column none; expected one of silent, telling" in capsys.readouterr().err
    planted = plant(tmp_path / "two", counts=(4, 1, 1))
    plant_clip(planted, files)
    plant_column(planted, "other", np.ones((6, 2, WIDTH)), fingerprint={"encoder": files.fingerprint()})
    with pytest.raises(InputError, match="several columns with a text tower, other, small-clip; expected one of them"):
        score_images(planted.run_dir / "tokens", planted.corpus, device="cpu")
    assert score_images(planted.run_dir / "tokens", planted.corpus, column="small-clip", device="cpu").column == "small-clip"
    layer = plant(tmp_path / "layer", counts=(4, 1, 1))
    plant_clip(layer, replace(files, name="small-clip-layer1", layer=1))
    with pytest.raises(InputError, match=r"small-clip-layer1 in .*, without a text tower that is read here; .* without --encoder-layer"):
        score_images(layer.run_dir / "tokens", layer.corpus, device="cpu")
    moved = plant(tmp_path / "moved", counts=(4, 1, 1))
    plant_clip(moved, files)
    table = ExampleTable(drawings=moved.drawings[::-1], prompt_cut=np.zeros(6, bool), corpus_fingerprint=moved.corpus.fingerprint())
    write_example_table(moved.run_dir / "tokens", moved.corpus, table)
    with pytest.raises(InputError, match="in another order than featurize plans them"):
        score_images(moved.run_dir / "tokens", moved.corpus, device="cpu")


def test_figures_of_images_that_all_failed_are_none() -> None:
    scores = ClipScores(
        column="clip", encoder="", content="", corpus_fingerprint="", logit_scale=1.0, scores_NK=np.full((3, 2), np.nan, np.float32)
    )
    assert {scores.figures()[name] for name in ("mean", "mean_of_best", "first_is_best")} == {None}
    assert scores.sentence() == "CLIP scores by clip: every image failed"
