"""Where the checkout is, and its data."""

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The corpora's own archives, where a checkout has them beside it; tests that want them skip with a reason elsewhere.
DATA = ROOT.parent / "shared" / "data"

Command = Callable[..., "subprocess.CompletedProcess[str]"]
