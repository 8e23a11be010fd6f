"""``python -m train report``: what is gathered from a run, and the page as a file: whole, of bounded size, every text escaped."""

import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lugpi_core.errors import InputError
from lugpi_core.store.example_table import ExampleTable, write_example_table
from lugpi_core.thumbnails import FOLDER, ThumbnailSource, write_thumbnails
from tests.support.small_report import BREAKOUT, HOSTILE, LABELS, corpus_of, flags, write_model, write_run
from tests.support.small_tables import PAPER_LOSS
from train.cli import main
from train.options.tools import ReportOptions
from train.report.command import content_of
from train.report.content import ReportContent
from train.report.gather import IMAGE_BYTES
from train.report.page import asset, page, policy


def content(corpus_csv: Path, run: Path, **more: Any) -> ReportContent:
    return content_of(ReportOptions(**flags(corpus_csv, run), **more))


class Outline(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_command_writes_one_file(corpus_csv: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["report", "--dataset", str(corpus_csv), "--split-column", "split", "--run-dir", str(run)]
    before = {path for path in run.rglob("*") if path.is_file()}
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    path = run / "report.html"
    assert {path} == {one for one in run.rglob("*") if one.is_file()} - before
    assert (printed["command"], printed["report"], printed["bytes"]) == ("report", str(path), path.stat().st_size)
    assert printed["shown"] == {"baseline": "baseline", "teacher": "teacher", "student": "student"}
    assert (printed["examples"], printed["pictures"], printed["models"]) == (24, 24, ["baseline", "student", "teacher"])
    first = path.read_bytes()
    assert main(words) == 0
    assert path.read_bytes() == first, "the same command writes the same page"


def test_answers_are_those_of_the_predictions(corpus_csv: Path, run: Path) -> None:
    shown, corpus = content(corpus_csv, run), corpus_of(corpus_csv)
    assert [one.row for one in shown.examples] == corpus.rows("test")
    wrong = {role: [] for role in ("baseline", "teacher", "student")}  # type: dict[str, list[int]]
    for n, one in enumerate(shown.examples):
        assert one.classes == (corpus.examples[one.row].label,)
        assert one.label == corpus.label_names[corpus.examples[one.row].label]
        for answer in one.answers:
            assert answer.is_right is (answer.answer == one.label)
            # The highest logit is 1 + row % 4, the two others 0.
            assert answer.confidence == pytest.approx(1 / (1 + 2 * np.exp(-(1.0 + one.row % 4))), rel=1e-5)
            wrong[answer.role] += [] if answer.is_right else [n]
    assert wrong == {"baseline": [0, 1, 2, 3, 4, 5], "teacher": [0, 1, 6], "student": [0, 2, 7]}
    cases = {key: [n for n, one in enumerate(shown.examples) if key in one.cases] for key in (case.key for case in shown.cases)}
    assert cases["baseline-wrong-teacher-right"] == [2, 3, 4, 5]
    assert cases["student-wrong-baseline-right"] == [7]
    assert cases["all-wrong"] == [0]
    assert cases["teacher-wrong-student-right"] == [1, 6]


def test_tables_are_those_of_the_tables_command(corpus_csv: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", str(corpus_csv), "--split-column", "split", "--run-dir", str(run)]
    assert main(["tables", *words, "--no-train", "--seeds", "1"]) == 0
    capsys.readouterr()
    wanted, shown = json.loads((run / "tables.json").read_text()), json.loads(json.dumps(content(corpus_csv, run).tables.to_json()))
    assert shown["rows"] == wanted["rows"]
    assert shown["tables"] == wanted["tables"]


def test_hostile_texts_stay_texts(corpus_csv: Path, run: Path) -> None:
    text = page(content(corpus_csv, run))
    outline = Outline(text)
    assert not [attributes for _, attributes in outline.tags if any(name.startswith("on") or name == "style" for name in attributes)]
    assert {attributes["src"][:23] for tag, attributes in outline.tags if tag == "img" and attributes["src"]} == {"data:image/webp;base64,"}
    assert [tag for tag, _ in outline.tags if tag in ("script", "iframe", "object", "embed", "base", "form", "b")] == ["script", "script"]
    whole = "".join(outline.texts)
    assert BREAKOUT in whole
    assert HOSTILE[1] in whole
    assert HOSTILE[4] in whole
    assert BREAKOUT not in text
    assert "\x01" not in text
    assert "a nul \ufffd a bell \ufffd" in whole
    assert text.count("</script") == text.count("<script") == 2
    assert text.count("</style") == 1
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert data is not None
    assert not set("<>&") & set(data[1])
    figures = json.loads(data[1])
    assert {example["answers"]["baseline"][0] for example in figures["examples"]} == set(LABELS)


def test_long_texts_are_cut_and_say_so(corpus_csv: Path, run: Path) -> None:
    shown = content(corpus_csv, run)
    cut = [one for one in shown.examples if one.text_letters > len(one.text)]
    assert {len(one.text) for one in cut} == {3000}
    assert f"{cut[0].text_letters - 3000:,} more characters" in page(shown)


def test_two_hundred_of_the_largest_examples_stay_below_10_mb(tmp_path: Path) -> None:
    path = tmp_path / "worst.csv"
    lines = [
        f'"{split} {n} {chr(34) * 2 * 10_000}",{n % 2},{split}'
        for split, count in (("train", 2), ("validation", 2), ("test", 200))
        for n in range(count)
    ]
    path.write_text("text,label,split\n" + "\n".join(lines) + "\n")
    corpus = corpus_of(path)
    write_run(tmp_path / "run", corpus, images=0)
    noise = np.random.default_rng(0).integers(256, size=(200, 128, 128, 3), dtype=np.uint8)
    source = ThumbnailSource(corpus=corpus.fingerprint(), generator="demo", notice=None)
    write_thumbnails(tmp_path / "run" / FOLDER, dict(zip(corpus.rows("test"), noise, strict=True)), source)
    shown = content(path, tmp_path / "run")
    assert len(shown.examples) == 200
    assert all(one.image is not None for one in shown.examples)
    of_most = len(page(shown).encode()) + sum(IMAGE_BYTES - len(one.image or b"") for one in shown.examples) * 4 / 3
    assert of_most < 10e6, "even if every image had the most bytes"


def test_missing_images_are_noted_with_the_command_that_adds_them(tmp_path: Path, corpus_csv: Path) -> None:
    run = tmp_path / "run"
    write_run(run, corpus_of(corpus_csv), images=10)
    shown = content(corpus_csv, run)
    assert sum(one.image is None for one in shown.examples) == 14
    (note,) = [note for note in shown.notes if "have no image" in note]
    assert note.startswith("14 of 24 examples have no image: run python -m featurize inspect --")
    assert f"--dataset {corpus_csv} --split-column split --run-dir {run} --thumbnails 200" in note
    assert html.escape(note) in page(shown)
    few = content(corpus_csv, run, examples=6)
    assert all(one.image is not None for one in few.examples), "examples with an image come first"
    shutil.rmtree(run / FOLDER)
    assert {one.image for one in content(corpus_csv, run).examples} == {None}
    assert "<img" not in page(content(corpus_csv, run))


def test_images_of_another_corpus_are_left_out_with_the_reason(corpus_csv: Path, run: Path) -> None:
    index = json.loads((run / FOLDER / "index.json").read_text())
    (run / FOLDER / "index.json").write_text(json.dumps({**index, "corpus": "another"}))
    shown = content(corpus_csv, run)
    assert {one.image for one in shown.examples} == {None}
    assert any("images of another corpus" in note for note in shown.notes)


@pytest.mark.parametrize(("generator", "is_blurred"), [("fast", True), ("demo", False)])
def test_images_are_blurred_unless_the_demo_generator_drew_them(tmp_path: Path, corpus_csv: Path, generator: str, is_blurred: bool) -> None:
    write_run(tmp_path / "run", corpus_of(corpus_csv), generator=generator)
    shown = content(corpus_csv, tmp_path / "run")
    assert shown.is_blurred is is_blurred
    assert ('class="image blurred"' in page(shown), 'id="reveal"' in page(shown)) == (is_blurred, is_blurred)


def test_flags_are_those_of_the_store(corpus_csv: Path, run: Path) -> None:
    assert any("is not known: got no token store" in note for note in content(corpus_csv, run).notes)
    corpus = corpus_of(corpus_csv)
    cut = np.zeros(len(corpus.examples), np.bool_)
    cut[corpus.rows("test")[3]] = True
    drawings = np.arange(len(corpus.examples))[:, None]
    (run / "tokens").mkdir()
    write_example_table(run / "tokens", corpus, ExampleTable(drawings=drawings, prompt_cut=cut, corpus_fingerprint=corpus.fingerprint()))
    shown = content(corpus_csv, run)
    assert not any("not known" in note for note in shown.notes)
    assert [one.flags for one in shown.examples[2:5]] == [(), ("prompt cut",), ()]


def test_a_student_is_only_compared_with_a_baseline_of_its_seed(corpus_csv: Path, run: Path) -> None:
    corpus = corpus_of(corpus_csv)
    write_model(run, "blind", corpus, {2: 1}, command="teacher", privileged="none", image_tokens=None, seed=7)
    more = {"distillation": PAPER_LOSS, "layers": None, "unlabelled": None, "shares": [1.0]}
    write_model(run, "other", corpus, {3: 1}, command="student", teacher_names=["blind"], seed=7, **more)
    assert [one.name for one in content(corpus_csv, run, student="other").models] == ["blind", "other"]


def test_a_chosen_student_is_shown_with_models_of_its_seed(corpus_csv: Path, run: Path) -> None:
    corpus = corpus_of(corpus_csv)
    write_model(run, "baseline-seed1", corpus, {1: 1}, command="baseline", seed=1)
    write_model(run, "blind", corpus, {2: 1}, command="teacher", privileged="none", image_tokens=None, seed=1)
    more = {"layers": None, "unlabelled": None, "shares": [1.0], "distillation": PAPER_LOSS}
    write_model(run, "other", corpus, {3: 1}, command="student", teacher_names=["blind"], seed=1, **more)
    assert [one.name for one in content(corpus_csv, run).models] == ["baseline", "teacher", "student"]
    assert [one.name for one in content(corpus_csv, run, student="other").models] == ["baseline-seed1", "blind", "other"]
    with pytest.raises(InputError, match="--student baseline; expected one of other, student"):
        content(corpus_csv, run, student="baseline")


def test_students_on_unlabelled_texts_have_their_table(corpus_csv: Path, run: Path) -> None:
    more = {"layers": None, "unlabelled": "abc", "shares": [1.0], "distillation": PAPER_LOSS}
    assert "more texts" not in page(content(corpus_csv, run)).lower()
    write_model(run, "with-more", corpus_of(corpus_csv), {3: 1}, command="student", teacher_names=["teacher"], **more)
    shown = page(content(corpus_csv, run))
    assert "More texts" in shown
    assert "student-clip-demo-more" in shown
    ledes = re.findall(r'<p class="lede">(\S+): ', shown)
    assert ledes == ["student-clip-demo", "student-clip-demo-more"]  # both come first, each with its own control
    assert [one.name for one in content(corpus_csv, run).models] == ["baseline", "teacher", "student"]


def test_scores_are_the_sum_of_their_sources(corpus_csv: Path, run: Path) -> None:
    corpus = corpus_of(corpus_csv)
    assert content(corpus_csv, run).sources == (), "without controls nothing is known of the images"
    assert "comes from" not in page(content(corpus_csv, run))
    write_model(run, "teacher-none", corpus, {0: 1, 1: 2, 6: 1, 8: 1}, command="teacher", privileged="none", image_tokens=None)
    shown = content(corpus_csv, run)
    (source,) = shown.sources
    # Of 24 test examples the baseline has 6 wrong, the control 4, the teacher 3.
    assert (source.row, source.method, source.is_shown) == ("teacher-clip-demo", "larger head", False)
    assert [source.baseline, source.without_images, source.images] == pytest.approx([18 / 24, 2 / 24, 1 / 24])
    assert source.score == pytest.approx(21 / 24)
    assert source.interval[0] <= source.images <= source.interval[1]
    assert "Where the test accuracy comes from" in page(shown)


def test_sources_of_a_score_are_of_the_same_seeds(corpus_csv: Path, run: Path) -> None:
    """The means of the tables are over every seed of a row, also over those that its control lacks."""
    corpus = corpus_of(corpus_csv)
    write_model(run, "teacher-none", corpus, {0: 1, 1: 2, 6: 1, 8: 1}, command="teacher", privileged="none", image_tokens=None)
    write_model(run, "baseline-seed1", corpus, dict.fromkeys(range(12), 1), command="baseline", seed=1)
    teacher = {"command": "teacher", "privileged": "images", "image_tokens": "clip-demo", "seed": 1}
    write_model(run, "teacher-seed1", corpus, dict.fromkeys(range(9), 1), **teacher)
    (source,) = content(corpus_csv, run).sources
    assert [source.baseline, source.without_images, source.images] == pytest.approx([18 / 24, 2 / 24, 1 / 24])
    write_model(run, "teacher-none-seed1", corpus, {0: 1}, command="teacher", privileged="none", image_tokens=None, seed=1)
    shutil.rmtree(run / "baseline-seed1")
    shown = content(corpus_csv, run)
    assert shown.sources == ()
    assert any(note.startswith("teacher-clip-demo: the baseline lacks seeds") for note in shown.notes)


@pytest.mark.parametrize(
    ("gone", "roles"),
    [
        (("student",), ["baseline", "teacher"]),
        (("teacher",), ["baseline", "student"]),
        (("baseline",), ["teacher", "student"]),
        (("teacher", "student"), ["baseline"]),
    ],
)
def test_models_that_are_there_are_shown(corpus_csv: Path, run: Path, gone: tuple[str, ...], roles: list[str]) -> None:
    for name in gone:
        shutil.rmtree(run / name)
    shown = content(corpus_csv, run)
    assert [one.role for one in shown.models] == roles
    text = page(shown)
    assert ('id="changes"' in text) == ({"baseline", "student"} <= set(roles))
    assert 'id="examples"' in text


def test_runs_without_models_or_of_another_corpus_are_errors(
    tmp_path: Path, corpus_csv: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", "--dataset", str(corpus_csv), "--split-column", "split"]
    assert main([*words, "--run-dir", str(tmp_path / "nothing")]) == 2
    assert re.fullmatch(r"error: got no finished model in .*; expected .*; train them first .*\n", capsys.readouterr().err)
    corpus_csv.write_text(corpus_csv.read_text().replace("test 3:", "test three:"))
    assert main([*words, "--run-dir", str(run)]) == 2, "another text of the same number"
    assert re.match(r"error: got .*trained on hostile with other texts, labels or splits; expected models of", capsys.readouterr().err)
    assert not list(run.glob("report.html"))
    assert main([*words, "--run-dir", str(run), "--examples", "501"]) == 2


def test_many_classes_have_lists_instead_of_charts(corpus_csv: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page(content(corpus_csv, run))
    monkeypatch.setattr("train.report.page.MOST_IN_A_MATRIX", 2)
    monkeypatch.setattr("train.report.page.MOST_CHANGES", 2)
    short = page(content(corpus_csv, run))
    assert (whole.count('class="worst"'), short.count('class="worst"')) == (3, 3)
    assert ("Confusion matrix of the teacher" in whole, "Confusion matrix of the teacher" in short) == (True, False)
    assert "The 2 classes with the greatest differences are shown." in short
    assert (whole.count('class="repaired"'), short.count('class="repaired"')) == (3, 2)


def test_the_policy_names_style_and_script() -> None:
    style, script = asset("page.css"), asset("page.js")
    assert "</" not in style
    assert "</script" not in script
    assert "innerHTML" not in script
    wanted = policy(style, script)
    assert wanted.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert policy(style, f"{script} ") != wanted
