"""Which corpus, and how it is read: the settings of ``load_corpus``, and the flags of ``featurize`` and ``train``. Light to import."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lugpi_core.errors import InputError
from lugpi_core.fields import check_fields
from lugpi_core.remote.address import local_folder

Task = Literal["single-label", "multi-label", "regression"]
HUB_PREFIX = "hf:"
SMALLEST_LIMIT = 3  # one example for each split
FEWEST_FOLDS = 2
_HUB_NAME = re.compile(r"hf:(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:/(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./-]+))?")


def require_folds(folds: int | None) -> None:
    """Raise InputError unless it is None or a number of folds of the train texts."""
    if folds is not None and folds < FEWEST_FOLDS:
        raise InputError(got=f"--folds {folds}", expected=f"{FEWEST_FOLDS} or more", do="give for instance 5, or leave it out")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """How a corpus is read and cut into splits. Each command that reads a corpus has these as its flags.

    Raises:
        InputError: a value of another type, ``limit`` is below 3, ``split_seed`` is negative, or ``label_separator`` is empty.
    """

    data_dir: Path = Path("data")
    """Folder with the original archives under their original names; missing ones are downloaded into it."""
    split_by: Literal["seed", "date"] = "seed"
    """How 20ng is cut into train and test: at random, as in the paper, or by the date of the posts."""
    split_seed: int = 0
    """Seed of the random cut into splits and of the examples that --limit selects."""
    limit: int | None = None
    """Use only this many examples, sampled from every split in proportion; the order of the corpus is kept."""
    text_column: str = "text"
    """Your own corpus: the column with the text."""
    label_column: str = "label"
    """Your own corpus: the column with the label."""
    prompt_column: str | None = None
    """Your own corpus: the column with the image prompt (default: the text itself)."""
    images_from: str | None = None
    """Your own corpus: the column with your own pictures beside the texts: paths relative to the file, or images of the library datasets,
    one or several of each text. featurize encodes them and generates none."""
    split_column: str | None = None
    """Your own corpus: the column that says train, validation or test."""
    validation_file: Path | None = None
    """Your own corpus: a file with the same columns and the validation examples."""
    test_file: Path | None = None
    """Your own corpus: a file with the same columns and the test examples."""
    task: Task = "single-label"
    """Your own corpus: each text has one class, any number of classes, or a number."""
    label_separator: str | None = None
    """Your own corpus, multi-label: what stands between the labels of a cell, such as '|'; none is needed for lists."""
    text_pair_column: str | None = None
    """Your own corpus: the column with the second text, for tasks on pairs of texts."""
    group_column: str | None = None
    """Your own corpus: rows with equal values in this column (an author, a document) stay in one split where a split is cut."""
    dedupe: bool = False
    """Your own corpus: keep one row of each text (the same after folding white space) and none whose labels disagree."""
    drop_unlabelled: bool = False
    """Your own corpus: leave out rows without a label (missing, or the -1 of the hub)."""
    stratify: bool = True
    """Your own corpus: cut splits so that each has its share of every class, instead of purely at random."""
    test_split: Literal["test", "validation", "none"] = "test"
    """Your own corpus: score the test split as given; or score its validation split, and cut another from train; or cut one from train.
    For data sets whose test labels are hidden."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.limit is not None and self.limit < SMALLEST_LIMIT:
            raise InputError(got=f"--limit {self.limit}", expected=f"{SMALLEST_LIMIT} or more", do="give every split at least one example")
        if self.split_seed < 0:
            raise InputError(got=f"--split-seed {self.split_seed}", expected="0 or more", do="choose another seed")
        if self.text_pair_column == self.text_column:
            got = f"--text-column and --text-pair-column {self.text_column}"
            raise InputError(got=got, expected="two columns", do="name the second text's own")
        if self.label_separator == "":
            raise InputError(
                got="an empty --label-separator", expected="what stands between labels, such as '|'", do="leave it out for lists"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetName:
    """Which corpus."""

    dataset: str
    """20ng, imdb, cwi-news, cwi-wikinews, demo, a file (.csv, .tsv, .json, .jsonl, .parquet; .gz too), a folder of datasets.save_to_disk,
    or hf:owner/name[/config][@revision]."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where everything that is computed from a corpus is."""

    run_dir: Path | None = None
    """Folder of the run; its stores are tokens/ and tokens-<unlabelled>/ (default: runs/<dataset>). Or its address in an object store:
    s3://BUCKET/FOLDER, gs://, az://, hf:// (docs/cluster.md)."""
    scratch: Path | None = None
    """With an address: the folder in which its files are built, and where those that are read are kept (default: below ~/.cache/lugpi)."""

    def run_of(self, dataset: str, limit: int | None) -> Path:
        """Return the run's folder on this machine.

        Raises:
            InputError: a malformed address or hub name, or --scratch without an address.
        """
        return local_folder(default_run_dir(dataset, limit) if self.run_dir is None else self.run_dir, self.scratch)


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(CorpusSettings, DatasetName):
    """The flags of a command that reads a corpus. The help lists the fields of the last base first."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """The parts of ``hf:owner/name[/config][@revision]``."""

    owner: str
    name: str
    config: str | None
    revision: str | None


def hub_name(dataset: str) -> HubName:
    """Return the parts of ``hf:owner/name[/config][@revision]``.

    Raises:
        InputError: it has another form.
    """
    match = _HUB_NAME.fullmatch(dataset)
    if match is None:
        raise InputError(got=f"--dataset {dataset}", expected="hf:owner/name[/config][@revision]", do="write it in that form")
    return HubName(**match.groupdict())


def suffix_of(path: Path) -> str:
    """Return what kind of file it is by its name, in small letters: ``.csv`` of ``a.csv`` and of ``a.csv.gz``."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def stem_of(path: Path) -> str:
    """Return a file's name without its suffix and ``.gz``."""
    return Path(path.name[:-3] if path.name.lower().endswith(".gz") else path.name).stem


def dataset_name(dataset: str) -> str:
    """Return a dataset's short name: the name itself, a file's stem, a folder's name, or ``owner--name[--config]`` for the hub.

    Raises:
        InputError: a malformed hub name.
    """
    if dataset.startswith(HUB_PREFIX):
        hub = hub_name(dataset)
        return "--".join(part for part in (hub.owner, hub.name, hub.config) if part)
    path = Path(dataset)
    if path.is_dir():
        return path.resolve().name if path.name in ("", "..") else path.name
    return stem_of(path) if path.suffix else path.name


def default_run_dir(dataset: str, limit: int | None = None) -> Path:
    """Return the folder of everything that is computed from this corpus: ``runs/<name>``, or ``runs/<name>-<limit>`` when it is limited.

    Raises:
        InputError: a malformed hub name.
    """
    name = dataset_name(dataset)
    return Path("runs") / (name if limit is None else f"{name}-{limit}")


def store_folder(run: Path, unlabelled: Path | None) -> Path:
    """Return the folder of a run's token store: of its corpus, or of a file of unlabelled texts."""
    return run / ("tokens" if unlabelled is None else f"tokens-{stem_of(unlabelled)}")
