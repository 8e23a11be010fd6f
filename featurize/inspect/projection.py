"""``python -m featurize reduce``: a column of narrower tokens, the principal components of those of another column of the same store.

The basis is fitted on the tokens of the train examples' images before the first row is written, kept beside the rows in ``pca.h5``, and
part of the column's fingerprint. A store of unlabelled texts takes the basis of the corpus's own store. Source: Jolliffe 2002, "Principal
component analysis", eq. 1.1.

Shapes: N tokens, T of an image, D their width, d components.
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError, number_of
from lugpi_core.fingerprint import digest_of_lists
from lugpi_core.store.example_table import NO_IMAGE, ExampleTable, read_example_table
from lugpi_core.store.layout import BASIS, CANDIDATES, LATENTS, PROMPT_TEXT
from lugpi_core.store.manifest import MANIFEST, ColumnSpec, components_of, is_empty, is_of_components, load_manifest
from lugpi_core.store.reader import ColumnReader, image_columns_of
from lugpi_core.store.sealed_file import read_sealed, write_sealed
from lugpi_core.store.shard import ShardWriter, flag_of
from lugpi_core.store.virtual_view import view_is_current, write_view
from lugpi_core.store.writer import ColumnWriter

MOST_IMAGES = 10_000
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Basis:
    """The first principal components of tokens.

    Attributes:
        mean_D: float32, of the tokens.
        axes_Dd: float32, orthonormal columns in descending order of variance; the largest component of each is positive.
        variance: the share of the tokens' variance that they keep.
        train_images: the hash of the store rows of the train examples' images when it was fitted; None where an earlier version did.
    """

    mean_D: NDArray[np.float32]
    axes_Dd: NDArray[np.float32]
    variance: float
    train_images: str | None = None

    def project(self, tokens_BTD: NDArray[np.float16]) -> NDArray[np.float16]:
        """Return the components of tokens, [B, T, d], computed in float32."""
        components_BTd: NDArray[np.float16] = ((tokens_BTD.astype(np.float32) - self.mean_D) @ self.axes_Dd).astype(np.float16)
        return components_BTd

    @cached_property
    def digest(self) -> str:
        """The hash of mean and axes."""
        values = np.concatenate([self.mean_D, self.axes_Dd.reshape(-1)]).astype("<f4")
        return digest_of_lists(*self.axes_Dd.shape, values.view("<i4").astype(np.int64))


def fit_basis(batches: Iterator[NDArray[np.float16]], width: int, components: int) -> Basis:
    """Return the first principal components of tokens, from their sums in float64. Memory: three matrices [D, D] and a batch.

    Args:
        batches: of tokens, [B, T, D] each.
        width: D.
        components: d.

    Raises:
        InputError: the tokens do not differ in so many directions.
    """
    count, sum_D, products_DD = 0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    for tokens_BTD in batches:
        tokens_ND = torch.from_numpy(tokens_BTD).reshape(-1, width).double()
        count += len(tokens_ND)
        sum_D += tokens_ND.sum(dim=0)
        products_DD += tokens_ND.T @ tokens_ND
    mean_D = sum_D / max(1, count)
    variances_D, vectors_DD = torch.linalg.eigh(products_DD / max(1, count) - mean_D[:, None] * mean_D)
    total = float(variances_D.clamp(min=0).sum())
    directions = int((variances_D > 1e-9 * total).sum()) if total > 0 else 0
    if directions < components:
        raise InputError(
            got=f"--pca {components} of tokens that differ in {directions} directions",
            expected="at most as many components",
            do="give fewer, or a corpus with more train texts",
        )
    axes_Dd = vectors_DD.flip(1)[:, :components]
    axes_Dd = axes_Dd * torch.where(axes_Dd.gather(0, axes_Dd.abs().argmax(dim=0, keepdim=True)) < 0, -1.0, 1.0)
    kept = float(variances_D.flip(0)[:components].sum()) / total
    return Basis(mean_D=mean_D.float().numpy(), axes_Dd=np.ascontiguousarray(axes_Dd.float().numpy()), variance=kept)


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """What was written.

    Attributes:
        column: the new column's name.
        rows: written by this call; 0 if it was complete.
        bytes_per_image: of the new column, and of the one it was projected from.
        variance: the share of the train tokens' variance that is kept.
    """

    column: str
    rows: int
    bytes_per_image: tuple[int, int]
    variance: float

    def sentence(self, store: Path) -> str:
        """Return it in one sentence."""
        done = "done" if self.rows else "already done"
        new, old = self.bytes_per_image
        return f"{done}: {store / self.column}, {new:,} bytes an image in place of {old:,}; {self.variance:.1%} of the tokens' variance"


def reduce_column(store: Path, corpus: Corpus, *, components: int, column: str | None = None, basis_from: Path | None = None) -> Reduction:
    """Write the principal components of a complete column as a column of its own, ``COLUMN-pcaN``. Rows that are there already stay, but
    those that had failed and are good by now are computed.

    Args:
        store: its folder.
        corpus: that the store was filled for.
        components: d, fewer than the tokens' width.
        column: which tokens; None = the only ones of images that are no components.
        basis_from: the store whose basis is taken, for texts without a train split; None = the basis is fitted on the train examples.

    Raises:
        InputError: no such column, rows that are missing, too many components, a basis of other train texts or none where it is taken
            from, or a shard that another process is writing.
    """
    table, source = read_example_table(store, corpus), _column_of(store, column)
    reader = ColumnReader(store, source)
    shape = reader.spec.row_shape
    if len(shape) != 2 or not 0 < components < shape[1]:
        raise InputError(
            got=f"--pca {components} of {source}, {' × '.join(map(str, shape))} an image",
            expected=f"1 to {shape[-1] - 1} components of tokens",
            do="give one of these",
        )
    name = f"{source}-pca{components}"
    basis = (
        _basis_of_train_images(store / name, reader, table, corpus, components)
        if basis_from is None
        else _basis_in(basis_from, store, name)
    )
    _refuse_rows_of_another_basis(store / name, basis)
    stated = reader.spec.fingerprint.get("encoder")
    encoder = {**(stated if isinstance(stated, Mapping) else {}), "name": name, "stored_as": "float16"}
    spec = replace(
        reader.spec,
        name=name,
        row_shape=(shape[0], components),
        dtype="float16",
        fingerprint={**reader.spec.fingerprint, "encoder": {**encoder, "pca": {"components": components, "basis": basis.digest}}},
        made_by=None,
    )
    written = _fill(store, spec, reader, basis)
    new, old = 2 * shape[0] * components, reader.row_bytes
    return Reduction(column=name, rows=written, bytes_per_image=(new, old), variance=basis.variance)


def _column_of(store: Path, column: str | None) -> str:
    is_of_images = column not in (PROMPT_TEXT, CANDIDATES, LATENTS)
    if column is not None and is_of_images:
        return column
    there = [name for name in image_columns_of(store) if not is_of_components(load_manifest(store / name)[0])]
    if not is_of_images:
        raise InputError(
            got=f"--column {column}",
            expected="a column of image tokens",
            do=f"choose another, such as {there[0]}" if there else "run python -m featurize with an encoder first",
        )
    if len(there) == 1:
        return there[0]
    raise InputError(
        got=f"{number_of(len(there), 'column{s}')} of image tokens in {store}",
        expected="one that is meant",
        do=f"name it with --column: {', '.join(there)}" if there else "run python -m featurize with an encoder first",
    )


def _basis_of_train_images(folder: Path, reader: ColumnReader, table: ExampleTable, corpus: Corpus, components: int) -> Basis:
    """Return the basis of a column of components, fitted on the train examples' images unless it is there."""
    rows = np.unique(table.drawings[corpus.rows("train")])
    # Of all train images, not of those that are fitted: which of them failed may change, and the basis stays.
    train_images = digest_of_lists(rows[rows != NO_IMAGE])
    basis = _read_basis(folder)
    if basis is not None:
        if basis.train_images not in (None, train_images):
            raise InputError(
                got=f"{folder}, components fitted on other train texts",
                expected="a basis of the images of the corpus's train texts as it is loaded now",
                do=f"remove the folder {folder} and run python -m featurize reduce again",
            )
        return basis
    good = rows[~np.isin(rows, [NO_IMAGE, *reader.flagged])]
    chosen = np.sort(np.random.default_rng(0).permutation(good)[:MOST_IMAGES])
    return replace(fit_basis(_finite_batches(reader, chosen), reader.spec.row_shape[1], components), train_images=train_images)


def _basis_in(elsewhere: Path, store: Path, name: str) -> Basis:
    """Return the basis of a column of components of a store that took it, or takes it, from another one."""
    basis = _read_basis(store / name) or _read_basis(elsewhere / name)
    if basis is None:
        raise InputError(
            got=f"no {name} in {elsewhere}, the store of the corpus",
            expected="its basis, which a student's teacher has read",
            do="run python -m featurize reduce for the corpus first, without --unlabelled",
        )
    return basis


def _refuse_rows_of_another_basis(folder: Path, basis: Basis) -> None:
    """Raise InputError if a column that has lost its basis has rows of another one, such as of failed images that were repaired since."""
    if not (folder / MANIFEST).is_file() or is_empty(folder) or (folder / BASIS).is_file():
        return
    reduced = components_of(load_manifest(folder)[0])
    if reduced is not None and reduced.get("basis") != basis.digest:
        raise InputError(
            got=f"another basis than its rows have for {folder}, which has lost its own",
            expected="rows of one basis",
            do=f"remove the folder {folder} and run python -m featurize reduce again",
        )


def _fill(store: Path, spec: ColumnSpec, reader: ColumnReader, basis: Basis) -> int:
    """Write the rows that are missing; return how many."""
    folder, written = store / spec.name, 0
    writer = ColumnWriter(store, spec)
    if not (folder / BASIS).exists():
        _write_basis(folder, basis)
    for shard in range(spec.shards):
        healed = _healed(writer, reader, shard)
        if healed and not writer.reopen(shard, writer.records[shard]):
            continue
        file = writer.claim(shard)
        if file is None:
            continue
        with closing(file):
            file.forget(healed)
            written += _write_rows(file, reader, basis)
            writer.commit(shard, file)
    writer.finish()
    if not view_is_current(store):
        write_view(store)
    return written


def _healed(writer: ColumnWriter, reader: ColumnReader, shard: int) -> list[int]:
    """Return the local rows of a final shard that failed when it was written, and are good in the column it was projected from."""
    record: dict[str, Any] = writer.records.get(shard, {})
    return [int(row) for row in record.get("flagged", {}) if record["first_row"] + int(row) not in reader.flagged]


def _write_rows(file: ShardWriter, reader: ColumnReader, basis: Basis) -> int:
    first, rows = file.layout.first_row, np.flatnonzero(~file.valid)
    runs = [run for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(run)]
    size = max(1, _CHUNK_BYTES // reader.row_bytes)
    for part in (run[start : start + size] for run in runs for start in range(0, len(run), size)):
        flags_B = np.array([flag_of(reader.flagged[row]) if row in reader.flagged else 0 for row in (part + first).tolist()], np.uint8)
        with np.errstate(over="ignore", invalid="ignore"):  # of tokens that are not finite their components are not either
            values_BTd = basis.project(reader.gather(part + first))
        values_BTd[flags_B > 0] = 0
        file.write(int(part[0]), values_BTd, flags_B)
    return len(rows)


def _finite_batches(reader: ColumnReader, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float16]]:
    """Yield the tokens of images, but those with a token that is not finite, as another program may have stored without a flag."""
    size = max(1, _CHUNK_BYTES // reader.row_bytes)
    for tokens_BTD in reader.batches([rows[start : start + size] for start in range(0, len(rows), size)]):
        yield tokens_BTD[np.isfinite(tokens_BTD).all(axis=(1, 2))]


def _read_basis(folder: Path) -> Basis | None:
    if not (folder / BASIS).is_file():
        return None
    try:
        about, arrays = read_sealed(folder / BASIS)
        return Basis(
            mean_D=arrays["mean"], axes_Dd=arrays["axes"], variance=float(about["variance"]), train_images=about.get("train_images")
        )
    except (InputError, KeyError, TypeError, ValueError):
        raise InputError(
            got=f"{folder / BASIS}, which is damaged",
            expected="mean and axes as lugpi wrote them",
            do="remove it and run python -m featurize reduce again for its store",
        ) from None


def _write_basis(folder: Path, basis: Basis) -> None:
    def build(file: Any) -> None:
        file["mean"], file["axes"] = basis.mean_D.astype("<f4"), basis.axes_Dd.astype("<f4")

    of_images = {} if basis.train_images is None else {"train_images": basis.train_images}
    write_sealed(folder / BASIS, {"variance": basis.variance, **of_images}, build)
