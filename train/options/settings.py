"""Settings of a training: the name, default, help and check of each knob. Flags inherit them; the Python API takes them as they are."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from lugpi_core.errors import InputError
from lugpi_core.fields import check_fields
from lugpi_core.runtime.device import DeviceChoice, DtypeChoice, require_seed

ClassWeights = Literal["none", "balanced"]
CompileChoice = Literal["auto", "on", "off"]
EmbeddingLoss = Literal["mse", "sum-of-squares", "cosine", "infonce"]
KdExtra = Literal["none", "bss"]
OptimizerChoice = Literal["auto", "adamw8bit", "adamw"]
OutputsDtype = Literal["float32", "float16"]
PrefixDtype = Literal["float16", "float32"]
Preset = Literal["paper", "hinton", "lopez-paz"]
Privileged = Literal["images", "text", "shuffled", "blank", "none"]
SeveralImages = Literal["drawn", "mean", "weighted", "best"]
# Of these, those that need the images' CLIP scores.
READS_SCORES: tuple[SeveralImages, ...] = ("weighted", "best")
TokensOn = Literal["auto", "device", "pinned", "disk"]
Tracker = Literal["tensorboard", "wandb"]
Update = Literal["full", "head", "lp-ft"]

# Of the boundary samples: where the authors' schedule begins.
KD_EXTRA_WEIGHT = 2.0
TEXT_MODEL = "distilbert-base-uncased"


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How a model is optimized. All of it but ``checkpoint_minutes`` decides which model comes out.

    Raises:
        InputError: a value is of another type or out of its range.
    """

    epochs: int = 100
    """Passes over the training split; the weights with the best validation score are kept: accuracy, macro-F1 (multi-label) or Spearman's
    correlation (regression)."""
    batch_size: int = 14
    """Examples per optimizer step."""
    learning_rate: float = 5e-5
    """Peak learning rate of AdamW; it decays linearly to zero."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    optimizer: OptimizerChoice = "auto"
    """bitsandbytes' 8-bit AdamW, whose state takes a quarter of the memory, or torch's fused AdamW; auto takes the former on CUDA and the
    latter on the CPU, where it is forty times faster."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 = no clipping."""
    gradient_accumulation_steps: int = 1
    """Number of forward passes a batch is split into, for GPUs without the memory for the whole batch."""
    patience: int | None = None
    """Stop after that many epochs without a better validation score (default: never; the rate decays over all --epochs)."""
    class_weights: ClassWeights = "none"
    """balanced: rare classes weigh more in the loss on the labels, each as much in total as the others (multi-label: each class's positive
    examples as much as its negative ones), and macro-F1 decides which epoch is the best."""
    several_images: SeveralImages = "drawn"
    """What a model that reads images sees of a text with several: drawn = in each epoch one at random, for its predictions the first;
    mean = always the mean of their tokens, each distinct image counting once and failed ones not at all; weighted = that mean weighted by
    the softmax of the images' CLIP scores at the encoder's own logit scale; best = always the image of the highest score. The last two
    read what python -m featurize score has written."""
    redraw: int | None = None
    """With --several-images drawn: keep the image of a text for that many epochs, then take the next of its different ones, and after the
    last one the first again, every text in an order of its own (default: in each epoch one at random)."""
    update: Update = "full"
    """What is trained: full = the text encoder too; head = only what comes after its layers, on class vectors that are computed once, so
    that epochs are much shorter; lp-ft = the head first (--epochs at --head-learning-rate), then everything from there."""
    head_learning_rate: float = 1e-3
    """Peak learning rate of the first part of lp-ft."""
    freeze_layers: int = 0
    """Freeze the embeddings and that many first layers of the text encoder, without dropout: their hidden states are computed once, kept in
    the run (prefix), and read in every epoch of every model and seed. 0 = train all layers."""
    prefix_dtype: PrefixDtype = "float16"
    """How these hidden states are stored; float32 takes twice the disk, for text models whose states are beyond float16."""
    seed: int = 0
    """Seed of the new weights, of the order of the batches and of dropout."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints; 0 = after every step. Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 write one too, and end the run."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_seed(self.seed)
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(got=f"--{name.replace('_', '-')} {value}", expected="at least 1", do="give a positive number")
        if self.redraw is not None:
            self._require_redrawing(self.redraw)
        if self.freeze_layers < 0:
            raise InputError(got=f"--freeze-layers {self.freeze_layers}", expected="0 or more", do="give for instance 3")
        if not (self.learning_rate > 0 and isfinite(self.learning_rate)):
            raise InputError(got=f"--learning-rate {self.learning_rate}", expected="a positive rate", do="give for instance 5e-5")
        if not (self.head_learning_rate > 0 and isfinite(self.head_learning_rate)):
            raise InputError(got=f"--head-learning-rate {self.head_learning_rate}", expected="a positive rate", do="give for instance 1e-3")
        if self.update == "head" and self.freeze_layers:
            raise InputError(
                got=f"--update head and --freeze-layers {self.freeze_layers}", expected="one of them", do="leave --freeze-layers out"
            )
        for name, sensible in (("weight_decay", "0.01"), ("max_grad_norm", "1"), ("checkpoint_minutes", "5")):
            if not ((value := getattr(self, name)) >= 0 and isfinite(value)):
                raise InputError(got=f"--{name.replace('_', '-')} {value}", expected="0 or more", do=f"give for instance {sensible}")

    def _require_redrawing(self, redraw: int) -> None:
        if self.several_images != "drawn":
            raise InputError(
                got=f"--redraw {redraw} with --several-images {self.several_images}, which reads the same in every epoch",
                expected="--several-images drawn",
                do="leave one of them out",
            )
        if not 1 <= redraw < self.epochs:
            raise InputError(
                got=f"--redraw {redraw} with --epochs {self.epochs}",
                expected="1 or more, and fewer than the epochs, so that a second image is read",
                do="give more --epochs, or leave --redraw out" if self.epochs == 1 else "give for instance --redraw 1",
            )


@dataclass(frozen=True, kw_only=True)
class DevicePlacement:
    """What a model is trained on, and which trackers follow it.

    Raises:
        InputError: a value is of another type, or none of the choices.
    """

    device: DeviceChoice = "auto"
    """Where to compute; auto = CUDA if available."""
    dtype: DtypeChoice = "auto"
    """Precision of the forward pass; weights stay float32. Auto is bfloat16 on CUDA (float16 if the GPU has no bfloat16), float32 on the
    CPU, where bfloat16 is faster only on processors that multiply it (AVX512-BF16, AMX)."""
    compile: CompileChoice = "auto"
    """Compile the text encoder; auto = on CUDA, for trainings of 20,000 steps or more."""
    track: tuple[Tracker, ...] = ()
    """Trackers in addition to log.jsonl, which is always written."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Placement(DevicePlacement):
    """``DevicePlacement``, and where image tokens and hidden states of frozen layers are."""

    tokens_on: TokensOn = "auto"
    """Where image tokens and hidden states of frozen layers are during training: on the device, in page-locked memory, or on disk, read
    ahead through the page cache. Auto takes the first with room for all of them (on the CPU: the disk)."""


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """The distillation loss: a preset, and what replaces its weights.

    Raises:
        InputError: a value is of another type, a weight is negative, or the temperature is not positive.
    """

    kd_preset: Preset = "paper"
    """Loss: paper (Eq. 2: CE + 3·soft CE at τ = 8 on the teacher only + 1·MSE of the embeddings), hinton (both softened, τ²), lopez-paz."""
    hard: float | None = None
    """Weight of the cross-entropy with the label (default: the preset's)."""
    alpha: float | None = None
    """Weight of the cross-entropy with the teacher's softened output (default: the preset's)."""
    beta: float | None = None
    """Weight of the distance to the teacher's embedding (default: the preset's)."""
    temperature: float | None = None
    """Temperature τ of the softened outputs (default: the preset's)."""
    predict_image: float = 0.0
    """Weight of the distance between the teacher's image vector (V_CLS) and what a Linear predicts of it from the student's embedding; the
    Linear is discarded afterwards. 0 = nothing is predicted."""
    embedding_loss: EmbeddingLoss = "mse"
    """Distance of embeddings, and of --predict-image: mean over the dimensions of the squared differences, their sum, 1 - cosine, or the
    contrastive InfoNCE, by which a text is nearer to its own embedding of the teacher than to those of the other texts of the batch. If
    student and teacher have different widths, a Linear between them is trained and discarded afterwards."""
    kd_extra: KdExtra = "none"
    """bss: one more soft label, at samples behind the teacher's decision boundary, to which a step in the student's space of embeddings
    leads from each text that the teacher answers right."""
    kd_extra_weight: float = KD_EXTRA_WEIGHT
    """Weight of --kd-extra."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("hard", "alpha", "beta"):
            if (value := getattr(self, name)) is not None and not (value >= 0 and isfinite(value)):
                raise InputError(got=f"--{name} {value}", expected="a weight of 0 or more", do="give for instance 1")
        if not (self.predict_image >= 0 and isfinite(self.predict_image)):
            raise InputError(got=f"--predict-image {self.predict_image}", expected="a weight of 0 or more", do="give for instance 1")
        if not (self.kd_extra_weight > 0 and isfinite(self.kd_extra_weight)):
            raise InputError(got=f"--kd-extra-weight {self.kd_extra_weight}", expected="a weight above 0", do="give for instance 1")
        self._require_kd_extra()
        if self.temperature is not None and not (self.temperature > 0 and isfinite(self.temperature)):
            raise InputError(got=f"--temperature {self.temperature}", expected="a positive temperature", do="give for instance 8")

    def _require_kd_extra(self) -> None:
        """Raise InputError if a weight has nothing that it weighs."""
        if self.kd_extra == "none" and self.kd_extra_weight != KD_EXTRA_WEIGHT:
            raise InputError(
                got=f"--kd-extra-weight {self.kd_extra_weight} without --kd-extra", expected="what it weighs", do="add --kd-extra bss"
            )
