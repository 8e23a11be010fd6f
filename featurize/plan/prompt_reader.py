"""How much of a prompt a generator reads: the numbers of tokens, and the words that fit. Loads tokenizers only."""

import re
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from featurize.generate.generators import Generator
from featurize.generate.tokenizers import load_tokenizers
from featurize.plan.words import word_spans, words_in

_AT_ONCE = 1024
# A word that stands before others while their tokens are counted, because in many vocabularies a space is part of the word that follows.
_FILLER = "a"
_SPARE = 8
# Words whose answers are remembered: more than most of a corpus's words are of, and some 20 MB.
_MOST_REMEMBERED = 1 << 17
_NOT_SPACE = re.compile(r"\S")
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """Of each prompt, a number of words that fits and a larger one that does not, with their tokens; int64 [P]."""

    low: NDArray[np.int64]
    tokens_low: NDArray[np.int64]
    high: NDArray[np.int64]
    tokens_high: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """What the tokens of the pieces of P prompts say, added up; int64 [P].

    Attributes:
        most: the number of pieces that fit.
        few: how many pieces were looked at: where there are more, these are too many.
    """

    most: NDArray[np.int64]
    few: NDArray[np.int64]
    _none: int
    _begins: NDArray[np.int64]
    _sums: NDArray[np.int64]

    def tokens(self, pieces: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tokens of each prompt of so many of its first pieces."""
        tokens: NDArray[np.int64] = self._none + self._sums[self._begins + pieces] - self._sums[self._begins]
        return tokens


class _Remembered(Generic[Answer]):
    """Answers about words, each asked for once while they are few."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}

    def of(self, words: Sequence[str], ask: Callable[[Sequence[str]], Iterable[Answer]]) -> list[Answer]:
        """Return the answer about each word; ``ask`` is called with new words, some at once."""
        if len(self._answers) + len(words) > _MOST_REMEMBERED:
            self._answers.clear()
        new = [word for word in dict.fromkeys(words) if word not in self._answers]
        for start in range(0, len(new), _AT_ONCE):
            part = new[start : start + _AT_ONCE]
            self._answers.update(zip(part, ask(part), strict=True))
        return [self._answers[word] for word in words]


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """What a generator's tokenizers say.

    Attributes:
        tokens_read: most tokens of a prompt that are read, those of a template and special ones included.
        tokens_of: returns the tokens of each prompt if nothing were cut.
        cleaned: returns what is left of prompts before they are tokenized.
        knows: returns of each word whether a tokenizer has tokens for all of it.
    """

    tokens_read: int
    tokens_of: Callable[[Sequence[str]], Sequence[int]]
    cleaned: Callable[[Sequence[str]], list[str]] = list
    knows: Callable[[Sequence[str]], Sequence[bool]] | None = None
    _alone: _Remembered[int] = field(default_factory=_Remembered, init=False, repr=False, compare=False)
    _known: _Remembered[bool] = field(default_factory=_Remembered, init=False, repr=False, compare=False)
    _is_read: _Remembered[bool] = field(default_factory=_Remembered, init=False, repr=False, compare=False)

    def most_that_fit(
        self, pieces: NDArray[np.int64], lengths: NDArray[np.int64], words: Sequence[str], build: Callable[[int, int], str]
    ) -> list[int]:
        """Return how many pieces of each of P prompts fit: at most ``tokens_read`` tokens, and one piece more has too many.

        The tokens of each distinct piece are counted once. A prompt as long as the sum says is counted as a whole, unless all of its pieces
        have an eighth fewer than are read; if the sum was wrong, its length is searched for.

        Args:
            pieces: the numbers of the pieces of all prompts, prompt after prompt.
            lengths: int64 [P], how many of them are of each prompt.
            words: the pieces by their number.
            build: returns a prompt, by its number, of so many of its first pieces.
        """
        sums = self._sums(pieces, lengths, words)
        most, few = sums.most, sums.few
        likely = self.tokens_read - self.tokens_read // _SPARE
        rows = np.flatnonzero((few < lengths) | (sums.tokens(few) > likely))
        counted = self._counts([build(row, count) for row, count in zip(rows.tolist(), most[rows].tolist(), strict=True)])
        expected = sums.tokens(most)[rows]
        is_wrong = (counted != expected) | (expected > self.tokens_read)
        rows, counted = rows[is_wrong], counted[is_wrong]
        most[rows] = self._search_from(rows.tolist(), counted, most[rows], few[rows], lengths[rows], build)
        return [int(count) for count in most]

    def _sums(self, pieces: NDArray[np.int64], lengths: NDArray[np.int64], words: Sequence[str]) -> _Sums:
        """Return what the sums of the pieces' tokens say; the arguments are those of ``most_that_fit``."""
        # A piece has at least one token: where as many as are read and one more have too many, the others need not be counted.
        few = np.minimum(lengths, self.tokens_read + 1)
        rank = np.arange(len(pieces)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        none, tokens = self._tokens_between(pieces[rank <= self.tokens_read], words)
        sums = np.concatenate([[0], np.cumsum(tokens)])
        begins = np.cumsum(few) - few
        fits = none + sums[1:] - np.repeat(sums[begins], few) <= self.tokens_read
        most = np.bincount(np.repeat(np.arange(len(few)), few)[fits], minlength=len(few))
        return _Sums(most=most, few=few, _none=none, _begins=begins, _sums=sums)

    def _search_from(
        self,
        rows: Sequence[int],
        tokens: NDArray[np.int64],
        guess: NDArray[np.int64],
        ends: NDArray[np.int64],
        lengths: NDArray[np.int64],
        build: Callable[[int, int], str],
    ) -> NDArray[np.int64]:
        """Return how many pieces of some prompts fit. A guessed number of them has so many tokens; more than ``ends``, if there are more,
        have too many."""
        all_tokens = self._counts([build(row, end) for row, end in zip(rows, ends.tolist(), strict=True)])
        low, high = np.zeros(len(rows), np.int64), ends.copy()
        tokens_low, tokens_high = np.full(len(rows), self._counts([""])[0]), all_tokens.copy()
        fits = tokens <= self.tokens_read
        low[fits], tokens_low[fits] = guess[fits], tokens[fits]
        high[~fits], tokens_high[~fits] = guess[~fits], tokens[~fits]
        is_whole = all_tokens <= self.tokens_read
        low[is_whole] = lengths[is_whole]
        open_rows = np.flatnonzero(~is_whole)
        bounds = _Bounds(low=low[open_rows], tokens_low=tokens_low[open_rows], high=high[open_rows], tokens_high=tokens_high[open_rows])
        low[open_rows] = self._search(bounds, lambda place, count: build(rows[open_rows[place]], count))
        return low

    def _tokens_between(self, pieces: NDArray[np.int64], words: Sequence[str]) -> tuple[int, NDArray[np.int64]]:
        """Return the tokens of a prompt without words, and int64 of each piece, by its number, its tokens if it stands between others."""
        distinct, place = np.unique(pieces, return_inverse=True)
        one, two = self._counts([_FILLER, f"{_FILLER} {_FILLER}"]).tolist()

        def between(new: Sequence[str]) -> list[int]:
            tokens: list[int] = (self._counts([f"{_FILLER} {word}" for word in new]) - one).tolist()
            return tokens

        tokens = self._alone.of([words[number] for number in distinct.tolist()], between)
        return 2 * one - two, np.array(tokens, np.int64)[place]

    def parts_read(self, prompts: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
        """Return what is read of each prompt, up to the end of its last whole word, and bool [P], whether that is less than all of it.

        A prompt is counted once, up to the first word that has too many tokens by the sum of those of its words, or whole if none has; if
        the sum was wrong, the end is searched for.
        """
        first = [_first_words(prompt, self.tokens_read + 1) for prompt in prompts]
        ends = [_ends_of_words(text) for text in first]
        number: dict[str, int] = {}
        pieces = [
            number.setdefault(text[begin:end].lstrip(), len(number))
            for text, its in zip(first, ends, strict=True)
            for begin, end in pairwise(its)
        ]
        lengths = np.array([len(its) - 1 for its in ends], np.int64)
        sums = self._sums(np.array(pieces, np.int64), lengths, list(number))
        tried = np.minimum(sums.most + 1, sums.few)
        counted = self._counts([text[: its[count]] for text, its, count in zip(first, ends, tried.tolist(), strict=True)])
        cut = counted > self.tokens_read
        is_all = (tried == lengths) & np.array([len(text) == len(prompt) for text, prompt in zip(first, prompts, strict=True)], np.bool_)
        is_sure = (counted == sums.tokens(tried)) & (cut | is_all)
        read = [text[: its[count]] for text, its, count in zip(first, ends, (tried - cut).tolist(), strict=True)]
        rows = np.flatnonzero(~is_sure).tolist()
        found, cut[rows] = self._parts_searched([prompts[row] for row in rows])
        for row, part in zip(rows, found, strict=True):
            read[row] = part
        return read, cut

    def _parts_searched(self, prompts: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
        """Return what ``parts_read`` does, where tokens of words do not add up."""
        read = [_first_words(prompt, self.tokens_read + 1) for prompt in prompts]
        tokens = self._counts(read)
        for row in np.flatnonzero(tokens <= self.tokens_read).tolist():
            if len(read[row]) < len(prompts[row]):
                read[row], tokens[row] = prompts[row], self._counts([prompts[row]])[0]
        cut = tokens > self.tokens_read
        rows = np.flatnonzero(cut).tolist()
        ends = [[0, *(end for _, end in word_spans(read[row]))] for row in rows]

        def build(place: int, words: int) -> str:
            return prompts[rows[place]][: ends[place][words]]

        high = np.array([len(its) for its in ends], np.int64)
        none = np.zeros(len(rows), np.int64)
        bounds = _Bounds(low=none, tokens_low=none + self._counts([""])[0], high=high, tokens_high=tokens[rows])
        for place, words in enumerate(self._search(bounds, build)):
            read[rows[place]] = build(place, words)
        return read, cut

    def reads(self, words: Sequence[str]) -> NDArray[np.bool_]:
        """Return of each word or pair of characters whether it is left when prompts are cleaned, and a tokenizer knows it. It is asked
        about once."""

        def are_read(new: Sequence[str]) -> Iterable[bool]:
            left = self.cleaned(new)
            is_left = [rest == word or len(words_in(rest)) >= len(words_in(word)) for word, rest in zip(new, left, strict=True)]
            is_known = [True] * len(new) if self.knows is None else self.knows(left)
            return map(all, zip(is_left, is_known, strict=True))

        return np.array(self._is_read.of(words, are_read), np.bool_)

    def without_unknown(self, prompts: Sequence[str]) -> list[str]:
        """Return the prompts without the words that every tokenizer maps, in part or whole, to its unknown token."""
        if self.knows is None:
            return list(prompts)
        words = sorted({word for prompt in prompts for word in words_in(prompt)})
        unknown = {word for word, is_known in zip(words, self._known.of(words, self.knows), strict=True) if not is_known}
        return [_without(prompt, unknown) for prompt in prompts] if unknown else list(prompts)

    def _search(self, bounds: "_Bounds", build: Callable[[int, int], str]) -> list[int]:
        """Return the largest number of words of each prompt that fits.

        The tokens are taken to grow with the words. Between a number that fits and one that does not, the next to be tried is interpolated,
        every third time the middle.
        """
        low, tokens_low, high, tokens_high = (array.copy() for array in (bounds.low, bounds.tokens_low, bounds.high, bounds.tokens_high))
        attempt = 0
        while len(rows := np.flatnonzero(high - low > 1)):
            attempt += 1
            tokens_per_word = np.maximum((tokens_high[rows] - tokens_low[rows]) / (high[rows] - low[rows]), 1e-3)
            interpolated = low[rows] + (self.tokens_read - tokens_low[rows]) / tokens_per_word
            middle = (low[rows] + high[rows]) / 2
            tried = np.clip(middle if attempt % 3 == 0 else interpolated, low[rows] + 1, high[rows] - 1).astype(np.int64)
            counts = self._counts([build(row, words) for row, words in zip(rows.tolist(), tried.tolist(), strict=True)])
            fit = counts <= self.tokens_read
            low[rows[fit]], tokens_low[rows[fit]] = tried[fit], counts[fit]
            high[rows[~fit]], tokens_high[rows[~fit]] = tried[~fit], counts[~fit]
        return [int(words) for words in low]

    def _counts(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        parts = [self.tokens_of(prompts[start : start + _AT_ONCE]) for start in range(0, len(prompts), _AT_ONCE)]
        return np.array([count for part in parts for count in part], np.int64)


def _first_words(prompt: str, count: int) -> str:
    """Return the prompt up to the end of its ``count``-th run of letters without a space, which has a token or more; so a prompt of a
    megabyte need not be tokenized."""
    ends = [run.end() for run in islice(re.finditer(r"\S+", prompt), count + 1)]
    return prompt if len(ends) <= count else prompt[: ends[count - 1]]


def _ends_of_words(text: str) -> list[int]:
    """Return 0, where each word of a text ends, and where the text ends; spaces at its end belong to its last word."""
    ends = [0, *(end for _, end in word_spans(text))]
    return [*(ends[:-1] if len(ends) > 1 and not _NOT_SPACE.search(text, ends[-1]) else ends), len(text)]


def _without(prompt: str, words: AbstractSet[str]) -> str:
    kept, last = [], 0
    for begin, end in word_spans(prompt):
        if prompt[begin:end] in words:
            kept.append(prompt[last:begin])
            last = end
    return " ".join([*kept, prompt[last:]])


def words_known(tokenizers: Sequence[Any], words: Sequence[str]) -> list[bool]:
    """Return of each word whether one of the tokenizers reads it without its unknown token."""
    known = np.zeros(len(words), np.bool_)
    for tokenizer in tokenizers:
        rows = np.flatnonzero(~known).tolist()
        if rows:
            ids = tokenizer([words[row] for row in rows], add_special_tokens=False, verbose=False)["input_ids"]
            known[rows] = [tokenizer.unk_token_id not in its for its in ids]
    return [bool(one) for one in known]


def prompt_reader(generator: Generator) -> PromptReader:
    """Return what reads a generator's prompts; its tokenizers are loaded.

    Raises:
        InputError: a tokenizer does not load.
    """
    family, tokenizers = generator.family, load_tokenizers(generator)
    return PromptReader(
        tokens_read=family.tokens_read,
        tokens_of=partial(family.tokens_of, tokenizers),
        cleaned=family.cleaned,
        knows=partial(words_known, list(tokenizers.values())),
    )
