"""What a training step reads: the labels, texts, image tokens and teachers' outputs of its rows."""

import numpy as np
import pytest
import torch

from train.data.privileged import BlankTokens, PrivilegedImages
from train.data.teacher_outputs import TeacherOutputs
from train.data.token_ids import TokenIds
from train.data.training_data import TrainingData

CPU = torch.device("cpu")
ROWS = 60
LENGTHS = np.array([2 + row % 5 for row in range(ROWS)])


def texts() -> TokenIds:
    """Row r is its own number, ``LENGTHS[r]`` times."""
    return TokenIds(torch.from_numpy(np.repeat(np.arange(ROWS), LENGTHS).astype(np.int32)), LENGTHS, pad=99, device=CPU)


def outputs(seed: int, width: int) -> TeacherOutputs:
    generator = torch.Generator().manual_seed(seed)
    return TeacherOutputs(
        logits=torch.randn(ROWS, 3, generator=generator), embeddings=torch.randn(ROWS, width, generator=generator), teacher=str(seed)
    )


def data_of(*teachers: TeacherOutputs, images: PrivilegedImages | None = None) -> TrainingData:
    return TrainingData(device=CPU, labels=torch.arange(ROWS) % 3, texts=texts(), images=images, teachers=teachers)


def test_a_batch_contains_labels_and_texts_of_its_rows() -> None:
    batch = data_of().batch(np.array([3, 0]))
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert batch.labels.tolist() == [0, 0]
    assert batch.inputs["input_ids"].tolist() == [[3, 3, 3, 3, 3], [0, 0, 99, 99, 99]]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [5, 2]
    assert batch.teachers == ()


def test_a_batch_contains_each_teachers_outputs() -> None:
    first, second = outputs(0, 8), outputs(1, 4)
    batch = data_of(first, second).batch(np.array([7, 59]))
    assert [teacher.teacher for teacher in batch.teachers] == ["0", "1"]
    for found, teacher in zip(batch.teachers, (first, second), strict=True):
        assert torch.equal(found.logits, teacher.logits[[7, 59]])
        assert torch.equal(found.embeddings, teacher.embeddings[[7, 59]])


def test_without_texts_every_length_is_zero() -> None:
    data = TrainingData(device=CPU, labels=torch.zeros(ROWS, dtype=torch.long), texts=None)
    assert data.lengths.tolist() == [0] * ROWS
    assert data.batch(np.array([1])).inputs == {}


@pytest.mark.parametrize("with_images", [False, True])
def test_batches_come_in_order_and_complete(with_images: bool) -> None:
    blank = PrivilegedImages(source=BlankTokens((4, 8), CPU), drawings=np.arange(ROWS)[:, None], seed=0)
    data = data_of(images=blank if with_images else None)
    wanted = [np.array([5, 1]), np.array([2]), np.array([40, 41, 42])]
    found = list(data.batches(wanted, epoch=1))
    assert [batch.inputs["input_ids"][:, 0].tolist() for batch in found] == [rows.tolist() for rows in wanted]
    shapes = [tuple(batch.inputs["image_tokens"].shape) for batch in found if "image_tokens" in batch.inputs]
    assert shapes == ([(2, 4, 8), (1, 4, 8), (3, 4, 8)] if with_images else [])


def test_rows_by_length_are_the_same_rows() -> None:
    ordered = data_of().by_length(range(10, 30))
    assert sorted(ordered) == list(range(10, 30))
    assert LENGTHS[ordered].tolist() == sorted(LENGTHS[10:30])
