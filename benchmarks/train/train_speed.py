"""What does training cost? A student step compared with a plain Hugging Face step, an epoch with one of the Hugging Face Trainer, cached
outputs and tokens with live ones, and reading with computing.

All models have real architectures and random weights. The ways of a case run in turn; next to each ratio of times is the ratio of counted
FLOPs. Shapes: B examples, L text tokens.
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import finish, interleaved, median_ratio, medians, promise
from benchmarks.train.epoch_speed import epochs
from benchmarks.train.training_cases import (
    ENCODERS,
    SMALL,
    Encoder,
    Sizes,
    baseline_learner,
    classifier,
    compute_here,
    data_of,
    distilled,
    learner_of,
    student_learner,
    teacher,
    teacher_learner,
    vision_tower,
)
from lugpi_core.command_line import say
from lugpi_core.runtime.libraries import prepare_libraries
from train.data.batching import Part
from train.data.teacher_outputs import TeacherOutputs
from train.data.training_data import Batch
from train.learning.loop import Learner
from train.learning.networks import Output, Student, TextClassifier
from train.learning.optimizer import make_optimizer

PLAIN = "plain Hugging Face step"
BATCH = 14
LENGTHS = (32, 128, 256, 512)
# Promised limits of the ratio of two ways: at most, and at least.
AT_MOST = (("student step", PLAIN, 1.03),)
AT_LEAST = (
    ("student, teacher live from tokens", "student, outputs cached", 2.0),
    ("student, teacher live from pixels", "student, outputs cached", 3.0),
)
SHARE_OF_COUNTED = 0.9
LOADER_SHARE = 0.01
Step = Callable[[], object]


def measure(*, smoke: bool, record: bool, data_dir: Path) -> dict[str, Any]:
    """Return seconds and ratios of every case, and which promises hold.

    Args:
        smoke: tiny sizes, one round.
        record: write the figures to benchmarks/results/.
        data_dir: folder with the archives of the corpora, whose text lengths the epochs use; missing ones are reported as skipped.
    """
    prepare_libraries()
    torch.manual_seed(0)
    sizes = SMALL if smoke else Sizes()
    figures: dict[str, Any] = {
        "steps": steps(sizes, (16,) if smoke else (32, 128), repeats=1 if smoke else 9),
        "epochs": epochs(data_dir, smoke=smoke),
        "cached or live": cached_or_live(sizes, (16,) if smoke else LENGTHS, small=smoke),
        "loader": loader(sizes, 16 if smoke else 128, batches=2 if smoke else 8),
    }
    figures["promises"] = promises(figures)
    say(f"train: {figures['promises']}")
    return finish("train", figures, record=record)


def steps(sizes: Sizes, lengths: Sequence[int], *, repeats: int) -> dict[str, Any]:
    """Return the times of a plain Hugging Face step, our baseline step and our student step on the same batch, for each length."""
    found = {}
    for length in lengths:
        data = data_of(np.full(BATCH, length), torch.device(compute_here().device), embedding_width=sizes.dim)
        rows = np.arange(BATCH)
        ways = {
            PLAIN: _plain_step(sizes, data.batch(rows)),
            "baseline step": step_of(baseline_learner(sizes, data, BATCH), rows),
            "student step": step_of(student_learner(sizes, data, BATCH), rows),
        }
        seconds = interleaved(ways, repeats=repeats)
        found[f"{length} tokens"] = {
            "seconds": medians(seconds),
            "over": {f"{name} over {PLAIN}": median_ratio(seconds, name, PLAIN) for name in ways if name != PLAIN},
        }
        say(f"train, steps of {length} tokens: {found[f'{length} tokens']}")
    return found


def _plain_step(sizes: Sizes, batch: Batch) -> Step:
    """Return what the Hugging Face Trainer does in a step, without the Trainer."""
    model = classifier(sizes).to(compute_here().device).train()
    optimizer = make_optimizer(model, "adamw", learning_rate=5e-5, weight_decay=0.01)
    ids = batch.inputs["input_ids"]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": batch.labels}

    def run() -> None:
        with torch.autocast(compute_here().device, dtype=torch.bfloat16, enabled=compute_here().dtype == "bfloat16"):
            loss = model(**inputs).loss
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait()

    return run


def step_of(learner: Learner, rows: NDArray[np.int64]) -> Step:
    """Return one step of our loop on some rows, reading them included."""
    learner.wrapped.train()
    parts = [Part(rows=rows, weight=1.0)]

    def run() -> None:
        learner.one_step(rows, parts, learner.training.data.batches([rows], 0))
        _wait()

    return run


def cached_or_live(sizes: Sizes, lengths: Sequence[int], *, small: bool) -> dict[str, Any]:
    """Return a student step with cached outputs and with a live teacher, and a teacher step from cached tokens and from pixels, for each
    encoder and length. Batches are smaller than in training because of the large towers."""
    found: dict[str, Any] = {}
    for encoder in ENCODERS[:1] if small else ENCODERS:
        for length in lengths:
            batch = 2 if small else 4
            ways = _ways(sizes, encoder, length, batch, small=small)
            counted = {name: _counted(run) for name, run in ways.items()}
            seconds = interleaved(ways, repeats=1 if small or encoder.name == "ViT-L-14" else 3)
            name = f"{encoder.name}, {length} tokens"
            found[name] = {"batch": batch, "seconds": medians(seconds), "over": _over(seconds, counted)}
            say(f"train, {name}: {found[name]['over']}")
            del ways
            gc.collect()
    return found


def _ways(sizes: Sizes, encoder: Encoder, length: int, batch: int, *, small: bool) -> dict[str, Step]:
    device = torch.device(compute_here().device)
    rows = np.arange(batch)
    data = data_of(np.full(batch, length), device, encoder=encoder, embedding_width=sizes.dim)
    text_only = data_of(np.full(batch, length), device, embedding_width=sizes.dim)
    tower = vision_tower(encoder, small=small)
    pixels = torch.rand(batch, 3, 224, 224, device=device)
    live = teacher(sizes, encoder).to(device).eval()

    def from_tokens(output: Output, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            live_output = live(batch.inputs)
        outputs = TeacherOutputs(logits=live_output.logits, embeddings=live_output.embeddings, teacher="live")
        return distilled(output, replace(batch, teachers=(outputs,)))

    def from_pixels(output: Output, batch: Batch) -> torch.Tensor:
        return from_tokens(output, encoded(batch))

    def encoded(batch: Batch) -> Batch:
        return replace(batch, inputs={**batch.inputs, "image_tokens": tower(pixels)})

    def student_with_loss(loss: Callable[[Output, Batch], torch.Tensor]) -> Learner:
        return learner_of(Student(TextClassifier(classifier(sizes)), [sizes.dim]), data, loss, batch_size=batch)

    cached_teacher = teacher_learner(sizes, encoder, data, batch)

    def teacher_from_pixels() -> None:
        cached_teacher.one_step(rows, [Part(rows=rows, weight=1.0)], iter([encoded(data.batch(rows))]))
        _wait()

    return {
        "student, outputs cached": step_of(student_learner(sizes, text_only, batch), rows),
        "student, teacher live from tokens": step_of(student_with_loss(from_tokens), rows),
        "student, teacher live from pixels": step_of(student_with_loss(from_pixels), rows),
        "teacher, tokens cached": step_of(cached_teacher, rows),
        "teacher, from pixels": teacher_from_pixels,
    }


def _over(seconds: dict[str, list[float]], counted: Mapping[str, int]) -> dict[str, dict[str, float]]:
    pairs = [(name, name.split(",")[0] + (", tokens cached" if name.startswith("teacher") else ", outputs cached")) for name in seconds]
    return {
        f"{slower} over {faster}": {
            "time": median_ratio(seconds, slower, faster),
            "counted": round(counted[slower] / counted[faster], 3),
        }
        for slower, faster in pairs
        if slower != faster
    }


def _counted(run: Step) -> int:
    """Return the FLOPs of matrix products in one run, attention's own among them."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not support the fused encoder layer used in evaluation
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops())


def loader(sizes: Sizes, length: int, *, batches: int) -> dict[str, Any]:
    """Return the share of a step that reading its batch takes, for a student and for a teacher with tokens of ViT-B/32."""
    device = torch.device(compute_here().device)
    data = data_of(np.full(BATCH * batches, length), device, encoder=ENCODERS[0], embedding_width=sizes.dim)
    text_only = data_of(np.full(BATCH * batches, length), device, embedding_width=sizes.dim)
    split = np.split(np.arange(BATCH * batches), batches)
    found = {}
    for name, source, learner in (
        ("student", text_only, student_learner(sizes, text_only, BATCH)),
        ("teacher", data, teacher_learner(sizes, ENCODERS[0], data, BATCH)),
    ):
        run = step_of(learner, split[0])
        run()
        reading, computing = [], []
        for rows in split:
            start_s = time.perf_counter()
            for _ in source.batches([rows], 0):
                _wait()
            middle_s = time.perf_counter()
            learner.one_step(rows, [Part(rows=rows, weight=1.0)], source.batches([rows], 0))
            _wait()
            reading.append(middle_s - start_s)
            computing.append(time.perf_counter() - middle_s)
        found[name] = {"step_s": round(float(np.median(computing)), 5), "share": round(float(np.median(reading) / np.median(computing)), 5)}
    say(f"train, loader: {found}")
    return found


def promises(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each promise with the measured value."""
    found = []
    for length, case in figures["steps"].items():
        for slower, faster, limit in AT_MOST:
            found.append(promise(f"{length}: {slower} over {faster}", case["over"][f"{slower} over {faster}"], at_most=limit))
    for name, case in figures["epochs"].items():
        if "over" in case:
            found.append(promise(f"{name}: Trainer's epoch over ours", case["over"], at_least=1.3))
    for name, case in figures["cached or live"].items():
        for slower, faster, limit in AT_LEAST:
            if not name.endswith("512 tokens"):
                found.append(promise(f"{name}: {slower} over {faster}", case["over"][f"{slower} over {faster}"]["time"], at_least=limit))
        ratios = case["over"]["teacher, from pixels over teacher, tokens cached"]
        share = round(ratios["time"] / ratios["counted"], 3)
        found.append(promise(f"{name}: teacher from pixels over cached, share of counted", share, at_least=SHARE_OF_COUNTED))
    for name, case in figures["loader"].items():
        found.append(promise(f"{name}: reading over step", case["share"], at_most=LOADER_SHARE))
    return found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
