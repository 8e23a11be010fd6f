"""What the models of one process share: nothing of it depends on a model's seed, loss or teachers."""

from dataclasses import dataclass, field
from pathlib import Path

from lugpi_core.corpora.corpus import Corpus
from train.data.text_model import TextModel
from train.data.token_ids import Tokens, token_ids


@dataclass(frozen=True, kw_only=True)
class SharedInputs:
    """What is read and checked once for all models that have the same object; each model has its own unless it is given one.

    Attributes:
        rehearsed: which exports were rehearsed already: kind of model, text model, corpus and width of the image tokens.
    """

    rehearsed: set[tuple[object, ...]] = field(default_factory=set)
    _tokens: dict[tuple[object, ...], Tokens] = field(default_factory=dict, repr=False)

    def tokens(self, text_model: TextModel, corpus: Corpus, run: Path) -> Tokens:
        """Return the tokens of a corpus's texts, as ``token_ids`` does."""
        key = (text_model.weights_hash, text_model.max_length, corpus.fingerprint(), corpus.separator, run)
        if key not in self._tokens:
            self._tokens[key] = token_ids(text_model, corpus, run)
        return self._tokens[key]
