"""The one-line error, and the suggested name."""

import pytest

from lugpi_core.errors import EXIT_BAD_INPUT, EXIT_INCOMPLETE, EXIT_OK, EXIT_SIGNAL, InputError, nearest


def test_an_input_error_says_got_expected_and_what_to_do() -> None:
    assert str(InputError(got="7", expected="8", do="give 8")) == "got 7; expected 8; give 8"


def test_an_input_error_is_one_line_whatever_is_put_in_it() -> None:
    error = InputError(got="a\nb\t c", expected="x\r\ny", do="  z  ")
    assert str(error) == "got a b c; expected x y; z"


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert (EXIT_OK, EXIT_INCOMPLETE, EXIT_BAD_INPUT, EXIT_SIGNAL) == (0, 1, 2, 128)


@pytest.mark.parametrize(("typed", "meant"), [("imbd", "imdb"), ("cwi-new", "cwi-news"), ("20news", "20ng")])
def test_a_misspelt_name_gets_a_suggestion(typed: str, meant: str) -> None:
    assert nearest(typed, ["imdb", "20ng", "cwi-news", "demo"]) == f"did you mean {meant!r}?"


def test_a_name_similar_to_none_gets_the_sorted_list() -> None:
    assert nearest("zzz", iter(["imdb", "20ng"])) == "choose one of 20ng, imdb"


def test_of_a_long_list_the_nearest_few_are_named() -> None:
    message = nearest("zzz", [f"model-{n}" for n in range(1999)] + ["zaza"])
    assert message.startswith("choose one of 2,000, such as zaza, ")
    assert message.count(",") == 6


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m text", "red text"),
        ("\x1b[38;2;1;2;3mred\x1b[K", "red"),
        ("\x1b]0;a title\x07text\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "textlink"),
        ("a\x1bMb", "ab"),
        ("one\x00two\x08\x1b", r"one\x00two\x08\x1b"),
        ("a name \udcff of undecodable bytes", r"a name \udcff of undecodable bytes"),
        ("né́e عمر‌ی 👩‍🚀\u2028x", "né́e عمر‌ی 👩‍🚀 x"),
    ],
)
def test_an_error_changes_nothing_in_the_terminal(written: str, shown: str) -> None:
    assert str(InputError(got=written, expected="x", do="y")) == f"got {shown}; expected x; y"
