"""Installing networks on boards, and what is left when that goes wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.boards import PI_3, PI_4, PI_4_32
from tvmq.errors import BoardError, BundleError, InputError
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.deploy import deploy
from tvmq.runtime.python_runtime import needed_versions

pytestmark = pytest.mark.usefixtures("runner_cache")


def tree(board) -> dict[str, bytes | str]:
    """Everything below ~/tvmq."""
    root = board.home / "tvmq"
    found = {
        str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_symlink() or path.is_file()
    }
    return {name: os.readlink(path) if path.is_symlink() else path.read_bytes() for name, path in found.items()}


def run_there(board, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(board.client / "bin" / "ssh"), "-p", *reversed(board.address.removeprefix("ssh://").split(":"))]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def prepared(ssh_server, runner_cache, board_bundle, tmp_path_factory):
    """A home folder with an installation, to copy, and what the installation said."""
    ssh_server.become(PI_4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{ssh_server.client / 'bin'}:{os.environ['PATH']}")
        done = deploy(board_bundle, ssh_server.address)
    folder = tmp_path_factory.mktemp("prepared") / "home"
    shutil.copytree(ssh_server.home, folder, symlinks=True)
    return folder, done


@pytest.fixture
def installed(board, prepared):
    """A board with an installation that has to outlive the test."""
    shutil.copytree(prepared[0], board.home, symlinks=True, dirs_exist_ok=True)
    before = tree(board)
    yield board
    now = tree(board)
    assert {name: now[name] for name in before} == before


def test_a_network_is_installed(board, prepared, board_bundle):
    home, done = prepared
    shutil.copytree(home, board.home, symlinks=True, dirs_exist_ok=True)
    assert (done.folder, done.target, done.runtime) == ("~/tvmq/net", "raspberry-pi-4", "cpp")
    assert done.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert done.timing.repeat == 20 and 0 < done.timing.minimum <= done.timing.median
    assert str(done).count("~/tvmq/net/run.sh --input x.npy --input bias.npy --output-prefix y") == 1
    assert json.loads(json.dumps(done.as_dict()))["timing"]["median"] == done.timing.median
    assert list((board.home / "tvmq" / ".parts").iterdir()) == []

    for name, array in zip(("x", "bias"), board_bundle.check_inputs, strict=True):
        np.save(board.home / f"{name}.npy", array)
    checked = run_there(board, f"tvmq/net/check.sh && {done.run_command} >/dev/null")
    assert (checked.returncode, checked.stdout) == (0, "self-check passed\n"), checked.stderr
    np.testing.assert_array_equal(np.load(board.home / "y0.npy"), board_bundle.check_outputs[0], strict=True)


def test_the_self_check_on_the_board_can_fail(board, prepared, board_bundle):
    shutil.copytree(prepared[0], board.home, symlinks=True, dirs_exist_ok=True)
    np.save(board.home / "tvmq/net/check/input0.npy", board_bundle.check_inputs[0] + np.int8(1))
    checked = run_there(board, "tvmq/net/check.sh")
    assert checked.returncode == 1 and checked.stderr.endswith("self-check failed\n")


def test_a_new_installation_replaces_the_old_one(board, prepared, board_bundle, tmp_path):
    shutil.copytree(prepared[0], board.home, symlinks=True, dirs_exist_ok=True)
    before = os.readlink(board.home / "tvmq" / "net")
    deploy(board_bundle, board.address)
    after = os.readlink(board.home / "tvmq" / "net")
    assert before != after
    assert [path.name for path in (board.home / "tvmq/.installed/net").iterdir()] == [Path(after).name]
    other = dataclasses.replace(board_bundle)
    other.save(tmp_path / "my net (2).tvmq")
    assert deploy(other, board.address).folder == "~/tvmq/my-net-2"
    assert {path.name for path in (board.home / "tvmq").iterdir()} == {"net", "my-net-2", ".installed", ".parts"}
    assert os.readlink(board.home / "tvmq" / "net") == after


def test_a_folder_of_the_user_is_left_alone(board, board_bundle):
    (board.home / "tvmq" / "net").mkdir(parents=True)
    with pytest.raises(BoardError, match=r"~/tvmq/net exists, and tvmq did not make it; choose another --name"):
        deploy(board_bundle, board.address)
    assert tree(board) == {}


@pytest.mark.parametrize("victim", ["$SSH_SESSION", "$SSH_SESSION $PPID"], ids=["connection", "power"])
def test_a_cut_in_the_middle_of_the_upload(installed, board_bundle, victim):
    installed.program("tar", f'head -c 100000 | /bin/tar "$@"; kill -9 {victim}; sleep 0.2; exit 2')
    with pytest.raises(BoardError, match="the connection was lost"):
        deploy(board_bundle, installed.address)
    if "PPID" in victim:
        assert list((installed.home / "tvmq" / ".parts").iterdir())  # what lies there does no harm
        assert run_there(installed, "tvmq/net/check.sh").returncode == 0


def test_a_connection_that_ends_between_two_files(installed, board_bundle):
    """A tar archive without its end is none the less valid; the checksums find it."""
    installed.program("tar", '/bin/tar "$@"; cd ~/tvmq/.parts/*/ && rm SHA256SUMS')
    with pytest.raises(BoardError, match=r"did not arrive whole$"):
        deploy(board_bundle, installed.address)
    assert list((installed.home / "tvmq" / ".parts").iterdir()) == []


def test_a_file_that_arrives_damaged(installed, board_bundle):
    installed.program("tar", '/bin/tar "$@"; echo x >>"$4/network.so"')
    with pytest.raises(BoardError, match=r"did not arrive whole$"):
        deploy(board_bundle, installed.address)
    assert list((installed.home / "tvmq" / ".parts").iterdir()) == []


def test_a_cut_during_the_self_check(installed, board_bundle):
    env = (installed.folder / "bin" / "env").read_text()
    installed.program("env", "kill -9 $SSH_SESSION; exit 1")
    with pytest.raises(BoardError, match="the connection was lost"):
        deploy(board_bundle, installed.address)
    (installed.folder / "bin" / "env").write_text(env)


def test_a_cut_before_the_link_is_replaced(installed, board_bundle):
    installed.program("mv", '[ "$1" != -T ] || { kill -9 $SSH_SESSION $PPID; exit 1; }; exec /bin/mv "$@"')
    with pytest.raises(BoardError, match="the connection was lost"):
        deploy(board_bundle, installed.address)
    (installed.folder / "bin" / "mv").unlink()


def test_a_disk_that_becomes_full(installed, board_bundle):
    message = "tar: network.so: Wrote only 2048 of 10240 bytes\ntar: Cannot write: No space left on device"
    installed.program("tar", f"cat >/dev/null; echo '{message}' >&2; exit 2")
    with pytest.raises(BoardError, match=r"no space left on the board; delete something there, and try again$"):
        deploy(board_bundle, installed.address)
    assert list((installed.home / "tvmq" / ".parts").iterdir()) == []


def test_a_self_check_that_fails_installs_nothing(installed, board_bundle):
    wrong = Bundle(
        manifest=board_bundle.manifest,
        model_json="{}",
        libraries=board_bundle.libraries,
        check_inputs=board_bundle.check_inputs,
        check_outputs=[board_bundle.check_outputs[0] + 1],
        path=board_bundle.path,
    )
    with pytest.raises(BoardError, match="self-check failed, nothing was installed: output 'y': 588 of 588"):
        deploy(wrong, installed.address)
    assert list((installed.home / "tvmq" / ".parts").iterdir()) == []


def test_what_does_not_fit_is_refused(board, board_bundle):
    board.become(PI_3)
    with pytest.raises(BoardError, match="does not fit"):
        deploy(board_bundle, board.address)
    assert not (board.home / "tvmq").exists()


def test_wrong_arguments(board_bundle, make_bundle):
    with pytest.raises(InputError, match="runtime must be cpp or python, not 'rust'"):
        deploy(board_bundle, "pi@board", runtime="rust")
    for name in ("", "../net", ".parts", "a b"):
        with pytest.raises(InputError, match="is not a name of letters"):
            deploy(board_bundle, "pi@board", name=name)
    bundle = make_bundle()
    bundle.check_inputs, bundle.check_outputs = [], []
    with pytest.raises(BundleError, match="it has no self-check inputs"):
        deploy(bundle, "pi@board")


def test_the_python_runtime_is_asked_for(board, board_bundle):
    versions = needed_versions()
    wanted = " ".join(f"{name}=={version}" for name, version in versions.items())
    with pytest.raises(BoardError) as error:
        deploy(board_bundle, board.address, runtime="python")
    assert "the Python runtime is not ready (there is no ~/tvmq-python); run there: python3 -m venv" in str(error.value)
    assert str(error.value).endswith(f"~/tvmq-python && ~/tvmq-python/bin/pip install {wanted}")

    venv(board, f"echo python==3.11.2 apache-tvm==0.20.0 apache-tvm-ffi=={versions['apache-tvm-ffi']}")
    with pytest.raises(BoardError) as error:
        deploy(board_bundle, board.address, runtime="python")
    instead = f"(apache-tvm 0.20.0 instead of {versions['apache-tvm']})"
    assert str(error.value).endswith(f"is not ready {instead}; run there: ~/tvmq-python/bin/pip install {wanted}")

    board.become(PI_4_32)
    with pytest.raises(BoardError, match="no Python runtime for 32-bit systems; use --runtime cpp"):
        deploy(board_bundle, board.address, runtime="python")


def venv(board, body: str) -> None:
    python = board.home / "tvmq-python" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)


def test_the_python_runtime_runs_the_network(board, make_bundle, float_library, tmp_path):
    """On this machine, which is its own board, by the interpreter that runs the tests."""
    board.become(None)
    venv(board, f'exec {sys.executable} "$@"')
    bundle = make_bundle()
    bundle.check_outputs = bundle.run(*bundle.check_inputs)
    bundle.save(tmp_path / "tiny.tvmq")
    done = deploy(bundle, board.address, runtime="python")
    assert (done.runtime, done.target, done.timing.repeat) == ("python", "host", 20)
    sent = {path.name for path in (board.home / "tvmq/tiny/python/tvmq").rglob("*.py")}
    assert "program.py" in sent and "bundle.py" not in sent
