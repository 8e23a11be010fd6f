"""``python -m benchmarks models``: rows of works and refused, faults found, and a run that continues."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cli import main
from benchmarks.models.matrix import ROW, SHORT
from benchmarks.models.tiny_models import architectures


def measured(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main(["models", *flags])
    lines = capsys.readouterr().out.splitlines()
    return status, json.loads(lines[-1]) if lines else {}


def test_an_architecture_travels_from_its_folder_to_an_onnx_file(capsys: pytest.CaptureFixture[str]) -> None:
    status, result = measured(capsys, "--only", "bert")
    (row,) = result["figures"]["rows"]
    assert (status, row["fault"], row["refused"]) == (0, None, None)
    assert row["evaluated"] <= 1e-6
    assert row["exported"] <= 1e-4


@pytest.mark.soak
def test_the_short_form_has_one_architecture_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    status, result = measured(capsys, "--smoke")
    rows = {row["architecture"]: row for row in result["figures"]["rows"]}
    assert {name: row["fault"] for name, row in rows.items()} == dict.fromkeys(SHORT)
    assert status == 0
    assert all(row["refused"] is not None or row["evaluated"] <= 1e-6 for row in rows.values())
    assert rows["bert"]["exported"] <= 1e-4


def test_a_finished_row_is_not_computed_again_and_a_fault_is_an_exit_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kept = {"architecture": "bert", "classifier": "", "tokenizer": "", "refused": None, "evaluated": 0.0, "batched": 0.0}
    kept |= {"exported": 0.0, "export_refused": None, "fault": None}
    for name, fault in (("bert", None), ("t5", "IndexError")):
        (tmp_path / name).mkdir()
        (tmp_path / name / ROW).write_text(json.dumps(kept | {"fault": fault}))
    status, result = measured(capsys, "--runs", str(tmp_path), "--only", "bert")
    assert (status, result["figures"]["works"]) == (0, 1)
    status, result = measured(capsys, "--runs", str(tmp_path), "--only", "bert", "t5")
    assert (status, result["figures"]["fault"]) == (1, 1)


def test_what_is_no_architecture_and_half_a_record_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert measured(capsys, "--only", "berth")[0] == 2
    assert measured(capsys, "--smoke", "--record")[0] == 2
    assert set(SHORT) <= set(architectures())
