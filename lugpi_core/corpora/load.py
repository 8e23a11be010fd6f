"""``load_corpus``: the paper's corpora, the shipped demo or your own texts, by name."""

import warnings
from dataclasses import fields, replace
from pathlib import Path

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.demo import load_demo
from lugpi_core.corpora.options import HUB_PREFIX, CorpusSettings
from lugpi_core.corpora.paper import load_20ng, load_cwi, load_imdb
from lugpi_core.corpora.splits import limited, warn_of_lost_labels
from lugpi_core.corpora.user_corpus import load_unlabelled, load_user_corpus
from lugpi_core.corpora.user_files import SUFFIXES
from lugpi_core.errors import InputError, nearest
from lugpi_core.fields import require_type

DATASETS = ("20ng", "imdb", "cwi-news", "cwi-wikinews", "demo")
USER_SETTINGS = frozenset({field.name for field in fields(CorpusSettings)} - {"data_dir", "split_by", "split_seed", "limit"})


def load_corpus(dataset: str | Path, settings: CorpusSettings | None = None) -> Corpus:
    """Return a corpus, whole and in its own order, or ``settings.limit`` examples of it. Holds all texts in memory.

    ``dataset`` is one of DATASETS, a file (.csv, .tsv, .json, .jsonl, .parquet; .gz too), a folder of ``datasets.save_to_disk``, or
    ``hf:owner/name[/config][@revision]``. Settings that have no effect on it are warned of.

    Raises:
        InputError: unknown name; archive or file missing, damaged or not the expected one; a row that cannot be used.
    """
    dataset, settings = str(dataset), CorpusSettings() if settings is None else settings
    require_type("settings", settings, CorpusSettings)
    corpus = _whole_corpus(dataset, settings)
    _warn_of_idle_settings(dataset, settings, corpus)
    if settings.limit is None:
        return corpus
    part = limited(corpus, settings.limit, seed=settings.split_seed)
    warn_of_lost_labels(part)
    return part


def load_unlabelled_for(dataset: str | Path, path: Path, settings: CorpusSettings) -> Corpus:
    """Return the unlabelled texts of a file, with the corpus that they are added to, which weighs their keywords.

    Raises:
        InputError: as ``load_corpus`` and ``load_unlabelled``.
    """
    return replace(load_unlabelled(path, settings), labelled=load_corpus(dataset, settings))


def _whole_corpus(dataset: str, settings: CorpusSettings) -> Corpus:
    if dataset in DATASETS and settings.images_from is not None:
        raise InputError(
            got=f"--images-from {settings.images_from} for {dataset}, which has no pictures",
            expected="your own corpus, with a column of pictures",
            do="write its texts and the paths of their pictures into a CSV file, or leave --images-from out",
        )
    match dataset:
        case "imdb":
            return load_imdb(settings)
        case "20ng":
            return load_20ng(settings)
        case "cwi-news":
            return load_cwi("News", settings)
        case "cwi-wikinews":
            return load_cwi("WikiNews", settings)
        case "demo":
            return load_demo()
    if dataset.startswith(HUB_PREFIX) or Path(dataset).suffix or "/" in dataset or Path(dataset).is_dir():
        return load_user_corpus(dataset, settings)
    raise InputError(
        got=f"--dataset {dataset}",
        expected=f"{', '.join(DATASETS)}, a path ending in {', '.join(SUFFIXES)}, a folder that datasets saved, or hf:owner/name",
        do=nearest(dataset, DATASETS),
    )


def _warn_of_idle_settings(dataset: str, settings: CorpusSettings, corpus: Corpus) -> None:
    idle = {"split_by"} if dataset != "20ng" else set()
    if dataset in DATASETS:
        idle |= USER_SETTINGS
    if dataset == "demo" or dataset not in DATASETS:
        idle.add("data_dir")
    if settings.task != "multi-label":
        idle.add("label_separator")
    if dataset.startswith(HUB_PREFIX):
        idle |= {"split_column", "validation_file", "test_file"}
    if dataset.startswith("cwi-") or dataset == "demo":
        idle |= {"split_seed"} if settings.limit is None else set()
    if settings.limit is not None and settings.limit >= len(corpus.examples):
        idle.add("limit")
    for field in fields(CorpusSettings):
        value = getattr(settings, field.name)
        if field.name in idle and value != field.default:
            flag = "--" + field.name.replace("_", "-")
            warnings.warn(f"{flag} {value} has no effect on {dataset} ({len(corpus.examples):,} examples)", stacklevel=3)
