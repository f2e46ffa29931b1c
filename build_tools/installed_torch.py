"""The torch to build against: that of the environment which the package goes to, also where the build is isolated from it.

Naming torch as a build requirement would download a second one of several gigabytes, perhaps of another CUDA version,
beside the one in use.
"""

import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
# The package's own dependency is the one place that names the oldest torch.
MIN_TORCH = tuple(map(int, re.search(r'"torch>=(\d+)\.(\d+)"', PYPROJECT.read_text()).groups()))
REQUIREMENT = f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"

_LOOK = (
    "import importlib.util, json, sys; found = importlib.util.find_spec('torch'); "
    "print(json.dumps([list(sys.version_info[:2]), sys.path, found and found.origin]))"
)


class Torch(NamedTuple):
    version: str  # "2.14.1+cu130"
    cuda: str | None  # "13.0"; None where it is no CUDA build
    hip: str | None  # ROCm's version
    folder: Path

    def new_enough(self) -> bool:
        return tuple(map(int, re.findall(r"\d+", self.version)[:2])) >= MIN_TORCH


def find_torch() -> Torch | None:
    """Find the torch to build against, and make it importable here; None if there is none."""
    here = importlib.util.find_spec("torch")
    if here is None or not here.origin:
        for interpreter in _target_interpreters():
            seen = _look(interpreter)
            if seen is not None:
                paths, origin = seen
                # At the end: what the build has of its own goes first.
                wanted = [*paths, str(Path(origin).parent.parent)] if origin else []
                sys.path += [path for path in wanted if path and path not in sys.path]
                break
        here = importlib.util.find_spec("torch")
    if here is None or not here.origin:
        return None
    folder = Path(here.origin).parent
    names = runpy.run_path(str(folder / "version.py"))
    return Torch(names["__version__"], names.get("cuda"), names.get("hip"), folder)


def _target_interpreters() -> Iterator[str]:
    """The Python that the package is built for, then guesses at it.

    pip builds with that very interpreter. uv and build make an environment with one of its own, and don't say for which they
    make it: it is taken to be the virtual environment that is active, else a .venv here or above, else the first
    Python on the PATH.
    """
    if "PIP_BUILD_TRACKER" in os.environ:
        yield sys.executable
        return
    on_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    bin_folder = Path(sys.executable).parent.name  # bin, or Scripts
    starts = [Path.cwd(), Path(os.environ.get("PWD", "."))]
    dotted = [folder / ".venv" / bin_folder for start in starts for folder in (start, *start.parents)]
    active = [folder for folder in on_path if (folder.parent / "pyvenv.cfg").exists()]
    if os.environ.get("CONDA_PREFIX") and os.environ.get("CONDA_DEFAULT_ENV") != "base":
        active.append(Path(os.environ["CONDA_PREFIX"]) / bin_folder)
    for folder in [*active, *dotted, *on_path]:
        interpreter = shutil.which("python", path=str(folder)) or shutil.which("python3", path=str(folder))
        if interpreter and not Path(interpreter).is_relative_to(sys.prefix):
            yield interpreter


def _look(interpreter: str) -> tuple[list[str], str | None] | None:
    """An interpreter's import path and the place of its torch; None if it does not run, or is of another version than this."""
    # What isolates a build must not hide the interpreter's own packages from it.
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run([interpreter, "-c", _LOOK], env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return None
    version, paths, origin = json.loads(result.stdout)
    return (paths, origin) if tuple(version) == sys.version_info[:2] else None
