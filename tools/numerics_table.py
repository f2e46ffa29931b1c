"""The error of every backend against float64 on the images of helpers/adversarial_images.py: the tables of docs/numerics.md.

    python -m tools.numerics_table                          print the tables
    python -m tools.numerics_table --out docs/numerics.md   replace the tables below that file's heading "Tables"

It takes some minutes. tests/kernels/test_numerics.py checks the committed tables against the budget of helpers/tolerances.py.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import official
from helpers import adversarial_images, backends, oracle, tolerances
from helpers.cases import numpy64
from pspl_cuda.config import PADDINGS

HEADING = "## Tables"
QUANTITIES = ("similarity", "loss", "gradient")
# All with a specialised kernel, the smallest and a large one without.
WINDOW_SIZES = (1, 3, 5, 7, 9, 11, 13, 31)
WINDOW_IMAGES = ("smooth, error 1e-3", "bright", "black beside white, error 1e-3", "bright border", "2x300")
NEAR = tuple(name for name in adversarial_images.IMAGES if name not in adversarial_images.FAR)
FAR_MARK, NOTHING = " †", "-"


@dataclass(frozen=True)
class Column:
    """A backend on images of one dtype; None is the formula that the official code uses, in float32."""

    name: str
    backend: str | None
    dtype: torch.dtype = torch.float32

    @property
    def one_pivot(self) -> bool:
        return self.backend is not None and backends.Backend(self.backend).one_pivot


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
            Row("worst of those without †, as 0..255", NEAR, 255.0, (("data_range", 255.0),)),
            Row("worst of those with †, as 0..255", adversarial_images.FAR, 255.0, (("data_range", 255.0),)),
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


def is_far(row: Row, column: Column) -> bool:
    """Whether something in the row's windows is far from the one pivot that the CUDA kernel has for a strip."""
    far = adversarial_images.FAR_OFFICIAL if row.official else adversarial_images.FAR
    return column.one_pivot and any(name in far for name in row.image_names)


def budget(quantity: str, row: Row, column: Column) -> float:
    """What tolerances.py allows; for the official constants as a share of the formula's error."""
    far = is_far(row, column)
    if row.official:
        return tolerances.OFFICIAL_SHARE_FAR if far else tolerances.OFFICIAL_SHARE
    if quantity == "similarity":
        return tolerances.similarity_budget(torch.float32, far)
    if quantity == "loss":
        return tolerances.LOSS[torch.float32] * (tolerances.FAR_LOSS_FACTOR if far else 1)
    exact = tolerances.GRADIENT[torch.float32] * (tolerances.FAR_GRADIENT_FACTOR if far else 1)
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


HOW = {
    "similarity": "Similarity map, largest error of a pixel",
    "loss": "Loss, relative error",
    "gradient": "Gradient, relative error in the L2 norm",
}


def render(measured: dict[tuple[str, str], dict[str, float] | None]) -> str:
    """All tables in Markdown; ``measured`` maps (row, column) names of each table's title to what measure() gave."""
    lines = []
    for table in TABLES:
        for quantity in table.quantities:
            lines += [f"### {table.title}. {HOW[quantity]}", ""]
            lines += [f"| | {' | '.join(column.name for column in COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
            for row in table.rows:
                cells = []
                for column in COLUMNS:
                    errors = measured[table.title, row.name, column.name]
                    mark = FAR_MARK if is_far(row, column) else ""
                    cells.append(NOTHING if errors is None else f"{errors[quantity]:.1e}{mark}")
                lines.append(f"| {row.name} | {' | '.join(cells)} |")
            lines.append("")
    return "\n".join(lines)


def parse(text: str) -> Iterator[tuple[str, Table, Row, Column, float | None]]:
    """What render() wrote: (quantity, table, row, column, number or None). Raises ValueError where the document has other
    tables, rows or columns than this file."""
    lines = iter(line for line in text.split(HEADING + "\n")[1].splitlines() if line)
    for table in TABLES:
        for quantity in table.quantities:
            expected = [f"### {table.title}. {HOW[quantity]}", f"| | {' | '.join(column.name for column in COLUMNS)} |"]
            found = [next(lines, ""), next(lines, "")]
            next(lines, "")
            if found != expected:
                raise ValueError(f"the document has {found}; expected {expected}.")
            for row in table.rows:
                name, *cells = [cell.strip() for cell in next(lines, "").strip("|").split("|")]
                if name != row.name or len(cells) != len(COLUMNS):
                    raise ValueError(f"the document has the row {name!r}; expected {row.name!r}.")
                for column, cell in zip(COLUMNS, cells, strict=True):
                    yield quantity, table, row, column, None if cell == NOTHING else float(cell.split()[0])
    rest = list(lines)
    if rest:
        raise ValueError(f"the document goes on with {rest[0]!r}.")


def measure_all() -> dict:
    work = [(table, row, column) for table in TABLES for row in table.rows for column in COLUMNS]
    return {
        (table.title, row.name, column.name): measure(row, column)
        for table, row, column in tqdm(work, desc="measuring", unit="cell")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, help='file whose part behind the heading "Tables" is replaced; default: print'
    )
    out = parser.parse_args().out
    if out is not None and not (out.is_file() and HEADING in out.read_text()):
        parser.error(f'{out} is no file with a heading "{HEADING}" to put the tables behind.')
    for column in COLUMNS:
        reason = column.backend and backends.why_not(column.backend)
        if reason:
            parser.error(f"the column {column.name} can't be measured: {reason}.")
    tables = render(measure_all())
    if out is None:
        print(tables)
        return
    # In one step: an interrupt leaves the old file or the new one.
    new = out.with_suffix(".new")
    new.write_text(out.read_text().split(HEADING)[0] + HEADING + "\n\n" + tables)
    os.replace(new, out)


if __name__ == "__main__":
    main()
