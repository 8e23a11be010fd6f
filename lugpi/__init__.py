"""Learning Using Generated Privileged Information: the Python API.

    corpus = lugpi.load_corpus("demo")
    store = lugpi.featurize(corpus, "runs/demo", generator="demo", encoders=["demo"])
    print(lugpi.inspect(store, corpus).summary())
    teacher = lugpi.train_teacher(corpus, store, column="clip-demo", text_model="demo")
    student = lugpi.distill(corpus, [teacher], text_model="demo")

The commands ``python -m featurize`` and ``python -m train`` call the same functions. ``import lugpi`` loads nothing but this file; a name
loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurize.inspect.clip_scores import score_images as score_images
    from featurize.inspect.compare_stores import compare_stores as compare_stores
    from featurize.inspect.comparison import Comparison as Comparison
    from featurize.inspect.inspect_store import inspect as inspect
    from featurize.inspect.inspection import Inspection as Inspection
    from featurize.maintain import Verification as Verification
    from featurize.maintain import repair_store as repair_store
    from featurize.maintain import verify_store as verify_store
    from featurize.options import FeaturizeSettings as FeaturizeSettings
    from featurize.options import InspectSettings as InspectSettings
    from featurize.run import featurize as featurize
    from featurize.unit import FeaturizeJob as FeaturizeJob
    from featurize.unit import ShardFeaturizer as ShardFeaturizer
    from featurize.unit import ShardRecord as ShardRecord
    from featurize.unit import featurize_shard as featurize_shard
    from lugpi_core.corpora.corpus import Corpus as Corpus
    from lugpi_core.corpora.load import load_corpus as load_corpus
    from lugpi_core.corpora.options import CorpusSettings as CorpusSettings
    from lugpi_core.errors import InputError as InputError
    from lugpi_core.runtime.stopping import Stopped as Stopped
    from lugpi_core.store.token_store import TokenStore as TokenStore
    from train.data.text_model import TextModel as TextModel
    from train.data.text_model import find_text_model as find_text_model
    from train.evidence.compare import ComparisonArguments as ComparisonArguments
    from train.evidence.compare import compare as compare
    from train.evidence.table_report import TableReport as TableReport
    from train.learning.losses import Distillation as Distillation
    from train.learning.losses import TeacherTarget as TeacherTarget
    from train.learning.losses import distillation as distillation
    from train.learning.losses import distillation_loss as distillation_loss
    from train.learning.networks import FusionHead as FusionHead
    from train.models.api import StudentArguments as StudentArguments
    from train.models.api import TeacherArguments as TeacherArguments
    from train.models.api import TrainingArguments as TrainingArguments
    from train.models.api import distill as distill
    from train.models.api import train_baseline as train_baseline
    from train.models.api import train_images as train_images
    from train.models.api import train_teacher as train_teacher
    from train.models.train_model import TrainedModel as TrainedModel
    from train.options.ray import RaySettings as RaySettings
    from train.options.settings import DistillationSettings as DistillationSettings
    from train.options.settings import Optimization as Optimization
    from train.options.settings import Placement as Placement

_MODULES = {
    "featurize.inspect.clip_scores": ("score_images",),
    "featurize.inspect.compare_stores": ("compare_stores",),
    "featurize.inspect.comparison": ("Comparison",),
    "featurize.inspect.inspect_store": ("inspect",),
    "featurize.inspect.inspection": ("Inspection",),
    "featurize.maintain": ("Verification", "repair_store", "verify_store"),
    "featurize.options": ("FeaturizeSettings", "InspectSettings"),
    "featurize.run": ("featurize",),
    "featurize.unit": ("FeaturizeJob", "ShardFeaturizer", "ShardRecord", "featurize_shard"),
    "lugpi_core": ("__version__",),
    "lugpi_core.corpora.corpus": ("Corpus",),
    "lugpi_core.corpora.load": ("load_corpus",),
    "lugpi_core.corpora.options": ("CorpusSettings",),
    "lugpi_core.errors": ("InputError",),
    "lugpi_core.runtime.stopping": ("Stopped",),
    "lugpi_core.store.token_store": ("TokenStore",),
    "train.data.text_model": ("TextModel", "find_text_model"),
    "train.evidence.table_report": ("TableReport",),
    "train.evidence.compare": ("ComparisonArguments", "compare"),
    "train.learning.losses": ("Distillation", "TeacherTarget", "distillation", "distillation_loss"),
    "train.learning.networks": ("FusionHead",),
    "train.models.api": (
        "StudentArguments",
        "TeacherArguments",
        "TrainingArguments",
        "distill",
        "train_baseline",
        "train_images",
        "train_teacher",
    ),
    "train.models.train_model": ("TrainedModel",),
    "train.options.ray": ("RaySettings",),
    "train.options.settings": ("DistillationSettings", "Optimization", "Placement"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Comparison",
    "ComparisonArguments",
    "Corpus",
    "CorpusSettings",
    "Distillation",
    "DistillationSettings",
    "FeaturizeJob",
    "FeaturizeSettings",
    "FusionHead",
    "InputError",
    "InspectSettings",
    "Inspection",
    "Optimization",
    "Placement",
    "RaySettings",
    "ShardFeaturizer",
    "ShardRecord",
    "Stopped",
    "StudentArguments",
    "TableReport",
    "TeacherArguments",
    "TeacherTarget",
    "TextModel",
    "TokenStore",
    "TrainedModel",
    "TrainingArguments",
    "Verification",
    "compare",
    "compare_stores",
    "distill",
    "distillation",
    "distillation_loss",
    "featurize",
    "featurize_shard",
    "find_text_model",
    "inspect",
    "load_corpus",
    "repair_store",
    "score_images",
    "train_baseline",
    "train_images",
    "train_teacher",
    "verify_store",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
