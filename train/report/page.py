"""The report as one HTML page: style, script, charts, images and figures are all inside; its policy forbids the browser to fetch
anything. The words and the layout are in ``templates``."""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from markupsafe import Markup

from train.evidence.few_shots import SHOTS_CAPTION, SHOTS_HEADER, shots_cells
from train.evidence.records import UNDEFINED, RowResult, Verdict, difference_text, unit
from train.evidence.render import fidelity_header, header, model_cells, others_header, why_header
from train.evidence.rows import BASELINE, MORE
from train.learning.task_rules import METRIC_NAMES, Metric, rules_of
from train.report.cases import Case, ClassChange, ShownModel, changes_by_class
from train.report.charts import (
    Chart,
    changes_chart,
    confusion_chart,
    curves_chart,
    numbers_chart,
    numbers_shown,
    reliability_chart,
    sources_chart,
)
from train.report.content import ReportContent, ShownExample, ShownStores
from train.report.recorded_charts import agreement_chart, probe_chart, shots_charts, work_chart
from train.report.templates import jinja_environment

# More classes do not fit into a matrix or a chart; the lists next to them name what matters most.
MOST_IN_A_MATRIX, MOST_CHANGES, MOST_CONFUSIONS, MOST_CLASSES = 40, 24, 8, 100
# Longer texts are folded, and cut at a blank near there.
_OPEN_LETTERS = 220
_ASSETS = Path(__file__).with_name("assets")


def page(content: ReportContent) -> str:
    """Return the whole page."""
    style, script = asset("page.css"), asset("page.js")
    return (
        jinja_environment()
        .get_template("page.html.j2")
        .render(
            content=content,
            tables=content.tables,
            style=Markup(style),
            script=Markup(script),
            policy=policy(style, script),
            data={"tables": content.tables.to_json(), "examples": _filter_data(content)},
            verdicts=_shown_verdicts(content),
            tiles=[_tile(content, model) for model in content.models],
            left_out=", ".join(_left_out(content)),
            result_tables=_result_tables(content),
            sources=_sources(content),
            fidelity_table=_table(content.tables.fidelity.title, fidelity_header(content.tables.task), content.tables.fidelity_cells()),
            diversity_table=_table(content.tables.diversity.title, content.tables.diversity_header(), content.tables.diversity_cells()),
            why_table=_table(content.tables.why.title, why_header(content.tables.task), content.tables.why_cells()),
            changes=_changes(content),
            metric=METRIC_NAMES[rules_of(content.tables.task).metrics[0]],
            scores={model.role: UNDEFINED if model.score is None else f"{model.score:.4f}" for model in content.models},
            reliability_charts=[
                reliability_chart(
                    model.reliability, f"Reliability diagram of the {model.role}", is_of_classes=content.tables.task == "multi-label"
                )
                for model in content.models
                if model.reliability is not None
            ],
            confusions=_confusions(content),
            audit_table=None if content.audit is None else _table("Audit", content.audit.header, content.audit.rows),
            shots=shots_charts(content.shots),
            shots_table=_table("Few shots", SHOTS_HEADER, [shots_cells(figure) for figure in content.shots], (), SHOTS_CAPTION),
            stores_table=None if content.stores is None else _table("Compared stores", content.stores.header, content.stores.rows),
            stores_charts=_stores_charts(content.stores),
            seen_table=None if content.seen is None else _table("Pictures of classes", content.seen.header, content.seen.rows),
            seen_url="" if content.seen is None else f"data:image/png;base64,{base64.b64encode(content.seen.sheet).decode('ascii')}",
            class_table=_class_table(content),
            numbers=_numbers_charts(content),
            points=points_in_words(len(content.models[0].labels)) if content.models else "",
            curves=_curve_charts(content),
            facts=_facts(content),
            filters=_filters(content),
            cards=[_card(example) for example in content.examples],
        )
    )


def policy(style: str, script: str) -> str:
    """Return the page's Content-Security-Policy: images from within, this one style, this one script, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    own = f"style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'"
    return f"default-src 'none'; img-src data:; {own}; base-uri 'none'; form-action 'none'"


@cache
def asset(name: str) -> str:
    """Return the style sheet or the script."""
    return (_ASSETS / name).read_text(encoding="utf-8")


def _shown_verdicts(content: ReportContent) -> list[Verdict]:
    """Return the verdict on the shown student's row, or else on the teacher's, and on the same student distilled on more texts."""
    verdicts = content.tables.verdicts
    for model in reversed(content.models):
        if (row := _row_of(content, model)) is not None and row.row in verdicts:
            return [verdicts[shown] for shown in (row.row, row.row + MORE) if shown in verdicts]
    return []


def _row_of(content: ReportContent, model: ShownModel) -> RowResult | None:
    """Return the row of the tables that has a shown model; None for one of no row, and for several teachers together."""
    return next((row for row in content.tables.rows.values() if model.name in [one.folder for one in row.models]), None)


@dataclass(frozen=True, kw_only=True)
class _Tile:
    """A shown model's primary metric: of its row over the seeds, as in the tables; of a model of no row, its own.

    Attributes:
        model: which one.
        figure: the score.
        over: how many seeds it is of; empty where the run has one.
        gain: the difference from the baseline, in words; empty where there is none.
    """

    model: ShownModel
    figure: str
    over: str
    gain: str


def _tile(content: ReportContent, model: ShownModel) -> _Tile:
    tables, row, baseline = content.tables, _row_of(content, model), content.model("baseline")
    metric = rules_of(tables.task).metrics[0]
    spread = row.test[metric] if row is not None and row.test is not None else None
    score = model.score if row is None else None if spread is None else spread.mean
    figure = UNDEFINED if score is None else f"{score:.1%}" if tables.task == "single-label" else f"{score:.4f}"
    over = gain = ""
    if len(tables.seeds) > 1:
        over = f", mean of {len(row.seeds)} seeds" if row is not None and len(row.seeds) > 1 else f", seed {model.seed} alone"
    finding = next((one for one in tables.findings if row is not None and (one.row, one.reference) == (row.row, BASELINE)), None)
    if finding is not None:
        difference = difference_text(finding.comparison.difference, metric) + unit(metric)
        gain = f"{difference} compared with the baseline" + ", not significant" * (finding.outcome == "not shown")
    elif row is None and baseline is not None and baseline.score is not None and model.score is not None:
        difference = difference_text(model.score - baseline.score, metric) + unit(metric)
        gain = f"{difference} compared with the baseline" + f" of seed {baseline.seed}" * (len(tables.seeds) > 1)
    return _Tile(model=model, figure=figure, over=over, gain=gain)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A table as it is shown: columns without any figure are left out."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    verdicts: Sequence[Verdict] = ()
    caption: str = ""


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], verdicts: Sequence[Verdict] = (), caption: str = "") -> _Table:
    kept = [n for n in range(len(header)) if n == 0 or any(cells[n] for cells in rows)]
    return _Table(
        title=title,
        header=[header[n] for n in kept],
        rows=[[cells[n] for n in kept] for cells in rows],
        verdicts=verdicts,
        caption=caption,
    )


def _left_out(content: ReportContent) -> list[str]:
    """Return the names of the scores that the page's tables have no room for: all but the primary one and another."""
    return [METRIC_NAMES[metric] for metric in rules_of(content.tables.task).metrics[2:]]


def _result_tables(content: ReportContent) -> list[_Table]:
    """Return the tables that have rows with models which no table before them has, and one of the other models; equal captions once."""
    tables: list[_Table] = []
    seen: set[str] = set()
    for table in content.tables.tables:
        rows = [cells for cells in content.tables.cells(table) if content.tables.rows[cells[0]].seeds]
        names = {cells[0] for cells in rows}
        if not names <= seen:
            caption = "" if table.caption in [one.caption for one in tables] else table.caption
            heads = header(content.tables.task)
            kept = [n for n, head in enumerate(heads) if head not in _left_out(content)]
            # An interval stands below its difference: so all columns fit on a page of 1,200 px.
            lines = [[cells[n].replace(" [", "\n[") for n in kept] for cells in rows]
            tables.append(_table(table.title, [heads[n] for n in kept], lines, table.verdicts, caption))
        seen |= names
    if content.tables.others:
        tables.append(
            _table("Other models of the run", others_header(content.tables.task), [model_cells(model) for model in content.tables.others])
        )
    return tables


def _sources(content: ReportContent) -> Chart | None:
    metric = rules_of(content.tables.task).metrics[0]
    return sources_chart(content.sources, metric, f"Where the test {METRIC_NAMES[metric]} comes from") if content.sources else None


def _stores_charts(stores: ShownStores | None) -> list[Chart]:
    """Return the charts of the compared stores: probes and agreement of each column, and work."""
    if stores is None:
        return []
    charts = [chart(column) for column in stores.columns for chart in (probe_chart, agreement_chart)]
    return [chart for chart in (*charts, work_chart(stores.works)) if chart is not None]


@dataclass(frozen=True, kw_only=True)
class _Changes:
    """What the student changes compared with the baseline: counts over all classes, and a chart of them or of the
    ``shown_classes`` that change most."""

    baseline: ShownModel
    student: ShownModel
    repaired: int
    broken: int
    shown_classes: int | None
    chart: Chart


def _changes(content: ReportContent) -> _Changes | None:
    baseline, student = content.model("baseline"), content.model("student")
    if baseline is None or student is None or content.tables.task == "regression":
        return None
    changes = changes_by_class(baseline, student)
    largest = sorted(changes, key=lambda change: -abs(change.repaired - change.broken))[:MOST_CHANGES]
    shown: list[ClassChange] = [change for change in changes if change in largest]
    return _Changes(
        baseline=baseline,
        student=student,
        repaired=sum(change.repaired for change in changes),
        broken=sum(change.broken for change in changes),
        shown_classes=len(shown) if len(shown) < len(changes) else None,
        chart=changes_chart(shown, content.corpus.label_names, "Answers that the student repairs and breaks, by class"),
    )


@dataclass(frozen=True, kw_only=True)
class _Confusions:
    """A model's confusion matrix, None where there are too many classes, and its most frequent confusions with their counts."""

    model: ShownModel
    chart: Chart | None
    worst: Sequence[tuple[str, str, int]]


def _confusions(content: ReportContent) -> list[_Confusions]:
    """Return the confusions of answers of a single class."""
    if content.tables.task != "single-label":
        return []
    names = content.corpus.label_names
    has_matrix = len(names) <= MOST_IN_A_MATRIX
    confusions = []
    for model in content.models:
        chart = confusion_chart(model.confusion, names, f"Confusion matrix of the {model.role}") if has_matrix else None
        errors_KK = model.confusion
        np.fill_diagonal(errors_KK, 0)
        order = np.argsort(-errors_KK, axis=None, kind="stable")[:MOST_CONFUSIONS]
        pairs = [(int(place) // len(names), int(place) % len(names)) for place in order if errors_KK.flat[place]]
        worst = [(names[row], names[column], int(errors_KK[row, column])) for row, column in pairs]
        confusions.append(_Confusions(model=model, chart=chart, worst=worst))
    return confusions


def _class_table(content: ReportContent) -> _Table | None:
    """Return how many test examples each class has, and the F1 of each shown model, the most frequent classes first; None unless there are
    several labels."""
    if content.tables.task != "multi-label" or not content.models:
        return None
    counts_K = content.models[0].labels.sum(axis=0).astype(int)
    f1_of = [model.class_f1 for model in content.models]
    names = content.corpus.label_names
    rows = [
        (names[k], f"{counts_K[k]:,}", *(f"{f1_K[k]:.3f}" for f1_K in f1_of)) for k in np.argsort(-counts_K, kind="stable")[:MOST_CLASSES]
    ]
    has_seeds = len(content.tables.seeds) > 1
    header = ("class", "test examples", *(model.role + f", seed {model.seed}" * has_seeds for model in content.models))
    return _Table(title="F1 of each class on the test split", header=header, rows=rows)


def _numbers_charts(content: ReportContent) -> list[Chart]:
    """Return each shown model's answers over the labels, of a regression."""
    if content.tables.task != "regression":
        return []
    return [numbers_chart(model.labels, model.answers, f"Answers of the {model.role} over the labels") for model in content.models]


def points_in_words(examples: int) -> str:
    """Return which of so many test examples have a point in the charts of numbers."""
    shown = len(numbers_shown(examples))
    return "each test example" if shown == examples else f"{shown:,} of the {examples:,} test examples, evenly spaced by label"


def _curve_charts(content: ReportContent) -> list[Chart]:
    """Return the charts of the validation score, one for each metric that decided, and of the training loss, as far as recorded."""
    charts = []
    for metric in get_args(Metric):
        lines = [(curve.role, curve.scores[metric]) for curve in content.curves if metric in curve.scores]
        lines = [(role, line) for role, line in lines if any(score is not None for score in line)]
        title = f"Validation {METRIC_NAMES[metric]} by epoch"
        charts += [curves_chart(lines, title, is_share=metric == "accuracy")] if lines else []
    losses = [(curve.role, curve.losses) for curve in content.curves if curve.losses]
    return charts + ([curves_chart(losses, "Training loss by epoch", is_share=False)] if losses else [])


def _facts(content: ReportContent) -> dict[str, Any]:
    """Return how the shown model was trained, as names and values; what is not recorded is left out."""
    metrics = content.metrics
    config, provenance, compute = (metrics.get(name) or {} for name in ("config", "provenance", "compute"))
    facts: Mapping[str, Any] = {
        "run": content.tables.run,
        "model described here": metrics.get("model"),
        "text model": config.get("text_model"),
        "epochs, batch, rate": _listed(config, "epochs", "batch_size", "learning_rate"),
        "computed on": _listed(compute, "device", "dtype", "optimizer"),
        "versions": ", ".join(f"{name} {version}" for name, version in (provenance.get("versions") or {}).items() if version),
        "commit": provenance.get("commit"),
        "trained at": provenance.get("made_at"),
        "licences": "; ".join(metrics.get("licenses") or ()),
    }
    return {name: value for name, value in facts.items() if value}


def _listed(record: Mapping[str, Any], *names: str) -> str:
    return ", ".join(str(record[name]) for name in names if record.get(name) is not None)


def _filter_data(content: ReportContent) -> list[dict[str, object]]:
    """Return what the filters need of each example, as a JSON value."""
    has_one = content.tables.task == "single-label"
    return [
        {
            "row": example.row,
            "label": example.classes[0] if has_one else list(example.classes),
            "cases": list(example.cases),
            "flags": list(example.flags),
            "answers": {answer.role: [answer.answer, *_rounded(answer.confidence)] for answer in example.answers},
        }
        for example in content.examples
    ]


def _rounded(confidence: float | None) -> list[float]:
    return [] if confidence is None else [round(confidence, 4)]


@dataclass(frozen=True, kw_only=True)
class _Filters:
    """The cases, classes and flags that shown examples have, with the number of these; of cases, also that in the test split."""

    cases: Sequence[tuple[Case, int, int]]
    classes: Sequence[tuple[int, str, int]]
    flags: Sequence[tuple[str, int]]

    @property
    def case_keys(self) -> set[str]:
        """The keys of the cases."""
        return {case.key for case, _, _ in self.cases}


def _filters(content: ReportContent) -> _Filters:
    of_case = Counter(case for example in content.examples for case in example.cases)
    of_class = Counter(label for example in content.examples for label in example.classes)
    return _Filters(
        cases=[(case, of_case[case.key], int(case.holds.sum())) for case in content.cases if of_case[case.key]],
        classes=[(label, content.corpus.label_names[label], of_class[label]) for label in sorted(of_class)],
        flags=sorted(Counter(flag for example in content.examples for flag in example.flags).items()),
    )


@dataclass(frozen=True, kw_only=True)
class _Card:
    """An example as it is shown: the part of its text that is open, the part that is folded, how many letters are cut, its image."""

    example: ShownExample
    opening: str
    rest: str
    cut: int
    image_url: str | None


def _card(example: ShownExample) -> _Card:
    text, cut = example.text, example.text_letters - len(example.text)
    place = len(text)
    if len(text) > _OPEN_LETTERS + 40 or cut:
        blank = text.rfind(" ", _OPEN_LETTERS // 2, _OPEN_LETTERS)
        place = blank if blank > 0 else _OPEN_LETTERS
    url = None if example.image is None else f"data:image/webp;base64,{base64.b64encode(example.image).decode('ascii')}"
    return _Card(example=example, opening=text[:place], rest=text[place:].lstrip(), cut=cut, image_url=url)
