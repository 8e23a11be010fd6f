"""The flags of ``python -m train baseline``, ``images`` and ``teacher``. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.options import CorpusOptions, RunOptions, require_folds
from lugpi_core.errors import InputError
from train.options.settings import TEXT_MODEL, DevicePlacement, Optimization, OutputsDtype, Placement, Privileged

SHOTS = "shots-"  # begins the names of the folders with models of a few shots
ANCHORS = "anchors"  # the folder of a run with what earlier models answer
# Folders of a run that are not models.
_NOT_MODELS = (".", "..", "token-ids", "prefix", "sweep", "audit", ANCHORS)


def require_model_name(name: str, *, flag: str) -> None:
    """Raise InputError unless a model's folder in the run can have that name."""
    if not name or Path(name).name != name or name in _NOT_MODELS or name.startswith(("tokens", SHOTS)):
        raise InputError(
            got=f"{flag} {name}",
            expected=f"a plain folder name, not {', '.join(_NOT_MODELS[2:-1])} or {ANCHORS}, and not beginning with tokens or {SHOTS}",
            do="give for instance teacher-vit",
        )


def folds_suffix(folds: int | None) -> str:
    """Return what ends the names of teachers and rows with that many folds; nothing without folds."""
    return "" if folds is None else f"-folds{folds}"


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DevicePlacement, Optimization, RunOptions, CorpusOptions):
    """The flags of every command that trains models. The help lists the fields of the last base first."""

    text_model: str = TEXT_MODEL
    """Any encoder or decoder that transformers classifies texts with: its name on the Hugging Face hub, a folder, or demo. Baseline,
    teacher and student of one comparison have the same one."""
    max_length: int | None = None
    """Cut texts to that many tokens (default: what the text model reads, 512 at most)."""

    def __post_init__(self) -> None:
        CorpusOptions.__post_init__(self)
        Optimization.__post_init__(self)

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.run_of(self.dataset, self.limit)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Placement, TrainOptions):
    """The flags of every command that trains one model."""

    name: str | None = None
    """Name of the model's folder in the run (default: the command's name)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None:
            require_model_name(self.name, flag="--name")


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(ModelOptions):
    """Fine-tune the text model alone: what the student has to beat."""


@dataclass(frozen=True, kw_only=True)
class TokensOptions(ModelOptions):
    """The flags of models that read image tokens."""

    image_tokens: str | None = None
    """Which tokens of the store to read, such as clip-vit-b32 (default: the only ones there)."""


@dataclass(frozen=True, kw_only=True)
class ImagesOptions(TokensOptions):
    """Classify from the image tokens alone: the image-only rows of the paper's Table 1.

    No text is read. Of --text-model only the width is taken, that of the fusion block, so that the teacher's is the same.
    """


@dataclass(frozen=True, kw_only=True)
class TeacherOptions(TokensOptions):
    """Train the multimodal teacher on text and image tokens, and write its outputs for the student."""

    privileged: Privileged = "images"
    """What it reads in addition to the text: the example's own images, or, as controls, the vectors of the generator's text encoder
    (featurize --encoders prompt-text), images of other examples, blank ones, or none."""
    outputs_dtype: OutputsDtype = "float32"
    """How its embeddings are stored for the student; float16 takes half the disk."""
    folds: int | None = None
    """Cross-fitting: train that many more teachers, each without one fold of the train texts; a student reads of each train text what the
    teacher that has not seen it says, and of all others what the teacher on all says (default: that of every text)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_folds(self.folds)
