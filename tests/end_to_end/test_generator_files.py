"""Generators from files, as a user runs them: a checkpoint with LoRAs, continued, refused with other ones, repaired and decoded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

import featurize.cli
from featurize.inspect.decoded_images import generator_of
from lugpi_core.store.manifest import load_manifest
from tests.support.ldm_checkpoint import write_single_file
from tests.support.tiny_pipelines import library_pipeline, tiny_pipeline

TEXTS = "text,label\n" + "".join(f"the {word} number {n},{word}\n" for n in range(10) for word in ("cat", "dog"))
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run featurize beside a corpus, a checkpoint and two LoRAs; return its status, the JSON of its last line, and its messages."""
    monkeypatch.chdir(tmp_path)
    Path("animals.csv").write_text(TEXTS)
    folder = tiny_pipeline("stable-diffusion", tmp_path / "base")
    write_single_file(folder, tmp_path / "dream.safetensors", layers=1)
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        pipeline = library_pipeline(folder)
        pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_v"]))
        layers = get_peft_model_state_dict(pipeline.unet)
        pipeline.save_lora_weights(tmp_path, weight_name=f"{name}.safetensors", unet_lora_layers=layers)

    def featurize_with(*arguments: str) -> tuple[int, dict[str, Any], str]:
        status = featurize.cli.main(arguments)
        output = capsys.readouterr()
        lines = output.out.splitlines()
        return status, json.loads(lines[-1]) if lines and status == 0 else {}, output.err

    return featurize_with


def test_a_checkpoint_with_loras_from_the_command_line(run: Run) -> None:
    files = ("--generator", "dream.safetensors", "--generator-config", "base", "--encoders", "clip-demo", "--steps", "2", "--size-px", "64")
    loras = ("--lora", "first.safetensors:0.5", "--lora", "second.safetensors")
    status, _, messages = run("--dataset", "animals.csv", *files, *loras)
    assert status == 0, messages
    assert "first.safetensors × 0.5, second.safetensors × 1" in messages
    spec, _ = load_manifest(Path("runs/animals/tokens/latents"))
    record = spec.fingerprint["generation"]["generator"]
    assert [lora["scale"] for lora in record["loras"]] == [0.5, 1.0]
    assert generator_of(spec).single_file == Path("dream.safetensors")
    assert "  generated with LoRA first.safetensors × 0.5, LoRA second.safetensors × 1\n" in run("info", "--dataset", "animals.csv")[2]

    assert run("--dataset", "animals.csv", *files, "--lora", "first.safetensors:0.5", "second.safetensors")[1]["already_done"]
    status, _, messages = run("--dataset", "animals.csv", *files, "--lora", "first.safetensors")
    assert status == 2
    assert "loras" in messages

    shard = next(Path("runs/animals/tokens/latents").glob("shard-*.h5"))
    with h5py.File(shard) as file:
        before = {name: file[name][...].tobytes() for name in file if isinstance(file[name], h5py.Dataset)}
    shard.unlink()
    assert run("verify", "--dataset", "animals.csv", "--repair")[1]["complete"]
    with h5py.File(next(Path("runs/animals/tokens/latents").glob("shard-*.h5"))) as file:
        assert {name: file[name][...].tobytes() for name in file if isinstance(file[name], h5py.Dataset)} == before
