"""The flags of ``python -m dev.embedded_models``. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lugpi_core.errors import InputError
from lugpi_core.runtime.device import require_seed
from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER

Part = Literal[
    "bag",
    "words",
    "autoencoder",
    "tiny",
    "sight",
    "unet",
    "clip",
    "vit",
    "drawings",
    "clip-drawn",
    "vit-drawn",
    "flow-sight",
    "flow",
    "text",
    "assemble",
    "card",
    "restore",
    "add-flow",
]
PARTS: tuple[Part, ...] = tuple(part for part in get_args(Part) if part not in ("restore", "add-flow"))


@dataclass(frozen=True, kw_only=True)
class EmojiOptions:
    """Train the embedded models from an emoji font, CLDR's names and WordNet. The same command resumes a killed run."""

    wordnet: Path
    """The file wordnet-synsets.jsonl.gz."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The colour font (Debian: fonts-noto-color-emoji)."""
    cldr: Path = Path("/usr/share/unicode/cldr/common")
    """The folder common/ of CLDR (Debian: unicode-cldr-core)."""
    only: tuple[Part, ...] = PARTS
    """Which parts, in this order: bag and words (the text tower), autoencoder, tiny (its small decoder), sight (the tower learns what words
    look like), unet, clip, vit, drawings (images generated for captions from WordNet), clip-drawn and vit-drawn (trained on these too),
    flow-sight and flow (the second generator's text encoder and transformer), text (a DistilBERT), assemble (into --out), card (measure,
    and write README.md and drawings.png). Not by default: restore (what flow needs, from the models in --out), add-flow (put the second
    generator into --out, measure it, and write the card)."""
    work_dir: Path = Path("runs/emoji")
    """Folder for checkpoints and records."""
    out: Path = EMBEDDED_FOLDER
    """Folder for the models (default: in the package)."""
    seed: int = 0
    """Seed of every training run; the same seed gives the same weights on one machine with the same number of threads."""
    threads: int | None = None
    """CPU threads (default: all cores)."""
    shorten: int = 1
    """Divide all numbers of steps by this, to try the recipe."""

    def __post_init__(self) -> None:
        require_seed(self.seed)
        for name in ("shorten", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(got=f"--{name} {value}", expected="at least 1", do="give a positive number")
