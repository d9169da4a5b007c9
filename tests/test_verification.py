"""verify names the pass, the layer and the element that differ first."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

import tvmq
from tests.test_compiler import convnet, images, prepared
from tvmq import build, verification
from tvmq.dialect import constant, is_call
from tvmq.errors import InputError, ModelError, TargetError
from tvmq.transform.rewriter import BindingRewriter


@pytest.fixture(scope="module")
def model() -> tvmq.Model:
    return tvmq.load(prepared(convnet()), (images(2),))


class _Breaker(BindingRewriter):
    """Lets the layer '4' reach all its thresholds."""

    def bind(self, variable, value):
        if is_call(value, "tvmq.bitserial_conv2d") and str(value.attrs["layer"]) == "4":
            thresholds = value.args[-1].value.numpy().copy()
            thresholds[:] = -1_000_000
            call = tvm.ir.Call(value.op, [*value.args[:-1], constant(thresholds)], value.attrs)
            return self.emit(self.substitute(call), variable.name)
        return super().bind(variable, value)


@pytest.fixture
def broken_pass(monkeypatch):
    """A pass after lowering that breaks a layer."""

    @tvm.transform.module_pass(opt_level=0, name="tvmq.Broken")
    def broken(module, _context):
        return _Breaker(module).run()

    original = build.lowering_passes
    monkeypatch.setattr(build, "lowering_passes", lambda core: [*original(core), broken])


def test_all_stages_agree(model):
    result = tvmq.verify(model, [images(2).numpy()])
    assert result
    assert result.stages[-1] == "library" and "tvmq.LowerBitserial" in result.stages
    assert "equal to the golden executor" in str(result)


def test_another_architecture_is_verified_up_to_its_schedules(model):
    result = tvmq.verify(model, [images(2).numpy()], "raspberry-pi-4")
    assert result
    assert "tvmq.LegalizeKernels" in result.stages and "tvmq.ScheduleKernels" not in result.stages


def test_the_first_difference_is_named(model, broken_pass):
    result = tvmq.verify(model, [images(2).numpy()])
    assert not result
    difference = result.difference
    assert (difference.stage, difference.layer) == ("tvmq.Broken", "4_codes")
    assert len(difference.element) == 4 and 0 < difference.count <= difference.size
    assert (difference.expected, difference.actual) == (0, 1)
    assert "tvmq.Broken" in str(result) and "'4_codes'" in str(result)


def test_compile_with_verify_stops_there(model, broken_pass):
    with pytest.raises(ModelError, match=r"after tvmq\.Broken: layer '4_codes' differs"):
        tvmq.compile(model, verify=True)


def test_equal_nans_are_equal():
    nan = np.array([[np.nan, 1.0]])
    assert verification._difference("s", "n", nan, nan.copy()) is None
    assert verification._difference("s", "n", nan, np.array([[0.0, 1.0]])).element == (0, 0)


def test_bad_input(model):
    with pytest.raises(InputError, match="shape"):
        tvmq.verify(model, [np.zeros((1, 2, 3, 3), np.float32)])
    with pytest.raises(TargetError, match="raspberry-pi-4"):
        tvmq.verify(model, [images(2).numpy()], "raspberry-pi-44")
