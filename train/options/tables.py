"""The flags of ``python -m train tables``. Imports nothing heavy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.options import FEWEST_FOLDS, require_folds
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import MOST_SEED, require_seed
from train.options.ray import RaySettings
from train.options.settings import DistillationSettings, Placement
from train.options.training import SHOTS, TrainOptions


def require_processes(processes: object) -> None:
    """Raise InputError unless it is None or how many models can be trained at once."""
    is_number = isinstance(processes, int) and not isinstance(processes, bool) and processes >= 1
    if processes is not None and not is_number:
        raise InputError(got=f"--processes {processes}", expected="1 or more", do="leave it out for as many as fit")


def shots_folder(shots: int) -> str:
    """Return the name of the folder in the run that has the models of so many shots."""
    return f"{SHOTS}{shots}"


def run_of(folder: Path) -> Path:
    """Return the run whose token store the models in a folder read: that of which it has the models of a few shots, else itself."""
    is_of_shots = re.fullmatch(rf"{SHOTS}\d+", folder.name) is not None and not (folder / "tokens").exists()
    return folder.parent if is_of_shots else folder


def require_shots(shots: int | None, folds: int | None) -> None:
    """Raise InputError unless it is None or a number of train texts of each class, one for each fold."""
    if shots is None:
        return
    if shots < 1:
        raise InputError(got=f"--shots {shots}", expected="1 or more texts of each class", do="give for instance 5 10 50")
    if folds is not None and shots < folds:
        raise InputError(
            got=f"--folds {folds} with --shots {shots}",
            expected="at least as many texts of each class as folds, so that each fold has one",
            do=f"give --folds {shots} or less" if shots >= FEWEST_FOLDS else "leave one of them out",
        )


def require_seeds(seeds: range) -> None:
    """Raise InputError unless every random generator accepts the first seed and those after it."""
    require_seed(seeds[0])
    if seeds[-1] > MOST_SEED:
        got = f"--seed {seeds[0]} for {len(seeds)} seeds, the last of which is {seeds[-1]}"
        raise InputError(got=got, expected=f"seeds of 0 to {MOST_SEED}", do=f"give --seed {MOST_SEED + 1 - len(seeds)} or less")


# Between the seeds of an ensemble's teachers.
APART = 1000


def require_ensemble(members: object, seeds: Sequence[int]) -> None:
    """Raise InputError unless it is None or a number of teachers whose seeds are different from those of other students' teachers, and are
    accepted by every random generator."""
    if members is None:
        return
    if not isinstance(members, int) or isinstance(members, bool) or members < 2:
        raise InputError(got=f"--ensemble {members}", expected="2 or more teachers", do="give for instance 3")
    if max(seeds) - min(seeds) >= APART:
        got = f"--ensemble with seeds from {min(seeds)} to {max(seeds)}"
        raise InputError(
            got=got, expected=f"seeds less than {APART} apart", do="the teachers after the first have seeds 1000, 2000, … more"
        )
    if (last := max(seeds) + APART * (members - 1)) > MOST_SEED:
        raise InputError(
            got=f"--ensemble {members} with seeds up to {max(seeds)}, whose last teacher has the seed {last}",
            expected=f"seeds of 0 to {MOST_SEED}; those of the teachers after the first are 1000, 2000, … more",
            do="give a lower --seed, or fewer teachers",
        )


@dataclass(frozen=True, kw_only=True)
class TablesOptions(RaySettings, DistillationSettings, Placement, TrainOptions):
    """Train every model of the paper's tables and of their controls, and print the tables with significance tests.

    Finished models of the run are used whatever their folder's name, interrupted ones are resumed, the rest is trained. The same command
    may run in several processes at once, for instance one per GPU.
    """

    seeds: int = 3
    """Number of seeds each row is trained with, --seed being the first."""
    rows: tuple[str, ...] = ("all",)
    """Which rows: table1, table2, controls, folds (with --folds), ensemble (with --ensemble), unlabelled (with --unlabelled) or all of
    them, or single rows, such as student-clip-vit-b32 or teacher-none; of several columns also student-all-learnt, which no table's name
    requests: its teachers' shares are learnt. What a row needs is trained too."""
    columns: tuple[str, ...] = ()
    """Which tokens of the store get rows of their own (default: all, CLIP's first); shuffled and blank images are the first's."""
    unlabelled: Path | None = None
    """Unlabelled texts that featurize --unlabelled generated images for: adds students that are distilled on these texts too, each with
    its controls."""
    folds: int | None = None
    """Adds the table folds: students of teachers whose outputs for the train texts are cross-fitted on that many folds (train teacher
    --folds), each with its controls. A teacher costs that many times the training of one."""
    ensemble: int | None = None
    """Adds the table ensemble: students of that many teachers of one kind together, which differ in their seeds alone, each with its
    control; with --unlabelled also distilled on those texts. The teachers after the first have seeds from 1000 on."""
    attention: bool = False
    """Compare what teachers of one row look at: the overlap of the image tokens that they attend to most, beside chance, in the table of
    teachers of one kind. Each reads up to 1,000 test texts once more, with its images."""
    shots: tuple[int, ...] = ()
    """Few-shot tables: for each of these numbers train every row on that many train texts of each class, drawn anew in each episode, and
    print accuracy over shots with the number of episodes that an interval needs. Models are in shots-<number> of the run."""
    episodes: int | None = None
    """How many episodes of each --shots: --seed is the first one's number, which decides its texts, its weights and its batches (default:
    as many as --seeds)."""
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
        require_seeds(self.each_seed)
        require_processes(self.processes)
        require_folds(self.folds)
        require_ensemble(self.ensemble, self.each_seed)
        for number in self.shots:
            require_shots(number, self.folds)
        if self.episodes is not None and (self.episodes < 1 or not self.shots):
            expected = "1 or more" if self.shots else "--shots, whose episodes they are"
            raise InputError(got=f"--episodes {self.episodes}", expected=expected, do="give for instance --shots 5 10 50 --episodes 10")
        for flag, names in (("--rows", self.rows), ("--columns", self.columns), ("--shots", tuple(map(str, self.shots)))):
            if len(set(names)) < len(names) or (flag == "--rows" and not names):
                raise InputError(got=" ".join((flag, *names)), expected="one name or several different ones", do="name each once")

    @property
    def each_seed(self) -> range:
        """The seeds, ascending; with ``shots`` the episodes."""
        return range(self.seed, self.seed + (self.episodes or self.seeds))
