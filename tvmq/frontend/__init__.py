"""From a torch or ONNX network to a :class:`tvmq.model.Model`."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

from tvmq.errors import InputError, ModelError
from tvmq.frontend.normalize import first_line
from tvmq.model import Model

__all__ = ["load"]


def load(source: Any, inputs: Any = None, *, name: str | None = None, dynamic_batch: bool = False) -> Model:
    """Load a network.

    Parameters
    ----------
    source : str, os.PathLike, onnx.ModelProto, torch.nn.Module or torch.export.ExportedProgram
        Path of a ``.onnx`` or ``.tvmq`` file, or a network in memory.  A torch module is exported in evaluation mode;
        the module itself is left as it is, and later changes to it do not reach the model.  Quantizers in ONNX may be
        those of QONNX (as Brevitas writes them), pairs of QuantizeLinear and DequantizeLinear, or plain arithmetic.
    inputs : tuple of tensors, optional
        Example inputs of a torch module: its shapes are the model's.  For ONNX, the shapes of dimensions that the
        file leaves open.  Other sources need none.
    name : str, optional
        Name of the network; default: the file's, the graph's or the class's.
    dynamic_batch : bool
        Leave the first dimension of every input open.  An exported program must have been exported so.

    Returns
    -------
    Model
        Its module returns a tuple of outputs, even of one.

    Raises
    ------
    ModelError
        When the source cannot be read, exported or imported.
    UnsupportedOperatorError
        When the network has an operator that cannot be compiled.
    InputError
        When a torch module comes without example inputs, or the source is of another kind.
    """
    model = _load(source, inputs, name, dynamic_batch)
    closed = [spec.name for spec in model.outputs if not spec.dynamic]
    if dynamic_batch and not model.dynamic_batch:
        raise ModelError(
            f"'{model.name}' has a fixed batch; export it with an open one, or load it without dynamic_batch"
        )
    if model.dynamic_batch and closed:
        raise ModelError(
            f"'{model.name}' has an open batch, but the shape of its output '{closed[0]}' is fixed: an operator inside "
            "has a constant batch; export it with a fixed batch, or use flatten instead of a reshape to constant sizes"
        )
    return model


def _load(source: Any, inputs: Any, name: str | None, dynamic_batch: bool) -> Model:
    if isinstance(source, str | os.PathLike):
        return _load_file(Path(source), inputs, name, dynamic_batch)
    # Whoever holds an object of a package has imported the package: no other source pays for torch or onnx.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.nn.Module | torch.export.ExportedProgram):
        from tvmq.frontend.torch import load_torch

        return load_torch(source, inputs, name, dynamic_batch)
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(source, onnx.ModelProto):
        from tvmq.frontend.onnx import load_onnx

        return load_onnx(source, inputs, name or source.graph.name or "model", dynamic_batch)
    raise InputError(
        f"cannot load a {type(source).__name__}; give the path of a .onnx or .tvmq file, an onnx.ModelProto, "
        "a torch.nn.Module with example inputs, or a torch.export.ExportedProgram"
    )


def _load_file(path: Path, inputs: Any, name: str | None, dynamic_batch: bool) -> Model:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the path of a .onnx or .tvmq file")
    if zipfile.is_zipfile(path):
        return _load_bundle(path, name)
    if path.suffix == ".tvmq":
        raise ModelError(f"{path} is not a .tvmq file: it is no zip archive; it may be truncated, copy it again")
    from tvmq.frontend.onnx import load_onnx, read_onnx

    return load_onnx(read_onnx(path), inputs, name or path.stem, dynamic_batch)


def _load_bundle(path: Path, name: str | None) -> Model:
    try:
        with zipfile.ZipFile(path) as archive:
            if "model.json" not in archive.namelist():
                raise ModelError(
                    f"{path} is neither an ONNX nor a .tvmq file; of a PyTorch file, load the network in Python "
                    "(torch.load or torch.export.load) and give tvmq.load that"
                )
            model = Model.from_json(archive.read("model.json").decode())
            manifest = json.loads(archive.read("manifest.json"))
        inputs, outputs = ([tensor["name"] for tensor in manifest[kind]] for kind in ("inputs", "outputs"))
        return Model.from_module(model.module, name or manifest["name"], inputs, outputs, model.quantization)
    except ModelError:
        raise
    except Exception as error:  # whatever a damaged archive or manifest makes zipfile, zlib and json raise
        raise ModelError(f"{path} is damaged ({first_line(error)}); copy or compile it again") from error
