"""From figures to sentences: when the images predict the class, when slightly, when not; and what else is reported."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from featurize.inspect.class_similarity import ClassSimilarity
from featurize.inspect.inspection import ColumnInspection, Inspection
from featurize.inspect.near_copies import NearCopies
from featurize.inspect.probes import Chance, ClassProbes, ProbeExamples, ProbeScore
from featurize.inspect.records import LeftOut
from featurize.inspect.sample import InspectedExamples, PromptsCut
from featurize.inspect.text_agreement import Agreement
from featurize.inspect.verdict import column_verdict, skill

NOT_ASKED = LeftOut(left_out="not asked")


def score(accuracy: float, p: float, shuffled: float = 0.09) -> ProbeScore:
    return ProbeScore(
        accuracy=accuracy,
        accuracy_all=accuracy,
        shuffled_mean=shuffled,
        shuffled_sd=0.012,
        shuffles=5,
        p=p,
        interval=(accuracy - 0.05, accuracy + 0.05),
    )


NOTHING = score(0.09, 0.4)


def classes(
    probe: ProbeScore,
    knn: ProbeScore = NOTHING,
    *,
    majority: float = 0.08,
    validation: int = 1000,
    new: int | None = None,
    shared: int = 0,
) -> ClassProbes:
    return ClassProbes(
        examples=ProbeExamples(
            train=4000, validation=validation, validation_new=validation if new is None else new, validation_shared=shared
        ),
        chance=Chance(uniform=0.05, majority=majority),
        neighbours=10,
        knn=knn,
        probe=probe,
    )


def column(of: ClassProbes | LeftOut | None = None, **changes: Any) -> ColumnInspection:
    whole = ColumnInspection(
        drawings=5000,
        flagged=0,
        bytes_per_image=1088,
        features=32,
        classes=of or classes(score(0.31, 0.001)),
        near_copies=NOT_ASKED,
        agreement=NOT_ASKED,
        transport=NOT_ASKED,
    )
    return dataclasses.replace(whole, **changes)


def inspection(**changes: Any) -> Inspection:
    whole = Inspection(
        store=Path("runs/x/tokens"),
        corpus="f00d",
        examples={"train": InspectedExamples(looked_at=4000, of=9000)},
        capped=True,
        no_classes=None,
        columns={"clip": column()},
        class_similarity=NOT_ASKED,
        thumbnails=NOT_ASKED,
        prompts_cut=PromptsCut(count=0, share=0.0, share_by_split={}),
        notice=None,
        compute={},
        times={},
        peak_memory={},
        provenance={},
    )
    return dataclasses.replace(whole, **changes)


@pytest.mark.parametrize(
    ("accuracy", "p", "level"),
    [(0.31, 0.001, "knows"), (0.31, 0.02, "little"), (0.14, 0.001, "little"), (0.31, 0.06, "chance"), (0.085, 0.001, "chance")],
    ids=str,
)
def test_a_level_needs_a_small_p_and_more_than_a_guess(accuracy: float, p: float, level: str) -> None:
    assert column_verdict(classes(score(accuracy, p))).level == level
    assert column_verdict(classes(NOTHING, score(accuracy, p))).level == level


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        (score(0.31, 0.001), "the images predict the class (p = .001); linear probe accuracy .310 (95 % CI .260 to .360), best guess"),
        (score(0.14, 0.001), "the images predict the class slightly better than chance (p = .001): expect a small gain at most; "),
        (score(0.31, 0.06), "no significant difference from chance (p = .060): expect no gain; "),
        (score(0.085, 0.001), "the images predict the class no better than the best guess without them (p = .001): expect no gain; "),
    ],
    ids=["clearly", "slightly", "by chance", "no better than a guess"],
)
def test_the_verdict_is_one_sentence_in_terms_of_the_field(probe: ProbeScore, sentence: str) -> None:
    assert column_verdict(classes(probe, probe)).words.startswith(sentence)


def test_few_validation_examples_prove_no_absence() -> None:
    few = classes(NOTHING, validation=29)
    assert column_verdict(few).level == "unknown"
    assert column_verdict(classes(NOTHING, validation=30)).level == "chance"
    assert column_verdict(classes(score(0.31, 0.001), validation=29)).level == "knows"
    verdict = inspection(columns={"clip": column(few)}).verdict
    assert verdict.level == "unknown"
    assert verdict.words.startswith("clip: cannot tell whether the images predict the class: 29 validation examples are too few; ")


def test_where_train_shares_every_image_nothing_is_known() -> None:
    recognised = classes(score(0.88, 0.001), validation=50, new=0, shared=50)
    verdict = inspection(columns={"clip": column(recognised)}).verdict
    assert verdict.level == "unknown"
    assert "the class: train examples share the image of every validation example; " in verdict.words
    assert not [reason for reason in verdict.reasons if "not scored" in reason]


def test_one_validation_example_is_too_few() -> None:
    verdict = inspection(columns={"clip": column(classes(NOTHING, validation=1))}).verdict
    assert "the class: one validation example is too few; " in verdict.words


def test_the_largest_class_is_a_guess_too() -> None:
    assert column_verdict(classes(score(0.6, 0.001, shuffled=0.5), majority=0.62)).level == "chance"
    assert skill(score(0.6, 0.001, shuffled=0.2), Chance(uniform=0.05, majority=0.5)) == pytest.approx(0.2)
    assert skill(score(1.0, 0.001, shuffled=1.0), Chance(uniform=0.05, majority=1.0)) == 0.0


def test_the_better_of_probe_and_neighbours_decides() -> None:
    assert column_verdict(classes(score(0.3, 0.001), score(0.4, 0.001))).by == "knn"
    assert column_verdict(classes(score(0.3, 0.001), score(0.4, 0.2))).by == "probe"


def test_an_accuracy_is_reported_with_what_it_is_compared_with() -> None:
    assert classes(score(0.31, 0.001)).sentence("probe") == (
        "linear probe: accuracy .310 (95 % CI .260 to .360), p = .001; largest class .080, chance .050, shuffled labels .090 ± .012"
    )
    assert classes(NOTHING, score(1.0, 0.001)).sentence("knn").startswith("10 nearest neighbours: accuracy 1.000 (")


def test_the_best_column_gives_the_verdict() -> None:
    columns = {"vit": column(classes(NOTHING)), "clip": column(), "mine": LeftOut(left_out="damaged")}
    verdict = inspection(columns=columns).verdict
    assert verdict.level == "knows"
    assert verdict.words.startswith("clip: the images predict the class (p = .001); linear probe accuracy .310 (")
    assert [reason for reason in verdict.reasons if reason.startswith("vit: no significant difference from chance (p = .400)")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"no_classes": "these texts have no labels", "columns": {"clip": column(NOT_ASKED)}},
            "cannot tell whether the images predict the class: these texts have no labels",
        ),
        ({"columns": {}}, "cannot tell whether the images predict the class: the store has no tokens of images"),
    ],
    ids=["no labels", "no column"],
)
def test_why_nothing_can_be_asked_is_the_verdict(changes: dict[str, Any], words: str) -> None:
    assert inspection(**changes).verdict.to_json() == {"level": "unknown", "words": words, "reasons": []}


COPIES = NearCopies(
    drawings=5000,
    threshold=0.98,
    nearest_quantiles={},
    share=0.031,
    test_drawings=4000,
    test_copies_of_train=3,
    test_share=3 / 4000,
    lower_bound=True,
)
ALIKE = ClassSimilarity(
    pictures=60,
    classes=3,
    pairs=1770,
    side_px=64,
    within=0.3,
    between=0.2,
    difference=0.1,
    p=0.01,
    most_alike=(("a", "b", 0.25),),
)


def agreement(texts: int, own_is_nearer: float, standard_error: float) -> Agreement:
    return Agreement(texts=texts, matching=0.3, others=0.2, own_is_nearer=own_is_nearer, standard_error=standard_error)


# What is found, and the sentence it makes in the reasons and in the summary.
FINDINGS: dict[str, tuple[dict[str, Any], str]] = {
    "agreement": (
        {"agreement": agreement(20, 0.87, 0.01)},
        r"the images agree with their texts: .* in \.870 of comparisons \(95 % CI \.850 to \.890; chance \.500\)",
    ),
    "no agreement": (
        {"agreement": agreement(20, 0.53, 0.02)},
        r"no significant agreement .* \(less than 3 standard errors above chance\): a text",
    ),
    "two texts": ({"agreement": agreement(2, 1.0, 0.0)}, r"no significant agreement .* \(fewer than 20 texts\): a text"),
    "near-duplicates in a sample": (
        {"near_copies": COPIES},
        r"at least 3\.1 % of the images are near-duplicates \(cosine 0\.98 or more\) .*; .*train image: at least 3 of 4,000 test images",
    ),
    "near-duplicates": (
        {"near_copies": dataclasses.replace(COPIES, lower_bound=False)},
        r"3\.1 % of the images .*; near-duplicates of a train image: 3 of 4,000 test images",
    ),
    "failed images": ({"flagged": 12}, "12 (images )?failed"),
    "shared images": ({"classes": classes(NOTHING, shared=70)}, "70 validation examples are not scored: a train example shares"),
    "few examples": ({"classes": classes(NOTHING, validation=46)}, "with 46 validation examples a small effect would be missed"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_about_a_column_is_a_reason_and_in_the_summary(name: str) -> None:
    changes, sentence = FINDINGS[name]
    found = inspection(columns={"clip": column(**changes)})
    assert re.search(f"clip: {sentence}", "\n".join(found.verdict.reasons))
    assert re.search(sentence, found.summary())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_similarity": ALIKE}, "are more alike than images of two: structural similarity .300 and .200, p = .010"),
        (
            {"class_similarity": dataclasses.replace(ALIKE, p=0.02)},
            "are not significantly more alike than images of two: structural similarity .300 and .200, p = .020 (threshold .010)",
        ),
        ({"prompts_cut": PromptsCut(count=3, share=0.415, share_by_split={})}, "41.5 % of the texts had a prompt cut"),
        ({"notice": "random weights"}, "random weights"),
    ],
    ids=["alike", "not alike", "cut prompts", "notice"],
)
def test_a_finding_about_images_is_a_reason_and_in_the_summary(changes: dict[str, Any], sentence: str) -> None:
    found = inspection(**changes)
    assert sentence in "\n".join(found.verdict.reasons)
    assert sentence in found.summary()


def test_the_notice_is_a_note() -> None:
    assert inspection(notice="random weights").summary().splitlines()[-1] == "note: random weights"


def test_without_findings_there_is_no_reason() -> None:
    assert inspection().verdict.reasons == ()
    without = column(near_copies=dataclasses.replace(COPIES, share=0.0))
    assert inspection(columns={"clip": without}).verdict.reasons == ()


def test_the_summary_begins_with_the_verdict_and_names_what_is_left_out() -> None:
    lines = inspection(columns={"clip": column(), "mine": LeftOut(left_out="damaged")}).summary().splitlines()
    assert lines == [
        "runs/x/tokens: 4,000 of 9,000 train examples inspected (a random sample)",
        "clip: the images predict the class (p = .001); linear probe accuracy .310 (95 % CI .260 to .360), best guess without images .090",
        "clip: 5,000 images of 1,088 bytes, 0 failed",
        "  linear probe: accuracy .310 (95 % CI .260 to .360), p = .001; largest class .080, chance .050, shuffled labels .090 ± .012",
        f"  {classes(NOTHING).sentence('knn')}",
        "  transport between classes left out: not asked",
        "  agreement with the texts left out: not asked",
        "  near-duplicates left out: not asked",
        "mine: left out: damaged",
        "similarity of classes left out: not asked",
        "thumbnails left out: not asked",
    ]
