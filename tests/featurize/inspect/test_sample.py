"""Which examples are inspected, and how their tokens are pooled."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featurize.inspect import sample
from featurize.inspect.sample import pooled_tokens, prompts_cut, stratified
from lugpi_core.store.example_table import NO_IMAGE, read_example_table
from lugpi_core.store.reader import ColumnReader
from tests.support.planted_store import Planted, plant, plant_column, plant_telling, telling_tokens


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """A store with a column that predicts the class and one that does not."""
    return plant_telling(tmp_path_factory.mktemp("planted"))


def test_a_sample_has_every_class_in_proportion_and_follows_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [800, 190, 10])
    rows = np.arange(1000)
    first, again, other = (stratified(rows, labels, 100, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.bincount(labels[first]).tolist() == [80, 19, 1]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(stratified(rows, labels, 1000, np.random.default_rng(0)), rows)
    assert len(stratified(rows, np.arange(1000), 100, np.random.default_rng(0))) == 100  # more classes than rows


def test_tokens_are_pooled_by_the_formula_in_chunks(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ColumnReader(planted.run_dir / "tokens", "telling")
    drawings = np.array([0, 5, 90, 179])
    tokens = reader.gather(drawings).astype(np.float64)
    monkeypatch.setattr(sample, "_CHUNK_BYTES", 2 * 5 * 16 * 2)  # two rows
    pooled = pooled_tokens(reader, drawings, 180)
    np.testing.assert_allclose(pooled.features_MF, np.concatenate([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1), atol=1e-3)
    assert pooled.good_M.tolist() == [True, False, True, True]
    assert pooled.width == 16


def test_texts_that_have_no_prompt_do_not_count_among_those_whose_prompt_was_cut(planted: Planted) -> None:
    table, train = read_example_table(planted.run_dir / "tokens", planted.corpus), np.array(planted.corpus.rows("train"))
    drawings, cut = table.drawings.copy(), np.zeros(len(table.drawings), bool)
    drawings[train[4:]], cut[train[:3]] = NO_IMAGE, True
    some = replace(table, drawings=drawings, prompt_cut=cut)
    with_image = len(drawings) - len(train) + 4
    found = prompts_cut(some, planted.corpus)
    assert (found.count, found.share, found.share_by_split["train"]) == (3, 3 / with_image, 3 / 4)
    assert some.prompts_cut_share == 3 / with_image
    assert prompts_cut(replace(some, drawings=np.full_like(drawings, NO_IMAGE)), planted.corpus).share == 0


def test_registers_are_no_patches(planted: Planted) -> None:
    reader = ColumnReader(planted.run_dir / "tokens", "telling")
    encoder = {"prefix": 3}
    reader.spec = replace(reader.spec, fingerprint={**reader.spec.fingerprint, "encoder": encoder})
    tokens = reader.gather(np.array([0, 90])).astype(np.float64)
    expected = np.concatenate([tokens[:, 0], tokens[:, 3:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(pooled_tokens(reader, np.array([0, 90]), 180).features_MF, expected, atol=1e-3)


def test_a_column_of_class_tokens_alone_has_no_patches(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    tokens = telling_tokens(planted.labels, strength=1.0, shape=(1, 8))
    plant_column(planted, "class", tokens)
    pooled = pooled_tokens(ColumnReader(planted.run_dir / "tokens", "class"), np.arange(180), 180)
    np.testing.assert_array_equal(pooled.features_MF, tokens[:, 0].astype(np.float16))


def test_pooling_takes_little_memory_for_any_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant(tmp_path, counts=(600, 30, 30))
    plant_column(planted, "wide", np.ones((660, 50, 256), np.float16))
    reader = ColumnReader(planted.run_dir / "tokens", "wide")
    chunk = 256 << 10
    monkeypatch.setattr(sample, "_CHUNK_BYTES", chunk)
    pooled_tokens(reader, np.arange(4), 660)  # maps the file, once
    tracemalloc.start()
    pooled = pooled_tokens(reader, np.arange(660), 660)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 660 * 50 * 256 * 2 > 16e6
    assert peak < 2 * pooled.features_MF.nbytes + 4 * chunk
