"""``python -m lugpi see``: latents that a teacher likes best for a class, as pictures beside the class's own generated images.

A teacher's higher layers are visualised through the generator's latents in place of pixels (1903.02313 does so with a GAN's): gradient
ascent on the latent → decoder → image → frozen encoder → teacher. It stands above both packages, which never import each other.

Shapes: B images or latents, S starts, n stored images, C latent channels, h × w latent cells, K classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.inspect.decoded_images import to_bytes
from featurize.inspect.latent_images import LatentImages
from featurize.inspect.picture_sheet import write_picture_sheet
from lugpi.options import SeeOptions
from lugpi_core.command_line import resolved_flags, say
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError, nearest
from lugpi_core.fields import part_of
from lugpi_core.files import write_json
from lugpi_core.fingerprint import hash_file
from lugpi_core.runtime.device import resolve_compute
from lugpi_core.runtime.libraries import prepare_libraries
from lugpi_core.runtime.meters import provenance
from lugpi_core.runtime.pretrained import only_local_files
from train.data.image_tokens import ImageTokens
from train.file_names import PREDICTIONS, SEEN
from train.models.class_scores import ClassScores, neutral_rows, require_own_images
from train.models.markdown import markdown_table
from train.models.teachers import find_teacher, open_tokens_of

SHEET = "seen.png"
_PRIOR_IMAGES, _COMPARED, _SHOWN, _AT_ONCE = 256, 32, 4, 4
_STEP = 0.1  # length of the first step, in radii; later ones are shorter
_HEADER = ("class", "optimised, best", "optimised, median", "its images, mean", "its images, best", "other images, mean", "images compared")
_LEGEND = (
    "Log-odds of the class, mean over the same texts of all classes beside each image: one more makes its odds 2.7 times as high. "
    "Optimised: reached from random latents that stay as near to the mean latent as half of the stored ones. Its images: generated for "
    "train texts of the class. An optimised picture shows what moves this teacher; where its score is far above that of any generated "
    "image, it is outside of what the teacher has learnt from, and says little about such images."
)


@dataclass(frozen=True, kw_only=True)
class SeenClass:
    """One class to a teacher, in mean log-odds.

    Attributes:
        name: of the class.
        optimised: the score of each start at its end, the best first.
        own: of the class's own images, the best first.
        others: of images of other classes.
    """

    name: str
    optimised: tuple[float, ...]
    own: tuple[float, ...]
    others: tuple[float, ...]

    def cells(self) -> tuple[str, ...]:
        """Return its line of the table."""
        means = [float(np.mean(scores)) if scores else None for scores in (self.own, self.others)]
        best = max(self.own, default=None)
        values = (self.optimised[0], float(np.median(self.optimised)), means[0], best, means[1])
        return (self.name, *("" if value is None else f"{value:+.2f}" for value in values), str(len(self.own)))


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Where the stored latents are: mean and standard deviation of each channel [C, 1, 1], and the median of their distances from the mean
    in these units."""

    mean_C11: torch.Tensor
    sd_C11: torch.Tensor
    radius: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the pictures of all classes share: the corpus, its image tokens, their path from latents, the teacher's scores, the prior."""

    corpus: Corpus
    tokens: ImageTokens
    path: LatentImages
    scores: ClassScores
    prior: Prior

    def drawings_of(self, label: int, *, has_class: bool, seed: int) -> NDArray[np.int64]:
        """Return up to 32 images of train texts that have a class, or that do not."""
        rows = [row for row in self.corpus.rows("train") if (label in self.corpus.examples[row].classes) is has_class]
        return _some(self.tokens, rows, _COMPARED, seed)


def see(options: SeeOptions) -> dict[str, Any]:
    """Draw the classes, write sheet and record, print the scores; return the record.

    Raises:
        InputError: no such class, no teacher that reads images, or a column whose latents, decoder or encoder are not at hand.
    """
    prepare_libraries()
    corpus = load_corpus(options.dataset, part_of(options, CorpusSettings))
    for name in options.classes:
        if name not in corpus.label_names:
            raise InputError(got=f"--classes {name}", expected=f"classes of {corpus.name}", do=nearest(name, corpus.label_names))
    teacher = find_teacher(options.run / options.teacher)
    require_own_images(teacher)
    tokens = open_tokens_of(teacher, corpus, teacher.run / "tokens")
    compute = resolve_compute(options.device, "float32", half="float16")
    with only_local_files():
        path = LatentImages(tokens.store, tokens.reader.spec.name, compute)
        scores = ClassScores(teacher, corpus, neutral_rows(corpus, options.texts, options.seed), tokens, compute)
    prior = prior_of(path.stored(_some(tokens, corpus.rows("train"), _PRIOR_IMAGES, options.seed)))
    scene = Scene(corpus=corpus, tokens=tokens, path=path, scores=scores, prior=prior)
    rows = [_seen(name, options, scene) for name in options.classes]
    seen, pictures = [one for one, _ in rows], [images for _, images in rows]
    for line in markdown_table(_HEADER, [one.cells() for one in seen]).splitlines():
        say(line)
    captions = [f"{one.name}\noptimised {one.optimised[0]:+.1f}, its images {np.mean(one.own or [np.nan]):+.1f} on average" for one in seen]
    labels = [f"optimised {n + 1}" for n in range(options.starts)] + [f"generated {n + 1}" for n in range(_SHOWN)]
    columns = {label: [images[n] for images in pictures] for n, label in enumerate(labels)}
    sheet = write_picture_sheet(captions, columns, options.run / SHEET)
    record = {
        "command": "see",
        "corpus": corpus.fingerprint(),
        "models": {options.teacher: hash_file(teacher.folder / PREDICTIONS)},
        "generator": path.generator,
        "notice": path.notice,
        "classes": [asdict(one) for one in seen],
        "table": {"header": list(_HEADER), "rows": [list(one.cells()) for one in seen]},
        "legend": _LEGEND,
        "sheet": {"file": SHEET, "hash": hash_file(sheet)},
        "radius": prior.radius,
        "compute": compute.record(),
        "provenance": provenance(),
        "config": resolved_flags(options),
    }
    write_json(options.run / SEEN, record)
    return {**record, "seen": str(options.run / SEEN)}


def prior_of(latents_nChw: torch.Tensor) -> Prior:
    """Return where stored latents are. Raises InputError if there are fewer than two."""
    if len(latents_nChw) < 2:
        raise InputError(got=f"{len(latents_nChw)} stored latents", expected="two or more", do="fill the store with python -m featurize")
    mean_C11 = latents_nChw.mean(dim=(0, 2, 3))[:, None, None]
    sd_C11 = latents_nChw.std(dim=(0, 2, 3))[:, None, None].clamp(min=1e-6)
    distances_n = ((latents_nChw - mean_C11) / sd_C11).flatten(1).norm(dim=1)
    return Prior(mean_C11=mean_C11, sd_C11=sd_C11, radius=float(distances_n.median()))


def ascend(path: LatentImages, scores: ClassScores, label: int, prior: Prior, options: SeeOptions) -> torch.Tensor:
    """Return the latents [S, C, h, w] at the end of the ascent on the class's score; after each step, those beyond the prior's radius are
    moved back to it. The starts are the same for every class."""
    noise = torch.randn((options.starts, *path.shape), generator=torch.Generator().manual_seed(options.seed))
    # No start depends on another, and a few at once take no more memory the more there are.
    return torch.cat([_ascend(path, scores, label, prior, options.steps, part) for part in torch.split(noise, _AT_ONCE)])


def _ascend(path: LatentImages, scores: ClassScores, label: int, prior: Prior, steps: int, noise_SChw: torch.Tensor) -> torch.Tensor:
    whitened = _within(noise_SChw.to(prior.mean_C11.device), prior.radius)
    for n in range(steps):
        whitened.requires_grad_(True)
        tokens = path.tokens(path.images(prior.mean_C11 + prior.sd_C11 * whitened))
        (gradient,) = torch.autograd.grad(scores.of(tokens)[:, label].sum(), whitened)
        # Of Adam's steps, which have the gradient's signs alone, the ones along the ball's surface would not end at the best point.
        length = _STEP * prior.radius * (1 - n / steps)
        whitened = _within(whitened.detach() + length * torch.nn.functional.normalize(gradient.flatten(1)).view_as(gradient), prior.radius)
    return prior.mean_C11 + prior.sd_C11 * whitened


def _within(whitened_SChw: torch.Tensor, radius: float) -> torch.Tensor:
    distances_S = whitened_SChw.flatten(1).norm(dim=1)
    inside_SChw: torch.Tensor = whitened_SChw * (radius / distances_S).clamp(max=1)[:, None, None, None]
    return inside_SChw


def _seen(name: str, options: SeeOptions, scene: Scene) -> tuple[SeenClass, list[NDArray[np.uint8] | None]]:
    """Return a class's scores, and its pictures: optimised ones, then its own images, the best first."""
    label = scene.corpus.label_names.index(name)
    own, others = (scene.drawings_of(label, has_class=has_class, seed=options.seed) for has_class in (True, False))
    latents = ascend(scene.path, scene.scores, label, scene.prior, options)
    with torch.no_grad():
        images = torch.cat([scene.path.images(part) for part in torch.split(latents, _AT_ONCE)])
        tokens = [scene.path.tokens(part).half().float() for part in torch.split(images, _AT_ONCE)]  # as a store keeps them
        reached = torch.cat([scene.scores.of(part)[:, label] for part in tokens]).cpu()
        of_own, of_others = (_scores_of(scene, drawings, label) for drawings in (own, others))
        order = np.argsort(-np.array(of_own), kind="stable")[:_SHOWN]
        stored = scene.path.images(scene.path.stored(own[order])) if len(order) else images[:0]
    best = reached.argsort(descending=True, stable=True)
    shown: list[NDArray[np.uint8] | None] = [*to_bytes(images[best.to(images.device)].cpu()), *to_bytes(stored.cpu())]
    shown += [None] * (options.starts + _SHOWN - len(shown))
    seen = SeenClass(name=name, optimised=tuple(reached[best].tolist()), own=tuple(sorted(of_own, reverse=True)), others=tuple(of_others))
    return seen, shown


def _scores_of(scene: Scene, drawings: NDArray[np.int64], label: int) -> list[float]:
    """Return the scores of stored images."""
    found: list[float] = []
    for start in range(0, len(drawings), _AT_ONCE):
        tokens = torch.from_numpy(scene.tokens.reader.gather(drawings[start : start + _AT_ONCE])).float()
        found += scene.scores.of(tokens.to(scene.scores.device))[:, label].tolist()
    return found


def _some(tokens: ImageTokens, rows: Sequence[int], most: int, seed: int) -> NDArray[np.int64]:
    """Return the first images of some of these examples, drawn at random, each once; failed ones are left out."""
    drawings = np.unique(tokens.drawings[np.array(rows, np.int64), 0])
    good = drawings[(drawings >= 0) & ~np.isin(drawings, list(tokens.reader.flagged))]
    return np.random.default_rng(seed).permutation(good)[:most]
