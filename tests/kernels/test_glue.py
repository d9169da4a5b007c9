"""Schedules of TVM's elementwise functions keep every bit, and leave all other functions alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import relax, te, tirx
from tvm.script import tirx as T

from tvmq.kernels.glue import schedule_glue
from tvmq.kernels.rounding import round_products

op = relax.op
IMAGE = (2, 32, 14, 14)
SMALL = (1, 48, 7, 7)
PER_CHANNEL = (1, 48, 1, 1)


def chain(*steps: Callable[..., relax.Expr]) -> Callable[..., relax.Expr]:
    """Several operators, each on the result of the one before and on all inputs."""

    def build(builder: relax.BlockBuilder, *inputs: relax.Var) -> relax.Expr:
        result: relax.Expr = inputs[0]
        for step in steps:
            result = builder.emit(builder.normalize(step(result, *inputs)))
        return result

    return build


def fused(build: Callable[..., relax.Expr], shapes: list[tuple], dtype: str = "float32") -> tirx.PrimFunc:
    """The one function that TVM makes of some operators."""
    builder = relax.BlockBuilder()
    inputs = [relax.Var(f"x{index}", relax.TensorType(shape, dtype)) for index, shape in enumerate(shapes)]
    with builder.function("main", inputs):
        with builder.dataflow():
            output = builder.emit_output(build(builder, *inputs))
        builder.emit_func_output(output)
    module = builder.get()
    for one_pass in (
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ):
        module = one_pass(module)
    (function,) = [function for function in module.functions.values() if isinstance(function, tirx.PrimFunc)]
    return round_products(function)


ELEMENTWISE: dict[str, tuple[Callable[..., relax.Expr], list[tuple]]] = {
    "clip": (chain(lambda x, *_: op.clip(x, -1.0, 1.0)), [IMAGE]),
    "relu of an odd size": (chain(lambda x, *_: op.nn.relu(x)), [SMALL]),
    "residual": (chain(lambda x, _, y: op.add(x, y), lambda x, *_: op.nn.relu(x)), [IMAGE, IMAGE]),
    "product, then sum": (chain(lambda x, _, y, z: op.multiply(x, y), lambda x, _, y, z: op.add(x, z)), [IMAGE] * 3),
    "affine": (
        chain(
            lambda x, _, scale, offset: op.multiply(x, scale),
            lambda x, _, scale, offset: op.add(x, offset),
            lambda x, *_: op.clip(x, -1.0, 1.0),
        ),
        [SMALL, PER_CHANNEL, PER_CHANNEL],
    ),
    "difference of products": (
        chain(lambda x, _, y: op.multiply(x, y), lambda product, x, y: op.subtract(product, op.multiply(x, x))),
        [(1, 48, 8, 8), PER_CHANNEL],
    ),
    "normalisation": (
        chain(lambda _, x, variance: op.divide(x, op.sqrt(op.add(op.abs(variance), relax.const(1.0, "float32"))))),
        [SMALL, PER_CHANNEL],
    ),
    "bias of a dense layer": (chain(lambda x, _, bias: op.add(x, bias)), [(3, 100), (100,)]),
    "row of an image": (chain(lambda x, _, row: op.multiply(x, row)), [(1, 3, 5, 18), (18,)]),
    "too short for a vector": (chain(lambda x, _, bias: op.add(x, bias)), [(3, 10), (10,)]),
    "sigmoid": (chain(lambda x, *_: op.nn.silu(x)), [IMAGE]),
    "leaky": (chain(lambda x, *_: op.nn.leakyrelu(x, 0.1), lambda x, *_: op.tanh(x)), [IMAGE]),
    "rounding": (chain(lambda x, *_: op.round(x), lambda x, *_: op.exp(x)), [(1, 3, 9, 9)]),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_bit_is_kept(name: str, family: Any, reference: SimpleNamespace) -> None:
    build, shapes = ELEMENTWISE[name]
    function = fused(build, shapes).with_attr("global_symbol", "main")
    scheduled = schedule_glue(function, family)
    assert scheduled is not None and scheduled.attrs["tirx.is_scheduled"]
    assert ("vectorized" in scheduled.script()) == (name != "too short for a vector")
    random = np.random.default_rng(0)
    *arguments, like = (
        (3 * random.standard_normal([int(size) for size in parameter.shape])).astype(np.float32)
        for parameter in function.params
    )
    before, after = (reference.run_function(choice, family, arguments, like) for choice in (function, scheduled))
    np.testing.assert_array_equal(before.view(np.int32), after.view(np.int32))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float16"])
def test_other_types(dtype: str, family: Any, reference: SimpleNamespace) -> None:
    build = chain(lambda x, _, y: op.multiply(x, y), lambda x, _, y: op.maximum(x, y))
    function = fused(build, [(2, 3, 5, 7)] * 2, dtype).with_attr("global_symbol", "main")
    scheduled = schedule_glue(function)
    assert scheduled is not None and "vectorized" in scheduled.script()
    arguments = list(np.random.default_rng(0).integers(0, 9, (2, 2, 3, 5, 7)).astype(dtype))
    expected = np.maximum(arguments[0] * arguments[1], arguments[1])
    np.testing.assert_array_equal(reference.run_function(scheduled, family, arguments, expected), expected)


def test_a_symbolic_batch(family: Any, reference: SimpleNamespace) -> None:
    batch = tirx.Var("n", "int64")
    function = fused(chain(lambda x, _, y: op.add(x, y)), [(batch, 3, 8, 8)] * 2)
    scheduled = schedule_glue(function.with_attr("global_symbol", "main"), family)
    assert scheduled is not None and "vectorized" in scheduled.script()
    one, other = np.random.default_rng(0).standard_normal((2, 3, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(reference.run_function(scheduled, family, [one, other], one), one + other)


def test_neon_of_32_bits_computes_one_by_one(family: Any) -> None:
    function = fused(chain(lambda x, *_: op.clip(x, -1.0, 1.0)), [IMAGE])
    scheduled = schedule_glue(function, dataclasses.replace(family, arch="armv7l"))
    assert scheduled is not None and "vectorized" not in scheduled.script()


def _symbolic() -> tirx.PrimFunc:
    length = tirx.Var("n", "int64")
    return fused(chain(lambda x, *_: op.nn.relu(x)), [(4, length)])


def _computed(element: Callable[..., Any]) -> tirx.PrimFunc:
    data = te.placeholder((16, 16), "float32", "data")
    return te.create_prim_func([data, te.compute((16, 16), lambda i, j: element(data, i, j), "output")])


def _two_outputs() -> tirx.PrimFunc:
    data = te.placeholder((16,), "float32", "data")
    first = te.compute((16,), lambda i: data[i] + 1.0, "first")
    return te.create_prim_func([data, first, te.compute((16,), lambda i: first[i] * 2.0, "second")])


@T.prim_func(s_tir=True)
def rewritten(data: T.Buffer((16,), "float32"), output: T.Buffer((16,), "float32")):
    sums = T.sblock_alloc_buffer((16,))
    for i in range(16):
        with T.sblock("sums"):
            v = T.axis.spatial(16, i)
            sums[v] = data[v] + sums[v]
    for i in range(16):
        with T.sblock("output"):
            v = T.axis.spatial(16, i)
            output[v] = sums[v] + T.float32(2)


@T.prim_func(s_tir=True)
def threads(data: T.Buffer((16,), "float32"), output: T.Buffer((16,), "float32")):
    for i in T.parallel(16):
        with T.sblock("output"):
            v = T.axis.spatial(16, i)
            output[v] = data[v] + T.float32(2)


@T.prim_func(s_tir=True)
def backwards(data: T.Buffer((16,), "float32"), output: T.Buffer((16,), "float32")):
    for i in range(16):
        with T.sblock("output"):
            v = T.axis.spatial(16, 15 - i)
            output[v] = data[v] + T.float32(2)


OTHERS: dict[str, Callable[[], tirx.PrimFunc]] = {
    "reduction": lambda: fused(chain(lambda x, *_: op.mean(x, [2, 3])), [IMAGE]),
    "softmax": lambda: fused(chain(lambda x, *_: op.nn.softmax(x)), [(4, 64)]),
    "transpose": lambda: fused(chain(lambda x, *_: op.permute_dims(x, [0, 2, 3, 1])), [IMAGE]),
    "reshape": lambda: fused(chain(lambda x, *_: op.reshape(x, (2, -1))), [IMAGE]),
    "comparison": lambda: fused(chain(lambda x, _, y: op.greater(x, y)), [IMAGE, IMAGE]),
    "slice": lambda: fused(chain(lambda x, *_: op.strided_slice(x, [1], [0], [32], [2])), [IMAGE]),
    "padding": lambda: fused(chain(lambda x, *_: op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1])), [IMAGE]),
    "symbolic inner size": _symbolic,
    "position": lambda: _computed(lambda data, i, j: data[i, j] + j.astype("float32")),
    "gather": lambda: _computed(lambda data, i, j: data[i, data[i, j].astype("int32")]),
    "diagonal": lambda: _computed(lambda data, i, j: data[j, j]),
    "transposed operand": lambda: _computed(lambda data, i, j: data[i, j] + data[j, i]),
    "two outputs": _two_outputs,
    "an intermediate that is changed": lambda: rewritten,
    "a schedule without its mark": lambda: threads,
    "another order": lambda: backwards,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_are_left_alone(name: str) -> None:
    assert schedule_glue(OTHERS[name]()) is None


def test_a_scheduled_function_is_left_alone(family: Any, reference: SimpleNamespace) -> None:
    function = fused(chain(lambda x, *_: op.nn.relu(x)), [IMAGE])
    assert schedule_glue(schedule_glue(function)) is None
    assert schedule_glue(function.with_attr("tvmq.kernel", "relu")) is None
