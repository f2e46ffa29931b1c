"""Finds the torch to build against: that of the environment which the package is installed into, also in pip's isolated builds.

A build requirement on torch would download a second torch of several gigabytes, perhaps for another CUDA version.
"""

import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

# The oldest torch whose stable ABI has what csrc/bindings uses. 2.9 lacks strides(), const_data_ptr(), Device and parallel_for.
MIN_TORCH = (2, 10)
REQUIREMENT = f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"


class Torch(NamedTuple):
    version: str  # "2.14.1+cu130"
    cuda: str | None  # "13.0"; None if it is not a CUDA build
    hip: str | None  # ROCm's version
    folder: Path

    def new_enough(self) -> bool:
        return tuple(map(int, re.findall(r"\d+", self.version)[:2])) >= MIN_TORCH


def is_pip() -> bool:
    """Whether pip runs this build: pip builds with the interpreter that it installs for."""
    return "PIP_BUILD_TRACKER" in os.environ


def find_torch() -> Torch | None:
    """Find torch without importing it, and make it importable here; None if there is none."""
    found = importlib.util.find_spec("torch")
    if found is None and is_pip():
        sys.path += [path for path in _interpreter_path() if path and path not in sys.path]
        found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return None
    folder = Path(found.origin).parent
    names = runpy.run_path(str(folder / "version.py"))
    return Torch(names["__version__"], names.get("cuda"), names.get("hip"), folder)


def _interpreter_path() -> list[str]:
    """sys.path of this interpreter without build isolation, which pip implements with environment variables."""
    isolation = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in isolation}
    # An editable installation of torch is found by a hook instead of a folder of sys.path.
    script = (
        "import importlib.util, json, os, sys; found = importlib.util.find_spec('torch'); "
        "print(json.dumps(sys.path + ([os.path.dirname(os.path.dirname(found.origin))] if found else [])))"
    )
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)
