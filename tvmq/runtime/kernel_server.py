"""Runs on a board: lets another machine load kernels there and time them, through TVM's remote calls.

Those are not protected in any way: whoever reaches the server can run anything.  So it listens on the board's loopback
device only, asks for a key that only the other machine knows, and ends as soon as its standard input does, which is
when the ssh connection that started it ends.

The text of this file is handed to the interpreter of ``~/tvmq-python``; it imports nothing of tvmq.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import socket
import sys
import threading
from pathlib import Path

__all__ = ["main"]

_INPUT = 0


def main() -> None:
    """Serve until standard input ends, whose first line is the key; the first line of standard output is the port."""
    import tvm
    from tvm.rpc import server

    # The runtime by itself lacks what some remote calls need.
    extra = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_extra.so"
    if extra.exists():
        ctypes.CDLL(str(extra), ctypes.RTLD_GLOBAL)
    server.logger.setLevel(logging.ERROR)
    key = _first_line()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    port = int(listener.getsockname()[1])
    threading.Thread(target=_serve, args=(server, listener, port, key), daemon=True).start()
    print(port, flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # nobody reads it from here on
    while os.read(_INPUT, 1):
        pass
    for child in multiprocessing.active_children():
        child.kill()


def _first_line() -> str:
    # Not sys.stdin: a session is a fork of this process, and would wait for the lock of whoever reads there.
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(_INPUT, 1)
        if not byte:
            sys.exit(0)
        line += byte
    return line.decode().strip()


def _serve(server: object, listener: socket.socket, port: int, key: str) -> None:
    # Not rpc.Server, which starts another interpreter just to be able to end it.
    while True:
        os.chdir("/")  # a session that crashed leaves us in a folder that is gone
        try:
            server._listen_loop(listener, port, key, None, None, None)  # type: ignore[attr-defined]
        except RuntimeError:
            continue  # a kernel has crashed, and with it the process of its session


if __name__ == "__main__":
    main()
