"""Image files that Pillow cannot write."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path


def save_deep_rgb(path: Path, height: int = 8, width: int = 6) -> Path:
    """A PNG of RGB with 16 bits per channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = (
        b"\0" + b"".join(struct.pack(">H", (row * column * 300 + 1) % 65535) for column in range(3 * width))
        for row in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path
