"""From figures to words: when the pictures know the class, when a little, when nothing; and what else is told."""

from typing import Any

import pytest

from featurize.inspect.verdict import column_verdict, shown_accuracy, skill, verdict


def way(accuracy: float, p: float, shuffled: float = 0.09) -> dict[str, Any]:
    return {"accuracy": accuracy, "p": p, "shuffled_mean": shuffled, "shuffled_sd": 0.012}


def classes(
    probe: dict[str, Any], knn: dict[str, Any], *, majority: float = 0.08, validation: int = 1000, new: int | None = None, shared: int = 0
) -> dict[str, Any]:
    examples = {
        "train": 4000,
        "validation": validation,
        "validation_new": validation if new is None else new,
        "validation_shared": shared,
    }
    return {"examples": examples, "chance": {"uniform": 0.05, "majority": majority}, "neighbours": 10, "knn": knn, "probe": probe}


NOTHING = way(0.09, 0.4)


@pytest.mark.parametrize(
    ("accuracy", "p", "level"),
    [(0.31, 0.001, "knows"), (0.31, 0.02, "little"), (0.14, 0.001, "little"), (0.31, 0.06, "chance"), (0.085, 0.001, "chance")],
    ids=str,
)
def test_a_level_needs_both_a_small_p_and_a_distance_from_guessing(accuracy: float, p: float, level: str) -> None:
    assert column_verdict(classes(way(accuracy, p), NOTHING))["level"] == level
    assert column_verdict(classes(NOTHING, way(accuracy, p)))["level"] == level


def test_of_a_handful_of_validation_examples_nothing_found_says_nothing() -> None:
    few = classes(NOTHING, NOTHING, validation=29)
    assert column_verdict(few)["level"] == "unknown"
    assert column_verdict(classes(NOTHING, NOTHING, validation=30))["level"] == "chance"
    assert column_verdict(classes(way(0.31, 0.001), NOTHING, validation=29))["level"] == "knows"
    base = figures()
    base["columns"]["clip"] |= {"classes": few, "verdict": column_verdict(few)}
    assert verdict(base)["level"] == "unknown"
    assert verdict(base)["words"].startswith("nothing can be said of the classes: 29 validation examples are too few; clip, ")


def test_where_train_examples_share_every_picture_nothing_is_known() -> None:
    recognised = classes(way(0.88, 0.001), NOTHING, validation=50, new=0, shared=50)
    base = figures()
    base["columns"]["clip"] |= {"classes": recognised, "verdict": column_verdict(recognised)}
    found = verdict(base)
    assert found["level"] == "unknown"
    assert found["words"].startswith("nothing can be said of the classes: train examples share the picture of every validation example")
    assert not [reason for reason in found["reasons"] if "not counted" in reason]


def test_one_validation_example_is_too_few() -> None:
    lonely = classes(NOTHING, NOTHING, validation=1)
    base = figures(columns={"clip": {"classes": lonely, "verdict": column_verdict(lonely)}})
    assert verdict(base)["words"].startswith("nothing can be said of the classes: one validation example is too few; clip, ")


def test_the_largest_class_is_a_guess_too() -> None:
    assert column_verdict(classes(way(0.6, 0.001, shuffled=0.5), NOTHING, majority=0.62))["level"] == "chance"
    assert skill(way(0.6, 0.001, shuffled=0.2), {"uniform": 0.05, "majority": 0.5}) == pytest.approx(0.2)
    assert skill(way(1.0, 0.001, shuffled=1.0), {"uniform": 0.05, "majority": 1.0}) == 0.0


def test_the_better_of_probe_and_neighbours_speaks() -> None:
    assert column_verdict(classes(way(0.3, 0.001), way(0.4, 0.001)))["by"] == "knn"
    assert column_verdict(classes(way(0.3, 0.001), way(0.4, 0.2)))["by"] == "probe"


def test_the_words_have_the_accuracy_beside_what_it_is_compared_with() -> None:
    assert shown_accuracy(classes(way(0.31, 0.001), NOTHING), "probe") == (
        "linear probe .310 against .080 by the largest class, .050 by chance and .090 ± .012 with shuffled labels (p = 0.001)"
    )
    assert shown_accuracy(classes(NOTHING, way(1.0, 0.001)), "knn").startswith("10 nearest neighbours 1.000 against")


def figures(**changes: Any) -> dict[str, Any]:
    known = classes(way(0.31, 0.001), NOTHING)
    column = {
        "classes": known,
        "verdict": column_verdict(known),
        "flagged": 0,
        "near_copies": {"left_out": "x"},
        "agreement": {"left_out": "x"},
    }
    nothing = {"count": 0, "share": 0.0}
    return {
        "no_classes": None,
        "columns": {"clip": column},
        "class_similarity": {"left_out": "x"},
        "prompts_cut": nothing,
        "notice": None,
        **changes,
    }


def test_the_best_column_gives_the_verdict() -> None:
    poor = classes(NOTHING, NOTHING)
    columns = {"vit": {"classes": poor, "verdict": column_verdict(poor)}, **figures()["columns"], "mine": {"left_out": "damaged"}}
    found = verdict(figures(columns=columns))
    assert found["level"] == "knows"
    assert found["words"].startswith("the pictures know the class: clip, linear probe .310 against .080")
    assert [reason for reason in found["reasons"] if reason.startswith("vit: ")]


def test_where_nothing_is_found_no_gain_is_promised() -> None:
    poor = classes(NOTHING, NOTHING)
    found = verdict(figures(columns={"vit": {"classes": poor, "verdict": column_verdict(poor)}}))
    assert found["words"].startswith("the pictures say little more than chance: no gain is to be expected: vit, ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"no_classes": "these texts have no labels", "columns": {"clip": {}}},
            "nothing can be said of the classes: these texts have no labels",
        ),
        ({"columns": {}}, "nothing can be said of the classes: no column of tokens could be looked at"),
    ],
    ids=str,
)
def test_where_nothing_can_be_asked_the_reason_is_said(changes: dict[str, Any], words: str) -> None:
    assert verdict(figures(**changes)) == {"level": "unknown", "words": words, "reasons": []}


def reasons(**changes: Any) -> str:
    column = changes.pop("column", {})
    base = figures(**changes)
    base["columns"]["clip"] |= column
    return "\n".join(verdict(base)["reasons"])


COPIES = {"share": 0.031, "test_copies_of_train": 3, "test_drawings": 4000, "lower_bound": True}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"column": {"agreement": {"texts": 20, "own_is_nearer": 0.87, "standard_error": 0.01}}},
            "clip: the pictures show their texts: .* 87.0%",
        ),
        (
            {"column": {"agreement": {"texts": 20, "own_is_nearer": 0.53, "standard_error": 0.02}}},
            "clip: it is not seen that the pictures show their texts",
        ),
        (
            {"column": {"agreement": {"texts": 2, "own_is_nearer": 1.0, "standard_error": 0.0}}},
            "clip: it is not seen that the pictures show their texts",
        ),
        (
            {"column": {"near_copies": COPIES}},
            "clip: 3.1% of the drawings are near-copies .*; at least 3 of 4,000 test drawings of a train",
        ),
        ({"column": {"near_copies": {**COPIES, "lower_bound": False}}}, "another prompt; 3 of 4,000 test"),
        ({"column": {"flagged": 12}}, "clip: 12 drawings failed; .*verify --repair"),
        (
            {"class_similarity": {"within": 0.3, "between": 0.2, "difference": 0.1, "p": 0.01}},
            "are more alike than .* .300 and .200",
        ),
        ({"class_similarity": {"within": 0.3, "between": 0.2, "difference": 0.1, "p": 0.02}}, "are not shown to be more alike than"),
        ({"prompts_cut": {"count": 3, "share": 0.415}}, "41.5% of the prompts were cut"),
        ({"notice": "random weights"}, "random weights"),
        (
            {"column": {"classes": classes(NOTHING, NOTHING, shared=70)}},
            "clip: 70 validation examples whose picture a train example shares",
        ),
        ({"column": {"classes": classes(NOTHING, NOTHING, validation=46)}}, "clip: with 46 validation examples a small effect"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_figure_that_speaks_for_or_against_is_a_reason(changes: dict[str, Any], told: str) -> None:
    import re

    assert re.search(told, reasons(**changes))


def test_without_anything_to_tell_there_is_no_reason() -> None:
    assert reasons() == ""
    assert reasons(column={"near_copies": {**COPIES, "share": 0.0}}) == ""
