"""Text-image agreement: the library's own embeddings, planted pairs, and encoders without a text tower."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from featurize.encode.encoders import EncoderFiles, find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.joint_space import JointSpace
from featurize.inspect.text_agreement import agreement_of, encoder_of, text_agreement
from lugpi_core.errors import InputError
from lugpi_core.store.manifest import ColumnSpec
from tests.support.small_clip import CPU, JOINT, WIDTH, class_tokens_like, clip_folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return find_encoder(str(clip_folder(tmp_path_factory.mktemp("clip") / "small-clip")))


PROMPTS = ["a dog", "two red cats on a mat", "x " * 200, "fünf Äpfel", "rain"]


def test_the_embeddings_are_those_of_the_library(files: EncoderFiles) -> None:
    model = open_clip.create_model(f"local-dir:{files.folder}", require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{files.folder}")
    encoder, space = ImageEncoder(files, CPU), JointSpace(files, CPU)
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    class_tokens = encoder.encode(images)[:, 0]
    with torch.no_grad():
        expected = model.encode_image(encoder.pixels(images), normalize=True)
        texts = model.encode_text(tokenizer(PROMPTS), normalize=True)
    torch.testing.assert_close(space.images(class_tokens), expected, atol=2e-3, rtol=0)  # tokens are kept in half precision
    torch.testing.assert_close(space.embed_texts(PROMPTS), texts, atol=1e-6, rtol=0)
    assert space.images(class_tokens).shape == (3, JOINT)


def test_images_that_agree_with_their_texts_are_recognised(files: EncoderFiles) -> None:
    space, prompts = JointSpace(files, CPU), [f"{n} thing {n * 7 % 13}" for n in range(40)]
    shown = class_tokens_like(space, space.embed_texts(prompts))
    found = text_agreement(files, CPU, shown, prompts)
    assert found.texts == 40
    assert found.matching == pytest.approx(1, abs=1e-4)
    assert found.others < found.matching
    assert found.own_is_nearer == 1.0
    assert found.standard_error == 0.0
    of_others = text_agreement(files, CPU, shown.roll(1, dims=0), prompts)
    assert of_others.own_is_nearer < 0.9
    noise = text_agreement(files, CPU, torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(0)), prompts)
    assert abs(noise.own_is_nearer - 0.5) < 4 * noise.standard_error + 0.05


def test_the_figures_are_those_of_a_loop() -> None:
    cosines = np.random.default_rng(0).uniform(-1, 1, size=(9, 9))
    cosines[4, 2] = cosines[4, 4]  # a tie
    found = agreement_of(torch.from_numpy(cosines))
    shares = []
    for n in range(9):
        others = [cosines[n, m] for m in range(9) if m != n]
        shares.append(np.mean([1.0 if cosines[n, n] > one else 0.5 if cosines[n, n] == one else 0.0 for one in others]))
    off = cosines[~np.eye(9, dtype=bool)]
    assert found.matching == pytest.approx(np.trace(cosines) / 9)
    assert found.others == pytest.approx(off.mean())
    assert found.own_is_nearer == pytest.approx(np.mean(shares))
    assert found.standard_error == pytest.approx(np.std(shares, ddof=1) / 3)


def column(files: EncoderFiles, made_by: Mapping[str, Any] | None, **changes: Any) -> ColumnSpec:
    encoder = {**files.fingerprint(), **changes}
    return ColumnSpec(
        name=files.name, what="tokens", rows=4, row_shape=(2, 2), shard_rows=4, fingerprint={"encoder": encoder}, made_by=made_by
    )


def test_the_encoder_is_found_even_if_another_of_the_run_is_gone(files: EncoderFiles, tmp_path: Path) -> None:
    made_by = {"encoders": [str(tmp_path / "gone"), "vit-demo", str(files.folder)]}
    assert encoder_of(column(files, made_by)) == files


def test_tokens_of_another_block_are_found_again_and_not_projected(files: EncoderFiles) -> None:
    other = find_encoder(str(files.folder), layer=1)
    found = encoder_of(column(other, {"encoders": [str(files.folder)], "encoder_layer": 1}))
    assert found == other != files
    with pytest.raises(InputError, match="layer1, whose image embedding is not made of the tokens that are stored"):
        JointSpace(found, CPU)


@pytest.mark.parametrize(
    ("made_by", "changes", "message"),
    [
        (None, {}, "no featurize command wrote"),
        ({"encoders": ["vit-demo"]}, {}, "no featurize command wrote"),
        ({"encoders": ["nowhere"]}, {}, "--encoders nowhere"),
        ({"encoders": None}, {"family": "vit"}, "the family vit"),
        ({"encoders": "itself"}, {"weights": "other"}, "other weights than those of the column"),
    ],
    ids=str,
)
def test_a_missing_text_tower_is_a_one_line_error(files: EncoderFiles, made_by: Any, changes: Any, message: str) -> None:
    made_by = {"encoders": [str(files.folder)]} if made_by == {"encoders": "itself"} else made_by
    with pytest.raises(InputError, match=message) as caught:
        encoder_of(column(files, made_by, **changes))
    assert "\n" not in str(caught.value)


def test_a_foreign_column_has_no_known_encoder() -> None:
    spec = ColumnSpec(name="mine", what="tokens", rows=4, row_shape=(2, 2), shard_rows=4, fingerprint={"made": "elsewhere"})
    with pytest.raises(InputError, match="family unknown"):
        encoder_of(spec)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    bare = find_encoder(str(clip_folder(tmp_path / "bare", own_tokenizer=False)))
    with pytest.raises(InputError, match="no tokenizer of its own"):
        JointSpace(bare, CPU).embed_texts(["a dog"])


def test_a_missing_tokenizer_is_a_one_line_error(files: EncoderFiles, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(files.folder, tmp_path / "torn"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=r"torn, which does not load") as caught:
        JointSpace(find_encoder(str(folder)), CPU)
    assert "\n" not in str(caught.value)


def test_another_family_has_no_joint_space() -> None:
    with pytest.raises(InputError, match="expected an open_clip model"):
        JointSpace(find_encoder("vit-demo"), CPU)
