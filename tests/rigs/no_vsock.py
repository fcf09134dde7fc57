"""Runs a command in which socket(AF_VSOCK, ...) fails: ``no_vsock.py COMMAND ...`` (x86-64 Linux).

A seccomp filter of six BPF instructions: let every system call pass, but answer EAFNOSUPPORT to socket() with family 40.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

SYS_SOCKET, AF_VSOCK, EAFNOSUPPORT = 41, 40, 97
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

PROGRAM = (
    (LOAD_WORD, 0, 0, 0),  # the number of the system call
    (JUMP_IF_EQUAL, 0, 3, SYS_SOCKET),
    (LOAD_WORD, 0, 0, 16),  # its first argument
    (JUMP_IF_EQUAL, 0, 1, AF_VSOCK),
    (RETURN, 0, 0, ERRNO | EAFNOSUPPORT),
    (RETURN, 0, 0, ALLOW),
)


def main(command: list[str]) -> None:
    """Sets the filter and becomes the command."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in PROGRAM))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(PROGRAM), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program):
        sys.exit("seccomp: " + os.strerror(ctypes.get_errno()))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
