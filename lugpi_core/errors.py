"""The one error that a user can cause, and the exit codes of a command."""

import difflib
import errno
import re
import unicodedata
from collections.abc import Iterable, Sequence

EXIT_OK = 0
EXIT_INCOMPLETE = 1
EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128  # and the signal's number: 130 after Ctrl-C, 143 after SIGTERM, 138 and 140 after SIGUSR1 and SIGUSR2

# Disk, quota and permission errors, which can occur at any time; any other OSError that reaches a command is a bug of ours.
DISK_FAULTS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EMFILE}
DISK_FAULTS |= {errno.EISDIR, errno.ENOTDIR}

# Colours, cursor movements and titles of a terminal (ECMA-48, sections 5.4 and 8.3.89), with which some libraries write their messages.
_TERMINAL_CODE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


_LONGEST_LIST, _SOME = 40, 5  # names in one line


class InputError(ValueError):
    """Something outside the program is wrong: what was given, what was expected, and what to do.

    The commands print it as one line on stderr and exit with status 2. Any other exception is a bug of ours and keeps its traceback.

    Attributes:
        parts: what it was made of, by argument.
    """

    def __init__(self, *, got: str, expected: str, do: str) -> None:
        super().__init__(one_line(f"got {got}; expected {expected}; {do}"))
        self.parts = {"got": got, "expected": expected, "do": do}


def one_line(text: str) -> str:
    """Return a text for one line of a terminal: white space folded, terminal codes removed, other control characters as their escapes."""
    folded = " ".join(_TERMINAL_CODE.sub("", text).split())
    return "".join(repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs") else char for char in folded)


def number_of(count: int, noun: str) -> str:
    """Return ``2 empty texts`` for 2 and ``empty text{s}``."""
    return f"{count:,} {noun.format(s='' if count == 1 else 's')}"


def first_of(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are: ``a``, or ``a and 2 more``."""
    return f"{names[0]} and {len(names) - 1:,} more" if len(names) > 1 else names[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the most similar known name; if none is similar, the whole list, or of a long one the nearest."""
    choices = sorted(known)
    if close := difflib.get_close_matches(name, choices, n=1):
        return f"did you mean {close[0]!r}?"
    if len(choices) <= _LONGEST_LIST:
        return f"choose one of {', '.join(choices)}"
    some = difflib.get_close_matches(name, choices, n=_SOME, cutoff=0.0)
    return f"choose one of {len(choices):,}, such as {', '.join(some)}"
