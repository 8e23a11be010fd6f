"""The flags of ``python -m train sweep``, and the search space they describe. Imports nothing heavy."""

from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lugpi_core.errors import InputError, nearest
from train.options.distillation import StudentOptions
from train.options.ray import RaySettings
from train.options.settings import KD_EXTRA_WEIGHT

SWEPT = (
    "temperature",
    "alpha",
    "beta",
    "hard",
    "learning_rate",
    "weight_decay",
    "batch_size",
    "student_layers",
    "kd_preset",
    "predict_image",
    "embedding_loss",
    "kd_extra",
    "kd_extra_weight",
    "anchor_weight",
    "epochs",
    "seed",
)
# A range whose ends differ by this factor or more is searched on a log scale.
LOG_RATIO = 100
Value = int | float | str


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One swept option: a range, both ends included, or choices.

    Attributes:
        name: of the field of StudentOptions.
        low: of a range, an int for an int option.
        high: of a range, above ``low``.
        log: whether the range is searched on a log scale.
        choices: two or more different values; empty for a range.
    """

    name: str
    low: int | float = 0
    high: int | float = 0
    log: bool = False
    choices: tuple[Value, ...] = ()

    @property
    def corners(self) -> tuple[Value, ...]:
        """The choices, or the two ends."""
        return self.choices or (self.low, self.high)

    def record(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        return {"choices": list(self.choices)} if self.choices else {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True, kw_only=True)
class SweepOptions(RaySettings, StudentOptions):
    """Search for a student's best settings by its validation score; the test split is not scored."""

    name: str | None = None
    """Name of the sweep's folder in <run>/sweep (default: student)."""
    over: tuple[str, ...]
    """What is searched, each as NAME=LOW:HIGH (on a log scale if HIGH is at least 100 LOW, or with :log appended) or NAME=A,B,C.
    NAME is temperature, alpha, beta, hard, learning_rate, weight_decay, batch_size, student_layers, kd_preset, predict_image,
    embedding_loss, kd_extra, kd_extra_weight (with --kd-extra, or kd_extra), anchor_weight (with --anchor), epochs or seed."""
    trials: int = 20
    """Number of students, including those of earlier runs of the same sweep; the first 10 have random settings."""
    sampler_seed: int = 0
    """Seed of the proposed settings; --seed is the students'."""
    trials_at_once: int | None = None
    """With --ray, how many students are trained at once; each is proposed from the trials before these (default: what the sweep has, else
    as many as the cluster has room for)."""

    def __post_init__(self) -> None:
        StudentOptions.__post_init__(self)
        RaySettings.__post_init__(self)
        if self.trials < 1:
            raise InputError(got=f"--trials {self.trials}", expected="at least 1", do="give a positive number")
        if not 0 <= self.sampler_seed < 2**31:
            raise InputError(got=f"--sampler-seed {self.sampler_seed}", expected="0 to 2147483647", do="give a number from there")
        if self.trials_at_once is not None and self.trials_at_once < 1:
            raise InputError(got=f"--trials-at-once {self.trials_at_once}", expected="at least 1", do="give a positive number")
        if self.trials_at_once is not None and self.ray is None:
            raise InputError(got="--trials-at-once without --ray", expected="both, or neither", do="add --ray auto, or leave it out")
        self._require_space()

    def _require_space(self) -> None:
        space = self.space
        names = [dimension.name for dimension in space]
        if not names or len(set(names)) < len(names):
            raise InputError(got=f"--over {' '.join(self.over)}", expected="one or several different options", do="name each once")
        defaults = {field.name: field.default for field in fields(StudentOptions)}
        for dimension in space:
            if (given := getattr(self, dimension.name)) != defaults[dimension.name]:
                flag = f"--{dimension.name.replace('_', '-')} {given}"
                raise InputError(got=f"{flag} and --over {dimension.name}=…", expected="one of them", do="leave the other out")
            weighed = {"kd_extra": "bss"} if dimension.name == "kd_extra_weight" and self._sweeps_kd_extra else {}
            for value in dimension.corners:
                self.student({dimension.name: value, **weighed})  # refuses what the student would refuse

    def _require_kd_extra(self) -> None:
        if not self._sweeps_kd_extra:
            super()._require_kd_extra()

    @property
    def _sweeps_kd_extra(self) -> bool:
        return any(dimension.name == "kd_extra" for dimension in self.space)

    @property
    def space(self) -> tuple[Dimension, ...]:
        """The swept options, in the order given."""
        return tuple(dimension_of(written) for written in self.over)

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return self.run / "sweep" / self.sweep_name

    @property
    def sweep_name(self) -> str:
        """Name of the sweep's folder."""
        return self.name or "student"

    def student(self, parameters: dict[str, Any]) -> StudentOptions:
        """Return the options of a student with these parameters; where kd_extra is swept, a student without it has no weight for it."""
        given = {field.name: getattr(self, field.name) for field in fields(StudentOptions)} | parameters
        if self._sweeps_kd_extra and given["kd_extra"] == "none":
            given["kd_extra_weight"] = KD_EXTRA_WEIGHT
        return StudentOptions(**given)


def dimension_of(written: str) -> Dimension:
    """Read ``name=low:high``, ``name=low:high:log`` or ``name=a,b,c``.

    Raises:
        InputError: it is not of that form, the option cannot be swept, or a value is invalid.
    """
    name, _, values = written.partition("=")
    if not values:
        raise InputError(got=f"--over {written}", expected="NAME=LOW:HIGH or NAME=A,B,C", do="give for instance temperature=1:10")
    if name not in SWEPT:
        raise InputError(got=f"--over {written}", expected=f"one of {', '.join(SWEPT)}", do=nearest(name, SWEPT))
    if "," in values:
        choices = tuple(_value(name, choice, written) for choice in values.split(","))
        if len(set(choices)) < len(choices):
            raise InputError(got=f"--over {written}", expected="different choices", do="name each once")
        return Dimension(name=name, choices=choices)
    ends, is_log = (values.removesuffix(":log"), True) if values.endswith(":log") else (values, False)
    numbers = [_value(name, end, written) for end in ends.split(":")]
    match numbers:
        case [int() | float() as low, int() | float() as high] if low < high and (low > 0 or not is_log):
            return Dimension(name=name, low=low, high=high, log=is_log or (low > 0 and high / low >= LOG_RATIO))
    expected = "LOW:HIGH with LOW below HIGH, and above 0 for :log, or choices A,B"
    raise InputError(got=f"--over {written}", expected=expected, do="give for instance temperature=1:10 or kd_preset=paper,hinton")


def _value(name: str, written: str, whole: str) -> Value:
    kind = next(field.type for field in fields(StudentOptions) if field.name == name)
    if get_origin(kind) is Literal:
        known = get_args(kind)
        if written not in known:
            raise InputError(got=f"{written!r} in --over {whole}", expected=f"choices of {', '.join(known)}", do=nearest(written, known))
        return written
    number = int if int in (kind, *get_args(kind)) else float
    try:
        value = number(written)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        expected = "whole numbers" if number is int else "numbers"
        raise InputError(got=f"{written!r} in --over {whole}", expected=expected, do="give for instance " + f"{name}=1:10")
    return value
