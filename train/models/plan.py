"""The plan of one model: its kind, text model, settings and folder. No weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.shots import shots_of
from lugpi_core.errors import InputError
from lugpi_core.runtime.device import Compute, half_for_training, resolve_compute
from lugpi_core.store.clip_scores import ClipScores
from train.data.text_model import TextModel
from train.learning.frozen_layers import require_layers
from train.learning.losses import Terms
from train.learning.optimizer import OptimizerName, optimizer_on
from train.learning.task_rules import rules_of
from train.models.kinds import ModelKind
from train.models.shared import SharedInputs
from train.options.settings import READS_SCORES, DevicePlacement, Optimization, Placement, SeveralImages, Update

# The settings that decide a model by themselves. Corpus, text model, tokens, teachers and loss are compared by their content.
_DECIDING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "gradient_accumulation_steps",
    "patience",
    "seed",
)


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One model to be trained.

    Attributes:
        kind: network, loss and inputs.
        run_dir: the run, where token ids are kept.
        folder: of the model, in the run.
        config: every setting, for ``metrics.json``.
        terms: a student's soft terms, if it is a row of tables.
        shots: of how many train texts of each class it learns; None = of all.
        episode: seed with which these, and their folds, are drawn; None = its own. The teachers of an ensemble have their student's.
        left_out: train examples that it does not learn: a fold, or what a shadow has not seen. No part of the fingerprint: folds are parts
            of one model, and a shadow's kind has it.
        keeps_weights: whether its weights are written; those of a teacher always are.
        shared: what models of one process read and check once.
    """

    kind: ModelKind
    run_dir: Path
    folder: Path
    text_model: TextModel
    optimization: Optimization
    placement: Placement
    config: Mapping[str, Any] = field(default_factory=dict)
    terms: Terms | None = None
    shots: int | None = None
    episode: int | None = None
    left_out: tuple[int, ...] = ()
    keeps_weights: bool = True
    shared: SharedInputs = field(default_factory=SharedInputs, repr=False, compare=False)

    def __post_init__(self) -> None:
        _ = self.class_weights, self.clip_scores  # refused before there is a folder
        self.require_negatives()
        if self.frozen_layers:
            require_layers(self.text_model, self.frozen_layers, kept=self.kind.fingerprint.get("layers"))

    @cached_property
    def class_weights(self) -> NDArray[np.float32] | None:
        """float32 [K], of the classes in the loss on the labels; None if all weigh the same. Raises InputError for a regression."""
        if self.optimization.class_weights == "none":
            return None
        corpus = self.kind.corpus
        return rules_of(corpus.task).balanced_weights(corpus.targets()[self.learnt_rows], len(corpus.label_names))

    def require_negatives(self, processes: int = 1) -> None:
        """Raise InputError as the function of that name, if the loss tells the texts of a batch from each other."""
        if self.kind.is_contrastive:
            require_negatives(self.optimization, processes)

    @property
    def learnt_rows(self) -> list[int]:
        """The labelled examples that it is trained on: one of images alone only on those that have an image."""
        corpus, left_out = self.kind.corpus, frozenset(self.left_out)
        rows = corpus.rows("train") if self.shots is None else shots_of(corpus, self.shots, episode=self.texts_seed)
        return [row for row in rows if row not in left_out and row not in self.unread_rows]

    @property
    def texts_seed(self) -> int:
        """The seed that draws few shots, and folds."""
        return self.optimization.seed if self.episode is None else self.episode

    @cached_property
    def unread_rows(self) -> frozenset[int]:
        """The examples of which a model of images alone reads nothing, because they have none."""
        tokens = self.kind.image_tokens
        if self.kind.reads_text or tokens is None or not tokens.is_subset:
            return frozenset()
        return frozenset(np.flatnonzero(~tokens.has_image).tolist())

    @cached_property
    def compute(self) -> Compute:
        """The device and precision that the placement resolves to here."""
        return compute_on(self.placement)

    @property
    def optimizer(self) -> OptimizerName:
        """The optimizer that the settings resolve to here."""
        return optimizer_on(self.compute.device, self.optimization.optimizer)

    @property
    def _newer_flags(self) -> dict[str, Any]:
        """Settings that came later: they count where they are not the default, so that older models are recognized."""
        newer: dict[str, Any] = {}
        if self.optimization.class_weights != "none":
            newer["class_weights"] = self.optimization.class_weights
        if self.update != "full":
            newer["update"] = self.update
        if self.update == "lp-ft":
            newer["head_learning_rate"] = self.optimization.head_learning_rate
        if self.frozen_layers:
            newer["freeze_layers"] = self.frozen_layers
        if not self.trains_all and self.optimization.prefix_dtype != "float16":
            newer["prefix_dtype"] = self.optimization.prefix_dtype
        return newer

    @property
    def _folds(self) -> dict[str, Any]:
        """What decides the folds. Of few shots they are the shots'; they once were those of all train texts."""
        return {"count": self.kind.folds, "seed": self.texts_seed, **({} if self.shots is None else {"of": "shots"})}

    @property
    def corpora(self) -> list[Corpus]:
        """The corpus and, after it, the unlabelled texts if there are any."""
        return [self.kind.corpus] + ([] if self.kind.extra is None else [self.kind.extra])

    @property
    def update(self) -> Update:
        """What is trained; full for a model that reads no text."""
        return self.optimization.update if self.kind.reads_text else "full"

    @property
    def frozen_layers(self) -> int | None:
        """How many first layers of the text encoder are frozen; None = all."""
        if self.update == "head":
            return None
        return self.optimization.freeze_layers if self.kind.reads_text else 0

    @property
    def trains_all(self) -> bool:
        """Whether no layer is frozen, neither in the whole training nor in a part of it."""
        return self.frozen_layers == 0 and self.update == "full"

    @property
    def several_images(self) -> SeveralImages:
        """Which of several images of a text it reads; drawn, the default, where it reads none, or one of each."""
        tokens = self.kind.image_tokens
        return "drawn" if tokens is None or tokens.drawings.shape[1] == 1 else self.optimization.several_images

    @property
    def redraw(self) -> int | None:
        """For how many epochs it reads one of several images of a text; None where it reads one at random, all, blank ones, or has one."""
        tokens = self.kind.image_tokens
        is_same = tokens is None or tokens.drawings.shape[1] == 1 or self.kind.privileged == "blank"
        return None if is_same else self.optimization.redraw

    @property
    def clip_scores(self) -> ClipScores | None:
        """The images' scores, if it reads them. Raises InputError as ``read_clip_scores``."""
        tokens = self.kind.image_tokens
        return None if tokens is None or self.several_images not in READS_SCORES else tokens.scores

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that decides the model."""
        return {
            "command": self.kind.command,
            "flags": {name: getattr(self.optimization, name) for name in _DECIDING} | {"optimizer": self.optimizer, **self._newer_flags},
            "max_length": self.text_model.max_length,
            "corpus": self.kind.corpus.fingerprint(),
            "separator": self.kind.corpus.separator,
            "text_model": self.text_model.weights_hash,
            "dtype": self.compute.dtype,
            **({"text_class_token": "last"} if self.kind.command == "teacher" and self.text_model.reads_last_token else {}),
            **({} if self.several_images == "drawn" else {"several_images": self.several_images}),
            **({} if self.redraw is None else {"redraw": self.redraw}),
            **({} if self.clip_scores is None else {"clip_scores": self.clip_scores.fingerprint()}),
            **({} if self.shots is None else {"shots": self.shots}),
            **({} if self.texts_seed == self.optimization.seed else {"episode": self.texts_seed}),
            **({} if self.kind.folds is None else {"folds": self._folds}),
            **self.kind.fingerprint,
        }


def require_negatives(optimization: Optimization, processes: int = 1) -> None:
    """Raise InputError if a forward pass of a process has one text alone, which a contrastive loss has no others to tell from."""
    batch, passes = optimization.batch_size, optimization.gradient_accumulation_steps
    if batch // processes // passes < 2:
        several = f" in {processes} processes" if processes > 1 else ""
        raise InputError(
            got=f"--embedding-loss infonce with --batch-size {batch} and --gradient-accumulation-steps {passes}{several}",
            expected="two texts or more in each forward pass, since it tells a text from others there",
            do=f"give --batch-size {2 * processes * passes} or more",
        )


def compute_on(placement: DevicePlacement) -> Compute:
    """Return the device and precision that a placement resolves to. Raises InputError as ``resolve_compute`` does."""
    return resolve_compute(placement.device, placement.dtype, half=half_for_training())
