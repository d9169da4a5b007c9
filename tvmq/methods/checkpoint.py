"""Layers that are finished, in files: what an interrupted run resumes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tvmq.errors import InputError
from tvmq.methods.activations import ActivationQuantizer, InputQuantizer
from tvmq.methods.gpfq_config import GPFQ
from tvmq.methods.level_quantizer import LevelQuantizer
from tvmq.methods.lqnets import LQNets
from tvmq.methods.qnn import QNN
from tvmq.methods.quantized_layer import QuantizedLayer
from tvmq.model import Model

__all__ = ["Checkpoint"]

JOB = "job.json"
QUANTIZERS: dict[str, Any] = {kind.__name__: kind for kind in (ActivationQuantizer, LevelQuantizer)}


class Checkpoint:
    """A folder with one file per finished layer.

    Parameters
    ----------
    folder : Path or None
        Made if it does not exist; None keeps nothing.
    model : Model
    config : GPFQ, QNN or LQNets
    data : str
        A fingerprint of the calibration data.
    writes : bool
        Of several processes that share a folder, one writes.

    Raises
    ------
    InputError
        If the folder holds the layers of another network, configuration or calibration.
    """

    def __init__(
        self, folder: Path | None, model: Model, config: GPFQ | QNN | LQNets, data: str, writes: bool = True
    ) -> None:
        self._folder, self._writes = folder, writes
        if folder is None:
            return
        job = {
            "network": hashlib.sha256(model.to_json().encode()).hexdigest(),
            "config": {"method": type(config).__name__} | asdict(config) | {"skip": list(config.skip)},
            "calibration": data,
        }
        path = folder / JOB
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            different = [key for key in job if found.get(key) != job[key]]
            if different:
                raise InputError(
                    f"{folder} holds the layers of a run with another {' and '.join(different)}; delete the folder to "
                    "start again, or choose another one"
                )
            return
        if not writes:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, json.dumps(job, indent=2).encode())

    def load(self, number: int) -> QuantizedLayer | None:
        """The layer of that number, if it is finished."""
        if self._folder is None or not self._path(number).exists():
            return None
        with np.load(self._path(number)) as arrays:
            about = json.loads(str(arrays["about"]))
            quantizer = _quantizer_from(about["quantizer"])
            correction = arrays["correction"] if "correction" in arrays else None
            return QuantizedLayer(arrays["weight"], correction, quantizer, about["row"])

    def save(self, number: int, layer: QuantizedLayer) -> None:
        """Keep a finished layer."""
        if self._folder is None or not self._writes:
            return
        arrays: dict[str, Any] = {
            "weight": layer.weight,
            "about": np.array(json.dumps({"quantizer": _quantizer_fields(layer.quantizer), "row": layer.row})),
        }
        if layer.correction is not None:
            arrays["correction"] = layer.correction
        temporary = self._path(number).with_suffix(".part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(self._path(number))

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"layer-{number:04d}.npz"


def _quantizer_fields(quantizer: Any) -> dict[str, Any] | None:
    return None if quantizer is None else {"kind": type(quantizer).__name__} | asdict(quantizer)


def _quantizer_from(fields: dict[str, Any] | None) -> InputQuantizer | None:
    if fields is None:
        return None
    return QUANTIZERS[fields["kind"]](**{name: value for name, value in fields.items() if name != "kind"})


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_bytes(content)
    temporary.replace(path)
