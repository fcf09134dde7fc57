"""Phones that adb reaches and cannot use: they speak just enough of its protocol to stay unauthorized, or say nothing at all.

A message is six little-endian words (command, two arguments, length of the data, its sum, the command inverted) and the data.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HEADER = struct.Struct("<6I")
CONNECT, AUTH, TOKEN = 0x4E584E43, 0x48545541, 1


def message(command: int, first: int, second: int, data: bytes) -> bytes:
    return HEADER.pack(command, first, second, len(data), sum(data), command ^ 0xFFFFFFFF) + data


def received(link: socket.socket) -> int:
    """The command of the next message, whose data is skipped; 0 at the end."""
    head = b""
    while len(head) < HEADER.size:
        part = link.recv(HEADER.size - len(head))
        if not part:
            return 0
        head += part
    command, _, _, length, _, _ = HEADER.unpack(head)
    while length:
        length -= len(link.recv(length)) or length
    return int(command)


def answer(link: socket.socket, *, asks: bool) -> None:
    """One connection: every signature and key is answered by another token, as on a phone where nobody taps Allow."""
    with link:
        while command := received(link):
            if asks and command in (CONNECT, AUTH):
                link.sendall(message(AUTH, TOKEN, 0, bytes(range(20))))


@contextmanager
def bad_phone(*, asks: bool) -> Iterator[str]:
    """A phone that asks for trust and never gets it, or one that says nothing; gives its serial."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(link,), kwargs={"asks": asks}, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
