"""``--subset``: which texts have images where not all do, chosen on vectors of the texts that need no model.

The vectors are those of TF-IDF, as ``--prompts keywords`` weighs terms, of length 1, rounded to multiples of 2^-15. Sums of products of
such numbers are exact in float64, so that the choice is the same on every machine, with any order of the sums: the rows of a store are
numbered by it. Vectors of a CLIP or of the generator's text encoder would need that model in every process that plans a run, and may differ
in their last bits from one processor to the next.

Every rule is greedy: the first texts of a larger choice are the smaller one.

Shapes: N examples with Q prompts each, U distinct tuples of prompts, T texts to choose from, E terms of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from featurize.options import Generation, SubsetRule
from featurize.plan.images import ImagePlan, Subset, image_seed
from featurize.plan.keywords import Vocabulary, Weights, document_frequencies, terms_of
from lugpi_core.corpora.columns import TextColumn
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError

_ONE = 1 << 15
# Texts whose terms are found at once.
_AT_ONCE = 1024


class TextVectors:
    """The vectors of T texts, sparse, of length 1 and rounded to multiples of 2^-15. Holds E terms twice: text by text, and term by term.

    Args:
        texts: whose terms are counted.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        vocabulary = Vocabulary()
        weights = Weights(*document_frequencies(texts, vocabulary))
        parts = []
        for start in range(0, len(texts), _AT_ONCE):
            terms = terms_of(list(texts[start : start + _AT_ONCE]), vocabulary)
            weight_E = weights.of(terms)
            length_T = np.sqrt(np.bincount(terms.text, weight_E**2))
            value_E = np.rint(weight_E / length_T[terms.text] * _ONE)
            parts.append((terms.text + start, terms.name, value_E))
        text_E, name_E, self._value_E = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self._name_E = name_E
        self._begin_T = np.searchsorted(text_E, np.arange(len(texts) + 1))
        by_name = np.argsort(name_E, kind="stable")
        self._text_of_name, self._value_of_name = text_E[by_name], self._value_E[by_name]
        self._begin_of_name = np.searchsorted(name_E[by_name], np.arange(int(name_E.max(initial=0)) + 2))
        sums = np.bincount(name_E, self._value_E)
        self.to_sum_T = np.bincount(text_E, sums[name_E] * self._value_E, minlength=len(texts)) if len(name_E) else np.zeros(len(texts))

    def __len__(self) -> int:
        return len(self._begin_T) - 1

    def products(self, text: int) -> NDArray[np.float64]:
        """Return the products of the vector of a text with those of all, whole numbers in float64 [T]; 2^30 stands for 1."""
        own = slice(self._begin_T[text], self._begin_T[text + 1])
        postings = [slice(self._begin_of_name[name], self._begin_of_name[name + 1]) for name in self._name_E[own].tolist()]
        if not postings:
            return np.zeros(len(self))
        values = [self._value_of_name[where] * value for where, value in zip(postings, self._value_E[own].tolist(), strict=True)]
        texts = np.concatenate([self._text_of_name[where] for where in postings])
        return np.bincount(texts, np.concatenate(values), len(self)).astype(np.float64, copy=False)


def k_centre(vectors: TextVectors) -> Iterator[int]:
    """Yield the numbers of the texts in the order of a greedy k-centre (Gonzalez 1985, doi 10.1016/0304-3975(85)90224-5).

    The first is the one nearest to the mean. Each further one is that whose nearest chosen text is farthest away: of unit vectors, that
    whose largest cosine with a chosen one is smallest. Of equals it is the one nearest to the mean, then the earliest. The farthest of all
    texts from the first k is at most twice as far from them as from the best k.
    """
    nearest_T = np.zeros(len(vectors))
    for _ in range(len(vectors)):
        is_farthest_T = nearest_T == nearest_T.min()
        text = int(np.where(is_farthest_T, vectors.to_sum_T, -1.0).argmax())
        yield text
        nearest_T = np.maximum(nearest_T, vectors.products(text))
        nearest_T[text] = np.inf


def herding(vectors: TextVectors) -> Iterator[int]:
    """Yield the numbers of the texts in the order of herding (Welling 2009, doi 10.1145/1553374.1553517) on their vectors as features.

    With the mean μ, text t + 1 is the one of the largest ⟨(t + 1)·μ - Σ_s≤t x_s, x⟩ that is not chosen yet, of equals the earliest: the
    mean of the chosen ones follows that of all.
    """
    chosen_T, is_left_T = np.zeros(len(vectors)), np.ones(len(vectors), bool)
    for count in range(1, len(vectors) + 1):
        text = int(np.where(is_left_T, count * vectors.to_sum_T - len(vectors) * chosen_T, -np.inf).argmax())
        yield text
        is_left_T[text] = False
        chosen_T += vectors.products(text)


def choose(texts: Sequence[str], count: int, by: SubsetRule, *, seed: int) -> list[int]:
    """Return the numbers of ``count`` texts in the order of a rule; ``seed`` decides a random choice alone."""
    if by == "random":
        keys = [image_seed(text, seed, -1) for text in texts]
        return sorted(range(len(texts)), key=keys.__getitem__)[:count]
    rules: dict[str, Callable[[TextVectors], Iterator[int]]] = {"k-centre": k_centre, "herding": herding}
    return list(islice(rules[by](TextVectors(texts)), count))


def with_subset(corpus: Corpus, plan: ImagePlan, settings: Generation) -> ImagePlan:
    """Return the plan with images for the chosen train texts and for all validation and test texts, or the plan itself without --subset.

    The images of validation and test texts come first, and those of the chosen texts follow in the order of the choice: a larger choice has
    the rows of a smaller one, and more after them.

    Raises:
        InputError: there are not so many train texts of different prompts.
    """
    if settings.subset is None:
        return plan
    tuples_UQ, first_U, of_example_N = np.unique(plan.prompts_of_example, axis=0, return_index=True, return_inverse=True)
    of_example_N = of_example_N.reshape(-1)
    train = np.array(corpus.rows("train"), np.int64)
    _, first_of_train = np.unique(of_example_N[train], return_index=True)
    rows_T = train[np.sort(first_of_train)]  # the first train text of each tuple of prompts
    if settings.subset > len(rows_T):
        raise InputError(
            got=f"--subset {settings.subset:,} for {len(rows_T):,} train texts of different prompts",
            expected=f"at most {len(rows_T):,}",
            do="give fewer, or leave --subset out: then every text has an image",
        )
    chosen = rows_T[choose(corpus.columns.prompts.take(rows_T), settings.subset, settings.subset_by, seed=settings.seed)]
    is_train_N = np.zeros(len(of_example_N), bool)
    is_train_N[train] = True
    held_out = first_U[np.unique(of_example_N[~is_train_N])]
    in_order = np.concatenate([np.sort(held_out), chosen])
    prompts_of = plan.prompts_of_example[in_order]
    numbers, first = np.unique(prompts_of.reshape(-1), return_index=True)
    order = np.argsort(first)
    number_of_P = np.full(len(plan.prompts), -1)
    number_of_P[numbers[order]] = np.arange(len(numbers))
    # How many prompts are known after each text of the order: one more than the largest number so far.
    known = np.maximum.accumulate(number_of_P[prompts_of].max(axis=1)) + 1
    has_image_U = np.zeros(len(tuples_UQ), bool)
    has_image_U[of_example_N[in_order]] = True
    seeds = plan.seeds.reshape(len(plan.prompts), -1)[numbers[order]].reshape(-1, *plan.seeds.shape[1:])
    return replace(
        plan,
        prompts=TextColumn.of(plan.prompts).take(numbers[order]),
        seeds=seeds,
        prompts_of_example=np.where(has_image_U[of_example_N][:, None], number_of_P[plan.prompts_of_example], -1),
        subset=Subset(
            by=settings.subset_by,
            texts=settings.subset,
            of=len(rows_T),
            prompts_after=np.concatenate([known[len(held_out) - 1 : len(held_out)] if len(held_out) else [0], known[len(held_out) :]]),
        ),
    )
