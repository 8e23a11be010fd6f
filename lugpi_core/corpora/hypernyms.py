"""The shipped table of hypernyms: what a noun is a kind of, by WordNet. ``python -m dev.hypernyms`` builds it.

Of each word only the first sense is known, the most frequent one by WordNet's count.
"""

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "data" / "hypernyms.tsv.gz"
# What WordNet's own morphy takes off a noun to find its base form.
_ENDINGS = (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"))


class Hypernyms:
    """Nouns of one word, and what they are kinds of.

    Args:
        table: the text of a table, see ``dev.hypernyms``.
    """

    def __init__(self, table: str) -> None:
        self._names: list[str] = []
        self._above: list[int] = []
        self._synset: dict[str, int] = {}
        for number, line in enumerate(table.splitlines()):
            name, words, above = line.split("\t")
            self._names.append(name)
            self._above.append(int(above))
            self._synset.update(dict.fromkeys(words.split(), number))

    def synset_of(self, word: str) -> int | None:
        """Return the number of a word's first sense, which its synonyms share, or that of its base form; None for an unknown word."""
        word = word.lower()
        bases = (word.removesuffix(ending) + base for ending, base in _ENDINGS if word.endswith(ending))
        return next((self._synset[form] for form in (word, *bases) if form in self._synset and len(form) >= min(len(word), 3)), None)

    def above(self, word: str) -> Iterator[str]:
        """Yield the name of a word's hypernym, of the hypernym of that, and so on up to ``entity``; nothing for an unknown word."""
        synset = self.synset_of(word)
        while synset is not None and (synset := self._above[synset]) >= 0:
            yield self._names[synset]


@cache
def load_hypernyms() -> Hypernyms:
    """Return the shipped table."""
    return Hypernyms(gzip.decompress(TABLE.read_bytes()).decode())
