"""``--subset``: images of some train texts only; a larger number draws the further ones, and everything that reads a store knows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lugpi
from featurize.cli import main
from featurize.fill import fillers
from featurize.inspect.clip_scores import score_images
from featurize.plan.subset import choose
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.example_table import read_example_table
from lugpi_core.store.manifest import RECORDS, drop_record, load_manifest
from lugpi_core.store.token_store import TokenStore
from tests.support.planted_store import Planted, plant_column
from tests.support.small_corpus import load_no_model, state_of

# 12 validation and 12 test texts: of 8 chosen train texts and of 24, all blocks and shards are full.
SMALL, LARGE = 8, 24
MODELS: dict[str, Any] = {"generator": "demo", "encoders": ["clip-demo"]}
FAST = ("--generator", "demo", "--encoders", "clip-demo", "--steps", "2", "--batch-size", "4", "--shard-rows", "16", "--device", "cpu")


@pytest.fixture(scope="module")
def corpus(small_csv: Path) -> Corpus:
    return lugpi.load_corpus(str(small_csv), lugpi.CorpusSettings(split_column="split"))


def settings(subset: int | None, **more: Any) -> lugpi.FeaturizeSettings:
    return lugpi.FeaturizeSettings(**{"steps": 2, "batch_size": 4, "shard_rows": 16, "subset": subset, "device": "cpu", **more})


def fill(corpus: Corpus, run: Path, subset: int | None, encoders: tuple[str, ...] = ("clip-demo",), **more: Any) -> TokenStore:
    return lugpi.featurize(corpus, run, settings=settings(subset, **more), progress=False, **{**MODELS, "encoders": list(encoders)})


@pytest.fixture(scope="module")
def finished(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs with the small subset and with the large one. Tests must not change them."""
    runs = {subset: tmp_path_factory.mktemp("subset") / str(subset) for subset in (SMALL, LARGE)}
    for subset, run in runs.items():
        fill(corpus, run, subset)
    return runs


@pytest.fixture
def small(finished: dict[int, Path], tmp_path: Path) -> Path:
    """A copy of the run with the small subset."""
    shutil.copytree(finished[SMALL], tmp_path / "run")
    return tmp_path / "run"


def command(name: str, small_csv: Path, run: Path, *flags: str) -> int:
    words = [] if name == "featurize" else [name]
    return main([*words, "--dataset", str(small_csv), "--run-dir", str(run), *flags])


def begin(small_csv: Path, run: Path, subset: int, *flags: str) -> int:
    return command("featurize", small_csv, run, "--split-column", "split", *FAST, "--subset", str(subset), *flags)


def files_of(run: Path) -> dict[str, bytes]:
    """Return every file of a store but locks, and records and manifests, which say who began what."""
    paths = [path for path in sorted((run / "tokens").rglob("*")) if path.is_file() and path.name not in (".lock", "manifest.json")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths if path.parent.name != RECORDS}


def test_the_store_says_which_texts_have_images(corpus: Corpus, finished: dict[int, Path]) -> None:
    store = finished[SMALL] / "tokens"
    table = read_example_table(store, corpus)
    train = corpus.rows("train")
    chosen = [train[place] for place in choose([corpus.examples[row].prompt for row in train], SMALL, "k-centre", seed=0)]
    assert np.flatnonzero(table.has_image).tolist() == sorted([*chosen, *corpus.rows("validation"), *corpus.rows("test")])
    stated = {"texts": SMALL, "of": 36, "by": "k-centre", "vectors": "tf-idf of the train prompts"}
    assert table.subset == stated
    spec, _ = load_manifest(store / "clip-demo")
    assert (spec.rows, spec.fingerprint["generation"]["subset"]) == (24 + SMALL, stated)
    assert TokenStore(store).has_image.tolist() == table.has_image.tolist()


def test_a_larger_subset_draws_the_additional_images_and_keeps_the_others(
    small_csv: Path, small: Path, finished: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(small_csv, small, LARGE, "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["images"] == LARGE - SMALL
    assert command("plan", small_csv, small, "--split-column", "split", *FAST, "--subset", str(LARGE)) == 0
    assert json.loads(capsys.readouterr().out)["missing_shards"] == "2"
    assert files_of(small) == files_of(finished[SMALL]), "neither touches the store"
    assert begin(small_csv, small, LARGE) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert (figures["rows"]["drawn"], figures["drawings"], figures["subset"]["without_image"]) == (LARGE - SMALL, 24 + LARGE, 12)
    assert f"the {24 + SMALL} images of --subset {SMALL} are kept" in captured.err
    assert files_of(small) == files_of(finished[LARGE])


def test_parts_and_a_stopped_growth_make_the_same_store(
    small_csv: Path, small: Path, finished: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grow, calls = fillers.grow_column, 0

    def stopped(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        grow(*given)

    with monkeypatch.context() as patch:
        patch.setattr(fillers, "grow_column", stopped)
        assert begin(small_csv, small, LARGE, "--part", "0/2") == 130
    assert begin(small_csv, small, LARGE, "--part", "1/2") == 0
    assert begin(small_csv, small, LARGE, "--part", "0/2") == 0
    assert files_of(small) == files_of(finished[LARGE])


def test_any_process_that_is_given_a_shard_grows_the_store(corpus: Corpus, small: Path, finished: dict[int, Path]) -> None:
    job = lugpi.FeaturizeJob(corpus=corpus, run_dir=small, settings=settings(LARGE), **MODELS)
    assert [lugpi.featurize_shard(job, shard).computed for shard in (2, 0, 1)] == [True, False, False]
    assert files_of(small) == files_of(finished[LARGE])


def test_rows_at_the_seam_of_a_batch_stay_as_they_were(corpus: Corpus, small: Path, finished: dict[int, Path]) -> None:
    before = fill(corpus, small, SMALL + 1)["clip-demo"]
    has = np.flatnonzero(before.rows >= 0)
    tokens = before[has]
    after, other = fill(corpus, small, SMALL + 2)["clip-demo"], TokenStore(finished[LARGE] / "tokens")["clip-demo"]
    np.testing.assert_array_equal(after[has], tokens)
    has = np.flatnonzero(after.rows >= 0)
    assert len(has) == 24 + SMALL + 2
    np.testing.assert_array_equal(after.rows[has], other.rows[has])
    np.testing.assert_allclose(after[has].astype(np.float32), other[has].astype(np.float32), atol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda corpus, run: fill(corpus, run, SMALL - 1), f"--subset: {SMALL} then, {SMALL - 1} now; expected the same"),
        (lambda corpus, run: fill(corpus, run, None), f"--subset: {SMALL} then, none now"),
        (lambda corpus, run: fill(corpus, run, SMALL, subset_by="herding"), "--subset-by: k-centre then, herding now"),
        (lambda corpus, run: fill(corpus, run, LARGE, subset_by="random"), "--subset-by: k-centre then, random now"),
        (lambda corpus, run: fill(corpus, run, LARGE, seed=1), "--seed: 0 then, 1 now"),
        (lambda corpus, run: fill(corpus, run, LARGE, steps=3), "generation.generator.steps: found 2, wanted 3"),
        (lambda corpus, run: fill(corpus, run, 37), "--subset 37 for 36 train texts of different prompts; expected at most 36"),
        (lambda corpus, run: fill(corpus, run, LARGE, ("vit-demo",)), "has clip-demo, too.*name all of its encoders: --encoders clip-demo"),
    ],
)
def test_another_subset_is_refused_in_one_line_and_the_store_stays(
    corpus: Corpus, finished: dict[int, Path], call: Callable[[Corpus, Path], object], message: str
) -> None:
    before = files_of(finished[SMALL])
    with pytest.raises(InputError, match=message) as caught:
        call(corpus, finished[SMALL])
    assert "\n" not in str(caught.value)
    assert files_of(finished[SMALL]) == before


def test_a_reduced_column_is_removed_before_the_store_grows_and_made_again(
    small_csv: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reduce = ("--split-column", "split", "--column", "clip-demo", "--pca", "4")
    assert command("reduce", small_csv, small, *reduce) == 0
    before, reduced = state_of(small), small / "tokens" / "clip-demo-pca4"
    capsys.readouterr()
    for flags in ((), ("--part", "0/2"), ("--dry-run",)):
        assert begin(small_csv, small, LARGE, *flags) == 2
        assert capsys.readouterr().err.endswith(
            f"got --subset {LARGE} for a store of --subset {SMALL} that has clip-demo-pca4 (components of other tokens), too; "
            f"expected columns that one command adds images to; remove the folder {reduced}, then run this command, "
            "then python -m featurize reduce --column clip-demo --pca 4\n"
        )
        assert state_of(small) == before
    shutil.rmtree(reduced)
    assert begin(small_csv, small, LARGE) == 0
    assert command("reduce", small_csv, small, *reduce) == 0
    assert len(TokenStore(small / "tokens")["clip-demo-pca4"].reader) == 24 + LARGE


def test_a_reduced_column_alone_is_not_said_to_be_of_other_texts(corpus: Corpus, small_csv: Path, small: Path) -> None:
    assert command("reduce", small_csv, small, "--split-column", "split", "--column", "clip-demo", "--pca", "4") == 0
    shutil.rmtree(small / "tokens" / "clip-demo")
    stated = '--subset-by|other prompts, by flags that the column does not state; generation.subset.by: found "k-centre", wanted "random"'
    with pytest.raises(InputError, match=f"clip-demo-pca4 that was made with other settings: (?:{stated})"):
        fill(corpus, small, SMALL, subset_by="random")


def test_a_store_that_has_other_images_too_is_refused_before_it_grows(corpus: Corpus, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(small)

    def refuse(*_: Any, **__: Any) -> None:
        raise InputError(got="a column of other images", expected="the same", do="give another --run-dir")

    monkeypatch.setattr(fillers, "refuse_other_images", refuse)
    with pytest.raises(InputError, match="a column of other images"):
        fill(corpus, small, LARGE)
    assert state_of(small) == before


def test_columns_by_other_flags_are_removed_before_the_store_grows_and_added_again(
    small_csv: Path, small: Path, finished: dict[int, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (("--pool", "2x2"), ("--encoder-layer", "1")):
        assert begin(small_csv, small, SMALL, *flags) == 0
    before, names = state_of(small), ("clip-demo-layer1", "clip-demo-pool-2x2")
    capsys.readouterr()
    assert begin(small_csv, small, LARGE) == 2
    removed = [small / "tokens" / name for name in names]
    assert capsys.readouterr().err.endswith(
        f"got --subset {LARGE} for a store of --subset {SMALL} that has clip-demo-layer1 (--encoder-layer: 1 then, none now), "
        "clip-demo-pool-2x2 (--pool: 2x2 then, none now), too; expected columns that one command adds images to; remove the folders "
        f"{removed[0]} and {removed[1]}, then run this command, then once more with --encoders clip-demo --encoder-layer 1, "
        "then once more with --encoders clip-demo --pool 2x2\n"
    )
    assert begin(small_csv, small, LARGE, "--pool", "2x2") == 2
    assert "then once more with --encoders clip-demo without --pool, then" in capsys.readouterr().err
    assert state_of(small) == before
    for folder in removed:
        shutil.rmtree(folder)
    assert begin(small_csv, small, LARGE) == 0
    assert files_of(small) == files_of(finished[LARGE])
    for flags in (("--encoder-layer", "1"), ("--pool", "2x2")):
        assert begin(small_csv, small, LARGE, *flags) == 0
    store = TokenStore(small / "tokens")
    assert [len(store[name].reader) for name in names] == [24 + LARGE] * 2


def test_a_foreign_column_is_removed_before_the_store_grows(corpus: Corpus, small_csv: Path, small: Path) -> None:
    planted = Planted(table=small_csv, run_dir=small, corpus=corpus, drawings=np.zeros((1, 1), np.int64))
    plant_column(planted, "mine", np.ones((24 + SMALL, 2, 3)))
    plant_column(planted, "other", np.ones((7, 2, 3)))  # of something else
    before = state_of(small)
    with pytest.raises(
        InputError, match=r"that has mine \(by no command of featurize\), too; .*/mine, then run this command, then add mine"
    ):
        fill(corpus, small, LARGE)
    assert state_of(small) == before


def test_an_unfinished_smaller_subset_is_finished_first(corpus: Corpus, small: Path) -> None:
    drop_record(small / "tokens" / "clip-demo", 1)
    with pytest.raises(
        InputError, match=f"clip-demo, begun with --subset {SMALL} and unfinished; .* run the command with --subset {SMALL}"
    ):
        fill(corpus, small, LARGE)


def test_several_processes_do_not_grow_a_store_without_locks(
    small_csv: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fillers, "has_locks", lambda _: False)
    assert begin(small_csv, small, LARGE, "--part", "0/2") == 2
    assert "on a file system without locks; expected one process" in capsys.readouterr().err
    assert begin(small_csv, small, LARGE) == 0


def test_a_new_encoder_reads_the_images_of_the_subset(corpus: Corpus, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fill(corpus, small, SMALL, ("vit-demo",))
    assert store["vit-demo"].shape[0] == len(corpus.examples)
    assert len(store["vit-demo"].reader) == 24 + SMALL
    load_no_model(monkeypatch)
    assert fill(corpus, small, SMALL).has_image.sum() == 24 + SMALL


def test_info_verify_inspect_and_score_read_the_images_that_are_there(
    corpus: Corpus, small_csv: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"no image was drawn for {36 - SMALL} texts (--subset): {SMALL} of 36 train texts of different prompts are chosen (k-centre)"
    assert command("info", small_csv, small) == 0
    captured = capsys.readouterr()
    assert told in captured.err
    assert "FAILED" not in captured.err
    assert "clip-demo left out" not in captured.err
    assert json.loads(captured.out)["examples"]["without_image"] == 36 - SMALL
    assert command("verify", small_csv, small, "--deep") == 0
    assert command("merge", small_csv, small) == 0
    capsys.readouterr()
    found = lugpi.inspect(small / "tokens", corpus, run_dir=small)
    assert {split: (each.looked_at, each.of) for split, each in found.examples.items()} == {
        "train": (SMALL, SMALL),
        "validation": (12, 12),
        "test": (12, 12),
    }
    assert found.without_image == {"train": 36 - SMALL}
    assert f"no image was drawn for {36 - SMALL} train examples (--subset), which are left aside" in found.summary()
    assert found.to_json()["without_image"] == {"train": 36 - SMALL}
    scores = score_images(small / "tokens", corpus, device="cpu").scores_NK
    assert np.isfinite(scores[:, 0]).tolist() == TokenStore(small / "tokens").has_image.tolist()


@pytest.mark.soak
def test_stores_of_two_subsets_are_compared(corpus: Corpus, finished: dict[int, Path], tmp_path: Path) -> None:
    stores = [finished[subset] / "tokens" for subset in (SMALL, LARGE)]
    compared = lugpi.compare_stores(stores, corpus, settings=lugpi.InspectSettings(thumbnails=2), run_dir=tmp_path)
    assert [each.settings.split(", ")[-2] for each in compared.stores] == [f"images for {n} of 36 train texts" for n in (SMALL, LARGE)]
