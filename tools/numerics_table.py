"""The errors of every backend against float64 on the images of helpers/adversarial_images.py: docs/numerics.csv, and the table of
docs/numerics.md, which has the worst of them.

    python -m tools.numerics_table              print the table
    python -m tools.numerics_table --out docs   write both

It takes some minutes. tests/kernels/test_numerics.py checks what is committed against the budget of helpers/tolerances.py.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import official
from helpers import adversarial_images, backends, oracle, tolerances
from helpers.cases import numpy64
from pspl_cuda.config import PADDINGS

HEADING = "## Worst errors"
QUANTITIES = ("similarity", "loss", "gradient")
# All with a specialised kernel, the smallest and a large one without.
WINDOW_SIZES = (1, 3, 5, 7, 9, 11, 13, 31)
WINDOW_IMAGES = ("smooth, error 1e-3", "bright", "black beside white, error 1e-3", "bright border", "2x300")


@dataclass(frozen=True)
class Column:
    """A backend on images of one dtype; None is the formula that the official code uses, in float32."""

    name: str
    backend: str | None
    dtype: torch.dtype = torch.float32


COLUMNS = (
    Column("reference", "reference"),
    Column("CPU", "cpu"),
    Column("CPU, float16", "cpu", torch.float16),
    Column("CPU, bfloat16", "cpu", torch.bfloat16),
    Column("CUDA, emulated", "emulated"),
    Column("PyTorch formula", None),
)


@dataclass(frozen=True)
class Row:
    """The worst over some images under some keywords of similarity_map; ``scale`` is the range of the values."""

    name: str
    image_names: tuple[str, ...]
    scale: float = 1.0
    keywords: tuple[tuple[str, object], ...] = ()

    @property
    def official(self) -> bool:
        """Whether the kernels are compared with the formula instead of the budget."""
        return self.scale != dict(self.keywords).get("data_range", 1.0)

    @property
    def formula(self) -> bool:
        """Whether the formula supports these keywords: it has one window, one padding and the constants of 0..1."""
        return not self.keywords


@dataclass(frozen=True)
class Table:
    title: str
    quantities: tuple[str, ...]
    rows: tuple[Row, ...]


def window_keywords(size: int) -> dict:
    """The default window as it is; the others reach three standard deviations to either side."""
    return {"window_size": size, "sigma": 1.5 if size == 11 else max(size / 6, 0.5)}


TABLES = (
    Table(
        "Constants of the paper",
        QUANTITIES,
        (
            *(Row(name, (name,)) for name in adversarial_images.IMAGES),
            Row("the worst, as 0..255", tuple(adversarial_images.IMAGES), 255.0, (("data_range", 255.0),)),
        ),
    ),
    Table(
        "Every window and padding",
        QUANTITIES[:1],
        tuple(
            Row(
                f"{size} x {size}, {padding}",
                WINDOW_IMAGES,
                1.0,
                (*window_keywords(size).items(), ("padding", padding)),
            )
            for size in WINDOW_SIZES
            for padding in PADDINGS
        ),
    ),
    Table(
        "Images of 0..255 with the constants of the official code",
        QUANTITIES[:1],
        tuple(Row(name, (name,), 255.0) for name in adversarial_images.OFFICIAL),
    ),
)


def budget(quantity: str, row: Row, column: Column) -> float:
    """What tolerances.py allows; for the official constants as a share of the formula's error."""
    if row.official:
        return tolerances.OFFICIAL_SHARE
    if quantity == "similarity":
        return tolerances.SIMILARITY[torch.float32]
    if quantity == "loss":
        return tolerances.LOSS[torch.float32]
    exact = tolerances.GRADIENT[torch.float32]
    return exact + (0 if column.dtype == torch.float32 else tolerances.ROUNDING[column.dtype])


@functools.cache
def _exact(name: str, scale: float, dtype: torch.dtype, keywords: tuple) -> oracle.Result:
    sr, hr = adversarial_images.pair(name, scale, dtype)
    return oracle.pspl(numpy64(sr), numpy64(hr), 1.0, reduction="sum", **dict(keywords))


def _formula(sr: torch.Tensor, hr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    m_s = official.similarity(sr, hr)
    m_a = 2 * torch.exp(-((m_s + 1) ** 2))
    return m_s, (m_a * (sr - hr).abs()).sum(), m_a * (sr - hr).sign()


def _kernel(backend: backends.Backend, sr, hr, keywords: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    m_s = backend.similarity_map(sr, hr, **keywords)
    sr = sr.clone().requires_grad_()
    # A sum: a mean's gradient is so small that float16 could not hold it.
    loss = backend.pspl_loss(sr, hr, 1.0, reduction="sum", **keywords)
    return m_s, loss.detach(), torch.autograd.grad(loss, sr)[0]


def _relative(error: float, exact: float) -> float:
    return error / exact if exact else (0.0 if error == 0 else float("inf"))


def measure(row: Row, column: Column) -> dict[str, float] | None:
    """The worst error of the row's images by quantity: M_s absolute, loss relative, gradient relative in the L2 norm. None
    where the column's formula is another one."""
    if column.backend is None and not row.formula:
        return None
    worst = dict.fromkeys(QUANTITIES, 0.0)
    for name in row.image_names:
        sr, hr = adversarial_images.pair(name, row.scale, column.dtype)
        exact = _exact(name, row.scale, column.dtype, row.keywords)
        if column.backend is None:
            m_s, loss, gradient = _formula(sr, hr)
        else:
            m_s, loss, gradient = _kernel(backends.Backend(column.backend), sr, hr, dict(row.keywords))
        errors = {
            "similarity": np.abs(m_s.double().numpy() - exact.similarity).max(),
            "loss": _relative(abs(loss.item() - exact.loss), exact.loss),
            "gradient": _relative(
                np.linalg.norm(gradient.double().numpy() - exact.grad_sr), np.linalg.norm(exact.grad_sr)
            ),
        }
        worst = {quantity: max(worst[quantity], float(error)) for quantity, error in errors.items()}
    return worst


Measured = dict[
    tuple[str, str, str, str], float | None
]  # (table, row, column, quantity): error, None where there is none


def write_csv(measured: Measured, path: Path) -> None:
    """A line per row and quantity."""
    lines = [["table", "images", "quantity", *(column.name for column in COLUMNS)]]
    for table in TABLES:
        for row in table.rows:
            for quantity in table.quantities:
                cells = (measured[table.title, row.name, column.name, quantity] for column in COLUMNS)
                lines.append([table.title, row.name, quantity, *("" if e is None else f"{e:.1e}" for e in cells)])
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def read_csv(path: Path) -> Measured:
    """What write_csv() wrote. Raises ValueError where the file has other tables, rows or columns than this one."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    measured = {
        (line["table"], line["images"], column.name, line["quantity"]): float(line[column.name])
        if line[column.name]
        else None
        for line in lines
        for column in COLUMNS
    }
    expected = {
        (table.title, row.name, column.name, quantity)
        for table in TABLES
        for row in table.rows
        for column in COLUMNS
        for quantity in table.quantities
    }
    if measured.keys() != expected:
        raise ValueError(f"{path} has other rows than numerics_table.py: {sorted(measured.keys() ^ expected)[:3]}.")
    return measured


HOW = {
    "similarity": "similarity map, largest error of a pixel",
    "loss": "loss, relative error",
    "gradient": "gradient, relative error in the L2 norm",
}


def render(measured: Measured) -> str:
    """The worst of each table and quantity, in Markdown."""
    lines = [f"| | {' | '.join(column.name for column in COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for table in TABLES:
        for quantity in table.quantities:
            cells = []
            for column in COLUMNS:
                errors = [measured[table.title, row.name, column.name, quantity] for row in table.rows]
                errors = [error for error in errors if error is not None]
                cells.append(f"{max(errors):.1e}" if errors else "-")
            lines.append(f"| {table.title}: {HOW[quantity]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure_all() -> Measured:
    work = [(table, row, column) for table in TABLES for row in table.rows for column in COLUMNS]
    measured: Measured = {}
    for table, row, column in tqdm(work, desc="measuring", unit="cell"):
        errors = measure(row, column)
        for quantity in table.quantities:
            measured[table.title, row.name, column.name, quantity] = errors and errors[quantity]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help="folder of numerics.md and numerics.csv, which are updated; default: print the summary"
    )
    out = parser.parse_args().out
    if out is not None and HEADING not in (out / "numerics.md").read_text():
        parser.error(f'{out / "numerics.md"} has no heading "{HEADING}" to put the table behind.')
    for column in COLUMNS:
        reason = column.backend and backends.why_not(column.backend)
        if reason:
            parser.error(f"the column {column.name} can't be measured: {reason}.")
    measured = measure_all()
    if out is None:
        print(render(measured))
        return
    write_csv(measured, out / "numerics.csv")
    # In one step: an interrupt leaves the old file or the new one.
    page = out / "numerics.md"
    new = page.with_suffix(".new")
    new.write_text(page.read_text().split(HEADING)[0] + HEADING + "\n\n" + render(measured))
    os.replace(new, page)


if __name__ == "__main__":
    main()
