"""How every command runs: flags from a dataclass, one-line errors with exit status 2, one JSON object as the last line of stdout.

``tyro`` is imported here and nowhere else.
"""

import contextlib
import dataclasses
import inspect
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, get_args, get_origin, get_type_hints

from lugpi_core.errors import DISK_FAULTS, EXIT_BAD_INPUT, EXIT_INCOMPLETE, EXIT_OK, EXIT_SIGNAL, InputError, nearest, one_line
from lugpi_core.remote.address import address_of
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted

# A command takes its options and returns the figures for the last line; ``"complete": False`` among them means exit status 1, unless
# ``"part_complete"`` says of a part of the work that it is done. A text is printed as it is.
Command = Callable[..., dict[str, Any] | str]
# The type of a flag that is on, off, or not given.
_SWITCH = bool | None


def run(command: Command, options: type, arguments: Sequence[str], *, prog: str) -> int:
    """Parse ``arguments`` into the dataclass ``options``, run ``command`` on it and print its figures; return the exit status.

    Help goes to stdout; warnings and errors go to stderr, one line each.
    """
    return _while_read(lambda: _run(command, options, arguments, prog))


def _while_read(act: Callable[[], int]) -> int:
    """Return the exit status of ``act``, or 128 + SIGPIPE if the reader of stdout (for example ``head``) closed it."""
    try:
        status = act()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes the rest of the buffer
        return EXIT_SIGNAL + signal.SIGPIPE
    return status


def _run(command: Command, options: type, arguments: Sequence[str], prog: str) -> int:
    try:
        parsed = parse(options, arguments, prog=prog)
    except InputError as error:
        return _fail(error)
    if parsed is None:
        return EXIT_OK
    try:
        with warnings.catch_warnings(), terminated_like_interrupted():
            show_warnings_in_one_line()
            figures = command(parsed)
    except InputError as error:
        return _fail(error)
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        return _fail(_disk_fault(error))
    except KeyboardInterrupt as stop:
        is_dry = dataclasses.asdict(parsed).get("dry_run", False)
        kept = "a dry run writes nothing" if is_dry else "what is written is kept; run the same command to continue"
        print(f"interrupted: {kept}", file=sys.stderr)
        return EXIT_SIGNAL + (stop.signal_number if isinstance(stop, Stopped) else signal.SIGINT)
    if is_first_process():
        print(figures if isinstance(figures, str) else json.dumps(figures, ensure_ascii=False, allow_nan=False), flush=True)
    is_complete = isinstance(figures, str) or figures.get("part_complete", figures.get("complete", True))
    return EXIT_OK if is_complete else EXIT_INCOMPLETE


def run_one_of(commands: Mapping[str, tuple[Command, type]], arguments: Sequence[str], *, prog: str, about: str) -> int:
    """Run the command that the first argument names.

    ``--help`` alone lists the commands with the first line of their options' docstrings; the error for an unknown name suggests one.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, commands))
        lines = [f"usage: {prog} {{{','.join(commands)}}} [OPTIONS]\n\n{about}\n\ncommands:"]
        lines += [f"  {name:<{width}}  {(options.__doc__ or '').splitlines()[0]}" for name, (_, options) in commands.items()]
        lines.append(f"\n{prog} COMMAND --help shows the options of a command.")
        status = _while_read(lambda: print("\n".join(lines)) or EXIT_OK)
        if arguments:
            return status
        return _fail(InputError(got="no command", expected=f"one of {', '.join(commands)}", do=f"name one after {prog}"))
    name, *rest = arguments
    if name not in commands:
        return _fail(InputError(got=f"the command {name!r}", expected=f"one of {', '.join(commands)}", do=nearest(name, commands)))
    command, options = commands[name]
    return run(command, options, rest, prog=f"{prog} {name}")


def parse(options: type, arguments: Sequence[str], *, prog: str) -> Any:
    """Return an instance of the dataclass ``options`` parsed from ``arguments``, or None after ``--help`` was printed.

    Raises:
        InputError: an unknown flag, a missing one or a bad value.
    """
    import tyro

    kinds = get_type_hints(options)
    for flag, *values in _by_flag(arguments):
        if values == ["None"] and kinds.get(_field_name(flag)) == (Path | None):
            raise InputError(got=f"{flag} None", expected="a path", do="leave it out, or give ./None for that name")
    for name, kind in kinds.items():
        if any(get_origin(each) is tuple for each in (kind, *get_args(kind))):
            arguments = _together(arguments, name)
    try:
        # tyro prints its errors as boxes; _flag_error finds the fault from the dataclass and the arguments instead.
        with contextlib.redirect_stderr(io.StringIO()):
            result: tuple[Any, list[str]] = tyro.cli(
                options,
                args=list(arguments),
                prog=prog,
                description=inspect.getdoc(options),
                return_unknown_args=True,
                config=(tyro.conf.DisallowNone,),  # a flag is left out for None
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise _own_error(stop) or _flag_error(options, arguments, prog) from None
    parsed, unknown = result
    if unknown:
        raise _unknown_flag(options, unknown[0], prog)
    return parsed


def _together(arguments: Sequence[str], name: str) -> list[str]:
    """Return the arguments with all values of a list's flag behind its first place: argparse would forget all but the last."""
    flag = f"--{name.replace('_', '-')}"
    values: list[str] = []
    others: list[str] = []
    first: int | None = None
    current = others
    for argument in arguments:
        if argument.startswith("--") and _field_name(argument.partition("=")[0]) == name:
            first = len(others) if first is None else first
            current = values
            current += argument.split("=", 1)[1:]
        else:
            current = others if argument.startswith("--") else current
            current.append(argument)
    groups = [words for words in _by_flag(arguments) if _field_name(words[0]) == name]
    if any(len(words) == 1 for words in groups):
        often = " several times, once" if len(groups) > 1 else ""
        raise InputError(got=f"{flag}{often} without a value", expected="values each time", do="give some, or leave the empty one out")
    return others if first is None else [*others[:first], flag, *values, *others[first:]]


def resolved_flags(options: Any) -> dict[str, Any]:
    """Return the options as a JSON value, including every default."""
    return {name: _json_value(value) for name, value in dataclasses.asdict(options).items()}


def say(line: str, *, to: TextIO | None = None) -> None:
    """Print one line for the user to stderr; of several processes that run one command together, only the first prints."""
    if is_first_process():
        print(line, file=to or sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this process is the first, or the only one, that a launcher such as torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _own_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that the dataclass raised, if any; tyro was handling it when it exited."""
    while error is not None and not isinstance(error, InputError):
        error = error.__context__
    return error


def _flag_error(options: type, arguments: Sequence[str], prog: str) -> InputError:
    """Return the error for arguments that tyro rejects: an unknown flag, a missing one, or a value of another type."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    given = {_field_name(flag): (flag, *values) for flag, *values in _by_flag(arguments)}
    for name, (flag, *_) in given.items():
        if name.removeprefix("no_") not in fields:
            return _unknown_flag(options, flag, prog)
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in given:
            return InputError(got=f"no --{name.replace('_', '-')}", expected="a value for it", do=f"see {prog} --help")
    kinds = get_type_hints(options)
    for name, words in given.items():
        kind = kinds[name if name in fields else name.removeprefix("no_")]
        if not _is_accepted(name, kind, words):
            return InputError(got=" ".join(words), expected=_expected(kind), do=f"see {prog} --help")
    return InputError(got=" ".join(arguments), expected="flags as the help shows", do=f"see {prog} --help")


def _by_flag(arguments: Sequence[str]) -> list[list[str]]:
    """Return each flag with the values that follow it."""
    groups: list[list[str]] = []
    for word in arguments:
        flag, is_assigned, value = word.partition("=")
        if flag.startswith("--"):
            groups.append([flag, value] if is_assigned else [flag])
        elif groups:
            groups[-1].append(word)
    return groups


def _field_name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _unknown_flag(options: type, flag: str, prog: str) -> InputError:
    """Return the error for a word that is no flag of the options, nor a value of one."""
    if not flag.startswith("-"):
        return InputError(got=f"the word {flag!r}, which no flag takes", expected="flags with their values", do=f"see {prog} --help")
    kinds = get_type_hints(options)
    flags = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(options)]
    flags += [f"--no-{field.name.replace('_', '-')}" for field in dataclasses.fields(options) if kinds[field.name] in (bool, _SWITCH)]
    return InputError(got=f"the flag {flag}", expected=f"a flag of {prog}", do=nearest(flag, flags))


def _is_accepted(name: str, kind: Any, words: Sequence[str]) -> bool:
    """Whether tyro accepts these words for a dataclass with this flag alone."""
    import tyro

    # tyro wants a value for a bool that has no default.
    field = (name.removeprefix("no_"), bool, dataclasses.field(default=False)) if kind in (bool, _SWITCH) else (name, kind)
    only_flag = dataclasses.make_dataclass("only_flag", [field])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tyro.cli(only_flag, args=list(words), config=(tyro.conf.DisallowNone,))
    except SystemExit:
        return False
    return True


def _expected(kind: Any) -> str:
    """Return a description of the values that a flag of this type takes."""
    choices = get_args(kind)
    if get_origin(kind) is Literal:
        return f"{'one of ' if len(choices) > 1 else ''}{', '.join(map(str, choices))}"
    if get_origin(kind) is tuple:
        return f"one value or several, each {_expected(choices[0])}"
    if choices:  # of a union
        return " or ".join(_expected(choice) for choice in choices if choice is not type(None))
    return {int: "a whole number", float: "a number", bool: "no value; --no-… turns it off", Path: "a path"}.get(kind, "a value")


def _disk_fault(error: OSError) -> InputError:
    return InputError(
        got=f"{error.filename2 or error.filename or 'a file'}: {error.strerror}",
        expected="to read and write there",
        do="fix that and run the same command again; what is written is kept",
    )


def _json_value(value: Any) -> Any:
    if isinstance(value, Path):
        return address_of(value) or str(value)
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return value


def _fail(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return EXIT_BAD_INPUT


def show_warnings_in_one_line() -> None:
    """Let Python's warnings be lines for the user from now on."""
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {one_line(str(message))}")
