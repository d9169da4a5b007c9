"""The connection itself, to a real ssh server."""

from __future__ import annotations

import subprocess
import time

import pytest

from tvmq.errors import BoardError, InputError, ToolchainError
from tvmq.runtime.ssh import Address, Connection


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("ssh://pi@raspberrypi.local", Address("raspberrypi.local", "pi"), "ssh://pi@raspberrypi.local"),
        ("ssh://pi@10.0.0.7:2222", Address("10.0.0.7", "pi", 2222), "ssh://pi@10.0.0.7:2222"),
        ("pi@board", Address("board", "pi"), "ssh://pi@board"),
        ("ssh://alias", Address("alias"), "ssh://alias"),
        ("ssh://pi@[fe80::1%eth0]:22", Address("fe80::1%eth0", "pi", 22), "ssh://pi@[fe80::1%eth0]:22"),
    ],
)
def test_addresses(text, address, canonical):
    assert Address.parse(text) == address
    assert str(address) == canonical and Address.parse(canonical) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh://",
        "-oProxyCommand=x",
        "pi@-oProxyCommand=x",
        "a b",
        "pi@host:x",
        "pi@host:0",
        "pi@host:65536",
        "a@b@c",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(InputError):
        Address.parse(text)


def test_scripts_run_with_arguments_and_input(board):
    with Connection(Address.parse(board.address)) as connection:
        answered = connection.run('printf "%s|" "$@"; cat; echo bad >&2; exit 3', "a b", "c'd\n\"e$", send=b"\0\xff")
    assert answered.status == 3
    assert answered.output == b"a b|c'd\n\"e$|\0\xff"
    assert answered.reason == "bad"


def test_a_greeting_of_the_shell_is_no_answer(board):
    board.program("sh", 'echo "Welcome!"; exec /bin/sh "$@"')
    with Connection(Address.parse(board.address)) as connection:
        assert connection.run("echo yes").output == b"yes\n"


def test_nothing_is_left_behind(board):
    with Connection(Address.parse(board.address)) as connection:
        process = connection.start("echo $$; cat; echo end > done")
        assert process.stdout.readline().strip().isdigit()
        connection.stop(process)
        assert (board.home / "done").exists()
        assert board.sessions()
    wait_until(lambda: not board.sessions())


def test_a_port_of_the_board_is_reached(board):
    with Connection(Address.parse(board.address)) as connection:
        port = connection.forward(Address.parse(board.address).port)
        found = subprocess.run(["ssh-keyscan", "-T", "5", "-p", str(port), "127.0.0.1"], capture_output=True, text=True)
    assert "ssh-ed25519" in found.stdout


def test_a_cut_connection(board):
    with Connection(Address.parse(board.address)) as connection:
        board.cut()
        with pytest.raises(BoardError, match=r"ssh://.*: the connection was lost.*; try again once the board is back$"):
            connection.run("echo yes")
        assert connection._master.poll() is not None


def test_a_connection_that_is_cut_meanwhile(board):
    board.program("cut", "kill -9 $SSH_SESSION; sleep 1")
    with (
        Connection(Address.parse(board.address)) as connection,
        pytest.raises(BoardError, match="the connection was lost"),
    ):
        connection.run("cut; echo never")


def fails(address, message):
    with pytest.raises(BoardError) as error:
        Connection(Address.parse(address))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{address}: ")
    assert message in str(error.value)


def test_unknown_host_name(board):
    fails("ssh://pi@board.invalid", "no such host; check the name, or use the board's IP address")


def test_no_server(board):
    fails("ssh://pi@127.0.0.1:1", "no ssh server answers there; switch ssh on with `sudo raspi-config`")


def test_a_board_that_does_not_answer(board, monkeypatch):
    """Said when ssh gives up, not when a proxy does that outlives it."""
    (board.client / "ssh_config").write_text("Host *\nProxyCommand sleep 60\nConnectTimeout 1\n")
    monkeypatch.setattr("tvmq.runtime.ssh._OPTIONS", ("-o BatchMode=yes", "-o ConnectTimeout=1"))
    start = time.monotonic()
    fails("ssh://pi@10.255.255.1", "does not answer; check that the board is on")
    assert time.monotonic() - start < 30


def test_a_key_that_is_not_accepted(board):
    config = board.client / "ssh_config"
    config.write_text(config.read_text().replace(f"{board.client}/user", f"{board.client}/stranger"))
    words = board.address.removeprefix("ssh://").split(":")
    fails(
        board.address,
        f"passwords are not asked for; copy the key there once with `ssh-copy-id -p {words[1]} {words[0]}`",
    )


def test_an_unknown_host_key(board):
    (board.client / "known_hosts").write_text("")
    fails(board.address, "its host key is not known here yet; run `ssh -p ")
    assert (board.client / "known_hosts").read_text() == ""


def test_a_changed_host_key(board):
    place = (board.client / "known_hosts").read_text().split()[0]
    (board.client / "known_hosts").write_text(f"{place} {(board.client / 'stranger.pub').read_text()}")
    fails(board.address, f"forget the old key with `ssh-keygen -R '{place}'`")


def test_no_ssh(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt-get install openssh-client"):
        Connection(Address("board"))


def wait_until(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
