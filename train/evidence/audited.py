"""Which models of a run are audited, and what the attacks find of each.

Shapes: N examples of the corpus or of a split, M train texts (members), O test texts (non-members), H shadows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.duplicates import same_texts
from lugpi_core.errors import InputError, nearest, number_of
from train.evidence.found_models import columns_of_rows, folders_of_corpus, found_models, rows_of_found
from train.evidence.membership import (
    Attack,
    Floats,
    Sampled,
    confidence,
    features,
    lira,
    negative_loss,
    pooled,
    sampled,
    shadow_attack,
)
from train.evidence.shadows import Recorded, require_one_setting
from train.file_names import PREDICTIONS
from train.models.model_folder import training_of
from train.models.predictions import Predicted, read_predictions

Bools = NDArray[np.bool_]
ATTACKS: tuple[Attack, ...] = get_args(Attack)


@dataclass(frozen=True, kw_only=True)
class Audited:
    """A row of models with one setting, or one model.

    Attributes:
        name: of the row, or of the model's folder.
        models: by seed.
    """

    name: str
    models: tuple[Recorded, ...]

    @property
    def command(self) -> str:
        """baseline, images, teacher or student."""
        return str(self.models[0].training["command"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the models."""
        return tuple(model.training["flags"]["seed"] for model in self.models)


def chosen_models(run: Path, corpus: Corpus, requested: Sequence[str]) -> list[Audited]:
    """Return the requested models of a run; if none are, its baseline and the first teacher and student of its tables.

    Raises:
        InputError: no finished model, no such one, models of another corpus, of one row with several settings, or of a kind whose
            shadows cannot be trained from its records alone.
    """
    finished = folders_of_corpus(run, corpus)
    if not finished:
        raise InputError(
            got=f"no finished model in {run}",
            expected="a baseline, a teacher or a student",
            do="train it first (python -m train baseline, with the same --dataset and its flags), or name the run's folder with --run-dir",
        )
    by_row = _by_row(finished, run)
    by_folder = {folder.name: [folder] for folder in finished}
    names = list(requested) or _first_of_each_kind(by_row, by_folder)
    for name in names:
        if name not in by_row and name not in by_folder:
            known = [*by_row, *by_folder]
            raise InputError(
                got=f"--models {name}",
                expected=f"one of {', '.join(dict.fromkeys(known))}, finished models of {run}",
                do=nearest(name, known),
            )
    chosen = [Audited(name=name, models=tuple(map(Recorded.of, by_row.get(name) or by_folder[name]))) for name in names]
    for audited in chosen:
        for model in audited.models:
            _require_shadows(model)
        require_one_setting(audited.name, audited.models)
    _require_different(chosen)
    return chosen


def _by_row(finished: Sequence[Path], run: Path) -> dict[str, list[Path]]:
    """Return the models of each row by seed, in the order of the tables."""
    columns = columns_of_rows(run, finished=finished)
    found, by_seed = found_models(finished, columns), dict[str, dict[int, Path]]()
    for name, folder in found.folders.items():
        seed = training_of(folder)["flags"]["seed"]
        by_seed.setdefault(name.removesuffix(f"-seed{seed}") if seed else name, {})[seed] = folder
    rows = rows_of_found(run, columns, found)
    return {row.name: [folder for _, folder in sorted(by_seed[row.name].items())] for row in rows if row.name in by_seed}


def _first_of_each_kind(by_row: Mapping[str, list[Path]], by_folder: Mapping[str, list[Path]]) -> list[str]:
    """Return the first row of each kind that has models which can be audited; of a kind without one, the first folder."""
    names = dict.fromkeys(("baseline", "teacher", "student"), "")
    for name, (first, *_) in [*by_row.items(), *by_folder.items()]:
        model = Recorded.of(first)
        command = model.training["command"]
        if names.get(command) == "" and _why_not(model) is None:
            names[command] = name
    chosen = [name for name in names.values() if name]
    if not chosen:
        raise _why_none([Recorded.of(folder) for (folder,) in by_folder.values()])
    return chosen


def _why_none(models: Sequence[Recorded]) -> InputError:
    """Return why none of some models is audited unless it is named."""
    for model in models:
        if (reason := _why_not(model)) is not None:
            return reason
    folder = models[0].folder
    return InputError(
        got=f"{folder.parent}, whose models are of images alone",
        expected="a baseline, a teacher or a student, which are audited where no model is named",
        do=f"train one, or name a model: --models {folder.name}",
    )


def _why_not(model: Recorded) -> InputError | None:
    """Return why a model cannot be audited, or None."""
    training, folder = model.training, model.folder
    if "shots" in training:
        return InputError(
            got=f"{folder}, which was trained on {number_of(training['shots'], 'text{s}')} of each class",
            expected="a model of all train texts, of whose halves its shadows are",
            do="audit models that were trained without --shots; --run-dir names their run",
        )
    if training["command"] == "teacher" and "folds" in training:
        return InputError(
            got=f"{folder}, whose recorded answers to train texts are those of its folds' teachers",
            expected="a teacher that answers for itself",
            do="audit the same teacher without folds: its weights are the same",
        )
    if training["command"] == "student" and training["unlabelled"] is not None:
        return InputError(
            got=f"{folder}, which was distilled on unlabelled texts too",
            expected="a student of the train texts alone, of whose halves its shadows are",
            do="audit one that was distilled without --unlabelled",
        )
    if "anchor" in training:
        return InputError(
            got=f"{folder}, which was held near an earlier model (--anchor)",
            expected="a student of the train texts alone, of whose halves its shadows are: that model may have seen both",
            do="audit one that was distilled without --anchor",
        )
    return None


def _require_shadows(model: Recorded) -> None:
    if (why := _why_not(model)) is not None:
        raise why


def _require_different(chosen: Sequence[Audited]) -> None:
    names: dict[Path, str] = {}
    for audited in chosen:
        for model in audited.models:
            if (other := names.setdefault(model.folder, audited.name)) != audited.name:
                raise InputError(
                    got=f"--models {other} {audited.name}, which both have {model.folder.name}",
                    expected="different models",
                    do="name one of them",
                )


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Members and non-members.

    Attributes:
        seen_HM: which train texts each shadow has seen.
        dealt_HO: the same as if test texts were dealt into halves too: it only decides which shadow of a pair answers for a text that
            neither has seen, so that both samples have answers of equally many unseen shadows.
        kept_O: of the test texts, those that are not train texts as well.
        learnt_N: of the N train texts, those that the model has learnt, which are the members.
    """

    seen_HM: Bools
    dealt_HO: Bools
    kept_O: Bools
    learnt_N: Bools

    def of_learnt(self, learnt_N: Bools) -> "Texts":
        """Return them for a model that has learnt some of the train texts only."""
        return replace(self, seen_HM=self.seen_HM[:, learnt_N], learnt_N=learnt_N)

    @property
    def repeated(self) -> int:
        """How many test texts are train texts too, and count as neither."""
        return int((~self.kept_O).sum())

    @property
    def counts(self) -> tuple[int, int]:
        """Members and non-members."""
        return self.seen_HM.shape[1], int(self.kept_O.sum())


def texts_of(corpus: Corpus, halves_HN: Bools, *, seed: int) -> Texts:
    """Return the members and non-members of a corpus. Raises InputError if all test texts are train texts too."""
    train, test = corpus.rows("train"), corpus.rows("test")
    kept_N, is_train_N = np.ones(len(corpus.examples), np.bool_), np.isin(np.arange(len(corpus.examples)), train)
    for rows in same_texts(corpus.columns):
        if is_train_N[rows].any():
            kept_N[rows] = False
    first_HO = np.random.default_rng([seed, 3]).integers(2, size=(len(halves_HN) // 2, len(test))) == 0
    dealt_HO = np.stack([first_HO, ~first_HO], axis=1).reshape(len(halves_HN), -1)[:, kept_N[test]]
    if not kept_N[test].any():
        raise InputError(
            got=f"{corpus.name}, all of whose test texts are train texts too",
            expected="test texts that no model was trained on",
            do="give a corpus with other test texts, or --dedupe",
        )
    return Texts(seen_HM=halves_HN[:, train], dealt_HO=dealt_HO, kept_O=kept_N[test], learnt_N=np.ones(len(train), np.bool_))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one model answers to members and non-members."""

    members: Predicted
    others: Predicted

    def both(self) -> tuple[Predicted, Predicted]:
        """Return members and non-members."""
        return self.members, self.others


def read_answers(folder: Path, texts: Texts) -> Answers:
    """Return a finished model's recorded answers. Raises InputError as ``read_predictions``, or if they are of other texts."""
    by_split = read_predictions(folder / PREDICTIONS)
    members, others = by_split["train"], by_split["test"]
    if (len(members.ids), len(others.ids)) != (len(texts.learnt_N), len(texts.kept_O)):
        raise InputError(
            got=f"{folder / PREDICTIONS} with {len(members.ids):,} train and {len(others.ids):,} test texts",
            expected=f"{len(texts.learnt_N):,} and {len(texts.kept_O):,}, as the corpus has",
            do="remove the model's folder and train it again",
        )
    return Answers(members=_some(members, texts.learnt_N), others=_some(others, texts.kept_O))


def _some(predicted: Predicted, is_kept_N: Bools) -> Predicted:
    kept = np.flatnonzero(is_kept_N)
    ids = tuple(predicted.ids[n] for n in kept)
    return replace(predicted, ids=ids, labels=predicted.labels[kept], logits=predicted.logits[kept])


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the attacks find of a row of models.

    Attributes:
        scores: for each attack and model those of the members and of the non-members.
        figures: for each attack each figure of ``membership.sampled``, over the models.
        unseen: the same of the attack by the loss on shadows, with train texts that they have not seen as members, mean over the shadows:
            what differs from a half does so because train and test texts differ, not because a model has seen them.
    """

    scores: Mapping[Attack, Sequence[tuple[Floats, Floats]]]
    figures: Mapping[Attack, Mapping[str, Sampled]]
    unseen: Mapping[str, Sampled]


def attack_all(models: Sequence[Answers], shadows: Iterator[Answers], texts: Texts, *, seed: int) -> Found:
    """Return what the attacks find.

    Args:
        models: answers of the audited models, by seed.
        shadows: answers of their H shadows, which are read one after another.
        texts: members and non-members.
        seed: of the shadow attack.
    """
    sure, read = list[tuple[Floats, Floats]](), list[tuple[Floats, Bools]]()
    for answers, seen_M in zip(shadows, texts.seen_HM, strict=True):
        sure.append(_both(confidence, answers))
        # Test texts are no examples for the classifier: it would learn that the texts it is asked about were never seen.
        read.append((features(answers.members.task, answers.members.labels, answers.members.logits), seen_M))
    seen = texts.seen_HM, texts.dealt_HO
    unseen = [_unseen(np.stack([one[side] for one in sure]), seen[side]) for side in range(2)]
    own = [_both(confidence, answers) for answers in models]
    # Members and non-members are asked together: one classifier, and one spread of all texts.
    asked_NF = np.concatenate([part for answers in models for part in _both(features, answers)])
    by_classifier = np.split(shadow_attack(read, asked_NF, seed=seed), len(models))
    scores: dict[Attack, list[tuple[Floats, Floats]]] = {
        "loss": [(negative_loss(members), negative_loss(others)) for members, others in own],
        "shadow": [_cut(one, texts) for one in by_classifier],
        "lira": [_cut(lira(np.concatenate(one), np.concatenate(unseen)), texts) for one in own],
    }
    of_shadows = sampled([(negative_loss(members), negative_loss(others)) for members, others in sure], list(~texts.seen_HM))
    return Found(
        scores=scores,
        figures={attack: sampled(each) for attack, each in scores.items()},
        unseen={name: pooled(figure) for name, figure in of_shadows.items()},
    )


def _both(function: Any, answers: Answers) -> tuple[Floats, Floats]:
    members, others = (function(one.task, one.labels, one.logits) for one in answers.both())
    return members, others


def _cut(scores_N: Floats, texts: Texts) -> tuple[Floats, Floats]:
    """Return the scores of members and of the non-members after them."""
    members, _ = texts.counts
    return scores_N[:members], scores_N[members:]


def _unseen(sure_HN: Floats, seen_HN: Bools) -> Floats:
    """Return the confidences of the shadow of each pair that has not seen a text, [N, H / 2]."""
    return np.where(seen_HN[::2], sure_HN[1::2], sure_HN[::2]).T
