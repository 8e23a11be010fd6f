"""The report's contact sheet: examples with text, picture and the models' answers, and the filters above them."""

import base64
from collections import Counter

from train.report.charts import confidence_bar
from train.report.content import Report, ShownAnswer, ShownExample
from train.report.html import Html, tag

# Texts beyond this many letters are folded, and cut at a blank near there.
_OPEN_LETTERS = 220


def contact_sheet(report: Report) -> Html | None:
    """Return the section with the examples; None where none are shown."""
    if not report.examples:
        return None
    has_pictures = any(one.picture is not None for one in report.examples)
    return tag(
        "section",
        tag("h2", "Examples"),
        tag("p", how_chosen(report), class_="aside"),
        _filters(report, has_pictures),
        tag("noscript", tag("p", "Filters and blurred pictures need JavaScript; texts and answers are all here.", class_="aside")),
        tag("ol", *(_card(report, n, has_pictures) for n in range(len(report.examples))), class_="sheet", id="sheet"),
        tag("p", "No example is of all these at once.", id="none", class_="aside", hidden=True),
        id="examples",
    )


def how_chosen(report: Report) -> str:
    """Return in words how the examples were chosen, and what must not be read off them."""
    in_all, shown = report.corpus.counts()["test"], len(report.examples)
    if shown == in_all:
        return f"All {in_all:,} test examples."
    return (
        f"{shown:,} of {in_all:,} test examples: those with a picture before those without, and among them as many of every pattern of "
        f"right and wrong answers as there are, in turn, drawn at random within each (seed {report.seed}). Rare cases are therefore more "
        "frequent here than in the test split; the counts beside the cases are those of the whole split."
    )


def sheet_data(report: Report) -> list[dict[str, object]]:
    """Return what the filters ask of each example, as a JSON value."""
    names = report.corpus.label_names
    return [
        {
            "row": one.row,
            "label": one.label,
            "cases": list(one.cases),
            "flags": list(one.flags),
            "answers": {answer.role: [names[answer.answer], round(answer.confidence, 4)] for answer in one.answers},
        }
        for one in report.examples
    ]


def _filters(report: Report, has_pictures: bool) -> Html:
    """Return the form above the sheet; it is shown by the script that it needs."""
    labels, shown = Counter(one.label for one in report.examples), Counter(case for one in report.examples for case in one.cases)
    flags = Counter(flag for one in report.examples for flag in one.flags)
    classes = [tag("option", f"{name} ({labels[k]})", value=k) for k, name in enumerate(report.corpus.label_names) if labels[k]]
    cases = [
        tag("option", f"{case.words} ({shown[case.key]} of {int(case.holds.sum()):,} in the test split)", value=case.key)
        for case in report.cases
        if shown[case.key]
    ]
    boxes = [
        tag("label", tag("input", type="checkbox", name="flag", value=flag), f" {flag} ({count})", class_="box")
        for flag, count in sorted(flags.items())
    ]
    reveal = (
        tag("button", "Show all pictures", type="button", id="reveal", aria_pressed="false") if report.is_blurred and has_pictures else None
    )
    return tag(
        "div",
        tag("label", tag("span", "Case"), tag("select", tag("option", "any", value=""), *cases, id="by-case"), class_="field wide"),
        tag("label", tag("span", "Class"), tag("select", tag("option", "any", value=""), *classes, id="by-class"), class_="field"),
        tag("div", *boxes, class_="boxes", role="group", aria_label="Flags") if boxes else None,
        tag("div", reveal, tag("button", "Clear filters", type="button", id="clear"), class_="buttons"),
        tag(
            "output", f"{len(report.examples)} of {len(report.examples)} examples", id="shown", for_="by-case by-class", aria_live="polite"
        ),
        class_="filters",
        id="filters",
        role="group",
        aria_label="Filter the examples",
        hidden=True,
    )


def _card(report: Report, n: int, has_pictures: bool) -> Html:
    one = report.examples[n]
    names = report.corpus.label_names
    head = tag(
        "div",
        tag("p", names[one.label], class_="label", dir="auto"),
        tag("p", f"no. {one.row}", tag("span", f" · {_cut(one.id, 60)}", dir="auto") if one.id != str(one.row) else None, class_="number"),
        tag("p", "drawn: ", tag("q", one.prompt, dir="auto"), class_="prompt") if one.prompt is not None else None,
        tag("p", *(tag("span", flag, class_="flag") for flag in one.flags), class_="flags") if one.flags else None,
        class_="about",
    )
    return tag(
        "li",
        tag("div", _picture(one, report.is_blurred) if has_pictures else None, head, class_="top"),
        _text(one),
        tag("ul", *(_answer(answer, names[answer.answer]) for answer in one.answers), class_="answers"),
        class_="card",
        data_n=n,
    )


def _picture(one: ShownExample, is_blurred: bool) -> Html:
    if one.picture is None:
        return tag("div", "no picture", class_="picture none")
    source = f"data:image/webp;base64,{base64.b64encode(one.picture).decode('ascii')}"
    image = tag("img", src=source, alt=f"The picture drawn for example {one.row}", width=128, height=128, decoding="async")
    if not is_blurred:
        return tag("div", image, class_="picture")
    return tag(
        "button", image, type="button", class_="picture blurred", aria_pressed="false", aria_label=f"Show the picture of example {one.row}"
    )


def _text(one: ShownExample) -> Html:
    """Return the text, what is beyond the first lines folded."""
    cut = one.text_letters - len(one.text)
    rest = tag("span", f" … {cut:,} more characters", class_="cut") if cut else None
    if len(one.text) <= _OPEN_LETTERS + 40 and not cut:
        return tag("p", one.text, class_="text", dir="auto")
    blank = one.text.rfind(" ", _OPEN_LETTERS // 2, _OPEN_LETTERS)
    place = blank if blank > 0 else _OPEN_LETTERS
    summary = tag("summary", tag("span", one.text[:place], dir="auto"), tag("span", "…", class_="fold", aria_hidden="true"))
    return tag("details", summary, tag("p", one.text[place:].lstrip(), rest, dir="auto"), class_="text")


def _answer(answer: ShownAnswer, name: str) -> Html:
    kind, sign, words = ("right", "✓", "right") if answer.is_right else ("wrong", "✗", "wrong")
    return tag(
        "li",
        tag("span", answer.role, class_=f"role {answer.role}"),
        tag("span", tag("span", sign, aria_hidden="true"), tag("span", words, class_="unseen"), class_=f"sign {kind}"),
        tag("span", name, class_="class", dir="auto"),
        tag("span", f"{answer.confidence:.0%}", class_="share"),
        confidence_bar(answer.confidence, kind),
    )


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[:letters]}…"
