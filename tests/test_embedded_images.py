"""The embedded models: made once, always the same, in the formats of the real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from featurize import embedded
from featurize.embedded import embedded_folder


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_they_are_made_anew_with_the_same_bytes_and_leave_the_random_state_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _files(embedded_folder())
    monkeypatch.setenv("LUGPI_CACHE", str(tmp_path))
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    assert _files(embedded_folder()) == found
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [path.name for path in tmp_path.iterdir()] == [embedded_folder().name]


def test_they_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = embedded_folder()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for name in ("_make_generator", "_make_clip", "_make_vit", "_make_tiny"):
        monkeypatch.delattr(embedded, name)
    assert embedded_folder() == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_tiny_decoder_is_made_last_and_the_models_before_it_do_not_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {name: data for name, data in _files(embedded_folder()).items() if not name.startswith("tiny/")}
    assert {name.partition("/")[0] for name in others} == {"generator", "clip-demo", "vit-demo"}
    assert len(others) < len(_files(embedded_folder()))
    monkeypatch.setenv("LUGPI_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_make_tiny", lambda _: None)
    assert _files(embedded_folder()) == others


def test_a_making_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUGPI_CACHE", str(tmp_path))

    def fail(_: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "_make_generator", fail)
    with pytest.raises(OSError, match="disk full"):
        embedded_folder()
    assert list(tmp_path.iterdir()) == []


def test_they_are_small_safetensors_and_the_generator_has_the_parts_of_stable_diffusion() -> None:
    files = _files(embedded_folder())
    assert not [name for name in files if name.endswith((".bin", ".pt", ".ckpt"))]
    assert sum(map(len, files.values())) < 8_000_000
    index: dict[str, Any] = json.loads(files["generator/model_index.json"])
    assert index["_class_name"] == "StableDiffusionPipeline"
    parts = {name: part[1] for name, part in index.items() if isinstance(part, list) and part[1]}
    assert parts == {
        "scheduler": "DDIMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }


@pytest.mark.parametrize(
    "path", ["clip-demo/open_clip_model.safetensors", "vit-demo/model.safetensors", "tiny/diffusion_pytorch_model.safetensors"]
)
def test_their_weights_are_finite_and_not_constant(path: str) -> None:
    weights = load_file(embedded_folder() / path)
    assert all(value.isfinite().all() for value in weights.values())
    assert max(float(value.std()) for value in weights.values() if value.numel() > 1) > 0.01


@pytest.mark.parametrize("text", ["plain words", "é", "日本語", "🐈", "nul\0", "<|endoftext|>", "a\tb\nc"])
def test_the_tokenizer_reads_any_text_a_byte_a_token_and_knows_every_one(text: str) -> None:
    tokenizer = transformers.CLIPTokenizer.from_pretrained(embedded_folder() / "generator" / "tokenizer")
    ids = tokenizer(text)["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.model_max_length == 77
    assert tokenizer.unk_token_id not in ids[1:-1] or tokenizer.unk_token == "<|endoftext|>"
    if not text.startswith("<|"):
        assert len(ids) == 2 + len("".join(text.split()).encode())
        assert max(ids[1:-1]) < 512
