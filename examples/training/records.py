"""metrics.csv and TensorBoard: one row per logged iteration."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from .files import atomic

NAME = "metrics.csv"
# l1: unweighted, of the batch, in 0..1. psnr: of the batch, in dB. similarity, attention: means of PSPL's maps over the batch.
# seconds: spent training, without validation and writing. validation_*: mean over the held-out images, on the luma.
COLUMNS = (
    "iteration",
    "seconds",
    "loss",
    "l1",
    "psnr",
    "step",
    "similarity",
    "attention",
    "lr",
    "images_per_second",
    "validation_psnr",
    "validation_ssim",
)


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns as float64 arrays, NaN where a row has no value.

    Raises:
        SystemExit: the file is missing or isn't a metrics.csv.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        values = {name: [float(row[name] or "nan") for row in rows] for name in COLUMNS}
    except OSError as error:
        raise SystemExit(f"{path} can't be read: {error.strerror}.") from None
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path} isn't a metrics.csv of train_sr.py ({type(error).__name__}: {error}).") from None
    return {name: np.array(column) for name, column in values.items()}


class Records:
    """Rows from ``start`` on, in ``out``; what a run wrote after the checkpoint from which it is resumed is dropped."""

    def __init__(self, out: Path, start: int):
        self.path = out / NAME
        kept = []
        if start and self.path.is_file():
            with self.path.open(newline="") as file:
                # A row that a crash cut short lacks columns.
                whole = [row for row in csv.DictReader(file) if None not in row.values()]
            kept = [row for row in whole if int(row["iteration"]) <= start]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        with atomic(self.path) as file:
            file.write(text.getvalue().encode())
        self._file = self.path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self.tensorboard = SummaryWriter(out / "tensorboard", purge_step=start + 1 if start else None)

    def row(self, values: dict[str, float]) -> None:
        """Write ``values``, by column; NaN and what lacks stay empty."""
        known = {name: value for name, value in values.items() if value == value}
        # repr of a float: resumed runs are compared bit by bit.
        self._writer.writerow(known)
        self._file.flush()
        for name, value in known.items():
            if name != "iteration":
                group, _, rest = name.partition("_")
                tag = f"validation/{rest}" if group == "validation" else f"training/{name}"
                self.tensorboard.add_scalar(tag, value, int(values["iteration"]))

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        self.tensorboard.close()
