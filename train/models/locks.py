"""Who trains a model: one process at a time, or those of one launcher together.

``<run>/.locks/<model>.lock`` is held for as long. The kernel gives it back when its holder dies, however it dies. The files stay, empty,
for a lock on a file that somebody removes keeps nobody out.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.files import make_folder, open_file

LOCKS = ".locks"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def turn(run: Path, model: str) -> Iterator[bool]:
    """Hold a model's lock during the block and yield True; yield False at once where another process holds it."""
    with held(make_folder(run / LOCKS) / f"{model}.lock", what=run) as is_ours:
        yield is_ours


@contextmanager
def held(path: Path, *, what: Path) -> Iterator[bool]:
    """Hold the lock file of a folder ``what`` during the block and yield True; yield False at once where another process holds it.

    On a file system without locks it is always True, with a warning: there, one process at a time.
    """
    with open_file(path, os.O_CREAT | os.O_RDWR) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_ours = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(f"warning: {what} is on a file system without locks: run one command on it at a time")
            is_ours = True
        else:
            is_ours = True
        yield is_ours


@contextmanager
def alone(run: Path, model: str) -> Iterator[None]:
    """Hold a model's lock during the block.

    Raises:
        InputError: another process holds it.
    """
    with turn(run, model) as is_ours:
        if not is_ours:
            raise InputError(
                got=f"{run / model}, which another command is training",
                expected="one command a model",
                do="wait for it, or give another --name",
            )
        yield
