"""The commands of docs/generators.md run: those of the embedded generators on fewer texts, those of a user's own files on tiny ones."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from featurize.cli import main
from tests.support.ldm_checkpoint import write_single_file
from tests.support.pages import code_of
from tests.support.tiny_pipelines import library_pipeline, tiny_pipeline

# diffusers: its pipelines as they are built and as they read a LoRA.
pytestmark = [
    pytest.mark.filterwarnings("ignore:--limit leaves no train example:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.mark.soak
def test_the_comparison_of_the_embedded_generators_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [code.words[3:] for code in code_of("docs/generators.md") if "demo" in code.words]
    assert [words[0] for words in commands] == ["--dataset"] * 3 + ["inspect"]
    for words in commands:
        assert main([*words, "--limit", "40"]) == 0
    assert (tmp_path / "runs" / "demo-40" / "comparison.json").is_file()


@pytest.mark.soak
def test_the_commands_for_files_of_ones_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    tiny_pipeline("prx", models / "prx-512")
    write_single_file(tiny_pipeline("stable-diffusion", models / "sd15"), models / "dream.safetensors", layers=1)
    xl = tiny_pipeline("sdxl", models / "sdxl-base")
    shutil.copy(next((xl / "unet").glob("*.safetensors")), models / "sdxl_lightning_4step_unet.safetensors")
    pipeline = library_pipeline(xl)
    pipeline.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    layers: dict[str, torch.Tensor] = get_peft_model_state_dict(pipeline.unet)
    type(pipeline).save_lora_weights(models, weight_name="sketch.safetensors", unet_lora_layers=layers)
    commands = [code.words[3:] for code in code_of("docs/generators.md") if "models/" in code.text or "runs/sketch" in code.text]
    assert len(commands) == 6
    for words in commands:
        changed = ["demo" if word == "20ng" else word for word in words]
        tiny = [] if words[0] == "inspect" else ["--size-px", "64", "--steps", "2", "--encoders", "demo"]
        assert main([*changed, *tiny, "--limit", "60"]) == 0, words
