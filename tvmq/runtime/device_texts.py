"""The texts of a device's folder that depend on the network: an example in C, and what is what."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvmq.errors import BundleError
from tvmq.runtime.tensors import TensorSpec
from tvmq.target import Target

__all__ = ["main_program", "readme"]

_C_TYPES = {
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_SHOWN = 10

_MAIN = """\
/* Runs the network once and prints what it gives.  `make` compiles it again after a change. */
#include <stdio.h>
#include <stdlib.h>

#include "tvmq.h"

{arrays}

static void fail(const char *why) {{
  fprintf(stderr, "main: %s\\n", why);
  exit(1);
}}

static void read_file(const char *path, void *memory, size_t size) {{
  FILE *file = fopen(path, "rb");
  if (file == NULL || fread(memory, 1, size, file) != size) fail("a file of check-data/ cannot be read");
  fclose(file);
}}

int main(void) {{
  tvmq_network *network = tvmq_open("net.so");
  if (network == NULL) fail(tvmq_last_error());

{reads}
  const void *inputs[] = {{{inputs}}};
  void *outputs[] = {{{outputs}}};
  if (tvmq_run(network, inputs, outputs) != 0) fail(tvmq_last_error());

{prints}
  tvmq_close(network);
  return 0;
}}
"""

_README = """\
# {name} for {target}

A network compiled by tvmq, with everything that it needs on the device; Python is not among it.

Copy the folder to the device, and use it there:

    cd {folder}
    ./check        # runs the network and compares every value with what it must be
    ./bench -t {cores}   # times it on {cores} threads
    ./main         # runs it once and prints the result: the program to start from

{tensors}

| | |
|---|---|
| `net.so` | the network: its kernels, its weights, and what it takes and gives |
| `libtvmq.so` | the runtime |
| `tvmq.h` | its interface in C, with comments |
| `main.c`, `main` | the smallest program that runs this network |
| `bench.c`, `bench` | times it: `./bench -t THREADS -n RUNS` |
| `check.c`, `check`, `check-data/` | the self-check: the program, inputs, and the outputs that they must give |
| `Makefile` | compiles the programs again on the device: `make` (needs `apt install gcc make`) |

Needed: {needed}, and glibc {glibc} or later (`ldd --version`).

A program of your own needs `tvmq.h` to compile, and `libtvmq.so` and `net.so` to run:

    cc -O2 -o program program.c -L. -ltvmq '-Wl,-rpath,$ORIGIN'

The environment variable `TVM_NUM_THREADS`, or `tvmq_set_threads`, sets the number of threads.  A network for another
processor is refused by `tvmq_open`, with the reason.
"""


def main_program(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """A C program that runs one sample.

    Parameters
    ----------
    inputs, outputs : sequence of TensorSpec
        Of the network.

    Returns
    -------
    str

    Raises
    ------
    BundleError
        If C has no type for the elements of a tensor.
    """
    arrays = [_array("input", number, spec) for number, spec in enumerate(inputs)]
    arrays += [_array("output", number, spec) for number, spec in enumerate(outputs)]
    reads = ["  /* Put your own numbers into the inputs instead. */"]
    for number in range(len(inputs)):
        reads.append(f'  read_file("check-data/input_{number}.bin", input_{number}, sizeof(input_{number}));')
    prints = []
    for number, spec in enumerate(outputs):
        size = _elements(spec)
        more = " ..." if size > _SHOWN else ""
        prints += [
            f'  printf("output_{number}:");',
            f'  for (int i = 0; i < {min(size, _SHOWN)}; i++) printf(" %g", (double)output_{number}[i]);',
            f'  printf("{more}\\n");',
        ]
    return _MAIN.format(
        arrays="\n".join(arrays),
        reads="\n".join(reads),
        inputs=", ".join(f"input_{number}" for number in range(len(inputs))),
        outputs=", ".join(f"output_{number}" for number in range(len(outputs))),
        prints="\n".join(prints),
    )


def readme(
    name: str,
    folder: str,
    target: Target,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    glibc: str,
) -> str:
    """What is what in the folder.

    Parameters
    ----------
    name, folder : str
        Of the network, and of the folder.
    target : Target
        What the folder is for.
    inputs, outputs : sequence of TensorSpec
        Of the network.
    glibc : str
        The oldest version of the C library that will do, such as ``"2.34"``.

    Returns
    -------
    str
        Markdown.
    """
    tensors = [f"* input {number}: `{spec}`" for number, spec in enumerate(inputs)]
    tensors += [f"* output {number}: `{spec}`" for number, spec in enumerate(outputs)]
    flags = f" with {', '.join(target.required_cpu_flags)}" if target.required_cpu_flags else ""
    return _README.format(
        name=name,
        target=target.name,
        folder=folder,
        cores=target.cores,
        tensors="\n".join(tensors),
        needed=f"Linux for {target.arch}, a processor{flags}",
        glibc=glibc,
    )


def _array(kind: str, number: int, spec: TensorSpec) -> str:
    if spec.dtype not in _C_TYPES:
        raise BundleError(f"tensor '{spec.name}': C has no type for {spec.dtype}; give the network another one")
    extents = "".join(f"[{1 if extent is None else extent}]" for extent in spec.shape)
    # A name may be anything, also the end of a comment.
    name = "".join(c if c.isprintable() and c not in "*/\\" else "_" for c in spec.name)
    return f"static {_C_TYPES[spec.dtype]} {kind}_{number}[{_elements(spec)}]; /* {name}{extents} */"


def _elements(spec: TensorSpec) -> int:
    """Of one sample."""
    return prod(1 if extent is None else extent for extent in spec.shape)
