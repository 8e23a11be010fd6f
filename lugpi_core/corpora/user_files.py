"""Columns of a CSV, JSONL or Parquet file or a Hugging Face dataset, as Python values that are not checked yet.

CSV is read with :mod:`csv` and JSONL with :mod:`json`, not with pandas: every cell keeps its value, and every error names its line.
"""

import csv
import io
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lugpi_core.corpora.archives import decoded
from lugpi_core.corpora.corpus import SPLIT_WORDS, SPLITS, Split
from lugpi_core.corpora.options import hub_name
from lugpi_core.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Some columns of one file or of one split on the hub.

    Attributes:
        where: the file or the hub name, for errors.
        source: which of the given files or hub splits it is; a single file is ``train``, whatever its rows become.
        names: all column names.
        columns: the requested columns that exist, row by row.
        classes: the names of whole-number labels, if they are known.
        license: as stated by the hub, or empty.
    """

    where: str
    source: Split
    names: tuple[str, ...]
    columns: dict[str, list[object]]
    classes: tuple[str, ...] | None = None
    license: str = ""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def file_table(path: Path, source: Split, wanted: Sequence[str]) -> Table:
    """Read some columns of a CSV, JSONL or Parquet file. Holds a CSV or JSONL file whole in memory, of Parquet these columns.

    Raises:
        InputError: the file is missing, unreadable or of another kind, or a line of it is malformed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(got=str(path), expected=f"a file ending in {', '.join(SUFFIXES)}", do="convert it to one of these")
    try:
        names, rows = _read(path, wanted)
    except OSError as error:
        raise InputError(got=f"{path} ({error.strerror or error})", expected="a readable file", do="check the path") from error
    return Table(where=str(path), source=source, names=names, columns=rows)


def text_table(path: Path, column: str) -> Table:
    """Read a text file as one column, one text per line; empty lines are skipped.

    Raises:
        InputError: the file is missing or is not UTF-8.
    """
    try:
        content = decoded(path.read_bytes(), where=str(path)).removeprefix("\ufeff")
    except OSError as error:
        raise InputError(got=f"{path} ({error.strerror or error})", expected="a readable file", do="check the path") from error
    lines: list[object] = [line.removesuffix("\r") for line in content.split("\n") if line.strip()]
    return Table(where=str(path), source="train", names=(column,), columns={column: lines})


def _read(path: Path, wanted: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[object]]]:
    match path.suffix.lower():
        case ".parquet":
            return _parquet(path, wanted)
        case ".jsonl":
            names, rows = _jsonl(path)
        case _:
            names, rows = _csv(path)
    return names, {name: [row.get(name) for row in rows] for name in wanted if name in names}


@contextmanager
def long_cells() -> Iterator[None]:
    """Let Python's CSV reader accept cells of any length inside the block; by default it rejects those above 128 KiB."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv(path: Path) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    text = decoded(path.read_bytes(), where=str(path)).removeprefix("\ufeff")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[dict[str, object]] = []
    try:
        with long_cells():
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise InputError(got=f"a column name twice in {path} ({', '.join(names)})", expected="each once", do="rename one")
            for cells in reader:
                if not cells:
                    continue  # an empty line
                if len(cells) != len(names):
                    got = f"{len(cells)} cells in the row that ends at line {reader.line_num} of {path}"
                    raise InputError(got=got, expected=f"{len(names)} as in its header", do='quote cells with commas or line breaks: "…"')
                rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        got = f"malformed CSV ({error}) at line {reader.line_num} of {path}"
        raise InputError(got=got, expected="cells separated by commas and quoted by double quotes", do="fix that line") from error
    return tuple(names), rows


def _jsonl(path: Path) -> tuple[tuple[str, ...], list[dict[str, object]]]:
    rows: list[dict[str, object]] = []
    # On "\n" only: other line separators are legal inside JSON strings.
    for number, line in enumerate(decoded(path.read_bytes(), where=str(path)).removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            got = f"malformed JSON ({error}) in line {number} of {path}"
            raise InputError(got=got, expected="one JSON object per line", do="fix that line") from error
        if not isinstance(row, dict):
            raise InputError(
                got=f"a {type(row).__name__} in line {number} of {path}", expected="one JSON object per line", do="fix that line"
            )
        rows.append(row)
    return tuple(dict.fromkeys(name for row in rows for name in row)), rows


def _parquet(path: Path, wanted: Sequence[str]) -> tuple[tuple[str, ...], dict[str, list[object]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = tuple(pyarrow.parquet.read_schema(path).names)
        table = pyarrow.parquet.read_table(path, columns=[name for name in wanted if name in names])
        return names, table.to_pydict()
    except pyarrow.ArrowException as error:
        raise InputError(got=f"{path} ({error})", expected="a complete Parquet file", do="write it again") from error


def hub_tables(dataset: str, wanted: Sequence[str], label_column: str) -> list[Table]:
    """Load the train, validation and test splits that ``hf:owner/name[/config][@revision]`` has. Runs no code from the hub.

    Raises:
        InputError: the name has another form, the hub cannot be reached or has no such dataset, or it has no train split.
    """
    hub = hub_name(dataset)
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        parts = datasets.load_dataset(f"{hub.owner}/{hub.name}", name=hub.config, revision=hub.revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            got=f"no {dataset} ({type(error).__name__}: {reason})",
            expected="a dataset on the Hugging Face hub or in its local cache",
            do="check the name and the network (HF_HUB_OFFLINE forbids it), or get its Parquet files elsewhere and pass them as --dataset",
        ) from error
    known = [name for name in parts if name in SPLIT_WORDS]
    tables = [_hub_table(f"{dataset}, split {name}", SPLIT_WORDS[name], parts[name], wanted, label_column) for name in known]
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


def _hub_table(where: str, source: Split, part: "Dataset", wanted: Sequence[str], label_column: str) -> Table:
    import datasets

    names = tuple(part.column_names)
    feature = part.features.get(label_column)
    return Table(
        where=where,
        source=source,
        names=names,
        columns=part.select_columns([name for name in wanted if name in names]).to_dict(),
        classes=tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None,
        license=part.info.license or "",
    )
