"""Runs that are stopped at any moment: they end within a batch, and the same command continues to the bytes of an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from featurize.cli import main
from featurize.encode.image_encoder import ImageEncoder
from featurize.fill import block as blocks
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.store.shard import ShardWriter
from lugpi_core.store.writer import ColumnWriter
from tests.soak import processes
from tests.support.checkout import ROOT
from tests.support.shards import shard_file

ROWS, BATCH, SHARD = 24, 4, 8
INTERRUPTED = "interrupted: what is written is kept; run the same command to continue"
DEMO = ("--generator", "demo", "--encoders", "demo", "--batch-size", str(BATCH), "--shard-rows", str(SHARD))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.csv"
    path.write_text("text,label\n" + "".join(f"picture number {n},{'ab'[n % 2]}\n" for n in range(ROWS)))
    return path


def _shards(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted((run / "tokens").glob("*/shard-*"))}


@dataclass
class _StopAtCall:
    """Requests a stop at the n-th call of a run, and counts the rows that each stage computes afterwards.

    Attributes:
        kinds: of all calls so far.
    """

    at: int
    kinds: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("prompts", "drawn", "steps", "decoded", "encoded"), 0))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap the models and the store."""
        for owner, name, kind in (
            (TextToImage, "encode_prompts", "prompts"),
            (TextToImage, "denoise", "drawn"),
            (TextToImage, "decode", "decoded"),
            (ImageEncoder, "encode", "encoded"),
            (ShardWriter, "write", "store"),
            (ColumnWriter, "commit", "store"),
        ):
            patch.setattr(owner, name, self._counted(getattr(owner, name), kind))
        import diffusers

        patch.setattr(diffusers.UNet2DConditionModel, "forward", self._counted(diffusers.UNet2DConditionModel.forward, "steps"))

    def _counted(self, whole: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            self.kinds.append(kind)
            calls = len(self.kinds)
            if calls > self.at and kind in self.rows:
                self.rows[kind] += 1 if kind == "steps" else len(given[-1])
            if calls == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            return whole(*given, **named)

        return call


def _stopped_at(call: int, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> _StopAtCall:
    asked = _StopAtCall(at=call)
    with pytest.MonkeyPatch.context() as patch:
        asked.install(patch)
        status = main(arguments)
    said = capsys.readouterr().err
    if call:
        assert status == 128 + signal.SIGTERM, (call, status)
        assert said.splitlines()[-1] == INTERRUPTED
    return asked


def test_after_a_signal_only_the_batch_in_flight_is_finished(
    table: Path, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", str(table), *DEMO, "--steps", "3", "--size-px", "32", "--run-dir"]
    kinds = _stopped_at(0, [*arguments, str(tmp_path / "straight")], capsys).kinds
    last = {kind: call for call, kind in enumerate(kinds, start=1)}
    chosen = [kinds.index("steps") + 1, last["prompts"], last["decoded"], last["encoded"], last["store"]]
    if campaign(0, 1):
        chosen = list(range(1, len(kinds) + 1))
    most = dict.fromkeys(("prompts", "drawn", "steps", "decoded", "encoded"), 0)
    for call in chosen:
        run = tmp_path / f"stopped-{call}"
        after = _stopped_at(call, [*arguments, str(run)], capsys).rows
        assert after["steps"] == 0, (call, after)  # a generation that starts after the request ends before its first step
        assert after["prompts"] <= SHARD, (call, after)
        assert after["decoded"] <= BATCH, (call, after)
        assert after["encoded"] <= 2 * BATCH, (call, after)
        most = {kind: max(count, after[kind]) for kind, count in most.items()}
        assert main([*arguments, str(run)]) == 0
        assert _shards(run) == _shards(tmp_path / "straight")
    report(
        f"stops at {len(chosen)} of {len(kinds)} calls: computed after the signal at most {most}, all runs completed with the same bytes"
    )


def _in_a_child(arguments: Sequence[str], said: Path) -> NoReturn:
    """Run the command in this process, a fresh fork, and exit as a new process would."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # After a fork torch creates its thread pool again at first use; two threads that load weights must not do so at once.
    torch.set_num_threads(1)
    status = processes.BROKEN
    with said.open("w") as file:
        sys.stdout = sys.stderr = file
        try:
            status = main(arguments)
        finally:
            file.flush()
            os._exit(status)


class _Fork:
    """The command in a fork of this process, with everything imported."""

    def __init__(self, arguments: Sequence[str], said: Path) -> None:
        self._said = said
        self.pid = os.fork() or _in_a_child(arguments, said)

    def end(self, timeout_s: float) -> int:
        """Wait for the end; return the status."""
        return processes.wait(self.pid, timeout_s)

    def output(self) -> str:
        """Return its output so far."""
        return self._said.read_text() if self._said.exists() else ""


class _Process:
    """The command in a new process, as a user starts it."""

    def __init__(self, arguments: Sequence[str], said: Path) -> None:
        self._said = said
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with said.open("w") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "featurize", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        self.pid = self._child.pid

    def end(self, timeout_s: float) -> int:
        """Wait for the end; return the status."""
        return self._child.wait(timeout_s)

    def output(self) -> str:
        """Return its output so far."""
        return self._said.read_text()


Start = Callable[[Sequence[str], Path], _Fork | _Process]


def _wait_for_output(child: _Fork | _Process, words: str) -> None:
    deadline_s = time.monotonic() + 120
    while words not in child.output() and not processes.ended(child.pid, 0.005):
        assert time.monotonic() < deadline_s, child.output()


def _stop_once(child: _Fork | _Process, delay_s: float, number: int) -> float | None:
    """Signal a command after some seconds; return how long it took to stop, or None if it had ended by then."""
    if number == signal.SIGINT:
        _wait_for_output(child, "own: ")  # earlier, Ctrl-C ends the interpreter itself
    if processes.ended(child.pid, delay_s):
        assert child.end(1) == 0, child.output()
        return None
    os.kill(child.pid, number)
    signalled_s = time.monotonic()
    while INTERRUPTED not in child.output() and not processes.ended(child.pid, 0.005):
        pass
    took_s = time.monotonic() - signalled_s  # without the exit of the interpreter, which follows
    status, said = child.end(60), child.output()
    if status == 0 and '"complete": true' in said:
        return None  # the signal came between its last work and its last line
    assert status in (128 + number, -number), (status, said)  # a shell calls both 128 + number
    assert status < 0 or said.splitlines()[-1] == INTERRUPTED, said
    assert "Traceback" not in said
    assert "ignored" not in said
    return took_s


@dataclass(frozen=True)
class _Uninterrupted:
    """An uninterrupted run: its flags, its shards, its seconds and those of one batch."""

    arguments: list[str]
    shards: dict[str, bytes]
    whole_s: float
    batch_s: float


@pytest.fixture(scope="module")
def straight(table: Path, tmp_path_factory: pytest.TempPathFactory) -> _Uninterrupted:
    run = tmp_path_factory.mktemp("straight") / "run"
    arguments = ["--dataset", str(table), *DEMO, "--steps", "10", "--run-dir"]
    begun_s = time.monotonic()
    child = _Fork([*arguments, str(run)], run.with_suffix(".said"))
    assert child.end(240) == 0, child.output()
    filled_s = json.loads(child.output().splitlines()[-1])["times"]["fill_wall_s"]
    return _Uninterrupted(arguments, _shards(run), time.monotonic() - begun_s, filled_s / (ROWS / BATCH))


def _stop_again_and_again(start: Start, straight: _Uninterrupted, folder: Path, stops: int, longest_s: float) -> list[float]:
    """Start and stop the command ``stops`` times, filling store after store to its end. Return the seconds that each stop took."""
    chance, took_s, stores = random.Random(stops), list[float](), 0
    while len(took_s) < stops:
        run, starts = folder / f"store-{stores}", 0
        while True:
            number, delay_s, how = chance.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT)), chance.uniform(0, longest_s), start
            if len(took_s) == stops:
                delay_s, how = 240, _Fork
            stop_s = _stop_once(how([*straight.arguments, str(run)], folder / f"said-{stores}-{starts}"), delay_s, number)
            if stop_s is None:
                break
            took_s.append(stop_s)
            starts += 1
        assert _shards(run) == straight.shards
        stores += 1
    return took_s


@pytest.mark.parametrize(
    ("how", "imports_s"), [pytest.param(_Fork, 0, id="forks"), pytest.param(_Process, 6, marks=pytest.mark.soak, id="processes")]
)
def test_runs_stopped_at_random_moments_continue_to_the_same_bytes(
    straight: _Uninterrupted,
    tmp_path: Path,
    how: Start,
    imports_s: float,
    campaign: Callable[[int, int], int],
    report: Callable[[str], None],
) -> None:
    stops = campaign(3, 50)
    took_s = sorted(_stop_again_and_again(how, straight, tmp_path, stops, straight.whole_s + imports_s))
    kind = "processes" if imports_s else "forks"
    report(
        f"signals at {len(took_s)} random moments ({kind}): stopped after at most {took_s[-1]:.2f} s, median "
        f"{took_s[len(took_s) // 2]:.2f} s, where a batch takes {straight.batch_s:.2f} s; all stores completed with the same bytes"
    )


def _encoding_watched(options: FeaturizeOptions, patch: pytest.MonkeyPatch, break_at: int | None = None) -> list[tuple[str, ...]]:
    """Run featurize and return the prompts of each call of the text encoder; interrupt it at a call of the decoder."""
    batches, decoded = list[tuple[str, ...]](), 0
    encode, decode = TextToImage.encode_prompts, TextToImage.decode

    def encoding(self: TextToImage, prompts: Sequence[str]) -> Any:
        if list(prompts) != [""]:  # the empty prompt of guidance
            batches.append(tuple(prompts))
        return encode(self, prompts)

    def decoding(self: TextToImage, latents: torch.Tensor) -> torch.Tensor:
        nonlocal decoded
        decoded += 1
        if decoded == break_at:
            raise KeyboardInterrupt
        return decode(self, latents)

    with patch.context() as inner:
        inner.setattr(TextToImage, "encode_prompts", encoding)
        inner.setattr(TextToImage, "decode", decoding)
        if break_at is None:
            featurize_command(options)
        else:
            with pytest.raises(KeyboardInterrupt):
                featurize_command(options)
    return batches


def _damage(run: Path, column: str) -> None:
    path = shard_file(run / "tokens" / column, 0)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("images_per_text", "encoders"),
    [
        (1, ("vit-demo",)),
        (3, ("vit-demo", "prompt-text")),
        pytest.param(3, ("vit-demo",), marks=pytest.mark.soak),
        pytest.param(1, ("vit-demo", "prompt-text"), marks=pytest.mark.soak),
    ],
    ids=str,
)
def test_a_continued_or_repaired_run_encodes_the_same_prompt_batches(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_per_text: int, encoders: tuple[str, ...]
) -> None:
    monkeypatch.setattr(blocks, "TEXT_BATCH", 5)
    monkeypatch.setattr(blocks, "WINDOW_ROWS", 16)
    small: dict[str, Any] = {"generator": "demo", "encoders": encoders, "steps": 1, "size_px": 32, "batch_size": 4, "shard_rows": 18}

    def options(name: str) -> FeaturizeOptions:
        return FeaturizeOptions(dataset=str(table), run_dir=tmp_path / name, images_per_text=images_per_text, **small)

    straight = _encoding_watched(options("straight"), monkeypatch)
    prompts = [prompt for batch in straight for prompt in batch]
    assert len(prompts) == len(set(prompts)) == ROWS, "each prompt once"
    for break_at in (2, 4):
        name = f"broken-{break_at}"
        _encoding_watched(options(name), monkeypatch, break_at)
        assert set(_encoding_watched(options(name), monkeypatch)) <= set(straight)
        _damage(tmp_path / name, "latents")
        again = _encoding_watched(options(name), monkeypatch)
        assert 1 <= len(again) <= 2, "the prompts of the damaged block"
        assert set(again) <= set(straight)
        assert _shards(tmp_path / name) == _shards(tmp_path / "straight")
