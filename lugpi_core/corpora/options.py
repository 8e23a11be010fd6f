"""Which corpus, and how it is read: the settings of ``load_corpus``, and the flags of ``featurize`` and ``train``. Light to import."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lugpi_core.errors import InputError

HUB_PREFIX = "hf:"
SMALLEST_LIMIT = 3  # one example for each split
_HUB_NAME = re.compile(r"hf:(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:/(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """How a corpus is read and cut into splits. Each command that reads a corpus has these as its flags.

    Raises:
        InputError: ``limit`` is below 3 or ``split_seed`` is negative.
    """

    data_dir: Path = Path("data")
    """Folder with the original archives under their original names; what is missing there is downloaded into it."""
    split_by: Literal["seed", "date"] = "seed"
    """How 20ng is cut into train and test: at random (the paper's way) or by the date of the posts."""
    split_seed: int = 0
    """Seed of every random cut into splits and of the examples that --limit draws."""
    limit: int | None = None
    """Use only that many examples, drawn at random in proportion from every split; the order of the corpus is kept."""
    text_column: str = "text"
    """Own corpora: the column with the text."""
    label_column: str = "label"
    """Own corpora: the column with the label."""
    prompt_column: str | None = None
    """Own corpora: the column with what is to be drawn; the text itself when not given."""
    split_column: str | None = None
    """Own corpora: the column that says train, validation or test."""
    validation_file: Path | None = None
    """Own corpora: a file of the same columns with the validation examples."""
    test_file: Path | None = None
    """Own corpora: a file of the same columns with the test examples."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < SMALLEST_LIMIT:
            raise InputError(got=f"--limit {self.limit}", expected=f"{SMALLEST_LIMIT} or more", do="give every split at least one example")
        if self.split_seed < 0:
            raise InputError(got=f"--split-seed {self.split_seed}", expected="0 or more", do="choose another seed")


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(CorpusSettings):
    """The flags of a command that reads a corpus."""

    dataset: str
    """20ng, imdb, cwi-news, cwi-wikinews, demo, a path ending in .csv, .jsonl or .parquet, or hf:owner/name[/config][@revision]."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """``hf:owner/name[/config][@revision]``, taken apart."""

    owner: str
    name: str
    config: str | None
    revision: str | None


def hub_name(dataset: str) -> HubName:
    """Take ``hf:owner/name[/config][@revision]`` apart.

    Raises:
        InputError: it is not of that form.
    """
    match = _HUB_NAME.fullmatch(dataset)
    if match is None:
        raise InputError(got=f"--dataset {dataset}", expected="hf:owner/name[/config][@revision]", do="write it in that form")
    return HubName(**match.groupdict())


def dataset_name(dataset: str) -> str:
    """Return a dataset's short name: itself, a file's stem, ``owner--name[--config]`` for the hub.

    Raises:
        InputError: a hub name that is not of its form.
    """
    if dataset.startswith(HUB_PREFIX):
        hub = hub_name(dataset)
        return "--".join(part for part in (hub.owner, hub.name, hub.config) if part)
    return Path(dataset).stem if Path(dataset).suffix else dataset


def default_run_dir(dataset: str, limit: int | None = None) -> Path:
    """Return the folder of everything that is computed from this corpus: ``runs/<name>``, or ``runs/<name>-<limit>`` when it is limited.

    Raises:
        InputError: a hub name that is not of its form.
    """
    name = dataset_name(dataset)
    return Path("runs") / (name if limit is None else f"{name}-{limit}")


def store_folder(run: Path, unlabelled: Path | None) -> Path:
    """Return the folder of a run's token store: that of its corpus, or of a file of texts without labels."""
    return run / ("tokens" if unlabelled is None else f"tokens-{unlabelled.stem}")
