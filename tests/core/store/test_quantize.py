"""Tokens in eight bits: their error, and that every reader gets the same values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from lugpi_core.store.quantize import dequantize, dequantize_array, quantize

LARGEST_FLOAT16, SMALLEST_FLOAT16 = 65504.0, 2.0**-24
FINITE = st.floats(width=16, allow_nan=False, allow_infinity=False)
TOKENS = arrays(np.float16, array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=6), elements=FINITE)


def _quantized(tokens: NDArray[np.float16]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    values, scales = quantize(torch.from_numpy(tokens))
    return values.numpy(), scales.numpy()


def _read(values: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float16]:
    return dequantize_array(values, scales, np.full(values.shape, np.nan, np.float16))


@given(TOKENS)
def test_the_error_is_at_most_half_a_scale(tokens: NDArray[np.float16]) -> None:
    values, scales = _quantized(tokens)
    assert (values.dtype, scales.dtype) == (np.int8, np.float32)
    assert (values.shape, scales.shape) == (tokens.shape, tokens.shape[:-1])
    # In float64, to judge the stored values and not the arithmetic that reads them. The scale itself is rounded to float32 once.
    exact, steps = tokens.astype(float), scales.astype(float)[..., None]
    off = np.abs(values.astype(float) * steps - exact)
    assert (off <= steps * (0.5 + 1e-4)).all()
    # As read: the result is also rounded to float16, with an error of at most half its spacing there.
    read = _read(values, scales)
    off_as_read = np.abs(read.astype(float) - exact)
    assert (off_as_read <= steps * (0.5 + 1e-4) + np.spacing(np.abs(read)).astype(float) / 2).all()


@given(TOKENS)
def test_a_tokens_largest_value_becomes_127_and_zeros_stay_zeros(tokens: NDArray[np.float16]) -> None:
    values, scales = _quantized(tokens)
    zero = ~tokens.any(axis=-1)
    assert (np.abs(values.astype(int)).max(axis=-1) == np.where(zero, 0, 127)).all()
    np.testing.assert_array_equal(scales == 0, zero)
    assert not _read(values, scales)[zero].any()


@given(TOKENS)
def test_torch_and_numpy_read_the_same_bits(tokens: NDArray[np.float16]) -> None:
    values, scales = _quantized(tokens)
    of_torch = dequantize(torch.from_numpy(values), torch.from_numpy(scales))
    assert of_torch.dtype == torch.float16
    np.testing.assert_array_equal(of_torch.numpy().view(np.uint16), _read(values, scales).view(np.uint16))


@given(TOKENS, st.data())
def test_a_tokens_bytes_do_not_depend_on_its_neighbours(tokens: NDArray[np.float16], data: st.DataObject) -> None:
    place = tuple(data.draw(st.integers(0, size - 1)) for size in tokens.shape[:-1])
    values, scales = _quantized(tokens)
    alone, scale = _quantized(tokens[place][None])
    np.testing.assert_array_equal(values[place], alone[0])
    assert scales[place] == scale[0]


@pytest.mark.parametrize("largest", [LARGEST_FLOAT16, -LARGEST_FLOAT16, SMALLEST_FLOAT16, -SMALLEST_FLOAT16, 1.0, -1.0])
def test_the_largest_float16_values_are_kept(largest: float) -> None:
    tokens = np.array([[largest, 0, largest / 2]], np.float16)
    read = _read(*_quantized(tokens))
    assert np.isfinite(read).all()
    assert read[0, :2].tolist() == [largest, 0]


def test_signs_are_treated_alike() -> None:
    tokens = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float16)
    (values, scales), (negative, same) = _quantized(tokens), _quantized(-tokens)
    np.testing.assert_array_equal(values, -negative)
    np.testing.assert_array_equal(scales, same)


def test_half_precision_input_is_not_rounded_before_quantizing() -> None:
    # In float16 itself 2049 / (2050 / 127) would be 127 and a scale of 16.14 would be off by one in three thousand.
    tokens = torch.tensor([[2050.0, 2032.0, 16.0]], dtype=torch.float16)
    values, scales = quantize(tokens)
    assert scales.item() == np.float32(2050) / np.float32(127)
    assert values.tolist() == [[127, 126, 1]]


def test_the_result_is_written_into_the_given_array() -> None:
    values, scales = _quantized(np.ones((2, 3, 4), np.float16))
    out = np.zeros((2, 3, 4), np.float16)
    assert dequantize_array(values, scales, out) is out
    assert (out == 1).all()
