"""Presets: what each says of itself."""

import pytest

from featurize.generate.families import FAMILIES
from featurize.generate.presets import PRESETS


@pytest.mark.parametrize(
    ("name", "size_px", "steps", "guidance", "source"),
    [
        ("flux2-klein", 512, 4, 1.0, "black-forest-labs/FLUX.2-klein-4B"),
        ("flux2-klein-base", 512, 50, 4.0, "black-forest-labs/FLUX.2-klein-base-4B"),
        ("prx", 512, 8, 1.0, "Photoroom/prx-512-t2i-sft-distilled"),
        ("prx-base", 512, 28, 5.0, "Photoroom/prx-512-t2i-sft"),
        ("sdxl-lightning", 1024, 4, 0.0, "stabilityai/stable-diffusion-xl-base-1.0"),
        ("sana-sprint", 1024, 2, 4.5, "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers"),
        ("z-image-turbo", 512, 8, 0.0, "Tongyi-MAI/Z-Image-Turbo"),
        ("pixart-sigma", 512, 20, 4.5, "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"),
    ],
)
def test_a_preset_has_the_settings_of_its_card(name: str, size_px: int, steps: int, guidance: float, source: str) -> None:
    preset = PRESETS[name]
    assert (preset.size_px, preset.steps, preset.guidance) == (size_px, steps, guidance)
    assert preset.sources == (source,)
    assert preset.license != "see the model's own card"
    assert preset.pipeline in FAMILIES


def test_distilled_models_say_so() -> None:
    distilled = {name for name, preset in PRESETS.items() if preset.is_distilled}
    assert distilled == {"sd-turbo", "flux2-klein", "prx", "sdxl-lightning", "sana-sprint", "z-image-turbo"}


def test_lightning_is_a_unet_over_the_base_model_with_its_sampler() -> None:
    preset = PRESETS["sdxl-lightning"]
    assert preset.denoiser == "ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors"
    assert (preset.scheduler, preset.is_distilled) == ("euler", True)
