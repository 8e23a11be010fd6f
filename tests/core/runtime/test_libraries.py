"""Other libraries stay quiet except for errors, and torchvision imports whatever its compiled part is."""

import gc
import importlib.machinery
import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lugpi_core.runtime import libraries
from lugpi_core.runtime.libraries import (
    declare_torchvision_operators,
    prepare_libraries,
    start_up,
    this_process_is_ours,
    without_garbage_collection,
)
from tests.support.checkout import ROOT

SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
}
LOGGERS = (
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


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore warnings and levels after the test; unset the settings."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_garbage_is_collected_again_after_imports() -> None:
    with without_garbage_collection():
        with pytest.raises(ImportError), without_garbage_collection():
            raise ImportError
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with without_garbage_collection():
            pass
        assert not gc.isenabled(), "as it was"
    finally:
        gc.enable()


def test_what_a_command_imports_is_never_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[bool] = []
    monkeypatch.setattr(libraries, "_ours", [])
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with start_up():
        pass
    assert frozen == [], "the process is a user's, whose garbage may be large"
    this_process_is_ours()
    with start_up():
        pass
    assert frozen == [False], "before anything can be looked at"
    assert gc.isenabled()


@pytest.mark.usefixtures("untouched")
def test_the_libraries_log_only_errors() -> None:
    prepare_libraries()
    assert {name: os.environ[name] for name in SETTINGS} == SETTINGS
    assert {logging.getLogger(name).level for name in LOGGERS} == {logging.ERROR}


@pytest.mark.usefixtures("untouched")
def test_the_users_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, "chosen")
    logging.getLogger("transformers").setLevel(logging.INFO)
    root_level = logging.getLogger().level
    prepare_libraries()
    assert {os.environ[name] for name in SETTINGS} == {"chosen"}
    assert logging.getLogger("transformers").level == logging.INFO
    assert logging.getLogger().level == root_level


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("path", "level", "heard"),
    [
        ("site-packages/open_clip/factory.py", logging.WARNING, False),
        ("site-packages/open_clip/factory.py", logging.ERROR, True),
        ("notebook.py", logging.WARNING, True),
    ],
)
def test_of_the_root_loggers_records_only_open_clips_advice_is_dropped(path: str, level: int, heard: bool) -> None:
    prepare_libraries()
    root = logging.getLogger()
    record = root.makeRecord("root", level, path, 1, "text", (), None)
    assert bool(root.filter(record)) == heard


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("module", "heard"), [("torch", False), ("torch.nn.x", False), ("timm.models", False), ("torchdata", True), ("lugpi_core.files", True)]
)
def test_only_the_libraries_warnings_are_dropped(module: str, heard: bool) -> None:
    warnings.simplefilter("always")
    prepare_libraries()
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("advice", UserWarning, "file.py", 1, module=module)
    assert bool(caught) == heard


# What torchvision 0.28 does at import time: it names the operators.
FAKE = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets
"""

IMPORT_FAKE = """
import torch
from lugpi_core.runtime.libraries import _declared, declare_torchvision_operators

assert declare_torchvision_operators() is True
assert declare_torchvision_operators() is True
assert len(_declared) == 1
import torchvision

assert torchvision.__file__.startswith("{folder}")
for name in ("nms", "qnms"):
    schema = str(getattr(torch.ops.torchvision, name).default._schema)
    assert schema == f"torchvision::{{name}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor", schema
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError:
    print("calling it still fails")
"""


def _python(code: str, *folders: Path) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.parametrize("library", ["open_clip", "transformers", "diffusers"])
def test_the_libraries_import_with_the_installed_torchvision(library: str) -> None:
    prepare_libraries()  # as tests/conftest.py did before the first import
    assert importlib.import_module(library).__version__


def test_without_torchvisions_compiled_part_its_schemas_are_declared(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(FAKE)
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"not a library of this machine")
    done = _python(IMPORT_FAKE.format(folder=tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "calling it still fails"


@pytest.fixture
def declarations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """One entry for each declaration; ``torchvision`` is an empty package of the test's."""
    spec = importlib.machinery.ModuleSpec("torchvision", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "torchvision" else None)
    declared: list[object] = []
    monkeypatch.setattr(libraries, "_declared", declared)
    monkeypatch.setattr(libraries, "_declare", lambda: declared.append(1))
    return declared


def test_calling_it_twice_does_nothing_new(declarations: list[object]) -> None:
    assert declare_torchvision_operators() is True
    assert declare_torchvision_operators() is True
    assert declarations == [1]


@pytest.mark.parametrize("name", ["_C.so", "_C.cpython-311-x86_64-linux-gnu.so", "_C.pyd", "_C.dylib"])
def test_if_the_compiled_part_loads_nothing_is_declared(
    tmp_path: Path, declarations: list[object], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).write_bytes(b"")
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert declare_torchvision_operators() is False
    assert loaded == [str(tmp_path / name)]
    assert declarations == []


def test_one_loadable_compiled_part_is_enough(tmp_path: Path, declarations: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_C.so").write_bytes(b"")
    (tmp_path / "_C.dylib").write_bytes(b"")

    def load(path: str) -> None:
        if path.endswith(".so"):
            raise OSError("undefined symbol")

    monkeypatch.setattr(torch.ops, "load_library", load)
    assert declare_torchvision_operators() is False
    assert declarations == []


def test_if_the_compiled_part_does_not_load_schemas_are_declared(
    tmp_path: Path, declarations: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_C.so").write_bytes(b"")

    def load(path: str) -> None:
        raise OSError("undefined symbol")

    monkeypatch.setattr(torch.ops, "load_library", load)
    assert declare_torchvision_operators() is True
    assert declarations == [1]


def test_without_torchvision_nothing_is_declared(declarations: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert declare_torchvision_operators() is False
    assert declarations == []
