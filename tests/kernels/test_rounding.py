"""Products are rounded before sums, in and out of fused functions, and reductions are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax, te, tirx

from tvmq import golden
from tvmq.kernels.rounding import FENCE, round_products
from tvmq.target import get_target


def multiply_add(length: int = 4096) -> tirx.PrimFunc:
    a, b, c = (te.placeholder((length,), "float32", name) for name in "abc")
    return te.create_prim_func([a, b, c, te.compute((length,), lambda i: a[i] * b[i] + c[i], name="d")])


def run(function: tirx.PrimFunc, *arrays: np.ndarray) -> np.ndarray:
    core = get_target("host")
    library = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), core.tvm_target())
    output = tvm.runtime.tensor(np.zeros_like(arrays[0]))
    library["main"](*(tvm.runtime.tensor(array) for array in arrays), output)
    return output.numpy()


def test_a_product_is_rounded_before_the_sum():
    arrays = np.random.default_rng(0).normal(size=(3, 4096)).astype(np.float32)
    separate = arrays[0] * arrays[1] + arrays[2]
    assert (run(multiply_add(), *arrays) != separate).any()  # what it is for: TVM contracts
    np.testing.assert_array_equal(run(round_products(multiply_add()), *arrays), separate)


def test_integer_products_and_reductions_are_left_alone():
    a, b = te.placeholder((8, 8), "float32", "a"), te.placeholder((8, 8), "float32", "b")
    k = te.reduce_axis((0, 8), "k")
    product = te.create_prim_func([a, b, te.compute((8, 8), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k))])
    x = te.placeholder((8,), "int32", "x")
    integer = te.create_prim_func([x, te.compute((8,), lambda i: x[i] * x[i] + x[i])])
    for function in (product, integer):
        assert FENCE not in round_products(function).script()


@pytest.mark.parametrize("name", ["x86-avx2", "raspberry-pi-4", "raspberry-pi-3-32"])
def test_every_family_can_compile_it(name):
    module = tvm.IRModule({"main": round_products(multiply_add()).with_attr("global_symbol", "main")})
    assembly = tvm.compile(module, get_target(name).tvm_target()).mod.inspect_source("s")
    assert not any(
        line.split()[:1] and line.split()[0].startswith(("vfma", "fmla", "fmadd")) for line in assembly.splitlines()
    )


def test_the_golden_executor_does_not_depend_on_fusion():
    x = relax.Var("x", relax.TensorType((4, 64), "float32"))
    arrays = np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32)
    softmax = golden.evaluate(relax.BlockBuilder().normalize(relax.op.nn.softmax(x)), {x: arrays[0]})
    np.testing.assert_allclose(softmax.sum(axis=1), 1, rtol=1e-6)
