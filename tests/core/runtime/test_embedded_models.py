"""The embedded models: small, of the real ones' classes, and with a meaning that can be asserted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dev.embedded_models.measures import Artist, Clip, clean_pictures, demo_glosses, pooled, probe
from dev.embedded_models.sources import CLDR, FONT, load_emoji, rendered
from dev.embedded_models.world import PICTURE_PX
from featurize.encode.image_encoder import ImageEncoder, find_encoder
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.embedded_models import FOLDER, embedded_model

MOST_BYTES = 25_000_000


def test_all_of_them_are_small_and_in_half_precision() -> None:
    files = sorted(FOLDER.rglob("*.safetensors"))
    assert {path.relative_to(FOLDER).parts[0] for path in files} == {"generator", "tiny", "clip-demo", "vit-demo", "text"}
    assert sum(path.stat().st_size for path in FOLDER.glob("*/**/*") if path.is_file()) <= MOST_BYTES
    for path in files:
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_tensor(name).dtype for name in sorted(file.keys())}
        assert kinds <= {torch.float16, torch.int64}, path


def test_a_package_without_them_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lugpi_core.runtime.embedded_models.FOLDER", tmp_path)
    with pytest.raises(InputError, match="install the package again"):
        embedded_model("text")


def test_the_card_says_what_the_record_says() -> None:
    record = json.loads((FOLDER / "record.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for path, size in record["bytes"].items():
        assert (FOLDER / path).stat().st_size == size, "the models are not those that were measured"
    assert f"{record['measured']['retrieval']['name_first']:.1%}" in card
    assert all(one["loss"][-1] < one["loss"][0] for one in record["trained"].values())


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(FOLDER)


@pytest.fixture(scope="module")
def artist() -> Artist:
    return Artist(FOLDER)


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
