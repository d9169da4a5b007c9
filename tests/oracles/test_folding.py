"""Batch norm and sign as integer thresholds, against vectors that were made independently.

``out`` is the sign of ``gamma * (s - mean) / std + beta`` with the sign of 0 being +1; ``tau`` is where it
changes: from there upwards where gamma is positive, down to there where it is negative.  Channel 3
has gamma 0, channel 4 changes at an integer exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmq import dialect, golden
from tvmq.bitplanes import Encoding
from tvmq.target import get_target
from tvmq.transform import FoldEpilogues, LowerBitserial
from tvmq.transform.fold_epilogues import ALWAYS, NEVER, integer_thresholds

DATA = Path(__file__).parent / "data"
BOUND = 1000


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    with np.load(DATA / "bn_sign_fold.npz") as arrays:
        return dict(arrays)


def thresholds(case: dict[str, np.ndarray]) -> np.ndarray:
    def norm(s: np.ndarray) -> np.ndarray:
        return case["gamma"] * (s - case["mean"]) / case["std"] + case["beta"]

    return integer_thresholds(norm, np.sign(case["gamma"]).astype(np.int64), np.zeros(1), BOUND)[0]


def test_thresholds_reproduce_every_sign(case):
    direction = np.where(case["gamma"] < 0, -1, 1)
    np.testing.assert_array_equal(np.where(case["s"] * direction >= thresholds(case), 1, -1), case["out"])


def test_thresholds_are_the_integers_at_tau(case):
    found = thresholds(case)
    gamma, tau = case["gamma"], case["tau"]
    np.testing.assert_array_equal(found[gamma > 0], np.ceil(tau[gamma > 0]))
    # The sum is negated where gamma is negative, and so is what it is compared with.
    np.testing.assert_array_equal(found[gamma < 0], -np.floor(tau[gamma < 0]))
    np.testing.assert_array_equal(found[gamma == 0], np.where(case["beta"][gamma == 0] >= 0, ALWAYS, NEVER))
    assert found[4] == -22


def sums_as_products(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes x (two's complement of 8 bits) and w (ternary) whose dot products are the given sums."""
    parts = np.stack([np.clip(s, -128, 127), np.clip(s - np.clip(s, -128, 127), -128, 127)])
    parts = np.concatenate([parts, (s - parts.sum(axis=0))[None]])
    assert parts.min() >= -128 and parts.max() <= 127
    x = np.concatenate(list(parts), axis=1).astype(np.int8).view(np.uint8)
    return x, np.tile(np.eye(s.shape[1], dtype=np.uint8), (1, len(parts)))


def module(case: dict[str, np.ndarray]) -> tuple[tvm.IRModule, np.ndarray]:
    x, w = sums_as_products(case["s"])
    builder = relax.BlockBuilder()
    codes = relax.Var("q", relax.TensorType(x.shape, "uint8"))
    parameters = [case["gamma"], case["beta"], case["mean"], case["std"] ** 2]
    emit = builder.emit
    with builder.function("main", [codes]):
        with builder.dataflow():
            values = emit(dialect.dequantize(codes, *dialect.encoding_constants(Encoding.twos_complement(8))))
            weight = emit(dialect.dequantize(dialect.constant(w), *dialect.encoding_constants(Encoding.ternary())))
            sums = emit(relax.op.matmul(values, emit(relax.op.permute_dims(weight, [1, 0]))), "fc")
            constants = [dialect.constant(array.astype(np.float32)) for array in parameters]
            both = emit(relax.op.nn.batch_norm(sums, *constants, axis=1, epsilon=0.0, training=False))
            signs = dialect.quantize(
                emit(relax.TupleGetItem(both, 0)),
                dialect.constant(np.zeros(1, np.float32)),
                dialect.constant(np.array([0, 1], np.uint8)),
            )
            result = builder.emit_output(emit(signs))
        builder.emit_func_output(result)
    return builder.get(), x


@pytest.mark.parametrize("target", [None, "x86-avx512-vpopcntdq", "x86-avx2", "raspberry-pi-4"])
def test_the_pass_gives_every_sign(case, target):
    source, x = module(case)
    folded = FoldEpilogues()(source)
    text = folded.script(show_meta=False)
    assert "batch_norm" not in text and "tvmq.threshold" in text
    if target is not None:
        folded = LowerBitserial(get_target(target))(folded)
        assert "tvmq.bitserial_conv2d" in folded.script(show_meta=False)
    np.testing.assert_array_equal(golden.interpret(folded, [x])[0], (case["out"] + 1) // 2)
