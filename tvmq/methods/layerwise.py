"""The analog and the quantized network side by side, layer by layer, on the same calibration batches.

For each batch there is a state: the values that the network's bindings up to some position have produced and later ones
still read, in both networks.  Quantizing a layer first moves all states up to it, then looks at its inputs;
the states never move back, so that what lies before a layer is computed once.  Up to the first quantized layer both
networks agree, and equal values are one object: nothing is computed twice, and a layer can see that its two inputs are
the same.

A weight that several layers share, as in the steps of a recurrent layer, is quantized once, on the inputs of all its
uses.  What lies between them is run with the float weight, ahead of the state, and again when the weight is known.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import relax
from tvm.ir import PrimType, Var

from tvmq.errors import InputError
from tvmq.golden import Interpreter, bind_value
from tvmq.methods.linear_layers import LayerUse, SharedWeight, apply_layer, constant_of
from tvmq.methods.spool import Spool
from tvmq.model import Model, input_dependent, module_bindings

__all__ = ["LayerInputs", "Quantized", "SideBySide", "Trial"]


@dataclass(frozen=True, eq=False)
class Quantized:
    """What became of a weight.

    Attributes
    ----------
    weight : float32, of the shape of the weight
    correction : float32 of shape (O,), optional
        Added to the layer's output.
    """

    weight: np.ndarray
    correction: np.ndarray | None = None


class LayerInputs(NamedTuple):
    """The inputs of one layer on one batch; one object where both networks agree."""

    use: LayerUse
    analog: np.ndarray
    quantized: np.ndarray


class Trial(NamedTuple):
    """Seconds that a sample takes in the analog network.

    Attributes
    ----------
    elapsed : list of float
        By position of a binding: what runs before it.
    gathering : dict of Var to float
        By variable of a use: looking at its inputs.
    """

    elapsed: list[float]
    gathering: dict[Var, float]


class _State(NamedTuple):
    """The values of both networks, by variable."""

    analog: dict[Var, Any]
    quantized: dict[Var, Any]


class SideBySide:
    """Runs a network and its quantized form.

    Parameters
    ----------
    model : Model
    weights : iterable of SharedWeight
        All weights of the network.
    batches : iterable of tuples of numpy.ndarray
        One array per input; read once.
    memory : int
        Bytes of states that stay in memory.

    Attributes
    ----------
    samples : int
        Of the calibration data.
    fingerprint : str
        A hash of the calibration data.

    Raises
    ------
    InputError
        If there are no batches.
    """

    def __init__(
        self, model: Model, weights: Iterable[SharedWeight], batches: Iterable[tuple[np.ndarray, ...]], memory: int
    ) -> None:
        function = model.module["main"]
        self._bindings = module_bindings(function)
        self._weights = {use.variable: weight for weight in weights for use in weight.uses}
        self._uses = {use.variable: use for weight in weights for use in weight.uses}
        self._quantized: dict[SharedWeight, Quantized] = {}
        self._quantizers: dict[Var, Callable[[np.ndarray], np.ndarray]] = {}
        self._interpreter = Interpreter(model.module)
        self._last_read = self._last_reads(function)
        self._constants = self._evaluate_constants(function)
        # Variables cannot be pickled, so that states are stored by number.
        self._variables = self._all_variables(function)
        self._number = {variable: number for number, variable in enumerate(self._variables)}
        self._parameters = list(function.params)
        self._position = 0
        self.samples = 0
        self._states = Spool(memory)
        digest = hashlib.sha256()
        for batch in batches:
            self.samples += len(batch[0])
            for array in batch:
                digest.update(np.ascontiguousarray(array).tobytes())
            values: dict[Var, Any] = {}
            for parameter, array in zip(function.params, batch, strict=True):
                bind_value(values, parameter, parameter.ty, array)
            self._store(None, _State(values, dict(values)))
        if not self.samples:
            raise InputError("calibration: there are no samples; give at least one batch")
        self.fingerprint = digest.hexdigest()

    def close(self) -> None:
        """Delete what lies in files."""
        self._states.close()

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self._states)

    # --- what is known so far ---

    def quantize_weight(self, weight: SharedWeight, quantized: Quantized) -> None:
        """Use a quantized weight in the quantized network from now on."""
        self._quantized[weight] = quantized

    def quantize_inputs(self, weight: SharedWeight, quantizer: Callable[[np.ndarray], np.ndarray]) -> None:
        """Round the inputs of all uses of a weight in the quantized network from now on."""
        for use in weight.uses:
            self._quantizers[use.variable] = quantizer

    # --- running ---

    def inputs(self, weight: SharedWeight) -> Iterator[list[LayerInputs]]:
        """What the uses of a weight see, batch by batch.

        Parameters
        ----------
        weight : SharedWeight
            None that was first used before one that was already asked for.

        Yields
        ------
        list of LayerInputs
            One per use.  The quantized inputs are rounded if :meth:`quantize_inputs` said how.
        """
        first, last = weight.uses[0].position, weight.uses[-1].position
        for index in range(len(self._states)):
            state = self._load(index)
            if self._position < first:
                self._run(state, self._position, first)
                self._drop(state, first)
                self._store(index, state)
            seen = [self._seen(weight.uses[0], state)]
            if last > first:
                state = _State(dict(state.analog), dict(state.quantized))
                uses = iter(weight.uses[1:])
                position = first
                for use in uses:
                    self._run(state, position, use.position)
                    seen.append(self._seen(use, state))
                    position = use.position
            yield seen
        self._position = max(self._position, first)

    def try_sample(self, look: Callable[[LayerUse, np.ndarray], None]) -> Trial:
        """Run the first sample through the analog network and forget it.

        Parameters
        ----------
        look : callable
            Called with every use of a weight and its input.

        Returns
        -------
        Trial
        """
        state, samples = self._first_sample()
        elapsed, gathering = [0.0], {}
        for position, binding in enumerate(self._bindings):
            start = looked = time.perf_counter()
            if binding.var not in self._constants:
                if binding.var in self._uses:
                    use = self._uses[binding.var]
                    look(use, self._value(use.call.args[0], state.analog))
                    looked = time.perf_counter()
                    gathering[binding.var] = (looked - start) / samples
                pattern = binding.ty if isinstance(binding, relax.MatchCast) else None
                bind_value(state.analog, binding.var, pattern, self._evaluate(binding, state.analog))
                self._drop(state, position + 1, relax.analysis.free_vars(binding.value))
            elapsed.append(elapsed[-1] + (time.perf_counter() - looked) / samples)
        return Trial(elapsed, gathering)

    def _first_sample(self) -> tuple[_State, int]:
        """The inputs of one sample, or of a batch where the network takes no other, and how many these are."""
        inputs = self._load(0).analog
        arrays = [inputs[parameter] for parameter in self._parameters]
        if all(isinstance(parameter.ty.shape[0], Var) for parameter in self._parameters):
            arrays = [array[:1] for array in arrays]
        values: dict[Var, Any] = {}
        for parameter, array in zip(self._parameters, arrays, strict=True):
            bind_value(values, parameter, parameter.ty, array)
        return _State(values, {}), len(arrays[0])

    def _seen(self, use: LayerUse, state: _State) -> LayerInputs:
        analog, quantized = (self._value(use.call.args[0], values) for values in state)
        quantizer = self._quantizers.get(use.variable)
        return LayerInputs(use, analog, quantized if quantizer is None else quantizer(quantized))

    def _run(self, state: _State, start: int, end: int) -> None:
        """Execute the bindings from ``start`` up to ``end`` in both networks."""
        for position in range(start, end):
            binding = self._bindings[position]
            if binding.var in self._constants:
                continue
            pattern = binding.ty if isinstance(binding, relax.MatchCast) else None
            bind_value(state.analog, binding.var, pattern, self._evaluate(binding, state.analog))
            if self._agree(binding, state):
                bind_value(state.quantized, binding.var, pattern, state.analog[binding.var])
            else:
                bind_value(state.quantized, binding.var, pattern, self._evaluate(binding, state.quantized, True))
            self._drop(state, position + 1, relax.analysis.free_vars(binding.value))

    def _agree(self, binding: Any, state: _State) -> bool:
        """Whether a binding has the same value in both networks."""
        if binding.var in self._quantizers or self._weights.get(binding.var) in self._quantized:
            return False
        return all(
            state.analog.get(variable) is state.quantized.get(variable)
            for variable in relax.analysis.free_vars(binding.value)
            if not isinstance(variable.ty, PrimType)
        )

    def _evaluate(self, binding: Any, values: dict[Var, Any], quantized: bool = False) -> Any:
        weight = self._weights.get(binding.var)
        if weight is None:
            return self._value(binding.value, values)
        use = self._uses[binding.var]
        x, matrix, correction = self._value(use.call.args[0], values), weight.weight, None
        if quantized and binding.var in self._quantizers:
            x = self._quantizers[binding.var](x)
        if quantized and weight in self._quantized:
            matrix, correction = self._quantized[weight].weight, self._quantized[weight].correction
        result = apply_layer(use, x, matrix)
        if correction is not None:
            result += correction if use.is_dense else correction[:, None, None]
        return result

    def _value(self, expr: relax.Expr, values: Mapping[Var, Any]) -> Any:
        needed = {variable: self._constants[variable] for variable in self._constant_operands(expr)}
        return self._interpreter.evaluate(expr, {**values, **needed} if needed else values)

    # --- bookkeeping ---

    def _constant_operands(self, expr: relax.Expr) -> list[Var]:
        return [variable for variable in relax.analysis.free_vars(expr) if variable in self._constants]

    def _evaluate_constants(self, function: relax.Function) -> dict[Var, Any]:
        dependent = input_dependent(function)
        constants: dict[Var, Any] = {}
        for binding in self._bindings:
            if binding.var not in dependent:
                constants |= constant_of(binding, constants)
        return constants

    def _last_reads(self, function: relax.Function) -> dict[Var, int]:
        last = {}
        for position, binding in enumerate(self._bindings):
            for variable in relax.analysis.free_vars(binding.value):
                last[variable] = position
        return last

    def _drop(self, state: _State, position: int, variables: Iterable[Var] | None = None) -> None:
        """Forget values (of some variables, or all) that no binding from ``position`` on reads."""
        for values in state:
            for variable in list(values) if variables is None else variables:
                if not isinstance(variable.ty, PrimType) and self._last_read.get(variable, -1) < position:
                    values.pop(variable, None)

    def _all_variables(self, function: relax.Function) -> list[Var]:
        sizes = {size for parameter in function.params for size in parameter.ty.shape if isinstance(size, Var)}
        return [*sizes, *function.params, *(binding.var for binding in self._bindings)]

    def _store(self, index: int | None, state: _State) -> None:
        entry = {
            (network, self._number[variable]): value
            for network, values in enumerate(state)
            for variable, value in values.items()
            if variable in self._number
        }
        if index is None:
            self._states.append(entry)
        else:
            self._states[index] = entry

    def _load(self, index: int) -> _State:
        state = _State({}, {})
        for (network, number), value in self._states[index].items():
            state[network][self._variables[number]] = value
        return state
