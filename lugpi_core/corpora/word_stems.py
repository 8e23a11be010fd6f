"""The words of a name, and rough stems of English words: which words of a text name the same thing as a name does."""

import re

# A run of letters, with apostrophes inside.
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_FUNCTION_WORDS = frozenset(
    {"a", "an", "and", "at", "by", "for", "from", "in", "into", "of", "off", "on", "or", "out", "s", "the", "to", "up", "with"}
)
_ENDINGS = ("ings", "ing", "ers", "ies", "ied", "ed", "er", "es", "s")


def stem(word: str) -> str:
    """Return a rough stem, the same for the common inflections of a word: ``perches`` and ``perch``, ``running`` and ``run``."""
    word = word.lower().removesuffix("'s")
    for ending in _ENDINGS:
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            word = word.removesuffix(ending) + ("y" if ending in ("ies", "ied") else "")
            break
    word = word.removesuffix("e")
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:-1] + "i" if len(word) > 2 and word.endswith("y") else word


def words_of_name(name: str) -> list[str]:
    """Return the words of a name as they stand, such as those of ``body_of_water`` without ``of``."""
    return [word for word in WORD.findall(name) if word.lower() not in _FUNCTION_WORDS]
