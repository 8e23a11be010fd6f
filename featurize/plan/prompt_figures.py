"""Counts what a generator reads of a corpus's texts: prompts that are cut, words that are lost, and labels that are given away."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from featurize.plan.images import ImagePlan
from featurize.plan.keywords import term_names
from featurize.plan.prompt_reader import PromptReader
from featurize.plan.wordnet_prompts import class_leak
from featurize.plan.words import words_of
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.store.prompt_figures import ClassWords, PromptFigures

# Texts that are held at once.
_AT_ONCE = 4096


def prompt_figures(corpus: Corpus, plan: ImagePlan, strategy: str, reader: PromptReader) -> tuple[PromptFigures, NDArray[np.bool_]]:
    """Return the figures of a corpus and its prompts, and bool [N], whether a prompt of each text is cut. Holds a few numbers of each.

    Texts without an image have no prompt and count in no figure.

    Args:
        corpus: whose texts are compared with their prompts, the second texts of pairs included.
        plan: with the prompts.
        strategy: that they were made by.
        reader: the generator's tokenizers.
    """
    letters_P, cut_P = _letters_read(plan, reader)
    lost = words = 0
    names = _ClassNames(corpus)
    for start in range(0, len(corpus.examples), _AT_ONCE):
        prompts_of = [sorted(set(its) - {-1}) for its in plan.prompts_of_example[start : start + _AT_ONCE].tolist()]
        used = sorted({prompt for its in prompts_of for prompt in its})
        cut = [plan.prompts[prompt][: letters_P[prompt]] for prompt in used]
        read = dict(zip(used, reader.without_unknown(reader.cleaned(cut)), strict=True))
        for example, prompts in zip(corpus.examples[start : start + _AT_ONCE], prompts_of, strict=True):
            if not prompts:
                continue
            parts = [read[prompt] for prompt in prompts]
            in_prompts = {word for part in parts for word in words_of(part)}
            text = example.text if corpus.separator is None else example.text.replace(corpus.separator, " ")
            in_text = {*words_of(text), *words_of(example.pair or "")}
            words, lost = words + len(in_text), lost + len(in_text - in_prompts)
            if example.is_labelled:
                names.count(example.classes, in_prompts.union(*map(term_names, parts)))
    figures = PromptFigures(
        strategy=strategy,
        tokens_read=reader.tokens_read,
        prompts=len(plan.prompts),
        prompts_cut=int(cut_P.sum()),
        words=words,
        words_lost=lost,
        class_words=names.figures(),
        leak=class_leak(corpus, _first_prompts(plan)) if strategy == "wordnet" else None,
    )
    return figures, plan.has_image & cut_P[plan.prompts_of_example].any(axis=1)


def _first_prompts(plan: ImagePlan) -> Iterator[str | None]:
    return (None if prompt < 0 else plan.prompts[prompt] for prompt in plan.prompts_of_example[:, 0].tolist())


def _letters_read(plan: ImagePlan, reader: PromptReader) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return how many letters of each prompt are read, int64 [P], and bool [P], whether that is less than all of it."""
    letters_P, cut_P = np.empty(len(plan.prompts), np.int64), np.empty(len(plan.prompts), np.bool_)
    for start in range(0, len(plan.prompts), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        read, cut_P[part] = reader.parts_read(list(plan.prompts[part]))
        letters_P[part] = [len(text) for text in read]
    return letters_P, cut_P


class _ClassNames:
    """Counts the prompts that have words of class names."""

    def __init__(self, corpus: Corpus) -> None:
        names = corpus.label_names if corpus.task != "regression" else ()
        self._words = {number: words for number, name in enumerate(names) if (words := _words_of_name(name))}
        self._classes: dict[str, set[int]] = {}
        for number, words in self._words.items():
            for word in words:
                self._classes.setdefault(word, set()).add(number)
        self._texts = self._texts_with_words = self._texts_with_own = 0
        self._own, self._own_found, self._other_found = 0, 0, 0

    def count(self, classes: Sequence[int], words: set[str]) -> None:
        """Count a text with these classes, whose prompts have these words."""
        found = {number for word in self._classes.keys() & words for number in self._classes[word]}
        own = self._words.keys() & set(classes)
        self._texts += 1
        self._texts_with_words += bool(own)
        self._texts_with_own += bool(own & found)
        self._own += len(own)
        self._own_found += len(own & found)
        self._other_found += len(found - own)

    def figures(self) -> ClassWords | None:
        """Return what was counted; None if fewer than two classes have words, or no text has one of them."""
        other = self._texts * len(self._words) - self._own
        if len(self._words) < 2 or not self._own or not other:
            return None
        return ClassWords(
            texts=self._texts_with_words,
            texts_with_own=self._texts_with_own,
            share_own=round(self._own_found / self._own, 6),
            share_other=round(self._other_found / other, 6),
        )


def _words_of_name(name: str) -> set[str]:
    """Return the words of a class's name, and those of ``talk.politics_guns`` and ``TalkPolitics`` taken apart; without numbers."""
    return term_names(name) | term_names(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
