"""Teachers of one kind: what their ensemble answers, how far they agree, and whether they look at the same image tokens."""

import json
import math
import shutil
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import softmax

from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.runtime.device import resolve_compute
from tests.support.small_tables import fake_model, fake_teacher, flags, scores
from train.evidence.attention import attention_overlap, chance_overlap, top_overlap
from train.evidence.diversity import diversity_table
from train.evidence.records import AttentionFigures
from train.evidence.row_figures import scored
from train.evidence.tables import tables
from train.learning.networks import FusionHead
from train.models.commands import teacher
from train.options.tables import TablesOptions
from train.options.tools import ReportOptions
from train.options.training import TeacherOptions
from train.report.command import content_of
from train.report.page import page


@pytest.mark.parametrize(("tokens", "top"), [(5, 1), (6, 2), (7, 4), (4, 4)])
def test_chance_is_the_mean_over_all_draws(tokens: int, top: int) -> None:
    sets = [set(chosen) for chosen in combinations(range(tokens), top)]
    expected = np.mean([len(one & other) / len(one | other) for one in sets for other in sets])
    assert chance_overlap(tokens, top) == pytest.approx(expected)


def test_chance_of_many_tokens_is_near_to_q_over_2_less_q() -> None:
    assert chance_overlap(10_000, 2_000) == pytest.approx(0.2 / 1.8, rel=1e-3)


def test_the_overlap_is_that_of_the_top_tokens_by_hand() -> None:
    first = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    second = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.0, 0.1, 0.5, 0.4]])
    third = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.5, 0.4]])
    # Top two, by text: first 01, 23; second 02, 23; third 23, 23.
    pairs = [(1 / 3 + 1) / 2, (0 + 1) / 2, (1 / 3 + 1) / 2]
    assert top_overlap(torch.stack([first, second]), 2) == pytest.approx(pairs[0])
    assert top_overlap(torch.stack([first, second, third]), 2) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("class_at", [None, [3, 2]])
def test_attention_is_that_of_both_class_tokens_by_the_formula(class_at: list[int] | None) -> None:
    torch.manual_seed(0)
    head = FusionHead(text_width=16, image_width=24, classes=3).eval()
    images, texts = torch.randn(2, 6, 24), torch.randn(2, 4, 16)
    padding = torch.tensor([[False] * 4, [False, False, False, True]])
    positions = None if class_at is None else torch.tensor(class_at)
    found = head.image_attention(images, texts, padding, positions).detach().numpy()
    tokens = torch.cat([texts, head.project(images)], dim=1).detach().numpy()
    query_weight, key_weight, _ = head.block.self_attn.in_proj_weight.detach().numpy().reshape(3, 16, 16)
    query_bias, key_bias, _ = head.block.self_attn.in_proj_bias.detach().numpy().reshape(3, 16)
    for text in range(2):
        queries, keys = tokens[text] @ query_weight.T + query_bias, tokens[text] @ key_weight.T + key_bias
        if text == 1:
            keys = np.delete(keys, 3, axis=0)
        first_image = 4 if text == 0 else 3
        by_query = []
        for position in (0 if class_at is None else class_at[text], 4):
            heads = [slice(2 * number, 2 * number + 2) for number in range(8)]
            by_query += [softmax(queries[position, part] @ keys[:, part].T / math.sqrt(2))[first_image:] for part in heads]
        np.testing.assert_allclose(found[text], np.mean(by_query, axis=0), rtol=1e-5)


def test_the_ensembles_figures_are_those_of_the_mean_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_model(tmp_path, "baseline", scores(300), command="baseline")
    for seed, count in enumerate((320, 280, 300)):
        tail = f"-seed{seed}" if seed else ""
        fake_teacher(tmp_path, f"teacher-clip-demo{tail}", scores(count, first=10 * seed), seed=seed)
    fake_teacher(tmp_path, "teacher-none", scores(300), privileged="none")
    report = tables(TablesOptions(dataset="topics.csv", run_dir=tmp_path, train=False, rows=("table1", "controls"), seeds=3))
    capsys.readouterr()
    tests = [scored(tmp_path / f"teacher-clip-demo{tail}").test for tail in ("", "-seed1", "-seed2")]
    answers = [one.logits.argmax(axis=1) for one in tests]
    together = np.mean([softmax(one.logits, axis=1) for one in tests], axis=0).argmax(axis=1)
    (row,) = report["diversity"]["rows"]
    assert (row["row"], row["teachers"]) == ("teacher-clip-demo", 3), "a single teacher has no ensemble"
    assert row["score"] == pytest.approx(300 / 400)
    assert row["together"] == pytest.approx((together == tests[0].labels).mean())
    assert row["agreement"] == pytest.approx(np.mean([(one == other).mean() for one, other in combinations(answers, 2)]))
    assert row["with_all"] == pytest.approx(np.mean([(one == together).mean() for one in answers]))
    assert row["attention"] is None
    for kind in ("md", "tex"):
        assert report["diversity"]["title"] in (tmp_path / f"tables.{kind}").read_text()
    assert "attention IoU" not in (tmp_path / "tables.md").read_text()


def test_of_several_ensembles_the_first_is_looked_at(tmp_path: Path) -> None:
    names = [f"teacher-clip-demo-{n}" for n in range(4)]
    teachers = [scored(fake_teacher(tmp_path, name, scores(300), seed=n)) for n, name in enumerate(names)]
    seen: list[list[str]] = []

    def attend(folders: Sequence[Path]) -> AttentionFigures:
        seen.append([folder.name for folder in folders])
        return AttentionFigures(iou=0.5, chance=0.1, on_images=0.2, top=1, tokens=5, texts=3)

    table = diversity_table({"both": [teachers[:2], teachers[2:]]}, attend)
    assert seen == [names[:2]]
    assert (table.rows[0].groups, table.rows[0].folders) == (2, tuple(names[:2]))
    assert "pairs, of several ensembles those of the first" in table.caption


@pytest.fixture(scope="module")
def run(small_csv: Path, small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher of CLIP tokens, and one of another seed, whose block attends by other weights."""
    folder = tmp_path_factory.mktemp("attention") / "topics"
    shutil.copytree(small_run / "tokens", folder / "tokens")
    teacher(TeacherOptions(**flags(small_csv, folder, image_tokens="clip-demo", name="teacher-clip-demo")))
    copy: Any = shutil.copytree(folder / "teacher-clip-demo", folder / "teacher-clip-demo-seed1")
    for name in ("training.json", "metrics.json"):
        record = json.loads((copy / name).read_text())
        record.get("flags", record)["seed"] = 1
        (copy / name).write_text(json.dumps(record))
    weights = load_file(copy / "model.safetensors")
    torch.manual_seed(0)
    weights["head.block.self_attn.in_proj_weight"] = torch.randn_like(weights["head.block.self_attn.in_proj_weight"])
    save_file(weights, copy / "model.safetensors")
    return folder


def test_tables_show_whether_teachers_look_at_the_same(run: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = {"train": False, "rows": ("teacher-clip-demo",), "seeds": 2, "attention": True}
    report = tables(TablesOptions(dataset=str(small_csv), split_column="split", run_dir=run, device="cpu", **only))
    assert "not compared" not in capsys.readouterr().err
    seen = report["diversity"]["rows"][0]["attention"]
    assert seen["texts"] == 12
    assert seen["top"] == round(seen["tokens"] / 5)
    assert seen["chance"] == chance_overlap(seen["tokens"], seen["top"])
    assert 0 <= seen["iou"] < 0.9
    assert 0 < seen["on_images"] < 1
    line = next(line for line in (run / "tables.md").read_text().splitlines() if f" {seen['chance']:.4f} " in line)
    assert [cell.strip() for cell in line.split("|")][7:10] == [f"{seen[name]:.4f}" for name in ("iou", "chance", "on_images")]


def test_the_page_shows_what_teachers_of_one_kind_look_at_while_they_are_the_same(
    run: Path, small_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "topics", ignore=shutil.ignore_patterns("attention.json")))
    own: Any = {"dataset": str(small_csv), "split_column": "split", "run_dir": folder}

    def page_and_notes() -> tuple[str, list[str]]:
        content = content_of(ReportOptions(**own))
        return page(content), [note for note in content.notes if "attention" in note]

    shown, notes = page_and_notes()
    assert "Teachers of one kind" in shown
    assert (shown.count("attention IoU"), notes) == (0, []), "nobody has computed it"
    figures = {"train": False, "rows": ("teacher-clip-demo",), "device": "cpu"}
    seen = tables(TablesOptions(**own, **figures, seeds=2, attention=True))["diversity"]["rows"][0]["attention"]
    shown, notes = page_and_notes()
    assert notes == []
    assert f"<td>{seen['iou']:.4f}</td>" in shown
    tables(TablesOptions(**own, **figures, seeds=1, attention=True))
    assert page_and_notes() == (shown, []), "what another command recorded stays"

    record = folder / "attention.json"
    again = "run python -m train tables --attention again (with --no-train, nothing is trained)"
    answers = folder / "teacher-clip-demo-seed1" / "predictions.csv"
    text = answers.read_text().rstrip("\n")
    answers.write_text(text[:-1] + ("1" if text[-1] != "1" else "2") + "\n")
    shown, notes = page_and_notes()
    assert "attention IoU" not in shown
    assert notes == [f"the attention of teacher-clip-demo is not shown: {record} is of other teachers than the run's; {again}"]
    record.write_text('{"rows": []}')
    assert page_and_notes()[1] == [f"the attention of teachers is not shown: {record} is damaged; {again}"]
    tables(TablesOptions(**own, **figures, seeds=2, attention=True))
    assert page_and_notes()[1] == []
    capsys.readouterr()


def test_one_teacher_has_nothing_to_be_compared_with(run: Path, small_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own: Any = {"dataset": str(small_csv), "split_column": "split", "run_dir": run, "device": "cpu", "train": False}
    tables(TablesOptions(**own, rows=("teacher-clip-demo",), seeds=1, attention=True))
    assert "warning: --attention has no effect: no row that is shown has two teachers" in capsys.readouterr().err


def test_teachers_of_equal_weights_look_at_the_same(run: Path, small_csv: Path) -> None:
    corpus = load_corpus(str(small_csv), CorpusSettings(split_column="split"))
    compute = resolve_compute("cpu", "float32", half="bfloat16")
    same = attention_overlap([run / "teacher-clip-demo"] * 2, corpus, compute)
    assert same is not None
    assert same.iou == 1
