"""Measures the loss next to the alternatives: ``python -m benchmarks``, or ``--quick`` for a first look.

Every implementation is first compared with a float64 result on the images that are timed. An implementation that fails this
check is not timed; the report lists it with the reason. Forward and forward + backward are then timed in interleaved rounds,
and the peak memory is measured. Compare the ratios within one run rather than times of different runs. Rows are written to
``<device>.json``, tables to ``<device>.md``, plots next to them; with --quick or a filter the names end in ``-quick`` or
``-part``.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

import torch

from . import machine, report
from .cases import DTYPES, LAYOUTS, parse_size, select
from .harness import Run
from .implementations import KEYS

RESULTS = Path("runs/benchmarks")
SECONDS_PER_CASE = 12.0
QUICK_SECONDS_PER_CASE = 6.0


def _size(text: str) -> tuple[int, ...]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = options.add_argument
    add("--quick", action="store_true", help="two sizes and fewer repeats: about two minutes")
    add("--device", choices=("cpu", "cuda"), help="default: cuda if torch finds a GPU")
    add("--out", type=Path, default=RESULTS, help="output folder (default: %(default)s)")
    add("--sizes", type=_size, nargs="+", metavar="NxCxHxW", help="sizes that replace the standard list")
    add("--dtypes", choices=DTYPES, nargs="+", help="only these (with --sizes: each of these)")
    add("--layouts", choices=LAYOUTS, nargs="+", help="only these (with --sizes: each of these)")
    add("--impl", choices=KEYS, nargs="+", help="only these, for every dtype and layout; nn.L1Loss is always measured")
    add("--seconds", type=float, help="total time for the timing, approximately (default: 12 per case, quick: 6)")
    add("--limit", type=float, default=2.0, help="skip calls that take longer, in seconds (default: %(default)s)")
    add("--no-memory", action="store_true", help="do not measure the peak memory")
    add("--from", dest="source", type=Path, metavar="JSON", help="measure nothing; redraw tables and plots from a file")
    add("--readme", type=Path, metavar="PAGE", help="with --from: also replace the table of this page, README.md")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Return 0 on success, 1 if an implementation of this package is wrong, 130 if interrupted."""
    options = parser().parse_args(arguments)
    if options.readme is not None and options.source is None:
        raise SystemExit("--readme needs --from: the file whose rows the page shows. Nothing was measured.")
    if options.source is not None:
        return _redraw(options.source, options.readme)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device is cuda, but torch finds no GPU. Use --device cpu.")
    cases = select(kind, options.quick, options.sizes, options.dtypes, options.layouts)
    if not cases:
        raise SystemExit(
            "The standard list has no case with that dtype and layout. Give the sizes too, e.g. --sizes 16x3x192x192."
        )
    device = torch.device(kind)
    filtered = options.sizes or options.dtypes or options.layouts or options.impl
    suffix = "-part" if filtered else "-quick" if options.quick else ""
    path = options.out / (machine.slug(machine.device_name(device)) + suffix + ".json")
    per_case = QUICK_SECONDS_PER_CASE if options.quick else SECONDS_PER_CASE
    if options.seconds is not None:
        per_case = options.seconds / len(cases)
    keys = tuple(dict.fromkeys(("l1", *options.impl))) if options.impl else None

    try:
        options.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.out).close()
    except OSError as error:
        raise SystemExit(f"--out {options.out} can't be written: {error}. Nothing was measured.") from None

    run = Run(device, path, per_case, options.limit, keys)
    interrupted = False
    try:
        run.measure(cases, with_memory=not options.no_memory)
    except KeyboardInterrupt:
        interrupted = True
        print("\nInterrupted.", file=sys.stderr)
    if run.rows:
        written = report.publish(run.rows, path)
        print(written[0].read_text())
        timed = sum(row["median_ms"] is not None for row in run.rows)
        print(f"{timed} timed rows in {', '.join(map(str, (path, *written)))}", file=sys.stderr)
    for failure in run.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 130 if interrupted else 1 if run.failures else 0


def _redraw(source: Path, readme: Path | None) -> int:
    try:
        rows = report.load(source)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--from {source} can't be read: {error}") from None
    try:
        if readme is not None:
            report.into_readme(rows, readme)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--readme {readme} can't be updated: {error}") from None
    try:
        print("\n".join(map(str, report.publish(rows, source))))
    except OSError as error:
        raise SystemExit(f"the tables and plots of {source} can't be written: {error}") from None
    return 0


if __name__ == "__main__":
    # A terminated job keeps its rows, like an interrupted one.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
