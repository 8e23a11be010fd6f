"""Fill the column of the generator's own text vectors, from the prompts alone: no image is generated and nothing is decoded.

Shapes: P prompts, L text tokens, n of them that the generator reads, D their width, T rows of a text.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from featurize.fill.block import RunState
from featurize.fill.out_of_memory import StageBatches
from featurize.fill.results import Progress, ProgressCallback
from featurize.fill.shards import ShardFiller, open_shards
from featurize.fill.writer_thread import stored_form
from featurize.generate.families.family import LENGTHS, Parts, PromptEmbeddings
from featurize.generate.parts import load_text_parts
from featurize.generate.schedulers import load_scheduler
from featurize.plan.job import TEXT_BATCH, Job
from featurize.plan.prompt_text import mask_name, tokens_name
from lugpi_core.command_line import say
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import stop_on_signals
from lugpi_core.store.layout import PROMPT_TEXT
from lugpi_core.store.shard import FLAG_NOT_FINITE, ShardWriter
from lugpi_core.store.writer import ColumnWriter


def fill_text_column(job: Job, writer: ColumnWriter, state: RunState, progress: ProgressCallback | None, *, total: int) -> None:
    """Encode the prompts whose vectors are missing, counting in ``state``. Only tokenizers and text encoders are loaded.

    Args:
        job: of the images that the rows belong to.
        writer: of the column.
        state: counts what is done.
        progress: called after each shard's batch of prompts.
        total: rows that this run lacks, those of images included.

    Raises:
        InputError: a text encoder does not load, too little memory, or more rows failed than may.
        Stopped: the run was asked to stop; what is written is kept.
    """
    device = torch.device(job.compute.device)
    if job.columns:
        load_scheduler(job.generator)  # images come next: what does not sample is refused before the prompts are encoded
    with state.times.stage("load"):
        parts = load_text_parts(job.generator, job.compute.torch_dtype, device)
        for encoder in parts.text_encoders.values():
            encoder.to(device)
    say(f"encoding prompts of {len(open_shards({PROMPT_TEXT: writer})):,} shards with the generator's text encoder on {job.compute}")
    state.batches = StageBatches({"prompt": TEXT_BATCH})
    with stop_on_signals() as state.stop, state.times.host("fill_wall"), _TextFiller(job, writer, parts, state) as filler:
        for _ in filler.fill():
            if progress is not None:
                progress(Progress(done=state.texts, total=total, kept=0, failed=state.failed, seconds=state.times.seconds))


class _TextFiller(ShardFiller):
    """Holds the vectors of one batch of prompts."""

    def __init__(self, job: Job, writer: ColumnWriter, parts: Parts, state: RunState) -> None:
        super().__init__({writer.spec.name: writer}, state)
        self._job, self._parts, self._spec = job, parts, writer.spec
        self._tokens = tokens_name(job.generator)

    def fill_shard(self, shard: int, files: dict[str, ShardWriter]) -> Iterator[None]:
        """Encode the prompts of a claimed shard whose rows are missing; yield after each batch of prompts."""
        ((_, file),) = files.items()
        each, layout = self._job.plan.images_per_prompt, file.layout
        for first in range(0, layout.rows, TEXT_BATCH * each):
            rows = slice(first, min(first + TEXT_BATCH * each, layout.rows))
            if not file.valid[rows].all():
                self._state.stop.check()
                start = self._job.plan.prompt_of(layout.first_row + rows.start)
                prompts = tuple(self._job.plan.prompts[start : start + (rows.stop - rows.start) // each])
                vectors_PTD, flags_P = self._vectors_of(prompts)
                self._count_failed(int((flags_P > 0).sum()) * each)
                values, flags_B = (tensor.repeat_interleave(each, dim=0) for tensor in (vectors_PTD, flags_P))
                self.put_rows(self._spec.name, file, rows.start, stored_form(values, flags_B, layout.dtype))
            self._state.texts += rows.stop - rows.start
            yield
        self.commit(shard, files)

    @torch.inference_mode()
    def _vectors_of(self, prompts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float16 [P, T, D] and uint8 [P], why a row failed; rows that are not finite are computed once more in float32."""
        with self._state.times.kernels("prompt"):
            parts = self._state.batches.run("prompt", len(prompts), partial(self._encode, prompts))
            vectors_PTD = torch.cat(parts)
        self._state.prompts += len(prompts)
        finite_P = vectors_PTD.isfinite().flatten(1).all(dim=1)
        if again := (~finite_P).nonzero().flatten().tolist():
            dtypes = {name: next(encoder.parameters()).dtype for name, encoder in self._parts.text_encoders.items()}
            for encoder in self._parts.text_encoders.values():
                encoder.float()
            for number in again:
                vectors_PTD[number] = self._encode(prompts, slice(number, number + 1))[0]
                self._state.redone += 1
            for name, encoder in self._parts.text_encoders.items():
                encoder.to(dtypes[name])
            finite_P = vectors_PTD.isfinite().flatten(1).all(dim=1)
        return vectors_PTD, torch.where(finite_P, 0, FLAG_NOT_FINITE).to(torch.uint8)

    def _encode(self, prompts: tuple[str, ...], part: slice) -> torch.Tensor:
        embeddings = self._job.generator.family.encode(self._parts, prompts[part])
        return text_vectors(embeddings, self._tokens, self._spec.row_shape[0])

    def _count_failed(self, failed: int) -> None:
        self._state.failed += failed
        if self._state.failed > self._job.most_failed:
            raise InputError(
                got=f"{self._state.failed:,} failed text vectors",
                expected=f"at most {self._job.most_failed:,} (--max-failed)",
                do="try --dtype float32, or another --generator; what is written is kept",
            )


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
