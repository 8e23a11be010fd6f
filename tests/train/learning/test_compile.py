"""Faster steps with the same result: masks without synchronization, a compiled encoder, steps that do not synchronize."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.small_training import tiny_classifier, training_of
from train.data.privileged import BlankTokens, PrivilegedImages
from train.data.teacher_outputs import TeacherOutputs
from train.data.training_data import TrainingData
from train.learning.compile import COMPILED_FROM_STEPS, compile_encoder, encoder_of, masked, takes_expanded_mask
from train.learning.loop import Learner, Loss, Training
from train.learning.losses import KD_PRESETS, TeacherTarget, distillation_loss
from train.learning.networks import FusionHead, Student, Teacher, TextClassifier
from train.models.kinds import label_loss

CPU = torch.device("cpu")
FAMILIES = ("distilbert", "bert", "roberta", "electra", "deberta-v2")
# Operations that copy a tensor's value to Python: on CUDA, each one synchronizes.
LOOKS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
METHODS = {"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__", "cpu", "all_close"}


class Watched(TorchDispatchMode):
    """Records every operation in the block that reads a tensor's values."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in LOOKS:
            self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class ReadMethods(TorchFunctionMode):
    """Records every method in the block that turns a tensor into a Python value."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def padded_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 100, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    return {"input_ids": ids, "attention_mask": mask}


def test_a_batch_without_padding_has_no_mask() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    for expanded in (False, True):
        assert set(masked({"input_ids": ids, "image_tokens": ids}, expanded=expanded)) == {"input_ids"}


def test_a_mask_is_expanded_if_the_model_accepts_it() -> None:
    batch = padded_batch()
    plain, ours = (masked(batch, expanded=expanded)["attention_mask"] for expanded in (False, True))
    assert plain is batch["attention_mask"]
    assert (ours.dtype, tuple(ours.shape)) == (torch.bool, (3, 1, 1, 7))
    assert torch.equal(ours[:, 0, 0].long(), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_masks_have_the_same_output(family: str) -> None:
    classifier: Any = tiny_classifier(family)
    classifier.train()
    takes = takes_expanded_mask(classifier)
    assert classifier.training, "the mode is unchanged"
    assert takes == (classifier.config._attn_implementation == "sdpa")
    model, batch = TextClassifier(classifier).eval(), padded_batch()
    torch.testing.assert_close(model(batch).logits, classifier(**batch).logits, atol=1e-5, rtol=1e-5)


def test_an_encoder_with_windowed_attention_gets_the_plain_mask() -> None:
    import transformers

    ids = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.ModernBertConfig(**sizes, **ids, local_attention=8, max_position_embeddings=64)
    classifier: Any = transformers.ModernBertForSequenceClassification(config).eval()
    assert classifier.config._attn_implementation == "sdpa"
    assert not takes_expanded_mask(classifier)
    ids_BL = torch.randint(5, 100, (2, 40))
    mask_BL = torch.ones_like(ids_BL)
    mask_BL[1, 20:] = 0
    batch = {"input_ids": ids_BL, "attention_mask": mask_BL}
    torch.testing.assert_close(TextClassifier(classifier).eval()(batch).logits, classifier(**batch).logits)


@pytest.mark.parametrize("kind", ["sums", "pools", "unpacks"])
def test_a_model_with_its_own_use_of_the_mask_gets_the_plain_one(kind: str) -> None:
    classifier: Any = tiny_classifier("bert")

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.embed = classifier.config, nn.Embedding(100, 4)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor]:
            if kind == "unpacks":
                _, length = attention_mask.shape
                return (self.embed(input_ids)[:, :length].sum(dim=1),)
            if kind == "pools":
                return ((self.embed(input_ids) * attention_mask[..., None]).sum(dim=1),)
            return ((input_ids * attention_mask).sum(dim=-1).float().reshape(len(input_ids), -1),)

    assert not takes_expanded_mask(Reads())


def with_teachers(training: Training) -> Training:
    generator = torch.Generator().manual_seed(0)
    rows = len(training.data.labels)
    outputs = TeacherOutputs(
        logits=torch.randn(rows, 3, generator=generator), embeddings=torch.randn(rows, 64, generator=generator), teacher=""
    )

    def loss(output: Any, batch: Any) -> torch.Tensor:
        (teacher,) = batch.teachers
        target = TeacherTarget(1.0, teacher.logits, teacher.embeddings, output.projected[0])
        return distillation_loss(KD_PRESETS["paper"], output.logits, [target], batch.labels)

    assert isinstance(training.model, TextClassifier)
    return changed(training, Student(training.model, [64]), loss, teachers=(outputs,))


def with_images(training: Training) -> Training:
    images = PrivilegedImages(source=BlankTokens((17, 64), CPU), drawings=np.arange(120).reshape(60, 2), seed=0)
    encoder = encoder_of(training.model)
    return changed(
        training, Teacher(encoder, FusionHead(text_width=128, image_width=64, classes=3)), label_loss("single-label"), images=images
    )


def changed(training: Training, model: nn.Module, loss: Loss, **read: Any) -> Training:
    data = TrainingData(device=CPU, labels=training.data.labels, texts=training.data.texts, **read)
    return replace(training, model=model, data=data, loss=loss)


@pytest.mark.parametrize("kind", ["baseline", "teacher", "student"])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_step_does_not_synchronize(small_csv: Path, tmp_path: Path, kind: str, passes: int) -> None:
    plain = training_of(small_csv, tmp_path, label_loss("single-label"), optimizer="adamw", gradient_accumulation_steps=passes)
    training = {"baseline": lambda one: one, "teacher": with_images, "student": with_teachers}[kind](plain)
    learner = Learner(training)
    learner.wrapped.train()
    batches = [np.arange(start, start + 7) for start in (0, 7, 14)]
    assert all(len(set(training.data.lengths[batch])) > 1 for batch in batches), "padded ones, which have a mask"
    seen: list[str] = []
    for batch, parts, fed in learner._fed(batches, 0):
        with ReadMethods(seen), Watched(seen):
            learner.one_step(batch, parts, fed)
    assert seen == []
    with ReadMethods(seen), Watched(seen):
        bool(learner.loss_sum > 0)
    assert seen, "a synchronization would have been recorded"


def test_the_encoder_of_every_kind_of_model_is_found(small_csv: Path, tmp_path: Path) -> None:
    training = training_of(small_csv, tmp_path)
    encoder = encoder_of(training.model)
    assert type(encoder).__name__ == "DistilBertModel"
    assert encoder_of(with_images(training).model) is encoder
    assert encoder_of(with_teachers(training).model) is encoder
    assert encoder_of(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("choice", "device", "steps", "compiled"),
    [
        ("auto", "cpu", COMPILED_FROM_STEPS, False),
        ("auto", "cuda", COMPILED_FROM_STEPS, True),
        ("auto", "cuda", COMPILED_FROM_STEPS - 1, False),
        ("on", "cpu", 1, True),
        ("off", "cuda", COMPILED_FROM_STEPS, False),
    ],
)
def test_the_encoder_is_compiled_in_long_trainings_on_cuda(
    monkeypatch: pytest.MonkeyPatch, choice: Any, device: str, steps: int, compiled: bool
) -> None:
    compiled_with: list[dict[str, Any]] = []
    model = tiny_classifier("distilbert")
    monkeypatch.setattr(type(encoder_of(model)), "compile", lambda _, **how: compiled_with.append(how))
    assert compile_encoder(model, choice, device=torch.device(device), steps=steps) is compiled
    assert compiled_with == [{"dynamic": True}] * compiled
    assert not compile_encoder(nn.Linear(2, 2), "on", device=CPU, steps=1)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning")  # of torch's own compiler
def test_compiling_in_place_renames_no_weight() -> None:
    model = tiny_classifier("distilbert")
    before = list(model.state_dict())
    assert compile_encoder(model, "on", device=CPU, steps=1)
    assert list(model.state_dict()) == before
