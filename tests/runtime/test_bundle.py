from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import zipfile

import numpy as np
import pytest

from tvmq.errors import BundleError, InputError
from tvmq.machine import Machine
from tvmq.runtime.bundle import Bundle, load_bundle
from tvmq.target import get_target

X86 = {"triple": "x86_64-linux-gnu", "mcpu": "x86-64", "required_cpu_flags": []}
AVX2 = {"triple": "x86_64-linux-gnu", "mcpu": "haswell", "required_cpu_flags": ["avx2"]}
AVX512 = {
    "triple": "x86_64-linux-gnu",
    "mcpu": "icelake-server",
    "required_cpu_flags": ["avx512f", "avx512_vpopcntdq"],
}
PI_3 = {"triple": "aarch64-linux-gnu", "mcpu": "cortex-a53", "required_cpu_flags": ["asimd"]}
PI_4 = {"triple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "required_cpu_flags": ["asimd"]}


@pytest.fixture
def on_machine(monkeypatch):
    """Make the bundle believe that it is on another machine, and catch every library that it would load."""
    loaded: list[bytes] = []

    def pretend(machine: Machine) -> list[bytes]:
        monkeypatch.setattr("tvmq.runtime.bundle.this_machine", lambda: machine)
        return loaded

    class Loaded:
        def run(self, *arrays):
            return [np.zeros(1)]

    def load(library: bytes) -> Loaded:
        loaded.append(library)
        return Loaded()

    monkeypatch.setattr("tvmq.runtime.executor.Executor.from_bytes", load)
    return pretend


def rewrite(path, edit):
    """Replace members of a zip file; ``edit`` changes the dictionary of them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edit_manifest(path, edit):
    def change(members):
        manifest = json.loads(members["manifest.json"])
        edit(manifest)
        members["manifest.json"] = json.dumps(manifest).encode()

    rewrite(path, change)


@pytest.fixture
def saved(make_bundle, tmp_path):
    path = tmp_path / "net.tvmq"
    make_bundle().save(path)
    return path


def test_round_trip(make_bundle, float_network, saved):
    bundle = make_bundle()
    loaded = load_bundle(saved)
    assert loaded.manifest == bundle.manifest
    assert loaded.model_json == bundle.model_json
    assert loaded.libraries == bundle.libraries
    assert loaded.path == saved
    assert loaded.targets == ["host"]
    assert [layer["name"] for layer in loaded.layers("host")] == ["conv1", "fc"]
    assert str(loaded.inputs[0]) == "x: float32[1, 3, 8, 8]"
    np.testing.assert_array_equal(loaded.check_inputs[0], float_network.arrays[0], strict=True)
    for read, written in zip(loaded.check_outputs, float_network.expected, strict=True):
        np.testing.assert_array_equal(read, written, strict=True)
    outputs = loaded.run(float_network.arrays[0])
    np.testing.assert_allclose(outputs[1], float_network.expected[1], rtol=1e-4, atol=1e-4)


def test_members_and_hashes_of_the_file(saved):
    with zipfile.ZipFile(saved) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("manifest.json"))
        hashes = {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names if name != "manifest.json"}
    assert names == [
        "manifest.json",
        "model.json",
        "libraries/host.so",
        "check/input_0.npy",
        "check/output_0.npy",
        "check/output_1.npy",
    ]
    assert manifest["format"] == 1
    assert manifest["hashes"] == hashes
    assert manifest["targets"]["host"]["sha256"] == hashes["libraries/host.so"]
    assert manifest["targets"]["host"]["library"] == "libraries/host.so"


def test_equal_bundles_are_equal_files(make_bundle, tmp_path):
    make_bundle().save(tmp_path / "a.tvmq")
    load_bundle(tmp_path / "a.tvmq").save(tmp_path / "b.tvmq")
    assert (tmp_path / "a.tvmq").read_bytes() == (tmp_path / "b.tvmq").read_bytes()


def test_caller_keeps_its_manifest(make_bundle):
    manifest = make_bundle().manifest
    del manifest["hashes"]
    bundle = Bundle(manifest, "{}", {"host": b"library"})
    assert "hashes" in bundle.manifest
    assert "hashes" not in manifest


def test_saved_arrays_are_those_of_the_moment(make_bundle, tmp_path):
    bundle = make_bundle()
    bundle.check_inputs = [bundle.check_inputs[0] + 1]
    bundle.save(tmp_path / "net.tvmq")
    np.testing.assert_array_equal(load_bundle(tmp_path / "net.tvmq").check_inputs[0], bundle.check_inputs[0])


def test_save_replaces_an_older_file_and_leaves_nothing_else(make_bundle, tmp_path):
    path = tmp_path / "net.tvmq"
    path.write_text("old")
    make_bundle().save(path)
    assert load_bundle(path).targets == ["host"]
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_save_leaves_the_old_file_and_nothing_else(make_bundle, tmp_path, monkeypatch, failing, error):
    path = tmp_path / "net.tvmq"
    path.write_text("old")
    bundle = make_bundle()

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(BundleError if isinstance(error, OSError) else KeyboardInterrupt):
            bundle.save(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_killed_save_leaves_the_old_file_whole(saved, run_python):
    """Killed at the last moment before the new file is in place."""
    before = saved.read_bytes()
    script = f"""
        import os, signal
        from tvmq.runtime.bundle import load_bundle
        bundle = load_bundle({str(saved)!r})
        bundle.model_json = "changed"
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
        bundle.save({str(saved)!r})
    """
    result = run_python(script)
    assert result.returncode == -signal.SIGKILL
    assert saved.read_bytes() == before


def test_place_that_cannot_be_written_is_named(make_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"absent/net\.tvmq: cannot be written"):
        make_bundle().save(tmp_path / "absent" / "net.tvmq")


def test_missing_file(tmp_path):
    with pytest.raises(BundleError, match=r"net\.tvmq: no such file; .*tvmq compile -o"):
        load_bundle(tmp_path / "net.tvmq")


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("content", [b"", b"ONNX is something else", b"\x00" * 100])
def test_not_a_zip_file(tmp_path, content):
    path = tmp_path / "net.tvmq"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"net\.tvmq: not a \.tvmq file, as it is not a zip"):
        load_bundle(path)


def test_truncated_at_any_point(saved):
    content = saved.read_bytes()
    for length in range(4, len(content), len(content) // 40):
        saved.write_bytes(content[:length])
        with pytest.raises(BundleError, match=r"net\.tvmq: truncated or damaged; copy"):
            load_bundle(saved)


def test_changed_bytes_are_found_or_do_not_matter(saved, make_bundle):
    content = saved.read_bytes()
    good = make_bundle()
    generator = random.Random(3)
    found = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        try:
            bundle = load_bundle(saved)
        except BundleError as error:
            assert str(error).startswith(f"{saved}: ")
            found += 1
            continue
        assert bundle.libraries == good.libraries
        assert bundle.manifest == good.manifest
    assert found > 250


def test_zip_file_without_a_manifest(saved):
    rewrite(saved, lambda members: members.pop("manifest.json"))
    with pytest.raises(BundleError, match=r"net\.tvmq: not a \.tvmq file, as it has no manifest\.json"):
        load_bundle(saved)


def test_manifest_that_is_no_json(saved):
    rewrite(saved, lambda members: members.update({"manifest.json": b"{"}))
    with pytest.raises(BundleError, match=r"net\.tvmq: its manifest\.json is damaged"):
        load_bundle(saved)


@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "install a newer tvmq"), (0, "compile it again"), (None, "compile it again")]
)
def test_other_format_versions(saved, version, remedy):
    edit_manifest(saved, lambda manifest: manifest.update(format=version))
    with pytest.raises(BundleError, match=f"has format version {version}, and this tvmq reads 1; {remedy}"):
        load_bundle(saved)


@pytest.mark.parametrize("member", ["libraries/host.so", "model.json", "check/output_1.npy"])
def test_member_of_another_file(saved, member):
    rewrite(saved, lambda members: members.update({member: b"something else"}))
    with pytest.raises(BundleError, match=f"net.tvmq: its member {member} is not what was saved"):
        load_bundle(saved)


def test_member_that_nobody_saved(saved):
    rewrite(saved, lambda members: members.update({"libraries/other.so": b"code"}))
    with pytest.raises(BundleError, match=r"libraries/other\.so is not what was saved"):
        load_bundle(saved)


@pytest.mark.parametrize("member", ["libraries/host.so", "model.json", "check/input_0.npy"])
def test_missing_member(saved, member):
    rewrite(saved, lambda members: members.pop(member))
    with pytest.raises(BundleError, match=f"net.tvmq: its member {member} is missing"):
        load_bundle(saved)


@pytest.mark.parametrize("key", ["hashes", "targets", "name", "inputs", "outputs", "layers"])
def test_manifest_without_a_part(saved, key):
    edit_manifest(saved, lambda manifest: manifest.pop(key))
    with pytest.raises(BundleError, match=f"net.tvmq: its manifest.* has no '{key}'"):
        load_bundle(saved)


@pytest.mark.parametrize("inputs", ["x", [{"name": "x"}], [{"name": "x", "shape": [1], "dtype": "nonsense"}], 3])
def test_manifest_with_nonsense_inputs(saved, inputs):
    edit_manifest(saved, lambda manifest: manifest.update(inputs=inputs))
    with pytest.raises(BundleError, match=r"net\.tvmq: "):
        load_bundle(saved)


def test_targets_and_libraries_must_belong_together(make_bundle):
    manifest = make_bundle().manifest
    with pytest.raises(BundleError, match="name different targets"):
        Bundle(manifest, "{}", {"raspberry-pi-4": b"library"})
    with pytest.raises(BundleError, match="name different targets"):
        Bundle({**manifest, "targets": {}}, "{}", {})


def test_file_without_a_library(make_bundle, float_network, tmp_path):
    rows = [{"layer": "conv1", "weights": "ternary"}]
    manifest = {**make_bundle().manifest, "targets": {}, "layers": {}, "quantization": rows}
    path = tmp_path / "net.tvmq"
    Bundle(manifest, '{"a": 1}', {}).save(path)
    bundle = load_bundle(path)
    assert (bundle.targets, bundle.model_json, bundle.check_inputs) == ([], '{"a": 1}', [])
    assert bundle.manifest["quantization"] == rows
    message = rf"^{path}: it has no library yet; compile it with `tvmq compile {path} --target host -o \S+`$"
    array = float_network.arrays[0]
    for action in (
        lambda: bundle.run(array),
        lambda: bundle.run(array, target="host"),
        lambda: bundle.run_emulated("raspberry-pi-4", array),
        lambda: bundle.time(),
        lambda: bundle.check(),
        lambda: bundle.report(),
        lambda: bundle.report("host"),
        lambda: bundle.layers("host"),
        bundle.require_compiled,
    ):
        with pytest.raises(BundleError, match=message):
            action()
    make_bundle().require_compiled()


@pytest.mark.parametrize("key", ["triple", "mcpu", "required_cpu_flags"])
def test_targets_must_be_complete(make_bundle, key):
    entry = {name: value for name, value in X86.items() if name != key}
    with pytest.raises(BundleError, match=f"target 'host' has no '{key}'"):
        make_bundle(host=entry)


def test_target_names_cannot_leave_their_folder(make_bundle):
    with pytest.raises(BundleError, match=r"target name '\.\./host'"):
        make_bundle(**{"../host": X86})


def test_check_inputs_must_fit_the_network(make_bundle):
    bundle = make_bundle()
    with pytest.raises(InputError, match="has shape"):
        Bundle(bundle.manifest, "{}", bundle.libraries, [np.zeros((1, 3), "float32")], bundle.check_outputs)
    with pytest.raises(BundleError, match="self-check has 1 outputs"):
        Bundle(bundle.manifest, "{}", bundle.libraries, bundle.check_inputs, bundle.check_outputs[:1])


def test_inputs_are_checked(make_bundle, float_network):
    bundle = make_bundle()
    with pytest.raises(InputError, match=r'astype\("float32"\)'):
        bundle.run(float_network.arrays[0].astype("float64"))
    with pytest.raises(InputError, match=r"takes 1 input\(s\)"):
        bundle.run()


def test_host_is_preferred(make_bundle, on_machine, float_network):
    on_machine(Machine("x86_64", frozenset({"avx2", "avx512f", "avx512_vpopcntdq"})))
    bundle = make_bundle(**{"x86-avx512": AVX512, "host": X86})
    bundle.run(*float_network.arrays)
    assert list(bundle._executors) == ["host"]


def test_most_specific_library_is_preferred(make_bundle, on_machine, float_network):
    on_machine(Machine("x86_64", frozenset({"avx2", "avx512f", "avx512_vpopcntdq"})))
    bundle = make_bundle(**{"x86-avx2": AVX2, "x86-avx512": AVX512, "x86": X86})
    assert bundle.default_target == "x86-avx512"
    bundle.run(*float_network.arrays)
    assert list(bundle._executors) == ["x86-avx512"]


def test_libraries_that_do_not_fit_are_passed_over(make_bundle, on_machine, float_network):
    loaded = on_machine(Machine("x86_64", frozenset({"avx2", "avx512f"})))
    bundle = make_bundle(**{"host": AVX512, "x86-avx2": AVX2, "raspberry-pi-4": PI_4})
    bundle.run(*float_network.arrays)
    bundle.run(*float_network.arrays)
    assert list(bundle._executors) == ["x86-avx2"]
    assert len(loaded) == 1


def test_library_for_this_very_core_is_preferred(make_bundle, on_machine, float_network):
    on_machine(Machine("aarch64", frozenset({"asimd"}), "cortex-a72"))
    bundle = make_bundle(**{"raspberry-pi-3": PI_3, "raspberry-pi-4": PI_4})
    bundle.run(*float_network.arrays)
    assert list(bundle._executors) == ["raspberry-pi-4"]


def test_no_library_for_this_machine(make_bundle, on_machine, float_network):
    loaded = on_machine(Machine("x86_64", frozenset({"avx2"})))
    bundle = make_bundle(**{"raspberry-pi-4": PI_4, "x86-avx512": AVX512})
    expected = r"no library fits this machine \(x86_64; .*raspberry-pi-4 \(aarch64\).*--on qemu.*tvmq compile --target"
    with pytest.raises(BundleError, match=expected):
        bundle.run(*float_network.arrays)
    with pytest.raises(BundleError, match=expected):
        bundle.default_target  # noqa: B018
    assert loaded == []


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("x86-avx512", r"needs avx512_vpopcntdq, avx512f, which this processor lacks"),
        ("raspberry-pi-4", r"is for aarch64, and this is x86_64"),
    ],
)
def test_library_for_another_core_is_refused_before_it_is_loaded(
    make_bundle, on_machine, float_network, target, reason
):
    loaded = on_machine(Machine("x86_64", frozenset({"avx2"})))
    bundle = make_bundle(**{"x86-avx2": AVX2, "raspberry-pi-4": PI_4, "x86-avx512": AVX512})
    with pytest.raises(BundleError, match=rf"its library for '{target}' {reason}.*tvmq compile --target host"):
        bundle.run(*float_network.arrays, target=target)
    with pytest.raises(BundleError, match=reason):
        bundle.time(target=target)
    assert loaded == []


def test_unknown_target_gets_a_suggestion(make_bundle):
    bundle = make_bundle(**{"raspberry-pi-4": PI_4})
    with pytest.raises(BundleError, match=r"no library for target 'raspbery-pi-4'.*did you mean 'raspberry-pi-4'"):
        bundle.layers("raspbery-pi-4")


def test_messages_name_the_file(saved):
    with pytest.raises(BundleError, match=r"net\.tvmq: it holds no library for target 'x'"):
        load_bundle(saved).run(np.zeros((1, 3, 8, 8), "float32"), target="x")


def test_time_uses_the_self_check_by_default(make_bundle, float_network):
    bundle = make_bundle()
    assert bundle.time(repeat=3).repeat == 3
    assert bundle.time(*float_network.arrays, repeat=2).repeat == 2


def test_bound_and_call_times_use_the_self_check_by_default(make_bundle, float_network):
    bundle = make_bundle()
    np.testing.assert_array_equal(bundle.bound()()[1].numpy(), bundle.run(*float_network.arrays)[1])
    names = [name for name, _ in bundle.call_times(repeat=1)]
    assert names == [name for name, _ in bundle.call_times(*float_network.arrays, repeat=1)]
    assert names.index("conv2d") < names.index("matmul")
    with pytest.raises(InputError, match="has shape"):
        bundle.bound(float_network.arrays[0][:, :1])


def test_check_accepts_the_right_outputs(make_bundle, float_network):
    bundle = make_bundle()
    bundle.check_outputs = bundle.run(*float_network.arrays)
    assert bundle.check() == []


def test_check_describes_what_differs(make_bundle, float_network):
    bundle = make_bundle()
    activations, scores = bundle.run(*float_network.arrays)
    changed = scores.copy()
    changed[0, 3] += 2
    bundle.check_outputs = [activations, changed]
    assert bundle.check() == ["output 'scores': 1 of 10 values differ, by up to 2"]


def test_mismatches_of_number_shape_and_type(make_bundle):
    bundle = make_bundle()
    activations, scores = bundle.check_outputs
    assert bundle.mismatches([activations]) == ["1 outputs instead of 2"]
    assert bundle.mismatches([activations, scores[0]]) == ["output 'scores' is float32[10] instead of float32[1, 10]"]
    assert bundle.mismatches([activations.astype("int8"), scores]) == [
        "output 'activations' is int8[1, 4, 8, 8] instead of float32[1, 4, 8, 8]"
    ]


def test_not_a_number_equals_itself(make_bundle):
    bundle = make_bundle()
    activations, scores = bundle.check_outputs
    scores = np.full_like(scores, np.nan)
    bundle.check_outputs = [activations, scores]
    assert bundle.mismatches([activations, scores.copy()]) == []


def test_check_without_a_self_check(make_bundle):
    bundle = make_bundle()
    empty = Bundle(bundle.manifest, "{}", bundle.libraries)
    with pytest.raises(BundleError, match="no self-check inputs"):
        empty.check()


def test_report_measures_the_layers(make_bundle):
    report = make_bundle().report()
    assert report.target == "host"
    assert [layer.name for layer in report.layers] == ["conv1", "fc"]
    assert all(layer.seconds is not None and 0 < layer.seconds < 1 for layer in report.layers)
    assert "conv1" in str(report)


def test_report_of_another_machines_library_has_no_times(make_bundle, on_machine):
    loaded = on_machine(Machine("x86_64"))
    report = make_bundle(**{"raspberry-pi-4": PI_4}).report()
    assert report.target == "raspberry-pi-4"
    assert all(layer.seconds is None for layer in report.layers)
    assert loaded == []


def test_layers_whose_kernel_runs_more_often_have_no_times(make_bundle):
    bundle = make_bundle()
    bundle.manifest["layers"]["host"][1]["function"] = "conv2d"
    assert all(layer.seconds is None for layer in bundle.report().layers)


def test_layers_are_copies(make_bundle):
    bundle = make_bundle()
    bundle.layers("host")[0]["name"] = "changed"
    assert bundle.layers("host")[0]["name"] == "conv1"


def test_works_where_only_the_runtime_is_installed(saved, run_python):
    script = f"""
        import sys
        from tvmq.runtime.bundle import load_bundle
        bundle = load_bundle({str(saved)!r})
        assert "tvm" not in sys.modules  # reading a file does not wait for TVM
        bundle.check_outputs = bundle.run(*bundle.check_inputs)
        assert bundle.check() == []
        assert "conv1" in str(bundle.report())
        print("fine")
    """
    result = run_python(script, TVM_USE_RUNTIME_LIB="1")
    assert result.stdout == "fine\n", result.stderr


def test_emulated_run_of_a_target_that_is_not_in_the_file(make_bundle, float_network):
    with pytest.raises(BundleError, match="no library for target 'raspberry-pi-4'"):
        make_bundle().run_emulated("raspberry-pi-4", *float_network.arrays)


def test_emulated_run_from_a_bundle(make_bundle, float_network, runner_cache):
    target = get_target("raspberry-pi-4")
    bundle = make_bundle(**{target.name: PI_4})
    bundle.libraries[target.name] = float_network.library(target)
    outputs = bundle.run_emulated(target.name, *float_network.arrays)
    np.testing.assert_allclose(outputs[1], float_network.expected[1], rtol=1e-4, atol=1e-4)
