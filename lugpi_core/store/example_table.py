"""``examples.h5``: each example's images ("drawings"), label, split and id, and whether its prompt was cut.

Shapes: N examples, K images each, C classes.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError, number_of
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.prompt_figures import PromptFigures, figures_in
from lugpi_core.store.reader import columns_of
from lugpi_core.store.sealed_file import read_sealed, write_sealed

EXAMPLES = "examples.h5"
_AGAIN = "run featurize again"
_UNLABELLED_ROW = 255
# In place of a drawing's row, of an example for which none was drawn (featurize --subset).
NO_IMAGE = -1
# Corpus flags that say where files are, or name pictures: they decide neither texts nor labels.
_NOT_OF_TEXTS = ("data_dir", "images_from")


@dataclass(frozen=True, kw_only=True)
class ExampleTable:
    """One row per example, in the corpus's order.

    Attributes:
        drawings: int64 [N, K], the rows of the example's images in every column; -1 for all of an example that has none.
        prompt_cut: bool [N], True where the prompt was longer than the generator's text encoder reads.
        corpus_fingerprint: ``Corpus.fingerprint()`` of the table's corpus.
        prompt_figures: what of the texts the generator reads; None in a table of an earlier version.
        subset: which of the examples have images, where not all need have them (``--subset``); None = all have.
    """

    drawings: NDArray[np.int64]
    prompt_cut: NDArray[np.bool_]
    corpus_fingerprint: str
    prompt_figures: PromptFigures | None = None
    subset: Mapping[str, Any] | None = None

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Which examples have images, bool [N]."""
        has_image_N: NDArray[np.bool_] = self.drawings[:, 0] != NO_IMAGE
        return has_image_N

    @property
    def prompts_cut_share(self) -> float:
        """The share of the examples with images whose prompt was cut: one that has none has no prompt either."""
        return float(self.prompt_cut[self.has_image].mean()) if self.has_image.any() else 0.0

    @property
    def drawing(self) -> NDArray[np.int64]:
        """The row of each example's first image, int64 [N]."""
        return self.drawings[:, 0]


def subset_in_words(subset: Mapping[str, Any], without_image: int) -> str:
    """Return in a sentence which texts have images."""
    chosen = f"{subset['texts']:,} of {subset['of']:,} train texts of different prompts are chosen ({subset['by']})"
    return f"no image was drawn for {number_of(without_image, 'text{s}')} (--subset): {chosen}"


def write_example_table(store: Path, corpus: Corpus, table: ExampleTable) -> None:
    """Write ``examples.h5``, whole or not at all.

    ``split`` is 0 for train, 1 for validation, 2 for test. ``id`` is UTF-8 of fixed length; characters that UTF-8 cannot
    encode are escaped. ``drawing`` is the first image, -1 of an example that has none; if there are several, ``drawings`` [N, K] contains
    all of them. Only a corpus of another task than single-label has a ``target``: for multi-label uint8 [N, C] of 0 and 1, or of 255 in the
    row of an unlabelled text; for regression float32 [N], NaN = unlabelled.
    """
    columns = corpus.columns

    def build(file: Any) -> None:
        file.attrs["corpus"] = np.bytes_(corpus.name.encode())
        file.attrs["corpus_fingerprint"] = np.bytes_(table.corpus_fingerprint)
        file["drawing"] = table.drawing.astype("<i8")
        if table.drawings.shape[1] > 1:
            file["drawings"] = table.drawings.astype("<i8")
        file["label"] = columns.labels.astype("<i8")
        if corpus.task != "single-label":
            targets = corpus.targets()
            file["target"] = targets if corpus.task == "regression" else np.nan_to_num(targets, nan=_UNLABELLED_ROW).astype("u1")
        file["split"] = columns.splits
        file["id"] = np.array([id_.encode(errors="backslashreplace") for id_ in columns.ids], "S")
        file["prompt_cut"] = table.prompt_cut.astype("u1")
        file["label_name"] = np.array([name.encode(errors="backslashreplace") for name in corpus.label_names], "S")

    about: dict[str, Any] = {"corpus": corpus.name, "corpus_fingerprint": table.corpus_fingerprint}
    if table.prompt_figures is not None:
        about["prompt_figures"] = table.prompt_figures.to_json()
    if table.subset is not None:
        about["subset"] = dict(table.subset)
    write_sealed(store / EXAMPLES, about, build)


def read_example_table(store: Path, corpus: Corpus) -> ExampleTable:
    """Return the table of a store, checked against the corpus that it will be used with.

    Raises:
        InputError: there is no table, it is damaged, or it was written for another corpus, other splits or other labels.
    """
    about, arrays = _read(store)
    if about.get("corpus_fingerprint") != corpus.fingerprint():
        raise _other_corpus(store, str(about.get("corpus")), corpus)
    return _table(store, about, arrays, len(corpus.examples))


@dataclass(frozen=True, kw_only=True)
class StoredExamples:
    """What a store says of its examples without their corpus.

    Attributes:
        table: their images.
        corpus_name: the corpus's name.
        label_names: class k is ``label_names[k]``.
        labels: int64 [N], -1 = unlabelled, or not single-label.
        targets: ``Corpus.targets()``: the labels, or float32 [N, C] for multi-label, float32 [N] for regression; NaN = unlabelled.
        splits: [N] of "train", "validation" and "test".
        ids: [N].
    """

    table: ExampleTable
    corpus_name: str
    label_names: tuple[str, ...]
    labels: NDArray[np.int64]
    targets: NDArray[Any]
    splits: NDArray[np.str_]
    ids: NDArray[np.str_]


def read_stored_examples(store: Path) -> StoredExamples:
    """Return the examples of a store.

    Raises:
        InputError: there is no table, or it is damaged.
    """
    about, arrays = _read(store)
    count = len(np.atleast_1d(arrays.get("drawing", np.zeros(0))))
    table = _table(store, about, arrays, count)
    for name, kinds in (("label", "i"), ("split", "u"), ("id", "S")):
        _require(store, arrays, name, kinds=kinds, count=count, dimensions=1)
    label_names = arrays.get("label_name", np.zeros(0, "S1"))
    if label_names.dtype.kind != "S" or label_names.ndim != 1 or arrays["split"].max(initial=0) >= len(SPLITS):
        raise InputError(got=f"{store / EXAMPLES} with other splits or class names", expected="the table as lugpi wrote it", do=_AGAIN)
    labels = arrays["label"].astype(np.int64)
    target = arrays.get("target")
    if target is not None and (target.dtype.kind not in "uf" or target.shape not in ((count,), (count, len(label_names)))):
        raise InputError(got=f"{store / EXAMPLES} with a target for other examples", expected="the table as lugpi wrote it", do=_AGAIN)
    return StoredExamples(
        table=table,
        corpus_name=str(about.get("corpus")),
        label_names=tuple(name.decode(errors="replace") for name in label_names.tolist()),
        labels=labels,
        targets=labels if target is None else _targets(target),
        splits=np.array(SPLITS)[arrays["split"]],
        ids=np.array([name.decode(errors="replace") for name in arrays["id"].tolist()], np.str_),
    )


def _targets(stored: NDArray[Any]) -> NDArray[np.float32]:
    targets = stored.astype(np.float32)
    if stored.dtype.kind == "u":
        targets[stored == _UNLABELLED_ROW] = np.nan
    return targets


def _read(store: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if not (store / EXAMPLES).is_file():
        raise InputError(got=f"no token store in {store}", expected="one that featurize wrote", do="run python -m featurize first")
    about, arrays = read_sealed(store / EXAMPLES)
    # A single image per text needs no second array.
    arrays.setdefault("drawings", np.atleast_1d(arrays.get("drawing", np.zeros(0)))[:, None])
    return about, arrays


def _table(store: Path, about: dict[str, Any], arrays: dict[str, NDArray[Any]], count: int) -> ExampleTable:
    for name, dimensions in (("drawing", 1), ("prompt_cut", 1), ("drawings", 2)):
        _require(store, arrays, name, kinds="iu", count=count, dimensions=dimensions)
    drawings, subset = arrays["drawings"].astype(np.int64), about.get("subset")
    is_subset = isinstance(subset, Mapping)
    if drawings.shape[1] < 1 or int(drawings.min(initial=0)) < (NO_IMAGE if is_subset else 0):
        raise InputError(got=f"{store / EXAMPLES} with drawing {drawings.min(initial=0)}", expected="rows counted from 0", do=_AGAIN)
    if ((drawings == NO_IMAGE).any(axis=1) != (drawings == NO_IMAGE).all(axis=1)).any():
        got = f"{store / EXAMPLES}, in which some images of a text were drawn and some not"
        raise InputError(got=got, expected="all of a text, or none", do=_AGAIN)
    fingerprint = str(about.get("corpus_fingerprint"))
    return ExampleTable(
        drawings=drawings,
        prompt_cut=arrays["prompt_cut"].astype(bool),
        corpus_fingerprint=fingerprint,
        prompt_figures=figures_in(about.get("prompt_figures")),
        subset=subset if is_subset else None,
    )


def _require(store: Path, arrays: dict[str, NDArray[Any]], name: str, *, kinds: str, count: int, dimensions: int) -> None:
    column = arrays.get(name)
    if column is None or column.shape[:1] != (count,) or column.ndim != dimensions or column.dtype.kind not in kinds:
        got = f"{store / EXAMPLES} without a plain {name} for each example"
        raise InputError(got=got, expected="the table as lugpi wrote it", do=_AGAIN)


def _other_corpus(store: Path, found: str, corpus: Corpus) -> InputError:
    flags = _corpus_flags(store)
    same = "the corpus flags that featurize had" if flags is None else f"those that featurize had ({shlex.join(flags) or 'none'})"
    return InputError(
        got=f"a token store of {found!r} with other examples, prompts, labels or splits",
        expected=f"the store of {corpus.name!r} as it is loaded now",
        do=f"give here {same}, or, if the corpus has changed, run featurize again (existing images are kept)",
    )


def _corpus_flags(store: Path) -> list[str] | None:
    """Return the flags that say how the corpus of a store was read, as they are typed, without those that have their default; None if the
    store does not say."""
    for name in columns_of(store):
        try:
            made_by = load_manifest(store / name)[0].made_by
        except InputError:
            continue  # reported when the column is opened
        if made_by is not None and "data_dir" in made_by:
            defaults = {item.name: item.default for item in fields(CorpusSettings) if item.name not in _NOT_OF_TEXTS}
            given = [(key, made_by[key]) for key, default in defaults.items() if made_by.get(key, default) != default]
            return list(chain.from_iterable(_as_typed(key, value) for key, value in given))
    return None


def _as_typed(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}", str(value)]
