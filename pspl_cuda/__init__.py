"""Fused pixel-level self-paced learning (PSPL) loss for training super-resolution networks.

Lin, Gao, Wang, Li: Pixel-level Self-Paced Learning for Super-Resolution, ICASSP 2020.
"""

from importlib.metadata import PackageNotFoundError, version

from . import _autograd  # noqa: F401  (registers the derivative of the operators)
from ._library import backend_info
from .functional import attention_map, pspl_loss, similarity_map
from .module import PSPLLoss
from .stats import PSPLStats

try:
    __version__ = version("pspl_cuda")
except PackageNotFoundError:
    __version__ = "0+source"

__all__ = [
    "PSPLLoss",
    "PSPLStats",
    "attention_map",
    "backend_info",
    "pspl_loss",
    "similarity_map",
]
