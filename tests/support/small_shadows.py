"""What the shadows of an audit are trained from, with the demo's text model on the CPU."""

from pathlib import Path

from lugpi_core.corpora.corpus import Corpus
from train.data.text_model import find_text_model
from train.evidence.shadows import Recorded, Shadows
from train.options.settings import DistillationSettings, Optimization, Placement


def shadows_from(corpus: Corpus, run: Path, *models: Recorded) -> Shadows:
    """Return what the shadows of some models are trained from."""
    return Shadows(
        corpus=corpus,
        run=run,
        text_model=find_text_model("demo", max_length=None),
        optimization=Optimization(),
        placement=Placement(device="cpu"),
        distillation=DistillationSettings(),
        device="cpu",
        of={model.folder.name: model for model in models},
    )
