"""Fill the column of the generator's own text vectors, beside the images of the same prompts or alone.

Shapes: P prompts, L text tokens, n of them that the generator reads, D their width, T rows of a text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn

from featurize.cost.batch_size import free_memory_bytes
from featurize.fill.block import PromptWindow, RunState, window_rows
from featurize.fill.out_of_memory import StageBatches, is_out_of_memory
from featurize.fill.shards import ShardFiller, open_shards
from featurize.fill.writer_thread import StoredRows, consecutive_ranges, stored_form
from featurize.generate.families.family import LENGTHS, Parts, PromptEmbeddings
from featurize.generate.generators import Generator
from featurize.generate.parts import load_text_parts
from featurize.generate.text_to_image import computing_in_float32, encoding_order
from featurize.plan.images import ImagePlan
from featurize.plan.job import TEXT_BATCH, Job
from featurize.plan.prompt_text import mask_name, tokens_name
from lugpi_core.command_line import say
from lugpi_core.errors import InputError, number_of
from lugpi_core.store.layout import PROMPT_TEXT
from lugpi_core.store.shard import FLAG_NOT_FINITE, ShardWriter
from lugpi_core.store.writer import ColumnWriter


def open_text_filler(job: Job, writer: ColumnWriter, state: RunState) -> ShardFiller:
    """Return what encodes the prompts whose vectors are missing where no image is. Only tokenizers and text encoders are loaded.

    Raises:
        InputError: a text encoder does not load.
    """
    with state.times.stage("load"):
        encoders = _TextEncoders(job)
    shards = number_of(len(open_shards({PROMPT_TEXT: writer})), "shard{s}")
    say(f"encoding prompts of {shards} with the generator's text encoder on {job.compute}")
    state.batches = StageBatches({"prompt": TEXT_BATCH})
    return _TextFiller(job, writer, encoders, state)


class _TextEncoders:
    """The tokenizers and text encoders of a generator, without the rest of it."""

    def __init__(self, job: Job) -> None:
        self._family, self._device = job.generator.family, torch.device(job.compute.device)
        self.parts = load_text_parts(job.generator, job.compute.torch_dtype, self._device)
        self.free_bytes = partial(free_memory_bytes, job.execution, job.compute.device)

    def encoding_order(self, prompts: Sequence[str]) -> list[int]:
        return encoding_order(self._family, self.parts, prompts)

    @contextmanager
    def text_encoder_on_device(self) -> Iterator[None]:
        """Move the text encoders to the device; nothing else needs its memory afterwards."""
        for encoder in self.parts.text_encoders.values():
            encoder.to(self._device)
        yield

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self._family.encode(self.parts, prompts)


class _TextFiller(ShardFiller):
    """Holds the vectors of one batch of prompts."""

    def __init__(self, job: Job, writer: ColumnWriter, encoders: _TextEncoders, state: RunState) -> None:
        super().__init__({writer.spec.name: writer}, state)
        self._job, self._encoders = job, encoders
        self._vectors = TextVectors(job, encoders.parts, state, encoders.free_bytes)

    def fill_shard(self, shard: int, files: dict[str, ShardWriter]) -> Iterator[None]:
        """Encode the prompts of a claimed shard whose rows are missing; yield after each window of them."""
        ((_, file),) = files.items()
        plan = self._job.plan
        text = TextRows(file, partial(self.put_rows, PROMPT_TEXT, file), self._vectors, plan)
        # The batches are those of prompts that are encoded for images too; if they are consecutive prompts, each is a window.
        is_sorted = self._job.generator.family.sorts_prompts
        size = window_rows(self._job) if is_sorted else TEXT_BATCH * plan.images_per_prompt
        for begin in range(0, file.layout.rows, size):
            images = range(file.layout.first_row + begin, file.layout.first_row + min(begin + size, file.layout.rows))
            if text.lacking(images):
                self._state.stop.check()
                PromptWindow(plan, images, (), self._encoders, self._state, text)
            self._state.texts += len(images)
            yield
        self.commit(shard, files)


class TextVectors:
    """The text vectors of embedded prompts; those that are not finite are computed once more in float32. Holds none.

    Args:
        job: with the generator and the column.
        parts: the generator's, with its text encoders.
        state: counts what is done.
        free_bytes: returns the device memory that may still be taken; None = not known.
    """

    def __init__(self, job: Job, parts: Parts, state: RunState, free_bytes: Callable[[], int] | None) -> None:
        assert job.text_column is not None
        self._generator: Generator = job.generator
        self._tokens, self._rows = tokens_name(job.generator), job.text_column.row_shape[0]
        self._parts, self._state, self._free_bytes = parts, state, free_bytes
        self._most_failed, self._has_said = job.most_failed, False

    def of(self, embeddings: PromptEmbeddings) -> torch.Tensor:
        """Return float16 [P, T, D]."""
        return text_vectors(embeddings, self._tokens, self._rows)

    @torch.inference_mode()
    def heal(self, texts: Sequence[str], vectors_PTD: torch.Tensor) -> torch.Tensor:
        """Compute the vectors that are not finite once more, each alone and in float32, where there is memory for it; return uint8 [P], why
        a row failed. Called while the text encoders are on the device."""
        finite_P = vectors_PTD.isfinite().flatten(1).all(dim=1)
        failed = (~finite_P).nonzero().flatten().tolist()
        if failed and not self._fits_in_float32():
            self._say_no_memory(len(failed))
        elif failed:
            try:
                with computing_in_float32(*self._parts.text_encoders.values()):
                    for row in failed:
                        vectors_PTD[row] = self.of(self._generator.family.encode(self._parts, [texts[row]]))[0]
                        self._state.redone += 1
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._say_no_memory(len(failed))
            finite_P = vectors_PTD.isfinite().flatten(1).all(dim=1)
        return torch.where(finite_P, 0, FLAG_NOT_FINITE).to(torch.uint8)

    def count_failed(self, failed: int) -> None:
        """Count rows that failed; raise InputError if they are too many."""
        self._state.failed += failed
        if self._state.failed > self._most_failed:
            raise InputError(
                got=f"{self._state.failed:,} failed text vectors",
                expected=f"at most {self._most_failed:,} (--max-failed)",
                do="try --dtype float32, or another --generator; what is written is kept",
            )

    def _fits_in_float32(self) -> bool:
        weights = [weight for encoder in self._parts.text_encoders.values() for weight in encoder.parameters()]
        return self._free_bytes is None or sum(weight.numel() * 4 - weight.nbytes for weight in weights) <= self._free_bytes()

    def _say_no_memory(self, rows: int) -> None:
        """Say it once; how many rows failed is said at the end of every run."""
        if not self._has_said:
            say(f"no memory for the text encoder in float32: {rows} failed text vectors stay as they are")
        self._has_said = True


class TextRows:
    """Writes the text vectors of the prompts of one shard as they are encoded; see ``TextSink``. Holds none.

    Args:
        file: of the shard.
        write: queues rows of it to be written, from a local row on.
        vectors: of embedded prompts.
        plan: of the images that the rows belong to.
    """

    def __init__(self, file: ShardWriter, write: Callable[[int, StoredRows], None], vectors: TextVectors, plan: ImagePlan) -> None:
        self._file, self._write, self._vectors, self._plan = file, write, vectors, plan

    def lacking(self, images: range) -> frozenset[int]:
        """Return the prompts of some images whose text vectors are missing."""
        first = self._file.layout.first_row
        missing = np.flatnonzero(~self._file.valid[images.start - first : images.stop - first]) + images.start
        return frozenset(self._plan.prompt_of(int(image)) for image in missing)

    def vectors_of(self, embeddings: PromptEmbeddings) -> torch.Tensor:
        """Return the text vectors of embedded prompts, float16 [P, T, D]."""
        return self._vectors.of(embeddings)

    def put(self, prompts: Sequence[int], texts: Sequence[str], vectors_PTD: torch.Tensor) -> None:
        """Write the text vectors of prompts, by their numbers."""
        flags_P, each, layout = self._vectors.heal(texts, vectors_PTD), self._plan.images_per_prompt, self._file.layout
        ascending = np.argsort(prompts)
        numbers = np.array(prompts, np.int64)[ascending]
        lacking = self.lacking(range(int(numbers[0]) * each, (int(numbers[-1]) + 1) * each)) & set(prompts)
        failed = [prompt for prompt, flag in zip(prompts, flags_P.tolist(), strict=True) if flag and prompt in lacking]
        for start, stop in consecutive_ranges(numbers):
            places = torch.from_numpy(ascending[np.searchsorted(numbers, start) : np.searchsorted(numbers, stop)]).to(flags_P.device)
            values, flags_B = (tensor[places].repeat_interleave(each, dim=0) for tensor in (vectors_PTD, flags_P))
            self._write(start * each - layout.first_row, stored_form(values, flags_B, layout.dtype))
        self._vectors.count_failed(len(failed) * each)


def text_vectors(embeddings: PromptEmbeddings, tokens: str, rows: int) -> torch.Tensor:
    """Return the text vectors of P prompts, float16 [P, T, D].

    Each token that the generator reads is divided by its root mean square (Zhang & Sennrich 2019, arXiv 1910.07467), so that no layer's
    scale overflows and no single token outweighs the others. First stands the mean of all, then T - 1 means of equal consecutive groups,
    those of adaptive average pooling: group i of G has the tokens ⌊i n / G⌋ to ⌈(i + 1) n / G⌉, so that of a short prompt each token is
    there, some more than once.

    Args:
        embeddings: of the prompts.
        tokens: the name of the vectors among them.
        rows: T.
    """
    tokens_PLD = embeddings[tokens].float()
    mask, length = mask_name(tokens), tokens_PLD.shape[1]
    if mask in embeddings:
        read_PL = embeddings[mask].bool()
    elif LENGTHS in embeddings:
        lengths_P1 = embeddings[LENGTHS].to(tokens_PLD.device)[:, None]
        read_PL = torch.arange(length, device=tokens_PLD.device) < lengths_P1
    else:
        read_PL = torch.ones(tokens_PLD.shape[:2], dtype=torch.bool, device=tokens_PLD.device)
    return torch.stack([_pooled(tokens_LD[read_L], rows) for tokens_LD, read_L in zip(tokens_PLD, read_PL, strict=True)]).to(torch.float16)


def _pooled(tokens_nD: torch.Tensor, rows: int) -> torch.Tensor:
    normed_nD = nn.functional.rms_norm(tokens_nD, tokens_nD.shape[-1:], eps=1e-12)
    mean_1D = normed_nD.mean(dim=0, keepdim=True)
    if rows == 1:
        return mean_1D
    groups_GD = nn.functional.adaptive_avg_pool1d(normed_nD.T[None], rows - 1)[0].T
    return torch.cat([mean_1D, groups_GD])
