"""Channels move to the front, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from tvmq.kernels.layout import channels_first
from tvmq.kernels.schedule import schedule
from tvmq.target import get_target


@pytest.mark.parametrize("shape", [(1, 14, 14, 256), (2, 7, 7, 33), (3, 1, 1, 10), (1, 5, 3, 1)])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_channels_first(shape, dtype):
    core = get_target("host")
    function = schedule(channels_first(*shape, dtype), core)
    assert function.attrs["tirx.is_scheduled"]
    library = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), core.tvm_target())
    data = np.random.default_rng(0).integers(-99, 99, shape).astype(dtype)
    output = tvm.runtime.tensor(np.zeros((shape[0], shape[3], shape[1], shape[2]), dtype))
    library["main"](tvm.runtime.tensor(data), output)
    np.testing.assert_array_equal(output.numpy(), data.transpose(0, 3, 1, 2))
