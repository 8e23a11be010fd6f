"""The teacher's cached outputs are bound to its weights and to its corpus."""

from pathlib import Path

import pytest
import torch

from lugpi_core.errors import InputError
from train.data.teacher_outputs import find_teacher_outputs, outputs_path, read_teacher_outputs, standardized, write_teacher_outputs
from train.file_names import WEIGHTS
from train.learning.networks import Output
from train.options.settings import OutputsDtype

IMAGES = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).half()


def written(folder: Path, dtype: OutputsDtype = "float32", images: torch.Tensor | None = None) -> Output:
    (folder / WEIGHTS).write_bytes(b"the weights")
    generator = torch.Generator().manual_seed(0)
    output = Output(torch.randn(6, 3, generator=generator), torch.randn(6, 8, generator=generator))
    embeddings = output.embeddings.to(getattr(torch, dtype))
    write_teacher_outputs(outputs_path(folder), output.logits, embeddings, images_NI=images, corpus_fingerprint="abc")
    return output


def test_outputs_come_back_bit_for_bit(tmp_path: Path) -> None:
    output = written(tmp_path)
    found = read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")
    assert torch.equal(found.logits, output.logits)
    assert torch.equal(found.embeddings, output.embeddings)
    assert find_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc") is not None


def test_image_vectors_come_back_bit_for_bit_where_they_are_asked_for(tmp_path: Path) -> None:
    output, path = written(tmp_path, images=IMAGES), outputs_path(tmp_path)
    assert read_teacher_outputs(path, corpus_fingerprint="abc").images is None
    found = read_teacher_outputs(path, corpus_fingerprint="abc", with_images=True)
    assert found.images is not None
    assert torch.equal(found.images, IMAGES)
    assert torch.equal(found.logits, output.logits)
    both, batch = found.followed_by(found), found.rows(torch.tensor([4, 1]))
    assert both.images is not None
    assert batch.images is not None
    assert torch.equal(both.images, torch.cat([IMAGES, IMAGES]))
    assert torch.equal(batch.images, IMAGES[[4, 1]])


def test_outputs_of_an_earlier_version_have_no_image_vectors(tmp_path: Path) -> None:
    written(tmp_path)
    assert read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc", with_images=True).images is None


def test_damaged_image_vectors_are_detected(tmp_path: Path) -> None:
    written(tmp_path, images=IMAGES)
    path = outputs_path(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(IMAGES.numpy().tobytes())
    content[place] ^= 0x40
    path.write_bytes(content)
    assert find_teacher_outputs(path, corpus_fingerprint="abc", with_images=True) is None


def test_image_vectors_are_in_units_of_the_train_texts() -> None:
    images = IMAGES.clone()
    images[:, 2] = 3.0
    rows = [0, 2, 3, 5]
    found, exact = standardized(images, rows).double().numpy(), images.double().numpy()
    for column in range(5):
        chosen = [exact[row, column] for row in rows]
        mean = sum(chosen) / 4
        deviation = (sum((value - mean) ** 2 for value in chosen) / 4) ** 0.5 or 1.0
        assert found[:, column] == pytest.approx((exact[:, column] - mean) / deviation, abs=1e-5)


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
    assert find_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abd") is None


def test_outputs_of_other_weights_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"the weightz")
    with pytest.raises(InputError, match="computed from other weights"):
        read_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc")
    assert find_teacher_outputs(outputs_path(tmp_path), corpus_fingerprint="abc") is None


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
    assert find_teacher_outputs(path, corpus_fingerprint="abc") is None
    with pytest.raises(InputError, match=r"content is not what was written.*only rewrites its outputs"):
        read_teacher_outputs(path, corpus_fingerprint="abc")
