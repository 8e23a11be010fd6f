"""Models of tables in processes side by side: the same results as one at a time, and the same after any end of any process."""

import json
import os
import pickle
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.evidence.compare
from lugpi_core.cluster.connection import Cluster, Share
from lugpi_core.cluster.crew import RayCrew, TaskResult
from lugpi_core.corpora.corpus import Corpus
from lugpi_core.errors import InputError
from lugpi_core.runtime.stopping import Stopped, terminated_like_interrupted
from tests.support.checkout import Start
from tests.support.small_tables import fake_model, fake_teacher, flags, scores, words
from train.data.text_model import find_text_model
from train.evidence import on_ray, side_by_side
from train.evidence.compare import compare
from train.evidence.rows import models_of, rows_of
from train.evidence.schedule import Experiment
from train.evidence.side_by_side import ending_together
from train.evidence.tables import tables
from train.evidence.worker import Job
from train.models.on_ray import share_of_model
from train.options.ray import RaySettings
from train.options.settings import DistillationSettings, Optimization, Placement
from train.options.tables import TablesOptions

ROWS = ("baseline", "teacher-none", "student-none")
Make = Callable[..., TablesOptions]
# Reads jobs as a worker does and answers with its arguments, one for each job; "end" ends it, "wait" makes it wait for a signal.
FAKE = """
import json, os, signal, sys
for answer in sys.argv[1:]:
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    sys.stdin.buffer.read(length)
    if not length:
        break
    if answer == "start":
        continue
    if answer == "wait":
        open(os.environ["FAKE_WAITS"], "w").close()
        signal.pause()
    if answer == "end":
        sys.exit(7)
    print(answer, flush=True)
"""

# Waits for a frame of a parent that sends none.
WAITING = """
import os
from train.evidence import worker
os.dup2(os.pipe()[0], 0)
frames = worker._frames(0)
print("waits", flush=True)
frames.get()
"""


@pytest.fixture
def make(small_csv: Path, tmp_path: Path) -> Make:
    """Make the options of tables without images, in a run of the test's own."""
    return lambda **more: TablesOptions(**flags(small_csv, tmp_path / "run", **{"rows": ROWS, "seeds": 1, "processes": 2, **more}))


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Let processes be fakes that answer so; return the list that they will be counted in."""
    started: list[str] = []

    def answering(*answers: dict[str, Any] | str) -> list[str]:
        given = ["start", *(json.dumps(answer) if isinstance(answer, dict) else answer for answer in answers)]
        monkeypatch.setattr(side_by_side, "WORKER", ("-S", "-c", FAKE, *given))
        popen = side_by_side.subprocess.Popen
        monkeypatch.setattr(side_by_side.subprocess, "Popen", lambda *args, **more: (started.append("one"), popen(*args, **more))[1])
        monkeypatch.setenv("FAKE_WAITS", str(tmp_path / "waits"))
        return started

    return answering


def predictions(run: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(run.glob("*/predictions.csv"))}


@pytest.fixture(scope="module")
def straight(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with models that were trained one at a time."""
    run = tmp_path_factory.mktemp("straight")
    tables(TablesOptions(**flags(small_csv, run, rows=ROWS, seeds=1, processes=1)))
    return run


def test_models_side_by_side_are_those_of_one_at_a_time_also_after_a_kill(
    small_csv: Path, make: Make, straight: Path, start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make().run
    given = [*words(flags(small_csv, run)), "--rows", *ROWS, "--seeds", "1", "--processes", "2", "--checkpoint-minutes", "0"]
    child = start("-m", "train", "tables", *given)
    deadline_s = time.monotonic() + 180
    while not list(run.glob("*/checkpoints/step-*")) and child.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.005)
    child.kill()
    _, err = child.communicate(timeout=120)  # returns when the last process has closed stderr, without having been asked to
    assert child.returncode == -signal.SIGKILL
    assert "Traceback" not in err
    finished = set(predictions(run))
    assert len(finished) < 3
    capfd.readouterr()
    report = tables(make())
    assert report["trained"] == [row for row in ROWS if row not in finished], "in the order of the rows, whichever was finished first"
    assert predictions(run) == predictions(straight)
    err = capfd.readouterr().err
    assert "3 models in" in err
    assert ", 2 at a time" in err
    assert err.count("done: ") == len(report["trained"])
    assert "%|" not in err, "no bars, which would overwrite each other"


@pytest.mark.soak
def test_models_on_ray_are_those_of_one_at_a_time_also_after_an_interruption(
    make: Make, straight: Path, ray_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a real Ray, so in ``make soak`` alone."""
    run = make().run

    def interrupt() -> None:
        deadline_s = time.monotonic() + 180
        while not list(run.glob("*/checkpoints/step-*")) and time.monotonic() < deadline_s:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped), terminated_like_interrupted():
        tables(make(ray=ray_address, checkpoint_minutes=0.0))
    thread.join()
    finished = set(predictions(run))
    assert len(finished) < 3
    capfd.readouterr()
    report = tables(make(ray=ray_address))
    assert report["trained"] == [row for row in ROWS if row not in finished]
    assert predictions(run) == predictions(straight)
    err = capfd.readouterr().err
    assert "Ray: 1 node with 3 CPU and 0 GPU; 2 at a time, each with 1 CPU" in err
    done = [line for line in err.splitlines() if line.startswith("done: ")]
    assert len(done) == len(report["trained"]), "what is said in the cluster is said here"
    assert "%|" not in err


def test_a_model_whose_actors_end_has_failed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def ending(crew: RayCrew[Job]) -> list[TaskResult[Job]]:
        given, crew._todo = list(crew._todo), deque()
        return [TaskResult(task=each.task, failure="3 times, the last time on a node: the end") for each in given]

    monkeypatch.setattr(on_ray, "connected", lambda _: nullcontext(Cluster(resources=({"CPU": 2.0},), is_own=True)))
    monkeypatch.setattr(RayCrew, "results", ending)
    monkeypatch.setattr(RayCrew, "__enter__", lambda crew: crew)
    monkeypatch.setattr(RayCrew, "__exit__", lambda *_: None)
    with pytest.raises(InputError, match="3 times, the last time on a node: the end"):
        tables(make(ray="local"))


def test_a_cluster_that_does_not_answer_is_refused_and_nothing_is_written(make: Make) -> None:
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1, where nothing answers"):
        tables(make(ray="127.0.0.1:1"))
    assert not make().run.exists()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"ray": "local", "gpus_per_model": 2.0}, "got --gpus-per-model 2; expected 0 to 1"),
        ({"gpus_per_model": 0.5}, "got --gpus-per-model without --ray"),
    ],
)
def test_shares_of_gpus_that_are_none_are_refused(make: Make, more: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make(**more)


def test_what_a_model_takes_of_a_node() -> None:
    with_gpu, without = (Cluster(resources=({"CPU": 4.0, "GPU": gpu},), is_own=False) for gpu in (1.0, 0.0))
    own = replace(without, is_own=True)
    assert share_of_model(with_gpu, RaySettings(ray="auto"), "cpu", None) == Share(cpus=1.0, gpus=0.0)
    assert share_of_model(without, RaySettings(ray="auto"), "auto", 8) == Share(cpus=1.0, gpus=0.0)
    assert share_of_model(own, RaySettings(ray="auto"), "auto", 8) == Share(cpus=0.5, gpus=0.0)
    with pytest.raises(InputError, match="one of them"):
        share_of_model(with_gpu, RaySettings(ray="auto", gpus_per_model=0.5), "cpu", None)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="got no GPU for the command, which plans the models"):
            share_of_model(with_gpu, RaySettings(ray="auto", gpus_per_model=0.25), "auto", None)


def test_the_last_seeds_teachers_come_before_their_other_models() -> None:
    rows = rows_of(())
    models = models_of([row for row in rows if row.name in ROWS], rows, (3, 0, 2))
    assert [model.name for model in ending_together(models)] == [
        *("baseline-seed3", "teacher-none-seed3", "student-none-seed3"),
        *("teacher-none", "teacher-none-seed2"),
        *("baseline", "student-none", "baseline-seed2", "student-none-seed2"),
    ]


def test_processes_get_no_pictures(tmp_path: Path) -> None:
    texts = [f"some words {number}" for number in range(40)]
    corpus = Corpus.from_texts(texts, ["a", "b"] * 20, images=[b"a picture"] * 40)
    more = replace(Corpus.from_texts(texts[:3], images=[b"a picture"] * 3), labelled=corpus)
    experiment = Experiment(
        corpus=corpus,
        run=tmp_path,
        text_model=find_text_model("demo", max_length=None),
        optimization=Optimization(),
        placement=Placement(),
        distillation=DistillationSettings(),
        unlabelled=more,
    )
    assert b"a picture" not in pickle.dumps(experiment)
    assert experiment.corpus.fingerprint() == corpus.fingerprint()


def test_a_failed_model_takes_its_students_with_it(make: Make, answering: Callable[..., list[str]]) -> None:
    started = answering({"finished": {"folder": None, "failure": "a loss that is not finite"}})
    with pytest.raises(InputError, match="a loss that is not finite"):
        tables(make(rows=("student-none",)))
    assert started == ["one"], "a student alone needs no second process"


def test_a_model_is_planned_by_its_process_alone(make: Make, answering: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of a student takes its teachers' outputs, on unlabelled texts by running them."""
    answering({"finished": {"folder": None, "failure": "a loss that is not finite"}})
    monkeypatch.setattr(Experiment, "find", lambda *_: pytest.fail("planned twice"))
    fake_model(make().run, "another", scores(1, of=2), command="baseline")  # of another command than the teacher
    fake_teacher(make().run, "of-another-seed", scores(1, of=2), privileged="none", seed=7)
    with pytest.raises(InputError, match="a loss that is not finite"):
        tables(make(rows=("student-none",)))


def test_an_error_in_a_process_is_the_commands(make: Make, answering: Callable[..., list[str]]) -> None:
    answering({"error": {"got": "a damaged file", "expected": "another", "do": "copy it"}})
    with pytest.raises(InputError, match="got a damaged file; expected another; copy it"):
        tables(make())
    answering({"disk_fault": [28, "No space left on device", "runs/x"]})
    with pytest.raises(OSError, match="No space left on device: 'runs/x'"):
        tables(make())


def test_the_end_of_a_process_is_told_with_its_model(make: Make, answering: Callable[..., list[str]]) -> None:
    answering("end")
    with pytest.raises(InputError, match=r"the end of the process that trained (baseline|teacher-none) \(exit status 7\)"):
        tables(make())


def test_a_model_that_another_command_took_meanwhile_is_tried_again(make: Make, answering: Callable[..., list[str]]) -> None:
    answering({"finished": None}, *[{"finished": {"folder": None, "failure": "diverged"}}] * 3)
    with pytest.raises(InputError, match="diverged"):
        tables(make(rows=("baseline",), seeds=2, processes=1 + 1))


def test_a_signal_ends_the_processes(
    make: Make, answering: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering("wait")
    select = side_by_side.selectors.DefaultSelector.select

    def signalled(selector: Any, timeout: float | None = None) -> Any:
        if (tmp_path / "waits").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return select(selector, min(timeout or 0.01, 0.01))

    monkeypatch.setattr(side_by_side.selectors.DefaultSelector, "select", signalled)
    with pytest.raises(Stopped):
        tables(make())


def test_finished_models_start_no_process(make: Make, straight: Path, answering: Callable[..., list[str]]) -> None:
    shutil.copytree(straight, make().run)
    started = answering("end")
    assert tables(make())["trained"] == []
    assert started == []


@pytest.mark.parametrize(
    ("given", "threads", "free_gb", "expected"),
    [(None, 4, 100, 4), (None, 4, 2.5, 2), (None, 4, 0.5, 1), (None, 1, 100, 1), (3, 1, 0.5, 3), (1, 4, 100, 1)],
)
def test_threads_and_memory_decide_how_many(
    make: Make, monkeypatch: pytest.MonkeyPatch, given: int | None, threads: int, free_gb: float, expected: int
) -> None:
    counts: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(side_by_side, "host_available_bytes", lambda: int(free_gb * 1e9))
    monkeypatch.setattr(side_by_side, "bytes_of_model", lambda *_: 10**9)
    chosen = train.evidence.compare.processes_for

    def counted(*arguments: Any) -> int:
        counts.append(chosen(*arguments))
        raise InputError(got="enough", expected="", do="")

    monkeypatch.setattr(train.evidence.compare, "processes_for", counted)
    with pytest.raises(InputError, match="enough"):
        tables(make(processes=given))
    assert counts == [expected]


@pytest.mark.parametrize("processes", [0, -1, True, 1.5, "2"])
def test_a_number_of_processes_that_is_none_is_refused(small_csv: Path, tmp_path: Path, processes: Any) -> None:
    from lugpi_core.corpora.load import load_corpus
    from lugpi_core.corpora.options import CorpusSettings

    corpus = load_corpus(small_csv, CorpusSettings(split_column="split"))
    with pytest.raises(InputError, match="processes"):
        compare(corpus, tmp_path, rows=("baseline",), text_model="demo", optimization=Optimization(epochs=1), processes=processes)


def test_a_process_that_is_interrupted_while_it_waits_for_a_model_ends_in_silence(start: Start) -> None:
    waiting = start("-c", WAITING)
    assert waiting.stdout.readline() == "waits\n"
    time.sleep(0.2)  # the thread that reads begins to wait
    waiting.send_signal(signal.SIGINT)
    _, told = waiting.communicate(timeout=60)
    assert "Fatal Python error" not in told
    assert told.rstrip().endswith("KeyboardInterrupt")
