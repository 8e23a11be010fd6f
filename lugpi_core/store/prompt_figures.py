"""What of a corpus's texts a generator reads: the prompts that are cut, the words that are lost, the prompts that name their class."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# From this share of texts on, and twice that of other classes' names, prompts are said to name their classes.
_FEW, _TIMES = 0.01, 2
# Words that a sentence names.
_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class ClassWords:
    """How many prompts name the class of their text. A class is named by a whole word of its name, in any letter case.

    Attributes:
        texts: with a class whose name has a word.
        texts_with_own: those of which a prompt, as far as it is read, has a word of the name of their class, or of one of their classes.
        share_own: of all pairs of a text and a class of its own.
        share_other: of all pairs of a text and another class.
    """

    texts: int
    texts_with_own: int
    share_own: float
    share_other: float

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        own = f"{100 * self.texts_with_own / self.texts:.1f} % of the texts ({self.texts_with_own:,} of {self.texts:,})"
        other = f"{100 * self.share_other:.1f} %"
        shares = f"class names: {own} have a word of their own class's name in a prompt, on average {other} one of another class's"
        names_them = self.share_own >= _FEW and self.share_own >= _TIMES * self.share_other
        return f"{shares}: what the images tell of a class may be its name" if names_them else shares


@dataclass(frozen=True, kw_only=True)
class ClassLeak:
    """How many prompts named a class before ``--prompts wordnet`` replaced such words, and how many do now.

    Attributes:
        texts: of the corpus, each with its prompt.
        before, after: prompts with a word that names a class.
        own_before, own_after: those with a word that names a class of their own text.
        words_before, words_after: the most frequent of these words, with the number of prompts that have each.
        unknown: words of class names that WordNet does not have, and that are left out of prompts.
    """

    texts: int
    before: int
    after: int
    own_before: int
    own_after: int
    words_before: Mapping[str, int]
    words_after: Mapping[str, int]
    unknown: tuple[str, ...]

    def sentence(self) -> str:
        """Return the answer in one sentence."""
        own = f"{self.own_before:,} and {self.own_after:,} of them a class of their own text"
        named = f"{self.before:,} of {self.texts:,} prompts named a class before ({_most(self.words_before)}), {self.after:,} do now"
        left = f" ({_most(self.words_after)})" if self.after else ""
        names = [*self.unknown[:_SHOWN], *(["…"] if len(self.unknown) > _SHOWN else [])]
        unknown = f"; not in WordNet, so left out: {', '.join(names)}" if names else ""
        return f"leak: {named}{left}; {own}{unknown}"


def _most(words: Mapping[str, int]) -> str:
    shown = [f"{word} {count:,}" for word, count in list(words.items())[:_SHOWN]]
    return ", ".join([*shown, *(["…"] if len(words) > _SHOWN else [])]) or "no word"


@dataclass(frozen=True, kw_only=True)
class PromptFigures:
    """What of the texts the generator reads.

    Attributes:
        strategy: ``--prompts``.
        tokens_read: most tokens of a prompt.
        prompts, prompts_cut: distinct prompts, and those that are longer than that.
        words: the different words of each text, summed over the texts.
        words_lost: those of them that no prompt of the text has in the part that is read.
        class_words: None if the texts have no classes, or these have no words.
        leak: of ``--prompts wordnet``; of the others None.
    """

    strategy: str
    tokens_read: int
    prompts: int
    prompts_cut: int
    words: int
    words_lost: int
    class_words: ClassWords | None
    leak: ClassLeak | None = None

    def sentences(self) -> list[str]:
        """Return the answers, a sentence each."""
        lost = self.words_lost / self.words if self.words else 0.0
        cut = f"{self.prompts_cut:,} of {self.prompts:,} prompts are cut to {self.tokens_read} tokens"
        words = f"words lost: {100 * lost:.1f} % of those of the texts reach the generator in no prompt (--prompts {self.strategy}; {cut})"
        return [words, *(its.sentence() for its in (self.class_words, self.leak) if its is not None)]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as a JSON value, with ``leak`` where there is one."""
        record = asdict(self)
        return record if self.leak is not None else {key: value for key, value in record.items() if key != "leak"}


def figures_in(record: object) -> PromptFigures | None:
    """Return the figures that ``to_json`` wrote into a store; None if there are none."""
    match record:
        case {
            "strategy": str(strategy),
            "tokens_read": int(tokens_read),
            "prompts": int(prompts),
            "prompts_cut": int(prompts_cut),
            "words": int(words),
            "words_lost": int(words_lost),
            "class_words": about_classes,
            **others,
        }:
            return PromptFigures(
                strategy=strategy,
                tokens_read=tokens_read,
                prompts=prompts,
                prompts_cut=prompts_cut,
                words=words,
                words_lost=words_lost,
                class_words=_class_words_in(about_classes),
                leak=_leak_in(others.get("leak")),
            )
    return None


def _class_words_in(record: Mapping[str, Any] | None) -> ClassWords | None:
    match record:
        case {"texts": int(texts), "texts_with_own": int(own), "share_own": float(share_own), "share_other": float(share_other)}:
            return ClassWords(texts=texts, texts_with_own=own, share_own=share_own, share_other=share_other)
    return None


def _leak_in(record: object) -> ClassLeak | None:
    match record:
        case {
            "texts": int(texts),
            "before": int(before),
            "after": int(after),
            "own_before": int(own_before),
            "own_after": int(own_after),
            "words_before": dict(words_before),
            "words_after": dict(words_after),
            "unknown": list(unknown) | tuple(unknown),
        }:
            return ClassLeak(
                texts=texts,
                before=before,
                after=after,
                own_before=own_before,
                own_after=own_after,
                words_before=words_before,
                words_after=words_after,
                unknown=tuple(unknown),
            )
    return None
