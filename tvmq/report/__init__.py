"""What a compiled or quantized network consists of, layer by layer, as text and as JSON."""

from __future__ import annotations

from tvmq.report.quantization import QuantizationReport, quantization_report
from tvmq.report.receipt import LayerLine, Receipt, receipt

__all__ = ["LayerLine", "QuantizationReport", "Receipt", "quantization_report", "receipt"]
