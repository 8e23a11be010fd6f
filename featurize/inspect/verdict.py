"""From the figures of an inspection to words: what the pictures know of the classes, and what is to be expected of them."""

from collections.abc import Mapping
from typing import Any

# A p-value that a look at two figures of each of several columns seldom reaches by chance.
_SURE, _PERHAPS = 0.01, 0.05
# The way from the best guess without pictures to no error at all: a tenth of it is worth training for. That of the pictures alone on
# 20 Newsgroups is .09 (ViT) and .50 (CLIP) in arXiv 2309.15238, table 1.
_WORTH_IT = 0.1
_FEW = 200
# Validation examples below which nothing found says nothing.
_TOO_FEW = 30
# Standard errors from which on a difference is taken for one, and texts from which on there is a standard error to speak of.
_ERRORS, _FEW_TEXTS = 3, 20
_WORDS = {
    "knows": "the pictures know the class",
    "little": "the pictures know a little of the class: at most a small gain is to be expected",
    "chance": "the pictures say little more than chance: no gain is to be expected",
    "unknown": "nothing can be said of the classes",
}
_ORDER = tuple(_WORDS)


def skill(found: Mapping[str, Any], chance: Mapping[str, float]) -> float:
    """Return how much of the way from guessing to knowing an accuracy goes: (a - g) / (1 - g), with g the best of the largest class, a
    uniform guess and the same fit on shuffled labels. 1 = no error; 0 or less = no better than guessing."""
    guess = max(chance["majority"], chance["uniform"], found["shuffled_mean"])
    return 0.0 if guess >= 1 else float((found["accuracy"] - guess) / (1 - guess))


def column_verdict(classes: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"level", "by", "words"}`` for what ``probe_classes`` found in a column: by the linear probe or the neighbours, whichever
    has more skill; with a p of .01 at most and a tenth of skill the pictures know the class. Of fewer than 30 validation examples it is not
    known that they do not; where train examples share every picture, nothing is known: recognising one would do."""
    chance, ways = classes["chance"], ("probe", "knn")
    levels = {way: _level(classes[way]["p"], skill(classes[way], chance)) for way in ways}
    if not classes["examples"]["validation_new"]:
        levels = dict.fromkeys(ways, "unknown")
    elif classes["examples"]["validation"] < _TOO_FEW:
        levels = {way: "unknown" if level == "chance" else level for way, level in levels.items()}
    best = min(ways, key=lambda way: (_ORDER.index(levels[way]), -skill(classes[way], chance)))
    return {"level": levels[best], "by": best, "words": shown_accuracy(classes, best)}


def shown_accuracy(classes: Mapping[str, Any], way: str) -> str:
    """Return one accuracy beside what it is to be compared with, in a line."""
    found, chance = classes[way], classes["chance"]
    name = "linear probe" if way == "probe" else f"{classes['neighbours']} nearest neighbours"
    guesses = f"{_decimal(chance['majority'])} by the largest class, {_decimal(chance['uniform'])} by chance"
    shuffled = f"{_decimal(found['shuffled_mean'])} ± {_decimal(found['shuffled_sd'])} with shuffled labels"
    return f"{name} {_decimal(found['accuracy'])} against {guesses} and {shuffled} (p = {found['p']:.3f})"


def verdict(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"level", "words", "reasons"}`` for a whole inspection: the best column's level, and every figure that speaks for or against
    it in a sentence."""
    found = {name: column["verdict"] for name, column in figures["columns"].items() if "verdict" in column}
    if not found:
        level, best = "unknown", ""
        words = f"{_WORDS[level]}: {figures['no_classes'] or 'no column of tokens could be looked at'}"
    else:
        best = min(found, key=lambda name: _ORDER.index(found[name]["level"]))
        level = found[best]["level"]
        why = f"{_why_unknown(figures['columns'][best]['classes']['examples'])}; " if level == "unknown" else ""
        words = f"{_WORDS[level]}: {why}{best}, {found[best]['words']}"
    return {"level": level, "words": words, "reasons": _reasons(figures, best)}


def _level(p: float, reached: float) -> str:
    if p <= _SURE and reached >= _WORTH_IT:
        return "knows"
    return "little" if p <= _PERHAPS and reached > 0 else "chance"


def _reasons(figures: Mapping[str, Any], best: str) -> list[str]:
    reasons = []
    for name, column in figures["columns"].items():
        if "verdict" in column:
            reasons += [f"{name}: {column['verdict']['words']}"] if name != best else []
            reasons += _about_examples(name, column["classes"]["examples"])
        if "texts" in (agreement := column.get("agreement", {})):
            sure = agreement["texts"] >= _FEW_TEXTS and agreement["own_is_nearer"] - _ERRORS * agreement["standard_error"] > 0.5
            shows = "the pictures show their texts" if sure else "it is not seen that the pictures show their texts"
            reasons.append(
                f"{name}: {shows}: a text's own picture is nearer than another in {agreement['own_is_nearer']:.1%} of comparisons"
            )
        if "share" in (copies := column.get("near_copies", {})) and copies["share"] > 0:
            reasons.append(
                f"{name}: {copies['share']:.1%} of the drawings are near-copies of one of another prompt; "
                f"{'at least ' if copies['lower_bound'] else ''}{copies['test_copies_of_train']:,} of {copies['test_drawings']:,} test "
                "drawings of a train drawing"
            )
        if column.get("flagged"):
            reasons.append(f"{name}: {column['flagged']:,} drawings failed; python -m featurize verify --repair draws them anew")
    likeness = figures["class_similarity"]
    if likeness.get("p") is not None:
        more = "more alike than" if likeness["p"] <= _SURE else "not shown to be more alike than"
        compared = f"structural similarity {_decimal(likeness['within'])} and {_decimal(likeness['between'])}"
        reasons.append(f"pictures of one class are {more} pictures of two: {compared}")
    if figures["prompts_cut"]["count"]:
        reasons.append(f"{figures['prompts_cut']['share']:.1%} of the prompts were cut to what the generator reads")
    if figures["notice"]:
        reasons.append(figures["notice"])
    return reasons


def _why_unknown(examples: Mapping[str, int]) -> str:
    if not examples["validation_new"]:
        return "train examples share the picture of every validation example, and recognising it would do"
    count = examples["validation"]
    return "one validation example is too few" if count == 1 else f"{count} validation examples are too few"


def _about_examples(name: str, examples: Mapping[str, int]) -> list[str]:
    said = []
    if examples["validation_shared"] and examples["validation_new"]:
        said.append(f"{name}: {examples['validation_shared']:,} validation examples whose picture a train example shares are not counted")
    if examples["validation"] < _FEW:
        said.append(f"{name}: with {examples['validation']} validation examples a small effect would not be seen")
    return said


def _decimal(value: float) -> str:
    """Return a share to three digits, without the nought: ``.312``."""
    return f"{value:.3f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{value:.3f}"
