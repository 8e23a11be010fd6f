"""``--prompts wordnet``: the texts with what WordNet calls their class names' kind in place of the names, so that no image shows a label
because its prompt says it.

A word names a class if it has the stem of a word of the class's name, or the first sense of one: of ``rec.autos`` those are *rec* and
*auto, autos, car, automobile*. The words of all classes are replaced in all texts: which are replaced in a text says nothing of its class.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from featurize.plan.words import has_unspaced
from lugpi_core.corpora.columns import TextColumn, TextColumnBuilder, batched
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.hypernyms import Hypernyms, load_hypernyms
from lugpi_core.corpora.word_stems import WORD, stem, words_of_name
from lugpi_core.errors import InputError
from lugpi_core.store.prompt_figures import ClassLeak

# What is left of a prompt of which every word names a class that WordNet does not know.
NOTHING = "something"
# Words that are remembered to name no class.
_REMEMBERED = 1 << 17
# The words of a text in ASCII, as ``WORD`` finds them, but faster.
_ASCII_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*")
_REPORTED_WORDS = 20
# Words of names such as "not spam" and "none of these" that stand in most texts, beside those that no name counts.
_SMALL_WORDS = (
    "about all also any are as be been but can do does each every few had has have he her his how if is it its less many me more most much "
    "my neither no non none nor not other others our over own same she so some such than that their them then there these they this those "
    "under us very was we were what when where which who whose why will you your"
)


class ClassNames:
    """The words that name classes, and what stands in their place.

    Attributes:
        names: of the classes.
        unknown: words of them that WordNet does not have.

    Args:
        names: of the classes.
        hypernyms: of WordNet's nouns.
    """

    def __init__(self, names: Sequence[str], hypernyms: Hypernyms) -> None:
        self.names = tuple(names)
        self._hypernyms = hypernyms
        self._of_stem: dict[str, tuple[str, set[int]]] = {}
        self._of_synset: dict[int, tuple[str, set[int]]] = {}
        self.unknown: list[str] = []
        for number, name in enumerate(names):
            for word in _words_of_class(name):
                self._of_stem.setdefault(stem(word), (word, set()))[1].add(number)
                synset = hypernyms.synset_of(word)
                if synset is not None:
                    self._of_synset.setdefault(synset, (word, set()))[1].add(number)
                elif word not in self.unknown:
                    self.unknown.append(word)
        self._others: set[str] = set()
        self._found: dict[str, tuple[str, set[int]]] = {}
        self._in_place_of_name: dict[str, str] = {}

    @property
    def is_known(self) -> bool:
        """Whether WordNet has a word of them."""
        return bool(self._of_synset)

    def in_text(self, text: str) -> dict[str, set[int]]:
        """Return the words of a text that name a class, as they stand, with the classes that each names."""
        words = set(_pattern(text).findall(text))
        for word in words - self._others - self._found.keys():
            if found := self._look_up(word):
                self._found[word] = found
            else:
                self._others.add(word)
        named = {word: self._found[word][1] for word in words & self._found.keys()}
        if len(self._others) > _REMEMBERED:
            self._others.clear()
        return named

    def relaxed(self, text: str) -> str:
        """Return a text with the nearest hypernym that names no class in place of each word that names one. A word that has none is left
        out, with the spaces after it."""
        named = self.in_text(text)
        if not named:
            return text
        parts, last = [], 0
        for match in _pattern(text).finditer(text):
            if match[0] in named:
                parts += [text[last : match.start()], kind := self._in_place_of(match[0])]
                last = match.end() if kind else len(text) - len(text[match.end() :].lstrip())
        relaxed = "".join([*parts, text[last:]])
        return relaxed if WORD.search(relaxed) else NOTHING

    def _in_place_of(self, word: str) -> str:
        name = self._found[word][0]
        if name not in self._in_place_of_name:
            self._in_place_of_name[name] = next((kind for kind in self._hypernyms.above(name) if not self.in_text(kind)), "")
        return self._in_place_of_name[name]

    def _look_up(self, word: str) -> tuple[str, set[int]] | None:
        """Return the word of a class's name that a word stands for, and the classes with it; None if it names no class."""
        word = word.lower().removesuffix("'s")
        synset = self._hypernyms.synset_of(word) if len(word) > 2 else None
        return self._of_stem.get(stem(word)) or (None if synset is None else self._of_synset.get(synset))


def _pattern(text: str) -> re.Pattern[str]:
    return _ASCII_WORD if text.isascii() else WORD


@lru_cache(4)
def _class_names(names: tuple[str, ...]) -> ClassNames:
    return ClassNames(names, load_hypernyms())


def class_names_of(corpus: Corpus) -> ClassNames:
    """Return the words that name the classes of a corpus, or those of the corpus that its unlabelled texts are added to.

    Raises:
        InputError: there are no classes, their names have no word in the English WordNet, or are in a script without spaces.
    """
    labelled = corpus if corpus.labelled is None else corpus.labelled
    names = labelled.label_names if labelled.task != "regression" else ()
    if not names:
        what = "whose labels are numbers" if labelled.task == "regression" else "of texts without labels"
        raise InputError(
            got=f"--prompts wordnet for {labelled.name}, a corpus {what}",
            expected="classes, whose names are kept out of the prompts",
            do="use --prompts whole or keywords",
        )
    found = _class_names(names)
    if not found.is_known or any(map(has_unspaced, names)):
        raise InputError(
            got=f"--prompts wordnet for the classes {', '.join(names[:4])}{', …' * (len(names) > 4)}",
            expected="English names, one of which at least has a noun of WordNet",
            do="give the classes English names, or use --prompts whole or keywords",
        )
    return found


def wordnet_prompts(corpus: Corpus) -> TextColumn:
    """Return the prompts of a corpus without the names of its classes.

    Raises:
        InputError: as ``class_names_of``.
    """
    names, prompts = class_names_of(corpus), TextColumnBuilder()
    for some in batched(corpus.columns.prompts):
        prompts.extend([names.relaxed(prompt) for prompt in some])
    return prompts.column()


def class_leak(corpus: Corpus, prompts: Iterable[str | None]) -> ClassLeak:
    """Return how many prompts name a class, and with which words.

    Args:
        corpus: with the prompts as they were before.
        prompts: of each example, as they are now; None for one that has no image and does not count.

    Raises:
        InputError: as ``class_names_of``.
    """
    names, texts = class_names_of(corpus), 0
    counts, own = [0, 0], [0, 0]
    words: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for example, now in zip(corpus.examples, prompts, strict=True):
        if now is None:
            continue
        texts += 1
        for place, prompt in enumerate((example.prompt, now)):
            found = names.in_text(prompt)
            counts[place] += bool(found)
            own[place] += any(not classes.isdisjoint(example.classes) for classes in found.values())
            words[place].update({word.lower() for word in found})
    before, after = (dict(sorted(its.items(), key=lambda pair: (-pair[1], pair[0]))[:_REPORTED_WORDS]) for its in words)
    return ClassLeak(
        texts=texts,
        before=counts[0],
        after=counts[1],
        own_before=own[0],
        own_after=own[1],
        words_before=before,
        words_after=after,
        unknown=tuple(names.unknown),
    )


def _words_of_class(name: str) -> list[str]:
    """Return the words of a class's name, also those of ``TalkPolitics`` and of it taken apart, in lower case and without 's; none of a
    single letter, and none that stands in any text."""
    words = words_of_name(name) + words_of_name(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    small = frozenset(_SMALL_WORDS.split())
    forms = (word.lower().removesuffix("'s") for word in words)
    return [word for word in dict.fromkeys(forms) if len(word) > 1 and word not in small]
