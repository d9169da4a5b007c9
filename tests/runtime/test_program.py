"""The program that runs networks by TVM's Python runtime, with the words of the runner that needs no Python."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tvmq.runtime.program import main


@pytest.fixture
def files(tmp_path, monkeypatch, integer_network, integer_library):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.so").write_bytes(integer_library)
    for name, array in zip(("x", "bias"), integer_network.arrays, strict=True):
        np.save(f"{name}.npy", array)
    return ["net.so", "--input", "x.npy", "--input", "bias.npy", "--output-prefix", "y"]


def test_a_network_runs(files, integer_network, capsys):
    assert main([*files, "--repeat", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == ["y0.npy"] and len(report["seconds"]) == 3
    np.testing.assert_array_equal(np.load("y0.npy"), integer_network.expected[0], strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("x.npy", "absent.npy"), "absent.npy"),
        (("net.so", "absent.so"), "no such library"),
        (("bias.npy", "net.so"), "net.so"),
    ],
)
def test_errors_are_one_line(files, capsys, change, message):
    assert main([change[1] if word == change[0] else word for word in files]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("tvmq-run: ") and said.err.count("\n") == 1
    assert message in said.err


def test_repeat_is_checked(files, capsys):
    assert main([*files, "--repeat", "0"]) == 1
    assert "repeat must be 1 or more, not 0" in capsys.readouterr().err
