"""Examples and corpora. Row i of every file is example i of the corpus, in the corpus's own order (that of its archive).

The split of an example is a value, not a position, so that another split seed needs no new images.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.options import Task
from lugpi_core.corpora.pictures import PictureCell
from lugpi_core.errors import InputError, nearest
from lugpi_core.fields import require_known_arguments

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
# The label of an unlabelled text, and of every text whose label is no single class.
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
    """One text, or a pair of texts, and what it is labelled with.

    Attributes:
        id: unique in its corpus.
        text: what the text encoder reads.
        prompt: what the generator reads.
        label: the class of a single-label example; UNLABELLED if it has none, and for every example of the other tasks.
        split: train, validation or test.
        pair: the second text, or None. The text encoder reads both, with its own separator between them.
        pictures: a user's own pictures of the text, which featurize encodes; or None. Trainings read their tokens only, so they are not
            part of the corpus's fingerprint.
        target: the classes of a multi-label example, ascending, () if none applies; the number of a regression example; otherwise None.
    """

    id: str
    text: str
    prompt: str
    label: int
    split: Split
    pair: str | None = None
    target: tuple[int, ...] | float | None = None
    pictures: PictureCell | None = field(default=None, repr=False, compare=False)

    @property
    def is_labelled(self) -> bool:
        """Whether it has a class, a set of classes (which may be empty) or a number."""
        return self.label != UNLABELLED or self.target is not None

    @property
    def classes(self) -> tuple[int, ...]:
        """Its class or classes; none if it is unlabelled, if none applies, or if it is labelled with a number."""
        if isinstance(self.target, tuple):
            return self.target
        return () if self.label == UNLABELLED else (self.label,)


class TextColumns(TypedDict, total=False):
    """More values for each text of ``Corpus.from_texts``: lists, tuples, arrays or pandas Series.

    Attributes:
        prompts: what the generator reads. By default the texts themselves; of pairs, both texts with a space between them.
        pairs: the second texts, for tasks on pairs of texts.
        groups: texts of one group (an author, a document) stay in one split where a split is cut.
        images: pictures of your own, which ``featurize`` encodes in place of generating any: for each text a path, the bytes of a file, a
            picture of PIL, a list of these, or None. Paths are relative to the working folder.
    """

    prompts: Iterable[str] | None
    pairs: Iterable[str] | None
    groups: Iterable[str | int] | None
    images: Iterable[Any] | None


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text-classification corpus, whole and in its own order.

    Attributes:
        name: the name of the run folder (``20ng``, ``imdb``, the stem of a CSV file …).
        label_names: class k is ``label_names[k]``; becomes the student's ``id2label``. Of a regression corpus, the one name of its number.
        examples: all splits, in the corpus's own order.
        license: licence and origin in a few words, for the student's model card.
        separator: the marker around a target inside ``text`` (``"[SEP]"`` for the CWI corpora), or None. For a text encoder with another
            separator token it is replaced by that token.
        task: one class for each text (``single-label``), any number of classes (``multi-label``), or a number (``regression``).
    """

    name: str
    label_names: tuple[str, ...]
    examples: tuple[Example, ...] = field(repr=False)
    license: str
    separator: str | None = None
    task: Task = "single-label"

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        labels: Iterable[str | int] | Iterable[Sequence[str | int]] | Iterable[float] | None = None,
        *,
        splits: Iterable[str] | None = None,
        name: str = "texts",
        label_names: Sequence[str] | None = None,
        task: Task = "single-label",
        **columns: Unpack[TextColumns],
    ) -> "Corpus":
        """Return a corpus of texts that are in memory, in their order, with ids ``row/0``, ``row/1``, …

        Its license is "not stated"; ``dataclasses.replace(corpus, license=…)`` states one, for the student's model card.

        Args:
            texts: a list, a tuple, an array or a pandas Series, as are the others.
            labels: class names, or class numbers: places in ``label_names`` if that is given, else names as well. A list of them for each
                text if the task is multi-label, a number for each text if it is regression. None = unlabelled texts, all of them train
                examples.
            splits: "train", "validation" or "test" for each text. Whichever of validation and test has no text is cut from train, with
                seed 0: 20 % test, 10 % of the rest validation, the same cut as for a file.
            name: what the run folder is called.
            task: what the labels are.
            label_names: the classes in their order; one without a train example is warned of. If None they are sorted, by number if all
                of them are whole numbers.
            columns: ``prompts``, ``pairs``, ``groups`` and ``images``: see ``TextColumns``.

        Raises:
            InputError: something without an order or with several columns in place of a list, lists of different lengths, an empty text, a
                label missing or not among the train examples, fewer than two classes, a ``name`` that no folder can have.
        """
        from lugpi_core.corpora.user_corpus import corpus_from_texts  # user_corpus imports this module

        require_known_arguments(columns, TextColumns)
        others = {
            "label": labels,
            "pair": columns.get("pairs"),
            "prompt": columns.get("prompts"),
            "split": splits,
            "group": columns.get("groups"),
            "image": columns.get("images"),
        }
        given = {"text": texts} | {column: values for column, values in others.items() if values is not None}
        return corpus_from_texts(given, name=name, label_names=label_names, task=task)

    @property
    def has_pictures(self) -> bool:
        """Whether its texts have pictures of the user's own."""
        return any(example.pictures is not None for example in self.examples)

    @property
    def has_pairs(self) -> bool:
        """Whether its examples are pairs of texts."""
        return any(example.pair is not None for example in self.examples)

    def targets(self) -> NDArray[Any]:
        """Return what a model of this corpus learns, a row for each of its N examples.

        int64 [N] for single-label, -1 = unlabelled; float32 [N, K] of 0 and 1 for multi-label with K classes, a row of NaN = unlabelled;
        float32 [N] for regression, NaN = unlabelled.
        """
        if self.task == "single-label":
            return np.array([example.label for example in self.examples], np.int64)
        if self.task == "regression":
            return np.array([np.nan if example.target is None else example.target for example in self.examples], np.float32)
        targets_NK = np.zeros((len(self.examples), len(self.label_names)), np.float32)
        for row, example in enumerate(self.examples):
            targets_NK[row, list(example.classes) if example.is_labelled else slice(None)] = 1 if example.is_labelled else np.nan
        return targets_NK

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
        """Return the xxh3-128 of everything that affects training: ids, texts, pairs, prompts, labels, splits, label names and task.

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
        # Only where there is something to add, so that stores and runs of single texts with single labels are recognized for ever.
        if self.task != "single-label":
            digest.update(_framed(f"task {self.task}"))
            for example in self.examples:
                digest.update(_framed(repr(example.target)))
        if self.has_pairs:
            digest.update(_framed("pairs"))
            for example in self.examples:
                digest.update(_framed("" if example.pair is None else f"={example.pair}"))
        return digest.hexdigest()


def _framed(text: str) -> bytes:
    # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
    data = text.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "little") + data
