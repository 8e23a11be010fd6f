"""Curves over the number of images: exponentials are found again, and shares of copies are those of sets that are drawn."""

from typing import Any

import numpy as np
import pytest
import torch

from featurize.inspect.near_copies import near_copies
from featurize.inspect.probes import LabelledFeatures, accuracy_curve, predict_linear, probe_classes, standardised
from featurize.inspect.records import LeftOut
from featurize.inspect.set_size import AccuracyCurve, CopiesCurve, ExponentialFit, copies_curve, fit_exponential, sizes_up_to

SIZES = (8, 15, 30, 60, 120, 240, 480)


def planted(start: float, limit: float, scale: float) -> list[float]:
    return [float(limit + (start - limit) * np.exp(-n / scale)) for n in SIZES]


@pytest.mark.parametrize(("start", "limit", "scale"), [(0.1, 0.6, 100.0), (0.25, 0.3, 20.0), (-0.2, 0.9, 700.0)])
def test_a_planted_exponential_is_found_again(start: float, limit: float, scale: float) -> None:
    fit = fit_exponential(SIZES, planted(start, limit, scale))
    assert isinstance(fit, ExponentialFit)
    assert (fit.start, fit.limit, fit.scale) == pytest.approx((start, limit, scale), rel=1e-4)
    assert fit.rms < 1e-6
    at_enough = limit + (start - limit) * np.exp(-fit.enough / scale)
    assert at_enough == pytest.approx(start + 0.95 * (limit - start), rel=1e-4)


def test_a_known_start_is_kept() -> None:
    fit = fit_exponential(SIZES[:3], planted(0.0, 0.2, 50.0)[:3], start=0.0)
    assert isinstance(fit, ExponentialFit)
    assert fit.start == 0
    assert (fit.limit, fit.scale) == pytest.approx((0.2, 50.0), rel=1e-4)


def test_the_fit_is_the_nearest_in_squares() -> None:
    noisy = np.array(planted(0.1, 0.6, 100.0)) + np.random.default_rng(0).normal(scale=0.01, size=len(SIZES))
    fit = fit_exponential(SIZES, noisy.tolist())
    assert isinstance(fit, ExponentialFit)

    def rms(start: float, limit: float, scale: float) -> float:
        return float(np.sqrt(np.mean((noisy - np.array(planted(start, limit, scale))) ** 2)))

    assert fit.rms == pytest.approx(rms(fit.start, fit.limit, fit.scale), rel=1e-6)
    for step in (0.99, 1.01):
        assert rms(fit.start * step, fit.limit, fit.scale) > fit.rms
        assert rms(fit.start, fit.limit * step, fit.scale) > fit.rms
        assert rms(fit.start, fit.limit, fit.scale * step) > fit.rms


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.3] * 7, "all sizes are alike"),
        ([n / 1000 for n in SIZES], "it does not level off yet"),
        (planted(0.6, 0.1, 100.0), "more images do not raise it"),
        ([0.1, *[0.5] * 6], "it has levelled off at the smallest size"),
    ],
)
def test_what_is_no_rising_exponential_is_told(values: list[float], reason: str) -> None:
    assert fit_exponential(SIZES, values) == LeftOut(left_out=reason)


def test_too_few_sizes_are_not_fitted() -> None:
    assert fit_exponential(SIZES[:3], [0.1, 0.2, 0.3]) == LeftOut(left_out="3 sizes, and 3 numbers to fit")


@pytest.mark.parametrize(
    ("most", "least", "sizes"),
    [(480, 24, (30, 60, 120, 240, 480)), (1000, 2, (16, 32, 63, 125, 250, 500, 1000)), (5, 2, (2, 3, 5)), (3, 8, (3,))],
)
def test_sizes_are_halves_of_halves(most: int, least: int, sizes: tuple[int, ...]) -> None:
    assert sizes_up_to(most, least) == sizes


def test_the_share_of_copies_is_that_of_sets_that_are_drawn() -> None:
    """One group of six near-duplicates, three pairs, and 28 images of their own."""
    group = np.array([*[0] * 6, *[1, 1, 2, 2, 3, 3], *range(4, 32)])
    copies = np.array([(group == its).sum() - 1 for its in group])
    curve = copies_curve(copies)
    assert (curve.sizes, curve.shares[-1]) == ((2, 3, 5, 10, 20, 40), pytest.approx(12 / 40))
    rng, draws = np.random.default_rng(0), 4000
    for size, share in zip(curve.sizes, curve.shares, strict=True):
        found = [np.unique(group[rng.permutation(40)[:size]], return_counts=True)[1] for _ in range(draws)]
        shares = np.array([counts[counts > 1].sum() / size for counts in found])
        assert share == pytest.approx(shares.mean(), abs=1e-9 + 4 * shares.std() / np.sqrt(draws))
    assert curve.shares[0] == pytest.approx((15 + 3) / (40 * 39 / 2))  # the pairs that are near-duplicates
    assert curve.few_up_to == 1


def test_few_copies_end_where_one_in_a_hundred_begins() -> None:
    copies = np.array([1, 1, *[0] * 98])
    curve = copies_curve(copies)
    # Of n images an image of the pair has its copy among the other n - 1 of 99.
    assert curve.few_up_to == 50  # 2/100 · 49/99 = .0099
    assert copies_curve(np.zeros(10, np.int64)) == CopiesCurve(
        sizes=(2, 3, 5, 10), shares=(0.0,) * 4, few_up_to=10, fit=LeftOut(left_out="all sizes are alike")
    )
    assert copies_curve(np.full(4, 3)).shares == (1.0, 1.0)


def test_near_copies_of_a_store_have_their_curve() -> None:
    rows = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0]
    rows[2] = rows[0]
    found = near_copies(rows, np.arange(60) < 40, np.arange(60) >= 40, 0.98)
    assert found.by_size == copies_curve(np.array([2, 2, 2, *[0] * 57]))
    assert found.by_size is not None
    assert found.by_size.shares[-1] == pytest.approx(found.share)


def labelled(train: int, *, rare: bool = False) -> LabelledFeatures:
    rng = np.random.default_rng(0)
    labels = np.arange(train + 60) % 3
    if rare:
        labels[:train] = np.arange(train) == 0
    rows = (rng.normal(size=(train + 60, 6)) + 1.2 * rng.normal(size=(3, 6))[labels]).astype(np.float32)
    return LabelledFeatures(
        train_NF=rows[:train],
        train_N=labels[:train],
        validation_VF=rows[train:],
        validation_V=labels[train:],
        picture_V=np.arange(60),
        is_new_V=np.arange(60) >= 10,
        classes=3,
    )


def test_the_curve_of_a_probe_is_that_of_probes_of_its_subsets() -> None:
    data = labelled(96)
    found = probe_classes(data, seed=3)
    curve = found.by_size
    assert curve is not None
    assert (curve.sizes, curve.accuracies[-1]) == ((6, 12, 24, 48, 96), found.probe.accuracy)
    whole = predict_linear(*_scaled(data, np.arange(96)))
    assert curve.accuracies[-1] == pytest.approx((whole == data.validation_V[10:]).mean())
    assert curve.accuracies[0] < curve.accuracies[-1]
    assert all(round(50 * 3 * one) == pytest.approx(50 * 3 * one) for one in curve.accuracies)  # means of three shares of 50 examples
    assert curve == accuracy_curve(data, data.is_new_V, found.probe.accuracy, 3)


def _scaled(data: LabelledFeatures, rows: Any) -> tuple[Any, Any, Any]:
    train, other = standardised(data.train_NF[rows], data.validation_VF[10:])
    return train, data.train_N[rows], other


def test_a_subset_without_the_rare_class_is_scored_too() -> None:
    data = labelled(64, rare=True)
    curve = accuracy_curve(data, data.is_new_V, 0.5, 0)
    assert min(curve.accuracies[:-1]) >= 0
    assert curve.sizes[0] == 4


def test_curves_are_told_in_a_line() -> None:
    fit = ExponentialFit(start=0.1, limit=0.6, scale=100.0, rms=0.004)
    curve = AccuracyCurve(sizes=(30, 60), accuracies=(0.3, 0.4), draws=3, fit=fit)
    assert curve.sentence() == (
        "linear probe by train examples: .300 with 30, .400 with 60; .600 − .500 exp(−n / 100) (rms .004), 95 % of the way at 300"
    )
    left = AccuracyCurve(sizes=(30,), accuracies=(0.3,), draws=3, fit=LeftOut(left_out="it does not level off yet"))
    assert left.sentence() == "linear probe by train examples: .300 with 30; no exponential: it does not level off yet"
    copies = CopiesCurve(sizes=(500, 1000), shares=(0.01, 0.02), few_up_to=500, fit=ExponentialFit(start=0, limit=0.1, scale=4000.0, rms=0))
    assert copies.sentence() == (
        "near-duplicates by images: 1.0 % of 500, 2.0 % of 1,000; at most 1.0 % in sets of up to 500; "
        "10.0 % (1 − exp(−n / 4,000)), rms 0.0 %"
    )
    assert curve.to_json()["fit"] == {"start": 0.1, "limit": 0.6, "scale": 100.0, "rms": 0.004}
