"""Waiting for a clock that counts whole seconds."""

import time


def next_second() -> None:
    """Sleep until the system clock shows another second, as files with time stamps in seconds would."""
    time.sleep(1.001 - time.time() % 1)
