from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax, topi
from tvm.relax import op

from tvmq import golden
from tvmq.errors import InputError, ModelError
from tvmq.kernels.rounding import round_products

RNG = np.random.default_rng(3)
ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 0.5, 1.5, 2.5, -0.5, -1.5, 1e-40, 3e38], np.float32)
X = np.concatenate([ODD, RNG.normal(size=150).astype(np.float32) * 3]).reshape(2, 3, 3, 9)
Y = X[::-1, :, ::-1].copy()
INTEGERS = RNG.integers(-50, 50, (2, 6)).astype(np.int32)
CHANNELS = [RNG.normal(size=3).astype(np.float32) for _ in range(3)] + [RNG.random(3).astype(np.float32)]


def call_of(build: Callable[..., relax.Expr], arrays: tuple[np.ndarray, ...]) -> tuple[relax.Expr, dict]:
    variables = [relax.Var(f"x{i}", relax.TensorType(array.shape, array.dtype.name)) for i, array in enumerate(arrays)]
    return relax.BlockBuilder().normalize(build(*variables)), dict(zip(variables, arrays, strict=True))


def compiled(
    build: Callable[..., relax.Expr], arrays: tuple[np.ndarray, ...], target: str | tvm.target.Target = "llvm"
) -> list[np.ndarray]:
    """What TVM's machine code computes: the judge, and none of the interpreter's code."""
    call, environment = call_of(build, arrays)
    builder = relax.BlockBuilder()
    with builder.function("main", list(environment)):
        builder.emit_func_output(call)
    module = relax.transform.LegalizeOps()(builder.get())
    for variable, function in module.functions.items():
        if isinstance(function, tvm.tirx.PrimFunc):
            module.update_func(variable, round_products(function))
    executable = tvm.compile(module, target)
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays))
    return [part.numpy() for part in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


CASES: dict[str, tuple[Callable[..., relax.Expr], tuple[np.ndarray, ...]]] = {
    **{name: (getattr(op, name), (X,)) for name in ("abs", "ceil", "floor", "negative", "round", "sign", "square")},
    **{
        name: (getattr(op, name), (X, Y))
        for name in (
            *("add", "subtract", "multiply", "divide", "maximum", "minimum"),
            *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"),
        )
    },
    **{
        f"integer {name}": (getattr(op, name), (INTEGERS, INTEGERS[::-1] | 1))
        for name in ("add", "subtract", "multiply", "divide", "maximum", "bitwise_and", "bitwise_or", "bitwise_xor")
    },
    **{name: (getattr(op, name), (INTEGERS > 0, INTEGERS % 3 > 0)) for name in ("logical_and", "logical_or")},
    "logical_not": (op.logical_not, (INTEGERS > 0,)),
    "sqrt": (op.sqrt, (np.abs(X),)),
    "relu": (op.nn.relu, (X,)),
    "clip": (lambda x: op.clip(x, -1, 1), (X,)),
    "integer clip": (lambda x: op.clip(x, -7, 9), (INTEGERS,)),
    "astype": (lambda x: op.astype(x, "int8"), (INTEGERS.astype(np.float32) * 1.3,)),
    "where": (op.where, (X > 0, X, Y)),
    "zeros_like": (op.zeros_like, (X,)),
    "broadcast": (op.add, (X, X[:1, :, :1])),
    "broadcast_to": (lambda x: op.broadcast_to(x, (2, 3, 3, 9)), (X[:1, :, :, :1],)),
    "reshape": (lambda x: op.reshape(x, (6, -1)), (X,)),
    "flatten": (op.flatten, (X,)),
    "permute": (lambda x: op.permute_dims(x, [0, 2, 3, 1]), (X,)),
    "reverse permute": (op.permute_dims, (X,)),
    "expand": (lambda x: op.expand_dims(x, [0, -1]), (X,)),
    "squeeze": (lambda x: op.squeeze(x, [-1]), (X[..., :1],)),
    "squeeze all": (op.squeeze, (X[:1, :, :1],)),
    "concat": (lambda x, y: op.concat([x, y], 1), (X, Y)),
    "slice": (lambda x: op.strided_slice(x, [1, 3], [0, -5], [2, 100], [1, 2]), (X,)),
    "backward slice": (lambda x: op.strided_slice(x, [3], [8], [2], [-1]), (X,)),
    "pad": (lambda x: op.nn.pad(x, (0, 0, 0, 0, 1, 2, 0, 1), "constant", -1.5), (X,)),
    "reflecting pad": (lambda x: op.nn.pad(x, (0, 0, 0, 0, 1, 1, 2, 0), "reflect"), (X,)),
    "max_pool2d": (lambda x: op.nn.max_pool2d(x, (3, 2), (2, 1), (1, 0, 1, 1)), (X,)),
    "dilated max_pool2d": (lambda x: op.nn.max_pool2d(x, (2, 3), (1, 2), (1, 1, 0, 1), (2, 3)), (X,)),
    "rounded up max_pool2d": (lambda x: op.nn.max_pool2d(x, (2, 2), (2, 2), (0, 0), (1, 1), True), (X,)),
    "batch_norm": (lambda x, *p: op.nn.batch_norm(x, *p, axis=1, training=False), (X, *CHANNELS)),
    "plain batch_norm": (
        lambda x, *p: op.nn.batch_norm(x, *p, axis=1, training=False, scale=False, center=False),
        (X, *CHANNELS),
    ),
    "last axis batch_norm": (lambda x, *p: op.nn.batch_norm(x, *p, axis=3, training=False), (X[..., :3], *CHANNELS)),
    "split": (lambda x: op.split(x, 3, 3), (X,)),
    "softmax": (lambda x: op.nn.softmax(x, 3), (np.nan_to_num(X, posinf=1, neginf=-1) / 1e30,)),
}


@pytest.mark.parametrize("name", CASES)
def test_numpy_form_is_what_tvm_computes_to_the_last_bit(name):
    build, arrays = CASES[name]
    call, environment = call_of(build, arrays)
    result = golden.evaluate(call, environment)
    for ours, theirs in zip(result if isinstance(result, tuple) else (result,), compiled(build, arrays), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
        nan = np.isnan(theirs) if theirs.dtype.kind == "f" else np.zeros(theirs.shape, bool)
        assert ours[~nan].tobytes() == theirs[~nan].tobytes()  # signs of zero as well


def test_convolution_is_correct():
    x, w = RNG.integers(-4, 5, (2, 4, 7, 6)).astype(np.float32), RNG.integers(-4, 5, (6, 2, 3, 2)).astype(np.float32)
    attributes = {"strides": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2), "groups": 2}
    call, environment = call_of(lambda a, b: op.nn.conv2d(a, b, **attributes), (x, w))
    result = golden.evaluate(call, environment)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1)))
    expected = np.zeros_like(result)
    for group in range(2):
        for row, column in np.ndindex(3, 2):
            taken = padded[:, 2 * group : 2 * group + 2, row:, 2 * column :][:, :, ::2][
                :, :, : result.shape[2], : result.shape[3]
            ]
            filters = w[3 * group : 3 * group + 3, :, row, column]
            expected[:, 3 * group : 3 * group + 3] += np.einsum("nchw,oc->nohw", taken, filters)
    np.testing.assert_array_equal(result, expected)


def test_sums_round_after_each_term_in_order():
    """So that a sum has one value everywhere: one rounding per multiply-add, first term first."""
    x, w = RNG.normal(size=(1, 300)).astype(np.float32), RNG.normal(size=(300, 1)).astype(np.float32)
    call, environment = call_of(op.matmul, (x, w))
    result = golden.evaluate(call, environment)
    fused = separate = np.float32(0)
    for a, b in zip(x[0], w[:, 0], strict=True):
        fused = np.float32(np.longdouble(a) * np.longdouble(b) + np.longdouble(fused))
        separate = np.float32(separate + a * b)
    assert result[0, 0] in (fused, separate)


IMAGES = RNG.normal(size=(2, 6, 9, 11)).astype(np.float32)
SUMS: dict[str, tuple[Callable[..., relax.Expr], tuple[np.ndarray, ...]]] = {
    "conv2d": (
        lambda x, w: op.nn.conv2d(x, w, (2, 1), (1, 0, 1, 2), (1, 2), 2),
        (IMAGES, RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)),
    ),
    "conv2d of one pixel": (op.nn.conv2d, (IMAGES, RNG.normal(size=(4, 6, 9, 11)).astype(np.float32))),
    "conv2d_transpose": (op.nn.conv2d_transpose, (IMAGES, RNG.normal(size=(6, 3, 3, 3)).astype(np.float32))),
    "matmul": (op.matmul, (IMAGES[0], RNG.normal(size=(11, 70)).astype(np.float32))),
    "product": (op.matmul, (IMAGES[0, 0, 0], IMAGES[0, 0, 1])),
    "avg_pool2d": (lambda x: op.nn.avg_pool2d(x, (3, 2), (2, 1), (1, 0), count_include_pad=False), (IMAGES,)),
    "mean": (lambda x: op.mean(x, [2, 3]), (IMAGES,)),
    "sum": (op.sum, (IMAGES,)),
    "softmax": (lambda x: op.nn.softmax(x, 1), (IMAGES,)),
    "layer_norm": (lambda x, g, b: op.nn.layer_norm(x, g, b, [3]), (IMAGES, IMAGES[0, 0, 0], IMAGES[0, 0, 1])),
    "argmax": (lambda x: op.argmax(x, 1), (IMAGES,)),
}


@pytest.mark.parametrize("name", SUMS)
def test_vectorizing_a_sum_changes_no_bit(name):
    build, arrays = SUMS[name]
    call, environment = call_of(build, arrays)
    np.testing.assert_array_equal(golden.evaluate(call, environment), compiled(build, arrays, golden._host())[0])


def dynamic_module() -> tvm.IRModule:
    batch = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((batch, 2, 3), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            flat = builder.emit(op.reshape(x, (batch * 2, 3)))
            mean = builder.emit(op.mean(flat, [1], keepdims=True))
            outputs = builder.emit_output(relax.Tuple([mean, flat]))
        builder.emit_func_output(outputs)
    return builder.get()


@pytest.mark.parametrize("batch", [1, 4])
def test_symbolic_shapes(batch):
    x = RNG.normal(size=(batch, 2, 3)).astype(np.float32)
    mean, flat = golden.interpret(dynamic_module(), [x])
    np.testing.assert_array_equal(flat, x.reshape(-1, 3))
    np.testing.assert_allclose(mean, x.reshape(-1, 3).mean(1, keepdims=True), rtol=1e-6)


def test_outputs_are_contiguous_and_own_their_memory():
    x = np.zeros((1, 2, 3), np.float32)
    _, flat = golden.interpret(dynamic_module(), [x])
    flat += 1
    assert not x.any()


def test_views_can_go_into_machine_code():
    def build(a: relax.Expr) -> relax.Expr:
        return op.mean(a, [0])

    strided, contiguous = (golden.evaluate(*call_of(build, (array,))) for array in (X.T, X.T.copy()))
    np.testing.assert_array_equal(strided, contiguous)


def test_match_cast_binds_dimensions():
    size = tvm.tirx.Var("m", "int64")
    x = relax.Var("x", relax.TensorType(ndim=2, dtype="float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        cast = builder.match_cast(x, relax.TensorType((size, 2), "float32"))
        builder.emit_func_output(builder.emit(op.reshape(cast, (size * 2,))))
    (result,) = golden.interpret(builder.get(), [np.ones((3, 2), np.float32)])
    assert result.shape == (6,)


def test_functions_branches_and_prim_functions():
    x = relax.Var("x", relax.TensorType((2, 2), "float32"))
    y = relax.Var("y", relax.TensorType((2, 2), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("negate", [y]):
        builder.emit_func_output(builder.emit(op.negative(y)))
    negate = builder.get().get_global_var("negate")
    with builder.function("main", [x]):
        called = builder.emit(relax.Call(negate, [x]))
        flipped = builder.emit_te(topi.flip, called, axis=1)
        condition = builder.emit(op.greater(op.max(x), relax.const(1.0)))
        chosen = builder.emit(relax.If(condition, relax.SeqExpr([], flipped), relax.SeqExpr([], x)))
        builder.emit_func_output(chosen)
    module = builder.get()
    small, large = np.eye(2, dtype=np.float32), np.arange(4, dtype=np.float32).reshape(2, 2)
    np.testing.assert_array_equal(golden.interpret(module, [small])[0], small)
    np.testing.assert_array_equal(golden.interpret(module, [large])[0], -large[:, ::-1])


def test_caller_context_does_not_reach_the_reference():
    call, environment = call_of(lambda x: op.mean(x, [3]), (np.nan_to_num(X, posinf=0, neginf=0) / 1e30,))

    @tvm.ir.instrument.pass_instrument
    class Refuse:
        def run_before_pass(self, module: tvm.IRModule, info: object) -> None:
            raise AssertionError("the caller's instruments must not see the reference's passes")

    expected = golden.evaluate(call, environment)
    golden._compile.cache_clear()
    with tvm.transform.PassContext(instruments=[Refuse()]):
        np.testing.assert_array_equal(golden.evaluate(call, environment), expected)


def test_constant_expressions():
    assert golden.evaluate(relax.ShapeExpr([2, 3])) == golden.Shape((2, 3))
    folded = golden.evaluate(relax.Tuple([relax.const([1.0, 2.0], "float32"), relax.ShapeExpr([4])]))
    np.testing.assert_array_equal(folded[0], np.array([1, 2], np.float32))
    assert folded[1] == (4,)


def test_errors():
    with pytest.raises(InputError, match="takes 1 inputs, but 2"):
        golden.interpret(dynamic_module(), [np.zeros((1, 2, 3), np.float32)] * 2)
    with pytest.raises(InputError, match="'x' takes 3 dimensions"):
        golden.interpret(dynamic_module(), [np.zeros((1, 2), np.float32)])
    with pytest.raises(ModelError, match="'x' has no value"):
        golden.evaluate(op.negative(relax.Var("x", relax.TensorType((1,), "float32"))))
