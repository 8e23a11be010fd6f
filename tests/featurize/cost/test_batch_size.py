"""How many rows at once: what is asked for, or what fits; and which memory is free."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from featurize.cost import batch_size
from featurize.cost.batch_size import BatchSizes, choose_batch_sizes, free_memory_bytes, limit_memory
from featurize.generate.generators import Generator, GeneratorPreset
from featurize.options import Execution
from featurize.plan.job import TEXT_BATCH, Job
from lugpi_core.runtime.device import Compute

GB = 10**9


def _job(device: str, size_px: int = 512, **execution: Any) -> Job:
    dtype = "float16" if device == "cuda" else "float32"
    generator = Generator(
        name="x",
        folder=Path("none"),
        revision=None,
        weights_hash="",
        variant=None,
        pipeline_class="StableDiffusionPipeline",
        size_px=size_px,
        latent_shape=(4, size_px // 8, size_px // 8),
        settings=GeneratorPreset(),
    )
    return Job(
        store=Path("none"),
        plan=cast(Any, None),
        generator=generator,
        encoders={},
        compute=Compute(device=device, device_name="x", dtype=dtype, threads=1),
        columns=(),
        execution=Execution(**execution),
    )


def test_a_batch_that_is_asked_for_is_computed_whole_on_the_cpu() -> None:
    assert choose_batch_sizes(_job("cpu", batch_size=5)) == BatchSizes(generate=5, decode=5, encode=5)


@pytest.mark.parametrize(("batch", "decoded"), [(1, 1), (8, 1), (16, 2), (75, 9)])
def test_on_cuda_an_eighth_of_the_batch_is_decoded_at_once(batch: int, decoded: int) -> None:
    assert choose_batch_sizes(_job("cuda", batch_size=batch)) == BatchSizes(generate=batch, decode=decoded, encode=batch)


@pytest.mark.parametrize(
    ("device", "size_px", "free_gb", "batch"),
    [
        ("cuda", 512, 80, 32),
        ("cuda", 512, 6, 32),  # 32 × 320 values a pixel, 2 bytes each: 5.4 GB
        ("cuda", 512, 5, 16),
        ("cuda", 512, 0.1, 1),
        ("cuda", 768, 8, 16),
        ("cpu", 512, 80, 16),
        ("cpu", 512, 2, 4),
        ("cpu", 64, 1, 16),
    ],
)
def test_auto_is_the_largest_power_of_two_that_should_fit(
    monkeypatch: pytest.MonkeyPatch, device: str, size_px: int, free_gb: float, batch: int
) -> None:
    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda *_: int(free_gb * GB))
    sizes = choose_batch_sizes(_job(device, size_px))
    assert sizes == BatchSizes(generate=batch, decode=max(1, batch // 8), encode=batch)
    assert sizes.by_stage() == {"prompt": TEXT_BATCH, "denoise": batch, "decode": max(1, batch // 8), "encode": batch}


def test_half_of_the_hosts_memory_is_free_for_a_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "host_available_bytes", lambda: 10 * GB)
    monkeypatch.setattr(batch_size, "peak_memory_bytes", lambda: {"host_bytes": GB})
    assert free_memory_bytes(Execution(), "cpu") == 5 * GB
    assert free_memory_bytes(Execution(memory_gb=3), "cpu") == 2 * GB
    monkeypatch.undo()
    assert 10**7 < free_memory_bytes(Execution(), "cpu") < 10**14


def test_a_memory_limit_on_the_cpu_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    limit_memory(Execution(), "cpu")
    assert capsys.readouterr().err == ""
    limit_memory(Execution(memory_gb=0.01), "cpu")
    assert "--memory-gb does not limit memory on the CPU" in capsys.readouterr().err


@pytest.mark.parametrize(("fraction", "free_bytes"), [(1.0, 11 * GB), (0.5, 10 * GB), (0.05, 0)])
def test_free_on_a_gpu_is_what_torch_may_still_take(monkeypatch: pytest.MonkeyPatch, fraction: float, free_bytes: int) -> None:
    answers = {
        "mem_get_info": (8 * GB, 24 * GB),
        "memory_reserved": 5 * GB,  # of which 3 are unused
        "memory_allocated": 2 * GB,
        "get_per_process_memory_fraction": fraction,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    assert free_memory_bytes(Execution(), "cuda") == free_bytes
