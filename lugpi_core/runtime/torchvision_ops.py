"""Let torchvision import where its compiled part does not fit the installed torch.

open_clip imports torchvision, and transformers and diffusers do when it is there. A torchvision built for CUDA beside a CPU build of
torch cannot load its compiled operators; importing it then fails with ``operator torchvision::nms does not exist`` and takes the other
three down with it. lugpi calls none of these operators: declaring the schemas of the two that torchvision names at import time is enough
for everything to import. Calling one of them still fails, as it must. Where the compiled part loads, nothing is declared.

Call ``allow_torchvision_import`` before the first import of open_clip, transformers or diffusers.
"""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def allow_torchvision_import() -> bool:
    """Declare the missing operators once per process; return whether anything had to be declared."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _compiled_part_loads(Path(spec.origin).parent):
        return False
    _declare()
    return True


def _compiled_part_loads(package: Path) -> bool:
    from torch import ops

    load: Callable[[str], None] = ops.load_library
    for library in (*package.glob("_C*.so"), *package.glob("_C*.pyd"), *package.glob("_C*.dylib")):
        try:
            load(str(library))
        except OSError:
            continue
        return True
    return False


def _declare() -> None:
    from torch import library as torch_library

    make: Callable[..., Any] = torch_library.Library
    library = make("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)


# A Library object takes its schemas back when it is collected.
_declared: list[object] = []
