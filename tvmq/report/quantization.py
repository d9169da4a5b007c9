"""How well each layer was quantized: alphabet, radius and reconstruction error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvmq.report.table import count, duration, percent, table

__all__ = ["QuantizationReport", "quantization_report"]

_HEADER = ("layer", "inputs", "neurons", "rows", "weights", "radius", "acts", "error", "rounded", "dead", "time")
_TEXT_COLUMNS = ("layer", "weights", "acts")


@dataclass(frozen=True)
class QuantizationReport:
    """What quantization did to a network, layer by layer; ``str()`` is the table.

    Attributes
    ----------
    rows : tuple of mapping
        One per quantized layer, in the order in which they run:

        ``layer`` : str
            Name.
        ``inputs``, ``neurons``, ``rows`` : int
            Weights of one output channel, output channels, and rows of calibration data (samples, of a convolution
            times output positions) that the layer was quantized on.
        ``weights`` : str
            Such as ``"ternary"`` or ``"2 bits"``.
        ``levels`` : int
            Of the alphabet, or of each output channel.
        ``radius`` : float or mapping
            The largest level; of one radius per channel ``{"min": float, "max": float}``.
        ``constant`` : float or None
            What the median absolute weight was multiplied with to give the radius.
        ``activations`` : int or None
            Bits of the layer's inputs; None is float.
        ``activation_step`` : float or None
            Distance of two levels of the layer's inputs, where they are equispaced.
        ``activation_levels`` : list of float
            The levels of the layer's inputs, where they are not.
        ``relative_error``, ``scalar_relative_error`` : float or None
            Norm of the error of the layer's output on the calibration data, relative to that of the output, and what
            it is with every weight rounded on its own to the same alphabet.
        ``dead_inputs`` : int
            Inputs that are zero on all calibration data.
        ``uncorrected_relative_error`` : float
            The same before the mean error was added to the output; of QNN and LQ-Nets.
        ``weight_error`` : float
            Norm of what rounding changed the weights by, relative to that of the weights; of QNN and LQ-Nets.
        ``mean_basis`` : list of float
            Magnitudes of the basis, averaged over the output channels; of LQ-Nets.
        ``method`` : str
            How GPFQ followed the error, ``"gram"`` or ``"residual"``; else ``"QNN"`` or ``"LQNets"``.
        ``seconds`` : float
            Time that the layer took.

        What a row lacks is shown as unknown.
    title : str
        Name of the network.
    """

    rows: tuple[Mapping[str, Any], ...]
    title: str = "network"

    def __post_init__(self) -> None:
        """Take any sequence of rows."""
        object.__setattr__(self, "rows", tuple(self.rows))

    @property
    def seconds(self) -> float | None:
        """Time that all layers took; None where it is unknown of one."""
        times = [row.get("seconds") for row in self.rows]
        known = [time for time in times if time is not None]
        return sum(known) if known and len(known) == len(times) else None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain lists, dictionaries, numbers and texts.

        Returns
        -------
        dict
            ``network``, ``layers`` (the rows) and ``totals``.
        """
        return {
            "network": self.title,
            "layers": [dict(row) for row in self.rows],
            "totals": {"weights": _weights(self.rows), "dead_inputs": _dead(self.rows), "seconds": self.seconds},
        }

    def to_json(self) -> str:
        """The report as a JSON text.

        Returns
        -------
        str
            :meth:`as_dict`, indented.
        """
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        if not self.rows:
            return f"{self.title}, quantized\nno quantized layers"
        numeric = set(_HEADER) - set(_TEXT_COLUMNS)
        lines = table(_HEADER, [_cells(row) for row in self.rows], numeric)
        return "\n".join([f"{self.title}, quantized", "", *lines, "", _summary(self)])


def quantization_report(manifest: Mapping[str, Any]) -> QuantizationReport | None:
    """The report that travels in a ``.tvmq`` file.

    Parameters
    ----------
    manifest : mapping
        The file's ``manifest.json``.

    Returns
    -------
    QuantizationReport or None
        None when tvmq did not quantize the network.
    """
    rows = manifest.get("quantization")
    return QuantizationReport(tuple(rows), str(manifest.get("name", "network"))) if rows else None


def _cells(row: Mapping[str, Any]) -> list[str]:
    bits = row.get("activations")
    return [
        str(row.get("layer", "?")),
        *(_known(row.get(key)) for key in ("inputs", "neurons", "rows", "weights")),
        _radius(row.get("radius")),
        "float" if bits is None else f"{bits} bit{'s' if bits != 1 else ''}",
        percent(row.get("relative_error")),
        percent(row.get("scalar_relative_error")),
        _known(row.get("dead_inputs")),
        duration(row.get("seconds")),
    ]


def _known(value: Any) -> str:
    return "-" if value is None else str(value)


def _radius(radius: Any) -> str:
    if isinstance(radius, Mapping):
        return f"{radius['min']:.3g}..{radius['max']:.3g}"
    return "-" if radius is None else f"{radius:.3g}"


def _weights(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row.get("inputs", 0) * row.get("neurons", 0) for row in rows)


def _dead(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(row.get("dead_inputs") or 0 for row in rows)


def _summary(report: QuantizationReport) -> str:
    number = len(report.rows)
    parts = [f"{number} layer{'s' if number != 1 else ''} with {count(_weights(report.rows))} weights quantized"]
    if report.seconds is not None:
        parts[0] += f" in {duration(report.seconds)}"
    parts.append("error is of a layer's output on the calibration data")
    if any(row.get("scalar_relative_error") is not None for row in report.rows):
        parts[-1] += ", rounded that of rounding each weight alone"
    if _dead(report.rows):
        parts.append("dead inputs are zero on all calibration data")
    return "; ".join(parts)
