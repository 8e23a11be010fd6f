"""The experiment of the tables as a benchmark: a small run on the demo, and the commands for real corpora."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import experiments, harness
from benchmarks.cli import main
from benchmarks.options import DemoOptions, RealOptions
from lugpi_core.corpora.corpus import Corpus, Example, Split
from lugpi_core.errors import InputError
from tests.support import pages


@pytest.mark.filterwarnings("ignore:--limit leaves no (train|validation|test) example:UserWarning")
def test_the_record_of_the_demo_is_what_tables_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    commands: list[Sequence[str]] = []

    def run_here(several: Sequence[Sequence[str]]) -> None:
        commands.extend(several)
        assert [pages.run(["-m", *command]) for command in several] == [0] * len(several)

    monkeypatch.setattr(experiments, "run_commands", run_here)  # in no processes of their own, which import everything again
    assert main(["demo", "--smoke", "--record", "--runs", str(tmp_path / "runs")]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = json.loads((tmp_path / "results" / printed["recorded"]).read_text())
    tables = json.loads((tmp_path / "runs" / "demo-smoke" / "tables.json").read_text())
    assert tables.pop("run") == str(tmp_path / "runs" / "demo-smoke")
    del tables["written"]
    assert record["figures"] == {"settings": "--dataset demo --text-model demo --epochs 10 --learning-rate 5e-4", **tables}
    assert [command[0] for command in commands] == ["featurize", "featurize", "train"]
    assert {"table1", "unlabelled"} <= {table["name"] for table in record["figures"]["tables"]}
    assert record["figures"]["complete"]
    assert record["figures"]["rows"]["student-none-more"]["seeds"] == [0]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sequence[Sequence[str]]]:
    """The commands that an experiment would run, by batch; each only leaves its tables."""
    commands: list[Sequence[Sequence[str]]] = []

    def run(several: Sequence[Sequence[str]]) -> None:
        commands.append(several)
        folder = Path(several[0][several[0].index("--run-dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tables.json").write_text(json.dumps({"rows": {}}))

    monkeypatch.setattr(experiments, "run_commands", run)
    monkeypatch.setattr(experiments, "minilm_folder", lambda: "minilm-folder")
    monkeypatch.chdir(tmp_path)
    return commands


def parsed(command: Sequence[str], kinds: dict[str, Any]) -> Any:
    import tyro

    return tyro.cli(kinds[command[0]], args=[word for word in command if word not in kinds and word != "tables"])


def test_real_corpora_are_trained_with_the_requested_rows(batches: list[Sequence[Sequence[str]]]) -> None:
    from featurize.options import FeaturizeOptions
    from train.options.tables import TablesOptions

    found = experiments.measure_real(
        RealOptions(corpora=("cwi-wikinews", "20ng-2000"), data_dir=Path("there"), rows=("table1", "baseline"), processes=2)
    )
    assert [result["benchmark"] for result in found.values()] == ["real-cwi-wikinews", "real-20ng-2000"]
    kinds = {"featurize": FeaturizeOptions, "train": TablesOptions}
    featurized, tabled, _, limited = [parsed(several[0], kinds) for several in batches]
    assert [parsed(command, kinds).part for command in batches[0]] == ["0/2", "1/2"]
    assert (featurized.dataset, featurized.generator, featurized.encoders, featurized.data_dir) == (
        "cwi-wikinews",
        "demo",
        ("demo",),
        Path("there"),
    )
    assert (tabled.rows, tabled.seeds, tabled.epochs, tabled.text_model) == (("table1", "baseline"), 3, 2, "minilm-folder")
    assert (limited.dataset, limited.limit, limited.max_length, limited.run_dir) == ("20ng", 2000, 64, Path("runs/20ng-2000"))
    assert [len(several) for several in batches] == [2] * 4


def test_unlabelled_texts_get_images_before_students_are_trained(batches: list[Sequence[Sequence[str]]]) -> None:
    experiments.measure_demo(DemoOptions(seeds=2))
    more, own, tables = [several[0] for several in batches]
    assert "--unlabelled" in more
    assert "--unlabelled" not in own
    assert more[more.index("--unlabelled") + 1] == tables[tables.index("--unlabelled") + 1]
    assert Path(more[more.index("--unlabelled") + 1]).is_file()
    assert tables[tables.index("--seeds") + 1] == "2"
    assert "student-none-more" in tables


def test_folds_are_compared_with_teachers_without_in_the_run_of_the_demo(batches: list[Sequence[Sequence[str]]]) -> None:
    from train.options.tables import TablesOptions

    assert experiments.measure_demo(DemoOptions(folds=5))["benchmark"] == "demo-folds5"
    tabled = parsed(batches[-1][0], {"train": TablesOptions})
    assert (tabled.folds, tabled.seeds, tabled.run_dir) == (5, 10, Path("runs/demo"))
    assert {"student-clip-demo", "student-clip-demo-folds5", "student-none-folds5", "student-none-folds5-more"} <= set(tabled.rows)


def test_what_students_keep_of_several_images_is_measured_in_a_run_of_its_own(batches: list[Sequence[Sequence[str]]]) -> None:
    from train.options.tables import TablesOptions

    found = experiments.measure_demo(DemoOptions(images_per_text=4))
    assert found["benchmark"] == "demo-images4"
    assert "--images-per-text 4" in found["figures"]["settings"]
    more, scores, own, own_scores, tables = [several[0] for several in batches]
    assert [command[:2] for command in (scores, own_scores)] == [("featurize", "score")] * 2
    assert [command[command.index("--images-per-text") + 1] for command in (more, own)] == ["4", "4"]
    assert ["--unlabelled" in command for command in (more, scores, own, own_scores, tables)] == [True, True, False, False, True]
    tabled = parsed(tables, {"train": TablesOptions})
    assert (tabled.several_images, tabled.kd_preset, tabled.ensemble, tabled.run_dir) == (
        "weighted",
        "hinton",
        3,
        Path("runs/demo-images4"),
    )
    assert {"student-clip-demo-ensemble3-more", "student-none-ensemble3-more", "student-shuffled-ensemble3-more"} <= set(tabled.rows)


def test_a_single_teacher_is_compared_with_blank_images_and_text_vectors_too(batches: list[Sequence[Sequence[str]]]) -> None:
    from featurize.options import FeaturizeOptions
    from train.options.tables import TablesOptions

    assert experiments.measure_demo(DemoOptions(images_per_text=4, ensemble=1))["benchmark"] == "demo-images4-single"
    assert parsed(batches[0][0], {"featurize": FeaturizeOptions}).encoders == ("clip-demo", "prompt-text")
    tabled = parsed(batches[-1][0], {"train": TablesOptions})
    assert tabled.ensemble is None
    students = {f"student-{kind}-more" for kind in ("clip-demo", "none", "blank", "text")}
    assert {"teacher-shuffled", "teacher-blank", "teacher-text", *students} <= set(tabled.rows)


def test_records_of_other_numbers_of_seeds_have_names_of_their_own(batches: list[Sequence[Sequence[str]]]) -> None:
    options = [DemoOptions(images_per_text=4, ensemble=1, seeds=seeds) for seeds in (None, 10, 5)]
    names = [experiments.measure_demo(one)["benchmark"] for one in options]
    assert names == ["demo-images4-single", "demo-images4-single", "demo-images4-single-seeds5"]


def test_records_of_other_numbers_of_teachers_have_names_of_their_own(batches: list[Sequence[Sequence[str]]]) -> None:
    names = [experiments.measure_demo(DemoOptions(images_per_text=4, ensemble=count))["benchmark"] for count in (None, 3, 2)]
    assert names == ["demo-images4", "demo-images4", "demo-images4-ensemble2"]
    assert "student-none-ensemble2-more" in batches[-1][0]


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(InputError, match="--images-per-text 4 and --folds 5; expected one of the two"):
        DemoOptions(images_per_text=4, folds=5)
    with pytest.raises(InputError, match="--ensemble 1 without --images-per-text"):
        DemoOptions(ensemble=1)
    with pytest.raises(InputError, match="got --ensemble 0; expected 1 or more teachers"):
        DemoOptions(images_per_text=4, ensemble=0)


def corpus_of(train: Sequence[str], test: Sequence[str] = ("tested",)) -> Corpus:
    splits: list[Split] = ["train"] * len(train) + ["test"] * len(test)
    examples = [
        Example(id=str(row), text=text, prompt=f"prompt of {text}", label=row % 2, split=split)
        for row, (text, split) in enumerate(zip((*train, *test), splits, strict=True))
    ]
    return Corpus(name="some", label_names=("no", "yes"), examples=tuple(examples), license="")


def test_unlabelled_texts_of_a_part_are_other_train_texts_with_their_prompts() -> None:
    whole = corpus_of(("a", "b", "c", "c", "d", "tested"))
    part = corpus_of(("b",))
    everything = experiments.texts_outside(part, whole, count=9)
    assert everything == [{"text": text, "prompt": f"prompt of {text}"} for text in "acd"]
    two = experiments.texts_outside(part, whole, count=2)
    assert len(two) == 2
    assert [text for text in everything if text in two] == two


def test_students_keep_what_several_images_give_on_a_part_of_a_real_corpus(
    batches: list[Sequence[Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurize.options import FeaturizeOptions
    from train.options.tables import TablesOptions

    corpora = {None: corpus_of(("a", "b", "c")), 2000: corpus_of(("b",))}
    monkeypatch.setattr(experiments, "load_corpus", lambda _, settings: corpora[settings.limit])
    found = experiments.measure_real(RealOptions(corpora=("20ng-2000",), images_per_text=4))
    assert found["20ng-2000"]["benchmark"] == "real-20ng-2000-images4"
    assert "--images-per-text 4" in found["20ng-2000"]["figures"]["settings"]
    assert found["20ng-2000"]["figures"]["unlabelled_train_texts"] == 2000
    more, scores, own, own_scores, tables = [several[0] for several in batches]
    assert [command[:2] for command in (scores, own_scores)] == [("featurize", "score")] * 2
    assert ["--unlabelled" in command for command in (more, scores, own, own_scores, tables)] == [True, True, False, False, True]
    featurized, tabled = parsed(more, {"featurize": FeaturizeOptions}), parsed(tables, {"train": TablesOptions})
    written = [json.loads(line)["text"] for line in featurized.unlabelled.read_text().splitlines()]
    assert written == ["a", "c"]
    assert (featurized.dataset, featurized.limit, featurized.prompt_column, featurized.images_per_text) == ("20ng", 2000, "prompt", 4)
    assert (tabled.unlabelled, tabled.prompt_column) == (featurized.unlabelled, "prompt")
    assert (tabled.several_images, tabled.kd_preset, tabled.temperature, tabled.seeds) == ("weighted", "hinton", 2, 3)
    assert {"teacher-clip-demo", "student-clip-demo-more", "student-none-more", "student-shuffled-more"} <= set(tabled.rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--corpora", "imdb"), "--corpora imdb"),
        (("--seeds", "0"), "--seeds 0"),
        (("--images-per-text", "1"), "got --images-per-text 1; expected 2 or more"),
    ],
)
def test_bad_input_is_one_line(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["real", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_command_that_fails_ends_the_experiment() -> None:
    with pytest.raises(InputError, match="exit status 2"):
        experiments.run_commands([("train", "no-such-command")])
