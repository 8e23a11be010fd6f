"""Device, dtype and seed are resolved once; impossible choices are errors."""

import json
import random

import numpy as np
import pytest
import torch

from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, resolve_compute, seed_everything


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def some_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_without_cuda_everything_is_float32_on_the_cpu(device: str, dtype: str) -> None:
    compute = resolve_compute(device, dtype, half="bfloat16")
    assert compute == Compute(device="cpu", device_name="CPU", dtype="float32", threads=torch.get_num_threads())
    assert str(compute) == "CPU, float32"
    assert compute.torch_dtype is torch.float32


@pytest.mark.usefixtures("no_cuda")
def test_missing_cuda_is_refused() -> None:
    with pytest.raises(InputError, match="got --device cuda; expected a CUDA device that torch can see; use --device cpu"):
        resolve_compute("cuda", "auto", half="float16")


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.usefixtures("no_cuda")
def test_float16_on_the_cpu_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="got --dtype float16 on the CPU; expected float32 or bfloat16 there"):
        resolve_compute(device, "float16", half="float16")


@pytest.mark.parametrize("device", ["auto", "cpu"])
@pytest.mark.usefixtures("no_cuda")
def test_bfloat16_on_the_cpu_is_allowed(device: str) -> None:
    assert resolve_compute(device, "bfloat16", half="float16").torch_dtype is torch.bfloat16


@pytest.mark.usefixtures("some_cuda")
def test_float16_on_a_requested_cpu_is_refused_even_with_cuda() -> None:
    with pytest.raises(InputError, match="got --dtype float16 on the CPU"):
        resolve_compute("cpu", "float16", half="float16")


@pytest.mark.usefixtures("some_cuda")
@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("dtype", "half", "resolved"),
    [
        ("auto", "float16", "float16"),
        ("auto", "bfloat16", "bfloat16"),
        ("float32", "float16", "float32"),
        ("bfloat16", "float16", "bfloat16"),
    ],
)
def test_with_cuda_auto_is_the_commands_half_precision(device: str, dtype: str, half: str, resolved: str) -> None:
    compute = resolve_compute(device, dtype, half=half)
    assert (compute.device, compute.device_name, compute.dtype) == ("cuda", "Some GPU", resolved)
    assert compute.torch_dtype is getattr(torch, resolved)


@pytest.mark.usefixtures("some_cuda")
def test_a_requested_cpu_is_used_even_with_cuda() -> None:
    compute = resolve_compute("cpu", "auto", half="float16")
    assert (compute.device, compute.device_name, compute.dtype) == ("cpu", "CPU", "float32")


def test_the_record_is_plain_json() -> None:
    record = Compute(device="cpu", device_name="CPU", dtype="float32", threads=2).record()
    assert json.loads(json.dumps(record)) == {"device": "cpu", "device_name": "CPU", "dtype": "float32", "threads": 2}


def _drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40])
def test_a_seed_fixes_all_three_random_generators(seed: int) -> None:
    seed_everything(seed)
    first = _drawn()
    assert all(one != other for one, other in zip(first, _drawn(), strict=True))
    seed_everything(seed)
    assert _drawn() == first
    seed_everything(seed + 1)
    assert all(one != other for one, other in zip(first, _drawn(), strict=True))


@pytest.mark.parametrize(("dtype", "half"), [("float32", None), ("bfloat16", torch.bfloat16)])
def test_the_forward_pass_is_in_the_runs_precision(dtype: str, half: torch.dtype | None) -> None:
    compute = Compute(device="cpu", device_name="CPU", dtype=dtype, threads=1)
    linear = torch.nn.Linear(4, 4)
    with compute.autocast():
        assert linear(torch.ones(1, 4)).dtype == (half or torch.float32)
    with compute.autocast(enabled=False):
        assert linear(torch.ones(1, 4)).dtype == torch.float32
