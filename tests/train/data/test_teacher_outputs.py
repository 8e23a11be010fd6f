"""The teacher's cached outputs are bound to its weights and to its corpus."""

from pathlib import Path

import pytest
import torch

from lugpi_core.errors import InputError
from train.data.teacher_outputs import has_teacher_outputs, outputs_path, read_teacher_outputs, write_teacher_outputs
from train.file_names import WEIGHTS
from train.learning.networks import Output
from train.options.settings import OutputsDtype


def written(folder: Path, dtype: OutputsDtype = "float32") -> Output:
    (folder / WEIGHTS).write_bytes(b"the weights")
    generator = torch.Generator().manual_seed(0)
    output = Output(torch.randn(6, 3, generator=generator), torch.randn(6, 8, generator=generator))
    write_teacher_outputs(outputs_path(folder), output.logits, output.embeddings, corpus_fingerprint="abc", dtype=dtype)
    return output


def test_outputs_come_back_bit_for_bit(tmp_path: Path) -> None:
    output = written(tmp_path)
    found = read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")
    assert torch.equal(found.logits, output.logits)
    assert torch.equal(found.embeddings, output.embeddings)
    assert has_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")


def test_equal_outputs_are_equal_bytes(tmp_path: Path) -> None:
    written(tmp_path)
    first = outputs_path(tmp_path).read_bytes()
    written(tmp_path)
    assert outputs_path(tmp_path).read_bytes() == first


def test_half_precision_halves_the_embeddings_but_not_the_logits(tmp_path: Path) -> None:
    output = written(tmp_path, "float16")
    found = read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")
    assert torch.equal(found.logits, output.logits)
    assert torch.equal(found.embeddings, output.embeddings.half())


def test_outputs_for_other_texts_are_appended(tmp_path: Path) -> None:
    output = written(tmp_path)
    found = read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")
    both = found.followed_by(found)
    assert torch.equal(both.logits, torch.cat([output.logits, output.logits]))
    assert torch.equal(both.embeddings, torch.cat([output.embeddings, output.embeddings]))
    assert both.teacher == found.teacher


def test_outputs_for_unlabelled_texts_have_their_own_file(tmp_path: Path) -> None:
    names = [outputs_path(tmp_path).name, outputs_path(tmp_path, "more").name, outputs_path(tmp_path, "other").name]
    assert names == ["outputs.safetensors", "outputs-more.safetensors", "outputs-other.safetensors"]


def test_a_teacher_of_another_corpus_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(InputError, match="another dataset"):
        read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abd")
    assert not has_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abd")


def test_outputs_of_other_weights_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"the weightz")
    with pytest.raises(InputError, match="computed from other weights"):
        read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")
    assert not has_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")


@pytest.mark.parametrize("content", [None, b"", b"nonsense", b"\xff" * 64])
def test_missing_or_damaged_outputs_are_refused(tmp_path: Path, content: bytes | None) -> None:
    written(tmp_path)
    path = outputs_path(tmp_path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="outputs of a finished teacher"):
        read_teacher_outputs(path, corpus_fingerprint="abc")


def test_a_flipped_bit_in_the_outputs_is_detected(tmp_path: Path) -> None:
    written(tmp_path)
    path = outputs_path(tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 0x40
    path.write_bytes(content)
    assert not has_teacher_outputs(path, corpus_fingerprint="abc")
    with pytest.raises(InputError, match=r"content is not what was written.*only rewrites its outputs"):
        read_teacher_outputs(path, corpus_fingerprint="abc")
