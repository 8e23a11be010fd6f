"""``featurize --ray``: the store of one process, whoever fills which shard (on a real Ray: in ``make soak`` alone); what actors answer, and
what is made of it."""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featurize import on_ray
from featurize.cli import main
from featurize.on_ray import FindShards, Finish, ShardDone, Shards, Task, load_job
from featurize.options import FeaturizeOptions
from lugpi_core.cluster.connection import Cluster, Share
from lugpi_core.cluster.crew import RayCrew, TaskResult
from lugpi_core.command_line import parse
from lugpi_core.errors import InputError
from lugpi_core.store.lease import locked, take_lease

ROWS = 16


def words(small_csv: Path, run: Path, *more: str) -> list[str]:
    own = ["--dataset", str(small_csv), "--split-column", "split", "--generator", "demo", "--encoders", "clip-demo", "--device", "cpu"]
    return [*own, "--run-dir", str(run), "--shard-rows", str(ROWS), *more]


def shards(run: Path) -> dict[str, bytes]:
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted(run.glob("tokens/*/shard-*.h5"))}


@pytest.fixture(scope="module")
def alone(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("alone")
    assert main(words(small_csv, run)) == 0
    return run


@pytest.mark.soak
def test_a_store_of_actors_is_that_of_one_process(
    small_csv: Path, alone: Path, tmp_path: Path, ray_address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    given = words(small_csv, tmp_path, "--ray", ray_address, "--ray-actors", "2")
    assert main(given) == 0
    assert shards(tmp_path) == shards(alone)
    assert len(shards(alone)) == 8, "four of each column"
    for name in ("examples.npz", "clip-demo/manifest.json"):
        assert (tmp_path / "tokens" / name).exists() == (alone / "tokens" / name).exists()
    out, err = capfd.readouterr()
    figures = json.loads(out.splitlines()[-1])
    assert (figures["complete"], figures["already_done"], figures["drawings"]) == (True, False, 60)
    assert figures["rows"]["drawn"] == 60
    assert figures["ray"] == {"actors": 2, "cpus": 1.0, "gpus": 0.0}
    assert err.count("generator demo") == 1, "what every actor says is said once"
    damaged = sorted(tmp_path.glob("tokens/clip-demo/shard-*.h5"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\1\2\3")
    assert main(given) == 0
    assert shards(tmp_path) == shards(alone)
    figures = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert figures["rows"].get("drawn", 0) == 0, "the latents are there"
    assert not figures["already_done"]
    assert not list(tmp_path.glob(".ray-*"))


def test_a_shard_that_another_command_writes_is_busy(small_csv: Path, tmp_path: Path) -> None:
    options = parse(FeaturizeOptions, words(small_csv, tmp_path), prog="featurize")
    do = load_job((options, 1))
    found = do(FindShards())
    assert dict(found.rows) == {0: 16, 1: 16, 2: 16, 3: 12}
    folder = tmp_path / "tokens" / "clip-demo"
    with locked(folder) as lock:
        lease = take_lease(folder / ".shard-00003.h5.lease", lock)
    assert do(3).is_busy
    lease.release()
    done = do(3)
    assert done.has_computed
    assert done.rows["drawn"] == 12
    assert not do(3).has_computed
    assert next(iter(do(FindShards()).rows)) == 0


class _Crew:
    """Answers tasks at once, from a list for each."""

    do = RayCrew.do

    def __init__(self, answers: dict[Task, list[Any]]) -> None:
        self._answers, self._todo = answers, deque[Task]()
        self.finished: list[Finish] = []

    @property
    def is_working(self) -> bool:
        return bool(self._todo)

    def give(self, task: Task) -> None:
        self._todo.append(task)

    def results(self) -> list[TaskResult[Task]]:
        task = self._todo.popleft()
        if isinstance(task, Finish):
            self.finished.append(task)
            return [TaskResult(task=task, value={"complete": True})]
        answer = self._answers[task].pop(0)
        return [TaskResult(task=task, failure=answer) if isinstance(answer, str) else TaskResult(task=task, value=answer)]

    def release_idle(self, *, keep: int = 0) -> None:
        assert keep == 1


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[Task, list[Any]]], tuple[dict[str, Any], _Crew]]:
    """Fill two shards by a crew that answers so; return the figures and the crew."""
    monkeypatch.setattr(on_ray, "AGAIN_S", 0.0)

    def fill(answers: dict[Task, list[Any]]) -> tuple[dict[str, Any], _Crew]:
        crew: Any = _Crew({FindShards(): [Shards(rows={0: 4, 1: 4})], **answers})
        return on_ray._fill(crew, lambda _: None), crew

    return fill


def test_answers_are_added_up(fill: Callable[..., tuple[dict[str, Any], _Crew]]) -> None:
    first = ShardDone(has_computed=True, actor="a:1", rows={"generated": 4}, seconds={"denoise": 1.0})
    second = ShardDone(has_computed=True, actor="a:1", rows={"generated": 8}, seconds={"denoise": 2.5})
    figures, crew = fill({0: [ShardDone(is_busy=True), ShardDone(is_busy=True), second], 1: [first]})
    assert crew.finished == [Finish(True)]
    assert (figures["rows"], figures["times"]) == ({"generated": 8}, {"denoise_s": 2.5}), "an actor's last answer has all it did"
    figures, crew = fill({0: [ShardDone(actor="a:1")], 1: [ShardDone(actor="b:2")]})
    assert crew.finished == [Finish(False)]


def test_a_failed_shard_leaves_the_run_incomplete(fill: Callable[..., tuple[dict[str, Any], _Crew]]) -> None:
    figures, crew = fill({0: ["3 times: the end"], 1: [ShardDone(has_computed=True)]})
    assert (figures["complete"], figures["failed_shards"], crew.finished) == (False, [0], [])
    with pytest.raises(InputError, match="got the plan of the run, which failed 3 times: the end"):
        fill({FindShards(): ["3 times: the end"]})


def test_what_an_actor_takes_follows_the_device() -> None:
    cluster = Cluster(resources=({"CPU": 4.0, "GPU": 2.0},), is_own=True)
    assert on_ray._share(cluster, "auto", None) == on_ray._share(cluster, "cuda", 9) == Share(cpus=1.0, gpus=1.0)
    assert on_ray._share(cluster, "cpu", 8) == Share(cpus=0.5)


def test_an_address_that_does_not_answer_is_refused_and_nothing_is_written(
    small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words(small_csv, run, "--ray", "127.0.0.1:1")) == 2
    told = (
        "error: got --ray 127.0.0.1:1, where nothing answers (Connection refused); expected HOST:PORT of a Ray cluster's head that answers"
    )
    assert told in capsys.readouterr().err
    assert not run.exists()


def test_a_number_of_actors_that_is_none_is_refused(small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, told in (
        (("--ray-actors", "2"), "without --ray"),
        (("--ray", "local", "--part", "0/2"), "one of them"),
        (("--ray", "local", "--ray-actors", "0"), "at least 1"),
    ):
        assert main(words(small_csv, tmp_path, *more)) == 2
        assert told in capsys.readouterr().err
