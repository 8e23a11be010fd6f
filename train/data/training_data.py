"""What a training step reads: token ids, labels, cached image tokens and, for a student, its teachers' cached outputs.

Shapes: N examples followed by U unlabelled texts, B in a batch, L text tokens, T image tokens, I width of the image tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from lugpi_core.corpora.options import Task
from lugpi_core.store.reader import Rows
from train.data.prefix import PREFIX, PrefixStates
from train.data.privileged import HAS_IMAGE, PrivilegedImages
from train.data.target_unit import TargetUnit
from train.data.teacher_outputs import TeacherOutputs
from train.data.token_ids import TokenIds

_ROWS_AT_ONCE = 64  # whose tokens are in memory while image vectors are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The tensors of some rows, on the device.

    Attributes:
        inputs: what the model is called with: ``input_ids`` and, if any text is padded, ``attention_mask``, both int64 [B, L];
            ``image_tokens``, float16 [B, T, I], and where some examples have no image ``has_image``, bool [B]; ``prefix_states`` [B, L, D].
        labels: of the task, as ``Corpus.targets()``: int64 [B], float32 [B, K] or float32 [B].
        teachers: each teacher's outputs for these rows; empty for a model that is not distilled.
        class_weights: float32 [K], or None if all classes weigh the same.
        anchor: float32 [B, K], the logits of an earlier model; None without one.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    teachers: tuple[TeacherOutputs, ...] = ()
    class_weights: torch.Tensor | None = None
    anchor: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything that is read while a model trains, most of it on the device already.

    Attributes:
        device: where the batches are created.
        labels: on the device, as ``Corpus.targets()``: int64 [N + U], float32 [N + U, K] or float32 [N + U].
        texts: None for a model that reads no text.
        images: the image tokens; None for a model that reads no images.
        prefix: hidden states after the frozen layers of the text encoder; None if they are computed.
        teachers: the cached outputs of each teacher on the device, N + U rows; empty for a model that is not distilled.
        task: what the labels are.
        class_weights: float32 [K] on the device, or None.
        anchor: float32 [N + U, K] on the device, the logits of an earlier model; None without one.
        unit: in which the numbers of a regression are learnt; labels and others' outputs are in it.
    """

    device: torch.device
    labels: torch.Tensor
    texts: TokenIds | None
    images: PrivilegedImages | None = None
    prefix: PrefixStates | None = None
    teachers: tuple[TeacherOutputs, ...] = ()
    task: Task = "single-label"
    class_weights: torch.Tensor | None = None
    anchor: torch.Tensor | None = None
    unit: TargetUnit = field(default_factory=TargetUnit)

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
            if self.images.has_image_N is not None:
                inputs[HAS_IMAGE] = self.images.has_image_N[rows_B]
        if self.prefix is not None:
            inputs[PREFIX] = self.prefix.gather(rows)
        teachers = tuple(teacher.rows(rows_B) for teacher in self.teachers)
        anchor = None if self.anchor is None else self.anchor[rows_B]
        return Batch(inputs=inputs, labels=self.labels[rows_B], teachers=teachers, class_weights=self.class_weights, anchor=anchor)

    def batches(self, batches: Sequence[NDArray[np.int64]], epoch: int | None = None) -> Iterator[Batch]:
        """Yield the tensors of each batch, while image tokens and hidden states of the following ones are prefetched."""
        ahead: list[Iterator[Rows]] = [] if self.images is None else [self.images.ahead(batches, epoch)]
        ahead += [] if self.prefix is None else [self.prefix.ahead(batches)]
        for rows, *_ in zip(batches, *ahead, strict=True):
            yield self.batch(rows, epoch)

    def image_vectors(self) -> torch.Tensor | None:
        """Return V_CLS, the first token, of the image that predictions read for each row, float16 [N + U, I] on the CPU; None for a model
        that reads no images."""
        if self.images is None:
            return None
        rows = np.arange(len(self.labels))
        batches = [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
        return torch.cat([self.images.gather(batch, None)[:, 0].cpu() for batch in self.images.ahead(batches, None)])

    def by_length(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """Return the rows ordered by text length, so that batches for prediction contain little padding."""
        numbers = np.asarray(rows, np.int64)
        return numbers[np.argsort(self.lengths[numbers], kind="stable")]
