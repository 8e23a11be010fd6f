"""Examples and corpora. Row i of every file is example i of the corpus, in the corpus's own order (that of its archive).

The split of an example is a value, not a position, so that another split seed needs no new images.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import xxhash

from lugpi_core.errors import InputError, nearest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
# The label of an unlabelled text.
UNLABELLED = -1


def split_named(word: str) -> Split:
    """Return the split that a word such as ``val`` names.

    Raises:
        InputError: it names none.
    """
    split = SPLIT_WORDS.get(str(word).strip().lower())
    if split is None:
        raise InputError(got=f"split {word!r}", expected=f"one of {', '.join(SPLIT_WORDS)}", do=nearest(str(word), SPLITS))
    return split


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One text. ``label`` is its class or UNLABELLED; the text encoder reads ``text``, the generator reads ``prompt``."""

    id: str
    text: str
    prompt: str
    label: int
    split: Split


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text-classification corpus, whole and in its own order.

    Attributes:
        name: the name of the run folder (``20ng``, ``imdb``, the stem of a CSV file …).
        label_names: class k is ``label_names[k]``; becomes the student's ``id2label``.
        examples: all splits, in the corpus's own order.
        license: licence and origin in a few words, for the student's model card.
        separator: the marker around a target inside ``text`` (``"[SEP]"`` for the CWI corpora), or None. For a text encoder with another
            separator token it is replaced by that token.
    """

    name: str
    label_names: tuple[str, ...]
    examples: tuple[Example, ...] = field(repr=False)
    license: str
    separator: str | None = None

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        labels: Iterable[str | int] | None = None,
        *,
        prompts: Iterable[str] | None = None,
        splits: Iterable[str] | None = None,
        name: str = "texts",
        label_names: Sequence[str] | None = None,
    ) -> "Corpus":
        """Return a corpus of texts that are in memory, in their order, with ids ``row/0``, ``row/1``, …

        Its license is "not stated"; ``dataclasses.replace(corpus, license=…)`` states one, for the student's model card.

        Args:
            texts: a list, a tuple, an array or a pandas Series, as are the others.
            labels: class names, or class numbers: places in ``label_names`` if that is given, else names as well. None = unlabelled
                texts, all of them train examples.
            prompts: what the generator reads; the texts themselves if None.
            splits: "train", "validation" or "test" for each text. Whichever of validation and test has no text is cut from train, with
                seed 0: 20 % test, 10 % of the rest validation, the same cut as for a file.
            name: what the run folder is called.
            label_names: the classes in their order; one without a train example is warned of. If None they are sorted, by number if all
                of them are whole numbers.

        Raises:
            InputError: something without an order or with several columns in place of a list, lists of different lengths, an empty text, a
                label missing or not among the train examples, fewer than two classes, a ``name`` that no folder can have.
        """
        from lugpi_core.corpora.user_corpus import corpus_from_texts  # user_corpus imports this module

        others = {"label": labels, "prompt": prompts, "split": splits}
        columns = {"text": texts} | {column: values for column, values in others.items() if values is not None}
        return corpus_from_texts(columns, name=name, label_names=label_names)

    def rows(self, split: str) -> list[int]:
        """Return the row numbers of one split, ascending; ``val``, ``valid`` and ``dev`` mean validation.

        Raises:
            InputError: there is no such split.
        """
        split = split_named(split)
        return [row for row, example in enumerate(self.examples) if example.split == split]

    def counts(self) -> dict[str, int]:
        """Return the number of examples of each split, as ``{"train": …, "validation": …, "test": …}``."""
        counted = Counter(example.split for example in self.examples)
        return {split: counted[split] for split in SPLITS}

    def fingerprint(self) -> str:
        """Return the xxh3-128 of everything that affects training: ids, texts, prompts, labels, splits and label names.

        It is computed once per corpus.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = xxhash.xxh3_128()
        for part in self.label_names:
            digest.update(_framed(part))
        for example in self.examples:
            for part in (example.id, example.text, example.prompt, str(example.label), example.split):
                digest.update(_framed(part))
        return digest.hexdigest()


def _framed(text: str) -> bytes:
    # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "little") + data
