"""The shipped corpus, ``--dataset demo``: WordNet glosses, and which of twelve topics each describes; and unlabelled glosses.

``python -m dev.demo_corpus`` builds the files from WordNet; they are read like a user's own file.
"""

from dataclasses import replace
from pathlib import Path

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.corpora.user_corpus import load_user_corpus

DEMO_CSV = Path(__file__).resolve().parents[1] / "data" / "demo.csv"
# Unlabelled glosses, for --unlabelled.
DEMO_MORE = DEMO_CSV.with_name("demo-more.txt")
LICENSE = "Open English WordNet (CC BY 4.0), derived from Princeton WordNet 3.0 (WordNet licence)"


def load_demo() -> Corpus:
    """Return the shipped corpus: 480 / 240 / 2,400 glosses of twelve topics, with fixed splits.

    Raises:
        InputError: the shipped file has been damaged.
    """
    return replace(load_user_corpus(str(DEMO_CSV), CorpusSettings(split_column="split")), name="demo", license=LICENSE)
