"""How every command runs: one-line errors, exit codes, and a machine-readable last line."""

import dataclasses
import io
import json
import os
import pty
import runpy
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from lugpi_core.command_line import Command, parse, resolved_flags, run, run_one_of, say
from lugpi_core.errors import InputError
from tests.support.checkout import ROOT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Count the things.

    A second paragraph.
    """

    dataset: str
    """What to count."""
    steps: int = 3
    """How often."""
    kind: Literal["plain", "fancy"] = "plain"
    """Which way."""
    data_dir: Path = Path("data")
    """Where."""
    latents: bool = True
    """Keep them."""
    seeds: tuple[int, ...] = (1, 2)
    """Seeds."""
    batch_size: int | Literal["auto"] = "auto"
    """At once."""
    ratio: float | None = None
    """How much."""
    again: bool | None = None
    """Once more; by default as the kind says."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(got=f"--steps {self.steps} in {self.data_dir}", expected="at least 1", do="leave it out")


def _counted(options: Options) -> dict[str, Any]:
    print("on the way")
    return {"made": resolved_flags(options)}


def _run(*arguments: str, command: Command = _counted) -> int:
    return run(command, Options, arguments, prog="python -m count")


def _raising(error: BaseException) -> Callable[[Options], dict[str, Any]]:
    def command(options: Options) -> dict[str, Any]:
        raise error

    return command


def test_the_last_line_of_stdout_is_one_json_object_with_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dataset", "größe", "--data-dir", "a/b", "--no-latents") == 0
    captured = capsys.readouterr()
    flags = {
        "dataset": "größe",
        "steps": 3,
        "kind": "plain",
        "data_dir": "a/b",
        "latents": False,
        "seeds": [1, 2],
        "batch_size": "auto",
        "ratio": None,
        "again": None,
    }
    assert json.loads(captured.out.splitlines()[-1]) == {"made": flags}
    assert "größe" in captured.out
    assert captured.err == ""


def test_an_incomplete_command_exits_with_one_and_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dataset", "x", command=lambda options: {"complete": False, "rows": 3}) == 1
    assert json.loads(capsys.readouterr().out) == {"complete": False, "rows": 3}
    assert _run("--dataset", "x", command=lambda options: {"complete": True}) == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--dataset", "x", "--stepz", "3"], "got the flag --stepz; expected a flag of python -m count; did you mean '--steps'?"),
        (
            ["--dataset", "x", "--data_dirr", "3"],
            "got the flag --data_dirr; expected a flag of python -m count; did you mean '--data-dir'?",
        ),
        (["--dataset", "x", "--no-latent"], "got the flag --no-latent; expected a flag of python -m count; did you mean '--no-latents'?"),
        (
            ["--dataset", "x", "stray"],
            "got the word 'stray', which no flag takes; expected flags with their values; see python -m count --help",
        ),
        (
            ["--dataset", "x", "--steps", "many"],
            "got --steps many; expected a whole number; see python -m count --help",
        ),
        (["--steps", "3"], "got no --dataset; expected a value for it; see python -m count --help"),
        (["--dataset", "x", "--steps", "0"], "got --steps 0 in data; expected at least 1; leave it out"),
    ],
    ids=["unknown", "misspelt", "negated", "stray", "bad value", "missing", "refused by the options"],
)
def test_invalid_flags_are_one_line_and_exit_two(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*arguments, command=_raising(AssertionError("never called"))) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {error}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "got", "expected"),
    [
        (["--kind", "odd"], "--kind odd", "one of plain, fancy"),
        (["--kind=odd"], "--kind odd", "one of plain, fancy"),
        (["--steps"], "--steps", "a whole number"),
        (["--steps", "3", "--batch_size", "-x"], "--batch_size -x", "a whole number or auto"),
        (["--seeds", "1", "b"], "--seeds 1 b", "one value or several, each a whole number"),
        (["--data-dir"], "--data-dir", "a path"),
        (["--ratio", "half"], "--ratio half", "a number"),
        (["--no-latents", "--kind", "odd"], "--kind odd", "one of plain, fancy"),
        (["--latents", "--steps", "many"], "--steps many", "a whole number"),
        (["--latents", "maybe"], "the word 'maybe', which no flag takes", "flags with their values"),
        (["--no-latents", "maybe"], "the word 'maybe', which no flag takes", "flags with their values"),
    ],
)
def test_a_bad_value_is_named_with_what_its_flag_takes(
    arguments: list[str], got: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("--dataset", "x", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: got {got}; expected {expected}; ")
    assert error.count("\n") == 1


def test_a_misspelt_flag_is_named_before_the_one_it_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--datasett", "x") == 2
    assert "got the flag --datasett; expected a flag of python -m count; did you mean '--dataset'?" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "UTF-8"])
@pytest.mark.parametrize(("arguments", "said"), [(["--stepz", "3"], "the flag --stepz"), (["--steps", "many"], "--steps many;")])
def test_the_error_line_is_the_same_in_any_encoding(
    encoding: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert _run("--dataset", "x", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: got {said}")


ON_A_TERMINAL = """
import dataclasses, sys
from lugpi_core.command_line import run

@dataclasses.dataclass
class Options:
    steps: int = 3

sys.exit(run(lambda options: {}, Options, sys.argv[1:], prog="p"))
"""


def test_the_error_line_on_a_terminal_has_no_colours_or_boxes() -> None:
    terminal, end = pty.openpty()
    arguments = [sys.executable, "-c", ON_A_TERMINAL, "--stepz", "4"]
    done = subprocess.run(arguments, stdin=end, stdout=end, stderr=end, check=False, cwd=ROOT, env={**os.environ, "TERM": "xterm-256color"})
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert done.returncode == 2
    assert shown == "error: got the flag --stepz; expected a flag of p; did you mean '--steps'?\r\n"


def test_a_long_path_in_an_error_is_not_wrapped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    path = "/a" * 100
    assert _run("--dataset", "x", "--steps", "0", "--data-dir", path) == 2
    assert f"--steps 0 in {path}; expected" in capsys.readouterr().err


def test_help_goes_to_stdout_and_exits_zero_without_running(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help", command=_raising(AssertionError("never called"))) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: python -m count")
    assert "Count the things.\n\nA second paragraph." in captured.out
    assert all(f"--{name}" in captured.out for name in ("dataset", "steps", "kind", "data-dir", "latents", "seeds"))
    assert captured.err == ""


def test_parse_returns_the_options_or_none_after_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(Options, ["--dataset", "x", "--steps", "5"], prog="p") == Options(dataset="x", steps=5)
    assert parse(Options, ["-h"], prog="p") is None
    assert "usage: p" in capsys.readouterr().out


def test_an_input_error_in_the_command_is_one_line_and_exit_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dataset", "x", command=_raising(InputError(got="a\nfile", expected="b", do="c"))) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: got a file; expected b; c\n")


def test_an_interrupted_dry_run_has_kept_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    dry = dataclasses.make_dataclass("Dry", [("dry_run", bool, False)])
    assert run(_raising(KeyboardInterrupt()), dry, ["--dry-run"], prog="p") == 130
    assert capsys.readouterr().err == "interrupted: a dry run writes nothing\n"


def test_an_interrupted_command_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dataset", "x", command=_raising(KeyboardInterrupt())) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "interrupted: what is written is kept; run the same command to continue\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "error: got a file: No space left on device; expected to read and write there; fix that"),
        (OSError(5, "Input/output error", "/x/shard-00000.h5"), "error: got /x/shard-00000.h5: Input/output error; expected"),
        (PermissionError(13, "Permission denied", "/x"), "error: got /x: Permission denied; expected"),
        (IsADirectoryError(21, "Is a directory", "/x/tables.json"), "error: got /x/tables.json: Is a directory; expected"),
    ],
)
def test_disk_errors_are_one_line_and_exit_two(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--dataset", "x", command=_raising(error)) == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("ours"), ValueError("ours"), RuntimeError("ours"), KeyError("ours"), AssertionError("ours")])
def test_any_other_error_is_our_bug_and_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        _run("--dataset", "x", command=_raising(error))


@pytest.mark.parametrize("arguments", ["featurize --help", "train tables --help", "train --help"])
def test_a_closed_stdout_ends_the_command_without_a_traceback(arguments: str) -> None:
    """As ``| head`` does."""
    command = [sys.executable, "-m", *arguments.split()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.close()
        assert started.stderr is not None
        assert started.stderr.read() == b""
    assert started.returncode == 128 + signal.SIGPIPE


def test_figures_that_are_not_json_are_our_bug() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _run("--dataset", "x", command=lambda options: {"accuracy": float("nan")})


def test_a_warning_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def command(options: Options) -> dict[str, Any]:
        warnings.simplefilter("always")
        warnings.warn("the cut\n   was long", stacklevel=1)
        warnings.warn("twice", UserWarning, stacklevel=1)
        return {}

    shown = warnings.showwarning
    assert _run("--dataset", "x", command=command) == 0
    captured = capsys.readouterr()
    assert captured.err == "warning: the cut was long\nwarning: twice\n"
    assert captured.out == "{}\n"
    assert warnings.showwarning is shown, "put back"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Other:
    """Weigh the things."""

    grams: int = 1


COMMANDS: dict[str, tuple[Command, type]] = {"count": (_counted, Options), "weigh": (lambda options: {"grams": options.grams}, Other)}


def _one_of(*arguments: str) -> int:
    return run_one_of(COMMANDS, arguments, prog="python -m things", about="What things there are.")


def test_the_first_argument_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _one_of("weigh", "--grams", "7") == 0
    assert json.loads(capsys.readouterr().out) == {"grams": 7}


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert _one_of("wiegh") == 2
    captured = capsys.readouterr()
    assert captured.err == "error: got the command 'wiegh'; expected one of count, weigh; did you mean 'weigh'?\n"
    assert captured.out == ""


def test_an_unknown_flag_names_the_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert _one_of("weigh", "--gram", "7") == 2
    assert capsys.readouterr().err == "error: got the flag --gram; expected a flag of python -m things weigh; did you mean '--grams'?\n"


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_help_alone_lists_the_commands(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert _one_of(*arguments) == status
    captured = capsys.readouterr()
    assert captured.err == ("" if arguments else "error: got no command; expected one of count, weigh; name one after python -m things\n")
    lines = captured.out.splitlines()
    assert lines[0] == "usage: python -m things {count,weigh} [OPTIONS]"
    assert "What things there are." in lines
    assert "  count  Count the things." in lines
    assert "  weigh  Weigh the things." in lines


def test_help_of_one_command_shows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert _one_of("weigh", "--help") == 0
    captured = capsys.readouterr().out
    assert captured.startswith("usage: python -m things weigh")
    assert "--grams" in captured


def test_lines_for_the_user_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("drawing 3 of 7")
    say("elsewhere", to=sys.stdout)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("elsewhere\n", "drawing 3 of 7\n")


def test_flags_are_resolved_to_plain_json_values_however_deep() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Paths:
        folders: tuple[Path, ...] = (Path("a"), Path("b"))
        nested: tuple[list[Path], ...] = ()
        ratio: float | None = None

    flags = resolved_flags(Paths(nested=([Path("c")],)))
    assert flags == {"folders": ["a", "b"], "nested": [["c"]], "ratio": None}
    assert json.loads(json.dumps(flags)) == flags


def test_the_command_line_imports_no_heavy_library() -> None:
    heavy = ["torch", "numpy", "h5py", "transformers", "diffusers", "tyro", "datasets"]
    listing = "import sys, lugpi_core.command_line as c; c.run_one_of({'a': (dict, dict)}, ['-h'], prog='p', about='')"
    code = f"{listing}; assert not set({heavy}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("package", ["featurize", "train"])
def test_an_interrupt_before_the_command_begins_ends_without_a_traceback(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, f"{package}.cli", SimpleNamespace(main=interrupted))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(package, run_name="__main__")
    assert stopped.value.code == 130


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seeds", "4", "5", "--seeds", "6"],
        ["--seeds=4", "--steps", "2", "--seeds", "5", "6"],
        ["--seeds", "4", "--dataset", "d", "--seeds=5", "--seeds=6"],
    ],
)
def test_a_list_that_is_given_several_times_is_one_list(arguments: list[str]) -> None:
    parsed = parse(Options, ["--dataset", "d", *arguments], prog="python -m count")
    assert parsed.seeds == (4, 5, 6)
    with pytest.raises(InputError, match="got --seeds several times, once without a value"):
        parse(Options, ["--dataset", "d", *arguments, "--seeds"], prog="python -m count")


def test_a_list_without_a_value_is_told() -> None:
    with pytest.raises(InputError, match="got --seeds without a value"):
        parse(Options, ["--seeds", "--dataset", "d"], prog="python -m count")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--again"], True),
        (["--no-again", "--steps", "2"], False),
        (["--again", "--no-again"], False),
        (["--no_again", "--again", "--latents"], True),
    ],
)
def test_a_switch_is_on_or_off_or_not_given(arguments: list[str], expected: bool | None) -> None:
    parsed = parse(Options, ["--dataset", "d", *arguments], prog="python -m count")
    assert parsed.again is expected


def test_a_flag_is_left_out_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="got --ratio None; expected a number"):
        parse(Options, ["--dataset", "d", "--ratio", "None"], prog="python -m count")
    parse(Options, ["--help"], prog="python -m count")
    shown = capsys.readouterr().out
    assert "--again, --no-again" in shown
    assert "None," not in shown


def test_a_path_of_the_name_none_is_written_as_one_and_a_text_is_a_text() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Places:
        output: Path | None = None
        column: str | None = None

    for words in (["--output", "None"], ["--output=None"]):
        with pytest.raises(InputError, match=r"got --output None; expected a path; leave it out, or give \./None for that name"):
            parse(Places, words, prog="p")
    assert parse(Places, ["--output", "./None", "--column", "None"], prog="p") == Places(output=Path("None"), column="None")


def test_a_misspelt_switch_and_a_value_of_one_are_named() -> None:
    with pytest.raises(InputError, match=r"got the flag --no-agan; .*; did you mean '--no-again'"):
        parse(Options, ["--dataset", "d", "--no-agan"], prog="python -m count")
    with pytest.raises(InputError, match="got the word 'twice', which no flag takes"):
        parse(Options, ["--dataset", "d", "--again", "twice"], prog="python -m count")
