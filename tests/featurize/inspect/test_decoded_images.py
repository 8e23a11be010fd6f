"""Images from latents: the same that the whole generator decodes; and why there are none."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.cost.stage_cost import DECODE, decode_flops, stage_flops
from featurize.generate.decoders import LatentDecoder, find_decoder
from featurize.generate.generators import Generator, find_generator, generator_settings
from featurize.generate.text_to_image import TextToImage
from featurize.inspect import decoded_images
from featurize.inspect.decoded_images import DecodedImages, generator_of, to_bytes, to_grey
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader
from tests.support.planted_store import Planted, plant, plant_column, plant_latents

CPU = Compute(device="cpu", device_name="CPU", dtype="float32", threads=1)


@pytest.fixture(scope="module")
def demo() -> Generator:
    return find_generator("demo", generator_settings("demo", {}), half=False)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    store = plant(tmp_path_factory.mktemp("pictures"), counts=(20, 10, 10))
    plant_latents(store, by_class=True, flagged=(3, 7))
    return store


@pytest.mark.parametrize("decoder", ["full", "tiny"])
def test_the_decoder_alone_gives_the_images_of_the_whole_generator(demo: Generator, decoder: str) -> None:
    files = find_decoder(decoder, demo)
    latents = torch.randn((3, *demo.latent_shape), generator=torch.Generator().manual_seed(0))
    expected = TextToImage(demo, CPU, attention="sdpa", decoder=files).decode(latents)
    found = LatentDecoder(demo, CPU, decoder=files).decode(latents)
    assert torch.equal(found, expected)
    assert found.shape == (3, 3, demo.size_px, demo.size_px)


def test_a_decoder_that_overflows_gives_nan_and_not_white(demo: Generator) -> None:
    latents = torch.full((1, *demo.latent_shape), torch.inf)
    assert LatentDecoder(demo, CPU).decode(latents).isnan().any()


def test_images_are_those_of_the_latents_at_a_smaller_side(planted: Planted, demo: Generator) -> None:
    images = DecodedImages(planted.run_dir / "tokens", "full", CPU)
    places, found = images.decode(np.array([9, 0, 5]), 16)
    latents = ColumnReader(planted.run_dir / "tokens", LATENTS).gather([9, 0, 5])
    whole = LatentDecoder(demo, CPU).decode(torch.from_numpy(latents))
    smaller = torch.nn.functional.interpolate(whole, size=(16, 16), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    assert places.tolist() == [0, 1, 2]
    torch.testing.assert_close(found, smaller, atol=1e-5, rtol=0)


def test_images_are_not_enlarged(planted: Planted, demo: Generator) -> None:
    _, found = DecodedImages(planted.run_dir / "tokens", "full", CPU).decode(np.array([1]), 10 * demo.size_px)
    assert found.shape == (1, 3, demo.size_px, demo.size_px)


def test_failed_images_are_left_out(planted: Planted) -> None:
    places, found = DecodedImages(planted.run_dir / "tokens", "full", CPU).decode(np.array([2, 3, 7, 8]), 16)
    assert places.tolist() == [0, 3]
    assert len(found) == 2
    places, found = DecodedImages(planted.run_dir / "tokens", "full", CPU).decode(np.array([3, 7]), 16)
    assert (places.tolist(), found.shape) == ([], (0, 3, 16, 16))


def test_an_image_that_is_not_finite_is_left_out(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LatentDecoder.decode

    def sick(self: LatentDecoder, latents: torch.Tensor) -> torch.Tensor:
        images = whole(self, latents).clone()
        images[1, 0, 0, 0] = torch.nan
        return images

    monkeypatch.setattr(LatentDecoder, "decode", sick)
    places, found = DecodedImages(planted.run_dir / "tokens", "full", CPU).decode(np.array([0, 1, 2]), 16)
    assert places.tolist() == [0, 2]
    assert found.isfinite().all()


def test_at_most_a_million_pixels_are_decoded_at_once(planted: Planted, demo: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = LatentDecoder.decode

    def watched(self: LatentDecoder, latents: torch.Tensor) -> torch.Tensor:
        seen.append(len(latents))
        return whole(self, latents)

    monkeypatch.setattr(LatentDecoder, "decode", watched)
    monkeypatch.setattr(decoded_images, "_BATCH_PIXELS", 4 * demo.size_px**2)
    images = DecodedImages(planted.run_dir / "tokens", "full", CPU)
    _, found = images.decode(np.arange(10, 20), 16)
    assert seen == [4, 4, 2]
    monkeypatch.setattr(decoded_images, "_BATCH_PIXELS", 1 << 20)
    _, at_once = images.decode(np.arange(10, 20), 16)
    torch.testing.assert_close(found, at_once, atol=1e-5, rtol=0)


def test_the_work_per_image_is_that_counted_for_its_decoder(planted: Planted, demo: Generator) -> None:
    tiny = find_decoder("tiny", demo)
    assert tiny is not None
    assert DecodedImages(planted.run_dir / "tokens", "full", CPU).flops == stage_flops(demo, ())[DECODE]
    assert DecodedImages(planted.run_dir / "tokens", "tiny", CPU).flops == decode_flops(demo, decoder=tiny)


def test_without_latents_there_are_no_images(tmp_path: Path) -> None:
    store = plant(tmp_path)
    plant_column(store, "clip", np.zeros((180, 2, 3)))
    with pytest.raises(InputError, match="without latents"):
        DecodedImages(store.run_dir / "tokens", "full", CPU)


@pytest.mark.parametrize(
    ("made_by", "weights", "message"),
    [
        ({"generator": "demo"}, "other", "other weights than those that generated the latents"),
        (None, "other", "other weights than those that generated the latents"),
        ({"generator": "fast"}, None, "no source of the generator fast within reach"),
        ({"generator": "demo=/nowhere"}, None, "demo=/nowhere, which names no folder"),
        ({"generator": "nonsense"}, None, "--generator nonsense"),
    ],
    ids=str,
)
def test_a_missing_generator_is_a_one_line_error(planted: Planted, made_by: Any, weights: str | None, message: str) -> None:
    spec, _ = load_manifest(planted.run_dir / "tokens" / LATENTS)
    generation: dict[str, Any] = dict(spec.fingerprint["generation"])
    if weights is not None:
        generation["generator"] = {**generation["generator"], "weights": weights}
    changed = dataclasses.replace(spec, made_by=made_by, fingerprint={"generation": generation})
    with pytest.raises(InputError, match=message) as caught:
        generator_of(changed)
    assert "\n" not in str(caught.value)


def test_the_generator_is_that_of_the_manifests_record(planted: Planted, demo: Generator) -> None:
    """The command line that wrote the column only says where the files are, and a preset's name is enough for that."""
    spec, _ = load_manifest(planted.run_dir / "tokens" / LATENTS)
    generation = dict(spec.fingerprint["generation"])
    changed = dataclasses.replace(spec, fingerprint={"generation": {**generation, "generator": {**generation["generator"], "steps": 7}}})
    for made_by in ({"generator": "demo", "steps": 3}, {"generator": f"demo={demo.folder}"}, {"generator": None}, {}, None):
        found = generator_of(dataclasses.replace(changed, made_by=made_by))
        assert found == dataclasses.replace(demo, settings=dataclasses.replace(demo.settings, steps=7, size_px=64))


def test_foreign_latents_have_no_generator(planted: Planted) -> None:
    spec, _ = load_manifest(planted.run_dir / "tokens" / LATENTS)
    with pytest.raises(InputError, match="without a record of their generator"):
        generator_of(dataclasses.replace(spec, fingerprint={"made": "elsewhere"}))


def test_bytes_and_grey_values_follow_their_formulas() -> None:
    pictures = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    values = to_bytes(pictures)
    assert (values.dtype, values.shape) == (np.uint8, (2, 4, 4, 3))
    np.testing.assert_array_equal(values[1, 2, 3], np.round(pictures[1, :, 2, 3].numpy() * 255))
    red, green, blue = pictures.unbind(dim=1)
    torch.testing.assert_close(to_grey(pictures), 0.299 * red + 0.587 * green + 0.114 * blue)
