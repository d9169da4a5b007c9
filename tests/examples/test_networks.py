"""The trained networks that come along: whole, small, and what their logs say they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvmq

FOLDER = Path(__file__).parents[2] / "examples" / "networks"
LOGS = Path(__file__).parents[2] / "examples" / "recipes" / "results"
NETWORKS = sorted(path.stem for path in FOLDER.glob("*.tvmq"))


def untimed(receipt: dict[str, Any]) -> list[dict[str, Any]]:
    """Its layers without what depends on the machine that measured them."""
    return [{key: layer[key] for key in layer if key not in ("seconds", "share")} for layer in receipt["layers"]]


def test_there_are_some():
    assert NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_receipts_are_those_of_the_files(name):
    bundle = tvmq.load_bundle(FOLDER / f"{name}.tvmq")
    assert (FOLDER / f"{name}.tvmq").stat().st_size < 1_000_000
    receipts = json.loads((FOLDER / f"{name}.json").read_text())["receipts"]
    assert list(receipts) == bundle.targets
    for target, receipt in receipts.items():
        assert untimed(receipt) == untimed(bundle.report(target).as_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_logs_tell_of_the_whole_test_set_as_built(name):
    log = json.loads((LOGS / f"{name.replace('-', '_')}.json").read_text())
    assert log["network"] == name
    assert abs(log["test_accuracy_as_built"] - log["test_accuracy"]) <= 0.0002
    assert len(log["curve"]) == log["settings"]["epochs"]


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_again_they_give_what_they_gave(name):
    bundle = tvmq.load_bundle(FOLDER / f"{name}.tvmq")
    again = tvmq.compile(tvmq.load(FOLDER / f"{name}.tvmq"), "host", check_inputs=bundle.check_inputs)
    assert again.check("host") == []
    for found, expected in zip(again.check_outputs, bundle.check_outputs, strict=True):
        np.testing.assert_array_equal(found, expected)
