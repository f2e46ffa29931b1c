"""What the build and the package must agree on. The build runs this file on its own: it imports neither torch nor the package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

MIN_TORCH = (2, 4)
# From here on the kernels are built with torch's stable ABI, and then work with every later torch. Older ones are built with its
# C++ API, for one minor version: 2.9's stable ABI lacks strides(), const_data_ptr(), Device and parallel_for.
STABLE_TORCH = (2, 10)


def numbers(version: str) -> tuple[int, ...]:
    """(2, 14) of "2.14.1+cu130"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def why_too_old(torch: str) -> str | None:
    """Why the package does not work with this version of torch; None if it does."""
    if numbers(torch) >= MIN_TORCH:
        return None
    return f"torch {torch} is older than {MIN_TORCH[0]}.{MIN_TORCH[1]}, which pspl_cuda needs: upgrade torch"


def fingerprint(csrc: Path, library: str) -> str:
    """A hash of the sources of ``library`` (``"_cpu"`` or ``"_cuda"``), or an empty string if there are none."""
    patterns = ("*", "bindings/*", f"{library.removeprefix('_')}/**/*")
    files = {
        path for pattern in patterns for path in csrc.glob(pattern) if path.suffix in (".cpp", ".cu", ".cuh", ".h")
    }
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(csrc).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest() if files else ""
