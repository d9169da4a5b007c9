"""Lines that a kernel touches, of kernels whose lines can be told by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tvm.script import tirx as T

from tvmq.tuning.accesses import touched_lines


@T.prim_func(s_tir=True, private=True)
def copy_rows(data: T.Buffer((4, 64), "uint8"), output: T.Buffer((2, 64), "uint8")):
    for i, j in T.grid(2, 64):
        output[i, j] = data[2 * i, j]


@T.prim_func(s_tir=True, private=True)
def vectors(data: T.Buffer((64,), "float32"), output: T.Buffer((64,), "float32")):
    for i in range(2):
        for lane in T.vectorized(32):
            output[32 * i + lane] = data[32 * i + lane]


@T.prim_func(s_tir=True, private=True)
def padded(data: T.Buffer((128,), "uint8"), output: T.Buffer((256,), "uint8")):
    for i in range(256):
        if i < 128:
            output[i] = T.if_then_else(i < 64, T.uint8(0), data[i], dtype="uint8")


@T.prim_func(s_tir=True, private=True)
def looked_up(data: T.Buffer((256,), "uint8"), places: T.Buffer((1,), "int32")):
    kept = T.alloc_buffer((1,), "uint8", scope="local")
    kept[0] = data[places[0] + 128]
    for i in range(2):
        bound: T.let[T.int32] = 64 * i
        data[bound] = kept[0]


@T.prim_func(s_tir=True, private=True)
def batches(handle: T.handle, output_handle: T.handle):
    samples = T.int64()
    data = T.match_buffer(handle, (samples, 64), "uint8")
    output = T.match_buffer(output_handle, (samples, 64), "uint8")
    copy = T.alloc_buffer((samples, 64), "uint8")
    for i, j in T.grid(samples, 64):
        copy[i, j] = data[i, j]
    for i, j in T.grid(samples, 64):
        output[i, j] = copy[i, j]


@pytest.mark.parametrize(
    ("kernel", "data", "output"),
    [
        (copy_rows, [0, 2], [0, 1]),
        (vectors, [0, 1, 2, 3], [0, 1, 2, 3]),
        (padded, [1], [0, 1]),
    ],
)
def test_lines_of_two_arrays(kernel, data, output):
    lines = touched_lines(kernel, 64)
    first = np.min(lines[lines > max(data)])
    assert lines[lines <= max(data)].tolist() == data
    assert (lines[lines >= first] - first).tolist() == output


def test_positions_from_memory_are_zero_and_registers_have_no_lines():
    *data, _ = sorted(touched_lines(looked_up, 64).tolist())
    assert data == [0, 1, 2]


def test_an_open_size_is_one():
    assert len(touched_lines(batches, 64)) == 4


def test_more_notes_than_there_was_room_for(monkeypatch):
    monkeypatch.setattr("tvmq.tuning.accesses._FIRST_GUESS", 1)
    assert len(touched_lines(vectors, 64)) == 8
