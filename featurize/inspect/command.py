"""``python -m featurize inspect``: the flags, the printed summary and inspection.json."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from featurize.inspect.compare_stores import compare_stores
from featurize.inspect.inspect_store import inspect
from featurize.inspect.own_pictures import images_from
from featurize.options import InspectOptions, InspectSettings
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings, store_folder
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.fields import part_of
from lugpi_core.files import make_folder, write_json
from lugpi_core.store.reader import columns_of


def inspect_store(options: InspectOptions) -> dict[str, Any]:
    """Inspect a store, print the summary, write ``inspection.json`` to the run's folder and return its content; with ``--stores`` compare
    these, and write ``comparison.json``.

    Raises:
        InputError: as for ``load_corpus``, ``inspect`` and ``compare_stores``.
    """
    corpus_settings = part_of(options, CorpusSettings)
    if corpus_settings.images_from is None and not options.stores:
        corpus_settings = replace(corpus_settings, images_from=images_from(options.store))
    of_file = "" if options.unlabelled is None else f"-{options.unlabelled.stem}"
    corpus = (
        load_corpus(options.dataset, corpus_settings)
        if options.unlabelled is None
        else load_unlabelled(options.unlabelled, corpus_settings)
    )
    if options.stores:
        return _compare(options, corpus, options.run / f"comparison{of_file}.json")
    path = options.run / f"inspection{of_file}.json"
    inspection = inspect(options.store, corpus, settings=part_of(options, InspectSettings), run_dir=options.run)
    say(inspection.summary())
    record = {"command": "inspect", **inspection.to_json(), "inspection": str(path), "config": resolved_flags(options)}
    write_json(path, record)
    return record


def _compare(options: InspectOptions, corpus: Corpus, path: Path) -> dict[str, Any]:
    # A run's folder stands for its store.
    stores = [folder if columns_of(folder) else store_folder(folder, options.unlabelled) for folder in options.stores]
    comparison = compare_stores(stores, corpus, settings=part_of(options, InspectSettings), run_dir=make_folder(options.run))
    say(comparison.summary())
    record = {"command": "inspect", **comparison.to_json(), "comparison": str(path), "config": resolved_flags(options)}
    write_json(path, record)
    return record
