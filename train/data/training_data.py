"""What a training step reads: token ids, labels and, for the models that see pictures, cached image tokens; for a student, its teachers'
outputs.

Shapes: N examples and U texts without a label behind them, B in a batch, L text tokens, T image tokens, I width of the image tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from train.data.privileged import Pictures
from train.data.teacher_outputs import TeacherOutputs
from train.data.token_ids import TokenIds

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything that is read while a model trains, most of it on the device already.

    Attributes:
        device: where batches are wanted.
        labels: int64 [N + U] on the device; UNLABELLED where there is none.
        texts: or None for a model that reads no text.
        pictures: or None for a model that reads no pictures.
        teachers: the cached outputs of each teacher on the device, [N + U] rows; none for a model that is not distilled.
    """

    device: torch.device
    labels: torch.Tensor
    texts: TokenIds | None
    pictures: Pictures | None = None
    teachers: tuple[TeacherOutputs, ...] = ()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens each text has, int64 [N + U]; nought where no text is read."""
        return np.zeros(len(self.labels), np.int64) if self.texts is None else self.texts.lengths_N

    def batch(self, rows: NDArray[np.int64], epoch: int | None = None) -> Batch:
        """Return the tensors of some rows on the device, without waiting for it: labels and what model and loss read, texts padded to the
        longest of them, of several pictures the one of that epoch (None: the first).

        The teachers' outputs are ``teacher_logits`` [B, K] and ``teacher_embeddings`` [B, D], with a number behind from the second on.
        """
        rows_B = _on_device(rows, self.device)
        batch: Batch = {"labels": self.labels[rows_B]}
        if self.texts is not None:
            batch.update(self.texts.padded(rows, rows_B))
        if self.pictures is not None:
            batch["image_tokens"] = self.pictures.gather(rows, epoch)
        for n, teacher in enumerate(self.teachers):
            batch[teacher_name("teacher_logits", n)] = teacher.logits[rows_B]
            batch[teacher_name("teacher_embeddings", n)] = teacher.embeddings[rows_B]
        return batch

    def batches(self, batches: Sequence[NDArray[np.int64]], epoch: int | None = None) -> Iterator[Batch]:
        """Yield the tensors of each of the batches; the image tokens of the next ones are being fetched meanwhile."""
        for rows in batches if self.pictures is None else self.pictures.ahead(batches, epoch):
            yield self.batch(rows, epoch)

    def by_length(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Return the rows ordered by text length, so that batches for prediction hold little padding."""
        numbers = np.asarray(rows, np.int64)
        return numbers[np.argsort(self.lengths[numbers], kind="stable")]


def teacher_name(what: str, number: int) -> str:
    """Return a batch's name for the outputs of the teacher of that number."""
    return f"{what}_{number}" if number else what


def _on_device(rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    rows_B = torch.from_numpy(rows)
    # From memory that is not page-locked, CUDA would wait for what runs before it copies.
    return rows_B.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else rows_B
