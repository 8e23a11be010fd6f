"""``--prompts keywords``: the words of a text with the largest TF-IDF, as many as the generator reads, in the order of the text.

The weight of term t in text d is (1 + ln tf) · idf with idf = 1 + ln((1 + n) / (1 + df)), where n train texts are counted and df of them
contain t: scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``. No other split is counted: a term that no train text has counts as if one
had. A term is a word with a letter; in scripts without spaces, two neighbouring characters.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from featurize.plan.prompt_reader import PromptReader
from featurize.plan.words import folded, has_unspaced, is_unspaced, word_spans, words_in

# Texts whose terms are held at once.
_AT_ONCE = 1024
# Words whose names are remembered.
_MOST_NAMES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The distinct terms of a text, in the order in which they first occur.

    Attributes:
        counts: how often each occurs, by its name: the form in which terms are compared.
        pieces: each as it stands where it first occurs.
        spans: where that is, of texts in scripts without spaces, where terms overlap; None elsewhere.
    """

    counts: Mapping[str, int]
    pieces: Sequence[str]
    spans: Sequence[tuple[int, int]] | None

    def join(self, numbers: Iterable[int]) -> str:
        """Return some terms as they stand in the text, in its order, with a space between those that do not touch."""
        chosen = sorted(numbers)
        if self.spans is None:
            return " ".join([self.pieces[number] for number in chosen])
        joined, last = "", -1
        for number in chosen:
            (begin, end), piece = self.spans[number], self.pieces[number]
            joined += (piece if begin > last else piece[last - begin :]) if not joined or begin <= last else f" {piece}"
            last = max(last, end)
        return joined


class _Names(dict[str, str]):
    """The form in which each word is compared, remembered; empty for a word without a letter, which is no term."""

    def __missing__(self, word: str) -> str:
        if len(self) > _MOST_NAMES:
            self.clear()
        self[word] = name = folded(word) if any(map(str.isalpha, word)) else ""
        return name


def terms_of(text: str, names: Mapping[str, str] | None = None) -> Terms:
    """Return the distinct terms of a text.

    Args:
        text: in any script.
        names: of words, as far as they are remembered from other texts.
    """
    names = _Names() if names is None else names
    if has_unspaced(text):
        return _overlapping_terms(text, names)
    words = words_in(text)
    found = [names[word] for word in words]
    counts = Counter(found)
    first = dict(zip(reversed(found), reversed(words), strict=True))
    counts.pop("", None)
    return Terms(counts=counts, pieces=[first[name] for name in counts], spans=None)


def _overlapping_terms(text: str, names: Mapping[str, str]) -> Terms:
    places: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    for begin, end in _term_spans(text):
        piece = text[begin:end]
        if name := folded(piece) if is_unspaced(piece) else names[piece]:
            places.setdefault(name, (begin, end))
            counts[name] += 1
    spans = [places[name] for name in counts]
    return Terms(counts=counts, pieces=[text[begin:end] for begin, end in spans], spans=spans)


def _term_spans(text: str) -> Iterable[tuple[int, int]]:
    """Return where words are, and pairs of neighbouring characters of scripts without spaces, or one that stands alone."""
    spans = word_spans(text)
    is_alone = [is_unspaced(text[begin]) for begin, _ in spans]
    for number, (begin, end) in enumerate(spans):
        if not is_alone[number]:
            yield begin, end
            continue
        follows = number > 0 and is_alone[number - 1] and spans[number - 1][1] == begin
        if number + 1 < len(spans) and is_alone[number + 1] and spans[number + 1][0] == end:
            yield begin, spans[number + 1][1]
        elif not follows:
            yield begin, end


def term_names(text: str, names: Mapping[str, str] | None = None) -> set[str]:
    """Return the names of the terms of a text; ``names`` as for ``terms_of``."""
    names = _Names() if names is None else names
    if has_unspaced(text):
        return set(_overlapping_terms(text, names).counts)
    return {names[word] for word in set(words_in(text))} - {""}


def document_frequencies(texts: Iterable[str], names: Mapping[str, str] | None = None) -> tuple[Mapping[str, int], int]:
    """Return in how many texts each term occurs, and the number of texts; ``names`` as for ``terms_of``."""
    names = _Names() if names is None else names
    counts: Counter[str] = Counter()
    number = 0
    for text in texts:
        counts.update(term_names(text, names))
        number += 1
    return counts, number


class Weights:
    """The weight of each term: its frequency in a text, and that of texts with it.

    Args:
        frequencies: in how many texts each term occurs.
        texts: number of texts.
    """

    def __init__(self, frequencies: Mapping[str, int], texts: int) -> None:
        self._idf = {name: _idf(frequency, texts) for name, frequency in frequencies.items()}
        self._idf_of_new = _idf(1, texts)

    def ranked(self, terms: Terms) -> list[int]:
        """Return the numbers of a text's terms by their weight, the largest first; of equal ones the earlier first."""
        idf, new, tf = self._idf.get, self._idf_of_new, _tf
        lightness = [-tf(count) * idf(name, new) for name, count in terms.counts.items()]
        return sorted(range(len(lightness)), key=lightness.__getitem__)


def _idf(frequency: int, texts: int) -> float:
    return 1 + math.log((1 + texts) / (1 + frequency))


def _tf(count: int) -> float:
    return 1 + math.log(count) if count > 1 else 1.0


def keyword_prompts(texts: Sequence[str], train: Iterable[str], reader: PromptReader) -> list[str]:
    """Return the keywords of each text: as many of the heaviest terms as the generator reads, one at least.

    A text without a term is its own prompt.

    Args:
        texts: of all splits.
        train: the texts that are counted.
        reader: the generator's tokenizers.
    """
    names = _Names()
    weights = Weights(*document_frequencies(train, names))
    prompts: list[str] = []
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        terms = [terms_of(text, names) for text in part]
        prompts += _keywords_of(part, terms, [weights.ranked(its) for its in terms], reader)
    return prompts


def _keywords_of(texts: Sequence[str], terms: Sequence[Terms], by_weight: Sequence[Sequence[int]], reader: PromptReader) -> list[str]:
    def build(row: int, count: int) -> str:
        return terms[row].join(by_weight[row][:count]) if by_weight[row] else texts[row]

    pieces = [[its.pieces[number] for number in ranks] for its, ranks in zip(terms, by_weight, strict=True)]
    most = reader.most_that_fit(pieces, build)
    return [build(row, max(1, count)) for row, count in enumerate(most)]
