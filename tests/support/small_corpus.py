"""A corpus of fourteen examples and twelve pictures, drawn by the embedded models in two steps, for the tests of the pipeline."""

import csv
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers

from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions

ROWS, DRAWINGS = 14, 12
FAST: dict[str, Any] = {"generator": "demo", "encoders": ("demo",), "steps": 2, "batch_size": 4, "shard_rows": 8}


def prompt_table(path: Path, prompts: list[str]) -> Path:
    """Write a table with an example for each prompt."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "picture"), *((f"text {n}", "ab"[n % 2], one) for n, one in enumerate(prompts))])
    return path


def small_table(folder: Path) -> Path:
    """14 examples, 12 distinct prompts: the first is there three times; the last is cut."""
    prompts = [f"picture number {n}" for n in range(DRAWINGS - 1)]
    return prompt_table(folder / "own.csv", [prompts[0], *prompts, prompts[0], "word " * 40])


def options(table: Path, run_dir: Path, **flags: Any) -> FeaturizeOptions:
    """Return the flags of a run, those of ``FAST`` unless others are given."""
    return FeaturizeOptions(dataset=str(table), prompt_column="picture", run_dir=run_dir, **{**FAST, **flags})


def shard_bytes(run_dir: Path, pattern: str = "*/shard-*.h5") -> dict[str, bytes]:
    """Return the bytes of every shard."""
    found = {path.relative_to(run_dir).as_posix(): path.read_bytes() for path in sorted((run_dir / "tokens").glob(pattern))}
    assert found
    return found


def state_of(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and content of every file."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(run_dir.rglob("*")) if path.is_file()}


def load_no_model(patch: pytest.MonkeyPatch) -> None:
    """Let a run end that loads a generator."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a generator is loaded")

    patch.setattr(TextToImage, "__init__", refuse)


def poison(patch: pytest.MonkeyPatch, part: str, value: float, *, again: bool = True) -> None:
    """Let a part of the models answer ``value`` in row 1 of every block of 4, and with ``again`` also when such a row is made alone."""
    owner: Any = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "vit": transformers.ViTModel}[part]
    method = "decode" if part == "vae" else "forward"
    whole = getattr(owner, method)

    def poisoned(self: Any, *inputs: Any, **how: Any) -> Any:
        result = whole(self, *inputs, **how)
        sick: torch.Tensor = result.last_hidden_state if part == "vit" else result[0]
        in_block = len(sick) >= 4  # the UNet has each row twice, and alone two
        if in_block or again:
            sick[1 if in_block else 0] = value
        return result

    patch.setattr(owner, method, poisoned)
