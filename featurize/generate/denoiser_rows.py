"""How many rows of the denoiser an image takes, before anything is loaded but the sampler."""

from dataclasses import dataclass

from featurize.generate.deepcache import whole_steps
from featurize.generate.families.family import Sampling
from featurize.generate.generators import Generator
from featurize.generate.guidance import copies_of_steps
from featurize.generate.schedulers import load_scheduler


@dataclass(frozen=True, kw_only=True)
class DenoiserRows:
    """Rows of the denoiser that an image takes.

    Attributes:
        whole: of which all of the denoiser is run.
        reused: of which the deep features are those of an earlier step (DeepCache).
    """

    whole: int
    reused: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.whole + self.reused


def denoiser_rows(generator: Generator) -> DenoiserRows:
    """Return how many rows of the denoiser an image takes: one for each evaluation, two where classifier-free guidance acts.

    Raises:
        InputError: the scheduler does not load, or does not take the steps.
    """
    family, settings, scheduler = generator.family, generator.settings, load_scheduler(generator)
    sampling = Sampling(images=1, size_px=generator.size_px, steps=settings.steps, guidance=settings.guidance)
    family.set_timesteps(scheduler, sampling)
    rows = copies_of_steps(family, settings, len(family.times(scheduler)))
    whole = sum(count for count, is_whole in zip(rows, whole_steps(rows, settings.deepcache), strict=True) if is_whole)
    return DenoiserRows(whole=whole, reused=sum(rows) - whole)
