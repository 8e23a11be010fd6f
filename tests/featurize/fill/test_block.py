"""One block: failed rows are found, redone in float32 one by one, or flagged; each prompt is encoded once.

The doubles stand for models whose numbers depend a little on how many rows are computed at once, as those of real ones do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any, cast

import numpy as np
import pytest
import torch

from featurize.fill.block import Block, BlockRunner, BlockTask, Models, PromptWindow, RunState
from featurize.fill.out_of_memory import StageBatches
from featurize.generate.families.family import PromptEmbeddings
from featurize.plan.images import ImagePlan
from featurize.plan.job import TEXT_BATCH
from lugpi_core.runtime.meters import StageTimes
from lugpi_core.runtime.stopping import Stopped
from lugpi_core.store.shard import FLAG_CONSTANT, FLAG_NOT_FINITE

ROWS = 5
FLAGS = {"nan": FLAG_NOT_FINITE, "inf": FLAG_NOT_FINITE, "constant": FLAG_CONSTANT}
VALUES = {"nan": torch.nan, "inf": torch.inf, "constant": 0.5}
# The columns that a fault at each place reaches.
REACHED = {"latents": ("latents", "clip", "vit"), "images": ("clip", "vit"), "clip": ("clip",)}


class _Double:
    """What both doubles share: a precision, the rows that are sick in it, and a note of every call.

    ``sick[row]`` is the value that a row's first number gives; it heals in float32 when the row is in ``healing``.
    """

    def __init__(self) -> None:
        self.dtype, self.calls = "float16", list[tuple[str, list[int]]]()
        self.sick: dict[tuple[str, int], float] = {}
        self.healing: set[int] = set()
        self.lacking = False

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        self.dtype = "float32"
        try:
            yield
        finally:
            self.dtype = "float16"

    def answer(self, place: str, rows: list[int], values: torch.Tensor) -> torch.Tensor:
        self.calls.append((f"{place} {self.dtype}", rows))
        if self.lacking and self.dtype == "float32":
            raise torch.OutOfMemoryError
        values = values + 2e-3 * len(rows) + (1e-2 if self.dtype == "float32" else 0)
        for n, row in enumerate(rows):
            if (place, row) in self.sick and not (self.dtype == "float32" and row in self.healing):
                values[n] = self.sick[place, row]
        return values


class _Generator(_Double):
    """A double of the generator; the first value of a latent, and of an image, is the image's number."""

    on_device = False

    @contextmanager
    def text_encoder_on_device(self) -> Iterator[None]:
        self.on_device = True
        try:
            yield
        finally:
            self.on_device = False

    def encoding_order(self, prompts: Sequence[str]) -> list[int]:
        return list(range(len(prompts)))

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeddings:
        assert self.on_device
        numbers = [int(prompt) for prompt in prompts]
        self.calls.append((f"prompt {self.dtype}", numbers))
        return PromptEmbeddings({"tokens": torch.tensor(numbers, dtype=torch.float32).reshape(-1, 1, 1)})

    def denoise(self, embeddings: PromptEmbeddings, seeds: Sequence[int], *, before_step: Callable[[], None]) -> torch.Tensor:
        before_step()
        assert not self.on_device
        numbers = torch.tensor(seeds, dtype=torch.float32).reshape(-1, 1, 1, 1)
        assert len(embeddings["tokens"]) == len(seeds)
        latents = torch.sin(numbers + torch.arange(1, 5).reshape(1, 2, 2)) + embeddings["tokens"][:, :, :, None] / 100
        return self.answer("latents", list(seeds), latents)

    def decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        assert latents_BChw.dtype == torch.float16
        rows = [self.row_of(latents) for latents in latents_BChw]
        return self.answer("images", rows, latents_BChw.float().repeat(1, 3, 1, 1) / 4 + 0.5)

    def row_of(self, latents_Chw: torch.Tensor) -> int:
        """Return the row whose latents these are, by their difference of two numbers, which the batch does not move."""
        found = latents_Chw.flatten()[1].sub(latents_Chw.flatten()[0]).item()
        expected = [np.sin(row + 2) - np.sin(row + 1) for row in range(ROWS)]
        return int(np.argmin(np.abs(np.array(expected) - np.nan_to_num(found, nan=9.0))))


class _Encoder(_Double):
    """The double of an encoder."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def encode(self, images_B3HW: torch.Tensor) -> torch.Tensor:
        rows = [_Generator.row_of(cast(Any, self), (image[0] - 0.5) * 4) for image in images_B3HW]
        return self.answer(self._name, rows, torch.cos(images_B3HW.flatten(2))).to(torch.float16)


class _Bench:
    """A block maker with doubles for its models, and what they were asked."""

    def __init__(self, images_per_text: int = 1, images: int = ROWS) -> None:
        self.generator, self.clip, self.vit = _Generator(), _Encoder("clip"), _Encoder("vit")
        encoders = {"clip": cast(Any, self.clip), "vit": cast(Any, self.vit)}
        models = Models(text_to_image=cast(Any, self.generator), encoders=encoders)
        prompts = tuple(map(str, range(images // images_per_text)))
        self.plan = ImagePlan(
            prompts=prompts,
            seeds=np.arange(images),
            prompts_of_example=np.arange(len(prompts))[:, None],
            images_per_prompt=images_per_text,
        )
        self.state = RunState(times=StageTimes(), batches=StageBatches({"prompt": 99, "denoise": 99, "decode": 99, "encode": 99}))
        self.runner = BlockRunner(self.plan, models, self.state)

    def make_sick(self, place: str, value: str, rows: Sequence[int]) -> None:
        """Let rows fail at a place in whichever precision."""
        double = {"latents": self.generator, "images": self.generator, "clip": self.clip}[place]
        double.sick = {(place, row): VALUES[value] for row in rows}

    def heal(self, rows: Sequence[int]) -> None:
        """Let rows be well in float32."""
        for double in (self.generator, self.clip, self.vit):
            double.healing = set(rows)

    def window(self, images: range, needed: Sequence[int] | None = None) -> PromptWindow:
        return PromptWindow(self.plan, images, images if needed is None else needed, cast(Any, self.generator), self.state)

    def run(self, **task: Any) -> Block:
        """Run the one block; all of it is missing unless the task says otherwise."""
        rows = range(ROWS)
        window = None if "latents_BChw" in task else self.window(rows)
        whole: dict[str, Any] = {"images": rows, "missing_B": np.ones(ROWS, bool), "encoders": ("clip", "vit"), **task}
        return self.runner.run(BlockTask(**whole), window)

    def asked(self, what: str) -> list[list[int]]:
        """Return the rows of each call of one kind: a place and a precision."""
        return [rows for double in (self.generator, self.clip, self.vit) for name, rows in double.calls if name == what]


@pytest.fixture
def bench() -> _Bench:
    return _Bench()


@pytest.fixture(scope="module")
def well() -> Block:
    return _Bench().run()


def _same(one: Block, other: Block, rows: Sequence[int], columns: Sequence[str] = ("latents", "clip", "vit")) -> bool:
    return all(torch.equal(one.values[name][list(rows)], other.values[name][list(rows)]) for name in columns)


def test_a_block_in_which_nothing_fails_is_made_in_one_go(bench: _Bench, well: Block) -> None:
    block = bench.run()
    assert {name: flags.tolist() for name, flags in block.flags.items()} == dict.fromkeys(("latents", "clip", "vit"), [0] * ROWS)
    assert {values.dtype for values in block.values.values()} == {torch.float16}
    assert bench.state.rows() == {"prompts": ROWS, "drawn": ROWS, "decoded": ROWS, "encoded": 2 * ROWS, "redone": 0}
    assert "redo" not in bench.state.times.seconds
    assert _same(block, well, range(ROWS))


@pytest.mark.parametrize("value", list(VALUES))
@pytest.mark.parametrize("place", list(REACHED))
def test_a_row_that_fails_twice_is_flagged_where_the_fault_reaches(bench: _Bench, well: Block, place: str, value: str) -> None:
    bench.make_sick(place, value, [1, 4])
    block = bench.run()
    flagged = [0, FLAGS[value], 0, 0, FLAGS[value]]
    for name, flags in block.flags.items():
        assert flags.tolist() == (flagged if name in REACHED[place] else [0] * ROWS)
        assert block.failed[name].tolist() == [flag > 0 for flag in flags]
    assert bench.state.redone == 2
    assert _same(block, well, [0, 2, 3])
    assert _same(block, well, range(ROWS), [name for name in ("latents", "clip", "vit") if name not in REACHED[place]])


@pytest.mark.parametrize("value", list(VALUES))
@pytest.mark.parametrize("place", list(REACHED))
def test_a_row_that_is_well_in_float32_is_kept_without_a_flag(bench: _Bench, well: Block, place: str, value: str) -> None:
    bench.make_sick(place, value, [1, 4])
    bench.heal([1, 4])
    block = bench.run()
    assert not any(flags.any() for flags in block.flags.values())
    assert not any(failed.any() for failed in block.failed.values())
    assert bench.state.redone == 2
    assert _same(block, well, [0, 2, 3])
    for name in REACHED[place]:
        assert (block.values[name].float() - well.values[name]).abs().max() < 0.05
        assert not torch.equal(block.values[name][1], well.values[name][1])


@pytest.mark.parametrize(("spread", "flag"), [(0.0, FLAG_CONSTANT), (0.9 / 255, FLAG_CONSTANT), (2 / 255, 0)])
def test_an_image_of_one_8_bit_colour_is_constant(bench: _Bench, monkeypatch: pytest.MonkeyPatch, spread: float, flag: int) -> None:
    images = torch.full((ROWS, 3, 2, 2), 0.25)
    images[:, 0, 0, 0] += spread
    monkeypatch.setattr(bench.generator, "decode", lambda latents: images[: len(latents)])
    monkeypatch.setattr(bench.clip, "encode", lambda some: torch.rand(len(some), 3, 4).half())
    block = bench.run(encoders=("clip",))
    assert block.flags["clip"].tolist() == [flag] * ROWS
    assert not block.flags["latents"].any()


@pytest.mark.parametrize("place", list(REACHED))
def test_a_redone_row_does_not_depend_on_other_failed_rows(place: str) -> None:
    alone: dict[int, Block] = {}
    others = [rows for count in (1, 2, 4, 5) for rows in combinations(range(ROWS), count)]
    for rows in others:
        bench = _Bench()
        bench.make_sick(place, "nan", rows)
        bench.heal(rows)
        block = bench.run()
        if len(rows) == 1:
            alone[rows[0]] = block
        for row in rows:
            assert _same(block, alone[row], [row]), (row, rows)


def test_only_what_failed_is_made_again(bench: _Bench) -> None:
    bench.make_sick("clip", "nan", [2])
    bench.run()
    assert bench.asked("latents float32") == []
    assert bench.asked("images float32") == [[2]]
    assert bench.asked("clip float32") == [[2]]
    assert bench.asked("vit float32") == []


def test_a_row_that_is_not_missing_is_neither_redone_nor_counted(bench: _Bench) -> None:
    bench.make_sick("latents", "nan", [1, 3])
    bench.run(missing_B=np.array([True, True, True, False, False]))
    assert bench.asked("latents float32") == [[1]]
    assert bench.state.redone == 1


def test_stored_latents_are_never_generated_again(bench: _Bench, well: Block) -> None:
    latents, flags = well.values["latents"].clone(), torch.tensor([0, FLAG_NOT_FINITE, 0, 0, 0], dtype=torch.uint8)
    latents[1] = 0  # as they stand in the store
    bench.make_sick("images", "nan", [1, 3])
    bench.heal([3])
    block = bench.run(latents_BChw=latents, latent_flags_B=flags)
    assert [name for name, _ in bench.generator.calls if not name.startswith("images")] == []
    assert bench.asked("images float32") == [[3]]
    assert torch.equal(block.values["latents"], latents)
    assert [block.flags[name].tolist() for name in ("latents", "clip", "vit")] == [[0, FLAG_NOT_FINITE, 0, 0, 0]] * 3
    assert bench.state.rows() == {"prompts": 0, "drawn": 0, "decoded": ROWS, "encoded": 2 * ROWS, "redone": 1}


def test_a_retried_image_is_generated_in_float32_from_the_prompt_on(bench: _Bench, well: Block) -> None:
    block = bench.run(retry={2, 3}, missing_B=np.array([True, True, True, False, True]))
    assert bench.asked("prompt float32") == [[2]]
    assert [bench.asked(f"{place} float32") for place in ("latents", "images", "clip", "vit")] == [[[2]]] * 4
    assert _same(block, well, [0, 1, 3, 4])
    assert not _same(block, well, [2], ["latents"])
    assert not any(flags.any() for flags in block.flags.values())


def test_without_memory_for_float32_rows_stay_flagged(bench: _Bench, well: Block, capsys: pytest.CaptureFixture[str]) -> None:
    bench.make_sick("latents", "nan", [1, 3])
    bench.heal([1, 3])
    bench.generator.lacking = True
    block = bench.run()
    assert block.flags["clip"].tolist() == [0, FLAG_NOT_FINITE, 0, FLAG_NOT_FINITE, 0]
    assert "no memory for float32: 2 failed rows stay as they are" in capsys.readouterr().err
    assert _same(block, well, [0, 2, 4])
    assert {double.dtype for double in (bench.generator, bench.clip, bench.vit)} == {"float16"}


def test_another_error_of_the_redo_is_raised(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.make_sick("clip", "nan", [1])
    whole = bench.clip.encode

    def broken(images: torch.Tensor) -> torch.Tensor:
        if bench.clip.dtype == "float32":
            raise RuntimeError("shapes cannot be multiplied")
        return whole(images)

    monkeypatch.setattr(bench.clip, "encode", broken)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        bench.run()
    assert bench.generator.dtype == "float16"


def test_a_stop_while_rows_are_redone_leaves_the_models_as_before(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.make_sick("latents", "nan", [1])
    whole = bench.generator.encode_prompts

    def asked_to_stop(prompts: Sequence[str]) -> PromptEmbeddings:
        if bench.generator.dtype == "float32":
            bench.state.stop.signal_number = 15
        return whole(prompts)

    monkeypatch.setattr(bench.generator, "encode_prompts", asked_to_stop)
    with pytest.raises(Stopped):
        bench.run()
    assert (bench.generator.dtype, bench.generator.on_device) == ("float16", False)


@pytest.mark.parametrize("images_per_text", [1, 3])
def test_each_prompt_of_a_window_is_encoded_once_in_fixed_groups(images_per_text: int) -> None:
    bench = _Bench(images_per_text, images=90 * images_per_text)
    window = bench.window(range(3 * images_per_text, 83 * images_per_text))
    assert bench.asked("prompt float16") == [list(range(3, 35)), list(range(35, 67)), list(range(67, 83))]
    assert bench.state.prompts == 80
    some = [3 * images_per_text, 40 * images_per_text - 1, 40 * images_per_text, 82 * images_per_text]
    assert window.embeddings_of(some)["tokens"].flatten().tolist() == [3, 39, 40, 82]
    assert not bench.generator.on_device


@pytest.mark.parametrize("needed", [range(40, 44), range(4, 80), [5, 81], range(70, 83)], ids=str)
def test_a_partly_stored_window_encodes_only_the_groups_it_needs(needed: Sequence[int]) -> None:
    bench = _Bench(images=90)
    window = bench.window(range(3, 83), needed)
    whole = [list(range(3, 35)), list(range(35, 67)), list(range(67, 83))]
    assert bench.asked("prompt float16") == [group for group in whole if set(group) & set(needed)]
    assert window.embeddings_of(list(needed))["tokens"].flatten().tolist() == list(needed)


def test_a_stop_ends_the_run_between_two_groups_of_prompts() -> None:
    bench = _Bench(images=90)
    bench.state.stop.signal_number = 15
    with pytest.raises(Stopped):
        bench.window(range(90))
    assert bench.asked("prompt float16") == [list(range(TEXT_BATCH))]
    assert not bench.generator.on_device


@pytest.mark.parametrize(("stored", "needed"), [(False, 100), (True, 30)])
def test_parts_that_do_not_fit_in_float32_are_not_tried_and_it_is_said_once(
    bench: _Bench, well: Block, capsys: pytest.CaptureFixture[str], stored: bool, needed: int
) -> None:
    asked: list[bool] = []

    def float32_bytes(*, generates: bool) -> int:
        asked.append(generates)
        return 100 if generates else 30

    models = Models(text_to_image=cast(Any, bench.generator), encoders=bench.runner._models.encoders, free_bytes=lambda: needed - 1)
    bench.runner = BlockRunner(bench.plan, models, bench.state)
    cast(Any, bench.generator).float32_bytes = float32_bytes
    bench.make_sick("images", "nan", [1, 3])
    bench.heal([1, 3])
    task = {"latents_BChw": well.values["latents"], "latent_flags_B": well.flags["latents"]} if stored else {"retry": [1]}
    for _ in range(2):
        block = bench.run(**task)
        assert block.flags["clip"].tolist() == [0, FLAG_NOT_FINITE, 0, FLAG_NOT_FINITE, 0]
    assert asked == [not stored] * 2
    assert [call for call, _ in bench.generator.calls if call.endswith("float32")] == []
    assert capsys.readouterr().err.count("no memory for float32") == 1
