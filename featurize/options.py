"""The settings of featurize, each with its meaning, default and check, and the flags of its commands. Imports nothing heavy.

Commands take a dataclass of flags, which inherits from the settings; below the commands only the settings are known.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lugpi_core.corpora.options import CorpusOptions, RunOptions, store_folder
from lugpi_core.errors import InputError
from lugpi_core.fields import check_fields
from lugpi_core.runtime.device import DeviceChoice, DtypeChoice, require_seed

Scheduler = Literal["own", "ddim", "dpm++", "euler", "lcm"]
PromptStrategy = Literal["whole", "chunks", "keywords", "wordnet"]
# The prompts of unlabelled texts then depend on the corpus that they are added to: on its train texts, or on its classes.
OF_LABELLED: tuple[PromptStrategy, ...] = ("keywords", "wordnet")
AttentionChoice = Literal["auto", "xformers", "sdpa"]
CompileChoice = Literal["auto", "on", "off"]
DeepCacheCut = Literal["level", "layer"]
Fidelity = Literal["high", "balanced", "fast"]
SubsetRule = Literal["k-centre", "herding", "random"]
# 500 of at most 12 kB each stay well below 10 MB.
MOST_THUMBNAILS = 500
_POOL = re.compile(r"cls|1|([2-9]|[1-9][0-9]{1,2})x\1")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is generated: with the texts and the generator's weights, these settings decide every image.

    Raises:
        InputError: a value of another type, ``images_per_text`` or ``subset`` is below 1, passages of which there is one, ``subset_by``
            without ``subset``, or ``seed`` is no seed. A generator checks the range of the others, for which it has defaults.
    """

    steps: int | None = None
    """Denoising steps (default: the generator's)."""
    guidance: float | None = None
    """Guidance scale; how it acts, and up to which value there is none, depends on the family (default: the generator's)."""
    guidance_interval: str | None = None
    """a:b = classifier-free guidance only in this part of the steps, fractions with 0 <= a < b <= 1: evaluations of the denoiser from
    ⌊aN⌋ to before ⌊bN⌋ of N (one a step, of Heun's sampler two). The others read half as many rows; other images (default: in every
    step)."""
    guidance_reuse: bool | None = None
    """After the interval, add the difference that guidance made in its last step; --no-guidance-reuse: add none, with --fidelity too
    (default: none, or as --fidelity says)."""
    scheduler: Scheduler | None = None
    """Sampler; own = the one in the generator's folder (default: the generator's). lcm is for LoRAs of latent consistency models."""
    size_px: int | None = None
    """Side of the images in pixels (default: the generator's)."""
    deepcache: int | None = None
    """N = run the deep UNet blocks at every N-th step only (DeepCache); faster, but other images (default: the generator's, 1)."""
    deepcache_cut: DeepCacheCut | None = None
    """What the other steps of --deepcache run of the UNet: level (its outermost level) or layer (the last layer of it alone, as the authors
    cut; faster still) (default: level)."""
    fidelity: Fidelity | None = None
    """Shortcuts that were chosen together, where the generator has them: high (none); balanced (0.42 of the work of the preset fast;
    0.75 to 0.77 without a UNet); fast (0.26; 0.62 to 0.66). Tokens of the embedded generator then have a cosine of 0.98 and 0.94 with those
    of high, those of another seed 0.69; teachers were as good. They set --guidance-interval, --guidance-reuse, --deepcache and
    --deepcache-cut; what is given stands (default: high)."""
    lora: tuple[str, ...] = ()
    """LoRA files, FILE.safetensors or FILE.safetensors:SCALE, fused into the generator's weights in this order. May be repeated."""
    unet: Path | None = None
    """A .safetensors file with the weights of the UNet or transformer alone, in place of those of --generator, such as SDXL-Lightning's."""
    generator_config: str | None = None
    """For a --generator that is one .safetensors file: a diffusers folder or hub id of the same model, whose configurations, tokenizers and
    scheduler are read (default: what diffusers knows for such files, from the hub)."""
    decoder: str = "full"
    """full (the generator's own), half (the same at half the side: a quarter less work), tiny (TAESD, 18 times less), or tiny=FOLDER. Other
    tokens: their column is named ENCODER-half or ENCODER-tiny."""
    images_per_text: int = 1
    """K images of every text, each from its own noise, or each of its own passage (--prompts chunks)."""
    best_of: int = 1
    """Draw K candidates of every image, each from its own noise, and keep the one that agrees best with its prompt, by the CLIP score of
    the first of --encoders that has a text tower: K times the drawing. All encoders read the image that is kept."""
    prompts: PromptStrategy = "whole"
    """What the generator reads of a text, or of its --prompt-column: whole (what is too long is cut); chunks (K passages of near-equal
    length, cut between sentences or words, an image each); keywords (the words of the largest TF-IDF, fitted on the train split alone, as
    many as the generator reads); wordnet (all of it, with WordNet's hypernym in place of every word that names a class of the corpus, so
    that no image shows a label because the prompt says it)."""
    subset: int | None = None
    """Draw images for this many train texts only (of unlabelled texts, for this many of them), chosen by --subset-by; texts of one prompt
    count once. Validation and test texts all have theirs, because teachers are scored on them. A larger number draws the additional ones
    only. Teachers read learnt tokens in place of an image that was not drawn (default: all)."""
    subset_by: SubsetRule = "k-centre"
    """How --subset chooses, on TF-IDF vectors of the prompts: k-centre (the text farthest from all chosen ones is next), herding (the one
    that brings the mean of the chosen ones nearest to that of all; Welling 2009), or, as a control, random. Each begins every larger choice
    with the smaller ones."""
    seed: int = 0
    """Seed of the images; together with the prompt it decides each image."""

    def __post_init__(self) -> None:
        check_fields(self)
        _require_positive("--images-per-text", self.images_per_text)
        _require_positive("--best-of", self.best_of)
        if self.subset is not None:
            _require_positive("--subset", self.subset)
        elif self.subset_by != "k-centre":
            raise InputError(
                got=f"--subset-by {self.subset_by} without --subset",
                expected="how many texts to choose",
                do="give their number, for instance --subset 500, or leave it out",
            )
        if self.prompts == "chunks" and self.images_per_text == 1:
            raise InputError(
                got="--prompts chunks with one passage, the whole text",
                expected="two passages or more",
                do="give their number, for instance --images-per-text 4",
            )
        require_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class Storage:
    """What of the generated images is kept, and in which form.

    Raises:
        InputError: a value of another type, ``shard_rows`` is below 1 or above 2^24, ``encoder_size`` or ``encoder_layer`` below 1, or
            ``pool`` is none of its values.
    """

    latents: bool = True
    """Keep each image's latent (at 512 px, Stable Diffusion 32 kB, FLUX.2 262 kB), so that encoders can be added without generating the
    images again."""
    token_dtype: Literal["float16", "int8"] = "float16"
    """How tokens are kept; int8, with a scale for each token, takes half the disk (what it costs: python -m benchmarks fidelity)."""
    shard_rows: int = 1024
    """Images in one shard file."""
    encoder_size: int | None = None
    """Side of the encoders' input in pixels, in place of what their image processors make; positions are interpolated to it, as the library
    does (the column is named ENCODER-<size>px, unless it is the encoder's own size)."""
    encoder_layer: int | None = None
    """Take the tokens after this block of the encoders, counted from 1, with the encoder's own final norm, in place of those after the last
    (the column is named ENCODER-layer<n>)."""
    pool: str | None = None
    """Keep fewer tokens of an image: cls (the first alone, the encoder's class token or attention-pooled vector), 1 (the mean of the
    patches alone), or a grid such as 4x4 (the first, and the means of 4 by 4 cells). The column is named ENCODER-pool-<value>."""

    def __post_init__(self) -> None:
        check_fields(self)
        _require_positive("--shard-rows", self.shard_rows)
        if self.encoder_size is not None:
            _require_positive("--encoder-size", self.encoder_size)
        if self.encoder_layer is not None:
            _require_positive("--encoder-layer", self.encoder_layer)
        if self.pool is not None and not _POOL.fullmatch(self.pool):
            raise InputError(
                got=f"--pool {self.pool!r:.40}", expected="cls, 1, or as many cells a side twice, 2x2 or more", do="give for instance 4x4"
            )
        if self.shard_rows > 1 << 24:
            raise InputError(got=f"--shard-rows {self.shard_rows}", expected="at most 16777216", do="give for instance 1024")


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run computes. Of these settings only ``dtype`` changes what is in the store.

    Raises:
        InputError: a value of another type, or a number out of its range.
    """

    batch_size: int | Literal["auto"] = "auto"
    """Images generated at a time; auto takes the largest power of two that should fit, up to 32 on CUDA and 16 on the CPU. If memory
    runs out all the same, it is halved and the run goes on."""
    memory_gb: float | None = None
    """Memory that generating may take, in 10^9 bytes; on CUDA torch keeps to it (default: what is free)."""
    max_failed: int | None = None
    """Rows that may fail before the run is given up (default: a twentieth of the images, but no fewer than 16)."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA if there is a GPU."""
    dtype: DtypeChoice = "auto"
    """Precision; auto on CUDA is float16, or bfloat16 for generators that want it; on the CPU float32."""
    attention: AttentionChoice = "auto"
    """Attention kernels of the UNet; auto = sdpa, PyTorch's own."""
    compile: CompileChoice = "auto"
    """torch.compile of UNet and decoder; auto compiles on CUDA if there are at least 2,000 images to generate."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batch_size != "auto":
            _require_positive("--batch-size", self.batch_size)
        if self.memory_gb is not None and not self.memory_gb > 0:
            raise InputError(got=f"--memory-gb {self.memory_gb}", expected="more than 0", do="give for instance 24")
        if self.max_failed is not None and self.max_failed < 0:
            raise InputError(got=f"--max-failed {self.max_failed}", expected="0 or more", do="give for instance 100")


@dataclass(frozen=True, kw_only=True)
class FeaturizeSettings(Execution, Storage, Generation):
    """All settings of a run but the names of its models: what is generated, what is kept, how it is computed."""

    def __post_init__(self) -> None:
        for settings in (Generation, Storage, Execution):
            settings.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ModelNames(RunOptions):
    """Which folder a run fills, and with which models."""

    unlabelled: Path | None = None
    """Generate images for unlabelled texts instead of the corpus, for train student --unlabelled: a file (.txt with a text a line; .csv,
    .tsv, .json, .jsonl, .parquet; .gz too) or a folder of datasets.save_to_disk. The store is tokens-<its name>/ in the run."""
    generator: str = "fast"
    """A preset (fast = SD v2-base, 512 px, 20 steps; paper = SD v2, 768 px, 50 steps; sd2, sd2-base, sd2-1, sd2-1-base, sd-turbo,
    flux2-klein, flux2-klein-base, prx, prx-base, sdxl-lightning, sana-sprint, z-image-turbo, pixart-sigma, demo, demo-flow:
    docs/generators.md), a preset's weights from a folder or file as NAME=FOLDER, any text-to-image folder of diffusers, a checkpoint
    FILE.safetensors, or a hub id owner/name[@revision]."""
    encoders: tuple[str, ...] = ("clip-vit-b32",)
    """One or several of clip-vit-b32, clip-vit-b16, clip-vit-l14, vit-b16, siglip2-b16, dinov2-b14-reg, dinov3-b16, pe-core-b16,
    clip-demo and vit-demo (embedded; demo = both), open_clip:<model>/<pretrained>, open_clip:<model>/<file>.safetensors[@<pretrained>],
    timm:<model>[/<tag>], a folder or a hub id. On an existing store of the same generation a new encoder decodes the stored latents and
    generates nothing.
    prompt-text: the generator's own text encoder, for train teacher --privileged text; alone it generates no image."""


@dataclass(frozen=True, kw_only=True)
class FeaturizeOptions(FeaturizeSettings, ModelNames, CorpusOptions):
    """Generate an image for every text, encode it with frozen encoders and keep the tokens. The same command again continues, or says
    that it is done. python -m featurize verify, info, inspect, score and reduce look at an existing store; plan, missing and merge are for
    runs of many processes."""

    part: str | None = None
    """Part i/n of the work, i from 0 to n - 1: shard s belongs to part s modulo n. n may differ from run to run. A part that is done helps
    the others if the file system has locks (default: the task of a SLURM array and the process of torchrun, srun or mpirun; otherwise
    everything)."""
    dry_run: bool = False
    """Report how many images there are to generate, how long it takes, and the disk and memory it needs; write nothing."""
    ray: str | None = None
    """Generate on a cluster of Ray (pip install 'lugpi[ray]'), a shard a task: HOST:PORT of its head; auto = that of RAY_ADDRESS, or the
    one that runs on this machine, or else one that is started for this command; local = always the last. Every node must see the run
    folder."""
    ray_actors: int | None = None
    """How many processes generate at the same time on Ray, each with a GPU, or on the CPU with one CPU (default: as many as its nodes have
    room for, also those that join later)."""

    def __post_init__(self) -> None:
        CorpusOptions.__post_init__(self)
        FeaturizeSettings.__post_init__(self)
        if self.ray_actors is not None:
            _require_positive("--ray-actors", self.ray_actors)
        if self.part is not None and self.ray is not None:
            raise InputError(
                got=f"--part {self.part} with --ray", expected="one of them", do="leave one out: with --ray the cluster shares the work"
            )
        if self.ray_actors is not None and self.ray is None:
            raise InputError(got="--ray-actors without --ray", expected="both, or neither", do="add --ray auto, or leave it out")
        if not self.encoders:
            raise InputError(got="--encoders without a name", expected="at least one encoder", do="give for instance clip-vit-b32")


class _StoreOfRun(RunOptions):
    """Where the store of a corpus is, or that of unlabelled texts, of options that name them."""

    dataset: str
    limit: int | None
    unlabelled: Path | None

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.run_of(self.dataset, self.limit)

    @property
    def store(self) -> Path:
        """The store's folder."""
        return store_folder(self.run, self.unlabelled)


@dataclass(frozen=True, kw_only=True)
class StoreOptions(_StoreOfRun):
    """Which store is meant."""

    dataset: str
    """The corpus of the store, as it was given to featurize."""
    limit: int | None = None
    """The --limit that was given to featurize: it is part of the default folder's name."""
    unlabelled: Path | None = None
    """The file or folder of unlabelled texts whose store is meant, in place of the corpus's."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(StoreOptions):
    """Report every damaged, missing and flagged row of a store; with --repair, compute those rows again and no others."""

    deep: bool = False
    """Read every byte: each row and each file against its hashes. Otherwise records, sizes and structure."""
    repair: bool = False
    """Compute damaged and missing rows again (every byte is read for it), with the flags of the command that began each column. Images that
    failed are generated again in float32."""
    part: str | None = None
    """Part i/n of the shards, as featurize --part, with the same default: n processes, on as many machines, share the reading."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions(StoreOptions):
    """Show what is in a store: rows, encoders, sizes, settings, failed rows, prompts cut."""

    watch: bool = False
    """Tell how far a run is whenever that changes, until no shard is missing; then show the rest."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(FeaturizeOptions):
    """Print how many shards a run has, how many of them are missing, and how long they will take. Takes the flags of the run."""


@dataclass(frozen=True, kw_only=True)
class MissingOptions(StoreOptions):
    """Print the numbers of the shards that are missing in a store that was begun."""

    format: Literal["slurm", "lines", "json"] = "slurm"
    """slurm: 3,7,12-15, as sbatch --array takes it; lines: a number a line; json."""
    parts: int | None = None
    """Print, in place of shards, which of so many parts lack a shard."""

    def __post_init__(self) -> None:
        if self.parts is not None:
            _require_positive("--parts", self.parts)


@dataclass(frozen=True, kw_only=True)
class MergeOptions(StoreOptions):
    """Copy the records of all shards into the columns' manifests; where no shard is missing, complete the store. featurize itself does so
    at its end."""


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    """How a store is inspected.

    Raises:
        InputError: a value of another type or out of its range.
    """

    near_copy: float = 0.98
    """Cosine of centred tokens from which on two images are near-duplicates; at .98 their squared distance is a fiftieth of that of two
    unrelated images."""
    thumbnails: int = 200
    """Test examples whose images are kept for train report, 128 px at most, the first 64 also in one grid, drawings.png; 0 = none, and
    existing ones stay."""
    decoder: str = "full"
    """How latents become images: full (the generator's own decoder), half (the same at half the side, a quarter less work), tiny (TAESD,
    18 times less), or tiny=FOLDER."""
    decode_tflop: float | None = None
    """Work that decoding may take, in 10^12 operations; if all images need more, fewer are decoded (default: 10 on the CPU, 1000 on CUDA;
    an image of 512 px takes 2.5, with the tiny decoder 0.14)."""
    seed: int = 0
    """Seed of samples and shuffles."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA if there is any."""

    def __post_init__(self) -> None:
        check_fields(self)
        require_seed(self.seed)
        if not 0 < self.near_copy <= 1:
            raise InputError(got=f"--near-copy {self.near_copy}", expected="above 0 and at most 1", do="give for instance 0.98")
        if not 0 <= self.thumbnails <= MOST_THUMBNAILS:
            raise InputError(got=f"--thumbnails {self.thumbnails}", expected=f"0 to {MOST_THUMBNAILS}", do="give for instance 200")
        if self.decode_tflop is not None and not 0 < self.decode_tflop < math.inf:
            raise InputError(got=f"--decode-tflop {self.decode_tflop}", expected="a number above 0", do="give for instance 10")


@dataclass(frozen=True, kw_only=True)
class InspectOptions(InspectSettings, _StoreOfRun, CorpusOptions):
    """Inspect the cached tokens in seconds, before any training: do the images predict the class, do they agree with their texts, how many
    are near-duplicates? Keeps small images for train report. Reads the store; downloads no model."""

    unlabelled: Path | None = None
    """Inspect the images of these unlabelled texts, a file or a folder, instead of the corpus's; questions about classes are left out."""
    stores: tuple[Path, ...] = ()
    """Compare the images of several runs of this corpus, such as those of several generators: their folders. Prints one table and writes
    comparison.json and comparison.png, the same texts in rows and runs in columns, to --run-dir (default: runs/<dataset>)."""

    def __post_init__(self) -> None:
        CorpusOptions.__post_init__(self)
        InspectSettings.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(_StoreOfRun, CorpusOptions):
    """Compute how well each image agrees with its prompt, its CLIP score, by an encoder of the store that has a text tower, and keep it
    beside the store (clip-scores.h5), for train --several-images weighted and best. Downloads no model; what is there is kept."""

    column: str | None = None
    """Tokens whose encoder is asked, such as clip-vit-b32 (default: the only ones of an encoder with a text tower)."""
    unlabelled: Path | None = None
    """Score the images of these unlabelled texts, a file or a folder, instead of the corpus's."""
    device: DeviceChoice = "auto"
    """Where to compute; auto takes CUDA if there is any."""

    def __post_init__(self) -> None:
        CorpusOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ReduceOptions(_StoreOfRun, CorpusOptions):
    """Write the first principal components of a column's tokens as a column of its own, COLUMN-pcaN, for less disk: 64 of 768 take a
    twelfth. They are fitted on the images of the train examples, and kept. Loads no model."""

    pca: int
    """Components of each token, fewer than its width."""
    column: str | None = None
    """Tokens that are projected, such as clip-vit-b32 (default: the only ones)."""
    unlabelled: Path | None = None
    """Project the tokens of these unlabelled texts, a file or a folder, on the components of the corpus's own store."""

    def __post_init__(self) -> None:
        CorpusOptions.__post_init__(self)
        _require_positive("--pca", self.pca)


def _require_positive(flag: str, value: int) -> None:
    if value < 1:
        raise InputError(got=f"{flag} {value}", expected="at least 1", do="give a positive number")
