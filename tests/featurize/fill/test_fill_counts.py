"""What featurize computes and holds, counted: rows of every model, several images a text, pixels for one block, memory that is flat."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from featurize.fill import load_models
from featurize.generate.text_to_image import TextToImage
from featurize.run import featurize_command
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader
from tests.support.checkout import Start
from tests.support.small_corpus import DRAWINGS, load_no_model, options, prompt_table, small_table

COLUMNS = ("latents", "clip-demo", "vit-demo")
# The classes whose forwards are counted: text encoder, UNet, the decoder inside the VAE, and the two families of image encoders.
COUNTED = ("CLIPTextModel", "UNet2DConditionModel", "Decoder", "_OpenClipTokens", "_TransformersTokens")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_table(tmp_path_factory.mktemp("data"))


@contextmanager
def _forward_rows() -> Iterator[Counter[str]]:
    """Count the rows that go through each of the counted models, from any caller."""
    rows: Counter[str] = Counter()

    def count(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ in COUNTED and not inputs[0].is_meta:  # there, shapes are found and nothing is computed
            rows[type(module).__name__] += len(inputs[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_models, "_try_models", lambda *_: None)  # the one small row of each before the first image
        handle = register_module_forward_pre_hook(count)
        yield rows
        handle.remove()


@pytest.fixture(scope="module")
def single(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Counter[str]]:
    """A run with one image a text, its figures, and the rows that were computed."""
    run_dir = tmp_path_factory.mktemp("single")
    with _forward_rows() as rows:
        return run_dir, featurize_command(options(table, run_dir)), rows


@pytest.fixture(scope="module")
def triple(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Counter[str]]:
    """The same with three."""
    run_dir = tmp_path_factory.mktemp("triple")
    with _forward_rows() as rows:
        return run_dir, featurize_command(options(table, run_dir, images_per_text=3)), rows


def test_every_model_reads_each_row_once_the_unet_twice_a_step(
    single: tuple[Path, dict[str, Any], Counter[str]],
) -> None:
    _, figures, rows = single
    assert rows == {
        "CLIPTextModel": DRAWINGS + 1,  # and the empty prompt
        "UNet2DConditionModel": DRAWINGS * 2 * 2,
        "Decoder": DRAWINGS,
        "_OpenClipTokens": DRAWINGS,
        "_TransformersTokens": DRAWINGS,
    }
    assert figures["rows"] == {"prompts": DRAWINGS, "drawn": DRAWINGS, "decoded": DRAWINGS, "encoded": 2 * DRAWINGS, "redone": 0}


def test_without_guidance_the_unet_reads_each_row_once(table: Path, tmp_path: Path) -> None:
    with _forward_rows() as rows:
        featurize_command(options(table, tmp_path, guidance=1.0, steps=3, deepcache=2, encoders=("vit-demo",), latents=False))
    assert rows == {
        "CLIPTextModel": DRAWINGS,
        "UNet2DConditionModel": 3 * DRAWINGS,
        "Decoder": DRAWINGS,
        "_TransformersTokens": DRAWINGS,
    }


def test_of_several_images_a_text_the_prompt_is_encoded_once(
    triple: tuple[Path, dict[str, Any], Counter[str]],
) -> None:
    _, figures, rows = triple
    images = 3 * DRAWINGS
    assert rows == {
        "CLIPTextModel": DRAWINGS + 1,
        "UNet2DConditionModel": images * 2 * 2,
        "Decoder": images,
        "_OpenClipTokens": images,
        "_TransformersTokens": images,
    }
    assert figures["rows"] == {"prompts": DRAWINGS, "drawn": images, "decoded": images, "encoded": 2 * images, "redone": 0}
    assert (figures["drawings"], figures["drawings_spared"]) == (images, 6)
    assert figures["columns"] == {"latents": [36, 8, 8, 8], "clip-demo": [36, 17, 128], "vit-demo": [36, 17, 128]}


def test_images_of_a_text_are_neighbours_in_the_table(triple: tuple[Path, dict[str, Any], Counter[str]]) -> None:
    with h5py.File(triple[0] / "tokens" / "tokens.h5") as file:
        drawings = file["examples/drawings"][:]
        assert drawings.tolist() == [[3 * prompt, 3 * prompt + 1, 3 * prompt + 2] for prompt in [0, *range(11), 0, 11]]
        assert file["examples/drawing"][:].tolist() == drawings[:, 0].tolist()
        latents = file["latents/latents"][:].reshape(36, -1)
    assert len(np.unique(latents, axis=0)) == 36, "each from noise of its own"


def test_the_first_of_several_images_equals_a_single_image(
    single: tuple[Path, dict[str, Any], Counter[str]], triple: tuple[Path, dict[str, Any], Counter[str]]
) -> None:
    for column in COLUMNS:
        one, three = (ColumnReader(run / "tokens", column) for run in (single[0], triple[0]))
        first = three.gather(range(0, 3 * DRAWINGS, 3)).astype(float)
        assert np.abs(first - one.gather(range(DRAWINGS))).max() <= 0.02


def test_the_images_of_a_text_are_in_one_shard(table: Path, triple: tuple[Path, dict[str, Any], Counter[str]]) -> None:
    assert {load_manifest(triple[0] / "tokens" / column)[0].shard_rows for column in COLUMNS} == {9}  # 8 were asked for
    with pytest.MonkeyPatch.context() as patch:
        load_no_model(patch)
        assert featurize_command(options(table, triple[0], images_per_text=3, shard_rows=9))["already_done"]


@pytest.mark.parametrize("images_per_text", [2, 7])
def test_a_prompt_is_encoded_once_whatever_the_block_borders(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_per_text: int
) -> None:
    monkeypatch.setattr("featurize.fill.block.WINDOW_ROWS", 5)
    figures = featurize_command(
        options(table, tmp_path, images_per_text=images_per_text, encoders=("clip-demo",), steps=1, shard_rows=1024)
    )
    assert figures["rows"]["prompts"] == DRAWINGS
    assert figures["rows"]["drawn"] == images_per_text * DRAWINGS


def test_pixels_live_for_one_block(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    whole = TextToImage.decode

    def watched(self: TextToImage, latents: torch.Tensor) -> torch.Tensor:
        assert not [image for image in alive if image() is not None]
        images = whole(self, latents)
        alive.append(weakref.ref(images))
        return images

    monkeypatch.setattr(TextToImage, "decode", watched)
    featurize_command(options(table, tmp_path))
    assert len(alive) == 3


# Pictures of 0.8 MB each, and latents and tokens that are what they are: what is kept of a block beyond its time is seen at once.
PEAK = """
import sys
from pathlib import Path
import torch
from featurize.run import featurize_command
from featurize.options import FeaturizeOptions
from featurize.generate.text_to_image import TextToImage
from lugpi_core.runtime.meters import peak_memory_bytes

TextToImage.denoise = lambda _, embeddings, seeds, before_step: torch.randn(len(seeds), 8, 8, 8)
TextToImage.decode = lambda _, latents: torch.rand(len(latents), 3, 256, 256)
run = {"generator": "demo", "encoders": ("vit-demo",), "batch_size": 4, "shard_rows": 16, "prompt_column": "picture"}
figures = featurize_command(FeaturizeOptions(dataset=sys.argv[1], run_dir=Path(sys.argv[2]), **run))
assert figures["complete"]
print(figures["rows"]["encoded"], peak_memory_bytes()["host_bytes"])
"""


def test_host_memory_is_flat_in_the_number_of_rows(tmp_path: Path, start: Start) -> None:
    children = []
    for rows in (16, 320):
        prompts = prompt_table(tmp_path / f"{rows}.csv", [f"picture {n}" for n in range(rows)])
        children.append(start("-c", PEAK, prompts, tmp_path / str(rows)))
    ended = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0, 0], ended
    (few, few_bytes), (many, many_bytes) = (map(int, said.split()) for said, _ in ended)
    assert (few, many) == (16, 320)
    assert many_bytes <= 1.05 * few_bytes, (few_bytes, many_bytes)
