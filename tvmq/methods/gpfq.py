r"""GPFQ: greedy path-following quantization of the weights of one layer.

**The algorithm** (Lybrand and Saab, 2021).  Let w be the N weights of a neuron, X (m x N) the analog input of its layer
for m samples, and X~ the input produced by the prefix of the network that is already quantized.  Columns are X_t, X~_t.
The walk chooses one letter q_t of the alphabet A after the other,

    u_0 = 0,
    q_t = argmin_{p in A} || u_{t-1} + w_t X_t - p X~_t ||,
    u_t = u_{t-1} + w_t X_t - q_t X~_t,

so that u_N = X w - X~ q is the error of the pre-activations: what the walk keeps small is what the layer gets wrong.
The minimum over all real p is at

    z_t = < X~_t, u_{t-1} + w_t X_t > / ||X~_t||^2,

and the norm grows with ``|p - z_t|``, hence q_t = Q_A(z_t), the nearest letter (:mod:`tvmq.methods.alphabets`).

**Error form.**  Write d_t = X_t - X~_t for the drift of the prefix and e_t = w_t - q_t.  Then

    w_t X_t - q_t X~_t = w_t d_t + e_t X~_t,
    z_t = w_t + ( < X~_t, u_{t-1} > + w_t < X~_t, d_t > ) / ||X~_t||^2.

Nothing large cancels: in the first layer d = 0, and z_t is w_t plus a correction for the errors so far.

**Gram form.**  With H = X~^T X~, D = X~^T (X - X~) and u_{t-1} = sum_{s<t} (w_s d_s + e_s X~_s),

    < X~_t, u_{t-1} > = sum_{s<t} D_ts w_s + sum_{s<t} H_ts e_s.

Samples enter through H and D only, which are sums over samples: batches can be streamed, in any order and by several
processes, and memory does not depend on m.  The sums over s are evaluated for a block of rows t at a time: everything
before the block is one matrix product for all n neurons (forward substitution), and only the triangle inside the block
is walked row by row.  Cost 4 m N^2 + 4 N^2 n operations; with X = X~, D = 0 and a quarter of that.

**Residual form.**  If all of X fits, keep U = (u of every neuron), m x n.  Per block of columns b: P = X~_b^T U gives
< X~_t, u > at the start of the block, the Gram matrices of the block alone serve the triangle, and
U += (X - X~)_b W_b + X~_b E_b.  Cost 6 m N n: less than the Gram form for layers with few neurons and many inputs,
as convolutions are.

**Error norms.**  With E = (X - X~)^T (X - X~), kept for this purpose only,

    || u_N ||^2 = w^T E w + 2 e^T D w + e^T H e,      || X w ||^2 = w^T (H + D + D^T + E) w.

H and E are symmetric, so they share one array: H is its lower triangle, E its strict upper triangle.  The triangle of H
is all that the walk reads.  Memory is thus 2 N^2 doubles, or N^2 if X = X~.

**Dead inputs.**  If ||X~_t|| = 0, every letter is as good as any other.  It gets Q_A(0): the letter nearest to 0, the
lower of two.  u still grows by w_t X_t, and later weights can make up for it.

**Convolutions.**  Rows of X are patches (im2col with the layer's own stride, padding and dilation), columns are
ordered (channel, kh, kw), and one walk covers a whole filter.  The authors' first code instead walked every input
channel alone, each with its own u: that is ``walk_length = kh * kw``.  With groups, every group is a layer of its own:
walk the weights of group i with the columns of group i.

**The authors' code** (``compat="original"``) differs in two ways: where ``|< X~_t, u_{t-1} >| < 1e-10`` it rounds w_t
instead of z_t, which depends on the scale of the data and is not the argmin if X_t and X~_t differ; and an input is
dead if ``||X~_t|| < 1e-16``.  (It gives dead inputs the value 0 even if that is no letter; here they get a letter.)

References
----------
E. Lybrand and R. Saab, "A Greedy Algorithm for Quantizing Neural Networks", JMLR 22(156), 2021 (the dynamical system
above, in the form with X and X~).  J. Zhang, Y. Zhou and R. Saab, "Post-training Quantization for Neural Networks with
Provable Guarantees", SIAM J. Math. Data Sci. 5(2), 2023 (general alphabets, sparse variants, convolutions).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tvmq.errors import InputError
from tvmq.methods.alphabets import Alphabet

__all__ = ["GramAccumulator", "QuantizedWeights", "quantize_weights", "scalar_quantize", "walk"]

BLOCK = 128
"""Rows walked one by one between two matrix products; a multiple of what a matrix product likes."""

RESIDUAL_BLOCK = 64
"""The same for the residual form, which pays for the Gram matrices of its blocks."""

LEAF = 128
"""Columns below which a symmetric product is not split any further."""

FEWEST_ROWS = 256
"""Samples in a piece of the inputs: fewer would make its products slow."""

MOST_RESIDUALS = 2**27
"""Largest m * n for which the residual form is chosen on its own: one GiB of doubles."""

ORIGINAL_SHORTCUT = 1e-10
ORIGINAL_DEAD_NORM = 1e-16


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """The quantized weights of a layer, and how far its outputs are from the analog ones on the calibration data.

    Parameters
    ----------
    weights : float64 array of shape (N, n)
        Letters, a neuron per column.
    codes : uint8 array of shape (N, n)
        Their indices in the alphabet (of each neuron).
    relative_error : float
        ``||X W - X~ Q|| / ||X W||``, Frobenius norms; 0 if both are 0, infinite if only the second is.
    relative_errors : float64 array of shape (n,)
        The same for each neuron, ``||X w - X~ q|| / ||X w||``.
    error_norms, output_norms : float64 arrays of shape (n,)
        ``||X w - X~ q||^2`` and ``||X w||^2``, which add up over neurons.
    mean_error : float64 array of shape (n,)
        Mean over the samples of ``X w - X~ q``; added to the bias of the quantized layer it removes the mean error
        ("bias correction").
    dead_inputs : bool array of shape (N,)
        Inputs that were 0 in every sample of X~, so that their weights could not matter.
    """

    weights: np.ndarray
    codes: np.ndarray
    relative_error: float
    relative_errors: np.ndarray
    error_norms: np.ndarray
    output_norms: np.ndarray
    mean_error: np.ndarray
    dead_inputs: np.ndarray


class GramAccumulator:
    """Sums over calibration samples from which a layer can be quantized, its error measured and its bias corrected.

    Every array is a plain sum over samples: accumulators of different batches, processes or machines are merged with
    ``+=``, or by adding up their :meth:`arrays` in place.  All sums are float64.

    Parameters
    ----------
    inputs : int
        N, the inputs of a neuron.  For a grouped convolution use one accumulator per group.

    Attributes
    ----------
    inputs : int
        N.
    """

    def __init__(self, inputs: int) -> None:
        if inputs < 1:
            raise InputError(f"inputs={inputs!r} is not supported; a layer has at least one input")
        self.inputs = inputs
        self._samples = np.zeros(1)
        self._triangles = np.zeros((inputs, inputs))
        self._sums = np.zeros(inputs)
        # What follows is 0 as long as both inputs are the same, and made when they first differ.
        self._cross: np.ndarray | None = None
        self._drift_squares = np.zeros(inputs)
        self._drift_sums = np.zeros(inputs)

    @property
    def samples(self) -> int:
        """How many rows were added."""
        return int(self._samples[0])

    @property
    def gram(self) -> np.ndarray:
        """H = X~^T X~, a new (N, N) array."""
        lower = np.tril(self._triangles)
        return lower + np.tril(lower, -1).T

    @property
    def cross(self) -> np.ndarray:
        """D = X~^T (X - X~), a new (N, N) array."""
        return np.zeros_like(self._triangles) if self._cross is None else self._cross.copy()

    @property
    def drift_gram(self) -> np.ndarray:
        """E = (X - X~)^T (X - X~), a new (N, N) array."""
        upper = np.triu(self._triangles, 1)
        return upper + upper.T + np.diag(self._drift_squares)

    def add(self, inputs: np.ndarray, quantized_inputs: np.ndarray | None = None) -> None:
        """Add a batch of samples.

        Parameters
        ----------
        inputs : real array of shape (m, N)
            X, the analog inputs: samples, or patches of a convolution.
        quantized_inputs : real array of shape (m, N), optional
            X~, the inputs of the same samples from the quantized prefix.  Default: the analog inputs.

        Raises
        ------
        InputError
            For another shape, another type than real numbers, NaN or infinity; nothing was added then, except batches
            of rows before the one in question.
        """
        analog = _checked_inputs("inputs", inputs, self.inputs)
        if quantized_inputs is None or quantized_inputs is inputs:
            for rows in _pieces(0, len(analog), _chunk_rows(self.inputs)):
                self._add_same(np.asarray(analog[rows], np.float64))
            return
        quantized = _checked_pair(analog, quantized_inputs)
        for rows in _pieces(0, len(analog), _chunk_rows(self.inputs)):
            present = np.asarray(quantized[rows], np.float64)
            self._add_drifting(present, np.subtract(analog[rows], present, dtype=np.float64))

    def __iadd__(self, other: GramAccumulator) -> GramAccumulator:
        if not isinstance(other, GramAccumulator):
            return NotImplemented
        if other.inputs != self.inputs:
            raise InputError(f"accumulators of {self.inputs} and {other.inputs} inputs cannot be merged")
        theirs = other._existing_arrays()
        mine = self.arrays() if "cross" in theirs else self._existing_arrays()
        for name, array in theirs.items():
            mine[name] += array
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """All sums, float64, as views: what is added to them is added to the accumulator.

        Returns
        -------
        dict of str to array
            ``samples`` (1,); ``triangles`` (N, N): H in the lower triangle with the diagonal, E strictly above it;
            ``cross`` (N, N): D; ``sums`` (N,): of X~; ``drift_sums`` (N,): of X - X~; ``drift_squares`` (N,): the
            diagonal of E.  ``cross`` is made if it does not exist, so that all processes have the same arrays.
        """
        if self._cross is None:
            self._cross = np.zeros_like(self._triangles)
        return self._existing_arrays()

    def _existing_arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "samples": self._samples,
            "triangles": self._triangles,
            "sums": self._sums,
            "drift_sums": self._drift_sums,
            "drift_squares": self._drift_squares,
        }
        return arrays if self._cross is None else {**arrays, "cross": self._cross}

    def _add_same(self, present: np.ndarray) -> None:
        sums = _finite_sums(present)
        self._samples += len(present)
        self._sums += sums
        _add_lower_gram(self._triangles, present)

    def _add_drifting(self, present: np.ndarray, drift: np.ndarray) -> None:
        drift_sums = _finite_sums(drift)
        self._add_same(present)
        self._drift_sums += drift_sums
        self._drift_squares += np.einsum("st,st->t", drift, drift)
        _add_upper_gram(self._triangles, drift)
        if self._cross is None:
            self._cross = np.zeros_like(self._triangles)
        for columns in _pieces(0, self.inputs, 2 * LEAF):
            self._cross[:, columns] += present.T @ drift[:, columns]

    def error_norms(self, weight: np.ndarray, quantized: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Squared norms of the error and of the analog output of neurons that were quantized in any way.

        Parameters
        ----------
        weight, quantized : float64 arrays of shape (N, k)
            w and q of some neurons.

        Returns
        -------
        (float64 array of shape (k,), float64 array of shape (k,))
            ``||X w - X~ q||^2`` and ``||X w||^2``.
        """
        return self._norms_squared(weight, weight - quantized)

    def _norms_squared(self, weight: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``||X w - X~ q||^2`` and ``||X w||^2`` of every neuron, for e = w - q."""
        residual, output = np.zeros(weight.shape[1]), np.zeros(weight.shape[1])
        for rows in _pieces(0, self.inputs, BLOCK):
            w, e = weight[rows], error[rows]
            gram = self._triangles[rows, rows]
            present = np.tril(gram) + np.tril(gram, -1).T
            before, after = slice(0, rows.start), slice(rows.stop, self.inputs)
            residual += _columns_dot(e, 2 * (self._triangles[rows, before] @ error[before]) + present @ e)
            output += _columns_dot(w, 2 * (self._triangles[rows, before] @ weight[before]) + present @ w)
            if self._cross is None:
                continue
            upper = np.triu(gram, 1)
            drift = upper + upper.T + np.diag(self._drift_squares[rows])
            drift_norm = _columns_dot(w, 2 * (self._triangles[rows, after] @ weight[after]) + drift @ w)
            cross = self._cross[rows] @ weight
            residual += drift_norm + 2 * _columns_dot(e, cross)
            output += drift_norm + 2 * _columns_dot(w, cross)
        # Sums of both signs: an exact 0 can come out just below.
        return np.maximum(residual, 0), np.maximum(output, 0)

    def _mean_error(self, weight: np.ndarray, error: np.ndarray) -> np.ndarray:
        return (self._drift_sums @ weight + self._sums @ error) / max(self.samples, 1)


@dataclass(frozen=True)
class _Rule:
    """How a number is chosen for one weight of every neuron: the argmin, or the authors' code."""

    alphabet: Alphabet
    dead_below: float
    shortcut_below: float

    @classmethod
    def of(cls, alphabet: Alphabet | np.ndarray, compat: str | None, neurons: int) -> _Rule:
        letters = Alphabet.of(alphabet)
        if letters.neurons not in (None, neurons):
            raise InputError(
                f"the alphabet has a row for each of {letters.neurons} neurons, but the layer has {neurons}; "
                "give one row per column of weight, or a single one"
            )
        if compat is None:
            # Below the smallest normal number a square has lost its digits: the norm vanishes in float64.
            return cls(letters, dead_below=np.finfo(np.float64).tiny, shortcut_below=0.0)
        if compat == "original":
            return cls(letters, dead_below=ORIGINAL_DEAD_NORM**2, shortcut_below=ORIGINAL_SHORTCUT)
        raise InputError(f"compat={compat!r} is not supported; use None or 'original'")

    def walk_triangle(
        self,
        gram: np.ndarray,
        drift: np.ndarray | None,
        projected: np.ndarray,
        weight: np.ndarray,
        error: np.ndarray,
        codes: np.ndarray,
    ) -> None:
        """Walk the rows of a block, all neurons at once.

        Parameters
        ----------
        gram : array of shape (b, b)
            H of the block; only its lower triangle is read.
        drift : array of shape (b,) or None
            Diagonal of D; None if X = X~.
        projected : array of shape (b, n)
            ``< X~_t, u >`` for all terms of u but the e_s X~_s of this block.
        weight : array of shape (b, n)
            w.
        error : array of shape (b, n)
            Where w - q goes.
        codes : uint8 array of shape (b, n)
            Where the codes go.
        """
        for t, w in enumerate(weight):
            square = gram[t, t]
            if square < self.dead_below:
                codes[t] = self.alphabet.codes(np.zeros_like(w))
            else:
                inner = projected[t] + gram[t, :t] @ error[:t] if t else projected[t]
                step = inner if drift is None else inner + drift[t] * w
                z = w + step / square
                if self.shortcut_below:
                    z = np.where(np.abs(inner) < self.shortcut_below, w, z)
                codes[t] = self.alphabet.codes(z)
            np.subtract(w, self.alphabet.letters(codes[t]), out=error[t])

    def write_letters(self, codes: np.ndarray, out: np.ndarray) -> None:
        """Write the letters of (N, n) codes, a row at a time: indices of all would take as much memory as weights."""
        for letters, row in zip(out, codes, strict=True):
            letters[:] = self.alphabet.letters(row)


def quantize_weights(
    weight: np.ndarray,
    inputs: np.ndarray,
    quantized_inputs: np.ndarray | None = None,
    *,
    alphabet: Alphabet | np.ndarray,
    compat: str | None = None,
    method: str = "auto",
    walk_length: int | None = None,
) -> QuantizedWeights:
    """Quantize the weights of a layer by GPFQ, with all calibration data in memory.

    Parameters
    ----------
    weight : real array of shape (N, n)
        A neuron (output channel) per column, without the bias; rows are walked from the first to the last.
    inputs : real array of shape (m, N)
        X, the analog inputs of the layer: samples, or patches of a convolution in the order of the rows of ``weight``.
    quantized_inputs : real array of shape (m, N), optional
        X~, the inputs of the same samples from the quantized prefix.  Default: the analog inputs (first layer).
    alphabet : array of shape (M,) or (n, M), or Alphabet
        Sorted letters, for all neurons or one row per neuron; an :class:`~tvmq.methods.alphabets.Alphabet` for another
        rule than the nearest letter.
    compat : {None, "original"}
        "original" reproduces the shortcuts of the authors' code (see the head of this file).
    method : {"auto", "gram", "residual"}
        The form to use; "auto" takes the one with fewer operations.  They differ in rounding only.
    walk_length : int, optional
        Start again with u = 0 after so many rows: kh * kw walks every input channel of a convolution alone.  The error
        is that of the whole layer all the same.

    Returns
    -------
    QuantizedWeights

    Raises
    ------
    InputError
        For arrays whose shapes do not fit or that contain NaN or infinity, and for an unsorted alphabet.

    Examples
    --------
    >>> inputs = np.random.default_rng(0).normal(size=(16, 256))
    >>> weight = np.random.default_rng(1).uniform(-1, 1, size=(256, 4))
    >>> ternary = np.array([-1.0, 0.0, 1.0])
    >>> bool(quantize_weights(weight, inputs, alphabet=ternary).relative_error < 0.2)
    True
    """
    weight = _checked_weight(weight)
    analog = _checked_inputs("inputs", inputs, len(weight))
    quantized = None
    if quantized_inputs is not None and quantized_inputs is not inputs:
        quantized = _checked_pair(analog, quantized_inputs)
    rule = _Rule.of(alphabet, compat, weight.shape[1])
    length = _checked_walk_length(walk_length, len(weight))
    if method not in ("auto", "gram", "residual"):
        raise InputError(f"method={method!r} is not supported; use 'auto', 'gram' or 'residual'")
    if method == "residual" or (method == "auto" and _residual_is_cheaper(weight, analog, quantized, length)):
        return _walk_residual(weight, analog, quantized, rule, length)
    gram = GramAccumulator(len(weight))
    gram.add(analog, quantized)
    return _walk_gram(weight, gram, rule, length, BLOCK)


def walk(
    weight: np.ndarray,
    gram: GramAccumulator,
    *,
    alphabet: Alphabet | np.ndarray,
    compat: str | None = None,
    walk_length: int | None = None,
    block: int = BLOCK,
) -> QuantizedWeights:
    """Quantize the weights of a layer by GPFQ from accumulated sums.

    The accumulator is not changed and can be walked again, with other alphabets for instance.

    Parameters
    ----------
    weight : real array of shape (N, n)
        A neuron per column, as for :func:`quantize_weights`.
    gram : GramAccumulator
        The sums over all calibration samples.
    alphabet : array of shape (M,) or (n, M), or Alphabet
        As for :func:`quantize_weights`.
    compat : {None, "original"}
        As for :func:`quantize_weights`.
    walk_length : int, optional
        As for :func:`quantize_weights`.
    block : int
        Rows per block; a matter of speed only.

    Returns
    -------
    QuantizedWeights

    Raises
    ------
    InputError
        For weights that do not fit the accumulator or contain NaN or infinity, for an accumulator without samples, and
        for an unsorted alphabet.
    """
    weight = _checked_weight(weight)
    if len(weight) != gram.inputs:
        raise InputError(f"weight has {len(weight)} rows, but the accumulator is for {gram.inputs} inputs")
    if not gram.samples:
        raise InputError("the accumulator is empty; add at least one batch of inputs first")
    if block < 1:
        raise InputError(f"block={block!r} is not supported; use a positive number of rows")
    rule = _Rule.of(alphabet, compat, weight.shape[1])
    return _walk_gram(weight, gram, rule, _checked_walk_length(walk_length, len(weight)), block)


def scalar_quantize(weight: np.ndarray, alphabet: Alphabet | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Memoryless scalar quantization (MSQ): every weight becomes its nearest letter, whatever the data.

    Parameters
    ----------
    weight : real array of shape (N, n)
        A neuron per column.
    alphabet : array of shape (M,) or (n, M), or Alphabet
        As for :func:`quantize_weights`.

    Returns
    -------
    weights : float64 array of shape (N, n)
        Letters.
    codes : uint8 array of shape (N, n)
        Their indices in the alphabet.

    Raises
    ------
    InputError
        For weights that are not a finite (N, n) array, and for an unsorted alphabet.
    """
    weight = _checked_weight(weight)
    rule = _Rule.of(alphabet, None, weight.shape[1])
    codes = np.empty(weight.shape, np.uint8)
    for row, z in zip(codes, weight, strict=True):
        row[:] = rule.alphabet.codes(z)
    quantized = np.empty_like(weight)
    rule.write_letters(codes, out=quantized)
    return quantized, codes


def _walk_gram(
    weight: np.ndarray, gram: GramAccumulator, rule: _Rule, walk_length: int, block: int
) -> QuantizedWeights:
    """Blocked forward substitution; every block first collects what all earlier rows of its walk contribute."""
    present, cross = gram._triangles, gram._cross
    squares = present.diagonal()
    _check_squares(squares, gram._drift_squares)
    error = np.empty_like(weight)
    codes = np.empty(weight.shape, np.uint8)
    for start, rows in _walk_blocks(len(weight), walk_length, block):
        before = slice(start, rows.start)
        projected = present[rows, before] @ error[before]
        drift = None
        if cross is not None:
            projected += cross[rows, before] @ weight[before]
            projected += np.tril(cross[rows, rows], -1) @ weight[rows]
            drift = cross[rows, rows].diagonal()
        rule.walk_triangle(present[rows, rows], drift, projected, weight[rows], error[rows], codes[rows])
    residual, output = gram._norms_squared(weight, error)
    mean_error = gram._mean_error(weight, error)
    rule.write_letters(codes, out=error)
    return _result(error, codes, residual, output, mean_error, squares < rule.dead_below)


def _walk_residual(
    weight: np.ndarray, analog: np.ndarray, quantized: np.ndarray | None, rule: _Rule, walk_length: int
) -> QuantizedWeights:
    """Walk with the u of all neurons in memory, a block of columns of the inputs at a time."""
    samples, neurons = len(analog), weight.shape[1]
    whole = walk_length >= len(weight)
    state = np.zeros((samples, neurons))
    error = np.empty_like(weight)
    codes = np.empty(weight.shape, np.uint8)
    dead = np.empty(len(weight), bool)
    for start, rows in _walk_blocks(len(weight), walk_length, RESIDUAL_BLOCK):
        if start == rows.start:
            state[:] = 0
        present = np.array((analog if quantized is None else quantized)[:, rows], np.float64)
        drift = None if quantized is None else np.subtract(analog[:, rows], present, dtype=np.float64)
        dead[rows] = _walk_columns(present, drift, state, rule, weight[rows], error[rows], codes[rows])
        if not whole and rows.stop == min(start + walk_length, len(weight)):
            continue  # the next block starts with u = 0
        for chunk in _pieces(0, samples, _chunk_rows(neurons)):
            state[chunk] += present[chunk] @ error[rows]
            if drift is not None:
                state[chunk] += drift[chunk] @ weight[rows]
    rule.write_letters(codes, out=error)
    return _measured(weight, analog, quantized, error, codes, dead, state if whole else None)


def _walk_columns(
    present: np.ndarray,
    drift: np.ndarray | None,
    state: np.ndarray,
    rule: _Rule,
    weight: np.ndarray,
    error: np.ndarray,
    codes: np.ndarray,
) -> np.ndarray:
    """Walk a block of columns from u = state, which is not changed; returns which inputs are dead."""
    _finite_sums(present)
    gram = present.T @ present
    projected = present.T @ state
    drift_diagonal = None
    if drift is not None:
        _finite_sums(drift)
        cross = present.T @ drift
        projected += np.tril(cross, -1) @ weight
        drift_diagonal = cross.diagonal()
        _check_squares(drift_diagonal)
    _check_squares(gram.diagonal())
    rule.walk_triangle(gram, drift_diagonal, projected, weight, error, codes)
    return gram.diagonal() < rule.dead_below


def _measured(
    weight: np.ndarray,
    analog: np.ndarray,
    quantized: np.ndarray | None,
    letters: np.ndarray,
    codes: np.ndarray,
    dead: np.ndarray,
    residual: np.ndarray | None,
) -> QuantizedWeights:
    """The result of a walk, with the errors computed from the samples; ``residual`` is X w - X~ q if it is at hand."""
    neurons = weight.shape[1]
    residual_squares, output_squares, total = np.zeros(neurons), np.zeros(neurons), np.zeros(neurons)
    for rows in _pieces(0, len(analog), FEWEST_ROWS):
        output = np.asarray(analog[rows], np.float64) @ weight
        if residual is not None:
            rest = residual[rows]
        else:
            rest = output - np.asarray((analog if quantized is None else quantized)[rows], np.float64) @ letters
        output_squares += _columns_dot(output, output)
        residual_squares += _columns_dot(rest, rest)
        total += rest.sum(axis=0)
    return _result(letters, codes, residual_squares, output_squares, total / len(analog), dead)


def _result(
    letters: np.ndarray,
    codes: np.ndarray,
    residual_squares: np.ndarray,
    output_squares: np.ndarray,
    mean_error: np.ndarray,
    dead_inputs: np.ndarray,
) -> QuantizedWeights:
    return QuantizedWeights(
        weights=letters,
        codes=codes,
        relative_error=float(_relative(residual_squares.sum(), output_squares.sum())),
        relative_errors=_relative(residual_squares, output_squares),
        error_norms=residual_squares,
        output_norms=output_squares,
        mean_error=mean_error,
        dead_inputs=dead_inputs,
    )


def _relative(residual_squares: np.ndarray, output_squares: np.ndarray) -> np.ndarray:
    silent = output_squares == 0
    ratio = residual_squares / np.where(silent, 1, output_squares)
    return np.sqrt(np.where(silent & (residual_squares > 0), np.inf, ratio))


def _residual_is_cheaper(
    weight: np.ndarray, analog: np.ndarray, quantized: np.ndarray | None, walk_length: int
) -> bool:
    """Compare operations, the products for the error norms included (see the head of this file)."""
    inputs, neurons = weight.shape
    samples, block = len(analog), min(RESIDUAL_BLOCK, walk_length)
    if samples * neurons > MOST_RESIDUALS:
        return False
    if quantized is None:
        residual = samples * (6 * neurons + block)
        gram = inputs * (samples + 3 * neurons)
    else:
        residual = samples * (8 * neurons + 3 * block)
        gram = inputs * (4 * samples + 7 * neurons)
    return residual < gram


def _walk_blocks(inputs: int, walk_length: int, block: int) -> Iterator[tuple[int, slice]]:
    """Blocks of rows in order, each with the first row of the walk that it belongs to."""
    for walk_rows in _pieces(0, inputs, walk_length):
        for rows in _pieces(walk_rows.start, walk_rows.stop, block):
            yield walk_rows.start, rows


def _pieces(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _chunk_rows(columns: int) -> int:
    """Samples in a piece: few enough to take less memory than the sum that its product is added to, but not slow."""
    return max(FEWEST_ROWS, columns // 3)


def _add_lower_gram(out: np.ndarray, x: np.ndarray) -> None:
    """Add X^T X to the lower triangle, diagonal included, at half the cost: only squares on the diagonal are halved."""
    columns = x.shape[1]
    if columns <= LEAF:
        out += np.tril(x.T @ x)
        return
    half = columns // 2
    _add_lower_gram(out[:half, :half], x[:, :half])
    _add_lower_gram(out[half:, half:], x[:, half:])
    out[half:, :half] += x[:, half:].T @ x[:, :half]


def _add_upper_gram(out: np.ndarray, x: np.ndarray) -> None:
    """Add X^T X strictly above the diagonal."""
    columns = x.shape[1]
    if columns <= LEAF:
        out += np.triu(x.T @ x, 1)
        return
    half = columns // 2
    _add_upper_gram(out[:half, :half], x[:, :half])
    _add_upper_gram(out[half:, half:], x[:, half:])
    out[:half, half:] += x[:, :half].T @ x[:, half:]


def _columns_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->j", a, b)


def _finite_sums(x: np.ndarray) -> np.ndarray:
    """Column sums, which NaN or infinity anywhere in the column would spoil."""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = x.sum(axis=0)
    if not np.isfinite(sums).all():
        raise InputError(
            f"the calibration inputs contain NaN or infinity (column {int(np.argmin(np.isfinite(sums)))}); "
            "check the calibration data and the layers before this one"
        )
    return sums


def _check_squares(*diagonals: np.ndarray) -> None:
    if not all(np.isfinite(diagonal).all() for diagonal in diagonals):
        raise InputError("the calibration inputs are too large to be squared in float64; scale them down")


def _checked_weight(weight: np.ndarray) -> np.ndarray:
    array = np.asarray(weight)
    if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"weight must be real of shape (inputs, neurons), a neuron per column; got {array.dtype} of shape "
            f"{array.shape}"
        )
    array = np.ascontiguousarray(array, np.float64)
    if not np.isfinite(array).all():
        raise InputError("weight contains NaN or infinity; check the layer it comes from")
    return array


def _checked_inputs(name: str, inputs: np.ndarray, columns: int) -> np.ndarray:
    array = np.asarray(inputs)
    if array.dtype.kind not in "fiub" or array.ndim != 2 or array.shape[1] != columns or not len(array):
        raise InputError(
            f"{name} must be real of shape (samples, {columns}), a row per sample or patch; got {array.dtype} of shape "
            f"{array.shape}"
        )
    return array


def _checked_pair(analog: np.ndarray, quantized_inputs: np.ndarray) -> np.ndarray:
    quantized = _checked_inputs("quantized_inputs", quantized_inputs, analog.shape[1])
    if len(quantized) != len(analog):
        raise InputError(
            f"inputs has {len(analog)} rows and quantized_inputs {len(quantized)}; both must come from the "
            "same samples in the same order"
        )
    return quantized


def _checked_walk_length(walk_length: int | None, inputs: int) -> int:
    if walk_length is None:
        return inputs
    if walk_length < 1 or inputs % walk_length:
        raise InputError(f"walk_length={walk_length!r} is not supported; use a divisor of the {inputs} rows of weight")
    return walk_length
