"""A small corpus of every task, with a store of planted image tokens, for trainings of a few steps."""

from pathlib import Path
from typing import Any

import numpy as np

from featurize.plan.images import plan_images
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.writer import ColumnWriter
from tests.support.topics import topic_texts

SPLITS = ["train"] * 36 + ["validation"] * 12 + ["test"] * 12
COLUMN = "planted"
WIDTH = 16


def multi_label_corpus(**more: Any) -> Corpus:
    """60 texts of three topics: each has its topic, every second text "even" as well, every fifth nothing at all."""
    texts, topics = zip(*topic_texts(60), strict=True)
    labels = [[] if n % 5 == 0 else [topic, *(["even"] if n % 2 == 0 else [])] for n, topic in enumerate(topics)]
    return Corpus.from_texts(texts, labels, splits=SPLITS, name="several", task="multi-label", **more)


def regression_corpus(*, scale: float = 1.0, **more: Any) -> Corpus:
    """60 texts with a number by their topic and a little by their row."""
    texts, topics = zip(*topic_texts(60), strict=True)
    order = sorted(set(topics))
    numbers = [scale * (2 + order.index(topic) + 0.01 * n) for n, topic in enumerate(topics)]
    return Corpus.from_texts(texts, numbers, splits=SPLITS, name="numbers", task="regression", **more)


def pairs_corpus() -> Corpus:
    """60 pairs of texts, of one topic or of two."""
    texts, topics = zip(*topic_texts(60), strict=True)
    others = [texts[(n + (3 if n % 2 else 1)) % 60] for n in range(60)]
    labels = ["same" if topics[n] == topics[(n + (3 if n % 2 else 1)) % 60] else "different" for n in range(60)]
    return Corpus.from_texts(texts, labels, pairs=others, splits=SPLITS, name="pairs")


def plant_tokens(corpus: Corpus, run: Path) -> Path:
    """Write the store of a corpus in a run's folder, one column of random image tokens [3, 16]; return it."""
    store = run / "tokens"
    store.mkdir(parents=True)
    plan = plan_images(corpus, seed=0, images_per_text=1)
    examples = ExampleTable(
        drawings=plan.images_of_example,
        prompt_cut=np.zeros(len(corpus.examples), bool),
        corpus_fingerprint=corpus.fingerprint(),
    )
    write_example_table(store, corpus, examples)
    rows = int(plan.images_of_example.max()) + 1
    spec = ColumnSpec(name=COLUMN, what="tokens", rows=rows, row_shape=(3, WIDTH), shard_rows=64, fingerprint={"planted": COLUMN})
    column = ColumnWriter(store, spec)
    writer = column.claim(0)
    assert writer is not None
    writer.write(0, np.random.default_rng(0).normal(size=(rows, 3, WIDTH)).astype(np.float16), np.zeros(rows, np.uint8))
    column.commit(0, writer)
    return store
