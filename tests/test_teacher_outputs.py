"""The teacher's cached outputs are bound to its weights and to its corpus."""

from pathlib import Path

import pytest
import torch

from lugpi_core.errors import InputError
from train.models import Output
from train.teacher_outputs import OUTPUTS, WEIGHTS, read_teacher_outputs, write_teacher_outputs


def written(folder: Path) -> Output:
    (folder / WEIGHTS).write_bytes(b"the weights")
    output = Output(torch.randn(6, 3), torch.randn(6, 8))
    write_teacher_outputs(folder, output, corpus_fingerprint="abc")
    return output


def test_outputs_come_back_bit_for_bit(tmp_path: Path) -> None:
    output = written(tmp_path)
    found = read_teacher_outputs(tmp_path, corpus_fingerprint="abc")
    assert torch.equal(found.logits, output.logits)
    assert torch.equal(found.embeddings, output.embeddings)


def test_a_teacher_of_another_corpus_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(InputError, match="another dataset"):
        read_teacher_outputs(tmp_path, corpus_fingerprint="abd")


def test_outputs_of_other_weights_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"the weightz")
    with pytest.raises(InputError, match="made by other weights"):
        read_teacher_outputs(tmp_path, corpus_fingerprint="abc")


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\xff" * 64])
def test_missing_or_damaged_outputs_are_refused(tmp_path: Path, content: bytes | None) -> None:
    written(tmp_path)
    (tmp_path / OUTPUTS).unlink()
    if content is not None:
        (tmp_path / OUTPUTS).write_bytes(content)
    with pytest.raises(InputError, match="outputs of a finished teacher"):
        read_teacher_outputs(tmp_path, corpus_fingerprint="abc")
