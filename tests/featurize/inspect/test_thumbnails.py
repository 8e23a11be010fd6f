"""Images decoded from planted latents: thumbnails, the grid and the similarity of classes; how much work that may be."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featurize.generate.decoders import LatentDecoder
from featurize.inspect import decoded_images, inspect_store
from featurize.inspect.inspect_store import inspect
from featurize.inspect.inspection import Inspection
from featurize.options import InspectSettings
from lugpi_core.store.reader import ColumnReader
from lugpi_core.thumbnails import read_thumbnails
from tests.support.planted_store import Planted, Run, plant, plant_latents, without_tokens
from tests.support.small_clip import CPU


def test_classes_with_similar_images_are_found(original_with_latents: Planted, tmp_path: Path) -> None:
    settings = InspectSettings(device="cpu", thumbnails=0)
    alike = inspect(original_with_latents.run_dir / "tokens", original_with_latents.corpus, settings=settings).to_json()
    assert (alike["class_similarity"]["classes"], alike["class_similarity"]["pictures"]) == (3, 90)
    assert alike["class_similarity"]["p"] <= 0.01
    other = plant(tmp_path / "other", counts=(36, 6, 3))
    plant_latents(other, by_class=False)
    unlike = inspect(other.run_dir / "tokens", other.corpus, settings=settings).to_json()["class_similarity"]
    assert abs(unlike["within"] - unlike["between"]) < 0.1 * unlike["between"] + 0.01
    assert [{left, right} < set("abc") for left, right, _ in unlike["most_alike"]] == [True] * 3


def test_thumbnails_are_the_images_of_their_test_examples(with_latents: Planted, run: Run) -> None:
    from PIL import Image

    _, figures, printed = run(with_latents, "--thumbnails", "7")
    thumbnails = read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())
    assert len(thumbnails) == figures["thumbnails"]["examples"] == 7
    assert set(thumbnails) <= set(with_latents.corpus.rows("test"))
    assert figures["thumbnails"]["bytes"] == sum(map(len, thumbnails.values()))
    path = with_latents.run_dir / "drawings.png"
    assert figures["thumbnails"]["sheet"] == str(path)
    assert f"thumbnails of 7 test examples, 0.01 MB: {with_latents.run_dir / 'thumbnails'}; the first in a grid: {path}" in printed
    index = json.loads((with_latents.run_dir / "thumbnails" / "index.json").read_text())
    assert index["generator"] == "demo"
    assert len(ColumnReader(with_latents.run_dir / "tokens", "latents")) == 180
    images = decoded_images.DecodedImages(with_latents.run_dir / "tokens", "full", CPU)
    _, expected = images.decode(with_latents.drawing[list(thumbnails)], 128)
    for data, image in zip(thumbnails.values(), expected, strict=True):
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float) / 255
        distances = [float(np.abs(shown - other.permute(1, 2, 0).numpy()).mean()) for other in expected]
        assert min(distances) == pytest.approx(float(np.abs(shown - image.permute(1, 2, 0).numpy()).mean()))
    with Image.open(path) as grid:
        assert (grid.format, grid.size) == ("PNG", (8 * 140, 186))  # one row of eight, of which seven are used
        assert grid.crop((7 * 140, 0, 8 * 140, 186)).getextrema() == ((255, 255),) * 3
        assert grid.crop((6 * 140, 4, 7 * 140, 132)).getextrema() != ((255, 255),) * 3
        assert grid.crop((6 * 140, 133, 7 * 140, 186)).getextrema() != ((255, 255),) * 3


def test_where_no_test_image_can_be_shown_thumbnails_are_left_out(tmp_path: Path) -> None:
    planted = plant(tmp_path, counts=(6, 3, 2))
    plant_latents(planted, by_class=False, flagged=planted.drawing[list(planted.corpus.rows("test"))].tolist())
    found = inspect(planted.run_dir / "tokens", planted.corpus, settings=InspectSettings(device="cpu", thumbnails=2))
    assert found.to_json()["thumbnails"] == {"left_out": "no test image can be shown"}
    assert not (planted.run_dir / "drawings.png").exists()


def test_no_thumbnails_leaves_existing_ones(with_latents: Planted, run: Run) -> None:
    without_tokens(with_latents)
    run(with_latents, "--thumbnails", "3")
    _, figures, printed = run(with_latents, "--thumbnails", "0")
    assert figures["thumbnails"] == {"left_out": "--thumbnails 0"}
    assert "thumbnails left out: --thumbnails 0" in printed
    assert len(read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())) == 3


def test_the_tiny_decoder_gives_other_images(with_latents: Planted, run: Run) -> None:
    full = run(with_latents, "--thumbnails", "3")[1]
    before = read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())
    tiny = run(with_latents, "--thumbnails", "3", "--decoder", "tiny")[1]
    after = read_thumbnails(with_latents.run_dir / "thumbnails", with_latents.corpus.fingerprint())
    assert list(before) == list(after)
    assert before != after
    assert full["class_similarity"]["within"] != tiny["class_similarity"]["within"]
    assert full["columns"] == tiny["columns"]


@pytest.mark.filterwarnings("default:at most")
def test_decoding_keeps_to_the_work_allowed(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_store, "MOST_CLASS_IMAGES", 280)
    without_tokens(with_latents)
    decoded: list[int] = []
    decode = LatentDecoder.decode

    def watched(self: LatentDecoder, latents: torch.Tensor) -> torch.Tensor:
        decoded.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr(LatentDecoder, "decode", watched)
    flops = decoded_images.DecodedImages(with_latents.run_dir / "tokens", "full", CPU).flops
    _, figures, printed = run(with_latents, "--decode-tflop", str(20.5 * flops / 1e12))
    assert (figures["thumbnails"]["examples"], figures["class_similarity"]["pictures"]) == (10, 9)  # three of each class
    assert sum(decoded) == 19
    assert "warning: at most 20 images are decoded" in printed
    _, figures, printed = run(with_latents, "--decode-tflop", str(0.5 * flops / 1e12))
    assert "one image is more work" in figures["thumbnails"]["left_out"]
    assert "fewer than two classes" in figures["class_similarity"]["left_out"]


def test_without_latents_the_images_are_left_out(found: Inspection, original: Planted) -> None:
    figures = found.to_json()
    assert "without latents" in figures["thumbnails"]["left_out"]
    assert "without latents" in figures["class_similarity"]["left_out"]
    assert "thumbnails left out: got " in found.summary()
    assert not (original.run_dir / "thumbnails").exists()


def test_a_store_of_latents_alone_still_has_images(with_latents: Planted, run: Run) -> None:
    without_tokens(with_latents)
    status, figures, _ = run(with_latents, "--thumbnails", "5")
    assert (status, figures["columns"], figures["thumbnails"]["examples"]) == (0, {}, 5)
    assert figures["verdict"]["words"] == "cannot tell whether the images predict the class: the store has no tokens of images"


def test_too_little_memory_is_a_one_line_error(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LatentDecoder, "decode", full)
    status, _, printed = run(with_latents)
    assert status == 2
    assert "error: got too little memory" in printed.splitlines()[-1]


def test_no_model_is_downloaded(with_latents: Planted, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    is_offline: list[bool] = []
    find_generator = decoded_images.find_generator

    def watched(*arguments: Any, **how: Any) -> Any:
        is_offline.append(constants.HF_HUB_OFFLINE)
        return find_generator(*arguments, **how)

    monkeypatch.setattr(decoded_images, "find_generator", watched)
    without_tokens(with_latents)
    run(with_latents, "--thumbnails", "1")
    assert is_offline == [True]
    assert constants.HF_HUB_OFFLINE is False
