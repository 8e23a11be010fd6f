"""The flags of ``python -m lugpi see``. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.options import CorpusOptions, RunOptions
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import DeviceChoice, require_seed
from train.options.training import require_model_name


@dataclass(frozen=True, kw_only=True)
class SeeOptions(RunOptions, CorpusOptions):
    """Draw what a class looks like to a teacher: latents that raise its score of the class, through the store's decoder and encoder.

    Gradient ascent from random latents, no farther from the mean latent than half of the stored ones. The score is the mean log-odds of the
    class beside the same texts of all classes, and stands beside the scores of the class's own generated images. Such a picture shows what
    moves this teacher, which need not be what the class looks like to a person. Writes seen.png and seen.json into the run.
    """

    classes: tuple[str, ...]
    """Which classes, by name."""
    teacher: str = "teacher"
    """Folder of the teacher in the run."""
    steps: int = 100
    """Steps of the ascent."""
    starts: int = 4
    """Random latents that it begins from."""
    texts: int = 8
    """Train texts beside which an image is scored, in equal numbers of each class."""
    seed: int = 0
    """Seed of starts, texts and the images that are compared."""
    device: DeviceChoice = "auto"
    """Where to compute, in float32; auto = CUDA if available."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        require_model_name(self.teacher, flag="--teacher")
        for name in ("steps", "starts", "texts"):
            if getattr(self, name) < 1:
                raise InputError(got=f"--{name} {getattr(self, name)}", expected="1 or more", do="give a positive number")
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise InputError(got=f"--classes {' '.join(self.classes)}", expected="names of classes, each once", do="name one or more")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.run_of(self.dataset, self.limit)
