"""A network between two stages: a Relax module with names, and what it computes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Op, Var

from tvmq import __version__, golden
from tvmq.errors import ModelError
from tvmq.runtime.bundle import Bundle
from tvmq.runtime.tensors import TensorSpec, check_inputs

__all__ = ["LAYER_OPERATORS", "Layer", "Model", "input_dependent", "module_bindings"]

# Operators whose second argument is a weight.
LAYER_OPERATORS = frozenset(
    {
        "relax.matmul",
        "relax.nn.conv1d",
        "relax.nn.conv1d_transpose",
        "relax.nn.conv2d",
        "relax.nn.conv2d_transpose",
        "relax.nn.conv3d",
        "tvmq.conv2d",
        "tvmq.dense",
    }
)

# Names travel with a serialised module in this attribute of its function.
_ATTRIBUTE = "tvmq.model"


class Layer(NamedTuple):
    """A convolution or linear layer: name, operator (``"conv2d"``, ``"matmul"``) and shape of its weight."""

    name: str
    operator: str
    weight_shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A network: one Relax function ``main``, NCHW, weights bound as constants.

    Parameters
    ----------
    module : tvm.IRModule
        Module whose ``main`` takes one tensor per input.  Every convolution and linear layer is bound to a variable
        named after the layer.  Models from :func:`tvmq.load` return a tuple of outputs, even of one.
    name : str
        Name of the network.
    inputs, outputs : tuple of TensorSpec
        One per parameter of ``main``, and one per tensor it returns.
    quantization : tuple of mapping
        How each layer was quantized, if tvmq did it: the rows of a
        :class:`~tvmq.report.quantization.QuantizationReport`, which travel with the model into files.

    Raises
    ------
    ModelError
        When the module has no Relax function ``main``, the specifications are not as many as its tensors, or
        ``quantization`` holds what JSON cannot.
    """

    module: tvm.IRModule
    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    quantization: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Check that the specifications belong to the module."""
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        function = _main(self.module)
        if len(self.inputs) != len(function.params):
            raise ModelError(f"model '{self.name}': {len(self.inputs)} inputs for {len(function.params)} parameters")
        results = len(_output_types(function))
        if len(self.outputs) != results:
            raise ModelError(f"model '{self.name}': {len(self.outputs)} outputs for {results} results")
        try:
            rows = json.loads(json.dumps([dict(row) for row in self.quantization], allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ModelError(f"model '{self.name}': its quantization is not plain data ({error})") from None
        object.__setattr__(self, "quantization", tuple(rows))

    @classmethod
    def from_module(
        cls,
        module: tvm.IRModule,
        name: str,
        input_names: Sequence[str] | None = None,
        output_names: Sequence[str] | None = None,
        quantization: Sequence[Mapping[str, Any]] = (),
    ) -> Model:
        """A model whose specifications are read off the types of the module.

        Parameters
        ----------
        module : tvm.IRModule
            See :class:`Model`.
        name : str
            Name of the network.
        input_names : sequence of str, optional
            Default: the names of the parameters.
        output_names : sequence of str, optional
            Default: ``output_0``, ``output_1``, ...
        quantization : sequence of mapping
            See :class:`Model`.

        Returns
        -------
        Model

        Raises
        ------
        ModelError
            For a module without ``main``, tensors of unknown rank, or another number of names than of tensors.
        """
        function = _main(module)
        results = _output_types(function)
        input_names = input_names or [parameter.name for parameter in function.params]
        output_names = output_names or [f"output_{index}" for index in range(len(results))]
        if len(input_names) != len(function.params) or len(output_names) != len(results):
            raise ModelError(
                f"model '{name}': {len(input_names)} input and {len(output_names)} output names for "
                f"{len(function.params)} parameters and {len(results)} results"
            )
        inputs = [_spec(*pair) for pair in zip(input_names, [p.ty for p in function.params], strict=True)]
        outputs = [_spec(*pair) for pair in zip(output_names, results, strict=True)]
        return cls(module, name, tuple(inputs), tuple(outputs), tuple(quantization))

    @property
    def dynamic_batch(self) -> bool:
        """Whether the batch is open."""
        return any(spec.dynamic for spec in self.inputs)

    @cached_property
    def _folded(self) -> tvm.IRModule:
        # The pass stands above this floor; it is needed only here, when the network runs.
        from tvmq.transform import fold

        return fold(self.module)

    def run(self, *arrays: Any) -> list[np.ndarray]:
        """Run the network in the golden executor, which every compiled form must equal.

        Parameters
        ----------
        *arrays : array-like
            One array per input, in order.

        Returns
        -------
        list of numpy.ndarray
            One array per output.

        Raises
        ------
        InputError
            For arrays of the wrong number, shape or dtype.
        """
        return golden.interpret(self._folded, check_inputs(self.inputs, arrays))

    def layers(self) -> list[Layer]:
        """The convolution and linear layers, in the order in which they run."""
        function = _main(self.module)
        dependent = input_dependent(function)
        return [
            Layer(binding.var.name, binding.value.op.name.split(".")[-1], _shape(binding.value.args[1]))
            for binding in module_bindings(function)
            if is_layer(binding.value, dependent)
        ]

    def to_json(self) -> str:
        """The module as text (:func:`tvm.ir.save_json`); all else travels in an attribute of ``main``."""
        names: dict[str, Any] = {
            "name": self.name,
            "inputs": [spec.name for spec in self.inputs],
            "outputs": [spec.name for spec in self.outputs],
        }
        if self.quantization:
            names["quantization"] = self.quantization
        module = tvm.IRModule(self.module.functions)
        module["main"] = module["main"].with_attr(_ATTRIBUTE, json.dumps(names))
        return tvm.ir.save_json(module)

    @classmethod
    def from_json(cls, text: str) -> Model:
        """The model that :meth:`to_json` wrote.

        Parameters
        ----------
        text : str
            A serialised module; names that it lacks take the defaults of :meth:`from_module`.

        Returns
        -------
        Model

        Raises
        ------
        ModelError
            When the text is not a serialised module.
        """
        try:
            module = tvm.ir.load_json(text)
        except Exception as error:  # TVM's JSON reader has no error class of its own
            reason = str(error).strip().splitlines()[-1:]
            raise ModelError(f"not a serialised model: {''.join(reason)}") from error
        function = _main(module)
        names = json.loads(str((function.attrs or {}).get(_ATTRIBUTE, "{}")))
        if names:
            module["main"] = function.without_attr(_ATTRIBUTE)
        return cls.from_module(
            module,
            names.get("name", "model"),
            names.get("inputs"),
            names.get("outputs"),
            names.get("quantization", ()),
        )

    def manifest(self) -> dict[str, Any]:
        """What the manifest of a ``.tvmq`` file says of the model, whatever it is compiled for.

        Returns
        -------
        dict
            ``name``, ``inputs``, ``outputs``, ``tvmq`` and ``tvm`` versions, and ``quantization`` if there is any.
        """
        manifest: dict[str, Any] = {
            "tvmq": __version__,
            "tvm": tvm.__version__,
            "name": self.name,
            "inputs": [_spec_as_dict(spec) for spec in self.inputs],
            "outputs": [_spec_as_dict(spec) for spec in self.outputs],
        }
        if self.quantization:
            manifest["quantization"] = [dict(row) for row in self.quantization]
        return manifest

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.tvmq`` file without any library: :func:`tvmq.load` reads it, and it can be compiled later.

        Parameters
        ----------
        path : path-like
            Where to.  A file of that name is replaced at once or not at all.

        Raises
        ------
        BundleError
            If the file cannot be written.
        """
        manifest = {**self.manifest(), "targets": {}, "layers": {}}
        Bundle(manifest=manifest, model_json=self.to_json(), libraries={}).save(path)

    def __repr__(self) -> str:
        """Name, tensors and a table of the layers."""
        layers = self.layers()
        lines = [f"Model '{self.name}', {len(layers)} layers"]
        lines += [f"  input   {spec}" for spec in self.inputs]
        lines += [f"  output  {spec}" for spec in self.outputs]
        rows = [
            ("layer", "operator", "weight"),
            *((layer.name, layer.operator, " × ".join(map(str, layer.weight_shape))) for layer in layers),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        if layers:
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join(lines)


def module_bindings(function: relax.Function) -> list[Any]:
    """All bindings of a function without control flow, in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def input_dependent(function: relax.Function) -> set[Var]:
    """The variables whose values depend on the function's parameters; all others are constants."""
    dependent = set(function.params)
    for binding in module_bindings(function):
        if any(variable in dependent for variable in relax.analysis.free_vars(binding.value)):
            dependent.add(binding.var)
    return dependent


def is_layer(expr: Any, dependent: set[Var]) -> bool:
    """Whether an expression is a convolution or linear layer: its weight does not depend on the network's input."""
    return (
        isinstance(expr, Call)
        and isinstance(expr.op, Op)
        and expr.op.name in LAYER_OPERATORS
        and not any(variable in dependent for variable in relax.analysis.free_vars(expr.args[1]))
    )


def _main(module: tvm.IRModule) -> relax.Function:
    functions = {variable.name_hint: function for variable, function in module.functions.items()}
    if not isinstance(functions.get("main"), relax.Function):
        raise ModelError("the module has no Relax function 'main'")
    return functions["main"]


def _output_types(function: relax.Function) -> list[Any]:
    result = function.ret_ty
    return list(result.fields) if isinstance(result, relax.TupleType) else [result]


def _spec(name: str, ty: Any) -> TensorSpec:
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise ModelError(f"tensor '{name}' has no known rank; export the network with the shapes of its tensors")
    shape = tuple(int(size) if isinstance(size, tvm.tirx.IntImm) else None for size in ty.shape)
    return TensorSpec(name, shape, str(ty.dtype))


def _spec_as_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(size) for size in expr.ty.shape)
