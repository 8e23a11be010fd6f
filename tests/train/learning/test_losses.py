"""The losses against their formulas, written out in float64 with NumPy alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import UNLABELLED
from lugpi_core.errors import InputError
from train.learning.losses import KD_PRESETS, Distillation, TeacherTarget, distillation, distillation_loss, embedding_distance
from train.learning.task_rules import rules_of
from train.options.settings import DistillationSettings, EmbeddingLoss

Array = NDArray[np.float64]
Batch = tuple[Array, Array, Array, Array, NDArray[np.int64]]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def distance(kind: EmbeddingLoss, e_s: Array, e_t: Array) -> float:
    match kind:
        case "mse":
            return float(((e_t - e_s) ** 2).mean())
        case "sum-of-squares":
            return float(((e_t - e_s) ** 2).sum(axis=1).mean())
        case "cosine":
            norms = np.linalg.norm(e_s, axis=1) * np.linalg.norm(e_t, axis=1)
            return float((1 - (e_s * e_t).sum(axis=1) / norms).mean())
        case "infonce":
            return infonce(e_s, e_t)


def infonce(e_s: Array, e_t: Array) -> float:
    """Eq. 4 of arXiv 1807.03748 with cosines over 0.07, text by text; what is the same for the teacher is no negative."""
    e_s, e_t = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (e_s, e_t))
    total = 0.0
    for i, own in enumerate(e_s):
        terms = {j: np.exp(own @ e_t[j] / 0.07) for j in range(len(e_t)) if j == i or np.linalg.norm(e_t[i] - e_t[j]) >= 1e-3}
        total -= np.log(terms[i] / sum(terms.values()))
    return float(total / len(e_s))


def soft_terms(weights: Distillation, s: Array, e_s: Array, t: Array, e_t: Array) -> float:
    """The part of Eq. 2 of arXiv 2309.15238 that a teacher has a say in, term by term."""
    tau = weights.temperature
    student = log_softmax(s / tau) * tau**2 if weights.soften_student else log_softmax(s)
    soft = -(np.exp(log_softmax(t / tau)) * student).sum(axis=1).mean()
    return float(weights.alpha * soft + weights.beta * distance(weights.embedding_loss, e_s, e_t))


def equation_two(weights: Distillation, s: Array, e_s: Array, t: Array, e_t: Array, y: NDArray[np.int64]) -> float:
    hard = -log_softmax(s)[np.arange(len(y)), y].mean()
    return float(weights.hard * hard + soft_terms(weights, s, e_s, t, e_t))


def random_batch(seed: int, examples: int, classes: int, width: int) -> Batch:
    generator = np.random.default_rng(seed)
    s, t = (generator.normal(0, 3, (examples, classes)) for _ in range(2))
    e_s, e_t = (generator.normal(0, 1, (examples, width)) for _ in range(2))
    return s, e_s, t, e_t, generator.integers(0, classes, examples)


def loss_of(weights: Distillation, batch: Batch) -> float:
    s, e_s, t, e_t = (torch.from_numpy(part).float() for part in batch[:4])
    return float(distillation_loss(weights, s, [TeacherTarget(1.0, t, e_t, e_s)], torch.from_numpy(batch[4])))


sizes: dict[str, Any] = {
    "seed": st.integers(0, 10_000),
    "examples": st.integers(1, 20),
    "classes": st.integers(2, 20),
    "width": st.integers(1, 64),
}


@pytest.mark.parametrize("preset", KD_PRESETS)
@given(**sizes)
def test_every_preset_is_its_formula(preset: str, seed: int, examples: int, classes: int, width: int) -> None:
    batch = random_batch(seed, examples, classes, width)
    assert loss_of(KD_PRESETS[preset], batch) == pytest.approx(equation_two(KD_PRESETS[preset], *batch), rel=1e-5)


def test_the_presets_have_the_published_weights() -> None:
    assert KD_PRESETS["paper"] == Distillation(hard=1.0, alpha=3.0, beta=1.0, temperature=8.0, soften_student=False)
    assert KD_PRESETS["hinton"].soften_student, "Hinton, Vinyals & Dean soften both sides and multiply by the square of the temperature"
    assert not KD_PRESETS["lopez-paz"].soften_student
    assert [KD_PRESETS[name].beta for name in ("hinton", "lopez-paz")] == [0, 0]
    assert all(weights.embedding_loss == "mse" for weights in KD_PRESETS.values())


@pytest.mark.parametrize("kind", ["mse", "sum-of-squares", "cosine", "infonce"])
@given(**sizes)
def test_every_distance_of_embeddings_is_its_formula(kind: EmbeddingLoss, seed: int, examples: int, classes: int, width: int) -> None:
    batch = random_batch(seed, examples, classes, width)
    weights = distillation("paper", embedding_loss=kind)
    assert loss_of(weights, batch) == pytest.approx(equation_two(weights, *batch), rel=1e-4)


def test_distances_of_embeddings_differ_where_they_should() -> None:
    batch = random_batch(0, 6, 4, 16)
    kinds: tuple[EmbeddingLoss, ...] = ("mse", "sum-of-squares", "cosine")
    found = [loss_of(replace(distillation("paper", embedding_loss=kind), hard=0.0, alpha=0.0), batch) for kind in kinds]
    assert found[1] == pytest.approx(16 * found[0], rel=1e-5)
    assert 0 < found[2] < 2


def test_texts_with_one_embedding_of_the_teacher_are_no_negatives_of_each_other() -> None:
    s, e_s, t, e_t, y = random_batch(6, 5, 3, 8)
    e_t[3] = e_t[1]
    weights = distillation("paper", hard=1.0, alpha=0.0, embedding_loss="infonce")
    assert loss_of(weights, (s, e_s, t, e_t, y)) == pytest.approx(equation_two(weights, s, e_s, t, e_t, y), rel=1e-5)
    near = torch.from_numpy(e_t).float()
    near[3] *= 1 + 1e-6  # as rounding tells equal texts apart
    assert float(embedding_distance(torch.from_numpy(e_s).float(), near, "infonce")) == pytest.approx(infonce(e_s, e_t), rel=1e-4)
    one = embedding_distance(torch.randn(1, 8), torch.randn(1, 8), "infonce")
    assert float(one) == 0


def test_infonce_is_in_float32_under_autocast() -> None:
    _, e_s, _, e_t, _ = random_batch(7, 6, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embedding_distance(torch.from_numpy(e_s).float(), torch.from_numpy(e_t).float(), "infonce")
    assert float(found) == pytest.approx(infonce(e_s, e_t), rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "sum-of-squares", "cosine", "infonce"])
@given(**sizes, share=st.floats(0.05, 0.95))
def test_predicted_image_vectors_are_a_term_of_each_teachers_share(
    kind: EmbeddingLoss, seed: int, examples: int, classes: int, width: int, share: float
) -> None:
    gamma = 2.5
    s, e_s, t, e_t, y = random_batch(seed, examples, classes, width)
    _, v_s, _, v_t, _ = random_batch(seed + 1, examples, classes, width + 2)
    weights = distillation("paper", embedding_loss=kind, predict_image=gamma)
    tensors = [torch.from_numpy(part).float() for part in (t, e_t, e_s, v_t, v_s)]
    found = float(distillation_loss(weights, torch.from_numpy(s).float(), [TeacherTarget(share, *tensors)], torch.from_numpy(y)))
    hard = -log_softmax(s)[np.arange(len(y)), y].mean()
    expected = hard + share * (soft_terms(weights, s, e_s, t, e_t) + gamma * distance(kind, v_s, v_t))
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_weight_without_image_vectors_is_an_error() -> None:
    target = TeacherTarget(1.0, torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="predict_image without images_BI"):
        distillation_loss(distillation(predict_image=1.0), torch.zeros(2, 3), [target], torch.zeros(2, dtype=torch.long))


@given(**sizes, share=st.floats(0.05, 0.95))
def test_two_teachers_have_their_shares_of_the_soft_terms(seed: int, examples: int, classes: int, width: int, share: float) -> None:
    s, e_s, t, e_t, y = random_batch(seed, examples, classes, width)
    _, wide_s, other_t, wide_t, _ = random_batch(seed + 1, examples, classes, width + 3)
    weights = KD_PRESETS["paper"]
    tensors = [torch.from_numpy(part).float() for part in (t, e_t, e_s, other_t, wide_t, wide_s)]
    teachers = [TeacherTarget(share, *tensors[:3]), TeacherTarget(1 - share, *tensors[3:])]
    found = float(distillation_loss(weights, torch.from_numpy(s).float(), teachers, torch.from_numpy(y)))
    soft = share * soft_terms(weights, s, e_s, t, e_t) + (1 - share) * soft_terms(weights, s, wide_s, other_t, wide_t)
    hard = -log_softmax(s)[np.arange(len(y)), y].mean()
    assert found == pytest.approx(hard + soft, rel=1e-5)


@given(**sizes, unlabelled=st.integers(0, 20))
def test_unlabelled_texts_have_only_soft_terms(seed: int, examples: int, classes: int, width: int, unlabelled: int) -> None:
    s, e_s, t, e_t, y = random_batch(seed, examples, classes, width)
    labelled = max(0, examples - unlabelled)
    y[labelled:] = UNLABELLED
    weights = KD_PRESETS["paper"]
    hard = -log_softmax(s)[np.arange(labelled), y[:labelled]].sum() / examples
    assert loss_of(weights, (s, e_s, t, e_t, y)) == pytest.approx(hard + soft_terms(weights, s, e_s, t, e_t), rel=1e-5)


def test_unlabelled_texts_do_not_change_the_weight_of_a_label() -> None:
    s, *_, y = random_batch(3, 8, 5, 4)
    logits = torch.from_numpy(s).requires_grad_()
    among = torch.from_numpy(np.where(np.arange(8) < 3, y, UNLABELLED))
    (mixed,) = torch.autograd.grad(rules_of("single-label").hard_loss(logits, among), logits)
    (full,) = torch.autograd.grad(rules_of("single-label").hard_loss(logits, torch.from_numpy(y)), logits)
    torch.testing.assert_close(mixed[:3], full[:3], rtol=1e-12, atol=0)
    assert not mixed[3:].any()


def test_a_batch_without_any_label_has_a_loss() -> None:
    batch = random_batch(3, 8, 5, 4)
    batch[4][:] = UNLABELLED
    assert loss_of(KD_PRESETS["paper"], batch) == pytest.approx(soft_terms(KD_PRESETS["paper"], *batch[:4]), rel=1e-5)
    assert loss_of(distillation("paper", alpha=0.0, beta=0.0), batch) == 0


@pytest.mark.parametrize("dropped", ["hard", "alpha", "beta"])
def test_a_weight_of_zero_leaves_its_term_out(dropped: str) -> None:
    batch = random_batch(1, 8, 5, 16)
    weights = distillation("paper", **{dropped: 0.0})
    assert loss_of(weights, batch) == pytest.approx(equation_two(weights, *batch), rel=1e-5)
    assert loss_of(weights, batch) != pytest.approx(loss_of(KD_PRESETS["paper"], batch), rel=1e-3)


@pytest.mark.parametrize(("dropped", "broken"), [("beta", 3), ("alpha", 2)])
def test_a_term_of_weight_zero_may_be_infinite(dropped: str, broken: int) -> None:
    batch = random_batch(2, 4, 3, 8)
    batch[broken][:] = np.nan
    assert np.isfinite(loss_of(distillation("paper", **{dropped: 0.0}), batch))


@pytest.mark.parametrize("preset", KD_PRESETS)
def test_gradients_reach_only_the_student(preset: str) -> None:
    weights = replace(KD_PRESETS[preset], beta=1.0)
    student, own, wide = (torch.randn(4, width, requires_grad=True) for width in (3, 8, 6))
    outputs = [torch.randn(4, width) for width in (3, 8, 3, 6)]
    teachers = [TeacherTarget(0.5, outputs[0], outputs[1], own), TeacherTarget(0.5, outputs[2], outputs[3], wide)]
    torch.autograd.backward(distillation_loss(weights, student, teachers, torch.zeros(4, dtype=torch.long)))
    for learning in (student, own, wide):
        assert learning.grad is not None
        assert learning.grad.abs().sum() > 0
    assert all(tensor.grad is None and not tensor.requires_grad for tensor in outputs)


def test_given_weights_replace_the_presets() -> None:
    weights = distillation("paper", hard=None, alpha=0.5, beta=None, temperature=2.0, embedding_loss="cosine")
    assert weights == Distillation(hard=1.0, alpha=0.5, beta=1.0, temperature=2.0, embedding_loss="cosine")


def test_weights_that_are_all_zero_are_refused() -> None:
    with pytest.raises(InputError, match="at least one positive weight"):
        distillation("paper", hard=0.0, alpha=0.0, beta=0.0, temperature=None)
    with pytest.raises(InputError, match="a term that depends on the class"):
        distillation("paper", hard=0.0, alpha=0.0, beta=1.0)  # nothing would train the last layer


def test_the_loss_is_computed_in_float32() -> None:
    batch = random_batch(5, 8, 5, 16)
    s, e_s, t, e_t = (torch.from_numpy(part).bfloat16() for part in batch[:4])
    loss = distillation_loss(KD_PRESETS["paper"], s, [TeacherTarget(1.0, t, e_t, e_s)], torch.from_numpy(batch[4]))
    assert loss.dtype == torch.float32
    exact: Any = (*(part.double().numpy() for part in (s, e_s, t, e_t)), batch[4])
    assert float(loss) == pytest.approx(equation_two(KD_PRESETS["paper"], *exact), rel=1e-5)


def test_weights_of_another_type_are_refused() -> None:
    for weights in (DistillationSettings(), "paper"):
        with pytest.raises(TypeError, match="expected a Distillation"):
            distillation_loss(weights, torch.zeros(2, 3), [], torch.zeros(2, dtype=torch.long))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", [{"preset": "hintn"}, {"alpha": -1.0}, {"temperature": 0.0}, {"embedding_loss": "l3"}, {"predict_image": -1.0}]
)
def test_a_loss_that_does_not_exist_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(given)).replace("_", "[_-]")):
        distillation(**given)


@pytest.mark.parametrize("kind", ["mse", "sum-of-squares", "cosine", "infonce"])
def test_embeddings_of_another_width_are_not_broadcast(kind: EmbeddingLoss) -> None:
    weights = distillation("paper", embedding_loss=kind)
    logits = torch.zeros(2, 3)
    target = TeacherTarget(weight=1.0, logits_BK=logits, embeddings_BD=torch.zeros(2, 4), student_BD=torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"student \(2, 1\) and of the teacher \(2, 4\)"):
        distillation_loss(weights, logits, [target], torch.zeros(2, dtype=torch.long))
