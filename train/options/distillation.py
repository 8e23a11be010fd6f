"""The flags of ``python -m train student``. Imports nothing heavy."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from lugpi_core.errors import InputError, number_of
from train.options.settings import DistillationSettings
from train.options.training import ModelOptions, require_model_name

ANCHOR_WEIGHT = 0.5
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

    anchor: Path | None = None
    """Hold the answers near to those of an earlier model, so that fewer of them change: a student or baseline of the same classes, by its
    name in the run or its folder. Its answers to train and unlabelled texts are one more soft label."""
    anchor_weight: float = ANCHOR_WEIGHT
    """Share of the --anchor in the loss, the rest of which has the others: near 0 it is ignored, near 1 nothing else is learnt."""

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
        require_anchor_weight(self.anchor_weight, has_anchor=self.anchor is not None)

    @property
    def anchor_folder(self) -> Path | None:
        """Folder of the anchor: of a plain name, in the run."""
        is_name = self.anchor is not None and self.anchor.name == str(self.anchor)
        return self.run / self.anchor if self.anchor is not None and is_name else self.anchor

    @property
    def shares(self) -> Shares:
        """Each teacher's share, which sum to 1; or learnt."""
        return shares_of(self.teacher_weights, len(self.teachers))


def require_anchor_weight(weight: float, *, has_anchor: bool) -> None:
    """Raise InputError unless it is a share of the loss, and there is an anchor that has it."""
    if not 0 < weight < 1:
        raise InputError(
            got=f"--anchor-weight {weight}", expected="a share of the loss between 0 and 1, both excluded", do="give for instance 0.5"
        )
    if not has_anchor and weight != ANCHOR_WEIGHT:
        raise InputError(
            got=f"--anchor-weight {weight} without --anchor", expected="the model whose share it is", do="give --anchor, or leave it out"
        )


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
