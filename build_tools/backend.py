"""PEP 517 backend: setuptools, building against the torch that is installed, and bringing nvcc where there is none.

torch is asked for only where none is installed, and NVIDIA's packages of nvcc and its headers only where torch is a CUDA build
and this machine has no toolkit for it.
"""

import compilers
from decisions import switch
from installed_torch import REQUIREMENT, Torch, find_torch
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that need no change

# The parts of a toolkit that compiling a kernel takes; cuda-toolkit holds their versions together, torch's own parts included.
TOOLKIT = "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart]"


def missing() -> list[str]:
    """What must be brought into an isolated build."""
    torch = find_torch()
    usable = torch is not None and torch.new_enough()
    return ([] if usable else [REQUIREMENT]) + ([TOOLKIT + _version(torch)] if _needs_toolkit(torch, usable) else [])


def _needs_toolkit(torch: Torch | None, usable: bool) -> bool:
    if switch("PSPL_CUDA") == "off" or switch("PSPL_CPU") == "off":
        return False
    # Which torch will be brought is not known yet: PyPI's is of CUDA 13 or later, and pins the toolkit's version itself.
    cuda = torch.cuda if usable else "13"
    if cuda is None or compilers.ordered_home() or not compilers.comes_from_pypi(cuda):
        return False
    return compilers.why_no_cxx() is None and compilers.find_toolkit(cuda)[0] is None


def _version(torch: Torch | None) -> str:
    return f"=={torch.cuda}.*" if torch is not None and torch.new_enough() else ""


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *missing()]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *missing()]
