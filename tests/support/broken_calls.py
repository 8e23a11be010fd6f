"""Functions that break off."""

from types import ModuleType
from typing import Any

import pytest


def interrupt_third_call(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """Let the third call of a module's function raise KeyboardInterrupt, as Ctrl-C does; all others run as before."""
    function, calls = getattr(module, name), 0

    def stop_at_third(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return function(*given)

    monkeypatch.setattr(module, name, stop_at_third)
