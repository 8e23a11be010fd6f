"""docs/related-work.md names only flags, choices and presets that there are; every row says where its idea is, or that it is not built."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import pytest

from featurize import options as featurize_options
from featurize.generate.presets import PRESETS
from tests.support.checkout import ROOT
from train.options import distillation, settings, tables, training

TEXT = (ROOT / "docs" / "related-work.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if re.match(r"\| (?!idea)", line)]
MODULES: tuple[Any, ...] = (featurize_options, distillation, settings, tables, training)


def flags() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        for one in vars(module).values():
            if isinstance(one, type) and is_dataclass(one):
                yield from ((f"--{field.name.replace('_', '-')}", field.type) for field in fields(one))


FLAGS = dict(flags())


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"--[a-z][a-z-]+", TEXT))))
def test_a_flag_that_is_named_is_there(flag: str) -> None:
    assert flag in FLAGS


@pytest.mark.parametrize(
    ("flag", "choice"), sorted(set(re.findall(r"(--(?:prompts|several-images|update|scheduler|token-dtype)) ([a-z0-9-]+)", TEXT)))
)
def test_a_choice_that_is_named_is_there(flag: str, choice: str) -> None:
    kinds = [FLAGS[flag], *get_args(FLAGS[flag])]
    assert any(choice in get_args(kind) for kind in kinds)


def test_presets_that_are_named_are_there() -> None:
    row = next(row for row in ROWS if "BOOT" in row[1])
    named = set(re.findall(r"`(?:--generator )?([a-z0-9-]+)`", row[3])) - {"--scheduler"}
    assert named
    assert named <= set(PRESETS)


def test_every_row_says_where_the_idea_is_or_why_it_is_not() -> None:
    assert len(ROWS) > 20
    for row in ROWS:
        assert len(row) in (3, 4), row
        assert row[-1]
        if len(row) == 4 and not row[3].startswith("not built"):
            assert "`" in row[3] or "*" in row[3], row
            assert row[2], row
