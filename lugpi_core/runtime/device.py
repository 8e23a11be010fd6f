"""Device, dtype and seed: resolved once per command, printed, recorded."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from lugpi_core.errors import InputError

if TYPE_CHECKING:
    import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]
DtypeChoice = Literal["auto", "float32", "float16", "bfloat16"]
MOST_SEED = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Where and in what precision a command computes. ``dtype`` is a torch dtype's name."""

    device: str
    device_name: str
    dtype: str
    threads: int

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The torch dtype that ``dtype`` names."""
        import torch

        resolved: torch.dtype = getattr(torch, self.dtype)
        return resolved

    def autocast(self, *, enabled: bool = True) -> "torch.autocast":
        """Return the context manager of a forward pass in this precision; weights stay float32."""
        import torch

        half = self.dtype in ("bfloat16", "float16")
        return torch.autocast(self.device, dtype=self.torch_dtype if half else torch.bfloat16, enabled=enabled and half)

    def record(self) -> dict[str, Any]:
        """Return what goes into a JSON record."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.device_name}, {self.dtype}"


def resolve_compute(device: DeviceChoice, dtype: DtypeChoice, *, half: Literal["float16", "bfloat16"]) -> Compute:
    """Resolve ``auto``: CUDA in ``half`` precision if available, otherwise the CPU in float32.

    Raises:
        InputError: CUDA is requested but not available, or float16 is requested on the CPU.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise InputError(got="--device cuda", expected="a CUDA device that torch can see", do="use --device cpu, or install a CUDA build")
    chosen = "cuda" if has_cuda and device != "cpu" else "cpu"
    if chosen == "cpu" and dtype == "float16":  # few processors multiply it; many multiply bfloat16 (AVX512-BF16, AMX, NEON)
        raise InputError(got="--dtype float16 on the CPU", expected="float32 or bfloat16 there", do="choose one, or use a CUDA device")
    if dtype == "auto":
        dtype = half if chosen == "cuda" else "float32"
    name = torch.cuda.get_device_name() if chosen == "cuda" else "CPU"
    return Compute(device=chosen, device_name=name, dtype=dtype, threads=torch.get_num_threads())


def take_own_device(local_rank: int) -> None:
    """Compute on a CUDA device of this process's own, where several processes of a machine see the same several devices."""
    import torch

    if (count := torch.cuda.device_count()) > 1:
        torch.cuda.set_device(local_rank % count)


def half_for_training() -> Literal["bfloat16", "float16"]:
    """Return bfloat16, whose range needs no loss scaling, or float16 on a CUDA card without native bfloat16."""
    import torch

    lacks_bfloat16 = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return "float16" if lacks_bfloat16 else "bfloat16"


def require_seed(seed: int) -> None:
    """Raise InputError unless every random generator accepts the seed."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(got=f"--seed {seed}", expected=f"0 to {MOST_SEED}", do="give a number from there")


def seed_everything(seed: int) -> None:
    """Seed the random generators of Python, NumPy and torch, CUDA devices included."""
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
