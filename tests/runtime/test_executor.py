from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvmq.errors import BundleError, InputError
from tvmq.runtime.executor import Executor


def test_float_network_gives_what_numpy_gives(float_network, float_library):
    outputs = Executor.from_bytes(float_library).run(*float_network.arrays)
    assert len(outputs) == 2
    for output, expected in zip(outputs, float_network.expected, strict=True):
        assert output.dtype == expected.dtype
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


def test_integer_network_is_exact_and_may_return_one_tensor(integer_network, integer_library):
    outputs = Executor.from_bytes(integer_library).run(*integer_network.arrays)
    assert len(outputs) == 1
    np.testing.assert_array_equal(outputs[0], integer_network.expected[0], strict=True)


def test_outputs_are_new_arrays(integer_network, integer_library):
    executor = Executor.from_bytes(integer_library)
    x, bias = integer_network.arrays
    (first,) = executor.run(x, bias)
    (second,) = executor.run(x, bias + np.int32(1))
    np.testing.assert_array_equal(first, integer_network.expected[0])
    np.testing.assert_array_equal(second, integer_network.expected[0] + 1)


def test_strided_arrays_are_read_correctly(integer_network, integer_library):
    x, bias = integer_network.arrays
    transposed = np.asfortranarray(x)
    assert not transposed.flags.c_contiguous
    (output,) = Executor.from_bytes(integer_library).run(transposed, bias)
    np.testing.assert_array_equal(output, integer_network.expected[0])


def test_library_file_may_go_once_it_is_loaded(integer_network, integer_library, tmp_path):
    path = tmp_path / "network.so"
    path.write_bytes(integer_library)
    executor = Executor(path)
    path.unlink()
    (output,) = executor.run(*integer_network.arrays)
    np.testing.assert_array_equal(output, integer_network.expected[0])


def test_loading_from_memory_leaves_no_file(integer_network, integer_library, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    executor = Executor.from_bytes(integer_library)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(executor.run(*integer_network.arrays)[0], integer_network.expected[0])
    with pytest.raises(BundleError):
        Executor.from_bytes(b"not a library")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_array_is_refused(float_library):
    executor = Executor.from_bytes(float_library)
    with pytest.raises(InputError, match="input 0 is a list"):
        executor.run([1.0, 2.0])


def test_wrong_number_of_inputs_is_refused(float_network, float_library):
    with pytest.raises(InputError, match=r"takes 1 input\(s\), but 2"):
        Executor.from_bytes(float_library).run(*float_network.arrays, *float_network.arrays)


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(200)])
def test_what_is_no_library_is_refused(tmp_path, content):
    path = tmp_path / "broken.so"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"broken\.so: not a compiled network"):
        Executor(path)


def test_missing_library_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"absent\.so: no such library"):
        Executor(tmp_path / "absent.so")


def test_call_times_list_the_kernels_in_order(float_network, float_library):
    calls = Executor.from_bytes(float_library).call_times(*float_network.arrays, repeat=3)
    names = [name for name, _ in calls]
    assert names.index("conv2d") < names.index("relu") < names.index("matmul")
    assert all(0 < seconds < 1 for _, seconds in calls)
    assert not any(name.startswith("vm.") for name in names)


def test_call_times_are_those_of_the_given_clock(float_network, float_library):
    ticks = itertools.count(start=5, step=2)
    calls = Executor.from_bytes(float_library).call_times(*float_network.arrays, repeat=2, clock=lambda: next(ticks))
    assert {seconds for _, seconds in calls} == {2}


def test_bound_runs_on_the_inputs_as_they_were(float_network, float_library):
    executor = Executor.from_bytes(float_library)
    array = float_network.arrays[0].copy()
    run = executor.bound(array)
    array[:] = 0
    np.testing.assert_array_equal(run()[1].numpy(), executor.run(*float_network.arrays)[1])
    with pytest.raises(InputError, match=r"takes 1 input\(s\), but 0"):
        executor.bound()


def test_function_times_add_up_the_calls(float_network, float_library):
    times = Executor.from_bytes(float_library).function_times(*float_network.arrays, repeat=3)
    assert {"conv2d", "relu", "matmul"} <= set(times)
    assert all(0 < seconds < 1 for seconds in times.values())


def test_profiling_leaves_no_instrument_behind(float_network, float_library, monkeypatch):
    executor = Executor.from_bytes(float_library)
    executor.call_times(*float_network.arrays, repeat=1)

    def refuse(self, *arguments):
        raise AssertionError("the recorder was called outside a profile")

    monkeypatch.setattr("tvmq.runtime.executor._Recorder.__call__", refuse)
    np.testing.assert_allclose(executor.run(*float_network.arrays)[1], float_network.expected[1], rtol=1e-4, atol=1e-4)


def test_time_counts_the_runs(float_network, float_library):
    timing = Executor.from_bytes(float_library).time(*float_network.arrays, repeat=7)
    assert timing.repeat == 7
    assert 0 < timing.minimum <= timing.median <= timing.maximum < 1


def test_runs_where_only_the_runtime_is_installed(float_network, float_library, tmp_path, run_python):
    """A device has no compiler: the same code must work without libtvm_compiler."""
    (tmp_path / "network.so").write_bytes(float_library)
    np.save(tmp_path / "x.npy", float_network.arrays[0])
    np.save(tmp_path / "scores.npy", float_network.expected[1])
    script = """
        import numpy as np, tvm.base
        assert tvm.base._RUNTIME_ONLY
        from tvmq.runtime.executor import Executor
        executor = Executor("network.so")
        x = np.load("x.npy")
        np.testing.assert_allclose(executor.run(x)[1], np.load("scores.npy"), rtol=1e-4, atol=1e-4)
        assert "conv2d" in executor.function_times(x, repeat=1)
        assert executor.time(x, repeat=2).repeat == 2
        print("fine")
    """
    result = run_python(script, TVM_USE_RUNTIME_LIB="1")
    assert result.stdout == "fine\n", result.stderr
