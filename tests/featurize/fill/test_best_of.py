"""``featurize --best-of``: the image that is kept is that of the highest score, in every column, after a stop and after faults too."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cli import main
from featurize.cost.estimate import estimate_run, missing_rows
from featurize.fill import load_models
from featurize.fill.scorer import Scorer, best_candidates
from featurize.generate.text_to_image import TextToImage
from featurize.inspect.clip_scores import score_images
from featurize.options import FeaturizeOptions, Generation
from featurize.plan.job import Job
from featurize.plan.prompts import plan_of
from featurize.run import featurize_command, plan_command
from lugpi_core.corpora.load import load_corpus
from lugpi_core.errors import InputError
from lugpi_core.store.layout import CANDIDATES
from lugpi_core.store.reader import ColumnReader, image_columns_of
from lugpi_core.store.token_store import TokenStore
from tests.support.small_corpus import DRAWINGS, load_no_model, shard_bytes, small_table
from tests.support.small_corpus import options as small_options

C = 3


def options(table: Path, run_dir: Path, **flags: Any) -> FeaturizeOptions:
    return small_options(table, run_dir, **{"steps": 1, "guidance": 1.0, **flags})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def best(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that keeps the best of three candidates, and its figures."""
    run_dir = tmp_path_factory.mktemp("best")
    return run_dir, featurize_command(options(table, run_dir, best_of=C))


def rows_of(run_dir: Path, column: str) -> Any:
    reader = ColumnReader(run_dir / "tokens", column)
    return reader.gather(range(len(reader))).astype(np.float64)


def test_the_candidate_of_the_highest_score_is_kept_and_of_equals_the_first() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.3], [torch.nan, -0.2, -0.1], [0.2, torch.nan, 0.1], [torch.nan] * 3])

    def draw(candidate: int) -> torch.Tensor:
        return (10 * torch.arange(4) + candidate).half().view(4, 1, 1, 1)

    latents, rows = best_candidates(C, draw, lambda latents: scores[:, int(latents[0, 0, 0, 0])])
    assert latents.flatten().tolist() == [1, 12, 20, 30]
    assert rows[:, 0, 0].tolist() == [1, 2, 0, 0]
    assert torch.equal(rows[:, 0, 1:].nan_to_num(nan=9), scores.half().nan_to_num(nan=9))


def test_candidates_have_the_seeds_of_several_images(table: Path) -> None:
    corpus = load_corpus(table, options(table, Path("runs")))
    for prompts in ("whole", "chunks"):
        two: Any = {"images_per_text": 2, "prompts": prompts}
        plans = [plan_of(corpus, Generation(**settings), lambda: pytest.fail("no reader")) for settings in (two, {**two, "best_of": C})]
        assert (len(plans[1]), plans[1].candidates, plans[0].candidates) == (len(plans[0]), C, 1)
        assert np.array_equal(plans[0].images_of_example, plans[1].images_of_example)
        assert plans[0].fingerprint() != plans[1].fingerprint()
        if prompts == "chunks":
            assert plans[1].seeds[:, 0].tolist() == plans[0].seeds.tolist()
    many = plan_of(corpus, Generation(images_per_text=2 * C), lambda: pytest.fail("no reader"))
    plan = plan_of(corpus, Generation(images_per_text=2, best_of=C), lambda: pytest.fail("no reader"))
    assert plan.seeds.reshape(-1).tolist() == many.seeds.tolist()
    assert plan.seeds_of([3, 0], 2) == [int(many.seeds[3 * C + 2]), int(many.seeds[2])]


def test_every_column_has_the_image_that_agrees_best(table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Beside the store of all candidates, and the scores of ``featurize score``."""
    featurize_command(options(table, tmp_path, images_per_text=C))
    corpus = load_corpus(table, options(table, tmp_path))
    scores = score_images(tmp_path / "tokens", corpus, device="cpu")
    drawings = ColumnReader(tmp_path / "tokens", "latents")
    of_prompt = np.full((DRAWINGS, C), np.nan)
    for example, row in enumerate(TokenStore(tmp_path / "tokens", image=None).drawings):
        of_prompt[row[0] // C] = scores.scores_NK[example]
    kept = rows_of(best[0], CANDIDATES)[:, 0]
    assert kept.shape == (DRAWINGS, 1 + C)
    np.testing.assert_allclose(kept[:, 1:], of_prompt, atol=5e-3)
    choice = kept[:, 0].astype(int)
    assert np.array_equal(choice, kept[:, 1:].argmax(axis=1))
    assert len(set(choice.tolist())) == C, "the test would not see which is kept"
    assert len(drawings) == C * DRAWINGS
    for column in ("latents", "clip-demo", "vit-demo"):
        chosen = rows_of(tmp_path, column)[np.arange(DRAWINGS) * C + choice]
        assert np.abs(chosen - rows_of(best[0], column)).max() <= 0.02


def test_what_is_kept_is_told_and_counted(
    table: Path, best: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, figures = best
    assert figures["rows"] == {
        "prompts": DRAWINGS,
        "drawn": DRAWINGS,
        "decoded": DRAWINGS,
        "encoded": 2 * DRAWINGS,
        "candidates": C * DRAWINGS,
        "redone": 0,
    }
    rows = rows_of(run_dir, CANDIDATES)[:, 0]
    scores = rows[:, 1:]
    told = figures["best_of"]
    assert (told["candidates"], told["kept_share"]) == (C, 1 / C)
    assert told["mean"] == pytest.approx(scores.mean())
    assert told["mean_of_kept"] == pytest.approx(scores.max(axis=1).mean())
    assert told["first_is_kept"] == np.mean(rows[:, 0] == 0)
    assert image_columns_of(run_dir / "tokens") == ["clip-demo", "vit-demo"]
    assert TokenStore(run_dir / "tokens").columns == ("clip-demo", "vit-demo")
    assert main(["info", "--dataset", str(table), "--run-dir", str(run_dir)]) == 0
    captured = capsys.readouterr()
    assert f"best of {C} candidates, 33.3% of the images drawn: mean CLIP score {told['mean_of_kept']:.3f}, of all" in captured.err
    assert json.loads(captured.out)["best_of"] == told
    load_no_model(monkeypatch)
    again = featurize_command(options(table, run_dir, best_of=C))
    assert again["already_done"]
    assert again["best_of"] == told


def test_a_run_that_is_broken_off_ends_with_the_same_bytes(table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    whole, calls = TextToImage.denoise, 0

    def breaking(self: TextToImage, *given: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == C + 2:  # among the candidates of the second block
            raise KeyboardInterrupt
        return whole(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToImage, "denoise", breaking)
        with pytest.raises(KeyboardInterrupt):
            featurize_command(options(table, tmp_path, best_of=C))
    figures = featurize_command(options(table, tmp_path, best_of=C))
    assert figures["rows"]["drawn"] < DRAWINGS
    assert figures["best_of"] == best[1]["best_of"]
    assert shard_bytes(tmp_path) == shard_bytes(best[0])


def test_an_encoder_that_is_added_reads_the_images_that_are_kept(table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    featurize_command(options(table, tmp_path, best_of=C, encoders=("clip-demo",)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToImage, "denoise", lambda *_, **__: pytest.fail("nothing is drawn"))
        patch.setattr(load_models, "_try_models", lambda *_: None)
        featurize_command(options(table, tmp_path, best_of=C))
    assert shard_bytes(tmp_path) == shard_bytes(best[0])
    shutil.rmtree(tmp_path / "tokens" / CANDIDATES)
    assert featurize_command(options(table, tmp_path, best_of=C))["rows"]["candidates"] == C * DRAWINGS, "though the latents are there"
    assert shard_bytes(tmp_path) == shard_bytes(best[0])


def test_a_candidate_that_fails_is_not_kept_and_where_all_fail_they_are_drawn_again(
    table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The winner of each prompt's candidates fails; of the first prompt, all do until they are drawn again in float32."""
    kept = rows_of(best[0], CANDIDATES)[:, 0]
    corpus = load_corpus(table, options(table, tmp_path))
    plan = plan_of(corpus, Generation(best_of=C), lambda: pytest.fail("no reader"))
    sick = {int(plan.seeds[row, int(choice)]) for row, choice in enumerate(kept[:, 0])}
    first = {int(seed) for seed in plan.seeds[0]}
    whole = TextToImage.denoise

    def failing(self: TextToImage, embeddings: Any, seeds: Any, **named: Any) -> torch.Tensor:
        latents = whole(self, embeddings, seeds, **named)
        is_alone = len(seeds) == 1
        for row, seed in enumerate(seeds):
            if (seed in sick and seed not in first) or (seed in first and not is_alone):
                latents[row] = torch.nan if seed % 2 else 0.25  # of one value, which has a score
        return latents

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextToImage, "denoise", failing)
        figures = featurize_command(options(table, tmp_path, best_of=C))
    assert figures["complete"]
    assert figures["rows"]["redone"] == 1
    rows = rows_of(tmp_path, CANDIDATES)[:, 0]
    np.testing.assert_allclose(rows[0], kept[0], atol=5e-3)
    others = kept[1:, 1:].copy()
    np.put_along_axis(others, kept[1:, :1].astype(int), np.nan, axis=1)
    np.testing.assert_allclose(rows[1:, 1:], others, atol=5e-3)
    assert np.array_equal(rows[1:, 0], np.nanargmax(others, axis=1))


def test_an_image_whose_candidates_have_no_score_fails_in_every_column_and_is_repaired_in_all(
    table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    whole = Scorer.scores

    def failing(self: Scorer, texts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        scores = whole(self, texts, tokens)
        scores[1 if len(scores) > 1 else 0] = torch.nan
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "scores", failing)
        figures = featurize_command(options(table, tmp_path, best_of=C))
    columns = ("latents", CANDIDATES, "clip-demo", "vit-demo")
    assert figures["failed_rows"] == dict.fromkeys(columns, DRAWINGS // 4)  # one of every block of four
    assert {tuple(ColumnReader(tmp_path / "tokens", column).flagged) for column in columns} == {(1, 5, 9)}
    assert main(["verify", "--dataset", str(table), "--run-dir", str(tmp_path), "--repair"]) == 0
    for column in columns:
        assert np.abs(rows_of(tmp_path, column) - rows_of(best[0], column)).max() <= 0.02


def test_the_cost_of_candidates_is_told(table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    job = plan_command(options(table, tmp_path, best_of=C))[1]
    assert job.every_column[1].name == CANDIDATES
    assert isinstance(job, Job)
    drawn = C * DRAWINGS
    assert missing_rows(job) == {
        "prompt": DRAWINGS,
        "denoise": drawn,
        "decode": drawn + DRAWINGS,
        "encode clip-demo": drawn + DRAWINGS,
        "encode vit-demo": DRAWINGS,
    }
    assert estimate_run(job, None).images == DRAWINGS
    done = plan_command(options(table, best[0], best_of=C))[1]
    assert isinstance(done, Job)
    assert not any(missing_rows(done).values())


def test_what_candidates_cannot_be_chosen_by_is_refused_in_one_line(table: Path, best: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--best-of with the encoders vit-demo, none of which has a text tower"):
        plan_command(options(table, tmp_path, best_of=2, encoders=("vit-demo",)))
    with pytest.raises(InputError, match=r"got --best-of with --encoder-layer 1, .*; leave --encoder-layer out"):
        plan_command(options(table, tmp_path, best_of=2, encoders=("clip-demo",), encoder_layer=1))
    with pytest.raises(InputError, match="got --best-of 0; expected at least 1"):
        options(table, tmp_path, best_of=0)
    for other in (1, 2):
        with pytest.raises(InputError, match=f"made with other settings: --best-of: 3 then, {other} now; expected") as caught:
            featurize_command(options(table, best[0], best_of=other))
        assert "\n" not in str(caught.value)
