"""The loss beside what people use instead: ``python -m benchmarks`` on the machine at hand, ``--quick`` for a first look.

Each implementation is first held against float64 on the very images that are timed; who is not correct gets no speed, and who is
skipped is named with the reason. Then forward and forward + backward are timed in interleaved rounds, and the peak memory is
taken. Compare the ratios of one run, never single times. Rows go to ``<device>.json``, tables to ``<device>.md``, pictures beside
them; with --quick or a filter the names end in ``-quick`` or ``-part``.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch

from . import report
from .cases import DTYPES, LAYOUTS, chosen, parse_size
from .harness import Run, device_name
from .implementations import KEYS

RESULTS = Path(__file__).parent / "results"
SECONDS_PER_CASE = 20.0
QUICK_SECONDS_PER_CASE = 6.0


def _size(text: str) -> tuple[int, ...]:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="two sizes and fewer repeats: about two minutes")
    options.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if torch sees a GPU")
    options.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)"
    )
    options.add_argument("--sizes", type=_size, nargs="+", metavar="NxCxHxW", help="these sizes instead of the list")
    options.add_argument("--dtypes", choices=DTYPES, nargs="+", help="only these (with --sizes: each of these)")
    options.add_argument("--layouts", choices=LAYOUTS, nargs="+", help="only these (with --sizes: each of these)")
    options.add_argument("--impl", choices=KEYS, nargs="+", help="only these; for every dtype and layout")
    options.add_argument("--seconds", type=float, help="of timing in all, about (default: 20 per case, quick: 6)")
    options.add_argument(
        "--limit", type=float, default=2.0, help="skip who takes longer for one call, in seconds (default: %(default)s)"
    )
    options.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    options.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="JSON",
        help="measure nothing: make table and pictures from these rows",
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """0 if all went well, 1 if something of this package is not correct, 130 if interrupted."""
    options = parser().parse_args(arguments)
    if options.source is not None:
        return _redraw(options.source)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda, but torch sees no GPU; run with --device cpu.")
    device = torch.device(kind)
    cases = chosen(kind, options.quick, options.sizes, options.dtypes, options.layouts)
    if not cases:
        raise SystemExit(
            "No case of the list has that dtype and layout; name the sizes too, for example --sizes 16x3x192x192."
        )
    filtered = options.sizes or options.dtypes or options.layouts or options.impl
    stem = options.out / (
        report.slug(device_name(device)) + ("-part" if filtered else "-quick" if options.quick else "")
    )
    path = stem.with_name(stem.name + ".json")
    seconds = options.seconds
    if seconds is None:
        seconds = (QUICK_SECONDS_PER_CASE if options.quick else SECONDS_PER_CASE) * len(cases)
    # The price to beat is always there: every ratio needs it.
    keys = tuple(dict.fromkeys(("l1", *options.impl))) if options.impl else None

    run = Run(device, path, seconds / len(cases), options.limit, keys)
    try:
        rows = run.measure(cases, with_memory=not options.no_memory)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {_count(run.rows)} of finished and half-finished cases are in {path}.", file=sys.stderr)
        if run.rows:
            report.publish(run.rows, stem)
        return 130
    written = report.publish(rows, stem)
    print(written[0].read_text())
    print(f"{_count(rows)} in {path}; {', '.join(str(each) for each in written)}", file=sys.stderr)
    for wrong in run.wrong_ours:
        print(f"NOT CORRECT: {wrong}", file=sys.stderr)
    return 1 if run.wrong_ours else 0


def _count(rows: list[dict]) -> str:
    return f"{sum(row['median_ms'] is not None for row in rows)} rows"


def _redraw(source: Path) -> int:
    try:
        rows = report.load(source)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--from {source} can't be read: {error}") from None
    written = report.publish(rows, source.with_suffix(""))
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a job that is ended keeps its rows like one that is interrupted
    sys.exit(main())
