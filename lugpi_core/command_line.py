"""The frame of every command: flags from a dataclass, one-line errors with exit 2, one JSON object as the last line of stdout.

``tyro`` is imported here and nowhere else.
"""

import contextlib
import dataclasses
import errno
import inspect
import io
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from lugpi_core.errors import EXIT_BAD_INPUT, EXIT_INCOMPLETE, EXIT_OK, EXIT_SIGNAL, InputError, nearest
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted

# A command takes its options, does its work and returns the figures for the last line; ``"complete": False`` among them means exit status
# 1.
Command = Callable[..., dict[str, Any]]

# What a disk, a quota or a permission can refuse at any moment; every other OSError is our own bug and keeps its traceback.
_DISK_FAULTS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EMFILE}
_DISK_FAULTS |= {errno.EISDIR, errno.ENOTDIR}
_COLOUR = r"\x1b\[[0-9;]*m"
_RULE = r"^(?:[╭╰].*[╮╯]|[│ ]*[─-]{3,}[│ ]*)$"


def run(command: Command, options: type, arguments: Sequence[str], *, prog: str) -> int:
    """Parse ``arguments`` into the dataclass ``options``, run ``command`` on it and print its figures; return the exit status.

    Help goes to stdout; warnings and errors go to stderr, a line each.
    """
    return _while_read(lambda: _run(command, options, arguments, prog))


def _while_read(act: Callable[[], int]) -> int:
    """Return the exit status of ``act``; where whoever reads stdout leaves, as ``head`` does, that of a process which that ends."""
    try:
        status = act()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is still in the buffer
        return EXIT_SIGNAL + signal.SIGPIPE
    return status


def _run(command: Command, options: type, arguments: Sequence[str], prog: str) -> int:
    try:
        parsed = parse(options, arguments, prog=prog)
    except InputError as error:
        return _fail(error)
    if parsed is None:
        return EXIT_OK
    with warnings.catch_warnings(), terminated_like_interrupted():
        warnings.showwarning = _show_warning
        try:
            figures = command(parsed)
        except InputError as error:
            return _fail(error)
        except OSError as error:
            if error.errno not in _DISK_FAULTS:
                raise
            return _fail(_disk_fault(error))
        except KeyboardInterrupt as stop:
            print("interrupted: what is written is kept; the same command goes on from here", file=sys.stderr)
            return EXIT_SIGNAL + (stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT)
    if speaks():
        print(json.dumps(figures, ensure_ascii=False, allow_nan=False), flush=True)
    return EXIT_OK if figures.get("complete", True) else EXIT_INCOMPLETE


def run_one_of(commands: Mapping[str, tuple[Command, type]], arguments: Sequence[str], *, prog: str, about: str) -> int:
    """Run the command that the first argument names.

    ``--help`` alone lists the commands with the first line of their options' docstring; an unknown name is answered with the nearest one.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands))
        lines = [f"usage: {prog} {{{','.join(commands)}}} [OPTIONS]\n\n{about}\n\ncommands:"]
        lines += [f"  {name:<{width}}  {(options.__doc__ or '').splitlines()[0]}" for name, (_, options) in commands.items()]
        lines.append(f"\n{prog} COMMAND --help shows the options of one.")
        return _while_read(lambda: print("\n".join(lines)) or (EXIT_OK if arguments else EXIT_BAD_INPUT))
    name, *rest = arguments
    if name not in commands:
        return _fail(InputError(got=f"the command {name!r}", expected=f"one of {', '.join(commands)}", do=nearest(name, commands)))
    command, options = commands[name]
    return run(command, options, rest, prog=f"{prog} {name}")


def parse(options: type, arguments: Sequence[str], *, prog: str) -> Any:
    """Return an instance of the dataclass ``options`` made from ``arguments``, or None after ``--help`` was printed.

    Raises:
        InputError: an unknown flag, a missing one or a bad value.
    """
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, args=list(arguments), prog=prog, description=inspect.getdoc(options))
    except SystemExit as stop:
        if not stop.code:
            return None
        raise _own_error(stop) or _as_input_error(said.getvalue(), options, prog) from None


def resolved_flags(options: Any) -> dict[str, Any]:
    """Return the options as a JSON value, every default included."""
    return {name: _plain(value) for name, value in dataclasses.asdict(options).items()}


def say(line: str, *, to: TextIO | None = None) -> None:
    """Print one line for the person at the terminal; to stderr, for stdout's last line belongs to the machine. Of several processes that
    do one command together, the first speaks."""
    if speaks():
        print(line, file=to or sys.stderr, flush=True)


def speaks() -> bool:
    """Whether this process is the first, or the only one, of those that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _own_error(error: BaseException | None) -> InputError | None:
    # tyro draws what a dataclass raises as a box, which breaks long words; the error itself is what was being handled when it gave up.
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def _as_input_error(box: str, options: type, prog: str) -> InputError:
    # tyro draws a box, coloured on a terminal, of plain letters where stdout is not UTF-8: a title, a rule, the complaint, a rule, advice.
    blocks = re.split(_RULE, re.sub(_COLOUR, "", box), flags=re.MULTILINE)
    complaint = " ".join(blocks[min(1, len(blocks) - 1)].replace("│", " ").split())
    if missing := re.match(r"Missing from [^:]*: (--\S+)", complaint):
        return InputError(got=f"no {missing[1]}", expected="a value for it", do=f"see {prog} --help")
    if unknown := re.match(r"Unrecognized options: (\S+?)(,|$)", complaint):
        names = [(field.name.replace("_", "-"), field.type) for field in dataclasses.fields(options)]
        flags = [f"--{name}" for name, _ in names] + [f"--no-{name}" for name, kind in names if kind in (bool, "bool")]
        return InputError(got=f"the flag {unknown[1]}", expected=f"a flag of {prog}", do=nearest(unknown[1], flags))
    return InputError(
        got=complaint.removeprefix("Error parsing ") or "flags that cannot be read",
        expected="flags as the help shows",
        do=f"see {prog} --help",
    )


def _disk_fault(error: OSError) -> InputError:
    return InputError(
        got=f"{error.filename2 or error.filename or 'a file'}: {error.strerror}",
        expected="to read and write there",
        do="mend that and run the same command again; what is written is kept",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _fail(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {' '.join(str(message).split())}")
