"""The machine that is measured: its name, its load, and the speed of a large copy."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """A readable name; :func:`slug` makes a file name of it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE).group(1).strip()
    except (OSError, AttributeError):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """``name`` as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def is_busy(load: float | None) -> bool:
    """Whether other programs use the processor: ``load`` is the load average before the run."""
    return load is not None and load > 1


def facts(device: torch.device, copy_bytes_per_ms: float) -> dict:
    """The fields that all rows of a run share."""
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
        "copy_gb_s": round(copy_bytes_per_ms / 1e6, 2),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
