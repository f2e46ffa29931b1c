"""PEP 517 backend: setuptools, building against the torch that is installed.

pip builds in an isolated environment. Naming torch as a build requirement would download a second torch of several gigabytes,
perhaps of another CUDA version, beside the one in use. This backend lets the build see the installed one instead, and
asks for torch only where there is none.
"""

import importlib.util
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  the hooks that need no change


def _find_torch() -> bool:
    """Make the torch of the environment that pip installs into importable; False if it has none."""
    for name in ("purelib", "platlib"):
        path = sysconfig.get_path(name)
        if path not in sys.path:
            sys.path.append(path)
    return importlib.util.find_spec("torch") is not None


_requires = [] if _find_torch() else ["torch>=2.11"]


def get_requires_for_build_wheel(config_settings=None):
    return [*build_meta.get_requires_for_build_wheel(config_settings), *_requires]


def get_requires_for_build_editable(config_settings=None):
    return [*build_meta.get_requires_for_build_editable(config_settings), *_requires]
