"""What a library says of itself: a text inside it, which the C++ runtime reads before it runs any of its code.

There is a line per fact.  A network for a Raspberry Pi 5 has, for example::

    target raspberry-pi-5
    needs asimd asimdhp asimddp
    input float32 1,3,32,32 image
    output float32 1,10 scores

A shape has -1 for the open batch and is ``scalar`` if it is empty; the name of a tensor is the rest of its line.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvmq.runtime.tensors import TensorSpec
from tvmq.target import Target

__all__ = ["describe", "description_source", "is_described"]

_SYMBOL = "tvmq_description"


def describe(target: Target, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """The text that belongs in a library.

    Parameters
    ----------
    target : Target
        What the library is compiled for.
    inputs, outputs : sequence of TensorSpec
        What its network takes and gives.

    Returns
    -------
    str
        See the module's description.
    """
    lines = [f"target {target.name}", " ".join(["needs", *target.required_cpu_flags])]
    lines += [_tensor_line("input", spec) for spec in inputs]
    lines += [_tensor_line("output", spec) for spec in outputs]
    return "".join(f"{line}\n" for line in lines)


def description_source(text: str) -> str:
    """A C++ source that puts a description into a library.

    Parameters
    ----------
    text : str
        From :func:`describe`.

    Returns
    -------
    str
    """
    # Octal escapes of three digits end by themselves, whatever follows.
    literal = "".join(f"\\{byte:03o}" for byte in text.encode())
    return f'extern "C" const char {_SYMBOL}[] = "{literal}";\n'


def is_described(library: bytes) -> bool:
    """Whether a library has a description.

    Parameters
    ----------
    library : bytes
        The content of the ``.so`` file.

    Returns
    -------
    bool
    """
    return f"\0{_SYMBOL}\0".encode() in library


def _tensor_line(kind: str, spec: TensorSpec) -> str:
    shape = ",".join("-1" if extent is None else str(extent) for extent in spec.shape) or "scalar"
    return f"{kind} {spec.dtype} {shape} {' '.join(spec.name.split())}"
