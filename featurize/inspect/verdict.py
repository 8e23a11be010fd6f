"""From figures to one sentence: do the images predict the class, and is a gain to be expected?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from featurize.inspect.probes import Chance, ClassProbes, ProbeExamples, ProbeScore
from featurize.inspect.records import Record, decimal, interval_text

# Best first. The names are those of inspection.json.
Level = Literal["knows", "little", "chance", "unknown"]
_LEVELS: tuple[Level, ...] = get_args(Level)
# Each column is tested twice, by probe and neighbours: .01 is seldom reached by chance.
_SURE, _PERHAPS = 0.01, 0.05
# Skill from which on images are worth training with. Of the images alone on 20 Newsgroups it is .09 (ViT) and .50 (CLIP) in
# arXiv 2309.15238, table 1.
_WORTH_IT = 0.1
# With fewer validation examples, "no significant difference" means nothing.
_TOO_FEW = 30
UNKNOWN = "cannot tell whether the images predict the class"


@dataclass(frozen=True, kw_only=True)
class ColumnVerdict(Record):
    """Whether one column predicts the class.

    Attributes:
        level: knows, little, chance or unknown.
        by: the classifier that decides: probe or knn.
        words: the verdict as a sentence.
    """

    level: Level
    by: str
    words: str


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """Whether the images predict the class: the best column's level.

    Attributes:
        level: knows, little, chance or unknown.
        words: the verdict as a sentence.
        reasons: what else a reader should know, a sentence each.
    """

    level: Level
    words: str
    reasons: tuple[str, ...]


def best_guess(score: ProbeScore, chance: Chance) -> float:
    """Return the best accuracy without images: of the largest class, a uniform guess, or the same classifier on shuffled labels."""
    return max(chance.majority, chance.uniform, score.shuffled_mean)


def skill(score: ProbeScore, chance: Chance) -> float:
    """Return how far an accuracy a lies between the best guess g and no error: (a - g) / (1 - g). 0 or less = no better than guessing."""
    guess = best_guess(score, chance)
    return 0.0 if guess >= 1 else (score.accuracy - guess) / (1 - guess)


def column_verdict(classes: ClassProbes) -> ColumnVerdict:
    """Return whether a column predicts the class, by the linear probe or the neighbours, whichever is better.

    It does if p ≤ .01 and the skill is at least .1; slightly, if p ≤ .05 and there is any skill. With fewer than 30 validation examples a
    negative result is unknown. So is everything if train examples share every scored image: recognising an image is no prediction.
    """
    scores = {"probe": classes.probe, "knn": classes.knn}
    levels = {by: _level(score, classes) for by, score in scores.items()}
    by = min(scores, key=lambda name: (_LEVELS.index(levels[name]), -skill(scores[name], classes.chance)))
    figures = (
        f"{classes.classifier(by)} accuracy {decimal(scores[by].accuracy)} ({interval_text(scores[by].interval)}), best guess without "
        f"images {decimal(best_guess(scores[by], classes.chance))}"
    )
    return ColumnVerdict(level=levels[by], by=by, words=f"{_sentence(levels[by], scores[by].p, classes.examples)}; {figures}")


def best_column(verdicts: Mapping[str, ColumnVerdict]) -> str:
    """Return the name of the column with the best level, the first of several."""
    return min(verdicts, key=lambda name: _LEVELS.index(verdicts[name].level))


def _level(score: ProbeScore, classes: ClassProbes) -> Level:
    reached = skill(score, classes.chance)
    if not classes.examples.validation_new:
        return "unknown"
    if score.p <= _SURE and reached >= _WORTH_IT:
        return "knows"
    if score.p <= _PERHAPS and reached > 0:
        return "little"
    return "unknown" if classes.examples.validation < _TOO_FEW else "chance"


def _sentence(level: Level, p: float, examples: ProbeExamples) -> str:
    if level == "knows":
        return f"the images predict the class (p = {decimal(p)})"
    if level == "little":
        return f"the images predict the class slightly better than chance (p = {decimal(p)}): expect a small gain at most"
    if level == "unknown":
        return f"{UNKNOWN}: {_why_unknown(examples)}"
    if p > _PERHAPS:
        return f"no significant difference from chance (p = {decimal(p)}): expect no gain"
    return f"the images predict the class no better than the best guess without them (p = {decimal(p)}): expect no gain"


def _why_unknown(examples: ProbeExamples) -> str:
    if not examples.validation_new:
        return "train examples share the image of every validation example"
    return "one validation example is too few" if examples.validation == 1 else f"{examples.validation} validation examples are too few"
