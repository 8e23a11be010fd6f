"""Which images to generate: the same number for each distinct prompt, each with the seed that makes it the same image every time.

Shapes: N examples with Q prompts and K images each, P distinct prompts, M = P·K/Q images, C candidates of each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.columns import TextColumn, numbered
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest_of_lists
from lugpi_core.store.example_table import NO_IMAGE

# What the texts of a subset are chosen on.
VECTORS = "tf-idf of the train prompts"


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Which texts have images, where not all do (``--subset``).

    Attributes:
        by: how they were chosen.
        texts: how many train texts of different prompts were chosen.
        of: among how many.
        prompts_after: int64 [1 + texts], how many of the plan's prompts belong to the first texts of the choice, and to texts that are not
            chosen but have images in any case.
    """

    by: str
    texts: int
    of: int
    prompts_after: NDArray[np.int64]

    def fingerprint(self) -> dict[str, Any]:
        """Return what a store states of the choice."""
        return {"texts": self.texts, "of": self.of, "by": self.by, "vectors": VECTORS}


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """The M images that N examples need; image m is image m mod (K/Q) of prompt m div (K/Q).

    Attributes:
        prompts: the P distinct prompts, in the order of their first example.
        seeds: int64 [M], the seed of each image's noise; or [M, C], those of its candidates. It depends on the prompt and the image's
            place among those of the prompt only, not on batch, order or corpus.
        prompts_of_example: int64 [N, Q]: one prompt, or the passages of a text; those of a text with fewer than Q recur. -1 = an example
            without an image.
        images_per_prompt: K/Q.
        subset: which examples have images; None = all.
    """

    prompts: Sequence[str]
    seeds: NDArray[np.int64]
    prompts_of_example: NDArray[np.int64]
    images_per_prompt: int = 1
    subset: Subset | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def candidates(self) -> int:
        """C: how many images are drawn for each that is kept."""
        return 1 if self.seeds.ndim == 1 else int(self.seeds.shape[1])

    def seeds_of(self, images: Sequence[int], candidate: int = 0) -> list[int]:
        """Return the seeds of some images, or of one of their candidates."""
        return [int(self.seeds[image] if self.seeds.ndim == 1 else self.seeds[image, candidate]) for image in images]

    @property
    def images_per_text(self) -> int:
        """K."""
        return int(self.prompts_of_example.shape[1]) * self.images_per_prompt

    @property
    def images_of_example(self) -> NDArray[np.int64]:
        """The images of each example, int64 [N, K]; -1 = none."""
        images_NQR = self.prompts_of_example[:, :, None] * self.images_per_prompt + np.arange(self.images_per_prompt)
        if self.subset is not None:
            images_NQR[self.prompts_of_example < 0] = NO_IMAGE
        return images_NQR.reshape(len(images_NQR), -1)

    @property
    def has_image(self) -> NDArray[np.bool_]:
        """Which examples have images, bool [N]."""
        has_image_N: NDArray[np.bool_] = self.prompts_of_example[:, 0] >= 0
        return has_image_N

    @property
    def saved(self) -> int:
        """How many more images there would be if examples with the same prompt did not share theirs."""
        return int(self.has_image.sum()) * self.images_per_text - len(self)

    def first(self, texts: int) -> "ImagePlan":
        """Return the prompts and seeds, but not the examples, of the plan for fewer chosen texts: these begin those of this plan."""
        assert self.subset is not None
        prompts = int(self.subset.prompts_after[texts])
        return replace(self, prompts=self.prompts[:prompts], seeds=self.seeds[: prompts * self.images_per_prompt])

    def prompt_of(self, image: int) -> int:
        """Return the number of an image's prompt."""
        return image // self.images_per_prompt

    def fingerprint(self) -> str:
        """Return the hash of all prompts with their seeds, in order."""
        return digest_of_lists(self.prompts, self.seeds)


def plan_images(corpus: Corpus, *, seed: int, images_per_text: int = 1, candidates: int = 1) -> ImagePlan:
    """Return the plan for the whole prompts of a corpus.

    Raises:
        InputError: an example has an empty prompt.
    """
    require_prompts(corpus)
    return plan_prompts(corpus.columns.prompts, seed=seed, images_per_prompt=images_per_text, candidates=candidates)


def plan_prompts(prompts: Iterable[str], *, seed: int, images_per_prompt: int = 1, candidates: int = 1) -> ImagePlan:
    """Return the plan for one prompt of each example: equal prompts share their images.

    Args:
        prompts: of each example.
        seed: of the run.
        images_per_prompt: K.
        candidates: C; those of image r of a prompt have the seeds of images rC to rC + C - 1 of a plan without candidates.
    """
    column = TextColumn.of(prompts)
    rows, numbers_N = numbered(column)
    distinct = column if len(rows) == len(column) else column.take(rows)
    return _plan(distinct, numbers_N[:, None], seed, images_per_prompt, candidates)


def plan_passages(passages: TextColumn, counts_N: NDArray[np.int64], *, seed: int, prompts_per_text: int, candidates: int = 1) -> ImagePlan:
    """Return the plan for several prompts of each example.

    Args:
        passages: of all examples, one example's after the other's.
        counts_N: how many each example has, 1 to ``prompts_per_text``. Fewer recur in turn: a, b, c become a, b, c, a.
        seed: of the run.
        prompts_per_text: Q.
        candidates: C.
    """
    rows, numbers = numbered(passages)
    starts_N = np.cumsum(counts_N) - counts_N
    prompts_NQ = np.empty((len(counts_N), prompts_per_text), np.int64)
    for place in range(prompts_per_text):
        prompts_NQ[:, place] = numbers[starts_N + place % counts_N]
    del numbers, starts_N  # each of these is as large as the seeds of a million texts
    distinct = passages if len(rows) == len(passages) else passages.take(rows)
    del rows
    return _plan(distinct, prompts_NQ, seed, 1, candidates)


def _plan(prompts: TextColumn, prompts_of_example: NDArray[np.int64], seed: int, images_per_prompt: int, candidates: int) -> ImagePlan:
    drawn = images_per_prompt * candidates
    seeds_of_prompts = (image_seed(prompt, seed, image) for prompt in prompts for image in range(drawn))
    seeds = np.fromiter(seeds_of_prompts, np.int64, len(prompts) * drawn)
    return ImagePlan(
        prompts=prompts,
        seeds=seeds if candidates == 1 else seeds.reshape(-1, candidates),
        prompts_of_example=prompts_of_example,
        images_per_prompt=images_per_prompt,
    )


def require_prompts(corpus: Corpus) -> None:
    """Raise InputError if an example has an empty prompt."""
    for row, prompt in enumerate(corpus.columns.prompts):
        if not prompt.strip():
            raise InputError(
                got=f"an empty prompt in example {corpus.examples[row].id}",
                expected="some words for the generator",
                do="remove or fill that row",
            )


def image_seed(prompt: str, seed: int, image: int = 0) -> int:
    """Return the seed of the noise of one of a prompt's images, 0 ≤ seed < 2^63. The first of several is that of a single one."""
    which = str(seed) if image == 0 else f"{seed}.{image}"
    return xxhash.xxh3_64_intdigest(f"{which}\0{prompt}".encode("utf-8", "surrogatepass")) >> 1
