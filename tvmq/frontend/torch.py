"""Torch networks, through ``torch.export``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvmq.errors import InputError, ModelError, TvmqError, UnsupportedOperatorError
from tvmq.frontend.normalize import first_line, layer_of_parameter, normalize
from tvmq.model import Model

__all__ = ["load_torch"]


def load_torch(
    source: torch.nn.Module | torch.export.ExportedProgram, inputs: Any, name: str | None, dynamic_batch: bool
) -> Model:
    """Import a torch network.

    Parameters
    ----------
    source : torch.nn.Module or torch.export.ExportedProgram
        A module is exported first.
    inputs : tuple of torch.Tensor or None
        Example inputs of a module.
    name : str or None
        Default: the module's class.
    dynamic_batch : bool
        Export a module with the first dimension of every input open.

    Returns
    -------
    Model

    Raises
    ------
    ModelError, UnsupportedOperatorError, InputError
        See :func:`tvmq.load`.
    """
    if isinstance(source, torch.export.ExportedProgram):
        return _import(source, name or "model")
    name = name or type(source).__name__
    return _import(_export(source, _examples(inputs, name), name, dynamic_batch), name)


def _examples(inputs: Any, name: str) -> tuple[torch.Tensor, ...]:
    if inputs is None:
        raise InputError(f"'{name}' is a torch module: give example inputs, as in tvmq.load(module, (x,))")
    if not isinstance(inputs, tuple | list):
        inputs = (inputs,)
    try:
        return tuple(torch.as_tensor(value) for value in inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"the example inputs of '{name}' must be tensors: {first_line(error)}") from error


def _export(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str, dynamic_batch: bool
) -> torch.export.ExportedProgram:
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} if value.ndim else None for value in inputs)
        # torch.export takes a size of 1 for a constant: show it a batch of two.
        inputs = tuple(torch.cat([value, value]) if value.ndim and len(value) == 1 else value for value in inputs)
    try:
        with _quiet():
            return torch.export.export(_evaluation_copy(module), inputs, dynamic_shapes=shapes)
    except Exception as error:  # a user's forward may raise anything
        remedy = (
            "load it without dynamic_batch if the network fixes its batch"
            if dynamic_batch
            else "torch.export must be able to trace the module with these inputs"
        )
        raise ModelError(f"'{name}' cannot be exported: {first_line(error)}; {remedy}") from error


def _evaluation_copy(module: torch.nn.Module) -> torch.nn.Module:
    if not any(part.training for part in module.modules()):
        return module
    return copy.deepcopy(module).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that torch's export and decompositions raise about torch's own internals."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        # torch's own recurrent layers list their weights anew in every call
        warnings.filterwarnings("ignore", message=r"The tensor attributes self\..*_flat_weights", category=UserWarning)
        yield


class _Importer(ExportedProgramImporter):
    """TVM's importer, but constants are copies of the tensors, and it is known which is whose.

    The original shares memory with contiguous tensors: training the module further would change the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[torch.Tensor, Any]] = []

    def _convert_pytorch_tensor_to_tvm(self, tensor_value: torch.Tensor) -> Any:
        array = tensor_value.detach().cpu().contiguous().numpy()
        converted = tvm.runtime.tensor(array)
        self.tensors.append((tensor_value, converted))
        return converted

    def _select(self, node: torch.fx.Node) -> relax.Var:
        """One index of a dimension; TVM's own converter reads outside of the tensor where the index is negative."""
        x, (axis, index) = self.env[node.args[0]], node.args[1:]
        size = self.shape_of(x)[axis]
        begin = index if index >= 0 else size + index
        picked = self.block_builder.emit(relax.op.strided_slice(x, [axis], [begin], [begin + 1]))
        return self.block_builder.emit(relax.op.squeeze(picked, [axis]))

    def _index_tensor(self, node: torch.fx.Node) -> relax.Var:
        """Indices in tensors, which may be negative as well."""
        sizes = self.shape_of(self.env[node.args[0]])
        given = {index: self.env[index] for index in node.args[1] if index is not None}
        try:
            for axis, index in enumerate(node.args[1]):
                if index is not None and str(given[index].ty.dtype).startswith("int"):
                    self.env[index] = self._counted_from_the_front(given[index], sizes[axis])
            return super()._index_tensor(node)
        finally:
            self.env.update(given)

    def _counted_from_the_front(self, index: relax.Expr, size: Any) -> relax.Expr:
        dtype = str(index.ty.dtype)
        if not isinstance(size, tvm.tirx.IntImm):
            return index
        length = relax.const(int(size), dtype)
        negative = self.block_builder.emit(relax.op.less(index, relax.const(0, dtype)))
        wrapped = self.block_builder.emit(relax.op.add(index, length))
        return self.block_builder.emit(relax.op.where(negative, wrapped, index))

    def supports(self, node: torch.fx.Node) -> bool:
        """Whether there is a converter for a call, and one that heeds all its arguments."""
        operator = node.target.__name__
        if operator == "avg_pool2d.default" and len(node.args) > 6:
            return False  # divisor_override, which TVM's converter ignores
        if operator == _ADAPTIVE_MAX_POOL:
            sizes, outputs = node.args[0].meta["val"].shape[-2:], node.args[1]
            return all(
                isinstance(size, int) and size % output == 0 for size, output in zip(sizes, outputs, strict=True)
            )
        if operator == "index.Tensor" and not _is_indexed_right(node):
            return False
        return operator in self.convert_map


def _is_indexed_right(node: torch.fx.Node) -> bool:
    """Whether TVM's converter gives what torch does; it indexes axis after axis instead of element by element."""
    shapes = [index.meta["val"].shape for index in node.args[1] if index is not None]
    if len(shapes) in (1, len(node.args[1])):
        return True
    return len(shapes) == 2 and len(shapes[0]) == 2 and shapes[0][1] == 1 and len(shapes[1]) == 1


_ADAPTIVE_MAX_POOL = "adaptive_max_pool2d.default"


def _adaptive_max_pool(node: torch.fx.Node, importer: ExportedProgramImporter) -> Any:
    """Windows that divide the image evenly: an ordinary max pooling (and, as torch has it, indices nobody reads)."""
    sizes, outputs = node.args[0].meta["val"].shape[-2:], node.args[1]
    window = [size // output for size, output in zip(sizes, outputs, strict=True)]
    pooled = importer.block_builder.emit(relax.op.nn.max_pool2d(importer.env[node.args[0]], window, window))
    return importer.block_builder.emit(relax.Tuple([pooled, relax.op.zeros_like(pooled)]))


def _import(program: torch.export.ExportedProgram, name: str) -> Model:
    try:
        with _quiet():
            return _import_program(program, name)
    except TvmqError:
        raise
    except Exception as error:  # TVM's importer raises anything from assertions to internal errors
        raise ModelError(f"'{name}' cannot be imported: {first_line(error)}") from error


def _import_program(program: torch.export.ExportedProgram, name: str) -> Model:
    program = program.run_decompositions()
    importer = _Importer()
    for node in program.graph.nodes:
        if node.op == "call_function" and not importer.supports(node):
            raise UnsupportedOperatorError(
                f"'{name}': operator '{node.target}'{_place(node)} is not supported; "
                "replace it in the module by operators that are"
            )
    module = importer.from_exported_program(
        program,
        keep_params_as_input=False,
        unwrap_unit_return_tuple=False,
        no_bind_return_tuple=False,
        custom_convert_map={_ADAPTIVE_MAX_POOL: _adaptive_max_pool},
    )
    names = {
        id(tensor): parameter
        for parameter, tensor in chain(program.constants.items(), program.named_buffers(), program.named_parameters())
    }
    origins = {
        converted: layer_of_parameter(names[id(tensor)])
        for tensor, converted in importer.tensors
        if id(tensor) in names
    }
    return Model.from_module(normalize(module, origins, f"'{name}'"), name)


def _place(node: Any) -> str:
    """Where in the module a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return f" of layer '{paths[-1]}'" if paths and paths[-1] else ""
