"""The report's Jinja templates: every value is escaped, and an undefined name is an error."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.evidence.render import MINUS
from train.learning.task_rules import plain_number

# Characters that HTML forbids: control characters, and halves of surrogate pairs, which UTF-8 cannot encode.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@cache
def jinja_environment() -> Environment:
    """Return the environment of the templates next to this module."""
    folder = Path(__file__).with_name("templates")
    found = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_allowed
    )
    # The filter tojson writes <, > and & as numbers, so that no text can end the page's data block.
    found.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "allow_nan": False, "separators": (",", ":")}
    found.filters |= {"number": number, "minus": minus, "percent": percent, "plain": plain_number}
    return found


def _allowed(value: Any) -> Any:
    """Replace what HTML forbids in a text by U+FFFD; Markup consists of such texts already."""
    return _FORBIDDEN.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def number(value: float) -> str:
    """Return a number of an SVG attribute, to two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def minus(value: object) -> str:
    """Return a text with a minus sign where a hyphen stands for one."""
    return MINUS.sub("−", str(value))


def percent(share: float, digits: int = 0) -> str:
    """Return a share as a percentage."""
    return f"{share:.{digits}%}"
