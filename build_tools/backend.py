"""PEP 517 backend: setuptools, building against the installed torch, and with nvcc from PyPI if there is no CUDA toolkit.

torch becomes a build requirement only if none is installed; NVIDIA's packages of nvcc and its headers only if torch is a CUDA
build that the kernels support and this machine has no toolkit for it.
"""

import compilers
import setuptools
from decisions import switch
from installed_torch import REQUIREMENT, Torch, find_torch, is_pip
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that need no change

if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"setuptools is {setuptools.__version__}; pspl_cuda is built with setuptools 77 or later: pip install 'setuptools>=77'"
    )

# The parts of a toolkit that compile a kernel; cuda-toolkit makes their versions fit each other and torch's own parts.
TOOLKIT = "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart]"
NO_TORCH = """pspl_cuda is built against the torch that it will run with, and there is none in this build environment.
pip, and uv pip in the active environment, need no option. Otherwise, with torch, setuptools>=77 and ninja installed:
    uv pip install --no-build-isolation ...
    python -m build --no-isolation
    pdm add --no-isolation ...
    poetry run pip install ...
uv add and uv sync build with the project's torch if its pyproject.toml has
    [tool.uv.extra-build-dependencies]
    pspl-cuda = [{ requirement = "torch", match-runtime = true }]"""


def requirements() -> list[str]:
    """What an isolated build needs in addition to pyproject.toml's requirements."""
    torch = find_torch()
    if torch is None and not is_pip():
        raise SystemExit(NO_TORCH)
    if torch is not None:
        torch.check()
        return [f"{TOOLKIT}=={compilers.pypi_toolkit(torch.cuda)}.*"] if _needs_toolkit(torch) else []
    # The version of a torch that is yet to be downloaded is unknown: PyPI's is for CUDA 13 or later and pins the toolkit itself.
    return [REQUIREMENT, TOOLKIT] if _needs_toolkit(Torch("99", "13", None, None)) else [REQUIREMENT]


def _needs_toolkit(torch: Torch) -> bool:
    if switch("PSPL_CUDA") == "off" or torch.cuda is None:
        return False
    if compilers.requested_home() or not compilers.pypi_has_nvcc():
        return False
    return compilers.why_no_cxx() is None and compilers.find_toolkit(torch.cuda)[0] is None


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *requirements()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *requirements()]
