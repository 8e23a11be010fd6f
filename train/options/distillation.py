"""The flags of ``python -m train student``. Imports nothing heavy."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from lugpi_core.errors import InputError, number_of
from train.options.settings import DistillationSettings
from train.options.training import ModelOptions, require_model_name

LEARNT: Literal["learnt"] = "learnt"
Shares = tuple[float, ...] | Literal["learnt"]


@dataclass(frozen=True, kw_only=True)
class StudentOptions(DistillationSettings, ModelOptions):
    """Distil a text-only student from the cached outputs of one teacher or several."""

    teachers: tuple[str, ...] = ("teacher",)
    """Names of the teachers' folders in the run."""
    teacher_weights: Literal["learnt"] | tuple[float, ...] = ()
    """Each teacher's share of the soft terms (default: equal shares); or learnt: the shares that fit texts best that the teachers have not
    been trained on, for each group of classes that they confuse."""
    unlabelled: Path | None = None
    """Unlabelled texts that featurize --unlabelled generated images for: a file (.txt with a text a line; .csv, .tsv, .json, .jsonl,
    .parquet; .gz too) or a folder of datasets.save_to_disk. The student is distilled on them too."""
    student_layers: int | None = None
    """Keep only that many layers of the text model, evenly spaced (default: all)."""

    def __post_init__(self) -> None:
        ModelOptions.__post_init__(self)
        DistillationSettings.__post_init__(self)
        if self.student_layers is not None and self.student_layers < 1:
            raise InputError(got=f"--student-layers {self.student_layers}", expected="at least 1", do="give for instance 3")
        if self.redraw is not None:
            raise InputError(got=f"--redraw {self.redraw} for a student, which reads no images", expected="a teacher", do="leave it out")
        for name in self.teachers:
            require_model_name(name, flag="--teachers")
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise InputError(
                got=f"--teachers {' '.join(self.teachers)}", expected="one name or several different ones", do="name each once"
            )
        shares_of(self.teacher_weights, len(self.teachers))

    @property
    def shares(self) -> Shares:
        """Each teacher's share, which sum to 1; or learnt."""
        return shares_of(self.teacher_weights, len(self.teachers))


def shares_of(weights: Shares, teachers: int) -> Shares:
    """Return each teacher's share of the soft terms, which sum to 1; equal ones where no weights are given. Learnt ones are learnt later.

    Raises:
        InputError: there is not one positive weight per teacher, or a single teacher to learn the share of.
    """
    if isinstance(weights, str):
        if teachers < 2:
            raise InputError(
                got=f"--teacher-weights {weights} for {number_of(teachers, 'teacher{s}')}",
                expected="two teachers or more, whose shares are learnt",
                do="name them with --teachers, or leave --teacher-weights out",
            )
        return weights
    if weights and (len(weights) != teachers or not all(weight > 0 and isfinite(weight) for weight in weights)):
        raise InputError(
            got=f"--teacher-weights {' '.join(map(str, weights))} for {number_of(teachers, 'teacher{s}')}",
            expected="a positive weight for each",
            do="give for instance 0.5 0.5",
        )
    weights = weights or (1.0,) * teachers
    return tuple(weight / sum(weights) for weight in weights)
