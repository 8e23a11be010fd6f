"""Elements made of texts: what is escaped, what is left out, and that no JSON breaks out of its block."""

import html
import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.report.html import Html, escaped, json_script, tag, together


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


def test_elements_by_hand() -> None:
    inner = tag("b", "1 < 2 & 'x'", class_="a b", data_n=3, hidden=True, title=None, disabled=False)
    assert inner == '<b class="a b" data-n="3" hidden>1 &lt; 2 &amp; &#x27;x&#x27;</b>'
    assert tag("p", inner, None, "<b>") == f"<p>{inner}&lt;b&gt;</p>"
    assert tag("img", alt='"', width=2.50) == '<img alt="&quot;" width="2.5">'
    assert tag("label", for_="x", aria_label="y") == '<label for="x" aria-label="y"></label>'
    assert together("<", Html("<i>"), None) == "&lt;<i>"
    assert tag("meta", name="viewport") == '<meta name="viewport">'


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1))
def test_any_text_is_read_back_as_one_text_and_one_attribute(text: str) -> None:
    found = Parsed(tag("p", text, title=text)).found
    assert found[0] == ("p", {"title": text})
    assert "".join(str(part) for part in found[1:]) == text


@pytest.mark.parametrize("number", [0x00, 0x1B, 0x85, 0xD800, 0xDFFF, 0xFFFF])
def test_what_html_may_not_hold_is_replaced(number: int) -> None:
    assert escaped(f"a{chr(number)}b") == "a\ufffdb"
    escaped(chr(number)).encode()


def test_blanks_and_marks_of_direction_stay() -> None:
    assert escaped("a\tb\nc \u200f\u202e\u2066") == "a\tb\nc \u200f\u202e\u2066"


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_json_comes_back_and_never_ends_its_block(value: object) -> None:
    block = json_script("data", ["</script><!--", value])
    head, tail = '<script type="application/json" id="data">', "</script>"
    assert block.startswith(head)
    assert block.endswith(tail)
    inside = block.removeprefix(head).removesuffix(tail)
    assert not set("<>&") & set(inside)
    assert json.loads(inside) == ["</script><!--", value]
    assert html.unescape(inside) == inside


def test_no_number_that_is_none_reaches_the_page() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_script("data", float("nan"))
