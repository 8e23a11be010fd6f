"""``python -m featurize inspect``: the flags, the printed summary and inspection.json."""

from typing import Any

from featurize.inspect.inspect_store import inspect
from featurize.options import InspectOptions, InspectSettings
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.fields import part_of
from lugpi_core.files import write_json


def inspect_store(options: InspectOptions) -> dict[str, Any]:
    """Inspect a store, print the summary, write ``inspection.json`` to the run's folder and return its content.

    Raises:
        InputError: as for ``load_corpus`` and ``inspect``.
    """
    corpus_settings = part_of(options, CorpusSettings)
    if options.unlabelled is None:
        corpus, path = load_corpus(options.dataset, corpus_settings), options.run / "inspection.json"
    else:
        corpus, path = load_unlabelled(options.unlabelled, corpus_settings), options.run / f"inspection-{options.unlabelled.stem}.json"
    inspection = inspect(options.store, corpus, settings=part_of(options, InspectSettings), run_dir=options.run)
    say(inspection.summary())
    record = {"command": "inspect", **inspection.to_json(), "inspection": str(path), "config": resolved_flags(options)}
    write_json(path, record)
    return record
