"""Settings: their types checked, and sliced out of the flags that inherit them."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from lugpi_core.corpora.options import CorpusOptions, CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.fields import check_fields, part_of, require_names


@dataclass(frozen=True, kw_only=True)
class _Settings:
    names: tuple[Literal["a", "b"], ...] = ()
    size: int | Literal["auto"] = "auto"
    rate: float | None = None
    folder: Path | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


def test_a_part_has_the_values_of_the_whole_and_its_own_type() -> None:
    part = part_of(CorpusOptions(dataset="x", limit=7, test_file=Path("t.csv")), CorpusSettings)
    assert type(part) is CorpusSettings
    assert part == CorpusSettings(limit=7, test_file=Path("t.csv"))


def test_the_checks_of_a_part_run() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Unchecked(CorpusSettings):
        def __post_init__(self) -> None:
            """Check nothing."""

    with pytest.raises(InputError, match="got --limit 1"):
        part_of(Unchecked(limit=1), CorpusSettings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"names": "a"}, "got names='a'; expected a tuple, each item one of a, b"),
        ({"names": ("a", "c")}, "got names=('a', 'c'); expected a tuple, each item one of a, b"),
        ({"size": 2.5}, "got size=2.5; expected a whole number or auto"),
        ({"size": "two"}, "got size='two'; expected a whole number or auto"),
        ({"size": True}, "got size=True; expected a whole number or auto"),
        ({"rate": "5e-4"}, "got rate='5e-4'; expected a number or None"),
        ({"rate": 10**400}, "expected a number or None"),
        ({"rate": False}, "got rate=False; expected a number or None"),
        ({"folder": 3}, "got folder=3; expected a path or None"),
        ({"keep": "no"}, "got keep='no'; expected True or False"),
        ({"keep": None}, "got keep=None; expected True or False"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        _Settings(**given)


def test_what_means_the_same_is_converted() -> None:
    given: dict[str, Any] = {"names": ["a", "b"], "size": np.int64(3), "rate": 1, "folder": "runs"}
    settings = _Settings(**given)
    assert settings == _Settings(names=("a", "b"), size=3, rate=1.0, folder=Path("runs"))
    assert {field.name: type(getattr(settings, field.name)) for field in fields(settings)} == {
        "names": tuple,
        "size": int,
        "rate": float,
        "folder": type(Path()),
        "keep": bool,
    }


def test_the_fields_of_a_subclass_are_checked_too() -> None:
    @dataclass(frozen=True, kw_only=True)
    class More(_Settings):
        more: int = 0

    given: dict[str, Any] = {"more": "x"}
    with pytest.raises(InputError, match="got more='x'; expected a whole number"):
        More(**given)


@pytest.mark.parametrize("given", [{"split_by": "foo"}, {"limit": 10.5}, {"limit": "10"}, {"text_column": 0}, {"test_file": 1}], ids=str)
def test_corpus_settings_of_another_type_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"got {next(iter(given))}="):
        CorpusSettings(**given)


def test_checking_settings_imports_nothing_heavy() -> None:
    code = (
        "import json, sys\nfrom lugpi_core.corpora.options import CorpusSettings\nlight = 'typeguard' not in sys.modules\n"
        "CorpusSettings()\nprint(json.dumps([light, sorted({'numpy', 'torch', 'h5py'} & set(sys.modules))]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [True, []]


def test_names_are_a_list_of_strings() -> None:
    assert require_names("rows", ["baseline", "all"]) == ("baseline", "all")
    for names in ("baseline", [1]):
        with pytest.raises(InputError, match=r"got rows=.*; expected a list of names"):
            require_names("rows", names)  # type: ignore[arg-type]
