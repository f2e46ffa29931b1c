"""A run on disk. A checkpoint holds all that decides how training goes on: weights, optimizer, the loss's count, the scaler of
fp16, the random state; the order of the data and the learning rate follow from the seed and the iteration."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from .files import atomic

NAME = "checkpoint.pt"
BEST = "best.pt"
FORMAT = 1


def save(state: dict[str, Any], path: Path) -> None:
    """Write ``state``, tensors and plain values, so that ``path`` always holds a whole checkpoint."""
    with atomic(path) as file:
        torch.save({"format": FORMAT, **state}, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; nothing in it is executed.

    Raises:
        SystemExit: it is missing, damaged, or something else.
    """
    if not path.is_file():
        raise SystemExit(f"{path} doesn't exist; expected a checkpoint that train_sr.py wrote.")
    try:
        # torch doesn't compare the checksums that it writes.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SystemExit(
            f"{path} is damaged or no checkpoint ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Remove it and start again, or take a copy of it."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise SystemExit(f"{path} is no checkpoint of this version of train_sr.py.")
    return state
