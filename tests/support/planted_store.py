"""Run folders with planted tokens, latents, failed rows and cut prompts, for the tests of ``featurize inspect``."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.plan.images import plan_images
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.manifest import ColumnSpec
from lugpi_core.store.shard import FLAG_NOT_FINITE
from lugpi_core.store.writer import ColumnWriter

SPLITS = ("train", "validation", "test")
SHARD_ROWS = 64
SUBSET = {"texts": 10, "of": 20, "by": "herding", "vectors": "tf-idf of the train prompts"}


# Inspects a planted store; returns the exit status, the figures of the last line, and what was printed for a person.
Run = Callable[..., tuple[int, dict[str, Any], str]]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A corpus in a table, and the run folder of its store."""

    table: Path
    run_dir: Path
    corpus: Corpus
    drawings: NDArray[np.int64]

    @property
    def drawing(self) -> NDArray[np.int64]:
        """The first image of each example."""
        return self.drawings[:, 0]

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of a command on both."""
        columns = ("--split-column", "split", "--prompt-column", "picture")
        return ("--dataset", str(self.table), *columns, "--run-dir", str(self.run_dir), "--device", "cpu")

    @property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image: that of the first example that has it."""
        label_M = np.full(self.drawings.max() + 1, -1)
        for example, drawings in reversed(list(zip(self.corpus.examples, self.drawings, strict=True))):
            label_M[drawings] = example.label
        return label_M


def write_table(store: Path, corpus: Corpus, without: tuple[int, ...], images_per_text: int = 1) -> None:
    """Write a table in which each example has images of its own, but for some that have none."""
    drawings = np.arange(len(corpus.examples) * images_per_text).reshape(-1, images_per_text)
    drawings[list(without)] = -1
    cut = np.zeros(len(drawings), bool)
    table = ExampleTable(drawings=drawings, prompt_cut=cut, corpus_fingerprint=corpus.fingerprint(), subset=SUBSET)
    write_example_table(store, corpus, table)


def plant(
    folder: Path,
    *,
    counts: tuple[int, int, int] = (90, 60, 30),
    classes: int = 3,
    prompts: Sequence[str] | None = None,
    cut: Sequence[int] = (),
    images_per_text: int = 1,
) -> Planted:
    """Write a corpus with labels a, b, c, a, b, c, … and its table of examples; there is no column yet.

    Args:
        folder: for both.
        counts: train, validation and test examples.
        classes: of the labels.
        prompts: of the examples; each has its own if None.
        cut: the examples whose prompt was cut.
        images_per_text: K.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
    pictures = prompts or [f"picture {n}" for n in range(len(splits))]
    rows = [(f"text {n}", "abcdefgh"[n % classes], split, pictures[n]) for n, split in enumerate(splits)]
    table = folder / "own.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "split", "picture"), *rows])
    corpus = load_corpus(table, CorpusSettings(split_column="split", prompt_column="picture"))
    plan = plan_images(corpus, seed=0, images_per_text=images_per_text)
    prompt_cut = np.isin(np.arange(len(rows)), list(cut))
    run_dir = folder / "run"
    (run_dir / "tokens").mkdir(parents=True)
    examples = ExampleTable(drawings=plan.images_of_example, prompt_cut=prompt_cut, corpus_fingerprint=corpus.fingerprint())
    write_example_table(run_dir / "tokens", corpus, examples)
    return Planted(table=table, run_dir=run_dir, corpus=corpus, drawings=plan.images_of_example)


def plant_column(
    planted: Planted,
    name: str,
    values: NDArray[Any],
    *,
    flagged: Sequence[int] = (),
    fingerprint: Mapping[str, Any] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> None:
    """Write a column of tokens [M, T, D], or of latents [M, C, h, w], whose flagged rows are zeros."""
    spec = ColumnSpec(
        name=name,
        what="latents" if name == LATENTS else "tokens",
        rows=len(values),
        row_shape=values.shape[1:],
        shard_rows=SHARD_ROWS,
        fingerprint=fingerprint or {"planted": name},
        made_by=made_by,
    )
    values = values.astype(np.float16)
    flags = np.zeros(len(values), np.uint8)
    values[list(flagged)], flags[list(flagged)] = 0, FLAG_NOT_FINITE
    column = ColumnWriter(planted.run_dir / "tokens", spec)
    for shard in range(spec.shards):
        writer = column.claim(shard)
        assert writer is not None
        rows = slice(writer.layout.first_row, writer.layout.first_row + writer.layout.rows)
        writer.write(0, values[rows], flags[rows])
        column.commit(shard, writer)


def telling_tokens(labels: NDArray[np.int64], *, strength: float, seed: int = 0, shape: tuple[int, int] = (5, 16)) -> NDArray[np.float32]:
    """Return tokens [M, T, D] of noise in which a direction for each class is added with ``strength``; 0 = no signal."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(labels.max() + 1, shape[1]))
    noise = rng.normal(size=(len(labels), *shape))
    return (noise + strength * directions[labels][:, None]).astype(np.float32)


def plant_unlabelled(
    planted: Planted,
    extra: Corpus,
    *,
    without: tuple[int, ...] = (),
    fingerprint: Mapping[str, Any] | None = None,
    images_per_text: int = 1,
    seed: int = 0,
) -> None:
    """Write the store of some unlabelled texts, of which these have no image, into the run of a store."""
    store = planted.run_dir / f"tokens-{extra.name}"
    shutil.rmtree(store, ignore_errors=True)
    more = replace(planted, run_dir=planted.run_dir / "elsewhere", corpus=extra)
    (more.run_dir / "tokens").mkdir(parents=True)
    write_table(more.run_dir / "tokens", extra, without, images_per_text)
    labels = np.arange(len(extra.examples) * images_per_text) // images_per_text % 3
    plant_column(more, "telling", telling_tokens(labels, strength=1.0, seed=seed), fingerprint=fingerprint)
    (more.run_dir / "tokens").rename(store)
    more.run_dir.rmdir()


def plant_latents(planted: Planted, *, by_class: bool, flagged: Sequence[int] = ()) -> None:
    """Write latents of the embedded generator's shape; similar within a class if ``by_class``."""
    from featurize.generate.generators import find_generator, generator_settings

    generator = find_generator("demo", generator_settings("demo", {}), half=False)
    rng, shape = np.random.default_rng(0), generator.latent_shape
    labels = planted.labels
    own, shared = rng.normal(size=(len(labels), *shape)), rng.normal(size=(labels.max() + 1, *shape))
    latents = 0.2 * own + shared[labels] if by_class else own
    fingerprint = {"generation": {"dtype": "float32", "generator": generator.fingerprint()}}
    plant_column(
        planted, LATENTS, latents, flagged=flagged, fingerprint=fingerprint, made_by={"generator": "demo", "encoders": ["clip-demo"]}
    )


def plant_telling(folder: Path) -> Planted:
    """Return a store with a column that predicts the class, ``telling``, and one that does not, ``silent``. Four prompts are cut; in
    ``telling``, two images failed and three test images are copies of train images. There are no latents."""
    planted = plant(folder, cut=(0, 1, 2, 95))
    tokens = telling_tokens(planted.labels, strength=1.5)
    tokens[150:153] = tokens[0:3]  # test images that are copies of train images
    plant_column(planted, "telling", tokens, flagged=(5, 100))
    plant_column(planted, "silent", telling_tokens(planted.labels, strength=0.0, seed=1))
    return planted


def without_tokens(planted: Planted) -> None:
    """Remove the columns of ``plant_telling``; only latents are left."""
    for name in ("telling", "silent"):
        shutil.rmtree(planted.run_dir / "tokens" / name)
