"""The cost table of this machine's core, measured: multiply-accumulates per cycle of each kind of kernel.

The files of ``targets/`` state what the best known core of a family can issue.  What this machine's core reaches with
tvmq's kernels can be less (Zen 4 executes 512-bit instructions in halves, Zen 5 does not), and the choice between kinds
of kernels depends on it.  Cycles are those of :mod:`tvmq.clock`, taken in turns with the kernel.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from tvmq.clock import Clock
from tvmq.errors import TargetError
from tvmq.kernels.conv2d import WORKLOAD_ATTRIBUTE, conv2d
from tvmq.kernels.depth import depth_of
from tvmq.kernels.float_planes import float_planes
from tvmq.kernels.float_products import float_product
from tvmq.kernels.float_workload import FloatWorkload, vector_unit
from tvmq.kernels.schedule import schedule
from tvmq.kernels.workload import DEPTH_LANES, Conv2dWorkload, Dot, Table, Thresholds, dot_form
from tvmq.target import HOST, LANES_KIND, TABLE_KINDS, Target, load_target

__all__ = ["KernelRate", "calibrated", "check_destination", "kernel_rates", "write_target"]

SHAPES = ((56, 64), (14, 256))
"""Height and width, and channels, of 3x3 convolutions: the ends of a ResNet that are not too small."""
DENSE_SIZE, DENSE_BATCH = 1024, 16
_BLOCK_SECONDS = 0.01
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.toml")
_SEED = 0


@dataclass(frozen=True)
class KernelRate:
    """What one kernel reached.

    Attributes
    ----------
    kind : str
        A key of ``mac_per_cycle``.
    workload : str
        What was computed, for people.
    mac_per_cycle : float
        Median of the rounds.
    """

    kind: str
    workload: str
    mac_per_cycle: float


@dataclass(frozen=True)
class _Case:
    """One kernel to measure, unscheduled."""

    kind: str
    workload: str
    macs: int
    function: tirx.PrimFunc


def _binary(core: Target) -> Iterator[_Case]:
    """With vectors along the depth, where the core's file says that it has kernels for both."""
    if LANES_KIND not in core.mac_per_cycle:
        yield from _lanes("binary", core)
        return
    for case in _lanes("binary", core):
        workload = Conv2dWorkload.from_json(str(case.function.attrs[WORKLOAD_ATTRIBUTE]))
        depth = depth_of(workload.in_words, core.arch)
        yield dataclasses.replace(
            case, function=conv2d(dataclasses.replace(workload, lanes=DEPTH_LANES, depth=depth), 1)
        )


def _binary_lanes(core: Target) -> Iterator[_Case]:
    if LANES_KIND in core.mac_per_cycle:
        yield from _lanes(LANES_KIND, core)


def _lanes(kind: str, core: Target) -> Iterator[_Case]:
    """With lanes of output channels."""
    for size, channels in SHAPES:
        workload = Conv2dWorkload(
            height=size,
            width=size,
            in_channels=channels,
            out_channels=channels,
            kernel=(3, 3),
            strides=(1, 1),
            padding=(1, 1, 1, 1),
            dilation=(1, 1),
            activation_planes=1,
            weight_planes=1,
            combine="xor",
            plane_class=((0,),),
            class_multiplier=(-1,),
            activation_multiplier=(0,),
            row_classes=1,
            col_classes=1,
            word_bits=core.word_bits,
            lanes=core.lanes,
            epilogue=Thresholds(1, (0, 1), 1),
        )
        yield _Case(kind, f"conv 3x3 {size}x{size}x{channels}", workload.macs, conv2d(workload, 1))


def _int8(core: Target) -> Iterator[_Case]:
    """The same convolutions of bytes, where the core has an instruction for them."""
    if core.dot is None:
        return
    operands = Dot(activation_bits=8, weight_bits=8, pair_bound=0, form=dot_form(core.dot))
    operands = dataclasses.replace(operands, pair_bound=2 * operands.magnitude * 127)
    for case in _lanes("binary", core):
        binary = Conv2dWorkload.from_json(str(case.function.attrs[WORKLOAD_ATTRIBUTE]))
        workload = dataclasses.replace(binary, combine="dot", class_multiplier=(1,), lanes=core.dot_lanes, dot=operands)
        yield _Case("int8", case.workload, workload.macs, conv2d(workload, 1))


def _table(core: Target, bits: int) -> Iterator[_Case]:
    """The same convolutions by lookups in tables, where the core's file says that it has them."""
    kind = TABLE_KINDS[bits - 1]
    if kind not in core.mac_per_cycle:
        return
    codes = tuple(range(2**bits))
    signs: dict[str, Any] = {"class_multiplier": (2,), "activation_multiplier": (-1,)}
    for case in _lanes("binary", core):
        binary = Conv2dWorkload.from_json(str(case.function.attrs[WORKLOAD_ATTRIBUTE]))
        table = Table(bits, (2**bits - 1) * 9 * binary.in_channels)
        epilogue = Thresholds(len(codes) - 1, codes, bits, "bytes")
        workload = dataclasses.replace(binary, combine="table", **signs, table=table, epilogue=epilogue)
        yield _Case(kind, case.workload, workload.macs, conv2d(workload, 1))


def _float32(core: Target) -> Iterator[_Case]:
    lanes, registers = vector_unit(core)

    def workload(size: int, channels: int, kernel: int) -> FloatWorkload:
        return FloatWorkload(
            height=size,
            width=size,
            in_channels=channels,
            out_channels=channels,
            kernel=(kernel, kernel),
            strides=(1, 1),
            padding=(kernel // 2,) * 4,
            dilation=(1, 1),
            dense=kernel == 1,
            coefficients=(),
            offset=0,
            lanes=lanes,
            registers=registers,
        )

    for size, channels in SHAPES:
        convolution = workload(size, channels, 3)
        function = float_planes(convolution, 1) if convolution.pixel_lanes else float_product(convolution, 1)
        yield _Case("float32", f"conv 3x3 {size}x{size}x{channels}", convolution.macs, function)
    dense = workload(1, DENSE_SIZE, 1)
    name = f"dense {DENSE_SIZE}x{DENSE_SIZE}, batch {DENSE_BATCH}"
    yield _Case("float32", name, DENSE_BATCH * dense.macs, float_product(dense, DENSE_BATCH))


CASES: Mapping[str, Callable[[Target], Iterator[_Case]]] = {
    "binary": _binary,
    LANES_KIND: _binary_lanes,
    "int8": _int8,
    **{kind: functools.partial(_table, bits=bits) for bits, kind in enumerate(TABLE_KINDS, 1)},
    "float32": _float32,
}
"""Kernels by kind.  A kind without a kernel on a core keeps the value of its file."""


def kernel_rates(
    core: Target, rounds: int = 15, progress: Callable[[str, float, float | None], None] | None = None
) -> list[KernelRate]:
    """Measure every kind of kernel on this machine, on one thread.

    Parameters
    ----------
    core : Target
        One that this machine can run, such as ``"host"``.
    rounds : int
        Clock and kernel take turns this often; the median counts.
    progress : callable, optional
        Called with a text, the fraction that is done, and the seconds left or ``None``.

    Returns
    -------
    list of KernelRate
        One per kernel and shape.
    """
    clock = Clock(core)
    cases = [case for make in CASES.values() for case in make(core)]
    rates = []
    for index, case in enumerate(cases):
        if progress is not None:
            progress(f"{case.kind}: {case.workload}", index / len(cases), None)
        rates.append(KernelRate(case.kind, case.workload, _rate(case, core, clock, rounds)))
    return rates


def _rate(case: _Case, core: Target, clock: Clock, rounds: int) -> float:
    """Multiply-accumulates per cycle."""
    run = _compiled(case.function, core)
    run()
    start = perf_counter()
    run()
    runs = max(1, int(_BLOCK_SECONDS / (perf_counter() - start)))
    measured = []
    for _ in range(rounds):
        before = clock.hertz()
        seconds = []
        for _ in range(runs):
            start = perf_counter()
            run()
            seconds.append(perf_counter() - start)
        hertz = (before + clock.hertz()) / 2
        measured.append(case.macs / (median(seconds) * hertz))
    return median(measured)


def _compiled(function: tirx.PrimFunc, core: Target) -> Callable[[], object]:
    """A kernel with random arguments in place."""
    scheduled: Any = schedule(function, core)
    module = tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")})
    random = np.random.default_rng(_SEED)
    arguments = []
    for parameter in scheduled.params:
        shape, dtype = [int(extent) for extent in parameter.ty.shape], np.dtype(str(parameter.ty.dtype))
        arguments.append(tvm.runtime.tensor(_random(random, shape, dtype)))
    run: Any = tvm.compile(module, target=core.tvm_target())["main"]
    return lambda: run(*arguments)


def _random(random: np.random.Generator, shape: list[int], dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def calibrated(core: Target, rates: list[KernelRate], processor: str) -> Target:
    """A target with the best measured rate of every kind that was measured.

    Parameters
    ----------
    core : Target
    rates : list of KernelRate
    processor : str
        What they were measured on, which becomes the description.

    Returns
    -------
    Target
    """
    measured: dict[str, float] = {}
    for rate in rates:
        measured[rate.kind] = max(measured.get(rate.kind, 0.0), rate.mac_per_cycle)
    rounded = {kind: float(f"{value:.3g}") for kind, value in measured.items()}
    description = f"{processor}, measured"
    return dataclasses.replace(core, description=description, mac_per_cycle={**core.mac_per_cycle, **rounded})


def check_destination(path: Path, force: bool = False) -> None:
    """Look whether :func:`write_target` may write a file, before anything is measured.

    Parameters
    ----------
    path : pathlib.Path
    force : bool
        Whether a file that exists is replaced.

    Raises
    ------
    TargetError
        If the file exists, its folder does not, or its name is none for a target.
    """
    if not _FILE_NAME.fullmatch(path.name) or path.stem == HOST:
        raise TargetError(f"{path}: not a name for a target's file; choose one such as my-core.toml")
    if path.exists() and not force:
        raise TargetError(f"{path}: exists already; choose another name, or replace it with --force")
    if not path.resolve().parent.is_dir():
        raise TargetError(f"{path}: its folder does not exist; choose another place")


def write_target(core: Target, path: Path, rates: list[KernelRate], force: bool = False) -> Target:
    """Write a file for the folder ``targets/``.

    Parameters
    ----------
    core : Target
        What to write; see :func:`calibrated`.
    path : pathlib.Path
        Where to; the file's name is the target's.  Replaced at once or not at all.
    rates : list of KernelRate
        For the comment that says where the numbers are from.
    force : bool
        Whether a file that exists is replaced.

    Returns
    -------
    Target
        As read back from the file.

    Raises
    ------
    TargetError
        If the file exists, cannot be written, or its name is none for a target.
    """
    check_destination(path, force)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.toml")
    try:
        temporary.write_text(_toml(core, rates), encoding="utf-8")
        written = dataclasses.replace(load_target(temporary), name=path.stem)
        os.replace(temporary, path)
    except OSError as error:
        raise TargetError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _toml(core: Target, rates: list[KernelRate]) -> str:
    measured = {rate.kind for rate in rates}
    kept = [kind for kind in core.mac_per_cycle if kind not in measured]
    lines = ["# MAC per cycle and core, measured with tvmq's own kernels, median of the rounds:"]
    lines += [f"#   {rate.kind}: {rate.mac_per_cycle:.1f} in {rate.workload}" for rate in rates]
    if kept:
        lines.append(f"# Not measured, as there is no kernel of that kind, but as given before: {', '.join(kept)}.")
    for item in dataclasses.fields(Target):
        value = getattr(core, item.name)
        default = () if item.default is dataclasses.MISSING else item.default
        known = value is not None and value != default
        if item.name not in ("name", "board") and not isinstance(value, dict) and known:
            lines.append(f"{item.name} = {_value(value)}")
    for name, numbers in (("mac_per_cycle", core.mac_per_cycle), ("caches", core.caches)):
        if numbers:
            lines += ["", f"[{name}]", *(f"{key} = {value!r}" for key, value in numbers.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A text, a number or a list of texts in TOML, whose strings are those of JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
