"""``examples.h5``: which drawing belongs to which example, with its label, split, id and whether its prompt was cut."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.examples import SPLITS, Corpus
from lugpi_core.files import whole_file
from lugpi_core.shard import plain_offset

EXAMPLES = "examples.h5"


@dataclass(frozen=True, kw_only=True)
class ExampleTable:
    """One row an example, in the corpus's order.

    Attributes:
        drawing: int64 [N], the row of the example's drawing in every column.
        prompt_cut: bool [N], True where the prompt was longer than the generator's text encoder reads.
        corpus_fingerprint: ``Corpus.fingerprint()`` of the corpus the table was made from.
    """

    drawing: NDArray[np.int64]
    prompt_cut: NDArray[np.bool_]
    corpus_fingerprint: str


def write_example_table(store: Path, corpus: Corpus, table: ExampleTable) -> None:
    """Write ``examples.h5``, whole or not at all. ``split`` counts 0 train, 1 validation, 2 test; ``id`` is UTF-8 of fixed length."""
    import h5py

    split_numbers = {split: number for number, split in enumerate(SPLITS)}
    with whole_file(store / EXAMPLES) as partial, h5py.File(partial, "w") as file:
        file.attrs["corpus"] = np.bytes_(corpus.name.encode())
        file.attrs["corpus_fingerprint"] = np.bytes_(table.corpus_fingerprint)
        file["drawing"] = table.drawing.astype("<i8")
        file["label"] = np.array([example.label for example in corpus.examples], "<i8")
        file["split"] = np.array([split_numbers[example.split] for example in corpus.examples], "u1")
        file["id"] = np.array([example.id.encode() for example in corpus.examples], "S")
        file["prompt_cut"] = table.prompt_cut.astype("u1")
        file["label_name"] = np.array([name.encode() for name in corpus.label_names], "S")


def read_example_table(store: Path, corpus: Corpus) -> ExampleTable:
    """Return the table of a store, checked against the corpus it is to be used with.

    Raises:
        InputError: there is no table, or it was made for another corpus, other splits or other labels.
    """
    import h5py

    path = store / EXAMPLES
    if not path.is_file():
        raise InputError(got=f"no token store in {store}", expected="one that featurize made", do="run python -m featurize first")
    try:
        with h5py.File(path, "r", locking=False) as file:
            name = bytes(file.attrs["corpus"]).decode()
            fingerprint = bytes(file.attrs["corpus_fingerprint"]).decode()
            if fingerprint != corpus.fingerprint():
                raise _other_corpus(name, corpus)
            for dataset, dtype in (("drawing", "<i8"), ("prompt_cut", "u1")):
                plain_offset(file, dataset, (len(corpus.examples),), np.dtype(dtype))
            drawing, prompt_cut = file["drawing"][:], file["prompt_cut"][:].astype(bool)
    except InputError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(got=f"{path} ({error})", expected="the table as lugpi wrote it", do="run featurize again") from None
    return ExampleTable(drawing=drawing, prompt_cut=prompt_cut, corpus_fingerprint=fingerprint)


def _other_corpus(found: str, corpus: Corpus) -> InputError:
    return InputError(
        got=f"a token store of {found!r} with other examples, labels or splits",
        expected=f"the store of {corpus.name!r} as it is loaded now",
        do="run featurize again with the same corpus flags (drawings that are there are kept)",
    )
