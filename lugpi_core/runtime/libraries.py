"""Prepare the process for torch, transformers, diffusers and open_clip, before the first of them is imported."""

import gc
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lugpi_core.runtime.torchvision_stand_in import let_open_clip_import_without_torchvision

_CHATTY_LOGGERS = (
    "diffusers",
    "transformers",
    "xformers",
    "bitsandbytes",
    "accelerate",
    "open_clip",
    "datasets",
    "httpx",
    "huggingface_hub.utils._http",
)
_TORCHVISION_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Look for no garbage inside the block: for imports, whose objects all stay, and are otherwise looked at again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def start_up() -> Iterator[None]:
    """Look for no garbage inside the block and, in a process of ours, never among what it leaves: the 300,000 objects of the model
    libraries. For what a process does once, at its start: a model that is dropped before the block ends would stay.
    """
    with without_garbage_collection():
        yield
        if _ours:
            gc.freeze()


def this_process_is_ours() -> None:
    """State that this process was started for a command of ours: it has no garbage of a user's that ``start_up`` would keep."""
    _ours.append(True)


def prepare_libraries() -> None:
    """Silence the libraries' progress bars and advice, and let them import if torchvision is not installed or does not fit torch.

    Errors still arrive, as exceptions and log records of level ERROR, and the user's own settings stay. Every command and every function of
    the Python API that runs a model calls this first, before it imports a model library; calling it again changes nothing. Imports torch.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its client logs every time that it asks again
    for logger in map(logging.getLogger, _CHATTY_LOGGERS):
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)
    logging.getLogger().addFilter(_is_no_advice_of_open_clip)  # added once, however often
    for module in ("torch", "transformers", "diffusers", "xformers", "bitsandbytes", "open_clip", "timm", "huggingface_hub"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    # The Hugging Face libraries import tqdm.auto, which warns in a notebook without ipywidgets; its text bar will do.
    warnings.filterwarnings("ignore", message="IProgress not found")
    declare_torchvision_operators()
    let_open_clip_import_without_torchvision()


def _is_no_advice_of_open_clip(record: logging.LogRecord) -> bool:
    # open_clip logs to the root logger, whose level is the user's.
    return record.levelno >= logging.ERROR or f"{os.sep}open_clip{os.sep}" not in record.pathname


def declare_torchvision_operators() -> bool:
    """Declare torchvision's operators if its compiled part does not load; return whether they had to be declared.

    open_clip imports torchvision, and so do transformers and diffusers if it is installed. A torchvision built for CUDA next to a CPU build
    of torch cannot load its compiled operators; importing it then fails with ``operator torchvision::nms does not exist``, and so do the
    other three. lugpi calls none of these operators: the schemas of the two that torchvision names at import time are enough. Calling one
    of them still fails, as it should.
    """
    if _declared:
        return True
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

    new_library: Callable[..., Any] = torch_library.Library
    library = new_library("torchvision", "DEF")
    for schema in _TORCHVISION_SCHEMAS:
        library.define(schema)
    _declared.append(library)


_ours: list[bool] = []
# A Library object withdraws its schemas when it is collected.
_declared: list[object] = []
