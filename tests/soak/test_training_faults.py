"""Training under faults: killed at random moments or while it writes a checkpoint, on a full disk, without its store. The result is bitwise
that of an undisturbed training."""

import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.soak import processes
from tests.soak.operations import Counter, Fault, operations_through
from tests.soak.small_disk import leave_free, on_a_small_disk
from tests.support.checkout import ROOT
from train.cli import main
from train.file_names import METRICS
from train.learning.checkpoint import CHECKPOINTS, load_checkpoint

RESULTS = ("model.safetensors", "predictions.csv")
assert str(ROOT) in sys.path


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training of about 30 steps that writes a checkpoint after each, and its undisturbed result."""

    arguments: tuple[str, ...]
    straight: Path
    whole_s: float

    def run(self, folder: Path) -> None:
        """Train in this process, silently."""
        with (folder.parent / f"{folder.name}-output").open("a") as said:
            sys.stdout = sys.stderr = said
            status = main([*self.arguments, "--run-dir", str(folder)])
            said.flush()
        if status:
            raise OSError(status, "the command's own status")

    def complete(self, folder: Path) -> None:
        """Assert that the same command finishes with the same bytes."""
        assert processes.run(lambda: self.run(folder)) == processes.DONE, output_of(folder)
        for name in RESULTS:
            assert (folder / "baseline" / name).read_bytes() == (self.straight / "baseline" / name).read_bytes(), name
        assert not (folder / "baseline" / CHECKPOINTS).exists()


def output_of(folder: Path) -> str:
    return (folder.parent / f"{folder.name}-output").read_text()


def tiny_text_model(folder: Path) -> Path:
    """Write a DistilBERT of one layer and width 32 with the embedded tokenizer, dropout included."""
    import torch
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    from lugpi_core.runtime.pretrained import embedded_model

    tokenizer = AutoTokenizer.from_pretrained(embedded_model("text"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DistilBertConfig(vocab_size=len(tokenizer), dim=32, hidden_dim=64, n_layers=1, n_heads=2, max_position_embeddings=64)
        DistilBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["adamw", pytest.param("adamw8bit", marks=pytest.mark.soak)])
def case(request: pytest.FixtureRequest, small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    arguments = ("baseline", "--dataset", str(small_csv), "--split-column", "split", "--text-model", str(tiny_text_model(folder / "tiny")))
    flags = ("--epochs", "3", "--batch-size", "4", "--learning-rate", "1e-3", "--optimizer", request.param, "--checkpoint-minutes", "0")
    first = Case(arguments=(*arguments, "--max-length", "16", *flags), straight=folder / "straight", whole_s=0)
    assert processes.run(lambda: first.run(folder / "warm")) == processes.DONE, output_of(folder / "warm")
    start_s = time.monotonic()
    assert processes.run(lambda: first.run(first.straight)) == processes.DONE
    return Case(arguments=first.arguments, straight=first.straight, whole_s=time.monotonic() - start_s)


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, which must load; -1 without a checkpoint."""
    state = load_checkpoint(folder / "baseline")
    steps = [int(path.name.removeprefix("step-")) for path in (folder / "baseline" / CHECKPOINTS).glob("step-*")]
    assert (state is None) == (not steps)
    if state is None:
        return -1
    assert state["step"] == max(steps), "the newest checkpoint is not complete"
    return max(steps)


def test_a_training_killed_at_any_moment_gives_the_same_bits(
    case: Case, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    planned, kills, runs, moments = campaign(3, 50), 0, 0, random.Random(0)
    while kills < planned:
        folder, step, runs = tmp_path / f"run-{runs}", -1, runs + 1
        while kills < planned:
            pid = processes.start(lambda folder=folder: case.run(folder))
            if processes.ended(pid, moments.uniform(0, case.whole_s * 0.6)):
                assert processes.wait(pid) == processes.DONE, output_of(folder)
                break
            kills += processes.kill(pid) == processes.KILLED
            if (folder / "baseline" / METRICS).is_file():
                break  # the model is complete; its checkpoints may be gone
            step, before = newest_step(folder), step
            assert step >= before, "a kill lost a checkpoint"
        case.complete(folder)
        shutil.rmtree(folder)
    report(f"training: {kills} kills over {runs} runs, every checkpoint loaded, all weights bitwise those of an undisturbed run")


def operations_of(case: Case, folder: Path) -> int:
    """Return the number of file operations of one training on its checkpoints."""
    counted = folder.parent / "counted"

    def work() -> None:
        counter = Counter()
        with operations_through(folder / "baseline" / CHECKPOINTS, counter):
            case.run(folder)
        counted.write_text(str(len(counter.names)))

    assert processes.run(work) == processes.DONE, output_of(folder)
    return int(counted.read_text())


def disturbed(case: Case, folder: Path, k: int, kind: str) -> int:
    """Return how a training ended whose k-th file operation on a checkpoint failed."""

    def work() -> None:
        with operations_through(folder / "baseline" / CHECKPOINTS, Fault(k, kind)):
            case.run(folder)

    return processes.run(work)


def spread(total: int, count: int) -> Sequence[int]:
    """Return ``count`` operations spread over all, early and late."""
    return sorted(random.Random(1).sample(range(total), min(count, total)))


def test_a_kill_while_a_checkpoint_is_written_gives_the_same_bits(
    case: Case, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    total = operations_of(case, tmp_path / "counting")
    chosen = spread(total, campaign(2, 100))
    for k in chosen:
        folder = tmp_path / f"killed-{k}"
        assert disturbed(case, folder, k, "kill") == processes.KILLED
        newest_step(folder)
        case.complete(folder)
        shutil.rmtree(folder)
    report(f"checkpoints: killed at {len(chosen)} of {total} file operations, the newest always loaded, all weights bitwise the same")


@pytest.mark.parametrize("kind", ["EIO", "ENOSPC"])
def test_a_checkpoint_that_cannot_be_written_keeps_the_last_one(
    case: Case, kind: str, tmp_path: Path, campaign: Callable[[int, int], int], report: Callable[[str], None]
) -> None:
    total = operations_of(case, tmp_path / "counting")
    ended = []
    for k in spread(total, campaign(2, 40)):
        folder = tmp_path / f"refused-{k}"
        ended.append(disturbed(case, folder, k, kind))
        assert ended[-1] in (processes.DONE, processes.FAILED), output_of(folder)
        if ended[-1] == processes.FAILED:
            assert output_of(folder).splitlines()[-1].startswith("error: "), output_of(folder)
            assert not list((folder / "baseline" / CHECKPOINTS).glob(".*.partial"))
        assert "Traceback" not in output_of(folder)
        case.complete(folder)
        shutil.rmtree(folder)
    report(f"checkpoints: {kind} at {len(ended)} file operations, {ended.count(processes.FAILED)} ended the run, all completed the same")


def test_a_full_disk_costs_no_checkpoint(case: Case, tmp_path: Path) -> None:
    def work(disk: Path) -> None:
        folder = disk / "run"
        # Enough for the small files of the run and one checkpoint, not for the two that exist while one replaces the other.
        ballast = leave_free(disk, 1_900_000)
        assert processes.run(lambda: case.run(folder)) == processes.FAILED, output_of(folder)
        assert "No space left" in output_of(folder).splitlines()[-1], output_of(folder)
        newest_step(folder)
        ballast.unlink()
        case.complete(folder)

    (tmp_path / "disk").mkdir()
    on_a_small_disk(tmp_path / "disk", work)


def test_a_store_removed_during_training_costs_no_checkpoint(case: Case, small_csv: Path, small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    arguments = ("teacher", *case.arguments[1:], "--image-tokens", "clip-demo", "--run-dir", str(folder), "--epochs", "40")

    def work() -> None:
        with (tmp_path / "output").open("a") as said:
            sys.stdout = sys.stderr = said
            raise OSError(main(list(arguments)) or 99, "status")

    pid = processes.start(work)
    deadline_s = time.monotonic() + 60
    while not list((folder / "teacher" / CHECKPOINTS).glob("step-*")):
        assert time.monotonic() < deadline_s, (tmp_path / "output").read_text()
        time.sleep(0.02)
    shutil.rmtree(folder / "tokens")
    time.sleep(0.3)
    processes.kill(pid)
    assert processes.run(work) == processes.FAILED
    last = (tmp_path / "output").read_text().splitlines()[-1]
    assert "error: got no" in last, last
    assert "token store" in last, last
    assert load_checkpoint(folder / "teacher") is not None
