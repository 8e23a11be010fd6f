"""``python -m train audit``: from its flags to the shadows, the attacks, the table, ``audit.json`` and ``audit.csv``."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lugpi_core.command_line import say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError, number_of
from lugpi_core.fields import part_of
from lugpi_core.files import make_folder, sweep, whole_file, write_json
from lugpi_core.fingerprint import hash_file
from lugpi_core.runtime.libraries import prepare_libraries
from train.evidence.audited import ATTACKS, Answers, Audited, Found, Texts, attack_all, chosen_models, read_answers, texts_of
from train.evidence.membership import RATES, Estimate, Sampled, estimate, rate_name
from train.evidence.schedule import refuse_launchers
from train.evidence.shadows import Recorded, Shadows, halves_of, shadow_name, shadows_of, train_shadows
from train.file_names import AUDIT, PREDICTIONS
from train.models.markdown import markdown_table
from train.options.settings import DistillationSettings
from train.options.tools import AuditOptions

SCORES = "audit.csv"
UNSEEN = "unseen texts"
LEGEND = (
    "Members are the train texts, non-members the test texts. AUC: the chance that a member gets the higher score, 0.5 = nothing is found. "
    "TPR: the share of members that are found where that share of non-members is taken for members. Brackets: 95 % interval over texts, "
    f"and over seeds where there are several. {UNSEEN}: the attack by the loss on shadows and train texts that they have not seen; what "
    "differs from 0.5 there is a difference of train and test texts, not of having been seen."
)


def audit(options: AuditOptions) -> dict[str, Any]:
    """Train the shadows that are missing, attack the models, print the table, write ``audit.json`` and ``audit.csv``; return the figures.

    Raises:
        InputError: a regression; as ``chosen_models``, ``Shadows.require_same`` and ``train_shadows``; or damaged predictions.
        Stopped: a signal asked for it; finished shadows and checkpoints are kept.
    """
    prepare_libraries()
    corpus = load_corpus(options.dataset, part_of(options, CorpusSettings))
    if corpus.task == "regression":
        raise InputError(
            got=f"{corpus.name}, a regression",
            expected="a task with classes: the attacks read the probability of the label",
            do="audit the models of a single-label or multi-label corpus",
        )
    refuse_launchers()
    chosen = chosen_models(options.run, corpus, options.models)
    experiment = _experiment(options, corpus, chosen)
    halves = halves_of(corpus, options.shadows, seed=options.seed)
    texts = texts_of(corpus, halves, seed=options.seed)
    sweep(make_folder(experiment.models))
    outcome = train_shadows(experiment, shadows_of(list(experiment.of.values()), corpus, halves, seed=options.seed), options.processes)
    results = [_attacked(audited, outcome.folders, _learnt_by(audited, experiment, texts), options.seed) for audited in chosen]
    report = AuditReport(corpus=corpus, texts=texts, shadows=options.shadows, seed=options.seed, results=tuple(results))
    print(f"{report.to_markdown()}\n\n{LEGEND}")
    for note in report.notes:
        say(f"note: {note}")
    figures = report.to_json()
    table = {"header": report.header, "rows": report.cells, "legend": LEGEND}
    write_json(options.run / AUDIT, figures | {"table": table})
    _write_scores(options.run / SCORES, report)
    return figures | {"audit": str(options.run / AUDIT), "trained": len(outcome.trained)}


def _experiment(options: AuditOptions, corpus: Corpus, chosen: Sequence[Audited]) -> Shadows:
    """Return what the shadows are trained from, after looking that each audited model, and each of its teachers, can be planned as it was
    trained."""
    first = [audited.models[0] for audited in chosen]
    sources = {model.folder.name: model for model in first}
    experiment = Shadows(
        corpus=corpus,
        run=options.run,
        text_model=first[0].text_model(),
        optimization=first[0].optimization,
        placement=first[0].placement(options.device),
        distillation=DistillationSettings(),
        device=options.device,
        of=sources,
    )
    for model in first:
        experiment.require_same(model)
        for teacher in map(Recorded.of, model.teachers):
            experiment.require_same(teacher)
            sources[teacher.folder.name] = teacher
    return experiment


def _learnt_by(audited: Audited, experiment: Shadows, texts: Texts) -> Texts:
    """Return the texts for a row of models. One of images alone has learnt the train texts that have an image."""
    if audited.command != "images":
        return texts
    tokens = experiment.tokens(audited.models[0].training["image_tokens"])
    return texts.of_learnt(tokens.has_image[experiment.corpus.rows("train")])


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What was found of one row of models.

    Attributes:
        audited: the row.
        texts: its members and non-members.
        answers: of its models.
        found: what the attacks find.
    """

    audited: Audited
    texts: Texts
    answers: tuple[Answers, ...]
    found: Found


def _attacked(audited: Audited, folders: Mapping[str, Path], texts: Texts, seed: int) -> AuditResult:
    answers = tuple(read_answers(model.folder, texts) for model in audited.models)
    source = audited.models[0].folder.name
    of_shadows = (read_answers(folders[shadow_name(source, number)], texts) for number in range(len(texts.seen_HM)))
    return AuditResult(audited=audited, texts=texts, answers=answers, found=attack_all(answers, of_shadows, texts, seed=seed))


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The figures of an audit.

    Attributes:
        corpus: whose texts they are.
        texts: members and non-members of a model that has learnt every train text.
        shadows: of each model.
        seed: of the halves.
        results: of each row of models.
    """

    corpus: Corpus
    texts: Texts
    shadows: int
    seed: int
    results: tuple[AuditResult, ...]

    @property
    def notes(self) -> list[str]:
        """What a reader must know."""
        _, others = self.texts.counts
        notes = [
            f"no TPR at {_percent(rate)} FPR: {number_of(others, 'test text{s}')}; one is {_percent(rate)} of {needed:,}"
            for rate, needed in RATES.items()
            if others < needed
        ]
        if self.texts.repeated:
            notes.append(f"{number_of(self.texts.repeated, 'test text{s}')} left out, because train texts say the same")
        for result in self.results:
            if not result.texts.learnt_N.all():
                members = number_of(result.texts.counts[0], "train text{s}")
                notes.append(f"members of {result.audited.name} are {members}, which have an image: no baseline has these members")
        return notes + self._notes_of_seeds

    @property
    def _notes_of_seeds(self) -> list[str]:
        """Which differences are over fewer seeds than the figures beside them."""
        baseline = self._baseline
        if baseline is None:
            return []
        compared = [one for one in self.results if one is not baseline and one.texts.learnt_N.all()]
        fewer = []
        for result in compared:
            seeds = self._compared_seeds(result)
            if not seeds:
                fewer.append(f"{result.audited.name} over none")
            elif len(seeds) < max(len(result.audited.seeds), len(baseline.audited.seeds)):
                fewer.append(f"{result.audited.name} over the seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
        why = f"differences are over the seeds that a row and {baseline.audited.name} both have, figures over all of a row's seeds"
        return [f"{why}: {'; '.join(fewer)}"] if fewer else []

    @property
    def _baseline(self) -> AuditResult | None:
        return next((one for one in self.results if one.audited.command == "baseline"), None)

    def _compared_seeds(self, result: AuditResult) -> list[int]:
        """Return the seeds over which a row is compared with the baseline: those that both have, and none where their members differ."""
        baseline = self._baseline
        if baseline is None or baseline is result or not result.texts.learnt_N.all():
            return []
        return [seed for seed in result.audited.seeds if seed in baseline.audited.seeds]

    def estimates(self, result: AuditResult) -> dict[str, dict[str, Estimate]]:
        """Return the figures of each attack, and of texts that shadows have not seen."""
        figures: dict[str, Mapping[str, Sampled]] = {attack: result.found.figures[attack] for attack in ATTACKS}
        figures[UNSEEN] = result.found.unseen
        texts = min(result.texts.counts)
        return {attack: {name: estimate(one, texts=texts) for name, one in of_attack.items()} for attack, of_attack in figures.items()}

    def differences(self, result: AuditResult) -> dict[str, dict[str, Estimate]]:
        """Return by how much the figures of each attack exceed those of the baseline, over the seeds that both have; empty without any."""
        baseline, seeds = self._baseline, self._compared_seeds(result)
        if baseline is None or not seeds:
            return {}
        ours, theirs = ([one.audited.seeds.index(seed) for seed in seeds] for one in (result, baseline))
        return {
            attack: {
                name: estimate(
                    one.take(ours).minus(baseline.found.figures[attack][name].take(theirs)), texts=min(self.texts.counts), lowest=-1.0
                )
                for name, one in result.found.figures[attack].items()
            }
            for attack in ATTACKS
        }

    def to_markdown(self) -> str:
        """Return the table."""
        return markdown_table(self.header, self.cells)

    @property
    def rates(self) -> list[float]:
        """The false positive rates that there are enough non-members for."""
        return [rate for rate, needed in RATES.items() if self.texts.counts[1] >= needed]

    @property
    def header(self) -> list[str]:
        """The header of the table."""
        rates = [name for rate in self.rates for name in (f"TPR at {_percent(rate)} FPR", "- baseline, points")]
        return ["model", "right, train / test", "attack", "AUC", "- baseline", *rates]

    @property
    def cells(self) -> list[list[str]]:
        """The cells of the table: a line for each attack on each row of models."""
        lines, names = [], ["auc", *map(rate_name, self.rates)]
        for result in self.results:
            differences = self.differences(result)
            heads = [_named(result.audited), _right(result)]
            for attack, figures in self.estimates(result).items():
                line = [*heads, attack]
                for name in names:
                    line.append(_text(figures[name], ".3f" if name == "auc" else ".1%"))
                    difference = differences[attack][name] if attack in differences else None
                    points = 1 if name == "auc" else 100
                    line.append("" if difference is None else _text(difference.times(points), "+.3f" if name == "auc" else "+.1f"))
                lines.append(line)
                heads = ["", ""]
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return every figure as a JSON value."""
        members, others = self.texts.counts
        return {
            "command": "audit",
            "dataset": self.corpus.name,
            "corpus": self.corpus.fingerprint(),
            "shadows": self.shadows,
            "seed": self.seed,
            "members": members,
            "non_members": others,
            "models": {result.audited.name: self._record(result) for result in self.results},
            "notes": self.notes,
        }

    def _record(self, result: AuditResult) -> dict[str, Any]:
        estimates, differences = self.estimates(result), self.differences(result)
        unseen = estimates.pop(UNSEEN)
        return {
            "command": result.audited.command,
            "seeds": list(result.audited.seeds),
            "members": result.texts.counts[0],
            "folders": {model.folder.name: hash_file(model.folder / PREDICTIONS) for model in result.audited.models},
            "attacks": {attack: _records(figures) for attack, figures in estimates.items()},
            "minus_baseline": {attack: _records(figures) for attack, figures in differences.items()},
            "unseen": _records(unseen),
        }


def _records(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    """Return figures as a JSON value; null for a rate that there are too few non-members for."""
    return {name: figures[name].record() if name in figures else None for name in ("auc", *map(rate_name, RATES))}


def _percent(rate: float) -> str:
    return f"{100 * rate:g} %"


def _named(audited: Audited) -> str:
    return audited.name if len(audited.seeds) == 1 else f"{audited.name}, {len(audited.seeds)} seeds"


def _right(result: AuditResult) -> str:
    return " / ".join(
        f"{np.mean([one.hits.mean() for one in of_split]):.3f}" for of_split in zip(*map(Answers.both, result.answers), strict=True)
    )


def _text(figure: Estimate, form: str) -> str:
    return f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def _write_scores(path: Path, report: AuditReport) -> None:
    """Write each attack's score of each text, and which shadows have seen it, as a 0 or 1 for each. Of a test text none has; a 1 says that
    LiRA takes the other shadow of the pair."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "id", "member", *ATTACKS, "seen_by"])
        for result in report.results:
            for place, (model, answers) in enumerate(zip(result.audited.models, result.answers, strict=True)):
                for side, (of_side, seen_HN) in enumerate(zip(answers.both(), (result.texts.seen_HM, result.texts.dealt_HO), strict=True)):
                    scores = [result.found.scores[attack][place][side] for attack in ATTACKS]
                    for n, id_ in enumerate(of_side.ids):
                        seen_by = "".join(map(str, seen_HN[:, n].astype(int)))
                        writer.writerow([model.folder.name, id_, 1 - side, *(f"{score[n]:.9g}" for score in scores), seen_by])
