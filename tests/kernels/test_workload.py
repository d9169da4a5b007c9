"""The description of a convolution: validation, derived sizes, and its text."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from tvmq.kernels.workload import Affine, Conv2dWorkload, Integer, Thresholds


@pytest.mark.parametrize("epilogue", [Thresholds(3, (3, 1, 2, 0), 2), Integer(), Affine()], ids=repr)
def test_the_text_of_a_workload_gives_it_back(epilogue: Any, family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(family, epilogue=epilogue, row_classes=3, **reference.planes(2, 2))
    text = workload.to_json()
    assert Conv2dWorkload.from_json(text) == workload
    assert Conv2dWorkload.from_json(text).to_json() == text
    assert " " not in text


@pytest.mark.parametrize("text", ["{}", '{"epilogue":{"kind":"Softmax"}}', "[]", "not json"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Conv2dWorkload.from_json(text)


def test_derived_sizes(family: Any, reference: SimpleNamespace) -> None:
    workload = reference.make_workload(
        family,
        height=9,
        width=11,
        in_channels=33,
        out_channels=70,
        strides=(2, 1),
        dilation=(1, 2),
        padding=(1, 0, 0, 2),
    )
    assert (workload.out_height, workload.out_width) == (4, 9)
    assert workload.in_words == (2 if workload.word_bits == 32 else 5)
    assert workload.out_channels_padded % workload.lanes == workload.out_channels_padded % workload.word_bits == 0
    assert 70 <= workload.out_channels_padded < 70 + 64
    assert workload.macs == 4 * 9 * 70 * 9 * 33
    assert workload.weight_shape()[0] * workload.lanes == workload.out_channels_padded


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel": (3,)}, "2 integers"),
        ({"kernel": (12, 1)}, "does not fit"),
        ({"strides": (0, 1)}, "positive"),
        ({"padding": (-1, 0, 0, 0)}, "negative"),
        ({"word_bits": 64}, "8 or 32"),
        ({"lanes": 12}, "lanes"),
        ({"combine": "or"}, "'dot' or 'table'"),
        ({"weight_planes": 2}, "2 integers"),
        ({"plane_class": ((1,),)}, "classes"),
        ({"row_classes": 10}, "row_classes"),
        ({"col_classes": 0}, "col_classes"),
        ({"activation_multiplier": (1, 2)}, "1 integers"),
        ({"epilogue": None}, "epilogue"),
    ],
)
def test_contradictions_are_refused(
    fields: dict[str, Any], message: str, family: Any, reference: SimpleNamespace
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(reference.make_workload(family), **fields)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (0,), 1), "at least one threshold"),
        ((1, (0,), 1), "need 2 codes"),
        ((1, (0, 2), 1), "do not fit"),
        ((1, (0, 1), 9), "1 to 8"),
    ],
)
def test_a_table_of_codes_must_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Thresholds(*arguments)
