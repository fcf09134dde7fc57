"""The zero structure of a layer as a picture: one pixel a kernel, output channels down, input channels across.

A PNG with a palette costs a few hundred bytes where an SVG of the same grid costs a hundred thousand. Its three colours are
see-through where the page's background should show, so that one picture serves a light and a dark page.
"""

from __future__ import annotations

import base64
import struct
import zlib

from edgefold.export.plan import KernelMap

FULL, PARTLY, CENTRE, MIXED, ZERO = range(5)
# RGBA of: a whole kernel; a group in which some kernels are not whole; a centre tap only; centre taps and zeros (the plan
# counts the kernels of a kind, it does not list each); nothing
PALETTE = ((0x2F, 0x6F, 0xED, 0xFF), (0x2F, 0x6F, 0xED, 0x80), (0x8A, 0x94, 0xA6, 0x59), (0x8A, 0x94, 0xA6, 0x33), (0, 0, 0, 0))


def kernel_grid(kernel_map: KernelMap) -> list[bytearray]:
    """One row an output channel, one value an input channel: FULL, PARTLY, CENTRE, MIXED or ZERO."""
    grouped = sum(len(inputs) * len(outputs) for inputs, outputs in kernel_map.groups)
    whole = FULL if grouped == kernel_map.full else PARTLY
    rest = CENTRE if kernel_map.zero == 0 else ZERO if kernel_map.centre == 0 else MIXED
    grid = [bytearray([rest]) * kernel_map.in_channels for _ in range(kernel_map.out_channels)]
    for inputs, outputs in kernel_map.groups:
        for n in outputs:
            for m in inputs:
                grid[n][m] = whole
    return grid


def kernel_image(kernel_map: KernelMap) -> str:
    """The picture as a ``data:`` URI, one pixel a kernel."""
    return "data:image/png;base64," + base64.b64encode(png(kernel_grid(kernel_map))).decode()


def png(grid: list[bytearray]) -> bytes:
    """A grid of palette indices as PNG (W3C PNG specification: colour type 3, 8 bits, no filter)."""
    height, width = len(grid), len(grid[0])
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    colours = b"".join(bytes(rgba[:3]) for rgba in PALETTE)
    alphas = bytes(rgba[3] for rgba in PALETTE)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in grid), 9)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"tRNS", alphas), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
