"""What make installs: a torchvision that does not fit the installed torch is removed again."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

# Stands for both the system's Python and that of .venv: makes the folder, installs nothing, and writes down what it was asked for.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "{calls}"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-c import torchvision") exit {status} ;;
esac
"""


@pytest.mark.parametrize("target", ["install", "check"])
@pytest.mark.parametrize("fits", [True, False])
def test_a_torchvision_that_does_not_import_is_removed_after_every_installation(tmp_path: Path, target: str, fits: bool) -> None:
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(calls=calls, status=int(not fits)))
    python.chmod(0o755)
    for name in ("ruff", "mypy"):
        program = tmp_path / "venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    words = ["make", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", target]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    asked = [words.replace(" --quiet --disable-pip-version-check", "") for words in calls.read_text().splitlines()[2:]]
    removed = [] if fits else ["-m pip uninstall --yes torchvision"]
    extras = {"install": "sweep,onnx", "check": "dev"}[target]
    assert asked == [f"-m pip install -c constraints.txt -e .[{extras}]", "-c import torchvision", *removed]
    assert done.stdout.count("torchvision does not fit the installed torch and is removed") == len(removed)
    calls.unlink()
    subprocess.run([*words[:-1], "install"], cwd=ROOT, env=environment, timeout=60, check=True)
    assert not calls.exists() or "pip install" not in calls.read_text(), "what tests need contains what users need"
