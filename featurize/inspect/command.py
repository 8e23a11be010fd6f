"""``python -m featurize inspect`` and ``score``: the flags, the printed summary and inspection.json."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from featurize.inspect.clip_scores import kept_scores, score_images
from featurize.inspect.compare_stores import compare_stores
from featurize.inspect.inspect_store import inspect
from featurize.inspect.own_pictures import images_from
from featurize.inspect.projection import reduce_column
from featurize.inspect.records import LeftOut
from featurize.options import OF_LABELLED, InspectOptions, InspectSettings, ReduceOptions, ScoreOptions
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus, load_unlabelled_for
from lugpi_core.corpora.options import CorpusSettings, store_folder
from lugpi_core.corpora.user_corpus import load_unlabelled
from lugpi_core.errors import InputError
from lugpi_core.fields import part_of
from lugpi_core.files import make_folder, write_json
from lugpi_core.remote.address import address_of, local_folder
from lugpi_core.store.clip_scores import ClipScores
from lugpi_core.store.example_table import read_stored_examples
from lugpi_core.store.reader import columns_of
from lugpi_core.store.verify import flags_of_the_maker
from lugpi_core.thumbnails import COMPARISON


def inspect_store(options: InspectOptions) -> dict[str, Any]:
    """Inspect a store, print the summary, write ``inspection.json`` to the run's folder and return its content; with ``--stores`` compare
    these, and write ``comparison.json``.

    Raises:
        InputError: as for ``load_corpus``, ``inspect`` and ``compare_stores``.
    """
    # A run's folder stands for its store.
    folders = [local_folder(folder, options.scratch if address_of(folder) else None) for folder in options.stores]
    stores = [folder if columns_of(folder) else store_folder(folder, options.unlabelled) for folder in folders]
    corpus = _corpus_of(options, stores or [options.store])
    of_file = "" if options.unlabelled is None else f"-{options.unlabelled.stem}"
    if stores:
        return _compare(options, stores, corpus, options.run / (COMPARISON if not of_file else f"{Path(COMPARISON).stem}{of_file}.json"))
    path = options.run / f"inspection{of_file}.json"
    inspection = inspect(options.store, corpus, settings=part_of(options, InspectSettings), run_dir=options.run)
    say(inspection.summary())
    scores = kept_scores(options.store, corpus)
    if scores is not None:
        say(f"CLIP scores left out: {scores.left_out}" if isinstance(scores, LeftOut) else scores.sentence())
    figures = {} if not isinstance(scores, ClipScores) else {"clip_scores": {"column": scores.column, **scores.figures()}}
    record = {"command": "inspect", **inspection.to_json(), **figures, "inspection": str(path), "config": resolved_flags(options)}
    write_json(path, record)
    return record


def score_store(options: ScoreOptions) -> dict[str, Any]:
    """Score the images of a store, print the scores in one sentence and return their figures.

    Raises:
        InputError: as for ``load_corpus`` and ``score_images``.
    """
    store = options.store
    scores = score_images(store, _corpus_of(options, [store]), column=options.column, device=options.device)
    say(scores.sentence())
    return {"command": "score", "store": str(store), "column": scores.column, **scores.figures(), "config": resolved_flags(options)}


def reduce_store(options: ReduceOptions) -> dict[str, Any]:
    """Write the principal components of a column as a column of its own, say what they keep, and return it.

    Raises:
        InputError: as for ``load_corpus`` and ``reduce_column``.
    """
    if options.run_dir is not None and (address := address_of(options.run_dir)):
        raise InputError(
            got=f"reduce of {address}", expected="a run in a local folder", do="reduce a local copy, whose folder is --run-dir"
        )
    store = options.store
    basis_from = None if options.unlabelled is None else store_folder(options.run, None)
    corpus = _corpus_of(options, [store])
    reduction = reduce_column(store, corpus, components=options.pca, column=options.column, basis_from=basis_from)
    say(reduction.sentence(store))
    figures = {"column": reduction.column, "rows": reduction.rows, "bytes_per_image": list(reduction.bytes_per_image)}
    return {"command": "reduce", "store": str(store), **figures, "variance": reduction.variance, "config": resolved_flags(options)}


def _corpus_of(options: InspectOptions | ScoreOptions | ReduceOptions, stores: Sequence[Path]) -> Corpus:
    """Return the texts of some stores, with the pictures that these were filled from if they are of one column."""
    settings = part_of(options, CorpusSettings)
    columns = {images_from(store) for store in stores} - {None}
    if settings.images_from is None and len(columns) == 1:
        try:
            return _load(options, stores, replace(settings, images_from=columns.pop()))
        except InputError:
            corpus = _load(options, stores, settings)
            if all(read_stored_examples(store).table.corpus_fingerprint == corpus.fingerprint() for store in stores):
                raise
            return corpus  # of which one of the stores is not, as its reader will say
    return _load(options, stores, settings)


def _load(options: InspectOptions | ScoreOptions | ReduceOptions, stores: Sequence[Path], settings: CorpusSettings) -> Corpus:
    if options.unlabelled is None:
        return load_corpus(options.dataset, settings)
    flags = [flags_of_the_maker(store, column) or {} for store in stores for column in columns_of(store)]
    if any(its.get("prompts") in OF_LABELLED for its in flags):
        return load_unlabelled_for(options.dataset, options.unlabelled, settings)
    return load_unlabelled(options.unlabelled, settings)


def _compare(options: InspectOptions, stores: Sequence[Path], corpus: Corpus, path: Path) -> dict[str, Any]:
    comparison = compare_stores(stores, corpus, settings=part_of(options, InspectSettings), run_dir=make_folder(options.run))
    say(comparison.summary())
    record = {"command": "inspect", **comparison.to_json(), "comparison": str(path), "config": resolved_flags(options)}
    write_json(path, record)
    return record
