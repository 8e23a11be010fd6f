"""The words of a text, and where it may be cut, in any script.

A word is a run of letters, digits and marks, with apostrophes inside. In scripts that put no spaces between words (Chinese, Japanese, Thai,
Lao, Khmer, Burmese, Tibetan) each character with its marks counts as one. Words are compared case-folded, in Unicode's form NFC.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from functools import cache
from itertools import pairwise

# Tibetan, Thai, Lao, Burmese, Khmer; Chinese and Japanese with their repetition signs; Yi; half-width katakana; the rarer ideographs.
_UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48f\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_ALONE = re.compile(f"[{_UNSPACED}]")
# The words of a text in ASCII, as those of any other text, but found four times as fast.
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:'[A-Za-z0-9]+)*")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s|[。！？｡؟۔।॥]|\n\s*\n")
_PHRASE_END = re.compile(r"[\s、，,;；:：]")
# A border may lie this share of a passage away from where equal parts end, if a sentence or phrase ends there.
_TOLERANCE = 0.25


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a word, and of a word that a passage may begin with, with what opens it."""
    # Of the Basic Multilingual Plane: `\w` has no vowel signs, which are parts of words in the scripts of India. It has the underscore.
    marks = "".join(chr(code) for code in range(0x300, 0x10000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    spaced = rf"(?:[^\W_{_UNSPACED}]+[{marks}\u200c\u200d]*)+"
    alone = rf"[{_UNSPACED}](?<=\w)[{marks}]*"
    word = rf"{spaced}(?:['’]{spaced})*|{alone}"
    opening = r"(?:(?![\w\s])[^、，。！？；：」』）》〉】…])*"
    return re.compile(word), re.compile(rf"(?:(?<!\S)|(?<=[{_UNSPACED}、，。！？；：」』）》〉】…])){opening}(?:{word})|{alone}")


def words_of(text: str) -> list[str]:
    """Return the words of a text in their order, folded."""
    return words_in(folded(text))


def words_in(text: str) -> list[str]:
    """Return the words of a text in their order, as they stand."""
    return _word_pattern(text).findall(text)


def _word_pattern(text: str) -> re.Pattern[str]:
    return _ASCII_WORD if text.isascii() else _patterns()[0]


def folded(text: str) -> str:
    """Return a text in the form in which words are compared."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", text.casefold())


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where each word begins and ends."""
    return [match.span() for match in _word_pattern(text).finditer(text)]


def has_unspaced(text: str) -> bool:
    """Whether a text has a character of a script without spaces."""
    return not text.isascii() and _ALONE.search(text) is not None


def is_unspaced(word: str) -> bool:
    """Whether a word is a character of a script without spaces."""
    return word >= _UNSPACED[0] and _ALONE.match(word) is not None


def passages_of(text: str, count: int) -> tuple[str, ...]:
    """Return a text in at most ``count`` passages of near-equal length, in letters, cut between words; together they are all of it.

    Cut is where a sentence ends if one does within a quarter of a passage from where equal parts would end, else where a phrase does, else
    at the nearest border of two words. A text has no more passages than words.
    """
    return tuple(text[begin:end] for begin, end in passage_spans(text, count))


def passage_spans(text: str, count: int) -> list[tuple[int, int]]:
    """Return where each passage begins and ends, without the spaces around it."""
    borders = [match.start() for match in _patterns()[1].finditer(text)]
    count = min(count, len(borders))
    if count < 2:
        return [(0, len(text))]
    length = (len(text) - borders[0]) / count
    chosen = [0]
    for passage in range(1, count):
        # Every passage has a word: as many borders are left as passages are missing.
        free = range(chosen[-1] + 1, len(borders) - (count - passage) + 1)
        chosen.append(_best_border(text, borders, free, borders[0] + passage * length, length * _TOLERANCE))
    cuts = [0, *(borders[number] for number in chosen[1:]), len(text)]
    return [_without_spaces(text, begin, end) for begin, end in pairwise(cuts)]


def _without_spaces(text: str, begin: int, end: int) -> tuple[int, int]:
    part = text[begin:end]
    left = len(part) - len(part.lstrip())
    return begin + left, begin + max(left, len(part.rstrip()))


def _best_border(text: str, borders: list[int], free: range, target: float, tolerance: float) -> int:
    """Return the number of the border to cut at, one of ``free``: within the tolerance of the best kind, and of that kind the nearest."""
    after = min(max(bisect_left(borders, target), free[0]), free[-1])
    nearest = min(after, max(after - 1, free[0]), key=lambda number: abs(borders[number] - target))
    first, last = bisect_left(borders, target - tolerance), bisect_right(borders, target + tolerance)
    within = sorted(range(max(first, free[0]), min(last, free[-1] + 1)), key=lambda number: abs(borders[number] - target))
    for kind in (_SENTENCE_END, _PHRASE_END):
        for number in within:
            if kind.search(text, borders[number - 1], borders[number]):
                return number
    return nearest
