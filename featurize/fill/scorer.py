"""How well candidate images agree with their prompts (``--best-of``).

Shapes: B images, C candidates of each, C × h × w latents, T tokens of width D, E width of the joint space.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from featurize.encode.joint_space import JointSpace


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """Scores images by the tokens of an encoder and its text tower.

    Attributes:
        column: of the encoder, by whose name it is among the loaded encoders.
        space: its joint space; always in float32.
    """

    column: str
    space: JointSpace

    def scores(self, texts_BE: torch.Tensor, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Return the cosines of prompts, as ``JointSpace.embed_texts`` returns them, and images, float32 [B]."""
        images_BE = self.space.images(tokens_BTD if self.space.reads_all_tokens else tokens_BTD[:, 0])
        return (texts_BE * images_BE).sum(dim=-1)


class BestOf:
    """The best of the candidates that were added so far. Holds one latent of each image.

    Args:
        count: C.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._latents: torch.Tensor | None = None
        self._scores: list[torch.Tensor] = []

    def add(self, latents_BChw: torch.Tensor, scores_B: torch.Tensor) -> None:
        """Add a candidate of every image; NaN is the score of one that failed. Of equals the first is kept, and so it is if all failed."""
        if self._latents is None:
            self._latents = latents_BChw
        else:
            # A score is compared as it is stored, so that the choice can be read off the store.
            before_CB = torch.stack(self._scores).nan_to_num(nan=-torch.inf)
            is_better_B = _stored(scores_B).nan_to_num(nan=-torch.inf) > before_CB.amax(dim=0)
            self._latents = torch.where(is_better_B.to(latents_BChw.device).view(-1, 1, 1, 1), latents_BChw, self._latents)
        self._scores.append(_stored(scores_B))

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the latents of the best, [B, C, h, w], and the rows of the column of candidates, float16 [B, 1, 1 + C]."""
        assert self._latents is not None
        assert len(self._scores) == self._count
        scores_BC = torch.stack(self._scores, dim=1)
        kept_B = scores_BC.nan_to_num(nan=-torch.inf).argmax(dim=1)
        return self._latents, torch.cat([kept_B[:, None].to(scores_BC.dtype), scores_BC], dim=1)[:, None]


def best_candidates(
    count: int, draw: Callable[[int], torch.Tensor], score: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents of the best of ``count`` candidates of each image, and the rows of the column of candidates.

    Args:
        count: C.
        draw: returns the latents of candidate 0, 1, …: float16 [B, C, h, w].
        score: returns their scores, [B].
    """
    best = BestOf(count)
    for candidate in range(count):
        latents_BChw = draw(candidate)
        best.add(latents_BChw, score(latents_BChw))
    return best.best()


def _stored(scores_B: torch.Tensor) -> torch.Tensor:
    return scores_B.to(torch.float16)
