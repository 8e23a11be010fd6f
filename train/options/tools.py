"""The flags of ``python -m train evaluate``, ``onnx``, ``audit`` and ``report``. Imports nothing heavy."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from lugpi_core.corpora.options import CorpusOptions, RunOptions, suffix_of
from lugpi_core.errors import InputError
from lugpi_core.remote.address import address_of
from lugpi_core.runtime.device import DeviceChoice, DtypeChoice, require_seed
from train.options.tables import require_processes
from train.options.training import require_model_name

TEXT_SUFFIX = ".txt"
# The most images that inspect keeps.
MOST_EXAMPLES = 500
FEWEST_SHADOWS = 4


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Label the texts of a file with a finished student or baseline, and score it if the file has labels."""

    model: Path
    """Folder of the classifier, such as runs/20ng/student or s3://BUCKET/RUN/student, or any Hugging Face sequence classifier's."""
    input: Path
    """Texts: a file (.txt with a text a line; .csv, .tsv, .json, .jsonl, .parquet; .gz too)."""
    output: Path | None = None
    """CSV with id, label and the probability of each class (default: <input's name>.predictions.csv next to the input)."""
    text_column: str = "text"
    """The column with the text."""
    text_pair_column: str | None = None
    """The column with the second text, for a model of pairs of texts."""
    label_column: str | None = None
    """The column with the label; the scores of the model's task are reported, such as accuracy and macro-F1 (default: label, if the file
    has one). Multi-label models: also a column of 0 and 1 for each class, as toxic,insult,threat. none: the file has no labels."""
    label_separator: str | None = None
    """Multi-label models: what stands between the labels of a cell, in the input and in the output (default: |)."""
    batch_size: int = 64
    """Texts in one forward pass."""
    max_length: int | None = None
    """Cut texts to that many tokens (default: what the model was trained to read)."""
    device: DeviceChoice = "auto"
    """Where to compute; auto = CUDA if available."""
    dtype: DtypeChoice = "auto"
    """Precision of the forward pass; auto is bfloat16 on CUDA, float32 on the CPU."""
    scratch: Path | None = None
    """With a --model in an object store: the folder where its files are kept (default: below ~/.cache/lugpi)."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(got=f"--batch-size {self.batch_size}", expected="at least 1", do="give a positive number")
        if self.max_length is not None and self.max_length < 2:
            raise InputError(got=f"--max-length {self.max_length}", expected="at least 2", do="leave it out for the longest")
        others = {"--label-column": self.label_column, "--text-pair-column": self.text_pair_column}
        for flag, column in others.items():
            if column is not None and suffix_of(self.input) == TEXT_SUFFIX:
                raise InputError(
                    got=f"{flag} {column} for {self.input}",
                    expected="a file with columns",
                    do="give a .csv, .tsv, .json, .jsonl or .parquet, or leave it out",
                )
            if column == self.text_column:
                raise InputError(got=f"{flag} and --text-column both {column}", expected="two columns", do="name the column of each")
        if self.label_column is not None and self.label_column == self.text_pair_column:
            raise InputError(
                got=f"--label-column and --text-pair-column both {self.label_column}", expected="two columns", do="name the column of each"
            )
        if self.label_separator == "":
            raise InputError(got="an empty --label-separator", expected="what stands between labels", do="leave it out for |")
        if self.written.resolve() == self.input.resolve():
            raise InputError(got=f"--output {self.written}, which is the input", expected="another file", do="give another --output")

    @property
    def separator(self) -> str:
        """What stands between the labels of a cell."""
        return self.label_separator or "|"

    @property
    def written(self) -> Path:
        """The file to write."""
        return self.output or self.input.with_name(f"{self.input.stem}.predictions.csv")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Export a finished student or baseline as one ONNX file, and check that onnxruntime computes the same logits."""

    model: Path
    """Folder of the classifier, such as runs/20ng/student, or any Hugging Face sequence classifier's."""
    output: Path | None = None
    """The file (default: model.onnx in the model's folder)."""
    int8: bool = False
    """Also write an int8 file, a quarter of the size (model.int8.onnx), and compare both on the validation split."""

    def __post_init__(self) -> None:
        if address := address_of(self.model):
            raise InputError(
                got=f"--model {address}",
                expected="a local folder, beside which the file is written",
                do="copy the model with the store's own tool first, and give its folder",
            )

    @property
    def written(self) -> Path:
        """The file to write."""
        return self.output or self.model / "model.onnx"

    @property
    def written_int8(self) -> Path:
        """The int8 file to write."""
        return self.written.with_name(f"{self.written.stem}.int8{self.written.suffix}")


@dataclass(frozen=True, kw_only=True)
class AuditOptions(RunOptions, CorpusOptions):
    """Membership inference: how well an attacker can tell which texts a model of the run was trained on.

    Members are the train texts, non-members the test texts; validation texts chose the epoch and are neither. Three attacks: a threshold on
    the loss, a classifier that learns from shadows (Shokri et al. 2017), and LiRA in its offline form (Carlini et al. 2022). Shadows are
    models with the settings of the audited one, on halves of the train texts, in the folder audit of the run. A student's are distilled
    from shadows of its teachers on the same halves. So 16 shadows cost 8 trainings of each model, and of a student's teachers too.
    Finished shadows are kept and interrupted ones resumed; the same command may run in several processes at once.
    """

    models: tuple[str, ...] = ()
    """Which models: rows of the tables, each with all its seeds, or folders of models (default: the baseline, and the first teacher and
    student of the tables). baseline teacher-none: without the cost of students."""
    shadows: int = 16
    """How many shadows of each model, an even number: each train text is unseen by half of them."""
    seed: int = 0
    """Seed of the halves and of the shadows."""
    processes: int | None = None
    """How many shadows are trained at once, each in a process of its own (default: on the CPU as many as torch has threads, as far as
    memory reaches; on a GPU one)."""
    device: DeviceChoice = "auto"
    """Where to compute, in the precision of the audited models; auto = CUDA if available."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        require_processes(self.processes)
        if self.shadows < FEWEST_SHADOWS or self.shadows % 2:
            raise InputError(
                got=f"--shadows {self.shadows}",
                expected=f"an even number, {FEWEST_SHADOWS} or more: two of them share out the train texts, and a spread needs two pairs",
                do="give for instance 16",
            )
        if len(set(self.models)) < len(self.models):
            raise InputError(got=" ".join(("--models", *self.models)), expected="different models", do="name each once")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.run_of(self.dataset, self.limit)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(RunOptions, CorpusOptions):
    """Write a run as one self-contained HTML page, its report.html: tables, curves, calibration, errors, and examples with their images.

    The images are those that python -m featurize inspect kept.
    """

    student: str | None = None
    """Folder of the student whose predictions are shown next to its teacher's and the baseline's (default: the first of the tables)."""
    examples: int = 200
    """Number of test examples shown with their texts: those with an image first, taken in turn from every pattern of right and wrong
    predictions."""
    seed: int = 0
    """Seed of the choice among the examples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        if not 0 <= self.examples <= MOST_EXAMPLES:
            raise InputError(got=f"--examples {self.examples}", expected=f"0 to {MOST_EXAMPLES}", do="give for instance 200")
        if self.student is not None:
            require_model_name(self.student, flag="--student")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.run_of(self.dataset, self.limit)

    @property
    def written(self) -> Path:
        """The file to write."""
        return self.run / "report.html"


def flags_of(options: CorpusOptions) -> list[str]:
    """Return the flags that reproduce these options: those that differ from their defaults, and those without a default."""
    flags: list[str] = []
    for field in fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", "-")
        if field.default is not MISSING and value == field.default:
            continue
        if isinstance(value, bool):  # a switch takes no value
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", *map(_word, value if isinstance(value, tuple) else (value,))]
    return flags


def _word(value: object) -> str:
    """Return what a user writes for a value; of an address, a Path has one slash less."""
    address = address_of(value) if isinstance(value, Path) else None
    return address or str(value)
