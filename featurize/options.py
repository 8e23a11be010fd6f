"""The flags of ``python -m featurize``: what each means, its default and its check are written here, once. Imports nothing heavy."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lugpi_core.corpora.options import CorpusOptions, default_run_dir, store_folder
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import DeviceChoice, DtypeChoice, require_seed

# So many, of at most 12 kB each, stay well below 10 MB.
MOST_THUMBNAILS = 500


@dataclass(frozen=True, kw_only=True)
class FeaturizeOptions(CorpusOptions):
    """Draw an image for every text, encode it with frozen encoders and keep the tokens. The same command again goes on or says it is
    done. python -m featurize verify, info and inspect look at a store that is there."""

    run_dir: Path | None = None
    """Folder of the run; the store is its tokens/ (default: runs/<dataset>)."""
    unlabelled: Path | None = None
    """Draw for a file of texts without labels (.txt with a text a line, .csv, .jsonl, .parquet) in place of the corpus's, for train
    student --unlabelled; the store is tokens-<name of the file>/ in the run."""
    generator: str = "fast"
    """fast (SD v2-base, 512 px, 20 steps), paper (SD v2, 768 px, 50 steps), sd2, sd2-base, sd2-1, sd2-1-base, sd-turbo, demo, a preset's
    weights from a folder as NAME=FOLDER, any Stable Diffusion folder of diffusers, or a hub id owner/name[@revision]."""
    encoders: tuple[str, ...] = ("clip-vit-b32",)
    """One or several of clip-vit-b32, clip-vit-b16, clip-vit-l14, vit-b16, demo, open_clip:<model>/<pretrained>, a folder or a hub id. On
    an existing store of the same generation a new encoder decodes the stored latents and draws nothing."""
    steps: int | None = None
    """Denoising steps (default: the generator's)."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 or less turns guidance off (default: the generator's)."""
    scheduler: Literal["own", "ddim", "dpm++", "euler"] | None = None
    """Sampler; own = the one in the generator's folder (default: the generator's)."""
    size_px: int | None = None
    """Side of the images in pixels (default: the generator's)."""
    deepcache: int | None = None
    """N: the deep part of the UNet runs at every N-th step only (DeepCache); faster, and other pictures (default: the generator's, 1)."""
    decoder: str = "full"
    """full (the generator's own), tiny (TAESD, 18 times less work, other tokens; their column is named ENCODER-tiny), or tiny=FOLDER."""
    images_per_text: int = 1
    """K pictures of every text, each from noise of its own."""
    seed: int = 0
    """Seed of the drawings; with the prompt it decides each picture."""
    latents: bool = True
    """Keep each image's latent (32 kB at 512 px), so that encoders can be added without drawing again."""
    token_dtype: Literal["float16", "int8"] = "float16"
    """How tokens are kept; int8, with a scale for each token, takes half the disk (what it costs: python -m benchmarks fidelity)."""
    batch_size: int | Literal["auto"] = "auto"
    """Images drawn at a time; auto takes the largest power of two that fits, up to 32 on CUDA and 16 on the CPU. Where memory runs out all
    the same, it is halved and the run goes on."""
    memory_gb: float | None = None
    """Memory that drawing may take, in 10^9 bytes; on CUDA torch keeps to it (default: what is free)."""
    max_failed: int | None = None
    """Rows that may fail before the run is given up (default: a twentieth of the drawings, but no fewer than 16)."""
    dry_run: bool = False
    """Say what there is to draw, how long it takes, and the disk and memory it needs; make nothing."""
    shard_rows: int = 1024
    """Drawings in one shard file."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA where there is one."""
    dtype: DtypeChoice = "auto"
    """Precision; auto is float16 on CUDA, float32 on the CPU."""
    attention: Literal["auto", "xformers", "sdpa"] = "auto"
    """Attention kernels of the UNet; auto takes those that are faster on this device, as timed at the start."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of UNet and decoder; auto compiles on CUDA where so much is to be drawn that it pays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        for name in ("batch_size", "shard_rows", "images_per_text"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise InputError(
                    got=f"--{name.replace('_', '-')} {getattr(self, name)}", expected="at least 1", do="give a positive number"
                )
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise InputError(got=f"--memory-gb {self.memory_gb}", expected="more than 0", do="give for instance 24")
        if self.max_failed is not None and self.max_failed < 0:
            raise InputError(got=f"--max-failed {self.max_failed}", expected="0 or more", do="give for instance 100")
        if self.shard_rows > 1 << 24:
            raise InputError(got=f"--shard-rows {self.shard_rows}", expected="at most 16777216", do="give for instance 1024")
        if not self.encoders:
            raise InputError(got="--encoders without a name", expected="at least one encoder", do="give for instance clip-vit-b32")


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """Which store is meant."""

    dataset: str
    """The corpus that the store was made for, as it was named to featurize."""
    limit: int | None = None
    """The --limit it was made with: it is part of the default folder's name."""
    run_dir: Path | None = None
    """Folder of the run; the store is its tokens/ (default: runs/<dataset>)."""
    unlabelled: Path | None = None
    """The file of texts without labels whose store is meant, in place of the corpus's."""

    @property
    def store(self) -> Path:
        """The store's folder."""
        run = self.run_dir or default_run_dir(self.dataset, self.limit)
        return store_folder(run, self.unlabelled)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(StoreOptions):
    """Name every damaged, missing and flagged row of a store, and with --repair make those again and only those."""

    deep: bool = False
    """Read every byte: each row and each file against its hashes. Otherwise records, sizes and structure."""
    repair: bool = False
    """Make again what does not hold (every byte is read for it), with the flags of the command that began each column. Rows that failed
    are drawn anew in float32."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(StoreOptions):
    """Show what is in a store: rows, encoders, sizes, settings, failed rows, prompts cut."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CorpusOptions):
    """Look at the cached tokens before anything is trained, in seconds: whether the pictures know anything about the classes, whether they
    show their texts, how many are near-copies; and small pictures for train report. Reads the store, downloads no model."""

    run_dir: Path | None = None
    """Folder of the run; the store is its tokens/ (default: runs/<dataset>)."""
    unlabelled: Path | None = None
    """The file of texts without labels whose store is meant, in place of the corpus's; what asks for classes is left out."""
    near_copy: float = 0.98
    """Cosine of centred tokens from which on two drawings are near-copies; at .98 their squared distance is a fiftieth of that of two
    unrelated drawings."""
    thumbnails: int = 200
    """Test examples whose pictures are kept for train report, 128 px at most, the first 64 also on one sheet, drawings.png; 0 = none, and
    what is there stays."""
    decoder: str = "full"
    """What makes pictures of the latents: full (the generator's own), tiny (TAESD, 18 times less work), or tiny=FOLDER."""
    decode_tflop: float | None = None
    """Work that pictures may take, in 10^12 operations; where that is less than all of them need, fewer are made (default: 10 on the CPU,
    1000 on CUDA; a picture of 512 px takes 2.5, with the tiny decoder 0.14)."""
    seed: int = 0
    """Seed of what is sampled and shuffled."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA where there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_seed(self.seed)
        if not 0 < self.near_copy <= 1:
            raise InputError(got=f"--near-copy {self.near_copy}", expected="above 0 and at most 1", do="give for instance 0.98")
        if not 0 <= self.thumbnails <= MOST_THUMBNAILS:
            raise InputError(got=f"--thumbnails {self.thumbnails}", expected=f"0 to {MOST_THUMBNAILS}", do="give for instance 200")
        if self.decode_tflop is not None and not 0 < self.decode_tflop < math.inf:
            raise InputError(got=f"--decode-tflop {self.decode_tflop}", expected="a number above 0", do="give for instance 10")

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.run_dir or default_run_dir(self.dataset, self.limit)

    @property
    def store(self) -> Path:
        """The store's folder."""
        return store_folder(self.run, self.unlabelled)
