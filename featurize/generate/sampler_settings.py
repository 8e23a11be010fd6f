"""Settings of the sampler that is chosen in place of a folder's own (``--scheduler``), from configurations alone.

diffusers carries over what the folder's configuration states, and takes the new sampler's defaults for the rest. ``save_pretrained`` writes
every default of the old sampler, so a folder that was saved again would be sampled at other timesteps: from 941 down in place of 999 with
dpm++ and 20 steps (diffusers 0.42.1, ``ConfigMixin.extract_init_dict``). Here a folder means the same before and after it was saved again:

* what describes the model's noise (its betas, its prediction) is that of the folder's own scheduler, stated or not;
* other settings count where they differ from the default of the folder's own scheduler;
* the spacing of timesteps is trailing for few steps (Lin et al. 2024, arXiv 2305.08891, §3.3), where other spacings begin in the middle.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Literal

from featurize.options import Scheduler
from lugpi_core.errors import InputError

Spacing = Literal["leading", "linspace", "trailing"]

CLASSES: Mapping[str, str] = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
# Schedulers whose timesteps are ``leading`` by default; those of the others are ``linspace``.
_LEADING = frozenset(
    {
        "DDIMScheduler",
        "DDIMInverseScheduler",
        "DDIMParallelScheduler",
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "PNDMScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
    }
)
_BETAS = ("beta_start", "beta_end", "beta_schedule")
_OF_THE_MODEL = (
    *_BETAS,
    "num_train_timesteps",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "set_alpha_to_one",
    "steps_offset",
)
# Below this share of the training's timesteps, a model is told of an image half finished and given pure noise.
_FIRST_STEP_FROM = 0.6


def swapped_settings(config: Mapping[str, Any], choice: Scheduler, *, steps: int, is_distilled: bool = False) -> dict[str, Any]:
    """Return the configuration of the sampler that is chosen in place of a folder's own.

    Args:
        config: the folder's ``scheduler_config.json``.
        choice: ``ddim``, ``dpm++``, ``euler`` or ``lcm``.
        steps: of denoising.
        is_distilled: whether the model was distilled to few steps, which are trailing ones.

    Raises:
        InputError: the folder's own scheduler is of another kind, such as flow matching.
    """
    own, fields = _defaults(str(config["_class_name"])), _defaults(CLASSES[choice])
    require_swappable(config, choice)
    described = [name for name in _OF_THE_MODEL if name in fields and (name in config or name in own)]
    settings = {name: config[name] if name in config else own[name] for name in described}
    settings |= {
        name: value
        for name, value in config.items()
        if name in fields and name not in _OF_THE_MODEL and (name not in own or value != own[name])
    }
    # DDIM clips to [-1, 1] by default, which latents exceed; the configurations of other schedulers may not set it.
    return {**settings, "timestep_spacing": _spacing(config, choice, steps, is_distilled), "clip_sample": False}


def recorded_settings(config: Mapping[str, Any], choice: Scheduler, *, steps: int, is_distilled: bool = False) -> dict[str, Any]:
    """Return those of ``swapped_settings`` that are others than diffusers gives the sampler: for the fingerprint. diffusers is only
    imported for configurations that leave out betas. Arguments are those of ``swapped_settings``."""
    if choice == "own":
        return {}
    usual = config.get("timestep_spacing", _default_spacing(CLASSES[choice]))
    spacing = _spacing(config, choice, steps, is_distilled)
    recorded: dict[str, Any] = {} if spacing == usual else {"timestep_spacing": spacing}
    kind = str(config.get("_class_name"))
    unsaid = [name for name in (*_BETAS, *(("set_alpha_to_one",) if choice == "ddim" else ())) if name not in config]
    if kind != CLASSES[choice] and unsaid:
        own, fields = _defaults(kind), _defaults(CLASSES[choice])
        recorded |= {name: own[name] for name in unsaid if name in own and own[name] != fields[name]}
    return recorded


def require_swappable(config: Mapping[str, Any], choice: Scheduler) -> None:
    """Raise InputError unless the folder's own scheduler adds noise by betas, as those of ``--scheduler`` do."""
    kind = str(config["_class_name"])
    if kind == CLASSES[choice]:
        return
    is_flow = config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas") is True
    if is_flow or "beta_schedule" not in _defaults(kind):
        raise InputError(
            got=f"--scheduler {choice} for a generator that samples with {kind}{', by flow matching' if is_flow else ''}",
            expected="its own scheduler: the model was trained with other noise than that of Stable Diffusion",
            do="leave --scheduler out",
        )


def is_swappable(config: Mapping[str, Any]) -> bool:
    """Whether the samplers of ``--scheduler`` can replace a folder's own."""
    try:
        require_swappable(config, "ddim")
    except InputError:
        return False
    return True


def begins_late(timesteps: Any, config: Mapping[str, Any]) -> bool:
    """Whether the first of a scheduler's timesteps is one of an image half finished, though it begins with noise."""
    return "timestep_spacing" in config and bool(timesteps.max() < _FIRST_STEP_FROM * config["num_train_timesteps"])


def _spacing(config: Mapping[str, Any], choice: Scheduler, steps: int, is_distilled: bool) -> Spacing:
    stated = config.get("timestep_spacing")
    usual: Spacing = _default_spacing(CLASSES[choice])
    if stated is not None and stated != _default_spacing(str(config.get("_class_name"))):
        usual = stated
    trained = config.get("num_train_timesteps", 1000)
    if is_distilled or _first_timestep(choice, usual, steps, trained) < _FIRST_STEP_FROM * trained:
        return "trailing"
    return usual


def _default_spacing(kind: str) -> Spacing:
    return "leading" if kind in _LEADING else "linspace"


def _first_timestep(choice: Scheduler, spacing: Spacing, steps: int, trained: int) -> int:
    """Return the first timestep of a sampler but for its offset. dpm++ places one step more than it takes, LCM has steps of its own."""
    if choice == "lcm":
        return trained - 1
    places = steps + (choice == "dpm++")
    if spacing == "leading":
        return (places - 1) * (trained // places)
    return 0 if spacing == "linspace" and places == 1 else trained - 1


def _defaults(kind: str) -> dict[str, Any]:
    import diffusers

    parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if parameter.default is not inspect.Parameter.empty}
