"""A training that is stopped like by a signal from outside."""

import os
import signal
from typing import Any

import pytest

from train.learning import loop


def stop_once(monkeypatch: pytest.MonkeyPatch, *, step: int) -> None:
    """Let the next training get SIGTERM before that step, and later ones run through."""
    one_step, has_stopped = loop.Learner.one_step, list[bool]()

    def stops(learner: Any, *given: Any) -> float:
        if learner.step == step and not has_stopped:
            has_stopped.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return one_step(learner, *given)

    monkeypatch.setattr(loop.Learner, "one_step", stops)
