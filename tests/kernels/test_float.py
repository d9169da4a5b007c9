"""The float32 epilogues equal their steps in numpy, bit for bit, on every family that runs here."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from tvmq.kernels.workload import Affine, Conv2dWorkload, Float, Thresholds

BORDER = {"row_classes": 3, "col_classes": 2}
POINTWISE = {"kernel": (1, 1), "padding": (0, 0, 0, 0)}
ONE = Thresholds(1, (0, 1), 1)
OUTPUTS = [
    (shortcut, store, thresholds)
    for shortcut, store, thresholds in itertools.product(
        (False, True), (False, True), (None, ONE, Thresholds(3, (3, 1, 2, 0), 2))
    )
    if store or thresholds
]


def pairs(activations: int, weights: int, sign: int = -1) -> dict[str, Any]:
    """Fields of a convolution whose plane pairs are weighted one by one."""
    return {
        "combine": "xor" if sign < 0 else "and",
        "activation_planes": activations,
        "weight_planes": weights,
        "plane_class": tuple(tuple(i * weights + j for j in range(weights)) for i in range(activations)),
        "class_multiplier": (sign,) * (activations * weights),
        "activation_multiplier": (0,) * activations,
    }


@pytest.mark.parametrize(("shortcut", "store", "thresholds"), OUTPUTS)
@pytest.mark.parametrize("combine", ["affine", "basis"])
def test_outputs(
    combine: str, shortcut: bool, store: bool, thresholds: Any, family: Any, reference: SimpleNamespace
) -> None:
    epilogue = Float(combine, shortcut, store, thresholds)
    fields: dict[str, Any] = {"height": 5, "width": 7, "in_channels": 40, "out_channels": 32, **BORDER}
    workload = reference.make_workload(family, **fields, **pairs(2, 1), epilogue=epilogue)
    reference.check_conv2d(workload, family)


@pytest.mark.parametrize("activations", [1, 2, 3])
@pytest.mark.parametrize("weights", [1, 2, 3])
def test_bases(activations: int, weights: int, family: Any, reference: SimpleNamespace) -> None:
    sign = 1 if (activations + weights) % 2 else -1
    fields: dict[str, Any] = {"height": 4, "width": 5, "in_channels": 40, "out_channels": 32, "row_classes": 2}
    epilogue = Float("basis", shortcut=False, store=True, thresholds=ONE)
    workload = reference.make_workload(family, **fields, **pairs(activations, weights, sign), epilogue=epilogue)
    reference.check_conv2d(workload, family)


@pytest.mark.parametrize("out_channels", [1, 10, 16, 33, 100])
@pytest.mark.parametrize("thresholds", [Thresholds(1, (1, 0), 1), Thresholds(2, (1, 0, 1), 1)], ids=repr)
def test_padded_channels_are_neither_read_nor_stored(
    out_channels: int, thresholds: Any, family: Any, reference: SimpleNamespace
) -> None:
    epilogue = Float("affine", shortcut=True, store=True, thresholds=thresholds)
    fields: dict[str, Any] = {"height": 3, "width": 5, "in_channels": 40, "out_channels": out_channels}
    reference.check_conv2d(reference.make_workload(family, **fields, **BORDER, epilogue=epilogue), family, batch=2)


@pytest.mark.parametrize("width", [1, 13, 29])
@pytest.mark.parametrize("symbolic", [True, False])
def test_surplus_pixels_are_neither_read_nor_stored(
    width: int, symbolic: bool, family: Any, reference: SimpleNamespace
) -> None:
    epilogue = Float("affine", shortcut=True, store=True, thresholds=ONE)
    fields: dict[str, Any] = {"height": 1, "width": 4 if symbolic else width, "in_channels": 100, "out_channels": 70}
    workload = reference.make_workload(family, **POINTWISE, **fields, epilogue=epilogue)
    reference.check_conv2d(workload, family, width=width if symbolic else None)


@pytest.mark.parametrize("thresholds", [Thresholds(1, (1, 0), 1), Thresholds(2, (0, 1, 2), 2)], ids=repr)
def test_not_a_number_reaches_no_threshold(thresholds: Any, family: Any, reference: SimpleNamespace) -> None:
    epilogue = Float("affine", shortcut=True, store=True, thresholds=thresholds)
    reference.check_conv2d(reference.make_workload(family, epilogue=epilogue), family, nan=True)


def test_threads_and_a_symbolic_batch(family: Any, reference: SimpleNamespace) -> None:
    cores = dataclasses.replace(family, cores=2)
    epilogue = Float("affine", shortcut=True, store=True, thresholds=ONE)
    workload = reference.make_workload(family, height=12, width=12, out_channels=512, epilogue=epilogue)
    reference.check_conv2d(workload, cores, batch=3, symbolic=True)


@pytest.mark.parametrize("combine", ["affine", "basis"])
def test_the_schedule_of_aarch64_computes_the_same(combine: str, reference: SimpleNamespace) -> None:
    here = dataclasses.replace(reference.families["aarch64"], llvm={"kind": "llvm"})
    epilogue = Float(combine, shortcut=True, store=True, thresholds=ONE)
    workload = reference.make_workload(here, out_channels=100, epilogue=epilogue, **BORDER, **pairs(2, 2))
    reference.check_conv2d(workload, here)


@pytest.mark.parametrize(("shortcut", "store", "thresholds"), OUTPUTS)
def test_the_text_of_a_workload_gives_it_back(
    shortcut: bool, store: bool, thresholds: Any, family: Any, reference: SimpleNamespace
) -> None:
    workload = reference.make_workload(family, epilogue=Float("basis", shortcut, store, thresholds))
    assert Conv2dWorkload.from_json(workload.to_json()) == workload
    assert workload.thresholds == thresholds
    assert workload.out_dtypes == ("float32",) * store + (workload.word_dtype,) * (thresholds is not None)


def test_affine_is_a_special_case(family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(family, epilogue=Affine())
    assert workload.float_epilogue == Float("affine", shortcut=False, store=True, thresholds=None)
    assert workload.out_dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sum", False, True, None), "'affine' or 'basis'"),
        (("affine", True, False, None), "store its result"),
        (("affine", True, True, 3), "Thresholds or None"),
    ],
)
def test_an_epilogue_is_checked(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Float(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"plane_class": ((0, 1), (1, 2)), "class_multiplier": (1, 1, 1)}, "class per plane pair"),
        ({"class_multiplier": (1, -1, 1, 1)}, "all 1 or all -1"),
        ({"activation_multiplier": (1, 0)}, "no sum of activations"),
    ],
)
def test_learned_bases_are_checked(
    fields: dict[str, Any], message: str, family: Any, reference: SimpleNamespace
) -> None:
    workload = reference.make_workload(family, **pairs(2, 2))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(workload, epilogue=Float("basis", False, True, None), **fields)
