"""How different are the images of one text, compared with images of different texts? A distilled generator hardly answers to the seed: the
K images of a text are then nearly one image.

Shapes: M images, F features, k images of one text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.inspect.near_copies import centred_directions
from featurize.inspect.records import LeftOut, Record, percent

Several = Literal["seeds", "passages", "pictures"]
# What the images of a text are, and what it means if they are nearly the same.
_WHAT: Mapping[Several, tuple[str, str]] = {
    "seeds": ("the images of one text", "the generator hardly answers to the seed: "),
    "passages": ("the images of one text's passages", "the passages of a text have hardly different images: "),
    "pictures": ("the pictures of one text", "the pictures of a text are hardly different: "),
}
# Below this share of the distance between texts, or from this share of near-duplicates on, more images of a text are hardly other images.
_LITTLE, _MOSTLY = 0.1, 0.5


@dataclass(frozen=True, kw_only=True)
class Diversity(Record):
    """How different the images of one text are.

    Squared distances are those of ``centred_directions``: 2 · (1 - cosine).

    Attributes:
        texts, images: compared; each text has two images or more.
        within: mean squared distance of two images of one text; each text counts once.
        between: mean squared distance of two images of different texts.
        threshold: the cosine from which on two images are near-duplicates.
        near_copies: the share of pairs of images of one text that are near-duplicates; each text counts once.
        of: in what the images of a text differ: the seed, the passage that they show, or they are the user's own pictures.
    """

    texts: int
    images: int
    within: float
    between: float
    threshold: float
    near_copies: float
    of: Several = "seeds"

    @property
    def share(self) -> float:
        """``within`` as a share of ``between``: 0 = all images of a text are the same, 1 = they are as different as those of any texts."""
        return self.within / self.between if self.between > 0 else 0.0

    @property
    def is_little(self) -> bool:
        """Whether more images of a text are hardly other images."""
        return self.share < _LITTLE or self.near_copies >= _MOSTLY

    def to_json(self) -> dict[str, float | int | bool]:
        """Return the fields as JSON values, with the share and whether it is little."""
        return {**super().to_json(), "share": self.share, "is_little": self.is_little}

    def sentence(self, what: str | None = None) -> str:
        """Return the answer in one sentence.

        Args:
            what: is compared; None = as ``of`` says.
        """
        usual, little = _WHAT[self.of]
        found = (
            f"{what or usual} differ by {percent(self.share)} of what images of different texts do (squared distance), and "
            f"{percent(self.near_copies)} of their pairs are near-duplicates (cosine {self.threshold:g} or more)"
        )
        return little + found if self.is_little else found


def diversity_of(features_MF: NDArray[np.float32], text_M: NDArray[np.int64], threshold: float) -> Diversity | LeftOut:
    """Return how different the images of one text are, compared with images of different texts.

    Memory: the features twice.

    Args:
        features_MF: of images, all different rows of a store.
        text_M: the text of each. Texts with one image count for what is between texts only.
        threshold: the cosine from which on two images are near-duplicates.
    """
    unit_MF = centred_directions(torch.from_numpy(features_MF).double()).numpy()
    _, text_M, counts = np.unique(text_M, return_inverse=True, return_counts=True)
    if (counts > 1).sum() < 2:
        return LeftOut(left_out="fewer than two texts have two usable images")
    within, copies, cosines_within = [], [], 0.0
    order = np.argsort(text_M, kind="stable")
    for rows in np.split(order, np.cumsum(counts)[:-1]):
        if len(rows) > 1:
            cosines_P = (unit_MF[rows] @ unit_MF[rows].T)[np.triu_indices(len(rows), k=1)]
            within.append(float((2 - 2 * cosines_P).mean()))
            copies.append(float((cosines_P >= threshold).mean()))
            cosines_within += float(cosines_P.sum())
    count, pairs_within = len(unit_MF), int((counts * (counts - 1) // 2).sum())
    # Of all pairs: the squared length of the sum of M unit vectors is M + 2 · the sum of their cosines.
    cosines_between = (float((unit_MF.sum(axis=0) ** 2).sum()) - float((unit_MF**2).sum())) / 2 - cosines_within
    return Diversity(
        texts=len(within),
        images=int(counts[counts > 1].sum()),
        within=max(0.0, float(np.mean(within))),
        between=2 - 2 * cosines_between / (count * (count - 1) // 2 - pairs_within),
        threshold=threshold,
        near_copies=float(np.mean(copies)),
    )
