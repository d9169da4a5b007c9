"""From codes to scheduled functions: one per convolution, threshold and packing."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R

import tvmq
from tvmq.bitplanes import Encoding
from tvmq.dialect import constant, conv2d, threshold
from tvmq.target import get_target
from tvmq.transform import (
    LegalizeKernels,
    LowerBitserial,
    MarkOpaque,
    ScheduleKernels,
    lowering_passes,
    scheduling_passes,
)
from tvmq.transform.mark_opaque import OPAQUE

CORE = get_target("x86-avx512-vpopcntdq")
BINARY = Encoding.binary()
BITS = constant(np.array([0, 1], np.uint8))
WEIGHT = constant(np.random.default_rng(0).integers(0, 2, (32, 32, 3, 3), dtype=np.uint8))
THRESHOLDS = constant(np.zeros((1, 32), np.int32))


@I.ir_module
class TwoLayers:
    @R.function
    def main(q: R.Tensor((1, 32, 8, 8), "uint8")):
        with R.dataflow():
            conv1 = conv2d(q, WEIGHT, BINARY, BINARY, (1, 1), (1, 1, 1, 1))
            c1 = threshold(conv1, THRESHOLDS, BITS)
            conv2 = conv2d(c1, WEIGHT, BINARY, BINARY, (1, 1), (1, 1, 1, 1))
            c2 = threshold(conv2, THRESHOLDS, BITS)
            y = R.astype(c2, "float32")
            z = R.multiply(y, R.const(2.0))
            R.output(z)
        return z


def functions(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    return {v.name_hint: f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}


def kernels(module: tvm.IRModule) -> list[str]:
    return sorted(str(f.attrs["tvmq.kernel"]) for f in functions(module).values() if "tvmq.kernel" in f.attrs)


def run(module: tvm.IRModule, passes: list[tvm.transform.Pass]) -> tvm.IRModule:
    return tvm.transform.Sequential(passes)(module)


def test_one_function_for_convolution_threshold_and_packing():
    scheduled = run(TwoLayers, [*lowering_passes(CORE), *scheduling_passes(CORE)])
    calls = [
        binding.value.args[0].name_hint
        for block in scheduled["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, tvm.ir.Call)
    ]
    assert calls[:3] == ["bitpack", "conv1", "conv1"]  # equal layers share one function
    assert len(calls) == 5  # unpacking, and one fused function for the float operators


def test_our_kernels_are_opaque_to_fusion_and_others_are_not():
    annotated = run(TwoLayers, [LowerBitserial(CORE), LegalizeKernels(), relax.transform.AnnotateTIROpPattern()])
    marked = functions(MarkOpaque()(annotated))
    for name, function in functions(annotated).items():
        expected = OPAQUE if "tvmq.kernel" in function.attrs else int(function.attrs["op_pattern"])
        assert int(marked[name].attrs["op_pattern"]) == expected
    assert int(marked["multiply"].attrs["op_pattern"]) != OPAQUE


def test_mark_opaque_leaves_modules_without_kernels_alone(assert_same):
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4,), "float32")):
            with R.dataflow():
                y = R.exp(x)
                R.output(y)
            return y

    module = run(Before, [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()])
    assert_same(MarkOpaque()(module), module)


def test_scheduling_touches_our_kernels_and_elementwise_functions_only():
    @I.ir_module
    class Pooled:
        @R.function
        def main(x: R.Tensor((1, 32, 8, 8), "float32")):
            with R.dataflow():
                y = R.nn.relu(x)
                z = R.nn.avg_pool2d(y, pool_size=[2, 2])
                R.output(z)
            return z

    for module in (TwoLayers, Pooled):
        legal = run(module, [LowerBitserial(CORE), LegalizeKernels()])
        scheduled = functions(ScheduleKernels(CORE)(legal))
        for name, function in functions(legal).items():
            changed = not tvm_ffi.structural_equal(scheduled[name], function)
            assert changed == ("avg_pool" not in name), name


def test_legalization_is_complete():
    legal = run(TwoLayers, [LowerBitserial(CORE), LegalizeKernels()])
    assert 'T.Call("tvmq.' not in legal.script(show_meta=False)
    assert kernels(legal) == ["bitpack_pixels", "bitunpack", "conv2d"]


def test_the_pipeline_works_inside_a_build_of_ones_own():
    with CORE.tvm_target() as target:
        executable = tvm.compile(
            tvmq.pipeline(CORE)(TwoLayers), target=target, relax_pipeline=relax.get_pipeline("default_build")
        )
    assert executable is not None


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-3-32", "x86-avx2", "x86-avx512"])
def test_every_family_has_schedules(name):
    core = get_target(name)
    scheduled = run(TwoLayers, [*lowering_passes(core), *scheduling_passes(core)])
    assert all(f.attrs.get("tirx.is_scheduled") for f in functions(scheduled).values() if "tvmq.kernel" in f.attrs)
