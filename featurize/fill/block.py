"""One block of images: prompts → latents → pixels → tokens. Failed rows are found on the device and computed once more in float32.

Shapes: B images of the block, P prompts, C × h × w latents, H × W pixels, T tokens, D their width.
"""

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encode.image_encoder import ImageEncoder
from featurize.fill.out_of_memory import StageBatches, is_out_of_memory
from featurize.fill.scorer import Scorer, best_candidates
from featurize.generate.families.family import PromptEmbeddings
from featurize.generate.text_to_image import TextToImage
from featurize.plan.images import ImagePlan
from featurize.plan.job import TEXT_BATCH, Job
from lugpi_core.command_line import say
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.runtime.stopping import StopRequest
from lugpi_core.store.layout import CANDIDATES, LATENTS
from lugpi_core.store.shard import FLAG_CONSTANT, FLAG_NOT_FINITE

# Images whose prompts' embeddings are held at once: 162 MB for Stable Diffusion 2. Fewer where they are large (``Job.most_prompts``).
WINDOW_ROWS = 1024
# Decoded images whose values differ by less than this have one colour.
_ONE_COLOUR = 1 / 255
# Computes a stage of some rows, in parts that fit: the stage, the rows, what computes a part.
RunInParts = Callable[[str, int, Callable[[slice], torch.Tensor]], list[torch.Tensor]]


@dataclass(kw_only=True)
class RunState:
    """What a run has done so far (exact counts), its seconds by stage, its batch sizes, and whether it was asked to stop.

    Attributes:
        kept: images of unfinished shards that an earlier run computed.
        prompts: encoded by the text encoder.
        texts: rows of the column of text vectors that are there, in shards whose images need nothing.
        generated, decoded, encoded: rows; an image that two encoders read counts twice.
        candidates: images that were drawn, decoded and encoded to choose the generated rows among them; not counted in the others.
        redone: rows that failed and were computed once more in float32; not counted in the others.
        failed: rows of this run that are flagged, in any column.
        batches: the batch sizes, and every halving.
        int8_lost: of each column in int8, int64 [2], on the device: values that are not 0, and those of them that are stored as 0.
        confirm: called before a shard is claimed; raises if another run has taken the store.
    """

    times: StageTimes
    batches: StageBatches
    kept: int = 0
    prompts: int = 0
    texts: int = 0
    generated: int = 0
    decoded: int = 0
    encoded: int = 0
    candidates: int = 0
    redone: int = 0
    failed: int = 0
    int8_lost: dict[str, torch.Tensor] = field(default_factory=dict)
    stop: StopRequest = field(default_factory=StopRequest)
    confirm: Callable[[], None] | None = None

    def rows(self) -> dict[str, int]:
        """Return the counts, under their names in the record."""
        counts = {"prompts": self.prompts, "drawn": self.generated, "decoded": self.decoded}
        candidates = {"candidates": self.candidates} if self.candidates else {}
        return {**counts, "encoded": self.encoded, **candidates, "redone": self.redone}

    def int8_lost_shares(self) -> dict[str, float]:
        """Return the share of the values of each column in int8 that this run stored as 0 though they are not."""
        counts = {name: counted.tolist() for name, counted in self.int8_lost.items()}
        return {name: lost / max(1, values) for name, (values, lost) in counts.items()}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The loaded models of a job.

    Attributes:
        scorer: chooses among candidates, with one of the encoders; None without candidates.
        free_bytes: returns the device memory that may still be taken; None = not known.
    """

    text_to_image: TextToImage
    encoders: dict[str, ImageEncoder] = field(default_factory=dict)
    scorer: Scorer | None = None
    free_bytes: Callable[[], int] | None = None

    def fit_in_float32(self, *, generates: bool) -> bool:
        """Whether the parts of the generator fit in float32, one at a time; true where the free memory is not known."""
        return self.free_bytes is None or self.text_to_image.float32_bytes(generates=generates) <= self.free_bytes()

    @contextmanager
    def in_float32(self, names: Iterable[str]) -> Iterator[None]:
        """Compute in float32 inside the block: the generator, the encoders of these names, and that of the scorer."""
        with ExitStack() as stack:
            stack.enter_context(self.text_to_image.in_float32())
            for name in {*names, *(() if self.scorer is None else (self.scorer.column,))}:
                stack.enter_context(self.encoders[name].in_float32())
            yield


class PromptEncoder(Protocol):
    """A generator's text encoders, with the rest of the generator or without it."""

    def encoding_order(self, prompts: Sequence[str]) -> list[int]:
        """Return the numbers of prompts in the order in which they are encoded."""

    def text_encoder_on_device(self) -> AbstractContextManager[None]:
        """Keep the text encoders on the device inside the block."""

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        """Return the embeddings of prompts, on the device."""


class TextSink(Protocol):
    """Takes the text vectors of the prompts of one shard as they are encoded."""

    def lacking(self, images: range) -> Collection[int]:
        """Return the prompts of some images whose text vectors are missing."""

    def vectors_of(self, embeddings: PromptEmbeddings) -> torch.Tensor:
        """Return the text vectors of embedded prompts, [P, T, D]."""

    def put(self, prompts: Sequence[int], texts: Sequence[str], vectors_PTD: torch.Tensor) -> None:
        """Write the text vectors of prompts, by their numbers. Called inside ``text_encoder_on_device``."""


def window_rows(job: Job) -> int:
    """Return the images of a window: whole blocks, and all images of a prompt."""
    rows = job.batch_size * job.plan.images_per_prompt
    return rows * max(1, min(WINDOW_ROWS, job.most_prompts * job.plan.images_per_prompt) // rows)


class PromptWindow:
    """The embeddings of the prompts of consecutive images, each prompt encoded once, for images and text vectors.

    Held in the host's memory: a prompt of Stable Diffusion 2 takes 158 kB in half precision, one of FLUX.2 [klein] 7.9 MB.

    Args:
        plan: all images.
        images: of the window, whether they are missing or not, so that their prompts form the same batches in every run.
        missing: the images that are to be generated.
        encoder: of the prompts.
        state: counts what is done.
        text: takes the text vectors of the window's prompts, where there is a column of them; or None.
    """

    def __init__(
        self, plan: ImagePlan, images: range, missing: Sequence[int], encoder: PromptEncoder, state: RunState, text: TextSink | None = None
    ) -> None:
        self._plan = plan
        self._parts: list[PromptEmbeddings] = []
        self._place_of_prompt: dict[int, tuple[int, int]] = {}
        begin, last = plan.prompt_of(images[0]), plan.prompt_of(images[-1])
        order = [begin + number for number in encoder.encoding_order(list(plan.prompts[begin : last + 1]))]
        generated = {plan.prompt_of(image) for image in missing}
        lacking = frozenset[int]() if text is None else frozenset(text.lacking(images))
        with state.times.kernels("prompt"), encoder.text_encoder_on_device():
            for start in range(0, len(order), TEXT_BATCH):
                prompts = order[start : start + TEXT_BATCH]
                is_kept, sink = not generated.isdisjoint(prompts), None if lacking.isdisjoint(prompts) else text
                if not is_kept and sink is None:
                    continue
                texts = [plan.prompts[prompt] for prompt in prompts]
                encode = partial(_encode_texts, encoder, texts, sink, is_kept)
                parts = state.batches.run("prompt", len(prompts), encode)
                if is_kept:
                    self._keep(prompts, [embeddings for embeddings, _ in parts])
                if sink is not None:
                    sink.put(prompts, texts, torch.cat([vectors_PTD for _, vectors_PTD in parts]))
                state.prompts += len(prompts)
                state.stop.check()

    def _keep(self, prompts: Sequence[int], parts: Sequence[PromptEmbeddings]) -> None:
        places = [(len(self._parts) + part, row) for part, rows in enumerate(parts) for row in range(len(rows))]
        self._place_of_prompt |= dict(zip(prompts, places, strict=True))
        self._parts += parts

    def embeddings_of(self, images: Sequence[int]) -> PromptEmbeddings:
        """Return the embeddings of the prompts of some images, in the host's memory."""
        return PromptEmbeddings.gathered(self._parts, [self._place_of_prompt[self._plan.prompt_of(image)] for image in images])


@dataclass(frozen=True, kw_only=True)
class BlockTask:
    """What is to be computed of a block.

    Attributes:
        images: their numbers.
        missing_B: bool [B], the rows that a column lacks. The others are computed too, as in the run that wrote them, and thrown away.
        retry: images that failed before; they are generated in float32 from the prompt on.
        latents_BChw: float16, if they are stored already; else they are generated.
        latent_flags_B: uint8 [B], of the stored latents.
        encoders: whose tokens are missing.
    """

    images: range
    missing_B: NDArray[np.bool_]
    retry: Container[int] = ()
    latents_BChw: torch.Tensor | None = None
    latent_flags_B: torch.Tensor | None = None
    encoders: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Block:
    """Rows of one block, by column.

    Attributes:
        values: float16 [B, ...], on the device.
        flags: uint8 [B], 0 = good, on the device.
        failed: bool [B], whether there is a flag, on the host.
    """

    values: dict[str, torch.Tensor]
    flags: dict[str, torch.Tensor]
    failed: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def fetch_flags(self) -> None:
        """Copy the flags to the host. This waits for the device."""
        device = next(iter(self.flags.values())).device
        flags_KB = torch.stack([flags_B.to(device) for flags_B in self.flags.values()]).cpu().numpy()
        self.failed = dict(zip(self.flags, flags_KB > 0, strict=True))


class BlockRunner:
    """Computes blocks with the models of a run; holds one block."""

    def __init__(self, plan: ImagePlan, models: Models, state: RunState) -> None:
        self._plan, self._models, self._state = plan, models, state
        self._has_said = False

    @torch.inference_mode()
    def run(self, task: BlockTask, window: PromptWindow | None) -> Block:
        """Return the block. Rows that fail are computed once more, one by one and in float32; those that fail again are flagged.

        Args:
            task: what to compute.
            window: with the prompts of the block's images; not needed if the latents are stored.
        """
        if task.latents_BChw is not None and task.latent_flags_B is not None:
            block = Block(values={LATENTS: task.latents_BChw}, flags={LATENTS: task.latent_flags_B})
        else:
            assert window is not None
            block = self._generate(task.images, window)
        if task.encoders:
            self._encode(task, block)
        block.fetch_flags()
        failed_B = np.logical_or.reduce(list(block.failed.values()))
        if task.latents_BChw is not None:
            failed_B &= ~block.failed[LATENTS]  # latents that failed when they were generated have had their second try
        failed_B |= [image in task.retry for image in task.images]
        if (failed_B & task.missing_B).any():
            self._redo(task, block, np.flatnonzero(failed_B & task.missing_B).tolist())
            block.fetch_flags()
        return block

    def _generate(self, images: Sequence[int], window: PromptWindow) -> Block:
        """Return images without tokens: their latents and, of the best of several candidates, what these scored."""

        def draw(candidate: int) -> torch.Tensor:
            def denoise(part: slice) -> torch.Tensor:
                some = images[part]
                seeds = self._plan.seeds_of(some, candidate)
                return self._models.text_to_image.denoise(window.embeddings_of(some), seeds, before_step=self._state.stop.check)

            with self._state.times.kernels("denoise"):
                parts = self._state.batches.run("denoise", len(images), denoise)
                # Rounded before decoding: an encoder that is added later, which reads the stored latent, gets the same image.
                return torch.cat(parts).to(torch.float16)

        block = self._best_of(images, draw, self._state.batches.run)
        self._state.generated += len(images)
        return block

    def _best_of(self, images: Sequence[int], draw: Callable[[int], torch.Tensor], run: RunInParts) -> Block:
        """Return the best of the candidates that ``draw`` returns the latents of, by their numbers; without a scorer, the only one."""
        scorer, state = self._models.scorer, self._state
        if scorer is None:
            latents_BChw = draw(0)
            return Block(values={LATENTS: latents_BChw}, flags={LATENTS: _flags_of(latents_BChw)})
        with state.times.kernels("score"):
            texts_BE = scorer.space.embed_texts([self._plan.prompts[self._plan.prompt_of(image)] for image in images])

        def score(latents_BChw: torch.Tensor) -> torch.Tensor:
            with state.times.kernels("score"):
                images_B3HW, flags_B = self._decode(latents_BChw, _flags_of(latents_BChw), run)
                tokens_BTD, flags_B = self._tokens(scorer.column, images_B3HW, flags_B, run)
                scores_B = scorer.scores(texts_BE, tokens_BTD)
            state.candidates += len(images)
            return torch.where(flags_B == 0, scores_B, torch.nan)

        latents_BChw, scores_B1C = best_candidates(self._plan.candidates, draw, score)
        # An image of which no candidate has a score fails in every column, so that all of them have the same one when it is drawn again.
        unscored_B = (scores_B1C[:, 0, 1:].isnan().all(dim=1) * FLAG_NOT_FINITE).to(torch.uint8)
        return Block(
            values={LATENTS: latents_BChw, CANDIDATES: scores_B1C},
            flags={LATENTS: _first_flag(_flags_of(latents_BChw), unscored_B.to(latents_BChw.device)), CANDIDATES: unscored_B},
        )

    def _encode(self, task: BlockTask, block: Block) -> None:
        """Add the tokens of the task's encoders to a block."""
        state = self._state
        with state.times.kernels("decode"):
            images_B3HW, image_flags_B = self._decode(block.values[LATENTS], block.flags[LATENTS], state.batches.run)
        state.decoded += len(images_B3HW)
        for name in task.encoders:
            with state.times.kernels("encode"):
                block.values[name], block.flags[name] = self._tokens(name, images_B3HW, image_flags_B, state.batches.run)
            state.encoded += len(images_B3HW)

    def _decode(self, latents_BChw: torch.Tensor, flags_B: torch.Tensor, run: RunInParts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images [B, 3, H, W] with their flags, from latents with theirs."""
        parts = run("decode", len(latents_BChw), lambda part: self._models.text_to_image.decode(latents_BChw[part]))
        images_B3HW = torch.cat(parts)
        return images_B3HW, _first_flag(flags_B.to(images_B3HW.device), _flags_of(images_B3HW, within=_ONE_COLOUR))

    def _tokens(self, name: str, images_B3HW: torch.Tensor, flags_B: torch.Tensor, run: RunInParts) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of an encoder with their flags, from images with theirs."""
        encoder = self._models.encoders[name]
        tokens_BTD = torch.cat(run("encode", len(images_B3HW), lambda part: encoder.encode(images_B3HW[part])))
        return tokens_BTD, _first_flag(flags_B, _flags_of(tokens_BTD))

    def _redo(self, task: BlockTask, block: Block, rows: Sequence[int]) -> None:
        """Compute rows once more in float32, each alone, so that no row depends on which others have failed."""
        generates = any(_is_to_generate(task, block, row) for row in rows)
        if not self._models.fit_in_float32(generates=generates):
            self._say_no_memory(len(rows))
            return
        try:
            with self._state.times.kernels("redo"), self._models.in_float32(task.encoders):
                for row in rows:
                    self._redo_row(task, block, row)
                    self._state.redone += 1
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._say_no_memory(len(rows))

    def _say_no_memory(self, rows: int) -> None:
        """Say it once; how many rows failed is said at the end of every run."""
        if not self._has_said:
            say(f"no memory for float32: {rows} failed rows stay as they are")
        self._has_said = True

    def _redo_row(self, task: BlockTask, block: Block, row: int) -> None:
        text_to_image, image = self._models.text_to_image, task.images[row]
        at = slice(row, row + 1)
        encoders = task.encoders if image in task.retry else tuple(name for name in task.encoders if block.flags[name][row])
        if _is_to_generate(task, block, row):
            with text_to_image.text_encoder_on_device():
                embeddings = text_to_image.encode_prompts([self._plan.prompts[self._plan.prompt_of(image)]])

            def draw(candidate: int) -> torch.Tensor:
                seeds = self._plan.seeds_of([image], candidate)
                return text_to_image.denoise(embeddings, seeds, before_step=self._state.stop.check).to(torch.float16)

            again = self._best_of([image], draw, _whole)
            for name, values_1 in again.values.items():
                block.values[name][at], block.flags[name][at] = values_1, again.flags[name]
            encoders = task.encoders
        if encoders:
            image_13HW, image_flags_1 = self._decode(block.values[LATENTS][at], block.flags[LATENTS][at], _whole)
            for name in encoders:
                block.values[name][at], block.flags[name][at] = self._tokens(name, image_13HW, image_flags_1, _whole)


def _is_to_generate(task: BlockTask, block: Block, row: int) -> bool:
    """Whether a row that failed is drawn again: it was drawn for the task, and its latent failed."""
    return task.latents_BChw is None and (bool(block.failed[LATENTS][row]) or task.images[row] in task.retry)


def _whole(stage: str, rows: int, compute: Callable[[slice], torch.Tensor]) -> list[torch.Tensor]:
    """Compute all rows at once, as the one row that is computed again; the caller handles an out-of-memory."""
    return [compute(slice(0, rows))]


def _encode_texts(
    encoder: PromptEncoder, texts: Sequence[str], sink: TextSink | None, is_kept: bool, part: slice
) -> tuple[PromptEmbeddings, torch.Tensor]:
    """Return the embeddings of some prompts, in the host's memory if they are kept, and their text vectors if there is a sink for them."""
    embeddings = encoder.encode_prompts(texts[part])
    vectors_PTD = torch.empty(0) if sink is None else sink.vectors_of(embeddings)
    return embeddings.on_host() if is_kept else PromptEmbeddings({}), vectors_PTD


def _flags_of(values_B: torch.Tensor, within: float = 0.0) -> torch.Tensor:
    """Return uint8 [B], the flag of each row: not finite, or constant (its values differ by at most ``within``); else 0.

    SD v2 at 768 px in half precision generates images that are black, or not numbers at all.
    """
    flat = values_B.flatten(1)
    constant_B = flat.amax(dim=1) - flat.amin(dim=1) <= within
    flags_B = torch.where(torch.isfinite(flat).all(dim=1), constant_B * FLAG_CONSTANT, FLAG_NOT_FINITE)
    return flags_B.to(torch.uint8)


def _first_flag(earlier_B: torch.Tensor, later_B: torch.Tensor) -> torch.Tensor:
    """Return the flag of the earlier stage, or of the later one if the earlier had none."""
    return torch.where(earlier_B > 0, earlier_B, later_B)
