"""What a training step reads: token ids, labels and, for the models that see pictures, cached image tokens.

Shapes: B examples, L text tokens, T image tokens, I width of the image tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lugpi_core.examples import Corpus
from train.image_tokens import TokenSource
from train.teacher_outputs import TeacherOutputs

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A corpus ready to be read in batches. Holds token ids as Python lists, and image tokens where their source holds them.

    Attributes:
        ids: token ids of every example, or None for a model that reads no text.
        image_tokens: or None for a model that reads no pictures.
        teacher: the teacher's cached outputs, or None for a model that is not distilled.
    """

    corpus: Corpus
    device: torch.device
    ids: list[list[int]] | None
    pad_id: int
    image_tokens: TokenSource | None = None
    teacher: TeacherOutputs | None = None

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the tensors of some rows on the device: rows, labels and what model and loss read, texts padded to the longest of them."""
        examples = self.corpus.examples
        batch: Batch = {"rows": torch.tensor(rows), "labels": torch.tensor([examples[row].label for row in rows])}
        if self.ids is not None:
            batch.update(padded([self.ids[row] for row in rows], self.pad_id))
        if self.image_tokens is not None:
            batch["image_tokens"] = self.image_tokens.gather(rows)
        if self.teacher is not None:
            batch["teacher_logits"] = self.teacher.logits[batch["rows"]]
            batch["teacher_embeddings"] = self.teacher.embeddings[batch["rows"]]
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def epoch(self, rows: Sequence[int], batch_size: int, order: torch.Generator) -> Iterator[Batch]:
        """Yield the rows once, in random batches of like text length; one batch is smaller when the numbers do not divide."""
        lengths = [len(self.ids[row]) if self.ids is not None else 0 for row in rows]
        yield from self.batches([[rows[n] for n in batch] for batch in batches_of_like_length(lengths, batch_size, order)])

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """Yield the tensors of each of the batches; the image tokens of the next ones are being fetched meanwhile."""
        for rows in batches if self.image_tokens is None else self.image_tokens.ahead(batches):
            yield self.batch(rows)

    def by_length(self, rows: Sequence[int]) -> list[int]:
        """Return the rows ordered by text length, so that batches for prediction hold little padding."""
        ids = self.ids
        return sorted(rows, key=lambda row: len(ids[row])) if ids is not None else list(rows)


def batches_of_like_length(lengths: Sequence[int], batch_size: int, order: torch.Generator) -> list[list[int]]:
    """Return a random partition of 0 … N-1 into batches whose members have like lengths, so that little of what is computed is padding.

    The rows are shuffled, every stretch of 64 batches is sorted by length and cut, and the batches are shuffled again.
    """
    shuffled = torch.randperm(len(lengths), generator=order).tolist()
    stretch = 64 * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), stretch):
        alike = sorted(shuffled[start : start + stretch], key=lambda n: lengths[n])
        batches += [alike[first : first + batch_size] for first in range(0, len(alike), batch_size)]
    return [batches[n] for n in torch.randperm(len(batches), generator=order).tolist()]


def padded(ids: Sequence[Sequence[int]], pad_id: int) -> Batch:
    """Return ``input_ids`` and ``attention_mask``, int64 [B, L], padded on the right to the longest."""
    longest = max(map(len, ids))
    input_ids = torch.full((len(ids), longest), pad_id)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    for n, one in enumerate(ids):
        input_ids[n, : len(one)] = torch.tensor(one)
        mask[n, : len(one)] = 1
    return {"input_ids": input_ids, "attention_mask": mask}
