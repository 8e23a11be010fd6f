"""The report in a real browser: no requests, no complaints, filters and blurring work, nothing is wider than the screen."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.chromium import BINARY, WIDTHS_PX, Chromium
from tests.support.small_report import corpus_of, flags, hostile_csv, write_run
from train.options.tools import ReportOptions
from train.report.command import report

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium here (apt-get install chromium)")
CARDS = "[...document.querySelectorAll('.card')].filter(card => card.offsetParent !== null).map(card => Number(card.dataset.n))"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    path = hostile_csv(folder)
    write_run(folder / "run", corpus_of(path))
    return Path(report(ReportOptions(**flags(path, folder / "run")))["report"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    found = Chromium()
    yield found
    found.close()


def choose(browser: Chromium, control: str, value: str) -> None:
    browser.evaluate(
        f"(() => {{ const c = document.getElementById('{control}'); c.value = '{value}'; c.dispatchEvent(new Event('change')) }})()"
    )


def test_the_page_loads_without_complaints_or_requests(browser: Chromium, written: Path) -> None:
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(written)
    assert browser.evaluate("document.querySelectorAll('.card').length") == 24
    assert browser.evaluate("[...document.images].every(image => image.complete && image.naturalWidth === 64)")
    assert browser.complaints == []
    assert browser.requests == [written.resolve().as_uri()]
    # The policy would stop a text that was not escaped.
    browser.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://192.0.2.1/x.png'}))")
    browser.evaluate("document.body.setAttribute('onclick', 'document.title = 1'); document.body.click()")
    assert browser.evaluate("document.title") == "hostile: lugpi report"
    assert any("Content Security Policy" in line or "violates" in line for line in browser.complaints)


def test_filters_show_what_they_name(browser: Chromium, written: Path) -> None:
    browser.open(written)
    choose(browser, "by-case", "baseline-wrong-teacher-right")
    assert browser.evaluate(CARDS) == [2, 3, 4, 5]
    assert browser.evaluate("document.getElementById('shown').textContent") == "4 of 24 examples"
    choose(browser, "by-class", "2")
    assert browser.evaluate(CARDS) == [2, 5]
    choose(browser, "by-case", "student-wrong-baseline-right")
    assert browser.evaluate(CARDS) == []
    assert browser.evaluate("document.getElementById('none').offsetParent !== null")
    browser.evaluate("document.getElementById('clear').click()")
    assert browser.evaluate(CARDS) == list(range(24))
    browser.evaluate("document.querySelector('a[data-case=\"student-wrong-baseline-right\"]').click()")
    assert browser.evaluate(CARDS) == [7]


def test_images_are_unblurred_by_mouse_or_key(browser: Chromium, written: Path) -> None:
    browser.open(written)
    blurred = "[...document.querySelectorAll('.image img')].filter(image => getComputedStyle(image).filter.includes('blur')).length"
    assert browser.evaluate(blurred) == 24
    browser.evaluate("document.querySelector('button.image').focus()")
    browser.press("Enter", 13)
    assert browser.evaluate(blurred) == 23
    assert browser.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    browser.press(" ", 32)
    assert browser.evaluate(blurred) == 24
    browser.evaluate("document.getElementById('reveal').click()")
    assert browser.evaluate(blurred) == 0
    assert browser.evaluate("document.getElementById('reveal').textContent") == "Blur all images"
    browser.evaluate("document.getElementById('reveal').click()")
    assert browser.evaluate(blurred) == 24


@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_nothing_is_wider_than_the_screen(browser: Chromium, written: Path, width_px: int) -> None:
    browser.open(written, width_px=width_px)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width_px
    # Only what scrolls by itself may be wider.
    beyond = (
        "[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg, .unseen, .image')"
        " && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
    )
    assert browser.evaluate(beyond) == []


@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_text_has_enough_contrast(browser: Chromium, written: Path, is_dark: bool) -> None:
    browser.open(written, is_dark=is_dark)
    # WCAG 2.2's contrast of relative luminances, for each colour of text on each ground.
    script = """(() => {
      const style = getComputedStyle(document.documentElement);
      const light = name => {
        const hex = style.getPropertyValue(name).trim().slice(1);
        const [r, g, b] = [0, 2, 4].map(n => parseInt(hex.slice(n, n + 2), 16) / 255)
          .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const low = [];
      for (const ink of ['--ink', '--soft', '--baseline', '--teacher', '--student', '--right', '--wrong'])
        for (const ground of ['--ground', '--panel', '--faint']) {
          const [one, two] = [light(ink), light(ground)].sort((a, b) => b - a);
          if (!((one + .05) / (two + .05) >= 4.5)) low.push(`${ink} on ${ground}: ${(one + .05) / (two + .05)}`);
        }
      return low;
    })()"""
    assert browser.evaluate(script) == []
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 21, 25)" if is_dark else "rgb(251, 250, 247)")


def test_controls_have_names_and_headings_are_in_order(browser: Chromium, written: Path) -> None:
    browser.open(written)
    assert browser.evaluate(
        "[...document.querySelectorAll('select, input')].every(one => one.labels.length && one.labels[0].textContent.trim())"
    )
    assert browser.evaluate("[...document.querySelectorAll('button')].every(one => one.ariaLabel || one.textContent.trim())")
    assert browser.evaluate("[...document.images].every(image => image.alt)")
    assert browser.evaluate("[...document.querySelectorAll('svg')].every(one => one.ariaHidden === 'true' || one.ariaLabel)")
    levels = browser.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.evaluate("new Set([...document.querySelectorAll('[id]')].map(one => one.id)).size") == browser.evaluate(
        "document.querySelectorAll('[id]').length"
    )
