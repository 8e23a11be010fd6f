"""Generators from the hub: a hub on this machine that serves, refuses or lacks them. Everything runs in one process of its own, whose hub's
address is set before the client is imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkout import ROOT
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.tiny_pipelines import tiny_pipeline

_FIND = """
import json, sys
from lugpi_core.runtime.libraries import prepare_libraries
prepare_libraries()
from featurize.generate.generators import find_generator, generator_settings
from lugpi_core.errors import InputError
for source in sys.argv[1:]:
    try:
        found = find_generator(source, generator_settings(source, {"size_px": 64}), half=False)
        files = sorted(path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file())
        record = {"files": files, "license": found.license, "origin": found.origin, "denoiser": str(found.denoiser_path)}
    except InputError as error:
        record = {"error": str(error)}
    print(json.dumps({source: record}))
"""
_CARD = "---\nlicense: {}\n---\n# A model\n"


def _found(root: Path, cache: Path, refused: dict[str, tuple[int, str, str]], *sources: str) -> tuple[dict[str, Any], list[str]]:
    with fake_hub(root, refused) as (address, asked):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"NO_PROXY": "*", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", _FIND, *sources], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        records |= json.loads(line)
    return records, asked


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What a process finds at a hub with the repositories of some presets, gated ones, and one that does not run here."""
    root = tmp_path_factory.mktemp("hub")
    for name, family, license in (
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", "openrail++"),
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "pixart-sigma", "openrail++"),
        ("Tongyi-MAI/Z-Image-Turbo", "z-image", "apache-2.0"),
    ):
        (tiny_pipeline(family, root / name) / "README.md").write_text(_CARD.format(license))
    lightning, sigma = root / "ByteDance" / "SDXL-Lightning", root / "PixArt-alpha" / "PixArt-Sigma-XL-2-512-MS"
    lightning.mkdir(parents=True)
    unet = next((root / "stabilityai" / "stable-diffusion-xl-base-1.0" / "unet").glob("*.safetensors"))
    shutil.copy(unet, lightning / "sdxl_lightning_4step_unet.safetensors")
    (lightning / "README.md").write_text(_CARD.format("openrail++"))
    shutil.copytree(root / "PixArt-alpha" / "PixArt-Sigma-XL-2-1024-MS" / "transformer", sigma / "transformer")
    for name in ("black-forest-labs/FLUX.2-klein-4B", "owner/gated", "owner/forbidden", "owner/music", "owner/no-weights"):
        tiny_pipeline("stable-diffusion", root / name)
    for file in (root / "owner" / "no-weights").rglob("*.safetensors"):
        file.unlink()
    index = root / "owner" / "music" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "MusicFromTheFuturePipeline"}))
    gate = (403, "GatedRepo", "Access is restricted and you are not in the authorized list")
    refused = {
        "black-forest-labs/FLUX.2-klein-4B": (401, "GatedRepo", "Access is restricted: you must be authenticated"),
        "owner/gated": gate,
        "owner/forbidden": (403, "", "Forbidden"),
    }
    sources = ("sdxl-lightning", "pixart-sigma", "z-image-turbo", "flux2-klein", "prx", "owner/gated", "owner/forbidden", "owner/music")
    return _found(root, tmp_path_factory.mktemp("cache"), refused, *sources, "owner/none", "owner/no-weights")


def test_lightning_is_put_together_from_two_repositories(answers: tuple[dict[str, Any], list[str]]) -> None:
    found = answers[0]["sdxl-lightning"]
    assert found["denoiser"].endswith(f"{COMMIT}/sdxl_lightning_4step_unet.safetensors")
    assert "unet/config.json" in found["files"]
    assert not [name for name in found["files"] if name.startswith("unet/") and name.endswith(".safetensors")]
    assert found["license"] == f"openrail++ (its card at {COMMIT}); unet: openrail++ (its card at {COMMIT})"
    assert found["origin"] == f"sdxl-lightning@{COMMIT}"


def test_sigma_has_the_transformer_of_another_repository(answers: tuple[dict[str, Any], list[str]]) -> None:
    found = answers[0]["pixart-sigma"]
    assert found["denoiser"].endswith(f"models--PixArt-alpha--PixArt-Sigma-XL-2-512-MS/snapshots/{COMMIT}/transformer")
    assert "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS/resolve" not in "".join(path for path in answers[1] if "transformer/diff" in path)
    assert found["license"] == f"openrail++ (its card at {COMMIT})"  # the other one has no card


def test_the_licence_is_read_off_the_card(answers: tuple[dict[str, Any], list[str]]) -> None:
    assert answers[0]["z-image-turbo"]["license"] == f"apache-2.0 (its card at {COMMIT})"


@pytest.mark.parametrize(
    ("source", "said", "do"),
    [
        ("flux2-klein", "401, Access is restricted: you must be authenticated", "ask for access on its page at huggingface.co, and log in"),
        ("owner/gated", "403, Access is restricted and you are not in the authorized list", "ask for access on its page"),
        ("owner/forbidden", "403, Forbidden", "log in with an account that may read it: hf auth login"),
        ("prx", "401, Repository Not Found", "download it where there is a network and give --generator prx=FOLDER"),
        ("owner/none", "401, Repository Not Found", "check the name; for a private model, log in with: hf auth login"),
    ],
)
def test_what_the_hub_answers_is_one_line(answers: tuple[dict[str, Any], list[str]], source: str, said: str, do: str) -> None:
    error = answers[0][source]["error"]
    assert said in error
    assert do in error
    assert "\n" not in error


def test_a_pipeline_that_does_not_run_here_is_told_before_its_weights_are_downloaded(answers: tuple[dict[str, Any], list[str]]) -> None:
    assert "with the pipeline MusicFromTheFuturePipeline; expected " in answers[0]["owner/music"]["error"]
    assert not [path for path in answers[1] if path.startswith("owner/music/") and path.endswith(".safetensors")]


def test_a_repository_without_weights_is_one_line(answers: tuple[dict[str, Any], list[str]]) -> None:
    assert answers[0]["owner/no-weights"]["error"].endswith(
        "choose a repository with weights as .safetensors (pickled weights are not read)"
    )
