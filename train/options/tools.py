"""The flags of ``python -m train evaluate``, ``onnx``, ``report`` and ``sweep``, with their checks. Imports nothing heavy."""

from dataclasses import MISSING, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from lugpi_core.corpora.options import CorpusOptions, default_run_dir
from lugpi_core.errors import InputError, nearest
from lugpi_core.runtime.device import DeviceChoice, require_seed
from train.options.training import StudentOptions, require_model_name

TEXT_SUFFIX = ".txt"
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
    "embedding_loss",
    "epochs",
    "seed",
)
# From here on a range is searched by orders of magnitude.
LOG_RATIO = 100
# As many as inspect keeps pictures of.
MOST_SHOWN = 500
Value = int | float | str


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Label the texts of a file with a finished student or baseline, and score it where the file has labels."""

    model: Path
    """Folder of the classifier, such as runs/20ng/student, or any Hugging Face sequence classifier's."""
    input: Path
    """Texts: .txt with a text a line, .csv, .jsonl or .parquet."""
    output: Path | None = None
    """CSV with id, label and the probability of each class (default: <input's name>.predictions.csv beside the input)."""
    text_column: str = "text"
    """The column with the text."""
    label_column: str | None = None
    """The column with the label; accuracy and macro-F1 are reported (default: label, where the file has one)."""
    batch_size: int = 64
    """Texts in one forward pass."""
    max_length: int | None = None
    """Cut texts to that many tokens (default: what the model was trained to read)."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass; auto is bfloat16 on CUDA, float32 on the CPU."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(got=f"--batch-size {self.batch_size}", expected="at least 1", do="give a positive number")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(got=f"--max-length {self.max_length}", expected="at least 2", do="leave it out for the longest")
        if self.label_column is not None and self.input.suffix.lower() == TEXT_SUFFIX:
            raise InputError(
                got=f"--label-column {self.label_column} for {self.input}",
                expected="a file with columns",
                do="give a .csv, .jsonl or .parquet, or leave it out",
            )
        if self.label_column == self.text_column:
            raise InputError(
                got=f"--label-column and --text-column both {self.text_column}", expected="two columns", do="name the column of each"
            )
        if self.written.resolve() == self.input.resolve():
            raise InputError(got=f"--output {self.written}, which is the input", expected="another file", do="give another --output")

    @property
    def written(self) -> Path:
        """The file that is written."""
        return self.output or self.input.with_name(f"{self.input.stem}.predictions.csv")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Write a finished student or baseline as one ONNX file, and check that onnxruntime gives the same logits."""

    model: Path
    """Folder of the classifier, such as runs/20ng/student, or any Hugging Face sequence classifier's."""
    output: Path | None = None
    """The file (default: model.onnx in the model's folder)."""

    @property
    def written(self) -> Path:
        """The file that is written."""
        return self.output or self.model / "model.onnx"


@dataclass(frozen=True, kw_only=True)
class ReportOptions(CorpusOptions):
    """Write a run as one page that needs no server and no network: tables, curves, calibration, errors, and examples with their pictures.
    Pictures are those that python -m featurize inspect kept."""

    run_dir: Path | None = None
    """Folder of the run; the page is its report.html (default: runs/<dataset>)."""
    student: str | None = None
    """Folder of the student whose answers are shown beside its teacher's and the baseline's (default: the first of the tables)."""
    examples: int = 200
    """Test examples that are shown with their texts: those with a picture first, and of every pattern of right and wrong answers as many
    as there are, in turn."""
    seed: int = 0
    """Seed of the choice among them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        if not 0 <= self.examples <= MOST_SHOWN:
            raise InputError(got=f"--examples {self.examples}", expected=f"0 to {MOST_SHOWN}", do="give for instance 200")
        if self.student is not None:
            require_model_name(self.student, flag="--student")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.run_dir or default_run_dir(self.dataset, self.limit)

    @property
    def written(self) -> Path:
        """The file that is written."""
        return self.run / "report.html"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One option that a sweep chooses: a range, both ends included, or choices.

    Attributes:
        name: of the field of StudentOptions.
        low: of a range, an int for an int option.
        high: of a range, above ``low``.
        log: whether the range is searched by orders of magnitude.
        choices: two or more different ones; a range has none.
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
class SweepOptions(StudentOptions):
    """Look for a student's best settings by validation accuracy; the test split is not scored."""

    name: str | None = None
    """Name of the sweep's folder in <run>/sweep (default: student)."""
    over: tuple[str, ...]
    """What is chosen, each as NAME=LOW:HIGH (by orders of magnitude where HIGH is 100 LOW or more, or with :log behind) or NAME=A,B,C.
    NAME is temperature, alpha, beta, hard, learning_rate, weight_decay, batch_size, student_layers, kd_preset, embedding_loss, epochs or
    seed."""
    trials: int = 20
    """Students to train, those of earlier runs of the same sweep among them; the first 10 are drawn at random."""
    sampler_seed: int = 0
    """Seed of what is tried; --seed is the students'."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trials < 1:
            raise InputError(got=f"--trials {self.trials}", expected="at least 1", do="give a positive number")
        if not 0 <= self.sampler_seed < 2**31:
            raise InputError(got=f"--sampler-seed {self.sampler_seed}", expected="0 to 2147483647", do="give a smaller, positive number")
        self._require_space()

    def _require_space(self) -> None:
        space = self.space
        names = [dimension.name for dimension in space]
        if not names or len(set(names)) < len(names):
            raise InputError(got=f"--over {' '.join(self.over)}", expected="one option or several different ones", do="name each once")
        defaults = {field.name: field.default for field in fields(StudentOptions)}
        for dimension in space:
            if (given := getattr(self, dimension.name)) != defaults[dimension.name]:
                flag = f"--{dimension.name.replace('_', '-')} {given}"
                raise InputError(got=f"{flag} and --over {dimension.name}=…", expected="one of them", do="leave the other out")
            for value in dimension.corners:
                self.student({dimension.name: value})  # refuses what the student would refuse

    @property
    def space(self) -> tuple[Dimension, ...]:
        """What is chosen, in the order given."""
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
        """Return the options of a student with these parameters in place of its own."""
        return StudentOptions(**{field.name: getattr(self, field.name) for field in fields(StudentOptions)} | parameters)


def dimension_of(written: str) -> Dimension:
    """Read ``name=low:high``, ``name=low:high:log`` or ``name=a,b,c``.

    Raises:
        InputError: it is not of that form, the name is no option that can be swept, or a value is none of the option's.
    """
    name, _, values = written.partition("=")
    if not values:
        raise InputError(got=f"--over {written}", expected="NAME=LOW:HIGH or NAME=A,B,C", do="give for instance temperature=1:10")
    if name not in SWEPT:
        raise InputError(got=f"--over {written}", expected=f"one of {', '.join(SWEPT)}", do=nearest(name, SWEPT))
    if "," in values:
        choices = tuple(_value(name, one, written) for one in values.split(","))
        if len(set(choices)) < len(choices):
            raise InputError(got=f"--over {written}", expected="different choices", do="name each once")
        return Dimension(name=name, choices=choices)
    ends, is_log = (values.removesuffix(":log"), True) if values.endswith(":log") else (values, False)
    numbers = [_value(name, one, written) for one in ends.split(":")]
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
        wanted = "whole numbers" if number is int else "numbers"
        raise InputError(got=f"{written!r} in --over {whole}", expected=wanted, do="give for instance " + f"{name}=1:10")
    return value


def flags_of(options: CorpusOptions) -> list[str]:
    """Return the flags that give these options again: those that differ from their defaults, and those that have none."""
    flags: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        if field.default is MISSING or value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            flags += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return flags
