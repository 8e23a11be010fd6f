"""The embedded models: what their generator draws is recognised by their encoders, and the card matches the record."""

import json

import pytest
import torch

from dev.embedded_models.measures import Artist, Clip, clean_pictures, demo_glosses, pooled, probe
from dev.embedded_models.sources import CLDR, FONT, load_emoji, rendered
from dev.embedded_models.world import PICTURE_PX
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER


def test_the_card_says_what_the_record_says() -> None:
    record = json.loads((EMBEDDED_FOLDER / "record.json").read_text())
    card = (EMBEDDED_FOLDER / "README.md").read_text()
    for path, size in record["bytes"].items():
        assert (EMBEDDED_FOLDER / path).stat().st_size == size, "the models are not those that were measured"
    assert f"{record['measured']['retrieval']['name_first']:.1%}" in card
    assert all(one["loss"][-1] < one["loss"][0] for one in record["trained"].values())


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(EMBEDDED_FOLDER)


@pytest.fixture(scope="module")
def artist() -> Artist:
    return Artist(EMBEDDED_FOLDER)


def test_a_drawing_of_a_red_apple_is_nearer_to_the_apple_than_nearly_all_others(artist: Artist) -> None:
    for path in (FONT, CLDR):
        if not path.exists():
            pytest.skip(f"no {path}")
    emoji, pictures = rendered(load_emoji(), side_px=PICTURE_PX)
    encoder = ImageEncoder(find_encoder("clip-demo"), resolve_compute("cpu", "auto", half="float16"))
    clean = torch.nn.functional.normalize(torch.from_numpy(pooled(encoder, clean_pictures(pictures))), dim=1)
    names = [one.name for one in emoji]
    places = [names.index("red apple"), *range(5, len(names), 32)]
    drawn = torch.from_numpy(pooled(encoder, artist.pictures([f"a {names[place]}" for place in places])))
    near = torch.nn.functional.normalize(drawn, dim=1) @ clean.T
    farther = [float((row < row[place]).float().mean()) for row, place in zip(near, places, strict=True)]
    assert farther[0] > 0.99
    assert sum(farther) / len(farther) > 0.85, "for names of all kinds, where chance is a half"


def test_drawings_of_unseen_texts_are_nearer_to_their_own_words(clip: Clip, artist: Artist) -> None:
    texts = [text for text, _ in demo_glosses("validation")[:96]]
    cosine = clip.texts(texts) @ clip.pictures(artist.pictures(texts)).T
    assert float((cosine.diag()[:, None] > cosine).float().mean()) > 0.7


def test_drawings_of_unseen_texts_tell_their_topics(artist: Artist) -> None:
    learnt, unseen = demo_glosses("train"), demo_glosses("validation")
    encoder = ImageEncoder(find_encoder("clip-demo"), resolve_compute("cpu", "auto", half="float16"))
    features = [pooled(encoder, artist.pictures([text for text, _ in rows])) for rows in (learnt, unseen)]
    assert probe(features[0], [topic for _, topic in learnt], features[1], [topic for _, topic in unseen]) > 3 / 12
