"""How much of a prompt a generator reads: the numbers of tokens, and the words that fit. Loads tokenizers only."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from featurize.generate.generators import Generator
from featurize.generate.text_to_image import token_counter
from featurize.plan.words import word_spans

_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class PromptReader:
    """What a generator's tokenizers say.

    Attributes:
        tokens_read: most tokens of a prompt that are read, those of a template and special ones included.
        tokens_of: returns the tokens of each prompt if nothing were cut.
    """

    tokens_read: int
    tokens_of: Callable[[Sequence[str]], Sequence[int]]

    def most_that_fit(self, highest: Sequence[int], build: Callable[[int, int], str]) -> list[int]:
        """Return how many words of each prompt fit, 0 to ``highest``: at most ``tokens_read`` tokens, and one word more has too many.

        Args:
            highest: the words of each prompt.
            build: of a prompt's number and a number of words.
        """
        # A word has at least one token: where as many as are read and one more have too many, the others need not be built.
        few = [min(most, self.tokens_read + 1) for most in highest]
        tokens = self._counts([build(row, words) for row, words in enumerate(few)])
        for row in np.flatnonzero((tokens <= self.tokens_read) & (np.array(few) < highest)).tolist():
            few[row], tokens[row] = highest[row], self._counts([build(row, highest[row])])[0]
        rows = np.flatnonzero(tokens > self.tokens_read).tolist()
        found = self._search([few[row] for row in rows], tokens[rows], lambda place, words: build(rows[place], words))
        for row, words in zip(rows, found, strict=True):
            few[row] = words
        return few

    def parts_read(self, prompts: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
        """Return what is read of each prompt, up to the end of its last whole word, and bool [P], whether that is less than all of it."""
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

        for place, words in enumerate(self._search([len(its) for its in ends], tokens[rows], build)):
            read[rows[place]] = build(place, words)
        return read, cut

    def _search(self, too_many: Sequence[int], tokens: NDArray[np.int64], build: Callable[[int, int], str]) -> list[int]:
        """Return the largest number of words of each prompt that fits, below ``too_many``, which has ``tokens`` and does not.

        The tokens are taken to grow with the words. Between a number that fits and one that does not, the next to be tried is interpolated,
        every third time the middle.
        """
        low, high = np.zeros(len(too_many), np.int64), np.array(too_many, np.int64)
        tokens_low, tokens_high = np.full(len(low), self._counts([""])[0]), tokens.copy()
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


def prompt_reader(generator: Generator) -> PromptReader:
    """Return what reads a generator's prompts; its tokenizers are loaded.

    Raises:
        InputError: a tokenizer does not load.
    """
    tokens_of, tokens_read = token_counter(generator)
    return PromptReader(tokens_read=tokens_read, tokens_of=tokens_of)
