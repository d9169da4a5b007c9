"""The receipt: what every layer became, why, and what it costs.

It is made from the manifest of a ``.tvmq`` file alone, so it works on a device without a compiler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tvmq.errors import BundleError, TargetError, nearest
from tvmq.report.table import byte_count, count, percent, table

__all__ = ["LayerLine", "Receipt", "receipt"]

SCHEDULES = {"tuned": "tuned", "nearest": "from the nearest tuned shape", "default": "default"}
LOW_BIT = 4  # weights and activations of at most this many bits are what tvmq is for


@dataclass(frozen=True)
class LayerLine:
    """One layer of a receipt.

    Attributes
    ----------
    name, operator : str
        The layer's name in the network, and what it computes.
    weight_bits, activation_bits : int
        Bits of one weight and of one input element; 32 is float.
    kernel, reason : str
        What computes it, and why that was chosen.
    macs : int
        Multiply-accumulates for one sample.
    bytes_float, bytes_packed : int
        Size of the parameters in float32 and as stored.
    predicted_cycles, seconds : float or None
        Cycles by the target's cost table, and time as measured; ``None`` where unknown.
    share : float or None
        This layer's part of the whole, 0 to 1: of the measured time where every layer has one, otherwise of the
        predicted cycles; ``None`` where neither is known.
    schedule : str or None
        Where its schedule is from: ``"tuned"``, ``"nearest"`` (tuned for a similar shape) or ``"default"``; ``None``
        for kernels that cannot be tuned.
    """

    name: str
    operator: str
    weight_bits: int
    activation_bits: int
    kernel: str
    reason: str
    macs: int
    bytes_float: int
    bytes_packed: int
    predicted_cycles: float | None = None
    seconds: float | None = None
    share: float | None = None
    schedule: str | None = None

    @property
    def is_low_bit(self) -> bool:
        """Whether both operands have at most four bits."""
        return max(self.weight_bits, self.activation_bits) <= LOW_BIT


@dataclass(frozen=True)
class Receipt:
    """A network on one target, layer by layer; ``str()`` is the table.

    Attributes
    ----------
    network, target : str
        Names of the network and of the target it was compiled for.
    layers : tuple of LayerLine
        In the order in which they run.
    share_of : str or None
        What the layers' shares are parts of: ``"measured time"``, ``"predicted cycles"`` or ``None``.
    """

    network: str
    target: str
    layers: tuple[LayerLine, ...]
    share_of: str | None = None

    @property
    def bytes_float(self) -> int:
        """Size of all parameters in float32."""
        return sum(layer.bytes_float for layer in self.layers)

    @property
    def bytes_packed(self) -> int:
        """Size of all parameters as stored."""
        return sum(layer.bytes_packed for layer in self.layers)

    @property
    def compression(self) -> float | None:
        """How many times smaller the parameters are than in float32; ``None`` for a network without any."""
        return self.bytes_float / self.bytes_packed if self.bytes_packed else None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers for one sample."""
        return sum(layer.macs for layer in self.layers)

    @property
    def low_bit_macs(self) -> int:
        """Multiply-accumulates of the layers whose operands have at most four bits."""
        return sum(layer.macs for layer in self.layers if layer.is_low_bit)

    @property
    def seconds(self) -> float | None:
        """Measured time of all layers; ``None`` unless every layer was measured."""
        return _total([layer.seconds for layer in self.layers])

    @property
    def predicted_cycles(self) -> float | None:
        """Predicted cycles of all layers; ``None`` unless every layer has a prediction."""
        return _total([layer.predicted_cycles for layer in self.layers])

    @property
    def schedules(self) -> dict[str, int]:
        """Number of layers with tuned, nearest and default schedules; empty where no layer can be tuned."""
        found = [layer.schedule for layer in self.layers if layer.schedule is not None]
        return {origin: found.count(origin) for origin in SCHEDULES} if found else {}

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain lists, dictionaries, numbers and texts.

        Returns
        -------
        dict
            ``network``, ``target``, ``share_of``, ``schedules``, ``layers`` (one dictionary per layer) and ``totals``.
        """
        return {
            "network": self.network,
            "target": self.target,
            "share_of": self.share_of,
            "schedules": self.schedules,
            "layers": [asdict(layer) for layer in self.layers],
            "totals": {
                "macs": self.macs,
                "low_bit_macs": self.low_bit_macs,
                "bytes_float": self.bytes_float,
                "bytes_packed": self.bytes_packed,
                "compression": self.compression,
                "predicted_cycles": self.predicted_cycles,
                "seconds": self.seconds,
            },
        }

    def to_json(self) -> str:
        """The receipt as a JSON text.

        Returns
        -------
        str
            :meth:`as_dict`, indented.
        """
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        title = f"{self.network} on {self.target}"
        if not self.layers:
            return f"{title}\nno layers with weights"
        return "\n".join([title, "", *_table(self), "", _summary(self)])


def receipt(manifest: Mapping[str, Any], target: str, measured: Mapping[str, float] | None = None) -> Receipt:
    """Draw up the receipt of one target of a ``.tvmq`` file.

    Parameters
    ----------
    manifest : mapping
        The file's ``manifest.json``.
    target : str
        One of the targets that the file was compiled for.
    measured : mapping of str to float, optional
        Seconds per layer name; it takes precedence over times in the manifest.

    Returns
    -------
    Receipt

    Raises
    ------
    TargetError
        If the file was not compiled for ``target``.
    BundleError
        If the manifest describes a layer incompletely.
    """
    layers_by_target = manifest.get("layers", {})
    if target not in layers_by_target:
        known = ", ".join(layers_by_target) or "none"
        hint = nearest(target, layers_by_target)
        raise TargetError(f"not compiled for target '{target}' (compiled for: {known}){hint}")
    lines = [_line(entry, measured or {}) for entry in layers_by_target[target]]
    share_of, shares = _shares(lines)
    lines = [LayerLine(**{**asdict(line), "share": share}) for line, share in zip(lines, shares, strict=True)]
    return Receipt(network=str(manifest.get("name", "network")), target=target, layers=tuple(lines), share_of=share_of)


def _line(entry: Mapping[str, Any], measured: Mapping[str, float]) -> LayerLine:
    try:
        return LayerLine(
            name=entry["name"],
            operator=entry["operator"],
            weight_bits=entry["weight_bits"],
            activation_bits=entry["activation_bits"],
            kernel=entry["kernel"],
            reason=entry["reason"],
            macs=entry["macs"],
            bytes_float=entry["bytes_float"],
            bytes_packed=entry["bytes_packed"],
            predicted_cycles=entry.get("predicted_cycles"),
            seconds=measured.get(entry["name"], entry.get("seconds")),
            schedule=entry.get("schedule"),
        )
    except KeyError as error:
        raise BundleError(
            f"manifest: layer '{entry.get('name', '?')}' has no {error}; compile the network again with this version"
        ) from None


def _shares(lines: Sequence[LayerLine]) -> tuple[str | None, list[float | None]]:
    """What the shares are parts of, and each layer's share."""
    for label, values in (
        ("measured time", [line.seconds for line in lines]),
        ("predicted cycles", [line.predicted_cycles for line in lines]),
    ):
        total = _total(values)
        if total:
            return label, [None if value is None else value / total for value in values]
    return None, [None] * len(lines)


def _total(values: Sequence[float | None]) -> float | None:
    """The sum, or ``None`` where a part of it is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _table(whole: Receipt) -> list[str]:
    header = ["layer", "bits", "kernel", "float", "packed", "time", "share", "why"]
    rows = [
        [
            layer.name,
            f"{_bits(layer.weight_bits)}×{_bits(layer.activation_bits)}",
            layer.kernel,
            byte_count(layer.bytes_float),
            byte_count(layer.bytes_packed),
            _time(layer.seconds),
            percent(layer.share),
            layer.reason,
        ]
        for layer in whole.layers
    ]
    total = [
        "total",
        "",
        "",
        byte_count(whole.bytes_float),
        byte_count(whole.bytes_packed),
        _time(whole.seconds),
        "",
        "",
    ]
    return table(header, rows, {"float", "packed", "time", "share"}, total)


def _summary(whole: Receipt) -> str:
    low_bit = sum(layer.is_low_bit for layer in whole.layers)
    parts = [f"{low_bit} of {len(whole.layers)} layers run at {LOW_BIT} bits or fewer"]
    if whole.macs:
        parts[0] += f" ({percent(whole.low_bit_macs / whole.macs)} of {count(whole.macs)} multiply-accumulates)"
    if whole.compression is not None:
        parts.append(f"parameters {whole.compression:.1f}x smaller than float32")
    if whole.share_of is not None:
        parts.append(f"share is of {whole.share_of}")
    if whole.schedules:
        counts = [f"{number} {SCHEDULES[origin]}" for origin, number in whole.schedules.items() if number]
        parts.append(f"schedules: {', '.join(counts)}")
    return "; ".join(parts)


def _bits(bits: int) -> str:
    return "float" if bits >= 32 else str(bits)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.1f} µs"
