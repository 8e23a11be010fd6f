"""Which pictures to draw: one for each distinct prompt, and the seed that makes it the same picture every time."""

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.errors import InputError
from lugpi_core.examples import Corpus
from lugpi_core.fingerprint import digest


@dataclass(frozen=True, kw_only=True)
class DrawingPlan:
    """The M drawings that N examples need.

    Attributes:
        prompts: the prompt of each drawing, in the order of its first example.
        seeds: int64 [M], the seed of each drawing's noise; a function of the prompt alone, so neither batch nor order nor corpus matter.
        drawing_of_example: int64 [N].
    """

    prompts: tuple[str, ...]
    seeds: NDArray[np.int64]
    drawing_of_example: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def saved(self) -> int:
        """How many drawings are spared because examples share their prompt."""
        return len(self.drawing_of_example) - len(self.prompts)

    def fingerprint(self) -> str:
        """Return the hash of all prompts with their seeds, in order."""
        return digest([self.prompts, self.seeds.tolist()])


def plan_drawings(corpus: Corpus, *, seed: int) -> DrawingPlan:
    """Return the plan for a corpus: examples with the same prompt share a drawing.

    Raises:
        InputError: an example has an empty prompt.
    """
    number: dict[str, int] = {}
    for example in corpus.examples:
        if not example.prompt.strip():
            raise InputError(got=f"an empty prompt in example {example.id}", expected="some words to draw", do="remove or fill that row")
        number.setdefault(example.prompt, len(number))
    return DrawingPlan(
        prompts=tuple(number),
        seeds=np.array([drawing_seed(prompt, seed) for prompt in number], np.int64),
        drawing_of_example=np.array([number[example.prompt] for example in corpus.examples], np.int64),
    )


def drawing_seed(prompt: str, seed: int) -> int:
    """Return the seed of the noise that a prompt is drawn from, 0 ≤ seed < 2^63."""
    return xxhash.xxh3_64_intdigest(f"{seed}\0{prompt}".encode("utf-8", "surrogatepass")) >> 1
