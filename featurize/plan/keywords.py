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
from featurize.plan.words import folded, is_unspaced, word_spans

# Texts whose terms are held at once.
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A term of a text.

    Attributes:
        name: in the form in which terms are compared.
        begin, end: where it first occurs.
        count: how often it occurs.
    """

    name: str
    begin: int
    end: int
    count: int


def terms_of(text: str) -> list[Term]:
    """Return the distinct terms of a text, in the order in which they first occur."""
    places: dict[str, tuple[int, int]] = {}
    counts: Counter[str] = Counter()
    for begin, end in _term_spans(text):
        name = folded(text[begin:end])
        places.setdefault(name, (begin, end))
        counts[name] += 1
    return [Term(name=name, begin=begin, end=end, count=counts[name]) for name, (begin, end) in places.items()]


def term_names(text: str) -> set[str]:
    """Return the names of the terms of a text."""
    return {folded(text[begin:end]) for begin, end in _term_spans(text)}


def _term_spans(text: str) -> Iterable[tuple[int, int]]:
    spans = word_spans(text)
    is_alone = [is_unspaced(text[begin]) for begin, _ in spans]
    for number, (begin, end) in enumerate(spans):
        if not is_alone[number]:
            if text[begin].isalpha() or any(map(str.isalpha, text[begin:end])):
                yield begin, end
            continue
        follows = number > 0 and is_alone[number - 1] and spans[number - 1][1] == begin
        if number + 1 < len(spans) and is_alone[number + 1] and spans[number + 1][0] == end:
            yield begin, spans[number + 1][1]
        elif not follows:
            yield begin, end


def document_frequencies(texts: Iterable[str]) -> tuple[Mapping[str, int], int]:
    """Return in how many texts each term occurs, and the number of texts."""
    counts: Counter[str] = Counter()
    number = 0
    for text in texts:
        counts.update(term_names(text))
        number += 1
    return counts, number


def ranked(terms: Sequence[Term], frequencies: Mapping[str, int], texts: int) -> list[Term]:
    """Return terms by their weight, the largest first; of equal ones the earlier first."""

    def weight(term: Term) -> float:
        return (1 + math.log(term.count)) * (1 + math.log((1 + texts) / (1 + frequencies.get(term.name, 1))))

    return sorted(terms, key=lambda term: (-weight(term), term.begin))


def keyword_prompts(texts: Sequence[str], train: Iterable[str], reader: PromptReader) -> list[str]:
    """Return the keywords of each text: as many of the heaviest terms as the generator reads, one at least.

    A text without a term is its own prompt.

    Args:
        texts: of all splits.
        train: the texts that are counted.
        reader: the generator's tokenizers.
    """
    frequencies, number = document_frequencies(train)
    prompts: list[str] = []
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        prompts += _keywords_of(part, [ranked(terms_of(text), frequencies, number) for text in part], reader)
    return prompts


def _keywords_of(texts: Sequence[str], by_weight: Sequence[Sequence[Term]], reader: PromptReader) -> list[str]:
    def build(row: int, terms: int) -> str:
        return joined_terms(texts[row], by_weight[row][:terms]) if by_weight[row] else texts[row]

    most = reader.most_that_fit([len(terms) for terms in by_weight], build)
    return [build(row, max(1, terms)) for row, terms in enumerate(most)]


def joined_terms(text: str, terms: Sequence[Term]) -> str:
    """Return some terms as they stand in the text, in its order, with a space between those that do not touch."""
    pieces: list[tuple[int, int]] = []
    for term in sorted(terms, key=lambda term: (term.begin, term.end)):
        if pieces and term.begin <= pieces[-1][1]:  # only where there are no spaces
            pieces[-1] = (pieces[-1][0], max(pieces[-1][1], term.end))
        else:
            pieces.append((term.begin, term.end))
    return " ".join(text[begin:end] for begin, end in pieces)
