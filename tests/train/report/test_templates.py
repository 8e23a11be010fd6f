"""The templates' environment: what is escaped, what is replaced, and that no JSON breaks out of its block."""

import html
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from train.report.templates import jinja_environment

ELEMENT = '<p title="{{ text }}">{{ text }}</p>'


def rendered(source: str, **values: object) -> str:
    return jinja_environment().from_string(source).render(**values)


class Parsed(HTMLParser):
    """Everything that a parser finds."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[object] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.found.append(data)

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", data))


def test_a_macro_escapes_once() -> None:
    source = "{% macro bold(text) %}<b>{{ text }}</b>{% endmacro %}{{ bold(text) }}"
    assert rendered(source, text="1 < 2 & 'x'") == "<b>1 &lt; 2 &amp; &#39;x&#39;</b>"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1))
def test_any_text_is_one_text_and_one_attribute(text: str) -> None:
    found = Parsed(rendered(ELEMENT, text=text)).found
    assert found[0] == ("p", {"title": text})
    assert "".join(str(part) for part in found[1:]) == text


@pytest.mark.parametrize("number", [0x00, 0x1B, 0x85, 0xD800, 0xDFFF, 0xFFFF])
def test_characters_that_html_forbids_are_replaced(number: int) -> None:
    assert rendered(ELEMENT, text=f"a{chr(number)}b") == '<p title="a\ufffdb">a\ufffdb</p>'
    rendered(ELEMENT, text=chr(number)).encode()


def test_blanks_and_marks_of_direction_stay() -> None:
    assert rendered("{{ text }}", text="a\tb\nc \u200f\u202e\u2066") == "a\tb\nc \u200f\u202e\u2066"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_comes_back_and_never_ends_its_block(value: object) -> None:
    inside = rendered("{{ value|tojson }}", value=["</script><!--", value])
    assert not set("<>&") & set(inside)
    assert json.loads(inside) == ["</script><!--", value]
    assert html.unescape(inside) == inside


def test_nan_and_undefined_names_are_errors() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        rendered("{{ value|tojson }}", value=float("nan"))
    with pytest.raises(UndefinedError):
        rendered("{{ nothing }}")


def test_no_template_marks_a_text_as_safe() -> None:
    from train.report import templates

    for path in Path(templates.__file__).with_name("templates").iterdir():
        source = path.read_text(encoding="utf-8")
        assert "|safe" not in source.replace(" ", ""), path
        assert "autoescape" not in source, path
