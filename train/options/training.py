"""The flags of ``python -m train``: what each means, its default and its check are written here, once. Imports nothing heavy."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from lugpi_core.corpora.options import CorpusOptions, default_run_dir
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import DeviceChoice, require_seed

CompileChoice = Literal["auto", "on", "off"]
# Folders of a run that are no models.
_NOT_MODELS = (".", "..", "token-ids", "sweep")


def require_model_name(name: str, *, flag: str) -> None:
    """Raise InputError unless a model's folder in the run can have that name."""
    if not name or Path(name).name != name or name in _NOT_MODELS or name.startswith("tokens"):
        raise InputError(
            got=f"{flag} {name}",
            expected="a plain folder name other than token-ids and sweep, and not beginning with tokens",
            do="give for instance teacher-vit",
        )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(CorpusOptions):
    """What every kind of model is trained with."""

    run_dir: Path | None = None
    """Folder of the run (default: runs/<dataset>)."""
    name: str | None = None
    """Name of the model's folder in the run (default: the command's name)."""
    text_model: str = "distilbert-base-uncased"
    """Any encoder of the Hugging Face hub, a folder, or demo. Baseline, teacher and student must use the same one."""
    max_length: int | None = None
    """Cut texts to that many tokens (default: what the text model reads, 512 at most)."""
    epochs: int = 100
    """Passes over the training split; the checkpoint with the best validation accuracy is kept."""
    batch_size: int = 14
    """Examples in one step."""
    learning_rate: float = 5e-5
    """Peak of AdamW's rate; it falls linearly to zero."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    optimizer: Literal["auto", "adamw8bit", "adamw"] = "auto"
    """Bitsandbytes' 8-bit AdamW, whose state takes a quarter of the memory, or torch's fused AdamW; auto takes the former on CUDA, the
    latter on the CPU, where it is forty times as fast."""
    max_grad_norm: float = 1.0
    """Longer gradients are cut to this norm; 0 leaves them alone."""
    gradient_accumulation_steps: int = 1
    """In how many forward passes a step's examples are taken, for cards that do not hold them at once."""
    patience: int | None = None
    """Stop after that many epochs without a better validation accuracy (default: never; the rate falls over all --epochs)."""
    seed: int = 0
    """Seed of new weights, of the order of the batches and of dropout."""
    checkpoint_minutes: float = 5.0
    """How often training is written down so far; 0 after every step (several processes agree on it every 50 steps). Ctrl-C and SIGTERM
    write it too."""
    compile: CompileChoice = "auto"
    """Compile the text encoder; auto does on CUDA when the run is long enough to pay for it."""
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers beside log.jsonl, which is always written."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass; weights stay float32. Auto is bfloat16 on CUDA (float16 where the card has none), float32 on the
    CPU, where bfloat16 is faster if the processor multiplies it (AVX512-BF16, AMX)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(got=f"--{name.replace('_', '-')} {value}", expected="at least 1", do="give a positive number")
        if not (self.learning_rate > 0 and isfinite(self.learning_rate)):
            raise InputError(got=f"--learning-rate {self.learning_rate}", expected="a positive rate", do="give for instance 5e-5")
        for name, sensible in (("weight_decay", "0.01"), ("max_grad_norm", "1"), ("checkpoint_minutes", "5")):
            if not ((value := getattr(self, name)) >= 0 and isfinite(value)):
                raise InputError(got=f"--{name.replace('_', '-')} {value}", expected="0 or more", do=f"give for instance {sensible}")
        if self.name is not None:
            require_model_name(self.name, flag="--name")

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.run_dir or default_run_dir(self.dataset, self.limit)


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(TrainOptions):
    """Fine-tune the text model alone: what the student has to beat."""


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(TrainOptions):
    """Where the image tokens of models that see pictures are."""

    tokens_on: Literal["auto", "device", "pinned", "disk"] = "auto"
    """Where image tokens are while training: on the device, in page-locked memory, or on disk, read ahead through the page cache. Auto
    takes the first that has room for all of them (on the CPU the disk)."""


@dataclass(frozen=True, kw_only=True)
class TokensOptions(PlaceOptions):
    """What models that see pictures are trained with beside."""

    image_tokens: str | None = None
    """Which tokens of the store to read, such as clip-vit-b32 (default: the only ones there)."""


@dataclass(frozen=True, kw_only=True)
class ImagesOptions(TokensOptions):
    """Classify from the image tokens alone: the image-only rows of the paper's Table 1."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(TokensOptions):
    """Train the multimodal teacher on text and image tokens, and write its outputs for the student."""

    privileged: Literal["images", "shuffled", "blank", "none"] = "images"
    """What it sees beside the text: the example's own images, or, as controls, those of other examples, blank ones, or none at all."""
    outputs_dtype: Literal["float32", "float16"] = "float32"
    """How its embeddings are kept for the student; float16 takes half the disk."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TrainOptions):
    """The loss that students are distilled with."""

    kd_preset: Literal["paper", "hinton", "lopez-paz"] = "paper"
    """Loss: paper (Eq. 2: CE + 3·soft CE at τ = 8 on the teacher only + 1·MSE of the embeddings), hinton (both softened, τ²), lopez-paz."""
    hard: float | None = None
    """Weight of the cross-entropy with the label (default: the preset's)."""
    alpha: float | None = None
    """Weight of the cross-entropy with the teacher's softened output (default: the preset's)."""
    beta: float | None = None
    """Weight of the distance to the teacher's embedding (default: the preset's)."""
    temperature: float | None = None
    """Temperature τ of the softened outputs (default: the preset's)."""
    embedding_loss: Literal["mse", "sum-of-squares", "cosine"] = "mse"
    """Distance of the embeddings: mean over the dimensions of the squared differences, their sum, or 1 - cosine. Where the widths of
    student and teacher differ, a Linear between them is learnt and left behind."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hard", "alpha", "beta"):
            if (value := getattr(self, name)) is not None and not (value >= 0 and isfinite(value)):
                raise InputError(got=f"--{name} {value}", expected="a weight of 0 or more", do="give for instance 1")
        if self.temperature is not None and not (self.temperature > 0 and isfinite(self.temperature)):
            raise InputError(got=f"--temperature {self.temperature}", expected="a positive temperature", do="give for instance 8")


@dataclass(frozen=True, kw_only=True)
class StudentOptions(DistillationOptions):
    """Distil a text-only student from the cached outputs of one teacher or several."""

    teachers: tuple[str, ...] = ("teacher",)
    """Names of the teachers' folders in the run."""
    teacher_weights: tuple[float, ...] = ()
    """Each teacher's share of the soft terms (default: equal ones)."""
    unlabelled: Path | None = None
    """Texts without labels (.txt, .csv, .jsonl, .parquet) that featurize --unlabelled drew images for: the student learns them from the
    teachers alone."""
    student_layers: int | None = None
    """Keep only that many layers of the text model, evenly spaced (default: all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.student_layers is not None and self.student_layers < 1:
            raise InputError(got=f"--student-layers {self.student_layers}", expected="at least 1", do="give for instance 3")
        self._require_teachers()

    def _require_teachers(self) -> None:
        for name in self.teachers:
            require_model_name(name, flag="--teachers")
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise InputError(
                got=f"--teachers {' '.join(self.teachers)}", expected="one name or several different ones", do="name each once"
            )
        weights = self.teacher_weights
        if weights and (len(weights) != len(self.teachers) or not all(weight > 0 and isfinite(weight) for weight in weights)):
            raise InputError(
                got=f"--teacher-weights {' '.join(map(str, weights))} for {len(self.teachers)} teachers",
                expected="a positive weight for each",
                do="give for instance 0.5 0.5",
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """Each teacher's weight; they sum to 1."""
        weights = self.teacher_weights or (1.0,) * len(self.teachers)
        return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True, kw_only=True)
class TablesOptions(DistillationOptions, PlaceOptions):
    """Train every model of the paper's tables and of their controls, and print the tables with significance.

    What is finished in the run under any name is taken, what was interrupted goes on, the rest is trained. The same command may run in
    several processes at once, for instance one a card.
    """

    name: str | None = None
    """Not for tables: every model is named after its row."""
    seeds: int = 3
    """How many seeds each row is trained with, --seed being the first."""
    rows: tuple[str, ...] = ("all",)
    """Which rows: table1, table2, controls, unlabelled (with --unlabelled) or all of them, or single rows, such as student-clip-vit-b32 or
    teacher-none. What a row needs is trained too."""
    columns: tuple[str, ...] = ()
    """Which tokens of the store get rows of their own (default: all, those of CLIP first); shuffled and blank images are the first's."""
    unlabelled: Path | None = None
    """Texts without labels that featurize --unlabelled drew images for: adds students that the teachers of images, and the text-only
    teacher as their control, teach of these texts too."""
    train: bool = True
    """Train what is missing; --no-train shows what the run holds, whatever it was trained with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None:
            raise InputError(got=f"--name {self.name}", expected="no name: every model is named after its row", do="leave it out")
        if self.seeds < 1:
            raise InputError(got=f"--seeds {self.seeds}", expected="at least 1", do="give for instance 3")
        require_seed(self.seed + self.seeds - 1)
        for flag, names in (("--rows", self.rows), ("--columns", self.columns)):
            if len(set(names)) < len(names) or (flag == "--rows" and not names):
                raise InputError(got=" ".join((flag, *names)), expected="one name or several different ones", do="name each once")

    @property
    def each_seed(self) -> range:
        """The seeds, ascending."""
        return range(self.seed, self.seed + self.seeds)
