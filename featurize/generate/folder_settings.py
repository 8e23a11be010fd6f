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
from featurize.options import Scheduler
from lugpi_core.runtime.pretrained import read_config

# Luo et al. 2023, arXiv 2310.04378, and diffusers 0.42: LatentConsistencyModelPipeline has 4 steps at 8.5; an LCM-LoRA takes no guidance
# (1) or little.
# Zheng et al. 2024, arXiv 2402.19159, §5: TCD with 4 steps and no guidance.
_LCM_STEPS, _LCM_GUIDANCE_AS_INPUT, _LCM_GUIDANCE = 4, 8.5, 1.0
_TCD_STEPS, _TCD_GUIDANCE = 4, 0.0
_IN_A_NAME = re.compile(
    r"turbo|lightning|(?<![a-z])(hyper|lcm|tcd|pcm|dmd2?|flash|schnell|sprint|distill(?:ed)?)(?![a-z])|(?<!\d)[1248][-_ ]?steps?(?![a-z])",
    re.I,
)
# How a name says the number of steps: "4step", "8-steps".
_STEPS_IN_A_NAME = re.compile(r"(?<![\d.])([1-9]|1[0-6])[-_ ]?steps?(?![a-z])", re.I)
# Lin et al. 2024, arXiv 2402.13929, and the cards of SDXL-Lightning: Euler with trailing steps, no guidance. FLUX.1's card: schnell 4.
_LIGHTNING, _SCHNELL = re.compile("lightning", re.I), re.compile(r"(?<![a-z])schnell(?![a-z])", re.I)
_SCHNELL_STEPS = 4
# Flux2KleinPipeline, by the cards of FLUX.2 [klein] 4B and 9B; SanaSprintPipeline's own defaults in diffusers 0.42.
_KLEIN_STEPS, _KLEIN_GUIDANCE = 4, 1.0
_LARGEST_CARD_BYTES = 1 << 20
_IN_A_CARD = {
    "steps": re.compile(r"num_inference_steps[\"']?\s*[=:]\s*(\d+)"),
    "guidance": re.compile(r"guidance_scale[\"']?\s*[=:]\s*(\d+(?:\.\d+)?)"),
}


@dataclass(frozen=True, kw_only=True)
class FolderSettings:
    """What a folder says.

    Attributes:
        steps, guidance, scheduler: to take where the user gave none.
        origin: of each, in words.
        signs: why the model seems to be distilled to a few steps; empty if it does not.
        unsaid: of these, what nothing in the folder says although there are signs.
    """

    steps: int
    guidance: float
    scheduler: Scheduler
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
    scheduler, index = _config(folder / "scheduler" / "scheduler_config.json"), _config(folder / "model_index.json")
    takes_guidance = _config(folder / "unet" / "config.json").get("time_cond_proj_dim") is not None
    known = (*names, *_recorded_names(index))
    signs = _signs(scheduler, index, takes_guidance, known)
    values: dict[str, float] = {"steps": usual.steps, "guidance": usual.guidance}
    origin = dict.fromkeys((*values, "scheduler"), "default")
    sampler: Scheduler = "own"
    if signs:
        kind = str(scheduler.get("_class_name"))
        named = next((name for name in known if _of_names((name,))), "")
        sources = {
            f"of its {kind}": _of_scheduler(kind, takes_guidance),
            f"of its {index.get('_class_name')}": _of_pipeline(index, usual),
            f"by the name {named}": _of_names(known),
            "of its card": _of_card(folder / "README.md"),
        }
        for source, found in sources.items():
            values |= found
            origin |= dict.fromkeys(found, source)
        if scheduler.get("timestep_spacing") != "trailing" and kind.startswith("Euler") and any(map(_LIGHTNING.search, known)):
            sampler, origin["scheduler"] = "euler", f"by the name {next(filter(_LIGHTNING.search, known))}"
    return FolderSettings(
        steps=int(values["steps"]),
        guidance=values["guidance"],
        scheduler=sampler,
        origin=origin,
        signs=signs,
        unsaid=tuple(name for name in values if signs and origin[name] == "default"),
    )


def _signs(scheduler: Mapping[str, Any], index: Mapping[str, Any], takes_guidance: bool, names: tuple[str, ...]) -> tuple[str, ...]:
    kind = scheduler.get("_class_name")
    # Models with zero terminal SNR (Lin et al. 2024) need trailing steps too; they predict v.
    is_trailing = scheduler.get("timestep_spacing") == "trailing" and scheduler.get("prediction_type", "epsilon") != "v_prediction"
    found = {
        f"its scheduler is {kind}": kind in ("LCMScheduler", "TCDScheduler"),
        "its scheduler has trailing steps": is_trailing and not scheduler.get("rescale_betas_zero_snr"),
        "its UNet takes the guidance scale as an input": takes_guidance,
        "its model_index.json says is_distilled": index.get("is_distilled") is True,
        "its pipeline is SanaSprintPipeline": index.get("_class_name") == "SanaSprintPipeline",
        **{f"it is called {name}": True for name in names[:1] if _IN_A_NAME.search(name)},
        **{f"it comes from {name}": True for name in names[1:] if _IN_A_NAME.search(name)},
    }
    return tuple(sign for sign, is_found in found.items() if is_found)


def _of_scheduler(kind: str, takes_guidance: bool) -> dict[str, float]:
    if kind == "LCMScheduler":
        return {"steps": _LCM_STEPS, "guidance": _LCM_GUIDANCE_AS_INPUT if takes_guidance else _LCM_GUIDANCE}
    return {"steps": _TCD_STEPS, "guidance": _TCD_GUIDANCE} if kind == "TCDScheduler" else {}


def _of_pipeline(index: Mapping[str, Any], usual: Usual) -> dict[str, float]:
    if index.get("_class_name") == "Flux2KleinPipeline" and index.get("is_distilled") is True:
        return {"steps": _KLEIN_STEPS, "guidance": _KLEIN_GUIDANCE}
    return {"steps": usual.steps, "guidance": usual.guidance} if index.get("_class_name") == "SanaSprintPipeline" else {}


def _of_names(names: tuple[str, ...]) -> dict[str, float]:
    found = {int(match[1]) for name in names if (match := _STEPS_IN_A_NAME.search(name))}
    steps: dict[str, float] = {"steps": found.pop()} if len(found) == 1 else {}
    if any(map(_SCHNELL.search, names)):
        return {"steps": _SCHNELL_STEPS, "guidance": 0.0, **steps}
    return {**steps, "guidance": 0.0} if any(map(_LIGHTNING.search, names)) else steps


def _of_card(card: Path) -> dict[str, float]:
    """Return what a model's card states once, or always in the same way."""
    if not card.is_file():
        return {}
    with card.open("rb") as file:
        text = file.read(_LARGEST_CARD_BYTES).decode(errors="replace")
    stated = {name: {float(value) for value in pattern.findall(text)} for name, pattern in _IN_A_CARD.items()}
    return {name: values.pop() for name, values in stated.items() if len(values) == 1 and (name == "guidance" or min(values) >= 1)}


def _recorded_names(index: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the name that diffusers recorded when it saved the folder: where the pipeline was loaded from."""
    name = index.get("_name_or_path")
    return (Path(name).name,) if isinstance(name, str) and name else ()


def _config(path: Path) -> dict[str, Any]:
    return read_config(path) if path.is_file() else {}
