"""How sure a teacher is of each class when it sees an image, whatever the text beside it says: with gradients, for pictures of classes.

Shapes: B images, N texts of up to L tokens, K classes, T image tokens, D width, M pairs of an image and a text.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from train.data.image_tokens import ImageTokens
from train.models.teachers import FoundTeacher, load_teacher, require_task


class ClassScores:
    """A teacher's log-odds of each class, ``log p / (1 - p)``, for an image beside each of the same N texts, and their mean over the texts.

    The texts are the same for all images and classes, so that a score says what the image changes. They are read once.

    Attributes:
        device: where tokens are read.

    Args:
        teacher: that reads images.
        corpus: that it was trained on.
        rows: of the texts.
        tokens: that it has read of the corpus.
        compute: device and precision.

    Raises:
        InputError: a teacher of another task, of numbers, or one that reads no images of its texts; or its files have changed.
    """

    def __init__(self, teacher: FoundTeacher, corpus: Corpus, rows: NDArray[np.int64], tokens: ImageTokens, compute: Compute) -> None:
        require_task(teacher, corpus)
        self.device = torch.device(compute.device)
        self._teacher, data = load_teacher(teacher, corpus, len(corpus.label_names), compute, lambda: tokens)
        self._teacher.eval().requires_grad_(False)
        assert data.texts is not None, "a teacher without texts"
        with torch.no_grad():
            _, *self._texts = self._teacher.head_inputs(data.texts.padded(rows, torch.from_numpy(rows).to(self.device)))
        self._count, self._is_multi_label = len(rows), corpus.task == "multi-label"

    def of(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Return the mean log-odds of images, float32 [B, K], with the gradients of their tokens."""
        images = len(tokens_BTD)
        repeated = [None if part is None else torch.cat([part] * images) for part in self._texts]
        logits_MK = self._teacher.head(tokens_BTD.float().repeat_interleave(self._count, dim=0), *repeated).logits.float()
        log_odds_MK = logits_MK if self._is_multi_label else log_odds(logits_MK)
        return log_odds_MK.view(images, self._count, -1).mean(dim=1)


def log_odds(logits_BK: torch.Tensor) -> torch.Tensor:
    """Return ``log p / (1 - p)`` of the softmax of logits, [B, K]: a logit less the logarithm of the others' exponentials' sum."""
    classes = logits_BK.shape[1]
    others_BKK = logits_BK[:, None, :].expand(-1, classes, -1)
    own_KK = torch.eye(classes, dtype=torch.bool, device=logits_BK.device)
    return logits_BK - others_BKK.masked_fill(own_KK, -torch.inf).logsumexp(dim=2)


def require_own_images(teacher: FoundTeacher) -> None:
    """Raise InputError unless a teacher of classes reads the image of each text."""
    if teacher.metrics.get("task") == "regression":
        raise InputError(got=f"{teacher.folder}, a teacher of numbers", expected="a teacher of classes", do="name one with --teacher")
    if (privileged := teacher.fingerprint["privileged"]) != "images":
        raise InputError(
            got=f"{teacher.folder}, trained with --privileged {privileged}",
            expected="a teacher that reads the image of each text",
            do="name one that was trained with --privileged images (--teacher)",
        )


def neutral_rows(corpus: Corpus, count: int, seed: int) -> NDArray[np.int64]:
    """Return train texts, as many of each class as of any other while there are any, drawn at random."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.array(corpus.rows("train"), np.int64))
    seen: dict[tuple[int, ...], int] = {}
    turns = []
    for row in rows.tolist():
        classes = corpus.examples[row].classes
        turns.append(seen.get(classes, 0))
        seen[classes] = turns[-1] + 1
    chosen: NDArray[np.int64] = rows[np.argsort(turns, kind="stable")][:count]
    return chosen
