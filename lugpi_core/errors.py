"""The one error that a user can cause, and the exit codes of a command."""

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_INCOMPLETE = 1
EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128  # and the signal's number: 130 after Ctrl-C, 143 after SIGTERM


class InputError(ValueError):
    """Something outside the program is wrong: what was given, what was expected, and what to do.

    The commands print it as one line on stderr and exit with status 2. Any other exception is a bug of ours and keeps its traceback.
    """

    def __init__(self, *, got: str, expected: str, do: str) -> None:
        one_line = f"got {got}; expected {expected}; {do}"
        super().__init__(" ".join(one_line.split()))


def number_of(count: int, noun: str) -> str:
    """Return ``2 empty texts`` for 2 and ``empty text{s}``."""
    return f"{count:,} {noun.format(s='' if count == 1 else 's')}"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the most similar known name, or the whole list if none is similar."""
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(choices)}"
