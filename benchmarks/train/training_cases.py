"""Trainings to measure: real architectures with random weights, random texts of given lengths, random image tokens.

Shapes: N texts, B of them in a batch, L text tokens, T image tokens, I width of the image tokens, K classes, D embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lugpi_core.runtime.device import Compute, resolve_compute
from lugpi_core.store.reader import Rows
from train.data.privileged import PrivilegedImages
from train.data.teacher_outputs import TeacherOutputs
from train.data.token_ids import TokenIds
from train.data.training_data import Batch, TrainingData
from train.learning.distributed import Processes
from train.learning.loop import Learner, Training
from train.learning.losses import KD_PRESETS, TeacherTarget, distillation_loss
from train.learning.networks import FusionHead, Output, Student, Teacher, TextClassifier
from train.models.kinds import label_loss
from train.options.settings import DevicePlacement, Optimization, OptimizerChoice

CLASSES = 20
VOCABULARY = 30522


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """The shape of an open_clip vision tower and of its tokens."""

    name: str
    tokens: int
    width: int


ENCODERS = (
    Encoder(name="ViT-B-32", tokens=50, width=768),
    Encoder(name="ViT-B-16", tokens=197, width=768),
    Encoder(name="ViT-L-14", tokens=257, width=1024),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """DistilBERT's own sizes, or smaller ones."""

    dim: int = 768
    hidden_dim: int = 3072
    n_layers: int = 6
    n_heads: int = 12


SMALL = Sizes(dim=64, hidden_dim=128, n_layers=1, n_heads=4)


class RandomTokens:
    """Image tokens in memory, float16 [N, T, I], like those of a store with a warm page cache."""

    place = "memory"

    def __init__(self, count: int, encoder: Encoder, device: torch.device) -> None:
        self._tokens_NTI = torch.randn(count, encoder.tokens, encoder.width).half().to(device)

    def gather(self, drawings: NDArray[np.int64]) -> torch.Tensor:
        """Return float16 [B, T, I]."""
        return self._tokens_NTI[torch.from_numpy(drawings).to(self._tokens_NTI.device)]

    def ahead(self, batches: Sequence[NDArray[np.int64]]) -> Iterator[Rows]:
        """Yield the batches; all rows are in memory."""
        return iter(batches)


def text_config(sizes: Sizes) -> Any:
    """Return a DistilBERT configuration."""
    from transformers import DistilBertConfig

    return DistilBertConfig(num_labels=CLASSES, vocab_size=VOCABULARY, **vars(sizes))


def classifier(sizes: Sizes) -> Any:
    """Return DistilBERT with a classification head, random weights."""
    config = text_config(sizes)
    from transformers import DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(config)


def teacher(sizes: Sizes, encoder: Encoder) -> Teacher:
    """Return the paper's teacher over DistilBERT, random weights."""
    config = text_config(sizes)
    from transformers import DistilBertModel

    return Teacher(DistilBertModel(config), FusionHead(text_width=sizes.dim, image_width=encoder.width, classes=CLASSES))


def data_of(
    lengths_N: NDArray[np.int64], device: torch.device, *, encoder: Encoder | None = None, embedding_width: int | None = None
) -> TrainingData:
    """Return random texts of the lengths with random labels, image tokens if an encoder is given, and the outputs of a teacher if their
    width is."""
    count = len(lengths_N)
    flat_S = torch.randint(1000, VOCABULARY, (int(lengths_N.sum()),), dtype=torch.int32)
    images = None
    if encoder is not None:
        images = PrivilegedImages(source=RandomTokens(count, encoder, device), drawings=np.arange(count)[:, None], seed=0)
    teachers: tuple[TeacherOutputs, ...] = ()
    if embedding_width is not None:
        outputs = TeacherOutputs(logits=torch.randn(count, CLASSES), embeddings=torch.randn(count, embedding_width), teacher="random")
        teachers = (outputs.to(device),)
    return TrainingData(
        device=device,
        labels=torch.randint(0, CLASSES, (count,)).to(device),
        texts=TokenIds(flat_S, lengths_N, pad=0, device=device),
        images=images,
        teachers=teachers,
    )


def compute_here() -> Compute:
    """Return CUDA in bfloat16 if available, else the CPU in float32."""
    return resolve_compute("auto", "auto", half="bfloat16")


def learner_of(
    model: nn.Module,
    data: TrainingData,
    loss: Callable[[Output, Batch], torch.Tensor],
    *,
    batch_size: int,
    optimizer: OptimizerChoice = "adamw",
) -> Learner:
    """Return a training on all rows of the data, not yet started, with the loop of ``python -m train``. It writes no files."""
    compute = compute_here()
    rows = range(len(data.labels))
    training = Training(
        model=model.to(data.device),
        data=data,
        learnt=rows,
        validation=rows[:batch_size],
        loss=loss,
        optimization=Optimization(batch_size=batch_size, epochs=1000, optimizer=optimizer, checkpoint_minutes=1e6),
        placement=DevicePlacement(),
        compute=compute,
        folder=Path("nowhere"),
        processes=Processes(),
    )
    return Learner(training)


def baseline_learner(sizes: Sizes, data: TrainingData, batch_size: int, optimizer: OptimizerChoice = "adamw") -> Learner:
    """Return plain fine-tuning by our loop."""
    return learner_of(TextClassifier(classifier(sizes)), data, label_loss("single-label"), batch_size=batch_size, optimizer=optimizer)


def student_learner(sizes: Sizes, data: TrainingData, batch_size: int, optimizer: OptimizerChoice = "adamw") -> Learner:
    """Return a student that reads its teacher's cached outputs."""
    return learner_of(Student(TextClassifier(classifier(sizes)), [sizes.dim]), data, distilled, batch_size=batch_size, optimizer=optimizer)


def teacher_learner(sizes: Sizes, encoder: Encoder, data: TrainingData, batch_size: int, optimizer: OptimizerChoice = "adamw") -> Learner:
    """Return a teacher that reads cached image tokens."""
    return learner_of(teacher(sizes, encoder), data, label_loss("single-label"), batch_size=batch_size, optimizer=optimizer)


def distilled(output: Output, batch: Batch) -> torch.Tensor:
    """Return the paper's loss."""
    (teacher,) = batch.teachers
    target = TeacherTarget(weight=1.0, logits_BK=teacher.logits, embeddings_BD=teacher.embeddings, student_BD=output.projected[0])
    return distillation_loss(KD_PRESETS["paper"], output.logits, [target], batch.labels)


def vision_tower(encoder: Encoder, *, small: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a frozen open_clip tower with random weights: float32 [B, 3, 224, 224] → tokens [B, T, I]."""
    import open_clip
    from open_clip.transformer import VisionTransformer

    vision = dict(open_clip.get_model_config(encoder.name)["vision_cfg"])
    layers = 1 if small else vision["layers"]
    tower = VisionTransformer(
        image_size=224,
        patch_size=vision["patch_size"],
        width=vision["width"],
        layers=layers,
        heads=vision["width"] // vision.get("head_width", 64),
        mlp_ratio=4.0,
        output_dim=64,
    )
    tower.eval().requires_grad_(False).to(compute_here().device)

    @torch.no_grad()
    def tokens(images_B3HW: torch.Tensor) -> torch.Tensor:
        parts = tower.forward_intermediates(
            images_B3HW, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        return torch.cat([parts["image_intermediates_prefix"][0], parts["image_intermediates"][0]], dim=1)

    return tokens
