"""A folder as if on a read-only file system; permissions alone would not stop root."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def make_read_only(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make every call that would write into a folder fail with EROFS."""
    access = os.access

    def is_inside(path: Any) -> bool:
        return isinstance(path, (str, Path)) and Path(path).is_relative_to(folder)

    def refuse(name: str) -> None:
        whole = getattr(os, name)

        def refusing(path: Any, *rest: Any, **how: Any) -> Any:
            if is_inside(path) and (name != "open" or rest[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return whole(path, *rest, **how)

        patch.setattr(os, name, refusing)

    for name in ("open", "mkdir", "unlink", "utime", "replace", "rename"):
        refuse(name)
    patch.setattr(os, "access", lambda path, mode, **how: not (mode & os.W_OK and is_inside(path)) and access(path, mode, **how))
