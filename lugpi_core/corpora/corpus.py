"""Examples and corpora. Row i of every file is example i of the corpus, in the corpus's own order (that of its archive).

The split of an example is a value, not a position, so that another split seed needs no new images.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.columns import TextColumn, Texts
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


Target = tuple[int, ...] | float | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Examples(Sequence[Example]):
    """N examples as columns: a text takes its UTF-8 and a few numbers. An ``Example`` is made when it is asked for.

    Attributes:
        ids, texts, prompts: of each; ``prompts`` may be ``texts`` itself.
        labels: int64 [N].
        splits: uint8 [N], the place of each example's split in SPLITS.
        pairs, targets, pictures: of each; None if no example has one.
    """

    ids: Texts
    texts: TextColumn
    prompts: TextColumn
    labels: NDArray[np.int64]
    splits: NDArray[np.uint8]
    pairs: Sequence[str | None] | None = None
    targets: Sequence[Target] | None = None
    pictures: Sequence[PictureCell | None] | None = None

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Return the columns of some examples; of columns, themselves."""
        if isinstance(examples, Examples):
            return examples
        given = list(examples)
        texts = TextColumn.of([example.text for example in given])
        pairs = [example.pair for example in given]
        targets = [example.target for example in given]
        pictures = [example.pictures for example in given]
        return cls(
            ids=TextColumn.of([example.id for example in given]),
            texts=texts,
            prompts=texts if all(one.prompt == one.text for one in given) else TextColumn.of([example.prompt for example in given]),
            labels=np.array([example.label for example in given], np.int64),
            splits=numbers_of_splits(example.split for example in given),
            pairs=None if all(pair is None for pair in pairs) else pairs,
            targets=None if all(target is None for target in targets) else targets,
            pictures=None if all(cell is None for cell in pictures) else pictures,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, place: int) -> Example: ...
    @overload
    def __getitem__(self, place: slice) -> "Examples": ...
    def __getitem__(self, place: int | slice) -> "Example | Examples":
        """Return an example, or the columns of some of them."""
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        return Example(
            id=self.ids[place],
            text=self.texts[place],
            prompt=self.prompts[place],
            label=int(self.labels[place]),
            split=SPLITS[self.splits[place]],
            pair=None if self.pairs is None else self.pairs[place],
            target=None if self.targets is None else self.targets[place],
            pictures=None if self.pictures is None else self.pictures[place],
        )

    def __iter__(self) -> Iterator[Example]:
        columns = zip(self.ids, self.texts, self.prompts, strict=True)
        numbers = zip(self.labels.tolist(), self.splits.tolist(), strict=True)
        others = [repeat(None) if column is None else column for column in (self.pairs, self.targets, self.pictures)]
        for (id_, text, prompt), (label, split), pair, target, pictures in zip(columns, numbers, *others, strict=False):
            yield Example(id=id_, text=text, prompt=prompt, label=label, split=SPLITS[split], pair=pair, target=target, pictures=pictures)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash((len(self), self.labels.tobytes()))

    def __repr__(self) -> str:
        return f"Examples({len(self)})"

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """Return the columns of some of the examples; the texts share their buffers."""
        rows = np.asarray(rows, np.int64)
        texts = self.texts.take(rows)
        return Examples(
            ids=self.ids.take(rows),
            texts=texts,
            prompts=texts if self.prompts is self.texts else self.prompts.take(rows),
            labels=self.labels[rows],
            splits=self.splits[rows],
            pairs=_take_rows(self.pairs, rows),
            targets=_take_rows(self.targets, rows),
            pictures=_take_rows(self.pictures, rows),
        )


def numbers_of_splits(splits: Iterable[Split]) -> NDArray[np.uint8]:
    """Return the places of splits in SPLITS, uint8 [N]."""
    number = {split: place for place, split in enumerate(SPLITS)}
    return np.fromiter((number[split] for split in splits), np.uint8)


def _take_rows(values: Sequence[Any] | None, rows: NDArray[np.int64]) -> Sequence[Any] | None:
    if isinstance(values, TextColumn):
        return values.take(rows)
    return None if values is None else [values[row] for row in rows.tolist()]


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
        examples: all splits, in the corpus's own order; however they are given, they are kept as columns.
        license: licence and origin in a few words, for the student's model card.
        separator: the marker around a target inside ``text`` (``"[SEP]"`` for the CWI corpora), or None. For a text encoder with another
            separator token it is replaced by that token.
        task: one class for each text (``single-label``), any number of classes (``multi-label``), or a number (``regression``).
        labelled: of unlabelled texts the corpus that they are added to, whose train texts weigh their keywords (None = they are weighed by
            themselves), and whose class names ``--prompts wordnet`` keeps out. Part of no fingerprint: prompts have their own.
    """

    name: str
    label_names: tuple[str, ...]
    examples: Sequence[Example] = field(repr=False)
    license: str
    separator: str | None = None
    task: Task = "single-label"
    labelled: "Corpus | None" = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", Examples.of(self.examples))  # the dataclass is frozen

    @property
    def columns(self) -> Examples:
        """The examples as columns."""
        assert isinstance(self.examples, Examples), type(self.examples)
        return self.examples

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
        return self.columns.pictures is not None

    @property
    def has_pairs(self) -> bool:
        """Whether its examples are pairs of texts."""
        return self.columns.pairs is not None

    def targets(self) -> NDArray[Any]:
        """Return what a model of this corpus learns, a row for each of its N examples.

        int64 [N] for single-label, -1 = unlabelled; float32 [N, K] of 0 and 1 for multi-label with K classes, a row of NaN = unlabelled;
        float32 [N] for regression, NaN = unlabelled.
        """
        if self.task == "single-label":
            return self.columns.labels.copy()
        given = self.columns.targets or [None] * len(self.examples)
        if self.task == "regression":
            return np.array([np.nan if target is None else target for target in given], np.float32)
        targets_NK = np.zeros((len(self.examples), len(self.label_names)), np.float32)
        for row, (target, label) in enumerate(zip(given, self.columns.labels.tolist(), strict=True)):
            classes = target if isinstance(target, tuple) else () if label == UNLABELLED else (label,)
            is_labelled = target is not None or label != UNLABELLED
            targets_NK[row, list(classes) if is_labelled else slice(None)] = 1 if is_labelled else np.nan
        return targets_NK

    def rows(self, split: str) -> list[int]:
        """Return the row numbers of one split, ascending; ``val``, ``valid`` and ``dev`` mean validation.

        Raises:
            InputError: there is no such split.
        """
        rows: list[int] = np.flatnonzero(self.columns.splits == SPLITS.index(split_named(split))).tolist()
        return rows

    def train_prompts(self) -> Iterator[str]:
        """Return the prompts of the train examples; of unlabelled texts, those of the corpus that they are added to."""
        corpus = self.labelled or self
        return (example.prompt for example in corpus.examples if example.split == "train")

    def counts(self) -> dict[str, int]:
        """Return the number of examples of each split, as ``{"train": …, "validation": …, "test": …}``."""
        counted = np.bincount(self.columns.splits, minlength=len(SPLITS)).tolist()
        return dict(zip(SPLITS, counted, strict=True))

    def fingerprint(self) -> str:
        """Return the xxh3-128 of everything that affects training: ids, texts, pairs, prompts, labels, splits, label names and task.

        It is computed once per corpus.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest, columns = xxhash.xxh3_128(), self.columns
        for part in self.label_names:
            digest.update(_framed(part))
        labels, splits = columns.labels.tolist(), columns.splits.tolist()
        ends = {key: _framed(str(key[0])) + _framed(SPLITS[key[1]]) for key in set(zip(labels, splits, strict=True))}
        prompts = repeat(None) if columns.prompts is columns.texts else columns.prompts.encoded()
        for id_, text, prompt, label, split in zip(columns.ids, columns.texts.encoded(), prompts, labels, splits, strict=False):
            framed = _with_length(text)
            digest.update(b"".join((_framed(id_), framed, framed if prompt is None else _with_length(prompt), ends[label, split])))
        # Only where there is something to add, so that stores and runs of single texts with single labels are recognized for ever.
        if self.task != "single-label":
            digest.update(_framed(f"task {self.task}"))
            for target in columns.targets or repeat(None, len(self.examples)):
                digest.update(_framed(repr(target)))
        if columns.pairs is not None:
            digest.update(_framed("pairs"))
            for pair in columns.pairs:
                digest.update(_framed("" if pair is None else f"={pair}"))
        return digest.hexdigest()


def _framed(text: str) -> bytes:
    return _with_length(text.encode("utf-8", "surrogatepass"))


def _with_length(data: bytes | bytearray) -> bytes:
    # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
    return len(data).to_bytes(8, "little") + data
