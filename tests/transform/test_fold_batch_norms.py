"""Float batch norms become one affine."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import ir as I
from tvm.script import relax as R

from tvmq.dialect import affine, constant
from tvmq.errors import ModelError
from tvmq.transform import FoldBatchNorms

GAMMA, BETA, MEAN, VARIANCE = ([2.0, -1.0], [0.5, 0.0], [1.0, 4.0], [4.0, 16.0])


def parameters(*arrays):
    return [constant(np.array(values, np.float32)) for values in arrays]


def test_constants_are_composed(assert_same):
    values = parameters(GAMMA, BETA, MEAN, VARIANCE)
    scale, offset = parameters([1.0, -0.25], [-0.5, 1.0])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 2, 4, 4), "float32")):
            with R.dataflow():
                bn = R.nn.batch_norm(x, *values, axis=1, epsilon=0.0, training=False)
                y = R.nn.relu(bn[0])
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((3, 2, 4, 4), "float32")):
            with R.dataflow():
                bn = affine(x, scale, offset)
                y = R.nn.relu(bn)
                R.output(y)
            return y

    assert_same(FoldBatchNorms()(Before), Expected)


def test_other_axes_and_unknown_parameters_stay(assert_same):
    values = parameters(GAMMA, BETA, MEAN, VARIANCE)

    @I.ir_module
    class OtherAxis:
        @R.function
        def main(x: R.Tensor((3, 4, 4, 2), "float32")):
            with R.dataflow():
                bn = R.nn.batch_norm(x, *values, axis=3, training=False)
                y = R.nn.relu(bn[0])
                R.output(y)
            return y

    @I.ir_module
    class Unknown:
        @R.function
        def main(x: R.Tensor((3, 2, 4, 4), "float32"), gamma: R.Tensor((2,), "float32")):
            with R.dataflow():
                bn = R.nn.batch_norm(x, gamma, *values[1:], axis=1, training=False)
                y = R.nn.relu(bn[0])
                R.output(y)
            return y

    for module in (OtherAxis, Unknown):
        assert_same(FoldBatchNorms()(module), module)


def test_broken_parameters_are_named():
    values = parameters(GAMMA, BETA, MEAN, [np.nan, 1.0])

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 2, 4, 4), "float32")):
            with R.dataflow():
                conv7 = R.nn.relu(x)
                bn = R.nn.batch_norm(conv7, *values, axis=1, training=False)
                y = bn[0]
                R.output(y)
            return y

    with pytest.raises(ModelError, match="layer 'conv7'"):
        FoldBatchNorms()(Before)
