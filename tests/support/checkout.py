"""Where the checkout and its data are, and the types of the fixtures that run commands from it."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.fork_server import Process

ROOT = Path(__file__).resolve().parents[2]
# The archives of the corpora, if they are next to the checkout; tests that need them are skipped otherwise.
DATA = ROOT.parent / "shared" / "data"

Command = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "Process"]
