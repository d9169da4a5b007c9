"""``python -m tvmq.runtime.kernel_server``: lets another machine run kernels on a board, to time them.

TVM's remote calls are not protected in any way: whoever reaches the server can run anything.  So it listens on the
board's loopback device only, asks for a key that only the other machine knows, and ends as soon as its standard input
does, which is when the ssh connection that started it ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
from pathlib import Path

__all__ = ["main"]

_LOOPBACK = "127.0.0.1"


def main() -> None:
    """Serve until standard input ends, whose first line is the key; the first line of standard output is the port."""
    import tvm
    from tvm.rpc.server import PopenRPCServerState

    # The runtime by itself lacks what fills arguments with random numbers.
    extra = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_extra.so"
    if extra.exists():
        ctypes.CDLL(str(extra), ctypes.RTLD_GLOBAL)
    # Not rpc.Server, which starts another interpreter just to be able to end it.
    port = _free_port()
    PopenRPCServerState(_LOOPBACK, port, port + 1, key=sys.stdin.readline().strip(), silent=True)
    print(port, flush=True)
    threading.Thread(target=_end_with_input).start()


def _free_port() -> int:
    """TVM does not let the system choose."""
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        return int(free.getsockname()[1])


def _end_with_input() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)  # the server's own thread never ends


if __name__ == "__main__":
    main()
