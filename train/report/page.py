"""The report as one HTML page: style, script, charts, pictures and figures are all within; its policy forbids the browser to fetch
anything.

Nothing is counted here but what a chart is drawn from; every text goes through ``train.report.html``, which escapes it.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from train.evidence.records import points
from train.evidence.render import FIDELITY_HEADER, HEADER, MINUS, OTHERS_HEADER, model_cells
from train.evidence.rows import MORE
from train.report.cases import Voice, changes_by_class
from train.report.charts import changes_chart, confusion_chart, curves_chart, reliability_chart
from train.report.content import Curve, Report
from train.report.html import Html, json_script, tag, together
from train.report.sheet import contact_sheet, sheet_data

# More classes have no room in a matrix or a chart; the lists beside them name what matters most.
MOST_IN_A_MATRIX, MOST_CHANGES, MOST_CONFUSIONS = 40, 24, 8
_ASSETS = Path(__file__).with_name("assets")


def page(report: Report) -> str:
    """Return the whole page."""
    style, script = asset("page.css"), asset("page.js")
    sections = [
        ("summary", "Summary", _summary(report)),
        ("tables", "Tables", _tables(report)),
        ("changes", "Gains and losses", _changes(report)),
        ("calibration", "Fidelity and calibration", _calibration(report)),
        ("confusions", "Confusions", _confusions(report)),
        ("training", "Training", _training(report)),
        ("examples", "Examples", contact_sheet(report)),
        ("made", "How it was made", _made(report)),
    ]
    there = [(identity, words, section) for identity, words, section in sections if section is not None]
    links = [tag("li", tag("a", words, href=f"#{identity}")) for identity, words, _ in there]
    title = f"{report.tables.dataset}: lugpi report"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the summary", href="#summary", class_="skip"),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(section for _, _, section in there)),
        json_script("data", {"tables": report.tables.to_json(), "examples": sheet_data(report)}),
        tag("script", Html(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def policy(style: str, script: str) -> str:
    """Return the page's Content-Security-Policy: pictures from within, this one style, this one script, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    own = f"style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


@cache
def asset(name: str) -> str:
    """Return the style sheet or the script."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def _summary(report: Report) -> Html:
    baseline = report.voice("baseline")
    tiles = [_tile(one, None if one is baseline else baseline) for one in report.voices]
    counts = ", ".join(f"{count:,} {split}" for split, count in report.corpus.counts().items())
    return tag(
        "section",
        tag("p", "Learning using generated privileged information", class_="kicker"),
        tag("h1", report.tables.dataset, dir="auto"),
        tag("p", f"{counts} examples of {len(report.corpus.label_names)} classes. {_models(report)}.", class_="aside"),
        *(tag("p", _sign(sentence), class_="lede") for sentence in _verdicts(report)),
        tag("dl", *tiles, class_="tiles") if tiles else None,
        tag("aside", *(tag("p", note) for note in report.notes), class_="notes", aria_label="Notes") if report.notes else None,
        id="summary",
    )


def _models(report: Report) -> str:
    models, seeds = report.tables.model_count, len(report.tables.seeds)
    of_no_row = len(report.tables.others)
    more = f", {of_no_row} more of no row" if of_no_row else ""
    return f"{models} model{'s' * (models != 1)} of {seeds} seed{'s' * (seeds != 1)}{more}"


def _verdicts(report: Report) -> list[str]:
    """Return the sentence of the shown student's row, or else of the teacher's, and that of the same student of more texts."""
    sentences = {name: str(verdict) for name, verdict in report.tables.verdicts.items()}
    for one in reversed(report.voices):
        for name, row in report.tables.rows.items():
            if name in sentences and one.name in [model.folder for model in row.models]:
                return [sentences[shown] for shown in (name, name + MORE) if shown in sentences]
    return []


def _tile(one: Voice, baseline: Voice | None) -> Html:
    gain = "" if baseline is None else f"{points(float(one.hits.mean() - baseline.hits.mean()))} points beside the baseline"
    return tag(
        "div",
        tag("dt", one.role, class_=f"role {one.role}"),
        tag("dd", f"{one.hits.mean():.1%}", class_="figure"),
        tag("dd", "test accuracy of ", tag("code", one.name), class_="aside"),
        tag("dd", _sign(gain), class_="aside") if gain else None,
    )


def _tables(report: Report) -> Html:
    parts: list[Html | None] = []
    seen: set[str] = set()
    for table in report.tables.tables:
        cells = [cells for cells in report.tables.cells(table) if report.tables.rows[cells[0]].seeds]
        if {row[0] for row in cells} <= seen:
            continue  # nothing that was not shown above
        seen |= {row[0] for row in cells}
        parts += [
            tag("h3", table.title),
            tag("ul", *(tag("li", _sign(str(verdict))) for verdict in table.verdicts), class_="verdicts") if table.verdicts else None,
            _table(HEADER, cells, table.title),
            tag("p", table.caption, class_="aside"),
        ]
    if report.tables.others:
        others = [model_cells(one) for one in report.tables.others]
        parts += [tag("h3", "Other models of the run"), _table(OTHERS_HEADER, others, "Other models of the run")]
    absent = [name for name, row in report.tables.rows.items() if not row.seeds]
    absent_words = f"Not trained: {', '.join(absent)}." if absent else None
    return tag("section", tag("h2", "Tables"), *parts, tag("p", absent_words, class_="aside") if absent_words else None, id="tables")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> Html:
    """Return a table that scrolls by itself where it is too wide; columns without any figure are left out."""
    kept = [n for n in range(len(header)) if n == 0 or any(cells[n] for cells in rows)]
    head = tag("tr", *(tag("th", _sign(header[n]), scope="col") for n in kept))
    lines = [tag("tr", tag("th", cells[0], scope="row"), *(tag("td", _sign(cells[n])) for n in kept[1:])) for cells in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *lines)), class_="scroll", role="region", tabindex=0, aria_label=title)


def _changes(report: Report) -> Html | None:
    baseline, student = report.voice("baseline"), report.voice("student")
    if baseline is None or student is None:
        return None
    changes = changes_by_class(baseline, student)
    repaired, broken = sum(one.repaired for one in changes), sum(one.broken for one in changes)
    shown = changes
    if len(changes) > MOST_CHANGES:
        most = sorted(changes, key=lambda one: -abs(one.repaired - one.broken))[:MOST_CHANGES]
        shown = [one for one in changes if one in most]
    left_out = f" The {MOST_CHANGES} classes with the greatest differences are shown." if len(shown) < len(changes) else ""
    words = (
        f"On the test split the student repairs {repaired:,} of the baseline's wrong answers and breaks {broken:,} of its right ones "
        f"({student.name} beside {baseline.name}).{left_out} Whether the difference is more than chance is said by the tests above."
    )
    links = [
        tag("a", text, href="#examples", data_case=key)
        for key, text in (("baseline-wrong-student-right", "what it repairs"), ("student-wrong-baseline-right", "what it breaks"))
        if any(key in one.cases for one in report.examples)
    ]
    title = "Answers that the student repairs and breaks, by class"
    return tag(
        "section",
        tag("h2", "Where the student gains and where it loses"),
        tag("p", words),
        tag("p", "See examples of ", *_joined(links), ".") if links else None,
        tag("figure", changes_chart(shown, report.corpus.label_names, title), tag("figcaption", title), class_="wide"),
        id="changes",
    )


def _joined(links: Sequence[Html]) -> list[Html | str]:
    return [part for n, link in enumerate(links) for part in ((" and of ", link) if n else (link,))]


def _calibration(report: Report) -> Html:
    figures = [
        tag(
            "figure",
            reliability_chart(one.reliability, f"Reliability diagram of the {one.role}"),
            tag("figcaption", _named(one), f": ECE {one.reliability.ece:.3f}"),
            class_=one.role,
        )
        for one in report.voices
    ]
    explained = (
        "Bars: share of right answers among those of like confidence; the outline is the gap to their mean confidence. On the diagonal, "
        "confidence is what it promises; below, how many answers fall into each bin."
    )
    fidelity = report.tables.fidelity
    return tag(
        "section",
        tag("h2", "Fidelity and calibration"),
        _table(FIDELITY_HEADER, report.tables.fidelity_cells(), fidelity.title) if fidelity.rows else None,
        tag("p", fidelity.caption, class_="aside") if fidelity.rows else None,
        tag("div", *figures, class_="charts") if figures else None,
        tag("p", explained, class_="aside") if figures else None,
        id="calibration",
    )


def _confusions(report: Report) -> Html | None:
    names = report.corpus.label_names
    if not report.voices:
        return None
    figures = []
    for one in report.voices:
        chart = confusion_chart(one.confusion, names, f"Confusion matrix of the {one.role}") if len(names) <= MOST_IN_A_MATRIX else None
        figures.append(tag("figure", tag("figcaption", _named(one)), chart, _worst(one, names), class_=one.role))
    words = "Rows are the classes, columns the answers; the shade is the share of the row on the test split, the diagonal what was right."
    return tag(
        "section",
        tag("h2", "Confusions"),
        tag("p", words, class_="aside") if len(names) <= MOST_IN_A_MATRIX else None,
        tag("div", *figures, class_="charts"),
        id="confusions",
    )


def _named(one: Voice) -> Html:
    """Return a voice's role, in its colour, and the name of its folder where that is another."""
    name = None if one.name == one.role else f" ({one.name})"
    return tag("span", tag("span", one.role, class_=f"role {one.role}"), name)


def _worst(one: Voice, names: Sequence[str]) -> Html | None:
    """Return the most frequent confusions in words."""
    counts_KK = one.confusion
    np.fill_diagonal(counts_KK, 0)
    order = np.argsort(-counts_KK, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(int(place) // len(names), int(place) % len(names)) for place in order if counts_KK.flat[place]]
    lines = [tag("li", f"{names[row]} → {names[column]}: {counts_KK[row, column]:,}") for row, column in pairs]
    return tag("ol", *lines, class_="worst", aria_label=f"Most frequent confusions of the {one.role}") if lines else None


def _training(report: Report) -> Html | None:
    figures = [
        _curves(report.curves, "accuracies", "Validation accuracy by epoch", is_share=True),
        _curves(report.curves, "losses", "Training loss by epoch", is_share=False),
    ]
    if not any(figures):
        return None
    voices = [_named(one) for one in report.voices]
    others = sum(one.role is None for one in report.curves)
    legend = [*voices, tag("span", f"{others} other model{'s' * (others != 1)} of the run", class_="role other") if others else None]
    note = "A student's loss has soft terms beside the cross-entropy, so losses are not compared across kinds of models."
    return tag(
        "section",
        tag("h2", "Training"),
        tag("p", *legend, class_="legend"),
        tag("div", *figures, class_="charts two"),
        tag("p", note, class_="aside"),
        id="training",
    )


def _curves(curves: Sequence[Curve], what: str, title: str, *, is_share: bool) -> Html | None:
    lines = [(one.role, getattr(one, what)) for one in curves if getattr(one, what)]
    return tag("figure", curves_chart(lines, title, is_share=is_share), tag("figcaption", title)) if lines else None


def _made(report: Report) -> Html:
    metrics = report.metrics
    config, made, compute = (metrics.get(name) or {} for name in ("config", "provenance", "compute"))
    versions = made.get("versions") or {}
    facts: Mapping[str, Any] = {
        "run": report.tables.run,
        "model described here": metrics.get("model"),
        "text model": config.get("text_model"),
        "epochs, batch, rate": _listed(config, "epochs", "batch_size", "learning_rate"),
        "computed on": _listed(compute, "device", "dtype", "optimizer"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": made.get("commit"),
        "made at": made.get("made_at"),
        "licences": "; ".join(metrics.get("licenses") or ()),
    }
    entries = [tag("div", tag("dt", name), tag("dd", str(value), dir="auto")) for name, value in facts.items() if value]
    return tag("section", tag("h2", "How it was made"), tag("dl", *entries, class_="facts"), id="made")


def _listed(record: Mapping[str, Any], *names: str) -> str:
    return ", ".join(str(record[name]) for name in names if record.get(name) is not None)


def _sign(text: str) -> Html:
    """Return a text with a minus sign where a hyphen stands for one."""
    return together(MINUS.sub("−", text))
