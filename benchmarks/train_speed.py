"""What does a student's step cost beside a plain fine-tuning step? DistilBERT's architecture, random weights, the same batches."""

from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.harness import finish, interleaved, median_ratio, medians
from lugpi_core.command_line import say
from lugpi_core.quiet import quiet_libraries
from lugpi_core.torchvision_ops import allow_torchvision_import
from train.losses import KD_PRESETS, distillation_loss
from train.models import TextClassifier
from train.optim import make_optimizer

CLASSES, BATCH = 20, 14


def measure(*, smoke: bool, record: bool) -> dict[str, Any]:
    """Return the seconds of a plain Hugging Face step and of a student's step with cached teacher outputs, and their ratio."""
    quiet_libraries()
    length, repeats = (16, 1) if smoke else (128, 15)
    batch = {"input_ids": torch.randint(5, 1000, (BATCH, length)), "attention_mask": torch.ones(BATCH, length).long()}
    labels_B = torch.randint(0, CLASSES, (BATCH,))
    plain, ours = _classifier(smoke), TextClassifier(_classifier(smoke))
    teacher = (torch.randn(BATCH, CLASSES), torch.randn(BATCH, ours.embedding_width))

    def plain_loss() -> torch.Tensor:
        loss: torch.Tensor = plain(**batch, labels=labels_B).loss
        return loss

    def student_loss() -> torch.Tensor:
        return distillation_loss(KD_PRESETS["paper"], ours(batch), teacher, labels_B)

    def baseline_loss() -> torch.Tensor:
        return F.cross_entropy(ours(batch).logits, labels_B)

    losses = {"plain": (plain, plain_loss), "baseline": (ours, baseline_loss), "student": (ours, student_loss)}
    seconds = interleaved({name: _step(model, loss) for name, (model, loss) in losses.items()}, repeats=repeats)
    figures = {
        "step_s": medians(seconds),
        "student_over_plain": median_ratio(seconds, "student", "plain"),
        "baseline_over_plain": median_ratio(seconds, "baseline", "plain"),
        "batch": BATCH,
        "tokens": length,
    }
    say(f"train: {figures}")
    return finish("train", figures, record=record)


def _classifier(smoke: bool) -> Any:
    allow_torchvision_import()
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    small = {"dim": 64, "hidden_dim": 128, "n_layers": 1, "n_heads": 4} if smoke else {}
    return DistilBertForSequenceClassification(DistilBertConfig(num_labels=CLASSES, **small)).train()


def _step(model: torch.nn.Module, loss: Any) -> Any:
    optimizer = make_optimizer(model, "adamw", learning_rate=5e-5, weight_decay=0.01)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss())
        optimizer.step()

    return run
