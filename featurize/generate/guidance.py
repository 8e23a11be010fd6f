"""In which steps classifier-free guidance acts, and what stands for it in the others.

Source: Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models",
arXiv 2404.07724. They bound the interval by noise levels; here it is bounded by fractions of the steps, as the guiders of diffusers bound
it (``start`` and ``stop``), so that one interval fits every sampler. Keeping the last difference: Castillo et al. 2023, arXiv 2312.12487,
§4.2, whose estimate is a linear one; here it is the last difference itself.
"""

import math
import re
from fractions import Fraction

import torch

from featurize.generate.families.family import Family
from featurize.generate.presets import GeneratorPreset
from lugpi_core.errors import InputError

_PARTS = 2
# An end is read at once, and its canonical spelling is one too: Python would take minutes over 1e-99999999.
_END = re.compile(r"[^eE]{1,40}([eE][+-]?\d{1,2})?")
_MOST_DECIMALS = 18


def interval_of(given: str) -> tuple[Fraction, Fraction]:
    """Return both ends of ``a:b``.

    Raises:
        InputError: they are no fractions of the steps, in ascending order.
    """
    try:
        ends = [Fraction(end) for part in given.split(":") if _END.fullmatch(end := part.strip())]
    except (ValueError, ZeroDivisionError):
        ends = []
    is_coarse = all(end.denominator <= 10**_MOST_DECIMALS for end in ends)
    if given.count(":") != _PARTS - 1 or len(ends) != _PARTS or not is_coarse or not 0 <= ends[0] < ends[1] <= 1:
        raise InputError(
            got=f"--guidance-interval {given:.100}",
            expected=f"a:b with 0 <= a < b <= 1, fractions of the steps with at most {_MOST_DECIMALS} decimals",
            do="give for instance 0:0.5, the first half of the steps",
        )
    return ends[0], ends[1]


def in_words(interval: tuple[Fraction, Fraction]) -> str | None:
    """Return an interval in one spelling, for records; None for the whole."""
    return None if interval == (Fraction(0), Fraction(1)) else ":".join(map(_exact, interval))


def _exact(end: Fraction) -> str:
    decimal = f"{float(end):g}"
    return decimal if Fraction(decimal) == end else str(end)


def guided_steps(interval: str | None, evaluations: int) -> range:
    """Return the numbers of the evaluations of the denoiser that are guided: ⌊a · N⌋ ≤ n < ⌊b · N⌋ of N."""
    start, stop = (Fraction(0), Fraction(1)) if interval is None else interval_of(interval)
    return range(math.floor(start * evaluations), math.floor(stop * evaluations))


def copies_of_steps(family: Family, settings: GeneratorPreset, evaluations: int) -> tuple[int, ...]:
    """Return how many rows of the denoiser an image takes at each of its evaluations: 2 where classifier-free guidance acts."""
    if family.guidance_kind(settings.guidance) != "cfg":
        return (1,) * evaluations
    guided = guided_steps(settings.guidance_interval, evaluations)
    return tuple(1 + (number in guided) for number in range(evaluations))


def check_guidance(family: Family, settings: GeneratorPreset) -> None:
    """Check that an interval has something to bound.

    Raises:
        InputError: the generator has no classifier-free guidance, or nothing is after an interval whose last difference is kept.
    """
    interval, folder, kind = settings.guidance_interval, family.folder, family.guidance_kind(settings.guidance)
    if settings.guidance_reuse and interval is None:
        raise InputError(
            got="--guidance-reuse without --guidance-interval",
            expected="an interval of classifier-free guidance, after which its last difference is kept",
            do="give for instance --guidance-interval 0:0.5" if kind == "cfg" else "leave out --guidance-reuse",
        )
    if interval is None:
        return
    if kind != "cfg":
        may_be_guided = family.guidance_kind(max(settings.guidance, 7.5)) == "cfg"
        how = "takes the guidance scale as an input of its denoiser" if kind == "embedded" else "runs without guidance"
        raise InputError(
            got=f"--guidance-interval {interval} for {folder}, which {how} (--guidance {settings.guidance:g})",
            expected="classifier-free guidance, whose unguided half can be left out",
            do="give --guidance above 1, or leave out --guidance-interval" if may_be_guided else "leave out --guidance-interval",
        )
    if settings.guidance_reuse and interval_of(interval)[1] == 1:
        raise InputError(
            got=f"--guidance-reuse with --guidance-interval {interval}, after which there is no step",
            expected="an interval that ends before the last step",
            do="leave out --guidance-reuse, or give for instance --guidance-interval 0:0.5",
        )


def require_guided_step(settings: GeneratorPreset, evaluations: int) -> None:
    """Check that an interval has a step, by the sampler's own count: Heun's evaluates the denoiser twice in all steps but one.

    Raises:
        InputError: it has none.
    """
    if not guided_steps(settings.guidance_interval, evaluations):
        steps = f"{evaluations} steps" if evaluations == settings.steps else f"{evaluations} evaluations in {settings.steps} steps"
        raise InputError(
            got=f"--guidance-interval {settings.guidance_interval} of {steps}, in which no step is",
            expected="a step at least",
            do="widen it, or use --guidance 0 for no guidance",
        )


class Guide:
    """Guides the predictions of one batch, step by step.

    Args:
        family: how guidance acts.
        scale: of the guidance.
        reuses: whether the last difference of conditional and unconditional prediction stands for that of unguided steps.
    """

    def __init__(self, family: Family, scale: float, *, reuses: bool) -> None:
        self._family, self._scale, self._reuses = family, scale, reuses
        self._difference: torch.Tensor | None = None

    def guided(self, predicted: torch.Tensor, copies: int) -> torch.Tensor:
        """Return the prediction that the sampler takes, from the denoiser's with 1 or 2 copies. Before the first step with 2 it is the
        denoiser's own."""
        if copies == 1:
            if self._difference is None:
                return predicted
            return self._family.guide(torch.cat([predicted - self._difference, predicted]), self._scale)
        if self._reuses:
            unconditional, conditional = predicted.chunk(2)
            self._difference = conditional - unconditional
        return self._family.guide(predicted, self._scale)
