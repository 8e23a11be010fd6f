"""Which images to generate: K for each distinct prompt, each with the seed that makes it the same image every time.

Shapes: N examples, P distinct prompts, K images a prompt, M = P·K images.
"""

from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.fingerprint import digest


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """The M images that N examples need; image m is image m mod K of prompt m div K.

    Attributes:
        prompts: the P distinct prompts, in the order of their first example.
        seeds: int64 [M], the seed of each image's noise. It depends on the prompt and the image's place among the K only, not on batch,
            order or corpus.
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
    def images_of_example(self) -> NDArray[np.int64]:
        """The images of each example, int64 [N, K]."""
        return self.prompt_of_example[:, None] * self.images_per_text + np.arange(self.images_per_text)

    @property
    def saved(self) -> int:
        """How many more images there would be if examples with the same prompt did not share theirs."""
        return len(self.prompt_of_example) * self.images_per_text - len(self)

    def prompt_of(self, image: int) -> int:
        """Return the number of an image's prompt."""
        return image // self.images_per_text

    def fingerprint(self) -> str:
        """Return the hash of all prompts with their seeds, in order."""
        return digest([self.prompts, self.seeds.tolist()])


def plan_images(corpus: Corpus, *, seed: int, images_per_text: int = 1) -> ImagePlan:
    """Return the plan for a corpus: examples with the same prompt share their images.

    Raises:
        InputError: an example has an empty prompt.
    """
    number: dict[str, int] = {}
    for example in corpus.examples:
        if not example.prompt.strip():
            raise InputError(
                got=f"an empty prompt in example {example.id}", expected="some words for the generator", do="remove or fill that row"
            )
        number.setdefault(example.prompt, len(number))
    seeds = [image_seed(prompt, seed, image) for prompt in number for image in range(images_per_text)]
    return ImagePlan(
        prompts=tuple(number),
        seeds=np.array(seeds, np.int64),
        prompt_of_example=np.array([number[example.prompt] for example in corpus.examples], np.int64),
        images_per_text=images_per_text,
    )


def image_seed(prompt: str, seed: int, image: int = 0) -> int:
    """Return the seed of the noise of one of a prompt's images, 0 ≤ seed < 2^63. The first of K images is that of K = 1."""
    which = str(seed) if image == 0 else f"{seed}.{image}"
    return xxhash.xxh3_64_intdigest(f"{which}\0{prompt}".encode("utf-8", "surrogatepass")) >> 1
