"""Lists the files of one training step on CUDA, from ``pspl_loss`` to the gradient and back, in the order of the calls.

``python tests/tools/trace_files.py`` prints the table, ``--out docs/dev/design.md`` replaces it in that page.

The Python files are those with a function that runs in a call and its backward pass. They are traced with CPU images, because the
path is the same up to the operator. The C++ files are the sources of the l1 float32 kernel and the files that they include.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

import pspl_cuda

ROOT = Path(__file__).parents[2]
SOURCES = ("bindings/ops_cuda.cpp", "cuda/forward.cu", "cuda/instances/float32.cu", "cuda/backward.cu")
OTHER_KERNELS = {ROOT / "csrc" / "cuda" / "generic_forward.cuh"}  # of other windows, included by forward.cu
TABLE = re.compile(r"\| file \| lines \| content \|\n(?:\|.*\n)+(?:\n\d+ files, [\d,]+ lines\.\n)?")


def python_files() -> list[Path]:
    """The files of the package whose functions run, in the order of their first call."""
    package = Path(pspl_cuda.__file__).parent
    found: dict[Path, None] = {}

    def record(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if package in path.parents:
            found[ROOT / "pspl_cuda" / path.relative_to(package)] = None

    sr, hr = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16)
    previous = sys.getprofile()
    sys.setprofile(record)
    try:
        pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu").backward()
    finally:
        sys.setprofile(previous)
    return list(found)


def included(file: Path) -> list[Path]:
    """``file`` and the files of this repository that it includes, directly or not, without OTHER_KERNELS."""
    if file in OTHER_KERNELS:
        return []
    found = {file: None}
    for name in re.findall(r'^#include "(.+)"$', file.read_text(), re.MULTILINE):
        found |= dict.fromkeys(included((file.parent / name).resolve()))
    return list(found)


def trace() -> list[Path]:
    """All files, each once."""
    sources = [file for source in SOURCES for file in included(ROOT / "csrc" / source)]
    return list(dict.fromkeys([*python_files(), *sources]))


def line_count(file: Path) -> int:
    return len(file.read_text().splitlines())


def summary(file: Path) -> str:
    """The first sentence of the docstring or comment at the top of ``file``; empty if there is none."""
    text = file.read_text()
    comment = re.match(r'"""(.+?)(?:"""|\n\n)', text, re.DOTALL) or re.match(r"((?://.*\n)+)", text)
    if comment is None:
        return ""
    words = " ".join(re.sub(r"^// ?", "", comment[1], flags=re.MULTILINE).split())
    return re.split(r"(?<=\.) (?!\d)", words)[0]


def table() -> str:
    files = trace()
    rows = [f"| `{file.relative_to(ROOT)}` | {line_count(file)} | {summary(file)} |" for file in files]
    total = f"{len(files)} files, {sum(map(line_count, files)):,} lines."
    return "\n".join(["| file | lines | content |", "|---|---|---|", *rows, "", total]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page whose table is replaced")
    options = parser.parse_args()
    if options.out is None:
        print(table(), end="")
        return
    page, replaced = TABLE.subn(lambda _: table(), options.out.read_text())
    if replaced != 1:
        raise SystemExit(f"{options.out} has {replaced} tables of files; expected 1.")
    options.out.write_text(page)


if __name__ == "__main__":
    main()
