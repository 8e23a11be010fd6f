"""A user's texts and labels, in a file, on the hub or in memory, become a corpus; what is wrong with them is one line."""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np

from lugpi_core.corpora.corpus import SPLIT_WORDS, SPLITS, UNLABELLED, Corpus, Example, Split
from lugpi_core.corpora.labels import Labels, read_labels
from lugpi_core.corpora.options import HUB_PREFIX, CorpusSettings, Task, dataset_name
from lugpi_core.corpora.splits import VALIDATION_PERCENT, cut_from_train, share_down, share_up
from lugpi_core.corpora.texts import checked_texts, has_half_a_pair, listed, text_fault
from lugpi_core.corpora.user_files import Table, file_table, hub_tables, text_table
from lugpi_core.errors import InputError, nearest, number_of

NO_LICENSE = "not stated"
TEST_PERCENT = 20
ID_COLUMN = "id"


def load_user_corpus(dataset: str, settings: CorpusSettings) -> Corpus:
    """Return the corpus in a CSV, JSONL or Parquet file, or in a Hugging Face dataset, in the order of its rows. Holds all in memory.

    Splits come from the given files, the hub's splits or ``split_column``. Whichever of validation and test is empty is cut from train with
    the seed: 20 % test, 10 % of the rest validation. Ids are the ``id`` column if it is unique, otherwise ``train/12``: row 12, counted
    from 0, of the train file or split. Texts and prompts are not changed; labels are stripped.

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
    values = {column: _values(given, what=f"{column}s") for column, given in columns.items()}
    table = Table(
        where=name,
        source="train",
        names=tuple(values),
        columns=values,
        classes=None if label_names is None else _class_names(label_names, where=name),
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
    )
    if "label" in values:
        corpus = _corpus_of([table], name, settings)
        if task == "single-label":
            trained = {example.label for example in corpus.examples if example.split == "train"}
            if untrained := [label for number, label in enumerate(corpus.label_names) if number not in trained]:
                warnings.warn(f"{name} has no train example of {', '.join(untrained)}", stacklevel=3)
        return corpus
    if label_names is not None or "split" in values:
        raise InputError(got="label names or splits without labels", expected="texts alone, or labels as well", do="pass labels")
    return _unlabelled_corpus(table, name, settings)


def _values(given: Iterable[object], *, what: str) -> list[object]:
    """Return the values of a list, an array or a pandas column, NumPy's scalars as Python's."""
    if isinstance(given, str | bytes | Set | Mapping) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        raise InputError(
            got=f"{what} of type {type(given).__name__}",
            expected=f"a list of {what}",
            do="pass a list, a tuple, an array or one column of a table",
        )
    return [value.item() if isinstance(value, np.generic) else value for value in given]


def _class_names(given: Iterable[object], *, where: str) -> tuple[str, ...]:
    names = checked_texts(_values(given, what="label_names"), what="label_names", where=where)
    classes = tuple(name.strip() for name in names)  # as labels are
    if len(set(classes)) < len(classes):
        raise InputError(got=f"label_names {', '.join(classes)}", expected="different names", do="name each class once")
    return classes


def _corpus_of(tables: Sequence[Table], name: str, settings: CorpusSettings) -> Corpus:
    for table in tables:
        columns = {
            "text": settings.text_column,
            "label": settings.label_column,
            "text_pair": settings.text_pair_column,
            "prompt": settings.prompt_column,
            "split": settings.split_column,
            "group": settings.group_column,
        }
        _check_columns(table, columns)
    texts, pairs, prompts = _texts_of(tables, settings)
    splits = _splits(tables, name, settings)
    labels = read_labels(tables, settings.label_column, task=settings.task, separator=settings.label_separator)
    if settings.task == "single-label":
        _check_labels(labels, splits, where=name)
    rows = zip(_ids(tables), texts, prompts, labels.labels, splits, pairs, labels.targets, strict=True)
    examples = tuple(
        Example(id=id_, text=text, prompt=prompt, label=label, split=split, pair=pair, target=target)
        for id_, text, prompt, label, split, pair, target in rows
    )
    licence = next((table.license for table in tables if table.license), NO_LICENSE)
    return Corpus(name=name, label_names=labels.classes, examples=examples, license=licence, task=settings.task)


def _texts_of(tables: Sequence[Table], settings: CorpusSettings) -> tuple[list[str], Sequence[str | None], list[str]]:
    """Return every row's text, second text (None without such a column) and prompt."""
    texts = [text for table in tables for text in _texts(table, settings.text_column)]
    pairs = [text for table in tables for text in _texts(table, settings.text_pair_column)] if settings.text_pair_column else None
    if settings.prompt_column:
        prompts = [text for table in tables for text in _texts(table, settings.prompt_column)]
    else:
        prompts = texts if pairs is None else [f"{text} {pair}" for text, pair in zip(texts, pairs, strict=True)]
    return texts, [None] * len(texts) if pairs is None else pairs, prompts


def load_unlabelled(path: Path, settings: CorpusSettings) -> Corpus:
    """Return the unlabelled texts of a file, on which a student is distilled: a .txt file with one text per line, or a CSV, JSONL or
    Parquet file with the corpus's text and prompt columns. Every example is a train example with the label -1. Holds all in memory.

    Raises:
        InputError: the file is missing, malformed or empty, or a text is.
    """
    if path.suffix.lower() == ".txt":
        table = text_table(path, settings.text_column)
    else:
        columns = (settings.text_column, settings.text_pair_column, settings.prompt_column, ID_COLUMN)
        table = file_table(path, "train", tuple(dict.fromkeys(name for name in columns if name is not None)))
    return _unlabelled_corpus(table, path.stem, settings)


def _unlabelled_corpus(table: Table, name: str, settings: CorpusSettings) -> Corpus:
    _check_columns(table, {"text": settings.text_column, "text_pair": settings.text_pair_column, "prompt": settings.prompt_column})
    rows = zip(_ids([table]), *_texts_of([table], settings), strict=True)
    examples = tuple(
        Example(id=id_, text=text, prompt=prompt, label=UNLABELLED, split="train", pair=pair) for id_, text, pair, prompt in rows
    )
    return Corpus(name=name, label_names=(), examples=examples, license=table.license or NO_LICENSE)


def _tables(dataset: str, settings: CorpusSettings) -> list[Table]:
    named = (
        settings.text_column,
        settings.label_column,
        settings.text_pair_column,
        settings.prompt_column,
        settings.split_column,
        settings.group_column,
        ID_COLUMN,
    )
    wanted = tuple(dict.fromkeys(name for name in named if name is not None))
    if dataset.startswith(HUB_PREFIX):
        return hub_tables(dataset, wanted, settings.label_column)
    if settings.split_column is not None and (settings.validation_file or settings.test_file):
        raise InputError(
            got="--split-column with --validation-file or --test-file", expected="one source of the splits", do="leave one of them out"
        )
    files: tuple[tuple[Split, Path | None], ...] = (
        ("train", Path(dataset)),
        ("validation", settings.validation_file),
        ("test", settings.test_file),
    )
    return [file_table(path, source, wanted) for source, path in files if path is not None]


def _check_columns(table: Table, columns: Mapping[str, str | None]) -> None:
    no_rows = InputError(got=f"no rows in {table.where}", expected="one row per example", do="check the file")
    if not table.names:
        raise no_rows
    for role, name in columns.items():
        if name is not None and name not in table.names:
            raise InputError(
                got=f"no column {name!r} in {table.where}, whose columns are {', '.join(table.names) or 'none'}",
                expected=f"the column of every example's {role}",
                do=f"set {role}_column (--{role.replace('_', '-')}-column); {nearest(name, table.names)}",
            )
    if not len(table):
        raise no_rows


def _texts(table: Table, column: str) -> list[str]:
    return checked_texts(table.columns[column], what=column, where=table.where)


def _splits(tables: Sequence[Table], dataset: str, settings: CorpusSettings) -> list[Split]:
    given = [split for table in tables for split in _given_splits(table, settings.split_column)]
    train = given.count("train")
    test = 0 if "test" in given else share_up(train, TEST_PERCENT)
    validation = 0 if "validation" in given else share_down(train - test, VALIDATION_PERCENT)
    if not test and not validation and settings.split_seed and settings.limit is None:
        warnings.warn(f"--split-seed {settings.split_seed} has no effect on {dataset}: all its splits are given", stacklevel=6)
    splits = cut_from_train(given, test=test, validation=validation, seed=settings.split_seed)
    for split in SPLITS:
        if split not in splits:
            raise InputError(
                got=f"no {split} example in {dataset} ({len(splits):,} in all)",
                expected="train, validation and test examples",
                do="add examples (13 are enough for a random cut), or give splits (--split-column, or --validation-file and --test-file)",
            )
    return splits


def _given_splits(table: Table, column: str | None) -> list[Split]:
    if column is None:
        return [table.source] * len(table)
    words = [str(value).strip().lower() for value in table.columns[column]]
    unknown = [row for row, word in enumerate(words) if word not in SPLIT_WORDS]
    if unknown:
        where = f"{column} of {table.where}"
        raise InputError(
            got=f"{number_of(len(unknown), 'unknown value{s}')} in {where}, the first {words[unknown[0]]!r}: {listed(unknown)}",
            expected=f"one of {', '.join(SPLIT_WORDS)}",
            do="rename them",
        )
    return [SPLIT_WORDS[word] for word in words]


def _check_labels(labels: Labels, splits: Sequence[Split], *, where: str) -> None:
    names = [labels.classes[label] for label in labels.labels]
    present = set(names)
    if len(present) < 2:
        raise InputError(got=f"only the label {', '.join(present)} in {where}", expected="two classes or more", do="check the labels")
    trained = {name for name, split in zip(names, splits, strict=True) if split == "train"}
    counted = Counter((name, split) for name, split in zip(names, splits, strict=True) if name not in trained)
    if counted:
        (name, split), count = counted.most_common()[0]
        raise InputError(
            got=f"label {name!r} on {number_of(count, split + ' example{s}')} of {where} and on no train example",
            expected="every label among the train examples",
            do="move or add examples of it, or choose another split_seed (--split-seed) if the cut is random",
        )


def _ids(tables: Sequence[Table]) -> list[str]:
    """Return the ``id`` column if every table has it and it is unique over all of them; otherwise row numbers, after the table's name if
    there are several."""
    given = [value for table in tables for value in table.columns.get(ID_COLUMN, ())]
    named = [str(value) for value in given if isinstance(value, int | str) and str(value).strip()]
    if bad := [row for row, name in enumerate(named) if has_half_a_pair(name)]:
        raise InputError(
            got=f"{number_of(len(bad), 'id{s} with half a surrogate pair')} in {ID_COLUMN} of {tables[0].where}: {listed(bad)}",
            expected="text",
            do="fix or remove them",
        )
    if len(set(named)) == sum(len(table) for table in tables):
        return named
    return [f"{table.source if len(tables) > 1 else 'row'}/{row}" for table in tables for row in range(len(table))]
