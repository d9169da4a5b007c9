"""Running networks on boards: an ssh server on the loopback device, and an emulated core behind it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.boards import PI_3, PI_3_32, PI_4, PI_4_32, PI_5, ROCK_5, ZERO
from tests.runtime.test_facts import ask  # noqa: F401  (a fixture)
from tvmq.errors import BoardError, BundleError, InputError
from tvmq.runtime.fitting import choose_library
from tvmq.runtime.remote import run_on_board

pytestmark = pytest.mark.usefixtures("runner_cache")


@pytest.mark.parametrize("model", [PI_4, PI_4_32], ids=["64-bit", "32-bit system on a 64-bit board"])
def test_a_network_runs_there(board, board_bundle, model):
    board.become(model)
    (output,) = run_on_board(board_bundle, board.address, *board_bundle.check_inputs)
    np.testing.assert_array_equal(output, board_bundle.check_outputs[0], strict=True)
    assert list((board.home / "tvmq" / ".parts").iterdir()) == []
    assert not (board.home / "tvmq" / ".installed").exists()


def test_what_does_not_fit_is_not_sent(board, board_bundle):
    board.become(PI_3)
    with pytest.raises(BoardError, match=f"does not fit {board.address} "):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs)
    assert not (board.home / "tvmq").exists()


@pytest.mark.parametrize(
    ("model", "target", "reason"),
    [
        (
            PI_3,
            None,
            "(4 × cortex-a53, aarch64): its library for 'raspberry-pi-4' is for cortex-a72, and the board's core is "
            "cortex-a53; its library for 'raspberry-pi-3-32' is for armv7l, and the board's system is aarch64; compile "
            "it with `tvmq compile SOURCE --target raspberry-pi-3`",
        ),
        (PI_4, "raspberry-pi-3-32", "is for armv7l, and the board's system is aarch64; compile it with"),
        (PI_3_32, "raspberry-pi-4", "compile it with `tvmq compile SOURCE --target raspberry-pi-3-32`"),
        (PI_5, None, "compile it with `tvmq compile SOURCE --target raspberry-pi-5`"),
        (ROCK_5, None, "(4 × cortex-a55 + 4 × cortex-a76, aarch64): "),
        (ZERO, None, "tvmq knows no target for this board"),
    ],
    ids=["other core", "other width", "64 bits on 32", "older core", "big.LITTLE", "too old"],
)
def test_what_does_not_fit(ask, board_bundle, model, target, reason):  # noqa: F811
    with pytest.raises(BoardError) as error:
        choose_library(board_bundle, ask(model), "there", target)
    assert "net.tvmq: does not fit there (" in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("model", [PI_3_32, PI_4_32])
def test_what_fits(ask, board_bundle, model):  # noqa: F811
    assert choose_library(board_bundle, ask(model), "there") == "raspberry-pi-3-32"


def test_a_target_that_the_file_does_not_have(board, board_bundle):
    with pytest.raises(BundleError, match="holds no library for target 'raspberry-pi-5'"):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs, target="raspberry-pi-5")


def test_wrong_inputs_are_found_before_the_board_is_asked(board_bundle):
    with pytest.raises(InputError):
        run_on_board(board_bundle, "ssh://pi@board.invalid", np.zeros(3, "float32"))


def test_instructions_that_the_core_lacks(board, board_bundle):
    """Should a library slip through, the program's end is explained."""
    board.program("env", "kill -ILL $$")
    with pytest.raises(BoardError, match="uses instructions that the board's core lacks; compile it again for it"):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs)
    assert list((board.home / "tvmq" / ".parts").iterdir()) == []


def test_too_little_memory(board, board_bundle):
    board.program("env", "kill -KILL $$")
    with pytest.raises(BoardError, match="the board ended the program, probably for lack of memory"):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs)


def test_an_old_c_library_is_found_before_anything_is_sent(board, board_bundle):
    board.become(dataclasses.replace(PI_4, glibc="glibc 2.4"))
    with pytest.raises(BoardError, match=r"has glibc 2\.4, and what this machine builds needs 2\.\d+; install a newer"):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs)
    assert not (board.home / "tvmq").exists()


def test_no_space_is_found_before_anything_is_sent(board, board_bundle):
    board.become(dataclasses.replace(PI_4, disk=1000))
    with pytest.raises(BoardError, match=r"no space left: 1\.0 MB are free in the home folder, and \d"):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs)
    assert not (board.home / "tvmq").exists()


def test_what_is_no_linux(board, board_bundle):
    board.program("sh", "echo 'sh is not a command'")
    with pytest.raises(BoardError):
        run_on_board(board_bundle, board.address, *board_bundle.check_inputs)
