"""``TokenStore``: read the tokens of a finished store by example, from Python, without the corpus.

Shapes: N examples, K images per text, T tokens of width D.
"""

import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lugpi_core.corpora.corpus import split_named
from lugpi_core.errors import InputError
from lugpi_core.fields import require_type
from lugpi_core.store.example_table import NO_IMAGE, read_stored_examples
from lugpi_core.store.layout import CANDIDATES, LATENTS
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader, columns_of

Index = int | slice | Sequence[int] | NDArray[Any]


class TokenColumn:
    """The rows of one column, by example: float16, whatever they are stored as.

    ``column[7]`` is [T, D], ``column[2:5]``, ``column[[0, 7, 42]]`` and ``column[store.splits == "train"]`` are [n, T, D]. An index works
    as in NumPy: ints, slices, lists, integer arrays of any shape and boolean masks of length N; IndexError is raised as there. If all
    images of a text are read, K stands before T: [n, K, T, D]. Rows are copied from the page cache; none are kept. Those of an example for
    which no image was drawn are zeros.

    Attributes:
        reader: the column's rows by image instead of by example.
        rows: int64 [N], or [N, K]: which row of the column each image is; -1 = none was drawn.
    """

    def __init__(self, reader: ColumnReader, rows: NDArray[np.int64]) -> None:
        self.reader = reader
        self.rows = rows

    @property
    def name(self) -> str:
        """Such as ``clip-vit-b32``."""
        return self.reader.spec.name

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, T, D), or (N, K, T, D)."""
        return (*self.rows.shape, *self.reader.spec.row_shape)

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which images could not be generated or encoded, bool [N] or [N, K]. Their rows are zeros until they are repaired."""
        return np.isin(self.rows, list(self.reader.flagged))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> NDArray[np.float16]:
        rows = self._rows_of(index)
        return self._with_blanks(rows, self.reader.gather(np.maximum(rows.reshape(-1), 0)))

    def torch(self, index: Index) -> torch.Tensor:
        """Return the same rows as a float16 tensor on the CPU."""
        return torch.from_numpy(self[index])

    def batches(self, batches: Iterable[Index]) -> Iterator[NDArray[np.float16]]:
        """Yield the rows of each batch of examples, while those of the next batches, up to 32 MB, are read from the disk.

        ``batches`` may be a ``torch.utils.data.BatchSampler``; each is an index as for ``column[…]``.
        """
        rows = [self._rows_of(batch) for batch in batches]
        for batch, stored in zip(rows, self.reader.batches([np.maximum(batch.reshape(-1), 0) for batch in rows]), strict=True):
            yield self._with_blanks(batch, stored)

    def __repr__(self) -> str:
        return f"TokenColumn({self.name!r}, {' × '.join(map(str, self.shape))})"

    def _with_blanks(self, rows: NDArray[np.int64], stored: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return what was read for some rows in their shape, with zeros for those that are no row."""
        if (is_none := rows.reshape(-1) == NO_IMAGE).any():
            stored[is_none] = 0
        return stored.reshape(*rows.shape, *self.reader.spec.row_shape)

    def _rows_of(self, index: Index) -> NDArray[np.int64]:
        if isinstance(index, tuple):
            raise IndexError("a column is indexed by example only: column[rows][:, 0], not column[rows, 0]")
        rows: NDArray[np.int64] = np.asarray(self.rows[index])
        return rows


class TokenStore(Dataset[Any]):
    """A finished token store, by example, in the corpus's order; also a map-style ``torch.utils.data.Dataset``.

    ``store["clip-vit-b32"]`` is a ``TokenColumn``, and so is ``store["latents"]`` where latents are kept. ``store[7]`` is a dict of what
    example 7 has: a float16 tensor [T, D] under the name of each column in ``columns``, and ``label``, ``split`` and ``id``, and ``target``
    if the corpus is multi-label or regression (a float32 tensor). A DataLoader
    takes the store as it is, with any number of workers: it holds paths and memory maps, no rows and no HDF5 handles, and each process that
    it is forked or pickled to maps the files itself.

    Rows that failed are zeros; ``store[column].failed`` says which. Leave them out of a training of your own:
    ``Subset(store, np.flatnonzero(~store[column].failed))``.

    Args:
        path: the ``tokens`` folder of a run.
        columns: the columns of tokens to open, or the name of one. By default all complete ones; there must be one, unless the store
            contains nothing but complete latents.
        image: which of the K images per text to read, from 0; None reads all of them, and tokens are [K, T, D].
        check_content: compare every shard with its hash on opening (about 7 GB/s).

    Attributes:
        path: the folder.
        columns: names of the opened columns.
        labels: int64 [N], each example's class, or -1 if it is unlabelled or the corpus is not single-label.
        targets: what a model of the corpus learns, ``Corpus.targets()``: the labels; or float32 [N, classes] of 0 and 1 for multi-label,
            float32 [N] for regression.
        label_names: class k is ``label_names[k]``; empty for unlabelled texts.
        splits: [N] of "train", "validation" and "test".
        ids: [N], the corpus's ids.
        drawings: int64 [N, K], which row of every column each image is; -1 = none was drawn.
        has_image: bool [N], which examples have images: all, except after ``featurize --subset``. The tokens of others are zeros.
        prompt_cut: bool [N], where the prompt was longer than the generator's text encoder reads.
        corpus_name: the name of the corpus that the store was filled for.
        corpus_fingerprint: its ``Corpus.fingerprint()``.

    Raises:
        InputError: no store, an unfinished one, no such column, missing rows, a damaged file, or ``image`` is not below K.
    """

    def __init__(
        self, path: str | Path, *, columns: str | Sequence[str] | None = None, image: int | None = 0, check_content: bool = True
    ) -> None:
        self.path = Path(path)
        examples = read_stored_examples(self.path)
        self.labels, self.targets, self.label_names = examples.labels, examples.targets, examples.label_names
        self.splits, self.ids = examples.splits, examples.ids
        self.drawings, self.prompt_cut = examples.table.drawings, examples.table.prompt_cut
        self.has_image = examples.table.has_image
        self.corpus_name, self.corpus_fingerprint = examples.corpus_name, examples.table.corpus_fingerprint
        require_type("image", image, int, NoneType)
        if image is not None and not 0 <= image < self.images_per_text:
            got = f"image={image} of {self.path} with {self.images_per_text} images per text"
            raise InputError(got=got, expected=f"0 to {self.images_per_text - 1}, or None for all", do="choose another image")
        self.image = image
        self._check_content = check_content
        self._opened: dict[str, TokenColumn] = {}
        self.columns = (columns,) if isinstance(columns, str) else tuple(self._complete() if columns is None else columns)
        for name in self.columns:
            self._open(name)

    @property
    def images_per_text(self) -> int:
        """K."""
        return int(self.drawings.shape[1])

    def __fspath__(self) -> str:
        """Return the folder, so that a store can stand where its path is asked for."""
        return str(self.path)

    def rows(self, split: str) -> list[int]:
        """Return the numbers of the examples of a split, ascending, for instance for ``torch.utils.data.Subset``; ``val``, ``valid`` and
        ``dev`` mean validation.

        Raises:
            InputError: there is no such split.
        """
        return [int(row) for row in np.flatnonzero(self.splits == split_named(split))]

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, key: str) -> TokenColumn: ...

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    def __getitem__(self, key: str | int) -> TokenColumn | dict[str, Any]:
        """Return a column by its name or an example by its number.

        Raises:
            InputError: no such column, or one with missing rows or damage.
            IndexError: no such example.
            TypeError: neither a name nor a number.
        """
        if isinstance(key, str):
            return self._open(key)
        try:
            example = operator.index(key)
        except TypeError as error:
            text = (
                f"a store takes one example's number or a column's name, not a {type(key).__name__}; store[column][…] takes several numbers"
            )
            raise TypeError(text) from error
        return self.__getitems__([example])[0]

    def __getitems__(self, examples: Sequence[int]) -> list[dict[str, Any]]:
        """Return several examples, each column being read once; a DataLoader fetches its batches by this."""
        tokens = {name: self._opened[name].torch(np.asarray(examples, np.int64)) for name in self.columns}
        return [
            {
                **{name: rows[n] for name, rows in tokens.items()},
                "label": int(self.labels[example]),
                "split": str(self.splits[example]),
                "id": str(self.ids[example]),
                **({"target": torch.tensor(self.targets[example])} if self.targets.dtype == np.float32 else {}),
            }
            for n, example in enumerate(examples)
        ]

    def __repr__(self) -> str:
        return f"TokenStore({str(self.path)!r}, {len(self):,} examples, columns {', '.join(self.columns) or 'none'})"

    def _complete(self) -> list[str]:
        columns = {name: load_manifest(self.path / name) for name in columns_of(self.path)}
        complete = [name for name, (spec, records) in columns.items() if len(records) == spec.shards]
        tokens = [name for name in columns if name not in (LATENTS, CANDIDATES)]
        if not set(complete) & set(tokens or columns):
            counts = [
                f"{sum(record['rows'] for record in records.values()):,} of {spec.rows:,} rows of {name}"
                for name, (spec, records) in columns.items()
            ]
            raise InputError(
                got=f"the unfinished store {self.path} with {', '.join(counts) or 'no rows'}",
                expected="at least one complete column of tokens",
                do="run the same featurize command again; it generates what is missing",
            )
        return [name for name in complete if name not in (LATENTS, CANDIDATES)]

    def _open(self, name: str) -> TokenColumn:
        if name not in self._opened:
            reader = ColumnReader(self.path, name, check_content=self._check_content)
            needed = int(self.drawings.max(initial=-1)) + 1
            if needed > len(reader):
                got = f"{self.path / name} with {len(reader):,} rows"
                raise InputError(got=got, expected=f"{needed:,} or more", do="make the column again for this corpus")
            self._opened[name] = TokenColumn(reader, self.drawings if self.image is None else self.drawings[:, self.image])
        return self._opened[name]
