"""The sampler of a generator, loaded: its folder's own or another, tried on its steps before a weight is loaded."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from featurize.generate.families.family import Family, Sampling, Step
from featurize.generate.generators import Generator
from featurize.generate.guidance import require_guided_step
from featurize.generate.sampler_settings import CLASSES, begins_late, is_swappable, swapped_settings
from lugpi_core.errors import InputError
from lugpi_core.runtime.pretrained import loading, read_config, reason

# Fields of a scheduler that say what the denoiser gives, with their usual values. Learned variances are further channels, which no denoiser
# of these families has where its scheduler reads them.
_OUTPUTS = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction", "trigflow"),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
_TRIED_MULTIPLES = 8
# What the loop gives to a sampler's step by place.
_STEP_TAKES = ("model_output", "timestep", "sample")
_GIVEN_IN_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# What the schedulers of diffusers raise for steps and settings that they do not take.
_FAILURES = (ValueError, TypeError, IndexError, RuntimeError, AttributeError, ImportError, NotImplementedError, ZeroDivisionError)


def own_scheduler(family: Family) -> Any:
    """Return the scheduler in a generator's folder as it is there, or DDIM if there is none; it is not tried out."""
    import diffusers

    config = family.configs.get("scheduler", {"_class_name": "DDIMScheduler"})
    return getattr(diffusers, config["_class_name"]).from_config(config)


def load_scheduler(generator: Generator) -> Any:
    """Return the scheduler of diffusers that a generator samples with.

    Raises:
        InputError: its files do not load, diffusers has no such class, it does not take the number of steps, or none of them is guided.
    """
    import diffusers

    folder, choice, steps = generator.folder / "scheduler", generator.settings.scheduler, generator.settings.steps
    config = read_config(folder / "scheduler_config.json")
    own = config.get("_class_name")
    if not isinstance(own, str) or own not in dir(diffusers):
        raise InputError(
            got=f"{folder} of the class {own}",
            expected="a scheduler of the installed diffusers",
            do="restore it from where it comes from, or install a version of diffusers that has it",
        )
    try:
        with loading(folder, expected=f"a configuration of {own}", do="restore it from where it comes from"):
            scheduler = getattr(diffusers, own).from_config(config)
            if choice in CLASSES:
                settings = swapped_settings(config, choice, steps=steps, is_distilled=generator.is_distilled)
                scheduler = getattr(diffusers, CLASSES[choice]).from_config(settings)
            fields = generator.family.scheduler_fields()
            scheduler.register_to_config(**{name: value for name, value in fields.items() if name in scheduler.config})
    except ImportError as error:
        raise InputError(
            got=f"{own} ({' '.join(str(error).split())[:160]})",
            expected="a scheduler that runs here",
            do="install that",
        ) from None
    try:
        _try_steps(scheduler, generator)
    except InputError:  # a family says what helps
        raise
    except _FAILURES as error:
        raise _rejected(scheduler, generator, reason(error)) from None
    require_guided_step(generator.settings, len(generator.family.times(scheduler)))
    if steps == 1 and begins_late(scheduler.timesteps, scheduler.config):
        raise InputError(
            got=f"--steps 1 for {own}, whose {scheduler.config.get('timestep_spacing')} steps begin at timestep "
            f"{float(scheduler.timesteps.max()):g} of {scheduler.config['num_train_timesteps']}",
            expected="a first step at which the model is given noise",
            do=f"{'use --scheduler euler, which takes trailing steps then, or' if is_swappable(config) else 'give'} more --steps",
        )
    return scheduler


def step_arguments(scheduler: Any, noises: Sequence[torch.Generator]) -> dict[str, Any]:
    """Return what a scheduler's step takes besides the prediction, as Stable Diffusion's pipeline of diffusers gives it."""
    takes = inspect.signature(scheduler.step).parameters
    return {name: value for name, value in (("eta", 0.0), ("generator", list(noises))) if name in takes}


def _try_steps(scheduler: Any, generator: Generator) -> None:
    """Run all steps on a small latent with a prediction of noise, as ``denoise`` does on images.

    Raises:
        ValueError: the result is not finite.
    """
    family, settings = generator.family, generator.settings
    sampling = Sampling(images=1, size_px=family.multiple_px * _TRIED_MULTIPLES, steps=settings.steps, guidance=settings.guidance)
    noise = torch.Generator("cpu").manual_seed(0)
    noise_1Chw = torch.randn((1, *family.latent_shape(sampling.size_px)), generator=noise)
    family.set_timesteps(scheduler, sampling)
    latents = family.first_latents(scheduler, noise_1Chw, torch.float32)
    predicted = torch.randn(latents.shape, generator=noise)
    extra = step_arguments(scheduler, [noise])
    times = family.times(scheduler)
    for number, time in enumerate(times):
        step = Step(number=number, last=len(times) - 1, on_host=time, on_device=time)
        family.scaled(scheduler, latents, step)
        latents = family.step(scheduler, predicted, step, latents, extra)
    if not latents.isfinite().all():
        raise ValueError("its latents are not finite")


def _rejected(scheduler: Any, generator: Generator, why: str) -> InputError:
    steps, file = generator.settings.steps, generator.folder / "scheduler" / "scheduler_config.json"
    name, most = type(scheduler).__name__, scheduler.config.get("original_inference_steps")
    if most is not None and steps > most:
        return InputError(
            got=f"--steps {steps} for {name}, which has {most}",
            expected=f"at most {most}",
            do=f"give for instance --steps {min(4, most)}, or --scheduler ddim",
        )
    for field, usual in _OUTPUTS.items():
        value = scheduler.config.get(field)
        if value is not None and (value not in usual or field in why.lower().replace(" ", "_")):
            return InputError(
                got=f"{file} with the {field} {value!r}, with which {name} does not run ({why})",
                expected=f"what the {generator.family.denoiser} gives, such as {usual[0]}",
                do=f"correct {field} in that file",
            )
    wanted = [p.name for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty and p.kind in _GIVEN_IN_PLACE]
    if len(wanted) > len(_STEP_TAKES):
        return InputError(
            got=f"{file} with the sampler {name}, whose step takes {', '.join(wanted)}",
            expected=f"a sampler of images, whose step takes {', '.join(_STEP_TAKES)}",
            do="restore scheduler/ from where the model comes from",
        )
    other = "another --scheduler such as ddim" if is_swappable(read_config(file)) else None
    if not _runs(scheduler, generator, steps=20 if steps != 20 else 10):
        return InputError(
            got=f"{file.parent}, whose {name} does not run with this model ({why})",
            expected=f"a scheduler that samples as {generator.pipeline_class} does",
            do=f"give {other}" if other else "restore scheduler/ from where the model comes from",
        )
    trained = scheduler.config.get("num_train_timesteps")
    if trained is not None and steps > trained:
        return InputError(
            got=f"--steps {steps} for {name}, which was trained with {trained}",
            expected=f"at most {trained}",
            do="give fewer steps; 20 to 50 are usual",
        )
    return InputError(
        got=f"--steps {steps}, with which {name} does not run ({why})",
        expected="steps that it takes",
        do=f"give another number of --steps{f', or {other}' if other else ''}",
    )


def _runs(scheduler: Any, generator: Generator, *, steps: int) -> bool:
    settings = dataclasses.replace(generator.settings, steps=steps)
    try:
        _try_steps(scheduler, dataclasses.replace(generator, settings=settings))
    except (InputError, *_FAILURES):
        return False
    return True
