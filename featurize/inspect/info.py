"""``python -m featurize info``: what is in a store."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurize.encode.preprocessing_words import preprocessing_in_words
from featurize.inspect.generator_words import files_in_words
from featurize.options import InfoOptions
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, one_line
from lugpi_core.fingerprint import flat
from lugpi_core.remote.run import remote_of
from lugpi_core.store.candidates import CandidateFigures, candidate_figures
from lugpi_core.store.example_table import EXAMPLES, NO_IMAGE, subset_in_words
from lugpi_core.store.layout import CANDIDATES
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.prompt_figures import PromptFigures, figures_in
from lugpi_core.store.reader import columns_of
from lugpi_core.store.sealed_file import read_sealed
from lugpi_core.store.store_progress import StoreProgress, store_progress
from lugpi_core.store.verify import row_ranges
from lugpi_core.store.virtual_view import view_is_current

WATCH_S = 5.0
_MOST_IDS, _LONGEST_NOTE = 10, 160


@dataclass(frozen=True, kw_only=True)
class ColumnInfo:
    """One column of a store.

    Attributes:
        rows, rows_final: rows that the column will have, and rows that are committed.
        row_shape, dtype: of one row.
        shards: files.
        bytes: of all committed shards.
        flagged: rows that failed, with the reason.
        fingerprint: everything that decides the content.
        license: of the images and tokens.
        notice: what a reader must know about them, or None.
        made_by: the flags of the featurize command that began the column, or None.
        notes: what the generator's pipeline puts around every prompt, by name.
        failed_texts: ids of the texts that have a failed row, in the corpus's order; empty without a table of examples.
    """

    rows: int
    rows_final: int
    row_shape: tuple[int, ...]
    dtype: str
    shards: int
    bytes: int
    flagged: Mapping[str, str]
    fingerprint: Mapping[str, Any]
    license: str
    notice: str | None
    made_by: Mapping[str, Any] | None
    notes: Mapping[str, str] = field(default_factory=dict)
    failed_texts: tuple[str, ...] = ()

    def summary_lines(self, name: str) -> list[str]:
        """Return shape, licence, failed rows and every field of the fingerprint, a line each."""
        shape = " × ".join(map(str, self.row_shape))
        lines = [
            f"{name}: {self.rows_final:,} of {self.rows:,} rows of {shape} {self.dtype}, {self.bytes / 1e6:,.1f} MB",
            f"  {self.license}",
        ]
        encoder = self.fingerprint.get("encoder")
        if isinstance(encoder, Mapping) and isinstance(encoder.get("preprocessing"), Mapping):
            lines.append(f"  preprocessing: {preprocessing_in_words(encoder['preprocessing'])}")
        if self.flagged:
            texts = f", of the texts {_some_of(self.failed_texts)}" if self.failed_texts else ""
            reasons = ", ".join(sorted(set(self.flagged.values())))
            lines.append(f"  FAILED: rows {row_ranges(map(int, self.flagged))} of the column{texts} ({reasons})")
        generation = self.fingerprint.get("generation")
        record = generation.get("generator") if isinstance(generation, Mapping) else None
        if files := files_in_words(record if isinstance(record, Mapping) else {}, self.made_by or {}):
            lines.append(f"  generated with {', '.join(files)}")
        lines += [f"  around every prompt: {name} = {_beginning(note)}" for name, note in self.notes.items()]
        return lines + [f"  {name} = {_plain(value)}" for name, value in flat(self.fingerprint)]


def _some_of(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MOST_IDS:,} more" if len(ids) > _MOST_IDS else ""
    return one_line(", ".join(ids[:_MOST_IDS])) + more


def _beginning(note: str) -> str:
    return one_line(note if len(note) <= _LONGEST_NOTE else note[:_LONGEST_NOTE] + "…")


def _plain(value: object) -> str:
    """Return a field's value; lists as JSON."""
    return json.dumps(value) if isinstance(value, (list, Mapping)) else str(value)


@dataclass(frozen=True, kw_only=True)
class ExampleInfo:
    """The table of examples: the corpus's name, its examples, how many of their prompts were cut, what of the texts is read at all (None in
    a table of an earlier version), and, where no image was drawn for some of them (``--subset``), for how many, and which texts were
    chosen."""

    corpus: str | None
    examples: int
    prompts_cut: int
    prompt_figures: PromptFigures | None = None
    without_image: int | None = None
    subset: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what is known as a JSON value."""
        figures = {} if self.prompt_figures is None else {"prompt_figures": self.prompt_figures.to_json()}
        return {name: value for name, value in {**asdict(self), **figures}.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What is in a store.

    Attributes:
        store: the store's folder.
        examples: the table of examples; None if there is none yet or it cannot be read.
        columns: by name.
        unreadable: by name, why a column cannot be read; ``examples.h5`` stands for the table of examples.
        progress: how far the store is; None if nothing says how many shards it will have, or a column cannot be read.
        merged: whether its manifests and ``tokens.h5`` are written and of this content.
        best_of: what the candidates scored of which the images were chosen; None without candidates, or while a shard is missing.
    """

    store: Path
    examples: ExampleInfo | None
    columns: Mapping[str, ColumnInfo]
    unreadable: Mapping[str, str]
    progress: StoreProgress | None
    merged: bool
    best_of: CandidateFigures | None = None

    @property
    def complete(self) -> bool:
        """Whether no shard is missing, no row failed, and the manifests and ``tokens.h5`` say so."""
        return self.progress is not None and self.progress.complete and self.merged and not self.unreadable

    def summary(self) -> str:
        """Return what is in the store for a person."""
        table = self.examples
        counts = (
            f"{table.corpus} corpus, {table.examples} examples, {table.prompts_cut} with a cut prompt"
            if table
            else "no table of examples yet"
        )
        lines = [subset_in_words(table.subset, table.without_image)] if table and table.subset and table.without_image is not None else []
        lines += table.prompt_figures.sentences() if table and table.prompt_figures else []
        lines += [] if self.best_of is None else [self.best_of.sentence()]
        lines += [line for name, column in self.columns.items() for line in column.summary_lines(name)]
        lines += [f"cannot be read: {fault}" for fault in self.unreadable.values()]
        return "\n".join([f"{self.store}: {counts}", *self._what_is_left(), *lines])

    def _what_is_left(self) -> list[str]:
        """Return in words what the store lacks besides rows that failed, which its columns name."""
        if self.progress is None:
            return []
        if self.progress.missing:
            return [f"NOT COMPLETE: {self.progress.summary()}; missing: {row_ranges(self.progress.missing)}"]
        return [] if self.merged else ["NOT COMPLETE: tokens.h5 is not that of these shards; run python -m featurize merge"]

    def to_json(self) -> dict[str, Any]:
        """Return the content as a JSON value."""
        unreadable = {name: fault for name, fault in self.unreadable.items() if name != EXAMPLES}
        return {
            "store": str(self.store),
            "complete": self.complete,
            "merged": self.merged,
            "missing_shards": row_ranges(self.progress.missing).replace(" ", "") if self.progress else None,
            "failed_rows": self.progress.failed if self.progress else {},
            "examples": self.examples.to_json() if self.examples else {},
            "columns": {name: {**asdict(column), "row_shape": list(column.row_shape)} for name, column in self.columns.items()},
            **({} if self.best_of is None else {"best_of": self.best_of.to_json()}),
            "not_shown": unreadable,
        }


def info(options: InfoOptions) -> dict[str, Any]:
    """Report what is in a store; with ``watch``, after telling how far it is until it is complete."""
    if options.watch:
        if remote := remote_of(options.run):
            raise InputError(
                got=f"--watch of {remote.address}",
                expected="a local folder",
                do="leave --watch out, and repeat the command",
            )
        _watch(options.store)
    content = store_info(options.store)
    say(content.summary())
    return {"command": "info", **content.to_json()}


def _watch(store: Path) -> None:
    told = None
    while (progress := store_progress(store)) is not None:
        if progress != told:
            say(progress.summary())
            told = progress
        if not progress.missing:
            return
        time.sleep(WATCH_S)


def store_info(store: Path) -> StoreInfo:
    """Return what is in a store.

    Raises:
        InputError: there is no store.
    """
    names = columns_of(store)
    if not names:
        raise InputError(got=f"no token store in {store}", expected="one that featurize wrote", do="run python -m featurize first")
    columns, unreadable, examples = {}, {}, None
    for name in names:
        try:
            columns[name] = _column_info(store / name)
        except InputError as error:
            unreadable[name] = str(error)
    if (store / EXAMPLES).is_file():
        try:
            about, arrays = read_sealed(store / EXAMPLES)
            cut = int(arrays["prompt_cut"].sum())
            figures = figures_in(about.get("prompt_figures"))
            subset = about.get("subset")
            of_subset = {"subset": subset, "without_image": int((arrays["drawing"] == NO_IMAGE).sum())} if subset else {}
            examples = ExampleInfo(
                corpus=about.get("corpus"), examples=len(arrays["drawing"]), prompts_cut=cut, prompt_figures=figures, **of_subset
            )
            columns = {name: replace(column, failed_texts=_texts_of(column, arrays)) for name, column in columns.items()}
        except InputError as error:
            unreadable[EXAMPLES] = str(error)
    readable, best_of = len(columns) == len(names), None
    try:
        best_of = candidate_figures(store) if readable else None
    except InputError as error:
        unreadable[CANDIDATES] = str(error)
    return StoreInfo(
        store=store,
        examples=examples,
        columns=columns,
        unreadable=unreadable,
        progress=store_progress(store) if readable else None,
        merged=readable and view_is_current(store),
        best_of=best_of,
    )


def _texts_of(column: ColumnInfo, arrays: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """Return the ids of the texts that have one of a column's failed rows."""
    rows_NK, ids = arrays.get("drawings", arrays["drawing"][:, None]), arrays.get("id")
    if not column.flagged or ids is None or len(ids) != len(rows_NK):
        return ()
    has_failed_N = np.isin(rows_NK, [int(row) for row in column.flagged]).any(axis=1)
    return tuple(id_.decode(errors="replace") for id_ in ids[has_failed_N].tolist())


def _column_info(folder: Path) -> ColumnInfo:
    spec, records = load_manifest(folder)
    return ColumnInfo(
        rows=spec.rows,
        rows_final=sum(record["rows"] for record in records.values()),
        row_shape=tuple(spec.row_shape),
        dtype=spec.dtype,
        shards=spec.shards,
        bytes=sum(record["bytes"] for record in records.values()),
        flagged={str(int(row) + record["first_row"]): why for record in records.values() for row, why in record["flagged"].items()},
        fingerprint=dict(spec.fingerprint),
        license=spec.license,
        notice=spec.notice,
        made_by=spec.made_by,
        notes=dict(spec.notes),
    )
