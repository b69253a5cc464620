"""A child process that answers requests on a socket: starting it, and the messages in both directions."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def start(
    module: str, passed_on: Sequence[str], environment: Mapping[str, str], silence_seconds: float
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the `serve` of a module with the same interpreter, and return the process and the socket to it.

    Args:
        module: Its full name. Its function `serve` takes the number of its socket.
        passed_on: Variables that the child gets from our environment; of the others, secrets among them, it has none.
        environment: Variables that it gets besides.
        silence_seconds: A child that says nothing for so long raises TimeoutError on our side.
    """
    ours, theirs = socket.socketpair()
    ours.settimeout(silence_seconds)
    kept = {name: os.environ[name] for name in passed_on if name in os.environ}
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {module} import serve; serve({theirs.fileno()})"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**kept, "PYTHONPATH": str(ROOT), **environment},
        )
    return process, ours


def send(connection: socket.socket, head: dict[str, Any], *bodies: bytes | np.ndarray) -> None:
    """Send a message: the length of a JSON head, the head with its bodies' sizes, the bodies."""
    views = [memoryview(body if isinstance(body, bytes) else body.data).cast("B") for body in bodies]
    text = json.dumps(head | {"sizes": [len(view) for view in views]}).encode()
    connection.sendall(struct.pack(">I", len(text)) + text)
    for view in views:
        connection.sendall(view)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Read a message of `send`: its head and its bodies, (n,) uint8.

    Raises:
        EOFError: the other side has ended.
    """
    (length,) = struct.unpack(">I", _receive(connection, 4).data)
    head = json.loads(_receive(connection, length).tobytes())
    return head, [_receive(connection, size) for size in head["sizes"]]


def _receive(connection: socket.socket, size: int) -> np.ndarray:
    data = np.empty(size, np.uint8)
    view = data.data
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise EOFError
        view = view[count:]
    return data
