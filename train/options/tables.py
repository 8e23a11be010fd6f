"""The flags of ``python -m train tables``. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.options import require_folds
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import require_seed
from train.options.ray import RaySettings
from train.options.settings import DistillationSettings, Placement
from train.options.training import TrainOptions


def require_processes(processes: object) -> None:
    """Raise InputError unless it is None or how many models can be trained at once."""
    is_number = isinstance(processes, int) and not isinstance(processes, bool) and processes >= 1
    if processes is not None and not is_number:
        raise InputError(got=f"--processes {processes}", expected="1 or more", do="leave it out for as many as fit")


@dataclass(frozen=True, kw_only=True)
class TablesOptions(RaySettings, DistillationSettings, Placement, TrainOptions):
    """Train every model of the paper's tables and of their controls, and print the tables with significance tests.

    Finished models of the run are used whatever their folder's name, interrupted ones are resumed, the rest is trained. The same command
    may run in several processes at once, for instance one per GPU.
    """

    seeds: int = 3
    """Number of seeds each row is trained with, --seed being the first."""
    rows: tuple[str, ...] = ("all",)
    """Which rows: table1, table2, controls, folds (with --folds), unlabelled (with --unlabelled) or all of them, or single rows, such as
    student-clip-vit-b32 or teacher-none. What a row needs is trained too."""
    columns: tuple[str, ...] = ()
    """Which tokens of the store get rows of their own (default: all, CLIP's first); shuffled and blank images are the first's."""
    unlabelled: Path | None = None
    """Unlabelled texts that featurize --unlabelled generated images for: adds students that are distilled on these texts too, with image
    teachers and, as their control, with the text-only teacher."""
    folds: int | None = None
    """Adds the table folds: students of teachers whose outputs for the train texts are cross-fitted on that many folds (train teacher
    --folds), each with its controls. A teacher costs that many times the training of one."""
    processes: int | None = None
    """How many models are trained at once, each in a process of its own with its share of the threads (default: on the CPU as many as torch
    has threads, as far as memory reaches; on a GPU one; with --ray as many as the cluster has room for)."""
    train: bool = True
    """Train what is missing; --no-train shows what the run holds, whatever it was trained with."""

    def __post_init__(self) -> None:
        TrainOptions.__post_init__(self)
        DistillationSettings.__post_init__(self)
        RaySettings.__post_init__(self)
        if self.seeds < 1:
            raise InputError(got=f"--seeds {self.seeds}", expected="at least 1", do="give for instance 3")
        require_seed(self.seed + self.seeds - 1)
        require_processes(self.processes)
        require_folds(self.folds)
        for flag, names in (("--rows", self.rows), ("--columns", self.columns)):
            if len(set(names)) < len(names) or (flag == "--rows" and not names):
                raise InputError(got=" ".join((flag, *names)), expected="one name or several different ones", do="name each once")

    @property
    def each_seed(self) -> range:
        """The seeds, ascending."""
        return range(self.seed, self.seed + self.seeds)
