"""``examples.h5``: which drawings belong to which example, with its label, split, id and whether its prompt was cut.

Shapes: N examples, K drawings each.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import SPLITS, Corpus
from lugpi_core.errors import InputError
from lugpi_core.store.sealed_file import read_sealed, write_sealed

EXAMPLES = "examples.h5"
_AGAIN = "run featurize again"


@dataclass(frozen=True, kw_only=True)
class ExampleTable:
    """One row an example, in the corpus's order.

    Attributes:
        drawings: int64 [N, K], the rows of the example's drawings in every column.
        prompt_cut: bool [N], True where the prompt was longer than the generator's text encoder reads.
        corpus_fingerprint: ``Corpus.fingerprint()`` of the corpus the table was made from.
    """

    drawings: NDArray[np.int64]
    prompt_cut: NDArray[np.bool_]
    corpus_fingerprint: str

    @property
    def drawing(self) -> NDArray[np.int64]:
        """The row of each example's first drawing, int64 [N]."""
        return self.drawings[:, 0]


def write_example_table(store: Path, corpus: Corpus, table: ExampleTable) -> None:
    """Write ``examples.h5``, whole or not at all. ``split`` counts 0 train, 1 validation, 2 test; ``id`` is UTF-8 of fixed length, what
    UTF-8 cannot say in it escaped. ``drawing`` is the first drawing; where there are several, ``drawings`` [N, K] are all of them."""
    split_numbers = {split: number for number, split in enumerate(SPLITS)}

    def build(file: Any) -> None:
        file.attrs["corpus"] = np.bytes_(corpus.name.encode())
        file.attrs["corpus_fingerprint"] = np.bytes_(table.corpus_fingerprint)
        file["drawing"] = table.drawing.astype("<i8")
        if table.drawings.shape[1] > 1:
            file["drawings"] = table.drawings.astype("<i8")
        file["label"] = np.array([example.label for example in corpus.examples], "<i8")
        file["split"] = np.array([split_numbers[example.split] for example in corpus.examples], "u1")
        file["id"] = np.array([example.id.encode(errors="backslashreplace") for example in corpus.examples], "S")
        file["prompt_cut"] = table.prompt_cut.astype("u1")
        file["label_name"] = np.array([name.encode(errors="backslashreplace") for name in corpus.label_names], "S")

    write_sealed(store / EXAMPLES, {"corpus": corpus.name, "corpus_fingerprint": table.corpus_fingerprint}, build)


def read_example_table(store: Path, corpus: Corpus) -> ExampleTable:
    """Return the table of a store, checked against the corpus it is to be used with.

    Raises:
        InputError: there is no table, it is damaged, or it was made for another corpus, other splits or other labels.
    """
    path = store / EXAMPLES
    if not path.is_file():
        raise InputError(got=f"no token store in {store}", expected="one that featurize made", do="run python -m featurize first")
    about, arrays = read_sealed(path)
    if about.get("corpus_fingerprint") != corpus.fingerprint():
        raise _other_corpus(str(about.get("corpus")), corpus)
    arrays.setdefault("drawings", np.atleast_1d(arrays.get("drawing", np.zeros(0)))[:, None])  # one an example needs no second table
    for name, dimensions in (("drawing", 1), ("prompt_cut", 1), ("drawings", 2)):
        column = arrays.get(name)
        if column is None or column.shape[:1] != (len(corpus.examples),) or column.ndim != dimensions or column.dtype.kind not in "iu":
            raise InputError(got=f"{path} without a plain {name} for each example", expected="the table as lugpi wrote it", do=_AGAIN)
    drawings, prompt_cut = arrays["drawings"].astype(np.int64), arrays["prompt_cut"].astype(bool)
    if drawings.shape[1] < 1 or int(drawings.min()) < 0:
        raise InputError(got=f"{path} with drawing {drawings.min(initial=0)}", expected="rows counted from 0", do=_AGAIN)
    return ExampleTable(drawings=drawings, prompt_cut=prompt_cut, corpus_fingerprint=corpus.fingerprint())


def _other_corpus(found: str, corpus: Corpus) -> InputError:
    return InputError(
        got=f"a token store of {found!r} with other examples, labels or splits",
        expected=f"the store of {corpus.name!r} as it is loaded now",
        do="run featurize again with the same corpus flags (drawings that are there are kept)",
    )
