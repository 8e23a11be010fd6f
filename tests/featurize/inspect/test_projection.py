"""``featurize reduce``: components are those of the formula, fitted on train images alone; rows are continued, healed and never mixed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from featurize.cli import main
from featurize.inspect.projection import fit_basis, reduce_column
from featurize.maintain import verify
from featurize.options import VerifyOptions
from lugpi_core.corpora.load import load_corpus
from lugpi_core.corpora.options import CorpusSettings
from lugpi_core.errors import InputError
from lugpi_core.store.clip_scores import columns_with_text_tower
from lugpi_core.store.layout import BASIS, CANDIDATES, LATENTS, PROMPT_TEXT
from lugpi_core.store.manifest import load_manifest
from lugpi_core.store.reader import ColumnReader
from lugpi_core.store.sealed_file import read_sealed, write_sealed
from lugpi_core.store.token_store import TokenStore
from lugpi_core.store.verify import check_store
from lugpi_core.store.virtual_view import write_view
from tests.support.planted_store import Planted, plant, plant_column, write_table
from tests.support.shards import shard_file

T, D, NEW = 3, 12, 4


def _tokens(count: int) -> NDArray[np.float16]:
    rng = np.random.default_rng(0)
    scales = np.geomspace(3, 0.1, D)
    return (rng.normal(size=(count, T, D)) * scales @ np.linalg.qr(rng.normal(size=(D, D)))[0] + 0.5).astype(np.float16)


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    found = plant(tmp_path / "planted", counts=(90, 30, 30))
    encoder = {"name": "wide", "family": "open_clip", "weights": "f00d", "prefix": 2, "stored_as": "float16"}
    fingerprint = {"generation": {"seed": 0}, "encoder": encoder}
    plant_column(found, "wide", _tokens(150), flagged=(5, 100), fingerprint=fingerprint, made_by={"encoders": ["wide"]})
    write_view(found.run_dir / "tokens")
    return found


def _command(planted: Planted, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, object], str]:
    capsys.readouterr()
    status = main(["reduce", *planted.flags[:-2], *flags])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else {}, captured.err


def test_components_are_those_of_the_train_tokens(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    status, figures, printed = _command(planted, capsys, "--pca", str(NEW))
    assert (status, figures["column"], figures["rows"], figures["bytes_per_image"]) == (0, "wide-pca4", 150, [2 * T * NEW, 2 * T * D])
    store = planted.run_dir / "tokens"
    tokens, good = _tokens(150).astype(np.float64), np.setdiff1d(np.arange(150), [5, 100])
    train = np.intersect1d(planted.drawing[list(planted.corpus.rows("train"))], good)
    fitted = tokens[train].reshape(-1, D)
    values, vectors = np.linalg.eigh(np.cov(fitted.T, bias=True))
    expected = (tokens - fitted.mean(axis=0)) @ vectors[:, ::-1][:, :NEW]
    reader = ColumnReader(store, "wide-pca4")
    found = reader.gather(range(150)).astype(np.float64)
    signs = np.sign((found[good] * expected[good]).sum(axis=(0, 1)))
    assert np.abs(found[good] - signs * expected[good]).max() <= 1e-2
    assert figures["variance"] == pytest.approx(values[::-1][:NEW].sum() / values.sum(), rel=1e-6)
    assert not found[[5, 100]].any()
    assert reader.flagged == ColumnReader(store, "wide").flagged
    assert f"done: {store / 'wide-pca4'}, 24 bytes an image in place of 72; " in printed
    assert [finding.kind for finding in check_store(store, deep=True)] == ["flagged"] * 4, "and the view is whole"
    spec, _ = load_manifest(store / "wide-pca4")
    assert (spec.fingerprint["generation"], spec.fingerprint["encoder"]["prefix"]) == ({"seed": 0}, 2)
    assert columns_with_text_tower(store, ["wide", "wide-pca4"]) == ["wide"], "components are not what a text is compared with"
    assert TokenStore(store)["wide-pca4"].shape == (150, T, NEW)
    assert _command(planted, capsys, "--pca", str(NEW), "--column", "wide")[1]["rows"] == 0


def test_texts_without_an_image_are_left_out_of_the_basis(planted: Planted) -> None:
    store, without = planted.run_dir / "tokens", tuple(range(0, 90, 2))
    write_table(store, planted.corpus, without)
    train = np.setdiff1d(planted.corpus.rows("train"), [*without, 5, 100])
    values = np.linalg.eigvalsh(np.cov(_tokens(150).astype(np.float64)[train].reshape(-1, D).T, bias=True))
    assert reduce_column(store, planted.corpus, components=NEW).variance == pytest.approx(values[::-1][:NEW].sum() / values.sum(), rel=1e-6)


def test_axes_are_orthonormal_and_their_sign_is_fixed() -> None:
    basis = fit_basis(iter([_tokens(40), _tokens(60)[40:]]), D, NEW)
    assert np.abs(basis.axes_Dd.T @ basis.axes_Dd - np.eye(NEW)).max() <= 1e-5
    assert (basis.axes_Dd[np.abs(basis.axes_Dd).argmax(axis=0), range(NEW)] > 0).all()
    assert fit_basis(iter([_tokens(40), _tokens(60)[40:]]), D, NEW).digest == basis.digest
    with pytest.raises(InputError, match=r"got --pca 4 of tokens that differ in 2 directions; .*; give fewer"):
        fit_basis(iter([_tokens(1)]), D, NEW)


def test_damaged_and_healed_rows_are_computed_again_and_no_others(planted: Planted) -> None:
    store = planted.run_dir / "tokens"
    reduce_column(store, planted.corpus, components=NEW)
    before = ColumnReader(store, "wide-pca4").gather(range(150))
    shard_file(store / "wide-pca4", 1).unlink()
    with pytest.raises(InputError, match=r"wide-pca4, components of .*; run python -m featurize reduce again"):
        verify(VerifyOptions(dataset=str(planted.table), run_dir=planted.run_dir, repair=True))
    shutil.rmtree(store / "wide")
    fingerprint = {"generation": {"seed": 0}, "encoder": load_manifest(store / "wide-pca4")[0].fingerprint["encoder"]}
    plant_column(planted, "wide", _tokens(150), flagged=(100,), fingerprint=fingerprint)  # row 5 was repaired
    again = reduce_column(store, planted.corpus, components=NEW, column="wide")
    assert again.rows == 64 + 1
    after = ColumnReader(store, "wide-pca4")
    assert after.flagged.keys() == {100}
    rows = after.gather(range(150))
    assert rows[5].any()
    assert np.array_equal(np.delete(rows, 5, axis=0), np.delete(before, 5, axis=0))


def test_other_texts_take_the_basis_of_the_corpus(planted: Planted, tmp_path: Path) -> None:
    store, other = planted.run_dir / "tokens", planted.run_dir / "tokens-more"
    shutil.copytree(store, other)
    with pytest.raises(InputError, match=r"got no wide-pca4 in .*; run python -m featurize reduce for the corpus first"):
        reduce_column(other, planted.corpus, components=NEW, basis_from=store)
    reduce_column(store, planted.corpus, components=NEW)
    reduce_column(other, planted.corpus, components=NEW, basis_from=store)
    assert (other / "wide-pca4" / BASIS).read_bytes() == (store / "wide-pca4" / BASIS).read_bytes()
    same = [load_manifest(one / "wide-pca4")[0].fingerprint for one in (store, other)]
    assert same[0] == same[1]


def test_a_basis_of_other_train_texts_is_not_taken(planted: Planted) -> None:
    """What was fitted on the test images of the corpus as it is split now must not pass for a basis of its train images."""
    store = planted.run_dir / "tokens"
    folder = store / "wide-pca4"
    reduce_column(store, planted.corpus, components=NEW)
    split_anew = load_corpus(planted.table, CorpusSettings(prompt_column="picture", split_seed=1))
    write_table(store, split_anew, ())
    with pytest.raises(
        InputError, match=rf"fitted on other train texts; .*; remove the folder {folder} and run python -m featurize reduce"
    ):
        reduce_column(store, split_anew, components=NEW)
    write_table(store, planted.corpus, (0,))
    with pytest.raises(InputError, match="fitted on other train texts"):
        reduce_column(store, planted.corpus, components=NEW)
    about, arrays = read_sealed(folder / BASIS)

    def build(file: Any) -> None:
        file["mean"], file["axes"] = arrays["mean"], arrays["axes"]

    write_sealed(folder / BASIS, {"variance": about["variance"]}, build)  # as earlier versions did
    assert reduce_column(store, planted.corpus, components=NEW).rows == 0
    shutil.rmtree(folder)
    assert reduce_column(store, planted.corpus, components=NEW).rows == 150


def test_a_damaged_basis_is_found_and_fitted_again(planted: Planted) -> None:
    store = planted.run_dir / "tokens"
    reduce_column(store, planted.corpus, components=NEW)
    basis = store / "wide-pca4" / BASIS
    before = basis.read_bytes()
    basis.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    found = {finding.place: str(finding) for finding in check_store(store, deep=True) if finding.kind == "damaged"}
    assert found.keys() == {"wide-pca4/pca.h5"}
    assert "remove it and run python -m featurize reduce again" in found["wide-pca4/pca.h5"]
    with pytest.raises(InputError, match=rf"got {basis}, which is damaged; .*; remove it and run python -m featurize reduce again"):
        reduce_column(store, planted.corpus, components=NEW)
    basis.unlink()
    assert reduce_column(store, planted.corpus, components=NEW).rows == 0
    assert basis.read_bytes() == before
    basis.unlink()
    fingerprint = load_manifest(store / "wide")[0].fingerprint
    shutil.rmtree(store / "wide")
    plant_column(planted, "wide", _tokens(150), fingerprint=fingerprint)  # the failed rows were repaired
    with pytest.raises(InputError, match=rf"another basis than its rows have for .*; remove the folder {basis.parent} and run"):
        reduce_column(store, planted.corpus, components=NEW)


def test_tokens_of_other_programs_are_reduced_without_those_that_are_not_finite(planted: Planted) -> None:
    store, tokens = planted.run_dir / "tokens", _tokens(150)
    tokens[3, 1, 2], tokens[4, 0, 0] = np.inf, np.nan
    plant_column(planted, "foreign", tokens, flagged=(5, 100), fingerprint={"encoder": "my own"})
    train = np.setdiff1d(planted.drawing[list(planted.corpus.rows("train"))], [3, 4, 5, 100])
    values = np.linalg.eigvalsh(np.cov(tokens.astype(np.float64)[train].reshape(-1, D).T, bias=True))
    reduced = reduce_column(store, planted.corpus, components=NEW, column="foreign")
    assert reduced.variance == pytest.approx(values[::-1][:NEW].sum() / values.sum(), rel=1e-6)
    rows = ColumnReader(store, "foreign-pca4").gather(range(150))
    assert np.flatnonzero(~np.isfinite(rows).all(axis=(1, 2))).tolist() == [3, 4]


@pytest.mark.parametrize("name", [PROMPT_TEXT, CANDIDATES, LATENTS])
def test_columns_of_no_image_tokens_are_not_reduced(planted: Planted, name: str) -> None:
    plant_column(planted, name, _tokens(150))
    with pytest.raises(InputError, match=f"got --column {name}; expected a column of image tokens; choose another, such as wide"):
        reduce_column(planted.run_dir / "tokens", planted.corpus, components=NEW, column=name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--pca", "12"), "got --pca 12 of wide, 3 × 12 an image; expected 1 to 11 components of tokens"),
        (("--pca", "0"), "got --pca 0; expected at least 1"),
        (("--pca", "2", "--column", "narrow"), "no column 'narrow'"),
        (("--pca", "2", "--run-dir", "s3://bucket/run"), "got reduce of s3://bucket/run; expected a run in a local folder"),
    ],
)
def test_what_cannot_be_reduced_is_one_line(
    planted: Planted, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    status, _, printed = _command(planted, capsys, *flags)
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
