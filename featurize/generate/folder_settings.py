"""Steps and guidance of a generator's folder that is no preset: what its card and its scheduler say.

A model that was distilled to a few steps looks like any other folder of diffusers; 50 steps at guidance 7.5, which others need, ruin its
images. Signs of such a model are its scheduler, a UNet that takes the guidance scale as an input, and its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurize.generate.families.family import Usual
from lugpi_core.runtime.pretrained import read_config

# Luo et al. 2023, arXiv 2310.04378, and diffusers 0.42: LatentConsistencyModelPipeline has 4 steps at 8.5; an LCM-LoRA takes no guidance
# (1) or little.
# Zheng et al. 2024, arXiv 2402.19159, §5: TCD with 4 steps and no guidance.
_LCM_STEPS, _LCM_GUIDANCE_AS_INPUT, _LCM_GUIDANCE = 4, 8.5, 1.0
_TCD_STEPS, _TCD_GUIDANCE = 4, 0.0
_IN_A_NAME = re.compile(
    r"turbo|lightning|(?<![a-z])(hyper|lcm|tcd|pcm|dmd2?|flash|schnell|sprint)(?![a-z])|(?<!\d)[1248][-_ ]?steps?(?![a-z])", re.I
)
_LARGEST_CARD_BYTES = 1 << 20
_IN_A_CARD = {
    "steps": re.compile(r"num_inference_steps[\"']?\s*[=:]\s*(\d+)"),
    "guidance": re.compile(r"guidance_scale[\"']?\s*[=:]\s*(\d+(?:\.\d+)?)"),
}


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """What a folder says.

    Attributes:
        steps, guidance: to take where the user gave none.
        origin: of each, in words.
        signs: why the model seems to be distilled to a few steps; empty if it does not.
        unsaid: of these, what nothing in the folder says although there are signs.
    """

    steps: int
    guidance: float
    origin: Mapping[str, str]
    signs: tuple[str, ...]
    unsaid: tuple[str, ...]


def folder_settings(folder: Path, names: tuple[str, ...], usual: Usual) -> FolderSettings:
    """Return what a folder says about steps and guidance. Only a model that seems to be distilled is asked.

    A card counts where all of its code agrees on one number; the scheduler comes next.

    Args:
        folder: of diffusers.
        names: under which the model is known, such as its hub id.
        usual: the defaults of its pipeline.
    """
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    takes_guidance = _config(folder / "unet" / "config.json").get("time_cond_proj_dim") is not None
    signs = _signs(scheduler, takes_guidance, (*names, *_recorded_names(folder)))
    values: dict[str, float] = {"steps": usual.steps, "guidance": usual.guidance}
    origin = dict.fromkeys(values, "default")
    if signs:
        for name, value in _of_scheduler(str(scheduler.get("_class_name")), takes_guidance).items():
            values[name], origin[name] = value, f"of its {scheduler['_class_name']}"
        for name, value in _of_card(folder / "README.md").items():
            values[name], origin[name] = value, "of its card"
    return FolderSettings(
        steps=int(values["steps"]),
        guidance=values["guidance"],
        origin=origin,
        signs=signs,
        unsaid=tuple(name for name in values if signs and origin[name] == "default"),
    )


def _signs(scheduler: Mapping[str, Any], takes_guidance: bool, names: tuple[str, ...]) -> tuple[str, ...]:
    kind = scheduler.get("_class_name")
    # Models with zero terminal SNR (Lin et al. 2024) need trailing steps too; they predict v.
    is_trailing = scheduler.get("timestep_spacing") == "trailing" and scheduler.get("prediction_type", "epsilon") != "v_prediction"
    found = {
        f"its scheduler is {kind}": kind in ("LCMScheduler", "TCDScheduler"),
        "its scheduler has trailing steps": is_trailing and not scheduler.get("rescale_betas_zero_snr"),
        "its UNet takes the guidance scale as an input": takes_guidance,
        **{f"it is called {name}": True for name in names[:1] if _IN_A_NAME.search(name)},
        **{f"it comes from {name}": True for name in names[1:] if _IN_A_NAME.search(name)},
    }
    return tuple(sign for sign, is_found in found.items() if is_found)


def _of_scheduler(kind: str, takes_guidance: bool) -> dict[str, float]:
    if kind == "LCMScheduler":
        return {"steps": _LCM_STEPS, "guidance": _LCM_GUIDANCE_AS_INPUT if takes_guidance else _LCM_GUIDANCE}
    return {"steps": _TCD_STEPS, "guidance": _TCD_GUIDANCE} if kind == "TCDScheduler" else {}


def _of_card(card: Path) -> dict[str, float]:
    """Return what a model's card states once, or always in the same way."""
    if not card.is_file():
        return {}
    with card.open("rb") as file:
        text = file.read(_LARGEST_CARD_BYTES).decode(errors="replace")
    stated = {name: {float(value) for value in pattern.findall(text)} for name, pattern in _IN_A_CARD.items()}
    return {name: values.pop() for name, values in stated.items() if len(values) == 1 and (name == "guidance" or min(values) >= 1)}


def _recorded_names(folder: Path) -> tuple[str, ...]:
    """Return the name that diffusers recorded when it saved the folder: where the pipeline was loaded from."""
    name = _config(folder / "model_index.json").get("_name_or_path")
    return (Path(name).name,) if isinstance(name, str) and name else ()


def _config(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}
