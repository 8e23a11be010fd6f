"""What to do about a fault of a corpus, in the words of its caller: flags of a command, or arguments of ``Corpus.from_texts``."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What helps.

    Attributes:
        multi_label: how several labels of a text are read.
        separated: the same for several labels in one cell; ``{}`` is what stands between them.
        regression: how numbers are predicted.
        unlabelled: what becomes of rows whose label means that they have none.
        hidden: the same, where all test rows may have such a label.
        unrelated: how rows without a partner in another split are made.
        splits: how splits are given.
        other_cut: how a random cut becomes another.
    """

    multi_label: str
    separated: str
    regression: str
    unlabelled: str
    hidden: str
    unrelated: str
    splits: str
    other_cut: str


_GIVEN = "give splits (--split-column, or --validation-file and --test-file)"
FLAGS = Advice(
    multi_label="--task multi-label",
    separated="--task multi-label --label-separator '{}'",
    regression="--task regression",
    unlabelled="leave its rows out (--drop-unlabelled)",
    hidden="leave its rows out (--drop-unlabelled), or all of a hidden test split (--test-split validation or none)",
    unrelated="--dedupe keeps one of each, --group-column keeps related rows in one split",
    splits=_GIVEN,
    other_cut="choose another split_seed (--split-seed) if the cut is random",
)
ARGUMENTS = Advice(
    multi_label='task="multi-label"',
    separated="split them at '{}' into lists, task=\"multi-label\"",
    regression='task="regression"',
    unlabelled="leave its texts out",
    hidden="leave its texts out",
    unrelated="leave them out, or give related texts the same of groups= (they stay in one split)",
    splits="give splits=",
    other_cut="give splits= if the cut is random",
)


def advice_for(*, in_memory: bool) -> Advice:
    """Return the advice for a corpus of lists in memory, which no flag can help, or for one of files."""
    return ARGUMENTS if in_memory else FLAGS
