"""A user's texts and labels, in a file, on the hub or in memory, become a corpus; what is wrong with them is one line."""

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, repeat
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from lugpi_core.corpora.advice import advice_for
from lugpi_core.corpora.columns import NumberedNames, TextColumn, Texts, joined
from lugpi_core.corpora.corpus import SPLIT_WORDS, UNLABELLED, Corpus, Examples, Split, numbers_of_splits
from lugpi_core.corpora.duplicates import find_duplicates, rows_without_duplicates, warn_of_duplicates
from lugpi_core.corpora.hub import folder_tables, hub_tables
from lugpi_core.corpora.label_spelling import MANY_CLASSES, are_numbers, counts_from_0, is_plain_number, warn_of_doubtful_labels
from lugpi_core.corpora.labels import check_precision, is_unlabelled, label_cells, label_columns, label_name, read_labels
from lugpi_core.corpora.options import HUB_PREFIX, CorpusSettings, Task, dataset_name, stem_of, suffix_of
from lugpi_core.corpora.picture_columns import refuse_shared_column, with_pictures
from lugpi_core.corpora.pictures import PictureCell
from lugpi_core.corpora.tables import ID_COLUMN, Table, own_ids
from lugpi_core.corpora.texts import checked_texts, listed, text_fault
from lugpi_core.corpora.user_files import file_table, text_table
from lugpi_core.corpora.user_splits import check_classes, cut_missing_splits
from lugpi_core.errors import InputError, nearest, number_of

NO_LICENSE = "not stated"
_IMAGES = "images"
TEXT_SUFFIX = ".txt"
_NAMED_COLUMNS = 10
_LONG_NAME = 40  # letters; longer ones with spaces are hardly names of columns


@runtime_checkable
class _Array(Protocol):
    """An array of NumPy or torch, or a column of pandas."""

    @property
    def ndim(self) -> int: ...

    def tolist(self) -> list[object]: ...


@runtime_checkable
class _Frame(Protocol):
    """A table of pandas."""

    @property
    def columns(self) -> object: ...


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The rows of a table that are used, with their ids and the splits that are given."""

    table: Table
    ids: Texts
    splits: list[Split]

    def kept(self, rows: Sequence[int]) -> "_Part":
        return replace(self, table=self.table.kept(rows), ids=self.ids.take(rows), splits=[self.splits[row] for row in rows])


def load_user_corpus(dataset: str, settings: CorpusSettings) -> Corpus:
    """Return the corpus in a file, a folder or a Hugging Face dataset, in the order of its rows. Holds all in memory.

    Splits come from the given files, the dataset's splits or ``split_column``. Whichever of validation and test is empty is cut from train
    with the seed: 20 % test, 10 % of the rest validation, each with its share of every class. Ids are the ``id`` column if it is unique,
    otherwise ``train/12``: row 12, counted from 0, of the train file or split; leaving out rows changes no id. Texts and prompts are not
    changed; labels are stripped, and equal numbers are one label.

    Warns of texts that recur, classes that a split lacks, and labels that may not be what they seem.

    Raises:
        InputError: anything in the data that would fail later or be learnt wrongly; names the file and the rows.
    """
    if dataset.startswith(HUB_PREFIX):
        settings = replace(settings, split_column=None)
    return replace(_corpus_of(_tables(dataset, settings), dataset, settings), name=dataset_name(dataset))


def corpus_from_texts(columns: Mapping[str, Iterable[object]], *, name: str, label_names: Sequence[str] | None, task: Task) -> Corpus:
    """Return the corpus of the columns ``text`` and, where given, ``label``, ``pair``, ``prompt``, ``split`` and ``group``.

    See ``Corpus.from_texts``.

    Raises:
        InputError: no lists, lists of different lengths, no folder's name, or as ``load_user_corpus`` does.
    """
    if text_fault(name) or Path(name).name != name or name == "..":
        raise InputError(got=f"name={name!r}", expected="a plain folder name", do="give for instance topics")
    values = {
        column: _values(given, what=f"{column}s", most_dimensions=2 if (column, task) == ("label", "multi-label") else 1)
        for column, given in columns.items()
    }
    table = Table(
        where=name,
        source="train",
        names=tuple(values),
        columns=values,
        classes=None if label_names is None else _class_names(label_names, where=name),
        in_memory=True,
    )
    for column, cells in values.items():
        if len(cells) != len(values["text"]):
            raise InputError(
                got=number_of(len(cells), column + "{s}"), expected=f"{len(values['text']):,}, one for each text", do="check the lists"
            )
    settings = CorpusSettings(
        task=task,
        text_pair_column="pair" if "pair" in values else None,
        prompt_column="prompt" if "prompt" in values else None,
        split_column="split" if "split" in values else None,
        group_column="group" if "group" in values else None,
        images_from="image" if "image" in values else None,
    )
    if "label" in values:
        return _corpus_of([table], name, settings)
    if label_names is not None or "split" in values:
        raise InputError(got="label names or splits without labels", expected="texts alone, or labels as well", do="pass labels")
    return _unlabelled_corpus(table, name, settings)


def _values(given: object, *, what: str, most_dimensions: int = 1) -> list[object]:
    """Return the values of a list, an array, a tensor or a pandas column, as Python's own."""
    values = given.tolist() if isinstance(given, _Array) and 1 <= given.ndim <= most_dimensions else given
    if isinstance(values, str | bytes | Set | Mapping) or not isinstance(values, Iterable) or isinstance(values, _Array | _Frame):
        raise InputError(
            got=f"{what} of type {type(given).__name__}",
            expected=f"a list of {what}",
            do="pass a list, a tuple, an array or one column of a table",
        )
    return [value.tolist() if isinstance(value, _Array) else value for value in values]


def _class_names(given: Iterable[object], *, where: str) -> tuple[str, ...]:
    names = checked_texts(_values(given, what="label_names"), what="label_names", where=where)
    classes = tuple(name.strip() for name in names)  # as labels are
    if len(set(classes)) < len(classes):
        raise InputError(got=f"label_names {', '.join(classes)}", expected="different names", do="name each class once")
    return classes


def _corpus_of(tables: Sequence[Table], name: str, settings: CorpusSettings) -> Corpus:
    others = [*_text_columns(settings).items(), ("split", settings.split_column), ("group", settings.group_column)]
    others += [("label", name) for name in label_columns(settings.label_column, (), settings.task)]
    refuse_shared_column(settings.images_from, others)
    tables = [with_pictures(table, settings.images_from) for table in tables]
    parts = _labelled(_scored(_parts(tables, settings), name, settings), name, settings)
    tables = [part.table for part in parts]
    texts, pairs, prompts = _texts_of(tables, settings)
    labels = read_labels(tables, settings.label_column, task=settings.task, separator=settings.label_separator)
    advice = advice_for(in_memory=tables[0].in_memory)
    if settings.task != "regression" and not labels.are_known:
        where, separator = tables[0].where, settings.label_separator
        warn_of_doubtful_labels(labels.classes, rows=len(texts), where=where, task=settings.task, separator=separator, advice=advice)
    check_precision([target for target in labels.targets if isinstance(target, float)], " and ".join(table.where for table in tables))
    examples = Examples(
        ids=joined([part.ids for part in parts]),
        texts=texts,
        prompts=prompts,
        labels=np.array(labels.labels, np.int64),
        splits=numbers_of_splits(split for part in parts for split in part.splits),
        pairs=pairs,
        targets=None if settings.task == "single-label" else labels.targets,
        pictures=_pictures(tables, settings),
    )
    groups = None if settings.group_column is None else _groups(tables, settings.group_column)
    if settings.dedupe:
        kept = rows_without_duplicates(examples)
        _tell_of_deduping(examples, kept, name)
        examples, groups = examples.take(kept), groups and [groups[row] for row in kept]
    classes = labels.classes
    if settings.task == "single-label" and not labels.are_known and len(classes) > MANY_CLASSES and are_numbers(classes):
        to_predict = f"predict numbers ({advice.regression}), or "
        advice = replace(advice, splits=to_predict + advice.splits, other_cut=to_predict + advice.other_cut)
    examples = cut_missing_splits(examples, groups, name, settings, advice)
    check_classes(examples, classes, where=name, task=settings.task, advice=advice)
    warn_of_duplicates(find_duplicates(examples), name, do=advice.unrelated)
    licence = next((table.license for table in tables if table.license), NO_LICENSE)
    return Corpus(name=name, label_names=classes, examples=examples, license=licence, task=settings.task)


def _parts(tables: Sequence[Table], settings: CorpusSettings) -> list[_Part]:
    """Return the tables with the ids and splits of their rows."""
    for table in tables:
        _check_columns(table, {"text": settings.text_column, "split": settings.split_column})
    return [
        _Part(table=table, ids=ids, splits=_given_splits(table, settings.split_column))
        for table, ids in zip(tables, _ids(tables), strict=True)
    ]


def _scored(parts: Sequence[_Part], name: str, settings: CorpusSettings) -> list[_Part]:
    """Return the rows that ``--test-split`` leaves: without the test split, and with the validation split in its place if it says so."""
    if settings.test_split == "test":
        return list(parts)
    if not any("test" in part.splits for part in parts) and settings.test_split == "none":
        warnings.warn(f"--test-split none has no effect on {name}: it has no test split", stacklevel=5)
    parts = [part.kept([row for row, split in enumerate(part.splits) if split != "test"]) for part in parts]
    if settings.test_split == "validation":
        if not any("validation" in part.splits for part in parts):
            raise InputError(
                got=f"--test-split validation, and no validation example in {name}",
                expected="a validation split to score",
                do="cut the test split from train (--test-split none)",
            )
        parts = [replace(part, splits=["test" if split == "validation" else split for split in part.splits]) for part in parts]
    return [part for part in parts if part.splits]


def _labelled(parts: Sequence[_Part], name: str, settings: CorpusSettings) -> list[_Part]:
    """Check that every column is there, and return the rows that have a label if the others are to be left out."""
    for part in parts:
        _check_columns(
            part.table,
            {
                "text_pair": settings.text_pair_column,
                "prompt": settings.prompt_column,
                "group": settings.group_column,
                _IMAGES: settings.images_from,
            },
        )
        for column in label_columns(settings.label_column, part.table.names, settings.task):
            _check_columns(part.table, {"label": column})
    if not settings.drop_unlabelled:
        return list(parts)
    known = next((part.table.classes for part in parts if part.table.classes is not None), None)
    kept, lost = [], []
    cells = [label_cells(part.table, settings.label_column, settings.task) for part in parts]
    names = {label_name(cell) for of_part in cells for cell in of_part if not is_unlabelled(cell, known, settings.task)}
    hides = known is None and counts_from_0(name for name in names if name is not None)
    for part, of_part in zip(parts, cells, strict=True):
        classes = part.table.classes or known
        is_lost = [is_unlabelled(cell, classes, settings.task, hides_minus_1=hides) for cell in of_part]
        kept.append(part.kept([row for row, without in enumerate(is_lost) if not without]))
        lost += [f"{cell!r:.40}" for cell, without in zip(of_part, is_lost, strict=True) if without]
    count, remaining = sum(len(part.splits) for part in parts), sum(len(part.splits) for part in kept)
    if not remaining:
        raise InputError(got=f"{name} without a single label", expected="labelled texts", do="check the label column")
    if remaining < count:
        labels = listed(list(dict.fromkeys(lost)), of="with the label")
        warnings.warn(f"{name}: --drop-unlabelled leaves out {number_of(len(lost), 'row{s}')} of {count:,} {labels}", stacklevel=4)
    return [part for part in kept if part.splits]


def _tell_of_deduping(examples: Examples, kept: Sequence[int], name: str) -> None:
    found = find_duplicates(examples)
    if len(kept) < len(examples):
        lost = len(examples) - found.repeats - len(kept)
        without = f", among them all rows of {number_of(lost, 'text{s}')} whose labels disagree" if lost else ""
        count = number_of(len(examples) - len(kept), "row{s}")
        warnings.warn(f"{name}: --dedupe leaves out {count} of {len(examples):,}{without}", stacklevel=4)


def _groups(tables: Sequence[Table], column: str) -> list[Hashable]:
    groups: list[Hashable] = []
    alike: dict[str, str] = {}  # one string of each group, not of each row
    for table in tables:
        cells = table.columns[column]
        names = [alike.setdefault(cell.strip(), cell.strip()) if isinstance(cell, str) else cell for cell in cells]
        bad = [row for row, name in enumerate(names) if not isinstance(name, str | int | float) or str(name) in ("", "nan")]
        if bad:
            got = f"{number_of(len(bad), 'missing group{s}')} in {column} of {table.where}: {listed(table.numbers_of(bad))}"
            raise InputError(got=got, expected="text or a number", do="give every row a group, those without relatives one of their own")
        groups += [name if isinstance(name, str) else str(name) for name in names]
    return groups


def _texts_of(tables: Sequence[Table], settings: CorpusSettings) -> tuple[TextColumn, TextColumn | None, TextColumn]:
    """Return every row's text, second text (None without such a column) and prompt."""
    texts = _texts(tables, settings.text_column)
    pairs = _texts(tables, settings.text_pair_column) if settings.text_pair_column else None
    if settings.prompt_column:
        prompts = texts if settings.prompt_column == settings.text_column else _texts(tables, settings.prompt_column)
    else:
        prompts = texts if pairs is None else TextColumn.of(f"{text} {pair}" for text, pair in zip(texts, pairs, strict=True))
    return texts, pairs, prompts


def _pictures(tables: Sequence[Table], settings: CorpusSettings) -> list[PictureCell] | None:
    """Return every row's pictures; None without such a column."""
    if settings.images_from is None:
        return None
    return [cell for table in tables for cell in table.columns[settings.images_from] if isinstance(cell, PictureCell)]


def load_unlabelled(path: Path, settings: CorpusSettings) -> Corpus:
    """Return the unlabelled texts of a file, on which a student is distilled: a .txt file with one text per line, or a file or folder
    with the corpus's text, pair and prompt columns. Every example is a train example with the label -1. Holds all in memory.

    Raises:
        InputError: the file is missing, malformed or empty, or a text is.
    """
    if suffix_of(path) == TEXT_SUFFIX:
        if settings.text_pair_column is not None:
            got = f"{path} with one text per line, for a corpus of pairs of texts"
            raise InputError(got=got, expected="both texts of each pair", do="give a CSV or JSONL file with the columns of the corpus")
        if settings.images_from is not None:
            got = f"{path} with one text per line, and --images-from {settings.images_from}"
            raise InputError(got=got, expected="texts and their pictures", do="give a CSV or JSONL file with the columns of the corpus")
        table = text_table(path, settings.text_column)
    else:
        columns = (settings.text_column, settings.text_pair_column, settings.prompt_column, settings.images_from, ID_COLUMN)
        wanted = tuple(dict.fromkeys(name for name in columns if name is not None))
        table = _one_table(path, "train", wanted, settings.label_column, settings.images_from)
    return _unlabelled_corpus(table, stem_of(path), settings)


def _one_table(path: Path, source: Split, wanted: Sequence[str], label_column: str, pictures: str | None) -> Table:
    if not path.is_dir():
        return file_table(path, source, wanted, label_column, pictures)
    tables = folder_tables(path, wanted, label_column, pictures)
    if len(tables) > 1:
        got = f"{path} with the splits {', '.join(table.source for table in tables)}"
        raise InputError(got=got, expected="a folder without splits", do="give the folder or file of one of them")
    return replace(tables[0], source=source)


def _unlabelled_corpus(table: Table, name: str, settings: CorpusSettings) -> Corpus:
    read = _text_columns(settings)
    refuse_shared_column(settings.images_from, read.items())
    table = with_pictures(table, settings.images_from)
    _check_columns(table, {**read, _IMAGES: settings.images_from})
    (ids,), (texts, pairs, prompts) = _ids([table]), _texts_of([table], settings)
    examples = Examples(
        ids=ids,
        texts=texts,
        prompts=prompts,
        labels=np.full(len(texts), UNLABELLED, np.int64),
        splits=numbers_of_splits(repeat("train", len(texts))),
        pairs=pairs,
        pictures=_pictures([table], settings),
    )
    return Corpus(name=name, label_names=(), examples=examples, license=table.license or NO_LICENSE)


def _text_columns(settings: CorpusSettings) -> Mapping[str, str | None]:
    return {"text": settings.text_column, "text_pair": settings.text_pair_column, "prompt": settings.prompt_column}


def _tables(dataset: str, settings: CorpusSettings) -> list[Table]:
    label = settings.label_column
    named = (
        settings.text_column,
        label,
        *label_columns(label, (), settings.task),
        settings.text_pair_column,
        settings.prompt_column,
        settings.split_column,
        settings.group_column,
        settings.images_from,
        ID_COLUMN,
    )
    wanted = tuple(dict.fromkeys(name for name in named if name is not None))
    pictures = settings.images_from
    if dataset.startswith(HUB_PREFIX):
        return hub_tables(dataset, wanted, label, pictures)
    files: tuple[tuple[Split, Path | None], ...] = (("validation", settings.validation_file), ("test", settings.test_file))
    given = [(source, path) for source, path in files if path is not None]
    if given and settings.split_column is not None:
        raise InputError(
            got="--split-column with --validation-file or --test-file", expected="one source of the splits", do="leave one of them out"
        )
    path = Path(dataset)
    tables = folder_tables(path, wanted, label, pictures) if path.is_dir() else [file_table(path, "train", wanted, label, pictures)]
    if len(tables) > 1 and (given or settings.split_column is not None):
        raise InputError(
            got=f"{dataset} with the splits {', '.join(table.source for table in tables)}, and other splits",
            expected="one source of the splits",
            do="leave out --split-column, --validation-file and --test-file",
        )
    return tables + [_one_table(path, source, wanted, label, pictures) for source, path in given]


def _check_columns(table: Table, columns: Mapping[str, str | None]) -> None:
    no_rows = InputError(got=f"no rows in {table.where}", expected="one row per example", do="check the file")
    if not table.names:
        raise no_rows
    for role, name in columns.items():
        if name is not None and name not in table.names:
            choice = nearest(name, table.names)
            choice = choice if choice.startswith("did") or len(table.names) <= _NAMED_COLUMNS else "choose one of them"
            do = f"set {role}_column (--{role.replace('_', '-')}-column); {choice}"
            if role == _IMAGES:
                do = f"set images_from (--images-from); {choice}"
            if table.source != "train":
                do = "give the columns of all files the names that those of the train rows have"
            if role == "label" and table.source == "test":
                do += "; if it has no labels: --test-split validation, or none"
            if _looks_like_a_row(table):
                do = "the file seems to have no header line: write one above its rows, such as text,label"
            shown = ", ".join(name[:_LONG_NAME] for name in table.names[:_NAMED_COLUMNS]) + " …" * (len(table.names) > _NAMED_COLUMNS)
            raise InputError(
                got=f"no column {name!r} in {table.where}, whose columns are {shown}",
                expected=f"the column of every example's {role.replace('text_pair', 'second text').replace(_IMAGES, 'own pictures')}",
                do=do,
            )
    if not len(table):
        raise no_rows


def _looks_like_a_row(table: Table) -> bool:
    """Whether the names of a CSV file's columns are more likely its first row: a number or a long text is among them."""
    if suffix_of(Path(table.where)) not in (".csv", ".tsv") or table.names == tuple(map(str, range(len(table.names)))):
        return False
    return any(is_plain_number(name.strip()) or (len(name) > _LONG_NAME and " " in name) for name in table.names)


def _texts(tables: Sequence[Table], column: str) -> TextColumn:
    checked = [checked_texts(table.columns[column], what=column, where=table.where, numbers=table.numbers) for table in tables]
    return TextColumn.of(checked[0]) if len(checked) == 1 else TextColumn.of(joined([TextColumn.of(texts) for texts in checked]))


def _given_splits(table: Table, column: str | None) -> list[Split]:
    if column is None:
        return [table.source] * len(table)
    splits = [SPLIT_WORDS.get(str(value).strip().lower()) for value in table.columns[column]]
    unknown = [row for row, split in enumerate(splits) if split is None]
    if unknown:
        where, word = f"{column} of {table.where}", str(table.columns[column][unknown[0]]).strip().lower()
        raise InputError(
            got=f"{number_of(len(unknown), 'unknown value{s}')} in {where}, the first {word!r}: {listed(unknown)}",
            expected=f"one of {', '.join(SPLIT_WORDS)}",
            do="rename them",
        )
    return [split for split in splits if split is not None]


def _ids(tables: Sequence[Table]) -> list[Texts]:
    """Return of each table the ``id`` column if every table has it and it is unique over all of them; otherwise row numbers, after the
    table's name if there are several."""
    if (ids := own_ids(tables)) is not None:
        return [ids[begin:end] for begin, end in pairwise([0, *accumulate(map(len, tables))])]
    return [NumberedNames(f"{table.source}/" if len(tables) > 1 else "row/", range(len(table))) for table in tables]
