"""HTML and SVG made of elements: whatever is not made here is text, and is escaped."""

import html
import json
import re
from typing import Any

Child = str | None
_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})
# What HTML may not hold: control characters, and halves of surrogate pairs, which UTF-8 cannot say.
_UNSPEAKABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """A string that is HTML already; any other is text."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """Return an element.

    Args:
        name: of the element.
        children: elements and texts; None is left out.
        attributes: by name, an underscore for a hyphen, ``class_`` and ``for_`` for the words that Python keeps; True stands alone, False
            and None are left out.
    """
    head = "".join([name, *(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)])
    if name in _VOID:
        assert not children, name
        return Html(f"<{head}>")
    return Html(f"<{head}>{together(*children)}</{name}>")


def together(*children: Child) -> Html:
    """Return elements and texts one behind the other."""
    return Html("".join(child if isinstance(child, Html) else escaped(child) for child in children if child is not None))


def escaped(text: str) -> str:
    """Return a text as HTML shows it, in an element or in an attribute's quotes; what HTML may not hold becomes U+FFFD."""
    return html.escape(_UNSPEAKABLE.sub("\ufffd", text))


def json_script(identity: str, value: Any) -> Html:
    """Return a JSON value as a data block, out of which no text of it can break: every ``<``, ``>`` and ``&`` is written as a number."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Html(f'<script type="application/json" id="{escaped(identity)}">{text}</script>')


def _attribute(key: str, value: str | float | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{escaped(shown)}"'
