"""A user's own pictures become the pixels that the encoder's own library makes of them."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from featurize.encode.encoders import EncoderFiles, find_encoder
from featurize.encode.own_pictures import PictureReader, kind_of, open_picture
from featurize.encode.preprocessing import read_preprocessing
from lugpi_core.corpora.pictures import PictureFault
from lugpi_core.errors import InputError
from tests.support.own_pictures import file_of, hostile_files, picture, turned, unusual_pictures

UNUSUAL = unusual_pictures()


def processor_named(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**settings)


PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "shortest edge and crop": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}),
    "larger and crop": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 26}, "crop_size": {"height": 20, "width": 20}}),
    "squashed": ("ViTImageProcessorPil", {"size": {"height": 20, "width": 20}}),
    "bit": ("BitImageProcessorPil", {"size": {"shortest_edge": 24}, "crop_size": {"height": 18, "width": 18}}),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}),
    "siglip": ("SiglipImageProcessorPil", {"size": {"height": 20, "width": 20}, "resample": 2}),
}


def files_with(folder: Path, processor: Any) -> EncoderFiles:
    processor.save_pretrained(folder)
    preprocessing, name = read_preprocessing(folder)
    return replace(find_encoder("vit-demo"), folder=folder, preprocessing=preprocessing, processor=name)


@pytest.mark.parametrize("how", PROCESSORS)
def test_pixels_are_those_of_transformers(how: str, tmp_path: Path) -> None:
    from transformers.image_utils import load_image

    name, settings = PROCESSORS[how]
    processor = processor_named(name, **settings)
    reader = PictureReader(files_with(tmp_path / "encoder", processor))
    for file, data in UNUSUAL.items():
        theirs = processor(load_image(Image.open(io.BytesIO(data))), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(reader.pixels(open_picture(data)), theirs), file


def as_open_clip(image: Image.Image, size_px: int, mode: str, fill: int) -> torch.Tensor:
    """What open_clip 3.3's image_transform does for evaluation, step by step, with its defaults of mean and deviation."""
    width, height = image.size
    if mode == "squash":
        image = image.resize((size_px, size_px), Image.Resampling.BICUBIC)
    elif mode == "shortest":
        scaled = (size_px, int(size_px * height / width)) if width < height else (int(size_px * width / height), size_px)
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (round((side - size_px) / 2) for side in image.size)
        image = image.crop((left, top, left + size_px, top + size_px))
    else:
        ratio = max(width, height) / size_px
        image = image.resize((round(width / ratio), round(height / ratio)), Image.Resampling.BICUBIC)
        canvas = Image.new(image.mode, (size_px, size_px), (fill,) * len(image.getbands()) if len(image.getbands()) > 1 else fill)
        canvas.paste(image, ((size_px - image.width) // 2, (size_px - image.height) // 2))
        image = canvas
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.8, 0.75, 0.7]).view(3, 1, 1), torch.tensor([0.3, 0.3, 0.35]).view(3, 1, 1)
    return (pixels - mean) / std


@pytest.mark.parametrize(("mode", "fill"), [("shortest", 0), ("squash", 0), ("longest", 0), ("longest", 127)])
@pytest.mark.parametrize("file", ["wide.png", "high.jpg", "rgba.png", "grey.png"])
def test_pixels_are_those_of_open_clip(mode: str, fill: int, file: str) -> None:
    files = replace(find_encoder("clip-demo"), fit=mode, fill=fill)
    image = open_picture(UNUSUAL[file])
    assert torch.allclose(PictureReader(files).pixels(image), as_open_clip(image, 64, mode, fill), atol=1e-6)


def test_a_square_picture_becomes_what_a_generated_image_becomes() -> None:
    for name in ("clip-demo", "vit-demo"):
        files, image = find_encoder(name), picture(64, 64)
        generated = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        assert torch.allclose(PictureReader(files).pixels(image), files.preprocessing.pixels(generated)[0], atol=1e-5)


@pytest.mark.parametrize(("own_px", "asked_px"), [(224, 384), (384, 64), (64, 128), (64, 75)])
def test_convnexts_processor_at_another_size_is_one_for_both_kinds_of_images(own_px: int, asked_px: int, tmp_path: Path) -> None:
    """transformers 5.23 crops below 384 px and squashes from there on (image_processing_pil_convnext.py)."""
    import transformers

    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1])
    transformers.ConvNextModel(config).save_pretrained(tmp_path)
    kind: Any = transformers.ConvNextImageProcessorPil
    kind(size={"shortest_edge": own_px}, crop_pct=0.95).save_pretrained(tmp_path)
    files = find_encoder(str(tmp_path), asked_px)
    theirs = kind(size={"shortest_edge": asked_px}, crop_pct=0.95)
    for shape in ((150, 150), (200, 90)):
        wanted = theirs(picture(*shape), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(PictureReader(files).pixels(picture(*shape)), wanted)
    wanted = theirs(picture(150, 150), return_tensors="pt")["pixel_values"][0]
    generated = torch.from_numpy(np.array(picture(150, 150))).permute(2, 0, 1)[None] / 255
    level = 1 / 255 / min(files.preprocessing.std)
    assert (files.preprocessing.pixels(generated)[0] - wanted).abs().max() < 2 * level


def test_another_encoder_size_is_that_of_the_pixels(tmp_path: Path) -> None:
    name, settings = PROCESSORS["larger and crop"]
    files = files_with(tmp_path, processor_named(name, **settings))
    doubled = replace(files, preprocessing=replace(files.preprocessing, size_px=40, crop_from_px=52))
    wanted = processor_named(name, size={"shortest_edge": 52}, crop_size={"height": 40, "width": 40})
    image = picture(60, 30)
    assert torch.equal(PictureReader(doubled).pixels(image), wanted(image, return_tensors="pt")["pixel_values"][0])


def test_shapes_that_become_other_numbers_of_tokens_are_refused(tmp_path: Path) -> None:
    keeps_shape = processor_named("BitImageProcessorPil", size={"shortest_edge": 24}, do_center_crop=False)
    reader = PictureReader(files_with(tmp_path, keeps_shape))
    reader.require_shapes([(24, 24), (1000, 1000)])
    with pytest.raises(InputError, match="crop your pictures to squares"):
        reader.require_shapes([(24, 24), (60, 20)])
    PictureReader(find_encoder("vit-demo")).require_shapes([(60, 20), (20, 60)])


def test_an_encoder_that_does_not_resize_reads_pictures_of_its_size(tmp_path: Path) -> None:
    as_is = processor_named("ViTImageProcessorPil", size={"height": 20, "width": 20}, do_resize=False)
    reader = PictureReader(files_with(tmp_path, as_is))
    reader.require_shapes([(20, 20), (20, 20)])
    with pytest.raises(InputError, match=r"1 of 2 pictures of other sizes, the first 20 × 30 pixels, .* does not resize"):
        reader.require_shapes([(20, 20), (20, 30)])


THIN = {"wide": (40_000, 1), "tall": (1, 40_000)}


@pytest.mark.parametrize("shape", THIN)
@pytest.mark.parametrize("how", ["shortest edge and crop", "open_clip"])
def test_a_thin_picture_does_not_fill_the_memory_before_it_is_cropped(shape: str, how: str, tmp_path: Path) -> None:
    files = find_encoder("clip-demo")
    if how != "open_clip":
        files = files_with(tmp_path, processor_named(PROCESSORS[how][0], size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}))
    with pytest.raises(PictureFault, match="whose resize makes 163,840,000, more than 89,478,485 pixels"):
        PictureReader(files).pixels(Image.new("RGB", THIN[shape]))
    with pytest.raises(PictureFault):
        PictureReader(replace(files, fit="longest")).pixels(Image.new("RGB", THIN[shape]))


@pytest.mark.parametrize("shape", THIN)
def test_a_thin_picture_that_is_squashed_is_read(shape: str, tmp_path: Path) -> None:
    vit = files_with(tmp_path, processor_named(*PROCESSORS["squashed"][:1], **PROCESSORS["squashed"][1]))
    for files in (vit, replace(find_encoder("clip-demo"), fit="squash")):
        assert PictureReader(files).pixels(Image.new("RGB", THIN[shape], "red")).isfinite().all()


def test_a_border_in_colour_is_that_of_open_clip_or_a_fault() -> None:
    files = replace(find_encoder("clip-demo"), fit="longest", fill=(10, 20, 30))
    pixels, (mean, std) = PictureReader(files).pixels(picture(60, 20)), (files.preprocessing.mean, files.preprocessing.std)
    corner = [(level / 255 - mean[n]) / std[n] for n, level in enumerate((10, 20, 30))]
    assert torch.allclose(pixels[:, 0, 0], torch.tensor(corner), atol=1e-6)
    with pytest.raises(PictureFault, match=r"cannot resize .*3 colours around 1"):  # nor can open_clip 3.3, which converts last
        PictureReader(files).pixels(picture(60, 20).convert("L"))


@pytest.mark.parametrize("file", hostile_files())
def test_files_that_are_no_pictures_are_faults(file: str) -> None:
    with pytest.raises(PictureFault):
        open_picture(hostile_files()[file])


def test_a_header_tells_shape_turn_frames_and_depth() -> None:
    told = {file: kind_of(data) for file, data in UNUSUAL.items()}
    assert (told["turned.jpg"].width, told["turned.jpg"].height, told["turned.jpg"].is_turned) == (20, 40, True)
    assert [file for file, kind in told.items() if kind.is_animated] == ["moving.gif"]
    assert [file for file, kind in told.items() if kind.is_deep] == ["deep.png"]
    assert (told["wide.png"].width, told["wide.png"].height, told["wide.png"].is_turned) == (60, 20, False)


def test_exif_turns_the_picture() -> None:
    lying = picture(40, 20, seed=4)
    found = open_picture(turned(lying))
    assert found.size == (20, 40)
    expected = np.asarray(lying.rotate(-90, expand=True)).astype(int)
    assert np.abs(np.asarray(found).astype(int) - expected).mean() < 6, "up to JPEG's loss"
    assert found.getexif().get(0x0112) is None
    assert ImageOps.exif_transpose(found).size == (20, 40)


def test_the_bound_of_pixels_is_told() -> None:
    with pytest.raises(PictureFault, match="more than 89,478,485 pixels"):
        kind_of(hostile_files()["bomb.png"])
    with pytest.raises(PictureFault, match="more than 89,478,485 pixels"):
        kind_of(file_of(Image.new("1", (9500, 9500))))
    assert kind_of(file_of(Image.new("1", (9000, 9000)))).width == 9000
