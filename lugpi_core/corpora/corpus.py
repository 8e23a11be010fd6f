"""Examples and corpora: what every part of lugpi means by a row.

Row i of every file is example i of the corpus, in the corpus's own order (the order of its archive). The split is a column, not an
order, so that another split seed needs no new drawing.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

import xxhash

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# The label of a text that nobody labelled.
UNLABELLED = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One text. ``label`` is its class or UNLABELLED, ``text`` what the text encoder reads, ``prompt`` what the generator reads."""

    id: str
    text: str
    prompt: str
    label: int
    split: Split


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text-classification corpus, whole and in its own order.

    Attributes:
        name: what the run folder is called (``20ng``, ``imdb``, the stem of a CSV file …).
        label_names: class k is ``label_names[k]``; reaches the student's ``id2label``.
        examples: all splits, in the corpus's own order.
        license: licence and origin in a few words; reaches the student's model card.
        separator: the marker written around a target inside ``text`` (``"[SEP]"`` for the CWI corpora), or None. A text encoder with
            another separator token has it replaced by its own.
    """

    name: str
    label_names: tuple[str, ...]
    examples: tuple[Example, ...] = field(repr=False)
    license: str
    separator: str | None = None

    def rows(self, split: Split) -> list[int]:
        """Return the row numbers of one split, ascending."""
        return [row for row, example in enumerate(self.examples) if example.split == split]

    def counts(self) -> dict[str, int]:
        """Return the number of examples of each split, as ``{"train": …, "validation": …, "test": …}``."""
        counted = Counter(example.split for example in self.examples)
        return {split: counted[split] for split in SPLITS}

    def fingerprint(self) -> str:
        """Return the xxh3-128 of everything that decides a training run: ids, texts, prompts, labels, splits and label names."""
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
