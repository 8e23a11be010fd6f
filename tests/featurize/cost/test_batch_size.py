"""How many rows at once: what is asked for, or what fits; and which memory is free."""

from pathlib import Path
from types import SimpleNamespace
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


def _job(device: str, size_px: int = 512, *, denoiser: str = "unet", **execution: Any) -> Job:
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
        found_family=cast(Any, SimpleNamespace(denoiser=denoiser)),
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
    assert choose_batch_sizes(_job("cpu", batch_size=5), {}) == BatchSizes(generate=5, decode=5, encode=5)


@pytest.mark.parametrize(("batch", "decoded"), [(1, 1), (8, 1), (16, 2), (75, 9)])
def test_on_cuda_an_eighth_of_the_batch_is_decoded_at_once(batch: int, decoded: int) -> None:
    assert choose_batch_sizes(_job("cuda", batch_size=batch), {}) == BatchSizes(generate=batch, decode=decoded, encode=batch)


@pytest.mark.parametrize(("size_px", "free_gb", "batch"), [(512, 80, 16), (512, 2, 4), (768, 5, 4), (512, 0.1, 1), (64, 1, 16)])
def test_auto_of_a_unet_on_the_cpu_is_a_fixed_rule(monkeypatch: pytest.MonkeyPatch, size_px: int, free_gb: float, batch: int) -> None:
    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda *_: int(free_gb * GB))
    sizes = choose_batch_sizes(_job("cpu", size_px), {})
    assert sizes == BatchSizes(generate=batch, decode=max(1, batch // 8), encode=batch)
    assert sizes.by_stage() == {"prompt": TEXT_BATCH, "denoise": batch, "decode": max(1, batch // 8), "encode": batch}


class _Counted:
    """A model whose memory is known: a start, and as much for each row."""

    def __init__(self, start_gb: float, row_gb: float, weight_gb: float = 0) -> None:
        self._start, self._row, self.weight_bytes = start_gb, row_gb, weight_gb * GB

    def peak_bytes(self, rows: int) -> float:
        return GB * (self._start + rows * self._row)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes 0.5 GB in the denoiser, 2 in the decoder, 0.1 in the text encoders of 3 GB."""
    monkeypatch.setattr(batch_size, "denoiser_part", lambda *_: _Counted(0.1, 0.5))
    monkeypatch.setattr(batch_size, "decoder_part", lambda *_, **__: _Counted(0, 2))
    monkeypatch.setattr(batch_size, "text_parts", lambda *_: (_Counted(0, 0.1, 2), _Counted(0, 0, 1)))
    monkeypatch.setattr(batch_size, "_device_bytes", lambda device: 20 * GB if device == "cuda" else 0)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
@pytest.mark.parametrize(
    ("free_gb", "sizes"),
    [
        (82, (32, 4, 32)),
        (21.4, (32, 4, 32)),  # 1.2 × 16.1 GB, and a tenth of 20 is left
        (21.3, (16, 2, 32)),
        (8, (8, 1, 16)),  # beside text encoders of 3 GB: 1.2 × 1.6
        (3, (1, 1, 1)),  # less than is needed: one row is tried
    ],
)
def test_auto_on_cuda_is_what_is_counted_for_the_family(
    monkeypatch: pytest.MonkeyPatch, denoiser: str, free_gb: float, sizes: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda *_: int(free_gb * GB))
    batch, decoded, prompts = sizes
    expected = BatchSizes(generate=batch, decode=decoded, encode=batch, prompt=prompts)
    assert choose_batch_sizes(_job("cuda", denoiser=denoiser), {}) == expected


@pytest.mark.usefixtures("counted")
def test_auto_of_a_transformer_is_counted_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda *_: 6 * GB)
    assert choose_batch_sizes(_job("cpu", denoiser="transformer"), {}) == BatchSizes(generate=8, decode=1, encode=8)


@pytest.mark.usefixtures("counted")
def test_a_decoder_that_needs_much_gets_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "decoder_part", lambda *_, **__: _Counted(0, 6))
    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda *_: 22 * GB)
    assert choose_batch_sizes(_job("cuda"), {}) == BatchSizes(generate=32, decode=2, encode=32)


@pytest.mark.usefixtures("counted")
def test_where_nothing_can_be_counted_the_rule_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such operation on the meta device")

    monkeypatch.setattr(batch_size, "denoiser_part", fail)
    monkeypatch.setattr(batch_size, "free_memory_bytes", lambda *_: 6 * GB)
    assert choose_batch_sizes(_job("cuda", denoiser="transformer"), {}) == BatchSizes(generate=32, decode=4, encode=32)


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
