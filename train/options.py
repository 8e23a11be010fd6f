"""The flags of ``python -m train``: what each means, its default and its check are written here, once. Imports nothing heavy."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from lugpi_core.corpus_options import CorpusOptions, default_run_dir
from lugpi_core.device import DeviceChoice, require_seed
from lugpi_core.errors import InputError


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
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or bitsandbytes' 8-bit AdamW, whose state takes a quarter of the memory."""
    seed: int = 0
    """Seed of new weights, of the order of the batches and of dropout."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the forward pass; weights stay float32. Auto is bfloat16 on CUDA, float32 on the CPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(
                    got=f"--{name.replace('_', '-')} {getattr(self, name)}", expected="at least 1", do="give a positive number"
                )
        if not (self.learning_rate > 0 and isfinite(self.learning_rate)):
            raise InputError(got=f"--learning-rate {self.learning_rate}", expected="a positive rate", do="give for instance 5e-5")
        if not (self.weight_decay >= 0 and isfinite(self.weight_decay)):
            raise InputError(got=f"--weight-decay {self.weight_decay}", expected="0 or more", do="give for instance 0.01")
        if self.name is not None and (not self.name or Path(self.name).name != self.name or self.name in ("tokens", ".", "..")):
            raise InputError(
                got=f"--name {self.name}", expected="a plain folder name other than tokens", do="give for instance teacher-vit"
            )

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.run_dir or default_run_dir(self)


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(TrainOptions):
    """Fine-tune the text model alone: what the student has to beat."""


@dataclass(frozen=True, kw_only=True)
class TokensOptions(TrainOptions):
    """What models that see pictures are trained with beside."""

    image_tokens: str | None = None
    """Which tokens of the store to read, such as clip-vit-b32 (default: the only ones there)."""
    tokens_on: Literal["auto", "device", "pinned", "disk"] = "auto"
    """Where image tokens are while training: on the device, in page-locked memory, or on disk, read ahead through the page cache. Auto
    takes the first that has room for all of them (on the CPU the disk)."""


@dataclass(frozen=True, kw_only=True)
class ImagesOptions(TokensOptions):
    """Classify from the image tokens alone: the image-only rows of the paper's Table 1."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(TokensOptions):
    """Train the multimodal teacher on text and image tokens, and write its outputs for the student."""


@dataclass(frozen=True, kw_only=True)
class StudentOptions(TrainOptions):
    """Distil a text-only student from a teacher's cached outputs."""

    teacher: str = "teacher"
    """Name of the teacher's folder in the run."""
    kd_preset: Literal["paper", "hinton", "lopez-paz"] = "paper"
    """Loss: paper (Eq. 2: CE + 3·soft CE at τ = 8 on the teacher only + 1·MSE of the embeddings), hinton (both softened, τ²), lopez-paz."""
    hard: float | None = None
    """Weight of the cross-entropy with the label (default: the preset's)."""
    alpha: float | None = None
    """Weight of the cross-entropy with the teacher's softened output (default: the preset's)."""
    beta: float | None = None
    """Weight of the squared distance to the teacher's embedding (default: the preset's)."""
    temperature: float | None = None
    """Temperature τ of the softened outputs (default: the preset's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hard", "alpha", "beta"):
            if (value := getattr(self, name)) is not None and not (value >= 0 and isfinite(value)):
                raise InputError(got=f"--{name} {value}", expected="a weight of 0 or more", do="give for instance 1")
        if self.temperature is not None and not (self.temperature > 0 and isfinite(self.temperature)):
            raise InputError(got=f"--temperature {self.temperature}", expected="a positive temperature", do="give for instance 8")


@dataclass(frozen=True, kw_only=True)
class TablesOptions(CorpusOptions):
    """Print the models of a run side by side: accuracy, macro-F1 and McNemar's test against the baseline."""

    run_dir: Path | None = None
    """Folder of the run (default: runs/<dataset>)."""

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.run_dir or default_run_dir(self)
