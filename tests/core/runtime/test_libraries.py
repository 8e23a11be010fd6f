"""Other libraries keep quiet, but for errors; the user's own settings stay."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from lugpi_core.runtime.libraries import quiet_libraries
from tests.support.checkout import ROOT

SETTINGS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
LOGGERS = ("diffusers", "transformers", "xformers", "bitsandbytes", "accelerate", "open_clip", "datasets", "httpx", None)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Warnings, levels and settings as they were before, and after."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("untouched")
def test_the_libraries_are_told_to_say_errors_only() -> None:
    quiet_libraries()
    assert {name: os.environ[name] for name in SETTINGS} == SETTINGS
    assert {logging.getLogger(name).level for name in LOGGERS} == {logging.ERROR}


@pytest.mark.usefixtures("untouched")
def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, "chosen")
    quiet_libraries()
    assert {os.environ[name] for name in SETTINGS} == {"chosen"}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("module", "heard"), [("torch", False), ("torch.nn.x", False), ("timm.models", False), ("torchdata", True), ("lugpi_core.files", True)]
)
def test_warnings_of_the_libraries_are_dropped_and_all_others_kept(module: str, heard: bool) -> None:
    warnings.simplefilter("always")
    quiet_libraries()
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("advice", UserWarning, "file.py", 1, module=module)
    assert bool(caught) == heard


def test_keeping_quiet_imports_nothing_heavy() -> None:
    code = "import sys, lugpi_core.runtime.libraries as q; q.quiet_libraries(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
