from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tvmq.cli.arrays import read_arrays, write_arrays
from tvmq.errors import InputError

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4, dtype=np.uint8)


def test_by_name_whatever_the_order(tmp_path):
    np.savez(tmp_path / "x.npz", labels=np.zeros(2), b=B, a=A)
    first, second = read_arrays(tmp_path / "x.npz", ["a", "b"])
    assert (first.dtype, second.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(first, A)
    np.testing.assert_array_equal(second, B)


def test_by_position_where_the_numbers_agree(tmp_path):
    np.savez(tmp_path / "x.npz", A, B)
    first, second = read_arrays(tmp_path / "x.npz", ["a", "b"])
    np.testing.assert_array_equal(first, A)
    np.testing.assert_array_equal(second, B)


def test_npy(tmp_path):
    np.save(tmp_path / "x.npy", A)
    np.testing.assert_array_equal(read_arrays(tmp_path / "x.npy", ["input"])[0], A)


def test_unclear_which_array_is_which(tmp_path):
    np.savez(tmp_path / "x.npz", images=A, labels=B)
    with pytest.raises(InputError, match="holds images, labels, but the network's inputs are input"):
        read_arrays(tmp_path / "x.npz", ["input"])


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"x.npz: cannot be read \(No such file"):
        read_arrays(tmp_path / "x.npz", ["input"])


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_not_an_array_file(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x.npz: not an .npz or .npy file"):
        read_arrays(path, ["input"])


def test_pickles_are_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"not an .npz or .npy file of plain arrays"):
        read_arrays(tmp_path / "x.npy", ["input"])


def test_written_arrays_come_back(tmp_path):
    path = tmp_path / "y.npz"
    path.write_bytes(b"old")
    write_arrays(path, ["file", "y"], [A, B])
    with np.load(path) as loaded:
        np.testing.assert_array_equal(loaded["file"], A)
        np.testing.assert_array_equal(loaded["y"], B)
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_missing_folder(tmp_path):
    path = Path(tmp_path / "none" / "y.npz")
    with pytest.raises(InputError, match=r"y.npz: cannot be written \(No such file"):
        write_arrays(path, ["y"], [A])
