"""Batches: what is in them, that an epoch is a permutation, and which stores are refused."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lugpi_core.corpora import load_corpus
from lugpi_core.corpus_options import CorpusOptions
from lugpi_core.examples import Corpus
from train.data import TrainingData, batches_of_like_length, padded


def corpus_of(small_csv: Path, **flags: int) -> Corpus:
    return load_corpus(CorpusOptions(dataset=str(small_csv), split_column="split", **flags))


def data_of(small_csv: Path) -> TrainingData:
    corpus = corpus_of(small_csv)
    ids = [[7] * (2 + row % 5) for row in range(len(corpus.examples))]
    return TrainingData(corpus=corpus, device=torch.device("cpu"), ids=ids, pad_id=9)


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=8))
def test_padding_keeps_every_token_and_masks_the_rest(ids: list[list[int]]) -> None:
    batch = padded(ids, pad_id=0)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(ids), max(map(len, ids)))
    for row, one in enumerate(ids):
        assert batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist() == one
        assert batch["input_ids"][row, len(one) :].tolist() == [0] * (batch["input_ids"].shape[1] - len(one))


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_an_epoch_is_a_permutation_of_its_rows(small_csv: Path, rows: int, batch_size: int, seed: int) -> None:
    data = data_of(small_csv)
    seen = [batch["rows"] for batch in data.epoch(range(rows), batch_size, torch.Generator().manual_seed(seed))]
    assert sorted(torch.cat(seen).tolist()) == list(range(rows))
    assert sorted(map(len, seen), reverse=True)[:-1] == [batch_size] * (len(seen) - 1)


def test_batches_of_like_length_hold_little_padding() -> None:
    lengths = np.random.default_rng(0).lognormal(3.6, 0.5, 5000).astype(int).tolist()
    batches = batches_of_like_length(lengths, 14, torch.Generator().manual_seed(0))
    computed = sum(len(batch) * max(lengths[n] for n in batch) for batch in batches)
    assert sum(lengths) / computed > 0.9
    assert sorted(n for batch in batches for n in batch) == list(range(5000))
    assert [max(lengths[n] for n in batch) for batch in batches[:9]] != sorted(max(lengths[n] for n in batch) for batch in batches[:9])


def test_the_order_of_an_epoch_follows_its_seed(small_csv: Path) -> None:
    data = data_of(small_csv)

    def order(seed: int) -> list[int]:
        return torch.cat([batch["rows"] for batch in data.epoch(range(40), 7, torch.Generator().manual_seed(seed))]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_batch_holds_the_labels_and_texts_of_its_rows(small_csv: Path) -> None:
    data = data_of(small_csv)
    batch = data.batch([3, 0])
    assert batch["labels"].tolist() == [data.corpus.examples[3].label, data.corpus.examples[0].label]
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 2]
    assert "image_tokens" not in batch


def test_rows_by_length_are_the_same_rows(small_csv: Path) -> None:
    data = data_of(small_csv)
    assert data.ids is not None
    ordered = data.by_length(range(10, 30))
    assert sorted(ordered) == list(range(10, 30))
    lengths = [len(data.ids[row]) for row in ordered]
    assert lengths == sorted(lengths)
