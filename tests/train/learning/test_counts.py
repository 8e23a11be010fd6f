"""The FLOPs of a training step: with cached tokens and outputs, only those of the trained model."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.train.train_speed import step_of
from benchmarks.train.training_cases import ENCODERS, SMALL, baseline_learner, data_of, student_learner, teacher, teacher_learner
from train.learning.networks import Teacher

BATCH, LENGTH, TOKENS = 3, 24, 50
CPU = torch.device("cpu")
CLIP = ENCODERS[0]


def counted(run: object) -> int:
    """Return the FLOPs of matrix products, attention's own among them."""
    assert callable(run)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def encoder_alone(model: Teacher) -> int:
    """FLOPs of the text encoder forwards and backwards."""
    ids_BL = torch.randint(5, 100, (BATCH, LENGTH))
    return counted(lambda: model.text_encoder(input_ids=ids_BL).last_hidden_state.sum().backward())


def head_alone(model: Teacher) -> int:
    """FLOPs of fusion and head forwards and backwards, down to the text tokens but not to the cached image tokens."""
    text_BLD = torch.randn(BATCH, LENGTH, SMALL.dim, requires_grad=True)
    image_BTI = torch.randn(BATCH, TOKENS, CLIP.width)
    return counted(lambda: model.head(image_BTI, text_BLD).logits.sum().backward())


def test_a_teachers_step_costs_its_text_encoder_and_its_head_only() -> None:
    data = data_of(np.full(BATCH, LENGTH), CPU, encoder=CLIP)
    step = counted(step_of(teacher_learner(SMALL, CLIP, data, BATCH), np.arange(BATCH)))
    alone = teacher(SMALL, CLIP)
    assert step == pytest.approx(encoder_alone(alone) + head_alone(alone), rel=0.01)


def test_a_students_step_costs_what_a_fine_tuning_step_costs() -> None:
    data = data_of(np.full(BATCH, LENGTH), CPU, embedding_width=SMALL.dim)
    student = counted(step_of(student_learner(SMALL, data, BATCH), np.arange(BATCH)))
    assert student == counted(step_of(baseline_learner(SMALL, data, BATCH), np.arange(BATCH)))
