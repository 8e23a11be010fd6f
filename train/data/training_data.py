"""What a training step reads: token ids, labels, cached image tokens and, for a student, its teachers' cached outputs.

Shapes: N examples followed by U unlabelled texts, B in a batch, L text tokens, T image tokens, I width of the image tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from train.data.privileged import PrivilegedImages
from train.data.teacher_outputs import TeacherOutputs
from train.data.token_ids import TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tensors of some rows, on the device.

    Attributes:
        inputs: what the model is called with: ``input_ids`` and, if any text is padded, ``attention_mask``, both int64 [B, L];
            ``image_tokens``, float16 [B, T, I].
        labels: int64 [B]; UNLABELLED for a text without one.
        teachers: each teacher's outputs for these rows; empty for a model that is not distilled.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    teachers: tuple[TeacherOutputs, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything that is read while a model trains, most of it on the device already.

    Attributes:
        device: where the batches are created.
        labels: int64 [N + U] on the device; UNLABELLED for a text without one.
        texts: None for a model that reads no text.
        images: the image tokens; None for a model that reads no images.
        teachers: the cached outputs of each teacher on the device, N + U rows; empty for a model that is not distilled.
    """

    device: torch.device
    labels: torch.Tensor
    texts: TokenIds | None
    images: PrivilegedImages | None = None
    teachers: tuple[TeacherOutputs, ...] = ()

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, int64 [N + U]; zero if the model reads no text."""
        return np.zeros(len(self.labels), np.int64) if self.texts is None else self.texts.lengths_N

    def batch(self, rows: NDArray[np.int64], epoch: int | None = None) -> Batch:
        """Return the tensors of some rows, without synchronizing with the device: texts padded to the longest of them; of several images
        per text the one of that epoch (None: the first)."""
        rows_B = torch.from_numpy(rows)
        if self.device.type == "cuda":  # from memory that is not page-locked, CUDA would finish its queue before it copies
            rows_B = rows_B.pin_memory().to(self.device, non_blocking=True)
        inputs = {} if self.texts is None else self.texts.padded(rows, rows_B)
        if self.images is not None:
            inputs["image_tokens"] = self.images.gather(rows, epoch)
        return Batch(inputs=inputs, labels=self.labels[rows_B], teachers=tuple(teacher.rows(rows_B) for teacher in self.teachers))

    def batches(self, batches: Sequence[NDArray[np.int64]], epoch: int | None = None) -> Iterator[Batch]:
        """Yield the tensors of each batch, while the image tokens of the following ones are prefetched."""
        for rows in batches if self.images is None else self.images.ahead(batches, epoch):
            yield self.batch(rows, epoch)

    def by_length(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Return the rows ordered by text length, so that batches for prediction contain little padding."""
        numbers = np.asarray(rows, np.int64)
        return numbers[np.argsort(self.lengths[numbers], kind="stable")]
