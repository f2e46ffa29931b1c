"""One interface to everything that computes PSPL, so that the same tests run on all of it.

``reference``, ``cpu`` and ``cuda`` are the package's backends; ``emulated`` is the unmodified CUDA source compiled for
the CPU (tests/cuda/emulation), with the signatures of the public functions.
"""

from __future__ import annotations

import functools
import importlib
import os

import torch

import pspl_cuda

NAMES = ("reference", "cpu", "emulated", "cuda")


def _named() -> list[str]:
    """The backends that the environment variable PSPL_TEST_BACKENDS names, separated by commas."""
    names = [name.strip() for name in os.environ.get("PSPL_TEST_BACKENDS", "").split(",") if name.strip()]
    unknown = set(names) - set(NAMES)
    if unknown:
        raise ValueError(f"PSPL_TEST_BACKENDS names {sorted(unknown)}; expected some of {', '.join(NAMES)}.")
    return names


def selected() -> list[str]:
    """The named backends, or all."""
    return _named() or list(NAMES)


def collected() -> list[str]:
    """The backends that tests are collected for: the selected ones; ``cuda`` without a GPU only if it is named."""
    return _named() or [name for name in NAMES if name != "cuda" or torch.cuda.is_available()]


@functools.cache
def why_not(name: str) -> str | None:
    """Why this backend can't run here, or None."""
    if name == "cuda" and not torch.cuda.is_available():
        return "no GPU here"
    if name in ("cpu", "cuda"):
        info = pspl_cuda.backend_info()[name]
        return None if info["available"] else f"the {name} kernel is not built: {info['reason']}"
    if name == "emulated":
        try:
            importlib.import_module("emulation")
        except ImportError as error:
            return f"the emulation is not built: {error}"
    return None


class Backend:
    """The public functions on one backend. Images belong on ``device``."""

    def __init__(self, name: str):
        self.name = name
        self.device = torch.device("cuda" if name == "cuda" else "cpu")
        # The fused kernels guarantee layouts and saved tensors that plain autograd does not.
        self.fused = name != "reference"
        # The CUDA kernel has pivots that follow the image down the rows (tolerances.strip_budget).
        self.moving_pivot = name in ("emulated", "cuda")

    def _call(self, function, *args, **kwargs):
        if self.name == "emulated":
            return getattr(importlib.import_module("emulation"), function)(*args, **kwargs)
        return getattr(pspl_cuda, function)(*args, backend=self.name, **kwargs)

    def pspl_loss(self, sr, hr, step, **kwargs):
        return self._call("pspl_loss", sr, hr, step, **kwargs)

    def similarity_map(self, sr, hr, **kwargs):
        return self._call("similarity_map", sr, hr, **kwargs)

    def attention_map(self, sr, hr, step, **kwargs):
        return self._call("attention_map", sr, hr, step, **kwargs)
