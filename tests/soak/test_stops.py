"""Runs that are asked to stop, at any moment: they end within a batch, and the same command goes on to the bytes of a straight run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from featurize.cli import main
from featurize.encode.image_encoder import ImageEncoder
from featurize.fill import block as blocks
from featurize.fill import fill_store as pipeline
from featurize.generate.text_to_image import TextToImage
from featurize.options import FeaturizeOptions
from featurize.run import featurize_command
from lugpi_core.store.shard import ShardWriter
from lugpi_core.store.writer import ColumnWriter
from tests.featurize.test_run import INTERRUPTIBLE
from tests.soak import processes
from tests.support.checkout import ROOT

ROWS, BATCH, SHARD = 24, 4, 8
INTERRUPTED = "interrupted: what is written is kept; run the same command to continue"
DEMO = ("--generator", "demo", "--encoders", "demo", "--batch-size", str(BATCH), "--shard-rows", str(SHARD))
# Beside a batch: what no signal interrupts, such as loading a library, on a machine that has other work.
GRACE_S = 2.0


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A fork leaves a second thread behind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "own.csv"
    path.write_text("text,label\n" + "".join(f"picture number {n},{'ab'[n % 2]}\n" for n in range(ROWS)))
    return path


def _shards(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted((run / "tokens").glob("*/shard-*"))}


@dataclass
class _AfterAsking:
    """Asks for a stop at the n-th call of all that a run calls, and counts the rows that each stage makes after it.

    Attributes:
        kinds: of all calls so far.
    """

    at: int
    kinds: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("prompts", "drawn", "steps", "decoded", "encoded"), 0))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Stand around the models and the store."""
        for owner, name, kind in (
            (TextToImage, "encode_prompts", "prompts"),
            (TextToImage, "draw", "drawn"),
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


def _stopped_at(call: int, arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> _AfterAsking:
    asked = _AfterAsking(at=call)
    with pytest.MonkeyPatch.context() as patch:
        asked.install(patch)
        status = main(arguments)
    said = capsys.readouterr().err
    if call:
        assert status == 128 + signal.SIGTERM, (call, status)
        assert said.splitlines()[-1] == INTERRUPTED
    return asked


def test_after_a_signal_no_more_than_the_batch_in_flight_is_made_and_the_same_command_completes_the_run(
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
        assert after["steps"] == 0, (
            call,
            after,
        )  # drawing that was entered as another thread asked ends before its first
        assert after["prompts"] <= SHARD, (call, after)
        assert after["decoded"] <= BATCH, (call, after)
        assert after["encoded"] <= 2 * BATCH, (call, after)
        most = {kind: max(count, after[kind]) for kind, count in most.items()}
        assert main([*arguments, str(run)]) == 0
        assert _shards(run) == _shards(tmp_path / "straight")
    report(f"stops at {len(chosen)} of {len(kinds)} calls: made after the signal at most {most}, all runs completed to the same bytes")


def _in_a_child(arguments: Sequence[str], said: Path) -> NoReturn:
    """Run the command in this process, a fresh fork, as a process of its own would, and end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A fork makes torch's pool of threads anew at its next use, which two threads that load weights must not come to at once.
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
    """The command in a fork of this process, which has imported everything."""

    def __init__(self, arguments: Sequence[str], said: Path) -> None:
        self._said = said
        self.pid = os.fork() or _in_a_child(arguments, said)

    def end(self, timeout_s: float) -> int:
        """Wait for the end; return the status."""
        return processes.wait(self.pid, timeout_s)

    def said(self) -> str:
        """Return what it has said so far."""
        return self._said.read_text() if self._said.exists() else ""


class _Process:
    """The command in a process of its own, as a user starts it."""

    def __init__(self, arguments: Sequence[str], said: Path) -> None:
        self._said = said
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with said.open("w") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-c", INTERRUPTIBLE, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
            )
        self.pid = self._child.pid

    def end(self, timeout_s: float) -> int:
        """Wait for the end; return the status."""
        return self._child.wait(timeout_s)

    def said(self) -> str:
        """Return what it has said so far."""
        return self._said.read_text()


Start = Callable[[Sequence[str], Path], _Fork | _Process]


def _wait_for_words(child: _Fork | _Process, words: str) -> None:
    deadline_s = time.monotonic() + 120
    while words not in child.said() and not processes.ended(child.pid, 0.005):
        assert time.monotonic() < deadline_s, child.said()


def _stop_once(child: _Fork | _Process, delay_s: float, number: int) -> float | None:
    """Signal a command after some seconds; return how long it took to stop, None when it was at its end by then."""
    if number == signal.SIGINT:
        _wait_for_words(child, "own: ")  # before it reads its flags, Ctrl-C ends Python as it ends any program
    if processes.ended(child.pid, delay_s):
        assert child.end(1) == 0, child.said()
        return None
    os.kill(child.pid, number)
    asked_s = time.monotonic()
    while INTERRUPTED not in child.said() and not processes.ended(child.pid, 0.005):
        pass
    took_s = time.monotonic() - asked_s  # the interpreter's own end, which comes now, is not ours
    status, said = child.end(60), child.said()
    if status == 0 and '"complete": true' in said:
        return None  # the signal found it between its last work and its last line
    assert status in (128 + number, -number), (status, said)  # a shell calls both 128 + number
    assert status < 0 or said.splitlines()[-1] == INTERRUPTED, said
    assert "Traceback" not in said
    assert "ignored" not in said
    return took_s


@dataclass(frozen=True)
class _Straight:
    """A run that nobody stopped: its flags, its shards, and the seconds that it and one of its batches took."""

    arguments: list[str]
    shards: dict[str, bytes]
    whole_s: float
    batch_s: float


@pytest.fixture(scope="module")
def straight(table: Path, tmp_path_factory: pytest.TempPathFactory) -> _Straight:
    run = tmp_path_factory.mktemp("straight") / "run"
    arguments = ["--dataset", str(table), *DEMO, "--steps", "10", "--run-dir"]
    begun_s = time.monotonic()
    child = _Fork([*arguments, str(run)], run.with_suffix(".said"))
    assert child.end(240) == 0, child.said()
    filled_s = json.loads(child.said().splitlines()[-1])["times"]["fill_wall_s"]
    return _Straight(arguments, _shards(run), time.monotonic() - begun_s, filled_s / (ROWS / BATCH))


def _stop_again_and_again(start: Start, straight: _Straight, folder: Path, stops: int, longest_s: float) -> list[float]:
    """Start the command, stop it, and so on until so many stops are through; each store is filled to the end. Return the seconds that each
    stop took."""
    chance, took_s, stores = random.Random(stops), list[float](), 0
    while len(took_s) < stops:
        run, starts = folder / f"store-{stores}", 0
        while True:
            number, delay_s, how = chance.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGINT)), chance.uniform(0, longest_s), start
            if len(took_s) == stops:
                delay_s, how = 240, _Fork
            one_s = _stop_once(how([*straight.arguments, str(run)], folder / f"said-{stores}-{starts}"), delay_s, number)
            if one_s is None:
                break
            took_s.append(one_s)
            starts += 1
        assert _shards(run) == straight.shards
        stores += 1
    return took_s


@pytest.mark.parametrize(("how", "imports_s"), [(_Fork, 0), (_Process, 6)], ids=["forks", "processes"])
def test_signals_at_random_moments_end_a_run_within_a_batch_and_it_is_continued_to_the_same_bytes(
    straight: _Straight, tmp_path: Path, how: Start, imports_s: float, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    stops = campaign(1 if imports_s else 5, 50)
    took_s = sorted(_stop_again_and_again(how, straight, tmp_path, stops, straight.whole_s + imports_s))
    assert took_s[-1] <= straight.batch_s + GRACE_S, took_s
    kind = "processes" if imports_s else "forks"
    report(
        f"signals at {len(took_s)} random moments ({kind}): stopped after at most {took_s[-1]:.2f} s, median "
        f"{took_s[len(took_s) // 2]:.2f} s, where a batch takes {straight.batch_s:.2f} s; all stores completed to the same bytes"
    )


def _encoding_watched(options: FeaturizeOptions, patch: pytest.MonkeyPatch, break_at: int | None = None) -> list[tuple[str, ...]]:
    """Run featurize and return the prompts that were encoded together, of each call; break off at a call of the decoder."""
    batches, decoded = list[tuple[str, ...]](), 0
    encode, decode = TextToImage.encode_prompts, TextToImage.decode

    def encoding(self: TextToImage, prompts: Sequence[str]) -> Any:
        if list(prompts) != [""]:  # guidance wants that one too
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
    path = run / "tokens" / column / "shard-00000.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("images_per_text", [1, 3])
def test_a_run_that_is_continued_or_mended_encodes_the_same_batches_of_prompts_as_a_straight_one(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_per_text: int
) -> None:
    monkeypatch.setattr(blocks, "TEXT_BATCH", 5)
    monkeypatch.setattr(pipeline, "WINDOW_ROWS", 16)
    small: dict[str, Any] = {"generator": "demo", "encoders": ("vit-demo",), "steps": 1, "size_px": 32, "batch_size": 4, "shard_rows": 18}

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
        assert 1 <= len(again) <= 2, "those of the block that was hit"
        assert set(again) <= set(straight)
        assert _shards(tmp_path / name) == _shards(tmp_path / "straight")
