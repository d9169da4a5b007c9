"""The order of instructions computes what it is meant to, in the registers there are, and waits for nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvmq.kernels.pipelining import ARM32, ARM64, Instruction, InstructionSet, Ring, ring

Size = tuple[InstructionSet, int, int, int]
LONG = [(8, 7, 6), (8, 7, 3), (8, 12, 1), (8, 1, 1), (4, 5, 2), (4, 8, 3), (2, 6, 1), (1, 5, 1), (1, 9, 4)]
SHORT = [(2, 4, 8), (2, 4, 1), (2, 3, 3), (2, 1, 5)]
SIZES = [*((ARM64, *size) for size in LONG), *((ARM32, *size) for size in SHORT)]
ROUNDS = 3


def rounds(body: Ring, count: int) -> list[tuple[int, Instruction]]:
    """The instructions of some rounds, each with the round that its values belong to."""
    left = [place for place, each in enumerate(body.instructions) if each.is_left]
    shared = left[-1] + 1 if left else 0
    run = [(0, each) for each in body.instructions[:shared] if not each.is_left]
    for number in range(count):
        first = body.instructions[:shared] if number else ()
        run += [(number - each.is_left, each) for each in (*first, *body.instructions[shared:])]
    return [*run, *((count - 1, body.instructions[place]) for place in left)]


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0].registers}, {size[1:]}")
def test_sums(size: Size, once: bool) -> None:
    instruction_set, vectors, pixels, steps = size
    body = ring(*size, once)
    assert body is not None
    count = 1 if once else ROUNDS
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (count, steps, pixels, 16), np.uint8)
    weights = random.integers(0, 256, (count, steps, vectors, 16), np.uint8)
    registers = random.integers(0, 256, (instruction_set.registers, 16), np.uint8)
    for register in body.sums:
        registers[register] = 0
    loaded = []
    for number, each in rounds(body, count):
        to, *others = each.registers
        match each.name:
            case "meet":
                registers[to] = registers[others[0]] ^ registers[others[1]]
            case "cnt":
                registers[to] = np.bitwise_count(registers[others[0]])
            case "addp":
                registers[to] = np.concatenate([registers[other] for other in others]).reshape(16, 2).sum(1)
            case "uadalp":
                registers[to].view(np.uint16)[:] += registers[others[0]].reshape(8, 2).sum(1, np.uint16)
            case "weights":
                width = min(instruction_set.group, vectors)
                registers[to : to + width] = weights[number, each.step, each.place : each.place + width]
                loaded.append((number, each.step, each.place))
            case _:
                for place, register in enumerate(each.registers):
                    registers[register] = image[number, each.step + place, each.place]
    bits = np.bitwise_count(image[:, :, :, None] ^ weights[:, :, None]).sum((0, 1), np.uint16)
    sums = np.stack([registers[register].view(np.uint16) for register in body.sums])
    summed = sums.reshape(pixels, 8, -1).sum(2, np.uint16)  # of one register, or of one for every vector
    np.testing.assert_array_equal(summed, bits.reshape(pixels, 8, vectors * 2).sum(2, np.uint16))
    assert loaded == sorted(loaded)  # one pointer that moves suffices


@pytest.mark.parametrize(
    ("size", "latency"),
    [
        ((ARM64, 8, 7, 6), 6),
        ((ARM64, 8, 12, 1), 6),
        ((ARM64, 4, 9, 3), 6),
        ((ARM64, 2, 8, 2), 6),
        ((ARM32, 2, 4, 24), 5),
        ((ARM32, 2, 3, 3), 4),
    ],
    ids=str,
)
def test_no_operation_waits(size: Size, latency: int) -> None:
    body = ring(*size)
    assert body is not None
    length = 3 * np.prod(size[1:])
    operations = [each for each in body.instructions if len(each.registers) > 1 and each.name != "pixels"]
    times = [each.time for each in operations]
    assert all(later - time >= 1 for time, later in itertools.pairwise(times))
    written: dict[int, float] = {}
    for number in range(2):
        for each in operations:
            now = number * length + each.time
            assert all(now - written.get(register, -latency) >= latency for register in each.registers[1:])
            written[each.registers[0]] = now


def test_two_steps_of_a_pixel_are_one_load_while_there_are_registers() -> None:
    body = ring(ARM64, 8, 7, 2)
    assert body is not None
    names = [each.name for each in body.instructions]
    assert (names.count("pixels"), names.count("pixel")) == (6, 2)


def test_too_many_pixels_have_no_order() -> None:
    assert ring(ARM64, 8, 20, 1) is None
    assert ring(ARM64, 8, 40, 1) is None
    assert ring(ARM32, 2, 5, 8) is None
