"""An ONNX classifier in int8, in which no text changes the answer for another.

The usual dynamic quantization (``quantize_dynamic`` of onnxruntime) scales the activations of a whole batch by one number, so that the
texts next to a text, and its padding, change its answer. Here every token has its own scale. For a weight ``W`` [I, O] and a token ``x``
[I], symmetric, without zero points:

    s = max |x| / 127,   x' = round(x / s) + 128 in uint8        t_o = max_i |W_io| / 63,   W' = round(W / t) in int8

    y_o = s · t_o · Σ_i (x'_i - 128) · W'_io,   whose sum onnxruntime's MatMulInteger computes exactly.

Weights take 7 of their 8 bits: with 8, processors with AVX2 but without VNNI saturate the sum of two products (onnxruntime's documentation
of quantization, "reduce_range"), and the answers would depend on the machine. Embeddings are int8 with a scale per row. The last matrix,
which gives the logits, stays in float32: it is small. Attention, normalization and activation functions are computed in float32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Smaller tables, such as those of token types, gain nothing.
SMALLEST_TABLE = 64
_ZERO = 128
_TOP_ACTIVATION, _TOP_WEIGHT, _TOP_ROW = 127, 63, 127
_TINY = 1e-30  # of a token that is zero throughout
_FLOAT = 1  # onnx.TensorProto.FLOAT
_UINT8 = 2


def write_int8(source: Path, target: Path, *, classes: int) -> int:
    """Write an int8 copy of an ONNX file with float32 weights; return how many matrices and tables are int8.

    Args:
        source: as ``torch.onnx.export`` writes it.
        target: is overwritten.
        classes: K; matrices to that width stay in float32.
    """
    import onnx

    model = onnx.load(source)
    del model.graph.value_info[:]  # shapes of tensors that are no longer there
    quantization = _Quantization(weights={tensor.name: tensor for tensor in model.graph.initializer}, classes=classes)
    nodes = [new for node in model.graph.node for new in quantization.replaced(node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    kept = [tensor for tensor in (*model.graph.initializer, *quantization.added) if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.metadata_props.add(key="precision", value="int8 weights, per-token int8 activations")
    onnx.checker.check_model(model)
    onnx.save(model, target)
    return len(quantization.done)


@dataclass
class _Quantization:
    """The work on one graph.

    Attributes:
        weights: its float32 initializers by name.
        classes: K.
        added: new initializers.
        done: names of the weights that are int8 now.
        scaled: activations that are already uint8, with their number of values per token.
    """

    weights: Mapping[str, Any]
    classes: int
    added: list[Any] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    scaled: set[str] = field(default_factory=set)

    def replaced(self, node: Any) -> Iterator[Any]:
        """Yield the nodes that take the place of a node; itself if it is none with a weight."""
        from onnx.helper import get_attribute_value

        attributes = {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Gather" and attributes.get("axis", 0) == 0 and self._is_table(node.input[0]):
            yield from self._gathered(node)
            return
        turned = bool(attributes.get("transB", 0))
        is_plain = not attributes.get("transA", 0) and attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
        if node.op_type in ("MatMul", "Gemm") and is_plain and self._is_matrix(node.input[1], turned=turned):
            yield from self._multiplied(node, turned=turned)
            return
        yield node

    def _is_table(self, name: str) -> bool:
        tensor = self.weights.get(name)
        return tensor is not None and tensor.data_type == _FLOAT and len(tensor.dims) == 2 and tensor.dims[0] >= SMALLEST_TABLE

    def _is_matrix(self, name: str, *, turned: bool) -> bool:
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_type != _FLOAT or len(tensor.dims) != 2:
            return False
        return bool(tensor.dims[0 if turned else 1] != self.classes)

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        from onnx.numpy_helper import from_array

        if all(tensor.name != name for tensor in self.added):
            self.added.append(from_array(values, name))
        return name

    def _values(self, name: str) -> NDArray[np.float32]:
        from onnx.numpy_helper import to_array

        self.done.add(name)
        values: NDArray[np.float32] = to_array(self.weights[name])
        return values

    def _gathered(self, node: Any) -> Iterator[Any]:
        from onnx.helper import make_node

        table, rows, output = node.input[0], node.input[1], node.output[0]
        whole, scale = _rounded(self._values(table), axis=1, top=_TOP_ROW)
        self._constant(f"{table}.int8", whole)
        self._constant(f"{table}.scale", scale)
        yield make_node("Gather", [f"{table}.int8", rows], [f"{output}.int8"])
        yield make_node("Cast", [f"{output}.int8"], [f"{output}.float"], to=_FLOAT)
        yield make_node("Gather", [f"{table}.scale", rows], [f"{output}.scale"])
        yield make_node("Mul", [f"{output}.float", f"{output}.scale"], [output])

    def _multiplied(self, node: Any, *, turned: bool) -> Iterator[Any]:
        from onnx.helper import make_node

        tokens, weight, output = node.input[0], node.input[1], node.output[0]
        yield from self._scaled(tokens)
        values_IO = self._values(weight).T if turned else self._values(weight)
        whole_IO, scale_1O = _rounded(values_IO, axis=0, top=_TOP_WEIGHT)
        # A matrix that is used in both directions has two int8 forms.
        named = f"{weight}.turned" if turned else weight
        self._constant(f"{named}.int8", whole_IO)
        self._constant(f"{named}.scale", scale_1O[0])
        has_bias = len(node.input) > 2
        zero = self._constant("int8.zero", np.array(_ZERO, np.uint8))
        yield make_node("MatMulInteger", [f"{tokens}.uint8", f"{named}.int8", zero], [f"{output}.int32"])
        yield make_node("Cast", [f"{output}.int32"], [f"{output}.float"], to=_FLOAT)
        yield make_node("Mul", [f"{output}.float", f"{named}.scale"], [f"{output}.columns"])
        yield make_node("Mul", [f"{output}.columns", f"{tokens}.scale"], [f"{output}.product" if has_bias else output])
        if has_bias:
            yield make_node("Add", [f"{output}.product", node.input[2]], [output])

    def _scaled(self, tokens: str) -> Iterator[Any]:
        """Yield what computes ``<tokens>.scale`` and ``<tokens>.uint8``, once for all matrices that read these tokens."""
        from onnx.helper import make_node

        if tokens in self.scaled:
            return
        self.scaled.add(tokens)
        last = self._constant("int8.last_axis", np.array([-1], np.int64))
        tiny = self._constant("int8.tiny", np.array(_TINY, np.float32))
        step = self._constant("int8.step", np.array(1 / _TOP_ACTIVATION, np.float32))
        zero = self._constant("int8.zero_float", np.array(_ZERO, np.float32))
        yield make_node("Abs", [tokens], [f"{tokens}.size"])
        yield make_node("ReduceMax", [f"{tokens}.size", last], [f"{tokens}.largest"], keepdims=1)
        yield make_node("Max", [f"{tokens}.largest", tiny], [f"{tokens}.positive"])
        yield make_node("Mul", [f"{tokens}.positive", step], [f"{tokens}.scale"])
        yield make_node("Div", [tokens, f"{tokens}.scale"], [f"{tokens}.steps"])
        yield make_node("Round", [f"{tokens}.steps"], [f"{tokens}.whole"])
        yield make_node("Add", [f"{tokens}.whole", zero], [f"{tokens}.shifted"])
        yield make_node("Cast", [f"{tokens}.shifted"], [f"{tokens}.uint8"], to=_UINT8)


def _rounded(values: NDArray[np.float32], *, axis: int, top: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers from -top to top and the scales along the other axis that give the values back, nearly."""
    largest = np.abs(values).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / top, 1).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale
