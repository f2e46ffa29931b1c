"""The processor's peak of float32 multiply-adds, measured: ``python -m benchmarks.peak_fma``.

The least arithmetic of the loss is 88 of them per element forward (4 moments, 11 taps, 2 directions). peak_fma.cpp is compiled
for the processor at hand, at run time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FMA_PER_ELEMENT = 88
SOURCE = Path(__file__).with_suffix(".cpp")


class NoPeakError(Exception):
    """Says in a sentence why the peak could not be measured."""


def measure(threads: int) -> float:
    """10^9 multiply-adds per second of ``threads`` threads together, the best of several trials."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if compiler is None:
        raise NoPeakError("there is no C++ compiler on the PATH; install g++, or set CXX")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak_fma"
        flags = ["-O3", "-std=c++20", "-march=native", "-ffp-contract=fast", "-pthread"]
        _run(f"{compiler} can't compile {SOURCE.name}", [*compiler.split(), *flags, SOURCE, "-o", program])
        return float(_run(f"{SOURCE.name} does not run", [program, str(threads)]))


def _run(otherwise: str, command: list) -> str:
    """What ``command`` prints; NoPeakError beginning with ``otherwise`` if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NoPeakError(f"{otherwise}: {error}") from None
    if result.returncode != 0:
        why = next(iter(result.stderr.strip().splitlines()), f"exit code {result.returncode}")
        raise NoPeakError(f"{otherwise}: {why}")
    return result.stdout


def main() -> int:
    """Print the peak of one thread and of all that torch uses."""
    import torch

    try:
        for threads in sorted({1, torch.get_num_threads()}):
            peak = measure(threads)
            floor = FMA_PER_ELEMENT / peak
            print(f"{threads} threads: {peak:.1f} G FMA/s, {FMA_PER_ELEMENT} per element are {floor:.2f} ns")
    except NoPeakError as error:
        print(f"The FMA peak is unknown: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
