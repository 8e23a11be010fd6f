"""Which pictures to draw: K for each distinct prompt, each with the seed that makes it the same picture every time.

Shapes: N examples, P distinct prompts, K images a prompt, M = P·K drawings.
"""

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest


@dataclass(frozen=True, kw_only=True)
class DrawingPlan:
    """The M drawings that N examples need; drawing d is image d mod K of prompt d div K.

    Attributes:
        prompts: the P distinct prompts, in the order of their first example.
        seeds: int64 [M], the seed of each drawing's noise; a function of prompt and image alone, so neither batch nor order nor corpus
            matter.
        prompt_of_example: int64 [N].
        images_per_text: K.
    """

    prompts: tuple[str, ...]
    seeds: NDArray[np.int64]
    prompt_of_example: NDArray[np.int64]
    images_per_text: int = 1

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def drawings(self) -> NDArray[np.int64]:
        """The drawings of each example, int64 [N, K]."""
        return self.prompt_of_example[:, None] * self.images_per_text + np.arange(self.images_per_text)

    @property
    def spared(self) -> int:
        """How many drawings are spared because examples share their prompt."""
        return len(self.prompt_of_example) * self.images_per_text - len(self)

    def prompt_of(self, drawing: int) -> int:
        """Return the number of a drawing's prompt."""
        return drawing // self.images_per_text

    def fingerprint(self) -> str:
        """Return the hash of all prompts with their seeds, in order."""
        return digest([self.prompts, self.seeds.tolist()])


def plan_drawings(corpus: Corpus, *, seed: int, images_per_text: int = 1) -> DrawingPlan:
    """Return the plan for a corpus: examples with the same prompt share their drawings.

    Raises:
        InputError: an example has an empty prompt.
    """
    number: dict[str, int] = {}
    for example in corpus.examples:
        if not example.prompt.strip():
            raise InputError(got=f"an empty prompt in example {example.id}", expected="some words to draw", do="remove or fill that row")
        number.setdefault(example.prompt, len(number))
    seeds = [drawing_seed(prompt, seed, image) for prompt in number for image in range(images_per_text)]
    return DrawingPlan(
        prompts=tuple(number),
        seeds=np.array(seeds, np.int64),
        prompt_of_example=np.array([number[example.prompt] for example in corpus.examples], np.int64),
        images_per_text=images_per_text,
    )


def drawing_seed(prompt: str, seed: int, image: int = 0) -> int:
    """Return the seed of the noise that an image of a prompt is drawn from, 0 ≤ seed < 2^63. The first image of K is that of K = 1."""
    which = str(seed) if image == 0 else f"{seed}.{image}"
    return xxhash.xxh3_64_intdigest(f"{which}\0{prompt}".encode("utf-8", "surrogatepass")) >> 1
