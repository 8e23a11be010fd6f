"""Pooled tokens: means of cells of patches, written out; encoders of every library; what has no grid or no class token is one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from timm.models import save_for_hf

from featurize.encode.encoder_files import EncoderFiles
from featurize.encode.encoders import find_encoder
from featurize.encode.image_encoder import ImageEncoder
from featurize.encode.joint_space import JointSpace
from featurize.inspect.text_agreement import encoder_of
from featurize.options import FeaturizeSettings
from featurize.plan.candidates import scoring_encoder
from featurize.run import featurize_command
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.store.clip_scores import columns_with_text_tower
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader
from tests.support.small_corpus import DRAWINGS, load_no_model, options, small_table

CPU = resolve_compute("cpu", "float32", half="float16")
TIMM = {"timm class": "test_vit", "timm attention": "test_vit3", "timm map": "test_convnext"}


def _timm(folder: Path, name: str) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=2)
    save_for_hf(model, folder, safe_serialization=True)
    return folder


def _registers(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Dinov2WithRegistersConfig(**sizes, image_size=56, patch_size=8, num_register_tokens=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Dinov2WithRegistersModel(config)
        torch.nn.init.normal_(model.embeddings.register_tokens, std=3)  # which must not leak into the cells
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    transformers.BitImageProcessor(**size).save_pretrained(folder)
    return folder


def _coca(folder: Path) -> Path:
    vision: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
    vision |= {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    folder.mkdir()
    model = open_clip.CLIP(32, dict(vision), dict(text))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    found = {"open_clip": "clip-demo", "transformers": "vit-demo", "coca": str(_coca(folder / "coca"))}
    found["registers"] = str(_registers(folder / "registers"))
    return found | {name: str(_timm(folder / model, model)) for name, model in TIMM.items()}


def _tokens(files: EncoderFiles) -> NDArray[np.float64]:
    side_px = files.preprocessing.size_px
    pixels = torch.randn(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))
    return ImageEncoder(files, CPU).encode_pixels(pixels).double().numpy()


def _cells(patches_nnD: NDArray[np.float64], g: int) -> list[NDArray[np.float64]]:
    """The means of the cells, cell by cell: those of a side begin at the floor of i n / g and end at the ceiling of (i + 1) n / g."""
    n = len(patches_nnD)
    cuts = [slice(i * n // g, -(-(i + 1) * n // g)) for i in range(g)]
    return [patches_nnD[rows, columns].mean(axis=(0, 1)) for rows in cuts for columns in cuts]


@pytest.mark.parametrize(
    ("name", "prefix", "n"),
    [
        ("open_clip", 1, 4),
        ("transformers", 1, 4),
        ("registers", 5, 7),
        ("timm class", 1, 10),
        ("timm attention", 2, 10),
        ("timm map", 1, 5),
    ],
)
def test_cells_are_means_of_patches_beside_the_first_token(sources: dict[str, str], name: str, prefix: int, n: int) -> None:
    whole = find_encoder(sources[name])
    tokens = _tokens(whole)
    assert (tokens.shape[1], whole.prefix) == (prefix + n * n, prefix)
    patches = tokens[:, prefix:].reshape(2, n, n, -1)
    for pool, g in (("1", 1), ("2x2", 2), ("3x3", 3), (f"{n}x{n}", n)):
        files = find_encoder(sources[name], pool=pool)
        expected = np.stack([_cells(one, g) for one in patches])
        if pool != "1":
            expected = np.concatenate([tokens[:, :1], expected], axis=1)
        found = _tokens(files)
        assert (files.tokens, files.width, files.name) == (expected.shape[1], expected.shape[2], f"{whole.name}-pool-{pool}")
        assert np.abs(found - expected).max() <= 2e-3 * np.abs(tokens).max(), pool  # two roundings to float16
    if name != "timm map":
        assert np.array_equal(_tokens(find_encoder(sources[name], pool="cls")), tokens[:, :1])


def test_a_fingerprint_says_what_the_stored_tokens_are(sources: dict[str, str]) -> None:
    whole = find_encoder(sources["registers"])
    assert "pool" not in whole.fingerprint()
    assert whole.fingerprint()["prefix"] == 5
    for pool, more in (("cls", {}), ("1", {"first_token": "mean of the patches"}), ("2x2", {})):
        files = find_encoder(sources["registers"], pool=pool)
        stated = files.fingerprint()
        expected = {**whole.fingerprint(), "name": f"registers-pool-{pool}", "pool": pool, **more}
        assert stated == {key: value for key, value in expected.items() if key != "prefix"}  # the registers are left out
        assert files.unpooled().fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    ("name", "pool", "message"),
    [
        ("timm map", "cls", r"got --pool cls for test_convnext, whose first token is the mean of the patches; .*; give --pool 1, "),
        ("coca", "2x2", r"got --pool 2x2 for coca, whose tokens are no square grid of patches; .*; give --pool cls, or leave --pool out$"),
        ("coca", "1", "whose tokens are no square grid"),
        ("open_clip", "5x5", "got --pool 5x5 for clip-demo, which has 4 x 4 patches; expected at most 4x4; give fewer cells$"),
    ],
)
def test_what_an_encoder_does_not_have_is_refused(sources: dict[str, str], name: str, pool: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_encoder(sources[name], pool=pool)


@pytest.mark.parametrize("pool", ["", "2", "0x0", "1x1", "4x5", "4X4", "mean", "04x04"])
def test_another_word_is_one_line(pool: str) -> None:
    with pytest.raises(InputError, match=r"got --pool .*; expected cls, 1, or as many cells a side twice"):
        FeaturizeSettings(pool=pool)


def test_a_pooled_column_is_added_from_stored_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = small_table(tmp_path)
    featurize_command(options(table, tmp_path / "run", encoders=("clip-demo",)))
    pooled = options(table, tmp_path / "run", encoders=("clip-demo",), pool="2x2")
    figures = featurize_command(pooled)
    assert figures["rows"]["drawn"] == 0
    assert figures["columns"]["clip-demo-pool-2x2"] == [DRAWINGS, 5, 128]
    tokens, cells = (
        ColumnReader(tmp_path / "run" / "tokens", f"clip-demo{end}").gather(range(DRAWINGS)).astype(np.float64) for end in ("", "-pool-2x2")
    )
    assert np.array_equal(cells[:, 0], tokens[:, 0])
    expected = tokens[:, 1:].reshape(DRAWINGS, 2, 2, 2, 2, -1).mean(axis=(2, 4)).reshape(DRAWINGS, 4, -1)
    assert np.abs(cells[:, 1:] - expected).max() <= 2e-3 * np.abs(tokens).max()
    featurize_command(options(table, tmp_path / "run", encoders=("clip-demo",), pool="1"))
    load_no_model(monkeypatch)
    assert featurize_command(pooled)["already_done"]
    store = tmp_path / "run" / "tokens"
    columns = ["clip-demo", "clip-demo-pool-1", "clip-demo-pool-2x2"]
    assert columns_with_text_tower(store, columns) == ["clip-demo", "clip-demo-pool-2x2"], "a prompt is compared with the first token"
    files = encoder_of(load_manifest(store / columns[2])[0])
    assert (files.name, files.pool) == (columns[2], "2x2")


def test_candidates_are_scored_by_the_first_token_which_a_pool_may_keep() -> None:
    files = find_encoder("clip-demo", pool="cls")
    assert scoring_encoder([files]) is files
    cosines = [JointSpace(one, CPU).images(torch.eye(128)) for one in (files, files.unpooled())]
    assert torch.equal(*cosines)
    with pytest.raises(InputError, match=r"got --best-of with --pool 1, which leaves out .*; give --pool cls or a grid"):
        scoring_encoder([find_encoder("clip-demo", pool="1")])
    with pytest.raises(InputError, match=r"clip-demo-pool-1, whose image embedding .*, or encode without --pool 1$"):
        JointSpace(find_encoder("clip-demo", pool="1"), CPU)
