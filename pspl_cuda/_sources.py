"""A fingerprint of a library's C++ and CUDA sources, so that Python does not call a library built from others.

Without imports of the package: setup.py runs this file before the package can be imported.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(csrc: Path, library: str) -> str:
    """Of the sources of ``library`` (``"_cpu"`` or ``"_cuda"``), or an empty string if there are none."""
    patterns = ("*", "bindings/*", f"{library.removeprefix('_')}/**/*")
    files = {
        path for pattern in patterns for path in csrc.glob(pattern) if path.suffix in (".cpp", ".cu", ".cuh", ".h")
    }
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest() if files else ""
