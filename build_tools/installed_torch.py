"""Finds the torch to build against: that of the environment which the package is installed into, also in pip's isolated builds.

A build requirement on torch would download a second torch of several gigabytes, perhaps for another CUDA version.
"""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

BUILD = runpy.run_path(str(Path(__file__).parents[1] / "pspl_cuda" / "_build.py"))
REQUIREMENT = "torch>={}.{}".format(*BUILD["MIN_TORCH"])


class Torch(NamedTuple):
    version: str  # "2.14.1+cu130"
    cuda: str | None  # "13.0"; None if it is not a CUDA build
    hip: str | None  # ROCm's version
    folder: Path

    def check(self) -> None:
        """SystemExit if the package does not work with it."""
        reason = BUILD["why_too_old"](self.version)
        if reason is not None:
            raise SystemExit(f"{reason} and reinstall.")

    def has_stable_abi(self) -> bool:
        return BUILD["numbers"](self.version) >= BUILD["STABLE_TORCH"]


def is_pip() -> bool:
    """Whether pip runs this build: pip builds with the interpreter that it installs for."""
    return "PIP_BUILD_TRACKER" in os.environ or "PIP_REQ_TRACKER" in os.environ  # the second: pip before 22.1


def find_torch() -> Torch | None:
    """Find torch without importing it, and make it importable here; None if there is none."""
    found = importlib.util.find_spec("torch")
    if found is None:
        sys.path += [path for path in _target_path() if path and path not in sys.path]
        found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return None
    folder = Path(found.origin).parent
    names = runpy.run_path(str(folder / "version.py"))
    return Torch(names["__version__"], names.get("cuda"), names.get("hip"), folder)


def _target_path() -> list[str]:
    """sys.path of the interpreter that the package is installed for, as far as the installer tells; else empty."""
    installer = _environment_of_installer()
    # Isolation is done with these variables.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONNOUSERSITE", "PYTHONHOME")}
    environment["PYTHONPATH"] = installer.get("PYTHONPATH", "")
    if is_pip():
        return _search_path(sys.executable, environment)
    if _is_uv_pip() and not {"UV_PYTHON", "UV_SYSTEM_PYTHON"} & set(installer):
        target = Path(
            installer.get("VIRTUAL_ENV") or installer.get("CONDA_PREFIX") or _installer("cwd").resolve() / ".venv"
        )
        if (target / "bin" / "python").exists():
            return _search_path(str(target / "bin" / "python"), environment)
    return []


def _search_path(python: str, environment: dict[str, str]) -> list[str]:
    """sys.path of an interpreter of this version of Python; else empty."""
    # An editable installation of torch is found by a hook instead of a folder of sys.path. What the script finds goes through a
    # file, because Python may print at its start and end.
    script = (
        "import importlib.util, json, os, sys; found = importlib.util.find_spec('torch'); "
        "paths = sys.path + ([os.path.dirname(os.path.dirname(found.origin))] if found else []); "
        "json.dump([sys.version_info[:2], paths], open(sys.argv[1], 'w'))"
    )
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "path.json")
        subprocess.run([python, "-c", script, str(answer)], env=environment, capture_output=True, check=True)
        version, paths = json.loads(answer.read_text())
    return paths if version == list(sys.version_info[:2]) else []


def _installer(what: str) -> Path:
    """What Linux tells of the process that runs this build."""
    return Path(f"/proc/{os.getppid()}/{what}")


def _environment_of_installer() -> dict[str, str]:
    """The variables that the installer was started with, of which pip and uv do not hand down all; Linux only."""
    try:
        entries = _installer("environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry)


def _is_uv_pip() -> bool:
    """Whether "uv pip" runs this build, for the active environment."""
    try:
        program, *words = map(os.fsdecode, _installer("cmdline").read_bytes().split(b"\0"))
    except OSError:
        return False
    elsewhere = ("-p", "--python", "--system", "--target", "--prefix")
    return Path(program).name == "uv" and "pip" in words and not any(word.startswith(elsewhere) for word in words)
