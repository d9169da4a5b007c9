"""What a compiled network consists of, layer by layer, as text and as JSON."""

from __future__ import annotations

from tvmq.report.receipt import LayerLine, Receipt, receipt

__all__ = ["LayerLine", "Receipt", "receipt"]
