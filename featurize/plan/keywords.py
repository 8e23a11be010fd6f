"""``--prompts keywords``: the words of a text with the largest TF-IDF, as many as the generator reads, in the order of the text.

The weight of term t in text d is (1 + ln tf) · idf with idf = 1 + ln((1 + n) / (1 + df)), where n train texts are counted and df of them
contain t: scikit-learn's ``TfidfVectorizer(sublinear_tf=True)``. No other split is counted: a term that no train text has counts as if one
had. A term is a word with a letter; in scripts without spaces, two neighbouring characters.

Shapes: T terms of some texts, W words of them, V names.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from featurize.plan.prompt_reader import PromptReader
from featurize.plan.words import folded, has_unspaced, is_unspaced, word_spans, words_in
from lugpi_core.corpora.columns import TextColumn, TextColumnBuilder

# Texts whose terms are held at once.
_AT_ONCE = 1024


class Vocabulary(dict[str, int]):
    """Numbers words as they stand, in the order in which they are met. Grows with their number; but words without a letter, which are no
    terms, are all number 0: most of many texts' numbers occur only once.

    Attributes:
        words: by their number.
        names: of each word, the number of the form in which it is compared; -1 for those that are no terms.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = [""]
        self.names = array("q", [-1])
        self._names: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        name = _name_of(word)
        if not name:
            return 0
        self[word] = number = len(self.words)
        self.words.append(word)
        self.names.append(self._names.setdefault(name, len(self._names)))
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The distinct terms of some texts, int64 [T] each, ascending by text and name, or those that were chosen, in another order.

    Attributes:
        text: which text each is of.
        name: the number of the form in which terms are compared.
        count: how often it occurs there.
        place: where it first occurs, counted in the words of that text.
        word: the number of the word that stands there.
    """

    text: NDArray[np.int64]
    name: NDArray[np.int64]
    count: NDArray[np.int64]
    place: NDArray[np.int64]
    word: NDArray[np.int64]

    def at(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Terms":
        """Return some of the terms, in the order of their numbers."""
        return Terms(
            text=self.text[chosen], name=self.name[chosen], count=self.count[chosen], place=self.place[chosen], word=self.word[chosen]
        )


def _name_of(word: str) -> str:
    return folded(word) if is_unspaced(word) or any(map(str.isalpha, word)) else ""


def _words_of_terms(text: str) -> list[str]:
    """Return the words of a text that are terms if they have a letter, as they stand; in scripts without spaces, pairs of characters."""
    return [text[begin:end] for begin, end in _term_spans(text)] if has_unspaced(text) else words_in(text)


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


def term_names(text: str) -> set[str]:
    """Return the terms of a text in the form in which they are compared."""
    return {_name_of(word) for word in set(_words_of_terms(text))} - {""}


def terms_of(texts: Sequence[str], vocabulary: Vocabulary) -> Terms:
    """Return the distinct terms of some texts."""
    numbers = [[vocabulary[word] for word in _words_of_terms(text)] for text in texts]
    lengths = np.array([len(its) for its in numbers], np.int64)
    word_W = np.fromiter(chain.from_iterable(numbers), np.int64, int(lengths.sum()))
    name_W = np.array(vocabulary.names, np.int64)[word_W]
    is_term = np.flatnonzero(name_W >= 0)
    text_W = np.repeat(np.arange(len(texts)), lengths)
    size = len(vocabulary.words)  # there are no more names than words
    keys, first, counts = np.unique(text_W[is_term] * size + name_W[is_term], return_index=True, return_counts=True)
    first = is_term[first]
    begins = np.cumsum(lengths) - lengths
    text = text_W[first]
    return Terms(text=text, name=keys - text * size, count=counts, place=first - begins[text], word=word_W[first])


def document_frequencies(texts: Iterable[str], vocabulary: Vocabulary) -> tuple[NDArray[np.int64], int]:
    """Return in how many texts each term occurs, by the number of its name, and the number of texts."""
    frequencies, number, rest = np.zeros(0, np.int64), 0, iter(texts)
    while part := list(islice(rest, _AT_ONCE)):
        counts = np.bincount(terms_of(part, vocabulary).name, minlength=len(frequencies))
        counts[: len(frequencies)] += frequencies
        frequencies, number = counts, number + len(part)
    return frequencies, number


class Weights:
    """The weight of each term: its frequency in a text, and that of texts with it.

    The logarithms are those of ``math``, once for each number: an array's may differ from one processor to the next, and with them the
    prompts.

    Args:
        frequencies: in how many texts each term occurs, by the number of its name.
        texts: number of texts.
    """

    def __init__(self, frequencies: NDArray[np.int64], texts: int) -> None:
        # A term that no text has, or that is not among the names, weighs as if one had it.
        distinct, place_of_name = np.unique(np.append(np.maximum(frequencies, 1), 1), return_inverse=True)
        idf = np.array([1 + math.log((1 + texts) / (1 + frequency)) for frequency in distinct.tolist()])
        self._idf_of_name = idf[place_of_name]

    def of(self, terms: Terms) -> NDArray[np.float64]:
        """Return the weights, float64 [T]."""
        tf = np.array([1 + math.log(max(1, count)) for count in range(int(terms.count.max(initial=0)) + 1)])
        weights: NDArray[np.float64] = tf[terms.count] * self._idf_of_name[np.minimum(terms.name, len(self._idf_of_name) - 1)]
        return weights

    def ranked(self, terms: Terms) -> Terms:
        """Return the terms text by text, the heaviest first; of equal ones the earlier first."""
        return terms.at(np.lexsort((terms.place, -self.of(terms), terms.text)))


def keyword_prompts(texts: Sequence[str], train: Iterable[str], reader: PromptReader) -> TextColumn:
    """Return the keywords of each text: as many of the heaviest terms as the generator reads, one at least.

    A term that the generator deletes, or that no tokenizer of it knows, is not chosen. A text without any is its own prompt.

    Args:
        texts: of all splits.
        train: the texts that are counted.
        reader: the generator's tokenizers.
    """
    vocabulary = Vocabulary()
    weights = Weights(*document_frequencies(train, vocabulary))
    prompts = TextColumnBuilder()
    for start in range(0, len(texts), _AT_ONCE):
        part = list(texts[start : start + _AT_ONCE])
        terms = terms_of(part, vocabulary)
        distinct, place = np.unique(terms.word, return_inverse=True)
        is_read = reader.reads([vocabulary.words[number] for number in distinct.tolist()])
        prompts.extend(_keywords_of(part, weights.ranked(terms.at(is_read[place])), vocabulary.words, reader))
    return prompts.column()


def _keywords_of(texts: Sequence[str], ranked: Terms, words: Sequence[str], reader: PromptReader) -> list[str]:
    lengths = np.bincount(ranked.text, minlength=len(texts))
    begins = np.cumsum(lengths) - lengths

    def build(row: int, count: int) -> str:
        if not lengths[row]:
            return texts[row]
        chosen = slice(begins[row], begins[row] + count)
        order = np.argsort(ranked.place[chosen])
        if has_unspaced(texts[row]):
            return _join(texts[row], ranked.place[chosen][order].tolist())
        return " ".join([words[number] for number in ranked.word[chosen][order].tolist()])

    most = reader.most_that_fit(ranked.word, lengths, words, build)
    return [build(row, max(1, count)) for row, count in enumerate(most)]


def _join(text: str, places: Sequence[int]) -> str:
    """Return some terms as they stand in a text, in its order, with a space between those that do not touch."""
    spans: Iterator[tuple[int, int]] = iter(_term_spans(text))
    chosen = set(places)
    joined, last = "", -1
    for place, (begin, end) in enumerate(spans):
        if place in chosen:
            joined += (text[begin:end] if begin > last else text[last:end]) if not joined or begin <= last else f" {text[begin:end]}"
            last = max(last, end)
    return joined
