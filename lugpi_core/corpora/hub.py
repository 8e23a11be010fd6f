"""Tables from the library ``datasets``: from the Hugging Face hub, or from a folder."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lugpi_core.corpora.corpus import SPLIT_WORDS, SPLITS, Split
from lugpi_core.corpora.options import hub_name
from lugpi_core.corpora.picture_columns import DatasetCells
from lugpi_core.corpora.pictures import PictureCell
from lugpi_core.corpora.tables import Table, class_names, columns_of
from lugpi_core.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

# What save_to_disk leaves in the folder of a data set with splits, and of one without.
_SAVED_SPLITS, _SAVED = "dataset_dict.json", "dataset_info.json"


def hub_tables(dataset: str, wanted: Sequence[str], label_column: str, pictures: str | None = None) -> list[Table]:
    """Load the train, validation and test splits that ``hf:owner/name[/config][@revision]`` has. Runs no code from the hub. The cells of a
    column of ``pictures`` are read when they are needed.

    Raises:
        InputError: the name has another form, the hub cannot be reached or has no such dataset, or it has no train split.
    """
    hub = hub_name(dataset)
    import datasets

    def load() -> "DatasetDict":
        return datasets.load_dataset(f"{hub.owner}/{hub.name}", name=hub.config, revision=hub.revision)

    parts = _loaded(
        load,
        got=f"no {dataset}",
        expected="a dataset on the Hugging Face hub or in its local cache",
        do="check the name and the network (HF_HUB_OFFLINE forbids it), or get its Parquet files elsewhere and pass them as --dataset",
    )
    return _tables(parts, dataset, wanted, label_column, _PictureColumn(pictures, None))


def folder_tables(folder: Path, wanted: Sequence[str], label_column: str, pictures: str | None = None) -> list[Table]:
    """Load a folder that ``save_to_disk`` wrote, or one of data files as ``load_dataset`` takes it; without splits, all of it is train. The
    cells of a column of ``pictures`` are read when they are needed.

    Raises:
        InputError: it is no such folder, or has no train split.
    """
    import datasets

    def load() -> "DatasetDict | Dataset":
        if (folder / _SAVED_SPLITS).is_file() or (folder / _SAVED).is_file():
            return datasets.load_from_disk(folder)
        return datasets.load_dataset(str(folder))

    parts = _loaded(
        load,
        got=f"no data set in the folder {folder}",
        expected="a folder that Dataset.save_to_disk wrote, or one of .csv, .json, .jsonl or .parquet files",
        do="check the path, or give one file",
    )
    return _tables(parts, str(folder), wanted, label_column, _PictureColumn(pictures, folder))


def _loaded(load: "Callable[[], DatasetDict | Dataset]", *, got: str, expected: str, do: str) -> "Mapping[str, Dataset]":
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        parts = load()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, datasets.exceptions.DatasetsError, HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(got=f"{got} ({type(error).__name__}: {reason})", expected=expected, do=do) from error
    return {"train": parts} if isinstance(parts, datasets.Dataset) else parts


class _PictureColumn(NamedTuple):
    name: str | None
    base: Path | None  # the folder to which paths are relative


def _tables(
    parts: "Mapping[str, Dataset]", dataset: str, wanted: Sequence[str], label_column: str, pictures: _PictureColumn
) -> list[Table]:
    known = [name for name in parts if name in SPLIT_WORDS]
    others = [name for name in wanted if name != pictures.name]
    tables = [_table(f"{dataset}, split {name}", SPLIT_WORDS[name], parts[name], others, label_column) for name in known]
    if pictures.name is not None:
        tables = [_with_pictures(table, parts[name], pictures.name, pictures.base) for table, name in zip(tables, known, strict=True)]
    unused = [name for name in parts if name not in SPLIT_WORDS]
    if unused:
        warnings.warn(f"{dataset}: split {', '.join(unused)} is not used", stacklevel=6)
    sources = [table.source for table in tables]
    if "train" not in sources or len(set(sources)) != len(sources):
        raise InputError(
            got=f"splits {', '.join(parts)} in {dataset}",
            expected="one train split, and at most one validation and one test split",
            do="pass its Parquet files as --dataset, --validation-file and --test-file",
        )
    return sorted(tables, key=lambda table: SPLITS.index(table.source))


def _table(where: str, source: Split, part: "Dataset", wanted: Sequence[str], label_column: str) -> Table:
    outer = [name for name in part.column_names if any(wish == name or wish.startswith(f"{name}.") for wish in wanted)]
    names, columns = columns_of(part.select_columns(outer).to_list(), wanted)
    return Table(
        where=where,
        source=source,
        names=tuple(dict.fromkeys([*part.column_names, *names])),
        columns=columns,
        classes=class_names(part.features.to_dict(), label_column),
        license=part.info.license or "",
    )


def _with_pictures(table: Table, part: "Dataset", column: str, base: Path | None) -> Table:
    if column.partition(".")[0] not in part.column_names:
        return table
    cells = DatasetCells(part, column, table.where, base)
    names = tuple(dict.fromkeys([*table.names, column]))
    return replace(table, names=names, columns={**table.columns, column: [PictureCell(cells, row) for row in range(len(part))]})
