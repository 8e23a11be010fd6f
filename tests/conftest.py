"""What every test needs: no hub, one thread, its tier, and the fixtures that several folders share."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings

from lugpi_core.runtime.libraries import prepare_libraries, without_garbage_collection
from tests.support.checkout import ROOT, Command, Start
from tests.support.topics import topic_texts

if TYPE_CHECKING:
    from featurize.encode.encoder_files import Choice, EncoderFiles
    from tests.support.faulty_store import FaultyStore
    from tests.support.fork_server import ForkServer, Process
    from tests.support.s3_server import S3Server

# The same examples every time; hypothesis measures no time. It also tries the constants of whatever modules are imported, and counts those
# that a test cannot take, such as floats that are no float16.
_SAME = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.register_profile("suite", _SAME, max_examples=30)
settings.register_profile("soak", _SAME, max_examples=500)

os.environ["HF_HUB_OFFLINE"] = "1"
# One thread per process, ours and torch's (before it is imported): with more, two processes on two cores wait for each other, and two
# threads for models this small longer than they compute.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell ignores SIGINT in background jobs, and so would the tests, which send it to themselves, and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
# No test cuts the power: what a run syncs, thirty times, need not reach the disk. Tests count these calls and let them fail.
os.fsync = os.fdatasync = lambda descriptor: None
# Before collection: some test modules import transformers or open_clip themselves.
prepare_libraries()

# Folders that run whole commands, documents, benchmarks or fault campaigns. Every other test is a unit test.
WHOLE = {"benchmarks", "dev", "docs", "end_to_end", "soak"}
_FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples properties are tried on."""
    settings.load_profile("soak" if config.getoption("--soak") else "suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--soak``, which ``make soak`` gives."""
    parser.addoption("--soak", action="store_true", help="only what has a long form, in that form (make soak)")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Look for no garbage in what is imported and collected: two million objects, which all stay until the end.

    One look at them takes 1.4 s, and training looks between models.
    """
    with without_garbage_collection():
        result = yield
    gc.freeze()
    return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with the tier of its folder; a test that runs commands in their own processes belongs to the upper tier anywhere.

    Tests that are marked ``soak`` are left out without ``--soak``; with it, all that have no long form are.
    """
    is_soak = bool(config.getoption("--soak"))
    chosen = [item for item in items if (_has_long_form(item) if is_soak else item.get_closest_marker("soak") is None)]
    config.hook.pytest_deselected(items=list(set(items) - set(chosen)))
    items[:] = chosen
    for item in items:
        is_whole = item.path.relative_to(ROOT / "tests").parts[0] in WHOLE
        starts_commands = isinstance(item, pytest.Function) and any(kind in (Command, Start) for kind in item.obj.__annotations__.values())
        item.add_marker("whole" if is_whole or starts_commands else "unit")
        if "s3" in getattr(
            item, "fixturenames", ()
        ):  # aiohttp leaves the connections of a server that was stopped to the garbage collector
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"))


def _has_long_form(item: pytest.Item) -> bool:
    """Whether a test belongs to ``make soak``: the fault campaigns, what is marked, and properties, which are tried on more examples."""
    is_counted = isinstance(item, pytest.Function) and ("campaign" in item.fixturenames or is_hypothesis_test(item.obj))
    return is_counted or item.get_closest_marker("soak") is not None or item.path.parent == ROOT / "tests" / "soak"


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Nor is garbage looked for in what the tests before have imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _embedded_encoders_are_found_once(request: pytest.FixtureRequest, found_encoders: "dict[object, EncoderFiles]") -> Iterator[None]:
    """Build and run the embedded encoders, to find out how many tokens they have, once and not for each run of featurize; but where
    finding encoders is what is tested."""
    place = request.path.relative_to(ROOT / "tests").parts
    if place[0] not in ("featurize", "soak") or place[1] == "encode":
        yield
        return
    from featurize.encode import encoders
    from lugpi_core.runtime.pretrained import EMBEDDED_FOLDER

    find = encoders._from_folder

    def from_folder(name: str, folder: Path, choice: "Choice") -> "EncoderFiles":
        if not folder.is_relative_to(EMBEDDED_FOLDER):
            return find(name, folder, choice)
        if (name, folder, choice) not in found_encoders:
            found_encoders[name, folder, choice] = find(name, folder, choice)
        return found_encoders[name, folder, choice]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "_from_folder", from_folder)
        yield


@pytest.fixture(scope="session")
def found_encoders() -> "dict[object, EncoderFiles]":
    """The embedded encoders by name, folder and choice."""
    return {}


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """``campaign(short, long)``: how many rounds a fault campaign runs, ``long`` in ``make soak`` and ``short`` elsewhere."""
    soak = bool(request.config.getoption("--soak"))
    return lambda short, long: long if soak else short


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Keep a line of figures, such as what a campaign counted, for the end of the run."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the campaigns' figures, in soak runs only."""
    figures = config.stash.get(_FIGURES, [])
    if figures and config.getoption("--soak"):
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def fork_server() -> "Iterator[ForkServer]":
    """What has imported the libraries for all commands."""
    from tests.support.fork_server import ForkServer

    server = ForkServer()
    yield server
    server.stop()


@pytest.fixture
def start(fork_server: "ForkServer") -> Iterator[Start]:
    """Start ``python …`` (such as ``-m train …`` or ``-c …``) from the checkout in its own process, without waiting; what still runs at the
    end is killed."""
    children: list[Process] = []

    def run(*arguments: str | Path) -> "Process":
        children.append(fork_server.start(*arguments))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def command(start: Start) -> Command:
    """Run ``python -m …`` from the checkout in its own process and wait for it."""

    def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        child = start("-m", *arguments)
        out, err = child.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, child.wait(), out, err)

    return run


@pytest.fixture(scope="session")
def new_command() -> Command:
    """Run ``python …`` from the checkout as a user would: the process imports what it needs itself, which takes seconds."""

    def run(*arguments: str | Path, timeout_s: float = 240) -> "subprocess.CompletedProcess[str]":
        words, environment = [sys.executable, *map(str, arguments)], {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)

    return run


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a Ray of three CPUs. It belongs to a process of its own: some tests fork this one, which Ray's threads would not
    survive."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # no token is written to the home folder
    os.environ["PYTHONPATH"] = str(ROOT)  # of its workers
    code = (
        "import sys, ray\n"
        "ray.init(address='local', num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.fixture(scope="session")
def small_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's corpus: 60 texts, three classes, splits by column."""
    path = tmp_path_factory.mktemp("csv") / "topics.csv"
    splits = ["train"] * 36 + ["validation"] * 12 + ["test"] * 12
    lines = [f"{text},{label},{split}" for (text, label), split in zip(topic_texts(60), splits, strict=True)]
    path.write_text("text,label,split\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def small_run(small_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the complete token store of ``small_csv`` (both demo encoders). Tests must not change the store."""
    from featurize.options import FeaturizeOptions
    from featurize.run import featurize_command

    run = tmp_path_factory.mktemp("runs") / "topics"
    featurize_command(
        FeaturizeOptions(dataset=str(small_csv), split_column="split", generator="demo", encoders=("demo",), run_dir=run, shard_rows=32)
    )
    return run


@pytest.fixture
def faulty_store(monkeypatch: pytest.MonkeyPatch) -> "Iterator[type[FaultyStore]]":
    """An empty ``memory://`` whose requests can be made to fail; nothing waits before a further try."""
    import fsspec

    from tests.support.faulty_store import FaultyStore

    plain = fsspec.get_filesystem_class("memory")
    fsspec.register_implementation("memory", FaultyStore, clobber=True)
    monkeypatch.setattr("lugpi_core.remote.folder.PAUSES_S", (0.0, 0.0, 0.0))
    FaultyStore.reset()
    yield FaultyStore
    FaultyStore.reset()
    fsspec.register_implementation("memory", plain, clobber=True)


@pytest.fixture
def s3(s3_server: "S3Server") -> "Iterator[S3Server]":
    """An S3 server on loopback, which this process and its children find in the environment."""
    from lugpi_core.remote import run

    yield s3_server
    run._remote.cache_clear()
    gc.collect()


@pytest.fixture(scope="session")
def s3_server() -> "Iterator[S3Server]":
    """The server of all tests."""
    from tests.support.s3_server import S3Server, restore_environment, set_environment

    server = S3Server()
    before = set_environment(server.environment)
    yield server
    restore_environment(before)
    server.stop()
