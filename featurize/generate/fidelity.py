"""``--fidelity``: one word for shortcuts that were chosen together (``python -m benchmarks shortcuts``, docs/benchmarks.md).

A shortcut is used where the generator has something to leave out: guidance, if it is classifier-free; deep features, if there is a UNet.
What the user gave stands.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from featurize.generate.families.family import Family
from featurize.generate.presets import GeneratorPreset
from featurize.options import Fidelity
from lugpi_core.errors import InputError

_LAST_LAYER: Mapping[str, Any] = {"deepcache_cut": "layer"}
# By the denoiser: deep features are cheaper to leave out than guidance, and only a UNet has them.
SHORTCUTS: Mapping[Fidelity, Mapping[str, Mapping[str, Any]]] = {
    "high": {"unet": {}, "transformer": {}},
    "balanced": {
        "unet": {"guidance_interval": "0:0.8", "deepcache": 3, **_LAST_LAYER},
        "transformer": {"guidance_interval": "0:0.5"},
    },
    "fast": {
        "unet": {"guidance_interval": "0:0.5", "deepcache": 5, **_LAST_LAYER},
        "transformer": {"guidance_interval": "0:0.25", "guidance_reuse": True},
    },
}
# Flags by the one that they refine: given, that one stands for both; given alone, the other refines that of the shortcut.
_REFINED = {"guidance_interval": "guidance_reuse", "deepcache": "deepcache_cut"}
# With fewer, each step is another stage of the image. The shortcuts were measured with 20.
FEWEST_STEPS = 10


def with_shortcuts(family: Family, settings: GeneratorPreset) -> GeneratorPreset:
    """Return the settings with the shortcuts of their ``fidelity``.

    Raises:
        InputError: there is nothing to leave out.
    """
    fidelity = settings.fidelity
    if fidelity == "high":
        return settings
    is_guided = family.guidance_kind(settings.guidance) == "cfg"
    if settings.steps < FEWEST_STEPS or not (is_guided or family.denoiser == "unet"):
        lacks = f"in {settings.steps} steps" if settings.steps < FEWEST_STEPS else "without guidance and without a UNet"
        raise InputError(
            got=f"--fidelity {fidelity} for {family.folder} {lacks}",
            expected=f"{FEWEST_STEPS} steps or more, and classifier-free guidance or a UNet",
            do="leave out --fidelity",
        )
    left_out = set(settings.given)
    for name, refinement in _REFINED.items():
        if name in settings.given or (name == "guidance_interval" and not is_guided):
            left_out |= {name, refinement}
    shortcuts = {name: value for name, value in SHORTCUTS[fidelity][family.denoiser].items() if name not in left_out}
    return dataclasses.replace(settings, **shortcuts)


def shortcuts_in_words(settings: Mapping[str, Any]) -> list[str]:
    """Return the shortcuts among the settings of a generator, or of its record, for a person."""
    words = []
    if interval := settings.get("guidance_interval"):
        words.append(
            f"guided in {interval} of the steps" + (" with the last difference after it" if settings.get("guidance_reuse") else "")
        )
    if settings.get("deepcache", 1) > 1:
        words.append(f"DeepCache {settings['deepcache']}" + (" at the last layer" if settings.get("deepcache_cut") == "layer" else ""))
    return words
