"""What became of each layer, and why: the rows of a receipt, read off the lowered module."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import Call, GlobalVar

from tvmq import dialect
from tvmq.dialect import constant_array, constant_value, is_call
from tvmq.kernels.float_workload import unpack_weights
from tvmq.target import Target
from tvmq.transform.kernel_choice import Rates, rates
from tvmq.transform.schedule_kernels import SCHEDULE_ATTRIBUTE
from tvmq.transform.select_float_products import FEWEST_WEIGHTS, low_bit_weight

__all__ = ["Layer", "LayerRows", "layer_rows"]

FLOAT_OPERATORS = {"relax.nn.conv2d": "conv2d", "relax.matmul": "dense"}


@dataclass
class Layer:
    """One row: see :class:`tvmq.report.receipt.LayerLine` for what the fields mean."""

    name: str
    operator: str
    weight_bits: int
    activation_bits: int
    kernel: str
    reason: str
    macs: int
    bytes_float: int
    bytes_packed: int
    function: str | None = None
    schedule: str | None = None
    predicted_cycles: float | None = None
    seconds: float | None = None


@dataclass
class LayerRows:
    """All rows of one target, in order of execution, and the warnings that the user should see."""

    layers: list[Layer] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def name_functions(self, module: tvm.IRModule) -> None:
        """Fill in which function runs each layer, and where its schedule is from.

        Parameters
        ----------
        module : tvm.IRModule
            The scheduled module; its calls are in the order of the layers.
        """
        calls = [
            str(binding.value.args[0].name_hint)
            for block in module["main"].body.blocks
            for binding in block.bindings
            if is_call(binding.value, "relax.call_tir") and _is_product(module, binding.value.args[0])
        ]
        if len(calls) == len(self.layers):
            for layer, function in zip(self.layers, calls, strict=True):
                layer.function = function
                origin = module[function].attrs.get(SCHEDULE_ATTRIBUTE)
                layer.schedule = None if origin is None else str(origin)

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as the manifest stores them."""
        return [asdict(layer) for layer in self.layers]


def _is_product(module: tvm.IRModule, variable: GlobalVar) -> bool:
    function = module[variable]
    if not isinstance(function, tirx.PrimFunc):
        return False
    kernel = function.attrs.get("tvmq.kernel") if function.attrs else None
    if kernel is not None:
        return str(kernel) in ("conv2d", "float_planes", "float_product")
    return any(operator in variable.name_hint for operator in ("conv2d", "matmul"))


def layer_rows(module: tvm.IRModule, core: Target) -> LayerRows:
    """Rows for every convolution and matrix product of a lowered module.

    Parameters
    ----------
    module : tvm.IRModule
        After ``LowerBitserial``, before legalization.
    core : Target

    Returns
    -------
    LayerRows
    """
    rows = LayerRows()
    definitions: dict[relax.Var, relax.Expr] = {}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            definitions[binding.var] = binding.value
            if is_call(binding.value, "tvmq.bitserial_conv2d"):
                rows.layers.append(_bitserial(binding.value, core, rows.warnings))
            elif is_call(binding.value, "tvmq.packed_float_product"):
                rows.layers.append(_float_product(binding.value, core, definitions))
            elif is_call(binding.value, *FLOAT_OPERATORS):
                rows.layers.append(_float(binding.var, binding.value, core, definitions))
    return rows


def _bitserial(call: Call, core: Target, warnings: list[str]) -> Layer:
    workload = dialect.workload_of(call)
    name, dot, table = str(call.attrs["layer"]), workload.dot, workload.table
    bits = (workload.weight_planes, workload.activation_planes)
    if dot is not None:
        bits = (dot.weight_bits, dot.activation_bits)
    elif table is not None:
        bits = (1, table.activation_bits)
    weights = workload.out_channels * workload.in_channels * workload.kernel[0] * workload.kernel[1]
    speed = _rates(call, core, bits, weights)
    planes, int8 = f"{speed.planes:.0f} MAC/cycle", f"{speed.bytes:.0f}"
    low = f"layer '{name}': {bits[0]}-bit weights times {bits[1]}-bit activations run"
    kernel, rate = f"bitserial {workload.combine}", speed.planes
    if table is not None:
        rate = speed.table
        reason = f"{speed.table:.0f} MAC/cycle against {speed.planes:.0f} as bit planes and {int8} in int8"
    elif dot is not None:
        kernel, rate = f"int8 {core.dot}", speed.bytes
        reason = f"{int8} MAC/cycle against {speed.planes:.0f} as bit planes"
        if max(bits) < 8:
            warnings.append(f"{low} as int8 on {core.name}: {reason}; fewer bits would be faster")
    else:
        reason = f"{planes} against {int8} in int8"
        if bits[1] == 8:
            reason = f"8-bit input as bit planes, {reason}"
        elif speed.planes < speed.bytes:
            warnings.append(
                f"{low} at {planes} on {core.name}, where int8 could reach {int8}; fewer bits would be faster"
            )
    stored = sum(array.nbytes for array in map(constant_value, call.args[1:]) if array is not None)
    return Layer(
        name=name,
        operator="dense" if workload.is_dense else "conv2d",
        weight_bits=bits[0],
        activation_bits=bits[1],
        kernel=kernel,
        reason=reason,
        macs=workload.macs,
        bytes_float=4 * weights,
        bytes_packed=stored,
        predicted_cycles=workload.macs / rate,
    )


def _rates(call: Call, core: Target, bits: tuple[int, int], weights: int) -> Rates:
    """What the cost table says about all ways to compute a product."""
    workload = dialect.workload_of(call)
    samples = list(call.args[0].ty.shape)[2]
    single = workload.is_dense and not dialect.is_symbolic(samples) and int(samples) == 1
    taps = workload.kernel[0] * workload.kernel[1]
    return rates(core, workload.in_channels, taps, *bits, weights if single else 0, workload.out_channels)


def _float_product(call: Call, core: Target, definitions: dict[relax.Var, relax.Expr]) -> Layer:
    workload = dialect.float_workload(call)
    operator = "dense" if workload.dense else "conv2d"
    size = 4 * workload.out_channels * workload.length
    if workload.is_packed:
        kernel = f"weight-only {operator}"
        reason = f"its input is not quantized; {workload.bits}-bit weights are decoded in registers"
    else:
        is_depthwise = 1 < workload.groups == workload.in_channels
        kernel = "float depthwise" if is_depthwise else f"float {operator}"
        weight = unpack_weights(constant_array(call.args[1]), workload)
        reason = _why_float(call.args[0], weight, workload.groups, definitions)
    return Layer(
        name=str(call.attrs["layer"]),
        operator=operator,
        weight_bits=workload.bits,
        activation_bits=32,
        kernel=kernel,
        reason=reason,
        macs=workload.macs,
        bytes_float=size,
        bytes_packed=sum(constant_array(argument).nbytes for argument in call.args[1 : 3 if workload.is_packed else 2]),
        predicted_cycles=workload.macs / core.mac_per_cycle["float32"],
    )


def _float(variable: relax.Var, call: Call, core: Target, definitions: dict[relax.Var, relax.Expr]) -> Layer:
    """A product that is TVM's own: of two inputs, or of sizes that are not known."""
    weight = call.args[1]
    output = [int(size) for size in list(call.ty.shape)[1:] if isinstance(size, int | tirx.IntImm)]
    is_convolution = is_call(call, "relax.nn.conv2d")
    taps = list(weight.ty.shape)[1:] if is_convolution else list(weight.ty.shape)[-2:-1]
    macs = int(np.prod(output)) * int(np.prod(_known(taps)))
    size = 4 * int(np.prod(_known(weight.ty.shape)))
    groups = int(call.attrs["groups"]) if is_convolution else 1
    return Layer(
        name=variable.name,
        operator=FLOAT_OPERATORS[call.op.name],
        weight_bits=32,
        activation_bits=32,
        kernel="float",
        reason=_why_float(call.args[0], constant_value(weight), groups, definitions),
        macs=macs,
        bytes_float=size,
        bytes_packed=size,
        predicted_cycles=macs / core.mac_per_cycle["float32"],
    )


def _known(sizes: Any) -> list[int]:
    return [int(size) for size in sizes if isinstance(size, int | tirx.IntImm)]


def _why_float(
    data: relax.Expr, weight: np.ndarray | None, groups: int, definitions: dict[relax.Var, relax.Expr]
) -> str:
    quantized = isinstance(data, relax.Var) and is_call(definitions.get(data), "tvmq.dequantize")
    if not quantized:
        return "its input is not quantized" + _why_not_weight_only(weight, groups)
    if groups != 1:
        return "grouped convolutions have no packed kernel"
    return "its weights lie on too many levels for bit planes"


def _why_not_weight_only(weight: np.ndarray | None, groups: int) -> str:
    """What keeps low-bit weights of a float product from being packed; nothing for other weights."""
    if weight is None or low_bit_weight(weight) is None:
        return ""
    if groups != 1:
        return ", and grouped convolutions have no weight-only kernel"
    return ", and its weights are few" if weight.size < FEWEST_WEIGHTS else ""
