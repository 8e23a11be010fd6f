"""A few train texts of each class: the episodes of a few-shot comparison."""

import numpy as np

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.duplicates import same_texts
from lugpi_core.errors import InputError, number_of


def shots_of(corpus: Corpus, shots: int, *, episode: int) -> list[int]:
    """Return the rows of ``shots`` different train texts of each class, ascending.

    Episodes are draws of their own. Within an episode fewer shots are a part of more, so that a curve over shots adds texts.

    Args:
        corpus: with one class a text.
        shots: how many texts of each class.
        episode: seed of the draw.

    Raises:
        InputError: another task, or a class with fewer different train texts.
    """
    if corpus.task != "single-label":
        raise InputError(got=f"--shots with a {corpus.task} corpus", expected="texts with one class each", do="leave --shots out")
    rows = corpus.rows("train")
    repeated = {rows[place] for places in same_texts(corpus.columns.take(rows)) for place in sorted(places)[1:]}
    of_class: dict[int, list[int]] = {k: [] for k in range(len(corpus.label_names))}
    for row in rows:
        if row not in repeated:
            of_class[corpus.examples[row].label].append(row)
    fewest = min(of_class, key=lambda k: len(of_class[k]))
    if len(of_class[fewest]) < shots:
        texts = number_of(len(of_class[fewest]), "different train text{s}")
        raise InputError(
            got=f"--shots {shots} for {texts} of class {corpus.label_names[fewest]!r} of {corpus.name}",
            expected="at least as many texts of each class as shots",
            do=f"give --shots {len(of_class[fewest])} or less" if of_class[fewest] else "leave the class out of the corpus",
        )
    random = np.random.default_rng([episode, 3])  # not the permutations of splits, of shuffled images and of folds
    return sorted(row for of_one in of_class.values() for row in random.permutation(of_one)[:shots].tolist())
