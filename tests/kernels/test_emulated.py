"""The float32 epilogues and the glue on emulated ARM cores give what they give here, bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tvm import te

from tests.kernels.shapes import BORDER
from tvmq.kernels.glue import schedule_glue
from tvmq.kernels.rounding import round_products
from tvmq.kernels.workload import Float, Thresholds
from tvmq.target import Target


@pytest.mark.parametrize("combine", ["affine", "basis"])
@pytest.mark.parametrize("tiny", [False, True], ids=["normal", "denormal"])
def test_float_epilogues(combine: str, tiny: bool, core: Target, reference: SimpleNamespace) -> None:
    fields: dict[str, Any] = {
        "height": 4,
        "width": 5,
        "out_channels": 33,
        "combine": "and",
        "activation_planes": 2,
        "plane_class": ((0,), (1,)),
        "class_multiplier": (1, 1),
        "activation_multiplier": (0, 0),
        "epilogue": Float(combine, shortcut=True, store=True, thresholds=Thresholds(3, (3, 1, 2, 0), 2)),
    }
    workload = reference.make_workload(core, **fields, **BORDER)
    function, arguments, expected = reference.conv2d_case(workload, core, magnitude=1e-42 if tiny else 1.0)
    outputs = reference.emulate(function, core, arguments, expected)
    assert tiny == bool(np.abs(expected[0]).max() < np.finfo(np.float32).tiny)
    for output, like in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output.view(np.uint8), like.view(np.uint8))


@pytest.mark.parametrize("tiny", [False, True], ids=["normal", "denormal"])
def test_glue(tiny: bool, core: Target, reference: SimpleNamespace) -> None:
    x, y = (te.placeholder((3, 5, 7), "float32", name) for name in "xy")
    product = te.compute(x.shape, lambda *index: x(*index) * y(*index), "product")
    total = te.compute(x.shape, lambda *index: product(*index) + y(*index), "total")
    unscheduled = te.create_prim_func([x, y, total]).with_attr("tirx.noalias", True)
    function = schedule_glue(round_products(unscheduled), core)
    assert function is not None
    one, other = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    other = (other * (1e-42 if tiny else 1.0)).astype(np.float32)
    expected = one * other + other
    (output,) = reference.emulate(function, core, [one, other], [expected])
    np.testing.assert_array_equal(output.view(np.int32), expected.view(np.int32))
