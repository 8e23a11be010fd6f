"""The embedded models: their encoders recognise what their generator draws, and the card matches the record."""

import json

import pytest
import torch

from dev.embedded_models.card import card as card_of
from dev.embedded_models.measures import Clip, ImageGenerator, centred_images, demo_glosses, pooled_tokens, probe
from dev.embedded_models.sources import CLDR, FONT, load_emoji, render
from dev.embedded_models.world import PICTURE_PX
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER


def test_the_card_matches_the_record() -> None:
    record = json.loads((EMBEDDED_FOLDER / "record.json").read_text())
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    for path, size in record["bytes"].items():
        assert (EMBEDDED_FOLDER / path).stat().st_size == size, "the models are not those that were measured"
    assert f"{record['measured']['retrieval']['name_first']:.1%}" in card
    assert all(part["loss"][-1] < part["loss"][0] for part in record["trained"].values())
    assert card == card_of(record)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(EMBEDDED_FOLDER)


def test_the_weights_of_all_models_take_at_most_30_megabytes() -> None:
    record = json.loads((EMBEDDED_FOLDER / "record.json").read_text())
    sizes = {path.relative_to(EMBEDDED_FOLDER).as_posix(): path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*.safetensors")}
    assert sizes == record["bytes"]
    assert sum(sizes.values()) <= 30e6


@pytest.fixture(scope="module")
def generator() -> ImageGenerator:
    return ImageGenerator(EMBEDDED_FOLDER)


@pytest.fixture(scope="module")
def flow() -> ImageGenerator:
    return ImageGenerator(EMBEDDED_FOLDER, "demo-flow")


def test_the_second_generators_images_are_nearest_to_their_own_name(clip: Clip, flow: ImageGenerator) -> None:
    names = ["red apple", "cat face", "floppy disk", "red heart", "rose", "airplane", "crescent moon", "snowman", "bicycle", "hamburger"]
    cosine = clip.texts(names) @ clip.images(flow.images(names)).T
    assert float((cosine.diag()[:, None] > cosine).float().mean()) > 0.7, "of nine others in ten; by chance .45"


def test_an_image_of_a_red_apple_is_nearest_to_the_apple(generator: ImageGenerator) -> None:
    for path in (FONT, CLDR):
        if not path.exists():
            pytest.skip(f"no {path}")
    emoji, pictures = render(load_emoji(), side_px=PICTURE_PX)
    encoder = ImageEncoder(find_encoder("clip-demo"), resolve_compute("cpu", "auto", half="float16"))
    clean = torch.nn.functional.normalize(torch.from_numpy(pooled_tokens(encoder, centred_images(pictures))), dim=1)
    names = [one.name for one in emoji]
    places = [names.index("red apple"), *range(5, len(names), 32)]
    drawn = torch.from_numpy(pooled_tokens(encoder, generator.images([f"a {names[place]}" for place in places])))
    near = torch.nn.functional.normalize(drawn, dim=1) @ clean.T
    farther = [float((row < row[place]).float().mean()) for row, place in zip(near, places, strict=True)]
    assert farther[0] > 0.99
    assert sum(farther) / len(farther) > 0.85, "for names of all kinds, where chance is a half"


@pytest.fixture(scope="module")
def unseen(generator: ImageGenerator) -> tuple[list[str], list[str], torch.Tensor]:
    """Texts that no model was trained on, their topics, and an image of each."""
    texts, topics = zip(*demo_glosses("validation")[:120], strict=True)
    return list(texts), list(topics), generator.images(texts)


def test_images_of_unseen_texts_are_nearest_to_their_own_text(clip: Clip, unseen: tuple[list[str], list[str], torch.Tensor]) -> None:
    texts, _, images = unseen
    cosine = clip.texts(texts) @ clip.images(images).T
    assert float((cosine.diag()[:, None] > cosine).float().mean()) > 0.7


def test_images_of_unseen_texts_predict_their_topics(generator: ImageGenerator, unseen: tuple[list[str], list[str], torch.Tensor]) -> None:
    fitted, (_, topics, images) = demo_glosses("train")[::3], unseen
    encoder = ImageEncoder(find_encoder("clip-demo"), resolve_compute("cpu", "auto", half="float16"))
    train_features = pooled_tokens(encoder, generator.images([text for text, _ in fitted]))
    accuracy = probe(train_features, [topic for _, topic in fitted], pooled_tokens(encoder, images), topics)
    assert accuracy > 3 / 12
