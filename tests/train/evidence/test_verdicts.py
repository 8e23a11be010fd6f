"""What is said of a row follows from its two findings, and from nothing less."""

from typing import Any

import pytest

from train.evidence.row_figures import Adjusted
from train.evidence.rows import rows_of
from train.evidence.statistics import Comparison, Discordant
from train.evidence.verdicts import Meaningless, meaningless, p_words, verdict, verdicts

ROWS = {row.name: row for row in rows_of(("clip-demo", "vit-demo"))}
SHOWN = {"better": (0.01, 0.02, 0.04), "worse": (0.01, -0.04, -0.02), "not shown": (0.3, -0.01, 0.02)}


def adjusted(row: str, reference: str, finding: str) -> Adjusted:
    p, low, high = SHOWN[finding]
    one = Discordant(only_first=3, only_second=1, p=p / 2)
    intervals = {"low": low, "high": high, "over_seeds": (low, high)}
    whole = Comparison(seeds=(0, 1), difference=(low + high) / 2, **intervals, by_seed=(one, one), pooled=one)
    return Adjusted(row=row, reference=reference, comparison=whole, holm_p=p)


def said(name: str, baseline: str, control: str | None) -> str:
    row = ROWS[name]
    against: Any = None if control is None else adjusted(name, str(row.control), control)
    return verdict(row, adjusted(name, "baseline", baseline), against)


@pytest.mark.parametrize(
    ("p", "low", "high", "finding"),
    [
        (0.049, 0.001, 0.02, "better"),
        (0.05, 0.001, 0.02, "not shown"),
        (0.049, 0.0, 0.02, "not shown"),
        (0.049, -0.02, -0.001, "worse"),
        (0.049, -0.02, 0.001, "not shown"),
        (1.0, -0.02, -0.001, "not shown"),
    ],
)
def test_better_needs_the_adjusted_p_and_the_interval(p: float, low: float, high: float, finding: str) -> None:
    one = Discordant(only_first=9, only_second=0, p=0.001)
    alone = {"difference": 0.01, "pooled": one}
    one_seed = Comparison(seeds=(0,), **alone, low=low, high=high, over_seeds=None, by_seed=(one,))
    two_seeds = Comparison(seeds=(0, 1), **alone, low=low, high=high, over_seeds=(low, high), by_seed=(one, one))
    for whole in (one_seed, two_seeds):
        assert Adjusted(row="r", reference="baseline", comparison=whole, holm_p=p).finding == finding


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.02), (-0.02, -0.01)])
def test_what_other_seeds_may_undo_is_not_shown(low: float, high: float) -> None:
    one = Discordant(only_first=9, only_second=0, p=0.001)
    whole = Comparison(seeds=(0, 1), difference=low, low=low, high=high, over_seeds=(-0.03, 0.03), by_seed=(one, one), pooled=one)
    test = Adjusted(row="r", reference="baseline", comparison=whole, holm_p=0.001)
    assert test.finding == "not shown"
    told = "not shown to be better than the baseline (p = 0.001, but 95 % interval -3.00 to +3.00 points): no gain is shown."
    assert verdict(ROWS["teacher-clip-demo"], test, None).endswith(told)


def test_of_one_seed_it_is_said_that_it_is_one() -> None:
    one = Discordant(only_first=9, only_second=0, p=0.001)
    whole = Comparison(seeds=(3,), difference=0.02, low=0.01, high=0.03, over_seeds=None, by_seed=(one,), pooled=one)
    tests = [Adjusted(row="teacher-clip-demo", reference=name, comparison=whole, holm_p=0.01) for name in ("baseline", "teacher-none")]
    assert verdict(ROWS["teacher-clip-demo"], *tests).endswith("the images help (of one seed: another may say otherwise).")


@pytest.mark.parametrize(
    ("name", "control", "conclusion"),
    [
        ("teacher-clip-demo", "better", "the images help; whether the whole beats plain fine-tuning is not known without the baseline"),
        ("teacher-clip-demo", "not shown", "that the images help is not shown"),
        ("student-clip-demo", "worse", "the images do harm"),
        ("teacher-blank", "better", "what helps here is not what the images show, for they say nothing of the text"),
        ("teacher-blank", "not shown", "no gain is shown"),
    ],
)
def test_without_the_baseline_a_row_is_still_held_against_its_control(name: str, control: str, conclusion: str) -> None:
    (sentence,) = verdicts([ROWS[name]], [adjusted(name, str(ROWS[name].control), control)], [ROWS[name]])
    assert sentence.startswith(f"{name} is {'not shown to be better' if control == 'not shown' else control} than the")
    assert f": {conclusion}" in sentence


def test_better_than_both_is_what_images_helping_looks_like() -> None:
    assert said("student-clip-demo", "better", "better") == (
        "student-clip-demo is better than the baseline (p = 0.01, 95 % interval +2.00 to +4.00 points), and better than the student of a "
        "text-only teacher (p = 0.01, 95 % interval +2.00 to +4.00 points): the images help."
    )


def test_a_gain_that_the_text_only_control_has_too_is_no_gain_of_images() -> None:
    assert said("student-clip-demo", "better", "not shown") == (
        "student-clip-demo is better than the baseline (p = 0.01, 95 % interval +2.00 to +4.00 points), but not shown to be better than "
        "the student of a text-only teacher (p = 0.3, 95 % interval -1.00 to +2.00 points): distillation alone may explain the "
        "gain; that the images add to it is not shown."
    )


@pytest.mark.parametrize(
    ("name", "baseline", "control", "conclusion"),
    [
        ("student-clip-demo", "better", "worse", "distillation alone gains more, and the images cost some of it"),
        ("student-clip-demo", "not shown", "better", "the images help, but are not shown to help beyond plain fine-tuning"),
        ("student-clip-demo", "not shown", "not shown", "no gain is shown"),
        ("student-clip-demo", "not shown", "worse", "the images do harm"),
        ("student-clip-demo", "worse", "better", "the images help, but less than distillation costs"),
        ("student-clip-demo", "worse", "not shown", "distillation or the images cost accuracy; that the images help is not shown"),
        ("student-clip-demo", "worse", "worse", "the images do harm"),
        ("teacher-vit-demo", "better", "better", "the images help"),
        ("teacher-vit-demo", "better", "not shown", "the larger head alone may explain the gain; that the images add to it is not shown"),
        ("student-clip-demo-ce", "better", None, "is not known: no row is the same but for its images"),
        ("student-all", "better", None, "is not known: no row is the same but for its images"),
        ("student-all", "not shown", None, "no gain is shown"),
        ("student-clip-demo", "better", None, "is not known without the text-only control (--rows controls)"),
        ("student-clip-demo", "not shown", None, "no gain is shown"),
        ("student-none", "better", None, "distillation alone helps, without any image"),
        ("student-none", "not shown", None, "distillation alone is not shown to help"),
        ("teacher-none", "worse", None, "the larger head alone does harm"),
        ("images-vit-demo", "worse", None, "the images alone do not replace the text"),
        ("images-vit-demo", "better", None, "the images alone serve better than fine-tuning on the text does here"),
        ("images-vit-demo", "not shown", None, "the images alone are not shown to say less than the text"),
        ("student-shuffled", "better", "better", "what helps here is not what the images show, for they say nothing of the text"),
        ("teacher-blank", "not shown", "worse", "images that say nothing of the text do harm"),
        ("student-blank", "better", "not shown", "distillation alone may explain the gain; that the images add to it is not shown"),
    ],
)
def test_no_more_is_concluded_than_was_shown(name: str, baseline: str, control: str | None, conclusion: str) -> None:
    assert said(name, baseline, control).endswith(f"{conclusion}.")


def test_images_help_is_said_of_rows_with_their_own_images_alone() -> None:
    for name, row in ROWS.items():
        if row.command in ("teacher", "student"):
            has_own = row.privileged == "images"
            helped = said(name, "better", "better" if row.control else None).endswith("the images help.")
            assert helped is (has_own and row.control is not None), name


def test_images_are_not_said_to_help_where_those_without_meaning_help_too() -> None:
    names = ("teacher-clip-demo", "teacher-blank", "student-clip-demo")
    rows = [ROWS[name] for name in names]
    tests = [adjusted(row.name, reference, "better") for row in rows for reference in ("baseline", str(row.control))]
    assert meaningless("teacher", rows, tests) == Meaningless(gaining=("teacher-blank",), unknown=("shuffled",))
    teacher, blank, student = verdicts(rows, tests, rows)
    assert teacher.endswith("that the images help is not shown, for teacher-blank gains too, whose images say nothing of the text.")
    assert blank.endswith("what helps here is not what the images show, for they say nothing of the text.")
    assert student.endswith(
        ": the images help; whether shuffled and blank images, which say nothing of the text, help as much is not known (--rows controls)."
    )
    as_blank = [adjusted("teacher-blank", "baseline", "better"), adjusted("teacher-blank", "teacher-none", "not shown")]
    assert meaningless("teacher", rows, as_blank) == Meaningless(unknown=("shuffled",))


def test_images_help_is_said_without_reserve_where_those_without_meaning_were_asked() -> None:
    names = ("teacher-clip-demo", "teacher-shuffled", "teacher-blank")
    rows = [ROWS[name] for name in names]
    tests = [adjusted("teacher-clip-demo", "baseline", "better"), adjusted("teacher-clip-demo", "teacher-none", "better")]
    tests += [adjusted(name, "teacher-none", "not shown") for name in names[1:]]
    # The sentence is the same whatever table the rows stand in.
    assert verdicts(rows[:1], tests, rows)[0].endswith(": the images help.")
    assert verdicts(rows[:1], tests[:-1], rows)[0].endswith(
        "; whether blank images, which say nothing of the text, help as much is not known (--rows controls)."
    )


def test_every_row_that_was_compared_has_one_sentence() -> None:
    names = ("baseline", "teacher-clip-demo", "student-clip-demo")
    tests = [adjusted(name, reference, "better") for name in names[1:] for reference in ("baseline", str(ROWS[name].control))]
    found = verdicts([ROWS[name] for name in names], tests, list(ROWS.values()))
    assert [sentence.split()[0] for sentence in found] == ["teacher-clip-demo", "student-clip-demo"]
    assert "than the text-only teacher" in found[0]
    assert verdicts([ROWS[name] for name in names], [], []) == []


def test_a_small_p_keeps_its_size() -> None:
    assert [p_words(p) for p in (1.0, 0.0312, 0.00123, 3.21e-7, 0.0)] == ["1", "0.031", "0.0012", "3e-07", "< 1e-300"]
    one = Discordant(only_first=9, only_second=0, p=0.0)
    whole = Comparison(seeds=(0,), difference=0.2, low=0.1, high=0.3, over_seeds=None, by_seed=(one,), pooled=one)
    assert "(p < 1e-300, 95 %" in verdict(ROWS["teacher-none"], Adjusted(row="r", reference="b", comparison=whole, holm_p=0.0), None)
