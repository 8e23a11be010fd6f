"""One block of drawings: prompts → latents → images → tokens, what failed in it found on the device and made once more in float32.

Shapes: B drawings of the block, P prompts, C × h × w latents, H × W pixels, T tokens, D their width.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.encode.image_encoder import ImageEncoder
from featurize.fill.out_of_memory import Batches, is_out_of_memory
from featurize.generate.text_to_image import PromptEmbeddings, TextToImage
from featurize.plan.drawings import DrawingPlan
from featurize.plan.job import TEXT_BATCH
from lugpi_core.command_line import say
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.runtime.stopping import StopRequest
from lugpi_core.store.layout import LATENTS
from lugpi_core.store.shard import FLAG_CONSTANT, FLAG_NOT_FINITE


@dataclass(kw_only=True)
class Work:
    """What a run has done so far (exact counts), its seconds by stage, and what it met on the way.

    Attributes:
        prompts: encoded by the text encoder.
        drawn, decoded, encoded: rows; an image that two encoders read counts twice.
        redone: rows that failed and were made once more in float32; not counted in the others.
        failed: rows of this run that are flagged, in any column.
        batches: the batch sizes, and what was halved.
    """

    times: StageTimes
    batches: Batches
    prompts: int = 0
    drawn: int = 0
    decoded: int = 0
    encoded: int = 0
    redone: int = 0
    failed: int = 0
    stop: StopRequest = field(default_factory=StopRequest)

    def rows(self) -> dict[str, int]:
        """Return the counts for the record."""
        return {name: getattr(self, name) for name in ("prompts", "drawn", "decoded", "encoded", "redone")}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The loaded models of a job."""

    text_to_image: TextToImage
    encoders: dict[str, ImageEncoder] = field(default_factory=dict)

    @contextmanager
    def in_float32(self, names: Iterable[str]) -> Iterator[None]:
        """Compute in float32 inside the block: the generator, and the encoders of these names."""
        with ExitStack() as stack:
            stack.enter_context(self.text_to_image.in_float32())
            for name in names:
                stack.enter_context(self.encoders[name].in_float32())
            yield


class WindowOfPrompts:
    """The embeddings of the prompts that a stretch of drawings needs, each prompt encoded once.

    Held on the device: 158 kB a prompt for Stable Diffusion 2 in half precision, twice that for XL.

    Args:
        plan: the drawings.
        drawings: of the window, whether they are to be made or not: their prompts are grouped alike in every run.
        needed: the drawings that are to be made.
    """

    def __init__(self, plan: DrawingPlan, drawings: range, needed: Sequence[int], text_to_image: TextToImage, work: Work) -> None:
        self._plan = plan
        self._at: dict[int, int] = {}
        begin, last = plan.prompt_of(drawings[0]), plan.prompt_of(drawings[-1])
        groups = sorted({(plan.prompt_of(drawing) - begin) // TEXT_BATCH for drawing in needed})
        parts: list[PromptEmbeddings] = []
        with work.times.kernels("prompt"), text_to_image.text_encoder_on_device():
            for group in groups:
                start = begin + group * TEXT_BATCH
                prompts = range(start, min(start + TEXT_BATCH, last + 1))
                self._at |= {prompt: len(self._at) + n for n, prompt in enumerate(prompts)}
                encode = partial(_encode_texts, text_to_image, plan.prompts[prompts.start : prompts.stop])
                parts += work.batches.run("prompt", len(prompts), encode)
                work.prompts += len(prompts)
                work.stop.check()
        self._embeddings = PromptEmbeddings.joined(parts)

    def of(self, drawings: Sequence[int]) -> PromptEmbeddings:
        """Return the embeddings of some drawings' prompts."""
        return self._embeddings.rows([self._at[self._plan.prompt_of(drawing)] for drawing in drawings])


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be made of a block.

    Attributes:
        drawings: their numbers.
        missing_B: bool [B], the rows that a column lacks; others are computed with them, as in the run that made them, and not looked at.
        retry: drawings that are made in float32 from the prompt on, for they have failed before.
        latents_BChw: float16, where they are known; else they are drawn.
        latent_flags_B: uint8 [B], of the known latents.
        encoders: whose tokens are wanted.
    """

    drawings: range
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

    def look(self) -> None:
        """Bring the flags to the host. This is where it waits for the device."""
        device = next(iter(self.flags.values())).device
        flags_KB = torch.stack([flags_B.to(device) for flags_B in self.flags.values()]).cpu().numpy()
        self.failed = dict(zip(self.flags, flags_KB > 0, strict=True))


class BlockMaker:
    """Makes blocks with the models of a run; holds one block."""

    def __init__(self, plan: DrawingPlan, models: Models, work: Work) -> None:
        self._plan, self._models, self._work = plan, models, work

    @torch.inference_mode()
    def make(self, task: Task, window: WindowOfPrompts | None) -> Block:
        """Return the block. Rows that fail are made once more, one by one and in float32; what fails again is flagged."""
        latents_BChw, flags_B = task.latents_BChw, task.latent_flags_B
        if latents_BChw is None or flags_B is None:
            assert window is not None
            latents_BChw = self._draw(task.drawings, window)
            flags_B = _faults(latents_BChw)
        block = Block(values={LATENTS: latents_BChw}, flags={LATENTS: flags_B})
        if task.encoders:
            self._encode(task, block)
        block.look()
        failed_B = np.logical_or.reduce(list(block.failed.values()))
        if task.latents_BChw is not None:
            failed_B &= ~block.failed[LATENTS]  # what failed when it was drawn has had its second chance
        failed_B |= [drawing in task.retry for drawing in task.drawings]
        if (failed_B & task.missing_B).any():
            self._redo(task, block, np.flatnonzero(failed_B & task.missing_B).tolist())
            block.look()
        return block

    def _draw(self, drawings: Sequence[int], window: WindowOfPrompts) -> torch.Tensor:
        def draw(part: slice) -> torch.Tensor:
            some = drawings[part]
            return self._models.text_to_image.draw(window.of(some), self._seeds(some), between=self._work.stop.check)

        with self._work.times.kernels("denoise"):
            parts = self._work.batches.run("denoise", len(drawings), draw)
            self._work.drawn += len(drawings)
            # Rounded before it is decoded: an encoder added later, which sees the stored latent, gets the same image.
            return torch.cat(parts).to(torch.float16)

    def _encode(self, task: Task, block: Block) -> None:
        """Add the tokens of the wanted encoders to a block."""
        work, latents_BChw = self._work, block.values[LATENTS]
        with work.times.kernels("decode"):
            images_B3HW = torch.cat(
                work.batches.run("decode", len(task.drawings), lambda part: self._models.text_to_image.decode(latents_BChw[part]))
            )
            image_flags_B = _worse(block.flags[LATENTS].to(images_B3HW.device), _faults(images_B3HW, within=1 / 255))
        work.decoded += len(images_B3HW)
        for name in task.encoders:
            encoder = self._models.encoders[name]
            with work.times.kernels("encode"):
                parts = work.batches.run("encode", len(images_B3HW), partial(_encode_images, encoder, images_B3HW))
                block.values[name] = torch.cat(parts)
                block.flags[name] = _worse(image_flags_B, _faults(block.values[name]))
            work.encoded += len(images_B3HW)

    def _redo(self, task: Task, block: Block, rows: Sequence[int]) -> None:
        """Make rows once more in float32, each alone, so that no row depends on which others have failed."""
        try:
            with self._work.times.kernels("redo"), self._models.in_float32(task.encoders):
                for row in rows:
                    self._redo_row(task, block, row)
                    self._work.redone += 1
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            say(f"no memory for float32: {len(rows)} rows that failed are left as they are")

    def _redo_row(self, task: Task, block: Block, row: int) -> None:
        text_to_image, drawing = self._models.text_to_image, task.drawings[row]
        at = slice(row, row + 1)
        again = task.encoders if drawing in task.retry else tuple(name for name in task.encoders if block.flags[name][row])
        if task.latents_BChw is None and (block.flags[LATENTS][row] or drawing in task.retry):
            with text_to_image.text_encoder_on_device():
                embeddings = text_to_image.encode_prompts([self._plan.prompts[self._plan.prompt_of(drawing)]])
            latents = text_to_image.draw(embeddings, self._seeds([drawing]), between=self._work.stop.check).to(torch.float16)
            block.values[LATENTS][at], block.flags[LATENTS][at] = latents, _faults(latents)
        if again:
            image = text_to_image.decode(block.values[LATENTS][at])
            image_flags = _worse(block.flags[LATENTS][at].to(image.device), _faults(image, within=1 / 255))
            for name in again:
                tokens = self._models.encoders[name].encode(image)
                block.values[name][at], block.flags[name][at] = tokens, _worse(image_flags, _faults(tokens))

    def _seeds(self, drawings: Sequence[int]) -> list[int]:
        return [int(self._plan.seeds[drawing]) for drawing in drawings]


def _encode_texts(text_to_image: TextToImage, texts: Sequence[str], part: slice) -> PromptEmbeddings:
    return text_to_image.encode_prompts(texts[part])


def _encode_images(encoder: ImageEncoder, images_B3HW: torch.Tensor, part: slice) -> torch.Tensor:
    return encoder.encode(images_B3HW[part])


def _faults(values_B: torch.Tensor, within: float = 0.0) -> torch.Tensor:
    """Return uint8 [B], the flag of each row: not finite, or one value everywhere to ``within`` so much; else 0.

    SD v2 at 768 px in half precision draws pictures that are black, or not numbers at all.
    """
    flat = values_B.flatten(1)
    constant_B = flat.amax(dim=1) - flat.amin(dim=1) <= within
    flags_B = torch.where(torch.isfinite(flat).all(dim=1), constant_B * FLAG_CONSTANT, FLAG_NOT_FINITE)
    return flags_B.to(torch.uint8)


def _worse(before_B: torch.Tensor, here_B: torch.Tensor) -> torch.Tensor:
    """Return the flags of rows that failed before, or else here."""
    return torch.where(before_B > 0, before_B, here_B)
