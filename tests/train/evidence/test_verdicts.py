"""What a row's findings are, and what may be concluded from them about its images."""

from typing import Any

import pytest

from train.evidence.records import Finding, Outcome, p_text
from train.evidence.rows import rows_of
from train.evidence.statistics import Comparison, Discordant
from train.evidence.table_report import caption
from train.evidence.verdicts import LEGEND, UnrelatedImages, unrelated_images, verdict, verdicts

ROWS = {row.name: row for row in rows_of(("clip-demo", "vit-demo"), has_more=True)}
FIGURES: dict[Outcome, tuple[float, float, float]] = {
    "better": (0.01, 0.02, 0.04),
    "worse": (0.01, -0.04, -0.02),
    "not shown": (0.3, -0.01, 0.02),
}
NINE = Discordant(only_first=9, only_second=0, p=0.001)


def finding(row: str, reference: str, outcome: Outcome) -> Finding:
    p, low, high = FIGURES[outcome]
    test = Discordant(only_first=3, only_second=1, p=p / 2)
    intervals = {"low": low, "high": high, "over_seeds": (low, high)}
    comparison = Comparison(seeds=(0, 1), difference=(low + high) / 2, **intervals, by_seed=(test, test), pooled=test)
    return Finding(row=row, reference=reference, comparison=comparison, holm_p=p)


def one_seed(row: str, reference: str, *, p: float = 0.01) -> Finding:
    comparison = Comparison(seeds=(3,), difference=0.02, low=0.01, high=0.03, over_seeds=None, by_seed=(NINE,), pooled=NINE)
    return Finding(row=row, reference=reference, comparison=comparison, holm_p=p)


def text(name: str, baseline: Outcome, control: Outcome | None) -> str:
    row = ROWS[name]
    against: Any = None if control is None else finding(name, str(row.control), control)
    return str(verdict(row, finding(name, "baseline", baseline), against))


@pytest.mark.parametrize(
    ("p", "low", "high", "outcome"),
    [
        (0.049, 0.001, 0.02, "better"),
        (0.05, 0.001, 0.02, "not shown"),
        (0.049, 0.0, 0.02, "not shown"),
        (0.049, -0.02, -0.001, "worse"),
        (0.049, -0.02, 0.001, "not shown"),
        (1.0, -0.02, -0.001, "not shown"),
    ],
)
def test_better_needs_the_adjusted_p_and_the_interval(p: float, low: float, high: float, outcome: str) -> None:
    same = {"difference": 0.01, "pooled": NINE}
    of_one = Comparison(seeds=(0,), **same, low=low, high=high, over_seeds=None, by_seed=(NINE,))
    of_two = Comparison(seeds=(0, 1), **same, low=low, high=high, over_seeds=(low, high), by_seed=(NINE, NINE))
    for comparison in (of_one, of_two):
        assert Finding(row="r", reference="baseline", comparison=comparison, holm_p=p).outcome == outcome


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.02), (-0.02, -0.01)])
def test_an_interval_over_seeds_with_0_is_no_significant_difference(low: float, high: float) -> None:
    over_seeds = (-0.03, 0.03)
    comparison = Comparison(seeds=(0, 1), difference=low, low=low, high=high, over_seeds=over_seeds, by_seed=(NINE, NINE), pooled=NINE)
    test = Finding(row="teacher-clip-demo", reference="baseline", comparison=comparison, holm_p=0.001)
    assert test.outcome == "not shown"
    assert str(verdict(ROWS["teacher-clip-demo"], test, None)) == (
        "teacher-clip-demo: no significant difference from the baseline (p = 0.001, 95 % CI -3.00 to +3.00 points)."
    )


def test_a_finding_of_one_seed_says_so() -> None:
    against = [one_seed("teacher-clip-demo", reference) for reference in ("baseline", "teacher-none")]
    assert str(verdict(ROWS["teacher-clip-demo"], *against)) == (
        "teacher-clip-demo: better than the baseline by 2.00 points (p = 0.01, 95 % CI +1.00 to +3.00 points, one seed), and better than "
        "its text-only control teacher-none by 2.00 points (p = 0.01, 95 % CI +1.00 to +3.00 points, one seed). Evidence from "
        "one seed that images help."
    )
    assert "one seed" not in text("teacher-clip-demo", "better", "better")


@pytest.mark.parametrize(
    ("name", "control", "conclusion"),
    [
        ("teacher-clip-demo", "better", "Evidence that images help, unless shuffled and blank images"),
        ("teacher-clip-demo", "not shown", ""),
        ("student-clip-demo", "worse", "The images reduce accuracy."),
        ("teacher-blank", "better", "The gain does not come from image content"),
        ("teacher-blank", "not shown", ""),
    ],
)
def test_without_the_baseline_a_row_is_compared_with_its_control(name: str, control: Outcome, conclusion: str) -> None:
    against = finding(name, str(ROWS[name].control), control)
    (found,) = verdicts([ROWS[name]], [against], [ROWS[name]] if name == "teacher-blank" else [])
    assert str(found).startswith(f"{name}: {against.sentence}. {conclusion}")
    assert str(found).endswith("How it compares with plain fine-tuning is unknown: the baseline is not trained (--rows baseline).")


def test_better_than_both_is_evidence_that_images_help() -> None:
    assert text("student-clip-demo", "better", "better") == (
        "student-clip-demo: better than the baseline by 3.00 points (p = 0.01, 95 % CI +2.00 to +4.00 points), and better than its "
        "text-only control student-none by 3.00 points (p = 0.01, 95 % CI +2.00 to +4.00 points). Evidence that images help."
    )


def test_a_gain_that_the_control_has_too_is_no_evidence() -> None:
    assert text("student-clip-demo", "better", "not shown") == (
        "student-clip-demo: better than the baseline by 3.00 points (p = 0.01, 95 % CI +2.00 to +4.00 points), but no significant "
        "difference from its text-only control student-none (p = 0.3, 95 % CI -1.00 to +2.00 points). Not evidence that images help: "
        "distillation alone may explain the gain."
    )


ALONE = "Whether the images or distillation alone cause the gain is unknown: "
NO_CONTROL = "no text-only control differs from this row in its images alone."


@pytest.mark.parametrize(
    ("name", "baseline", "control", "conclusion"),
    [
        ("student-clip-demo", "better", "worse", "The images reduce accuracy."),
        ("student-clip-demo", "not shown", "better", "Evidence that images help."),
        ("student-clip-demo", "not shown", "not shown", ""),
        ("student-clip-demo", "not shown", "worse", "The images reduce accuracy."),
        ("student-clip-demo", "worse", "better", "Evidence that images help."),
        ("student-clip-demo", "worse", "not shown", ""),
        ("student-clip-demo", "worse", "worse", "The images reduce accuracy."),
        ("teacher-vit-demo", "better", "better", "Evidence that images help."),
        ("teacher-vit-demo", "better", "not shown", "Not evidence that images help: the larger head alone may explain the gain."),
        ("student-clip-demo-ce", "better", None, ALONE + NO_CONTROL),
        ("student-all", "better", None, ALONE + NO_CONTROL),
        ("student-all", "not shown", None, ""),
        ("student-clip-demo", "better", None, ALONE + "its text-only control is not trained (--rows controls)."),
        ("student-clip-demo", "not shown", None, ""),
        ("student-none", "better", None, "It sees no images: the gain comes from distillation alone."),
        ("student-none", "not shown", None, ""),
        ("teacher-none", "better", None, "It sees no images: the gain comes from the larger head alone."),
        ("teacher-none", "worse", None, ""),
        ("images-vit-demo", "worse", None, ""),
        ("images-vit-demo", "better", None, ""),
        ("student-shuffled", "better", "better", "The gain does not come from image content: these images are unrelated to the text."),
        ("teacher-blank", "not shown", "worse", "Images that are unrelated to the text reduce accuracy."),
        ("student-blank", "better", "not shown", "Not evidence that images help: distillation alone may explain the gain."),
        (
            "student-clip-demo-more",
            "better",
            None,
            ALONE.replace("distillation", "distillation on more texts") + "its text-only control is not trained (--rows unlabelled).",
        ),
        (
            "student-clip-demo-more",
            "better",
            "not shown",
            "Not evidence that images help: distillation on more texts alone may explain the gain.",
        ),
    ],
)
def test_a_conclusion_follows_from_both_findings(name: str, baseline: Outcome, control: Outcome | None, conclusion: str) -> None:
    row = ROWS[name]
    against = None if control is None else finding(name, str(row.control), control)
    found = verdict(row, finding(name, "baseline", baseline), against)
    assert found.conclusion == conclusion
    assert str(found).endswith(f"points). {conclusion}" if conclusion else "points).")


def test_only_rows_with_their_own_images_are_evidence_for_images() -> None:
    for name, row in ROWS.items():
        if row.command in ("teacher", "student"):
            is_evidence = text(name, "better", "better" if row.control else None).endswith("Evidence that images help.")
            assert is_evidence is (row.privileged == "images" and row.control is not None), name


def test_where_unrelated_images_help_too_there_is_no_evidence() -> None:
    names = ("teacher-clip-demo", "teacher-blank", "student-clip-demo")
    rows = [ROWS[name] for name in names]
    findings = [finding(row.name, reference, "better") for row in rows for reference in ("baseline", str(row.control))]
    assert unrelated_images(rows[0], rows, findings) == UnrelatedImages(gaining=("teacher-blank",), not_compared=("shuffled",))
    teacher, blank, student = verdicts(rows, findings, rows)
    assert teacher.conclusion == "Not evidence that image content helps: teacher-blank gained too, with images unrelated to the text."
    assert blank.conclusion == "The gain does not come from image content: these images are unrelated to the text."
    unless = "Evidence that images help, unless shuffled and blank images, which are not compared here, help as much (--rows controls)."
    assert student.conclusion == unless
    no_gain = [finding("teacher-blank", "baseline", "better"), finding("teacher-blank", "teacher-none", "not shown")]
    assert unrelated_images(rows[0], rows, no_gain) == UnrelatedImages(not_compared=("shuffled",))


def test_evidence_is_unreserved_once_unrelated_images_were_compared() -> None:
    names = ("teacher-clip-demo", "teacher-shuffled", "teacher-blank")
    rows = [ROWS[name] for name in names]
    findings = [finding("teacher-clip-demo", reference, "better") for reference in ("baseline", "teacher-none")]
    findings += [finding(name, "teacher-none", "not shown") for name in names[1:]]
    # The verdict is the same whatever table the rows are in.
    assert verdicts(rows[:1], findings, rows)[0].conclusion == "Evidence that images help."
    unless = "Evidence that images help, unless blank images, which are not compared here, help as much (--rows controls)."
    assert verdicts(rows[:1], findings[:-1], rows)[0].conclusion == unless


def test_every_compared_row_has_one_verdict() -> None:
    names = ("baseline", "teacher-clip-demo", "student-clip-demo")
    findings = [finding(name, reference, "better") for name in names[1:] for reference in ("baseline", str(ROWS[name].control))]
    found = verdicts([ROWS[name] for name in names], findings, list(ROWS.values()))
    assert [one.row for one in found] == ["teacher-clip-demo", "student-clip-demo"]
    assert [one.reference for one in found[0].findings] == ["baseline", "teacher-none"]
    assert verdicts([ROWS[name] for name in names], [], []) == ()


def test_the_legend_states_what_a_gain_does_not_show() -> None:
    for words in ("larger head", "distillation alone", "text-only control", "shuffled or blank"):
        assert words in LEGEND
    assert LEGEND in caption(3, 4)
    assert LEGEND not in caption(3, 0), "nothing is compared"
    assert "One seed: how much results vary between seeds is unknown" in caption(1, 4)


def test_a_small_p_keeps_its_size() -> None:
    assert [p_text(p) for p in (1.0, 0.0312, 0.00123, 3.21e-7, 0.0)] == ["1", "0.031", "0.0012", "3e-07", "< 1e-300"]
    assert "(p < 1e-300, 95 % CI" in one_seed("teacher-none", "baseline", p=0.0).sentence


VECTOR_ROWS = {row.name: row for row in rows_of(("clip-demo",), has_vectors=True)}


def with_vectors(control: Outcome, vectors: Outcome, text_row: Outcome) -> str:
    row, unrelated = VECTOR_ROWS["teacher-clip-demo"], [VECTOR_ROWS[f"teacher-{kind}"] for kind in ("text", "shuffled", "blank")]
    findings = [finding("teacher-clip-demo", "teacher-none", control), finding("teacher-clip-demo", "teacher-text", vectors)]
    findings += [finding("teacher-text", "teacher-none", text_row)]
    findings += [finding(f"teacher-{kind}", "teacher-none", "not shown") for kind in ("shuffled", "blank")]
    (found,) = verdicts([row], findings, [row, *unrelated], has_vectors=True)
    return str(found)


@pytest.mark.parametrize(
    ("vectors", "text_row", "conclusion"),
    [
        (
            "not shown",
            "better",
            "Not evidence that images help: teacher-text gained too, from the generator's text encoder, without any image.",
        ),
        ("worse", "better", "Not evidence that images help: teacher-text gained too"),
        ("better", "better", "Evidence that images help, and more than the generator's text vectors do."),
        ("not shown", "not shown", "Evidence that images help, but not significantly more than the generator's text vectors do."),
    ],
)
def test_a_gain_of_the_text_vectors_is_not_the_images(vectors: Outcome, text_row: Outcome, conclusion: str) -> None:
    assert conclusion in with_vectors("better", vectors, text_row)


def test_three_findings_stand_in_one_sentence() -> None:
    assert with_vectors("better", "not shown", "better").startswith(
        "teacher-clip-demo: better than its text-only control teacher-none by 3.00 points (p = 0.01, 95 % CI +2.00 to +4.00 points), but "
        "no significant difference from teacher-text, which reads the generator's text vectors in place of images (p = 0.3"
    )


def test_without_its_row_the_text_vectors_may_still_explain_a_gain() -> None:
    row = VECTOR_ROWS["student-clip-demo"]
    against = finding(row.name, "student-none", "better")
    found = verdicts([row], [against], [row], has_vectors=True)
    assert "unless shuffled and blank images or the generator's text vectors, which are not compared here, help as much" in str(found[0])


@pytest.mark.parametrize(
    ("control", "conclusion"),
    [
        ("better", "The gain comes from the generator's text encoder: this row sees no image."),
        ("worse", "The text vectors reduce accuracy."),
        ("not shown", "Not evidence that text vectors help: the larger head alone may explain the gain."),
    ],
)
def test_the_row_of_text_vectors_claims_nothing_for_images(control: Outcome, conclusion: str) -> None:
    row = VECTOR_ROWS["teacher-text"]
    assert str(verdict(row, finding(row.name, "baseline", "better"), finding(row.name, "teacher-none", control))).endswith(conclusion)


def test_rows_with_folds_are_judged_by_unrelated_images_with_the_same_folds() -> None:
    by_name = {row.name: row for row in rows_of(("clip-demo",), folds=(5,))}
    rows = [by_name[name] for name in ("student-clip-demo-folds5", "student-shuffled", "student-blank")]
    findings = [finding(rows[0].name, "student-none-folds5", "better"), finding("student-shuffled", "student-none", "better")]
    unless = "Evidence that images help, unless shuffled and blank images, which are not compared here, help as much (--rows folds)."
    assert verdicts(rows, findings, rows)[0].conclusion.startswith(unless)
    findings.append(finding("student-shuffled-folds5", "student-none-folds5", "better"))
    gained = verdicts(rows, findings, [*rows, by_name["student-shuffled-folds5"]])[0]
    assert gained.conclusion.startswith("Not evidence that image content helps: student-shuffled-folds5 gained too")
