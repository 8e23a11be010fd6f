"""What several models of one command read: each corpus, text model and token column is opened and checked once."""

from pathlib import Path

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusOptions
from lugpi_core.fields import part_of
from train.data.image_tokens import ImageTokens, open_image_tokens
from train.data.text_model import TextModel, find_text_model


class InputCache:
    """Keeps the corpora, with their texts, and the memory maps of the columns; no weights and no rows.

    It assumes that nothing on the disk changes during one command.
    """

    def __init__(self) -> None:
        self._corpora: dict[CorpusOptions, Corpus] = {}
        self._text_models: dict[tuple[str, int | None], TextModel] = {}
        self._tokens: dict[tuple[Path, str | None, str], ImageTokens] = {}

    def corpus(self, options: CorpusOptions) -> Corpus:
        """Return the corpus that the options name. Raises InputError as ``load_corpus`` does."""
        key = part_of(options, CorpusOptions)
        if key not in self._corpora:
            self._corpora[key] = load_corpus(key.dataset, key)
        return self._corpora[key]

    def text_model(self, name: str, max_length: int | None) -> TextModel:
        """Return the text model of that name. Raises InputError as ``find_text_model`` does."""
        key = name, max_length
        if key not in self._text_models:
            self._text_models[key] = find_text_model(name, max_length=max_length)
        return self._text_models[key]

    def tokens(self, store: Path, column: str | None, corpus: Corpus) -> ImageTokens:
        """Return a column of a store; its shards are compared with their hashes once. Raises InputError as ``open_image_tokens`` does."""
        key = store, column, corpus.fingerprint()
        if key not in self._tokens:
            self._tokens[key] = open_image_tokens(store, column, corpus)
        return self._tokens[key]
