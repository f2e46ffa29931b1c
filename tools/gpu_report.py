"""What a run on a GPU says: beside the prediction of docs/dev/performance-log.md, and as the tables of the documentation."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.cases import Case

# Of the forward kernel, in percent of what the GPU can do.
METRICS = {
    "issue slots": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "FP32 pipe": "sm__inst_executed_pipe_fma.avg.pct_of_peak_sustained_active",
    "shared memory": "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "DRAM": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
}
LARGE = (8, 3, 512, 512)
L1, COMPILED_L1, OFFICIAL = "nn.L1Loss", "nn.L1Loss, torch.compile", "official formula, eager"
OURS, CHARBONNIER = "PSPL fused", "PSPL fused, charbonnier"
# By compute capability: METRICS in their order, and forward + backward / nn.L1Loss, eager and compiled. For the benchmark's
# images, at 14 % of whose rows pivots move, as in photographs. The times simulated for commit ee181d6 are multiplied by the
# increase of what limits the kernel, and the shares follow (docs/dev/performance-log.md): 33 % more FP32 operations, but 24 %
# on 9.0; 22 to 26 % more instructions; half of the wavefronts of shared memory, but on 9.0, which had as few.
PREDICTED = {
    "7.5": (52, 84, None, 51, 0.51, None),
    "8.0": (48, 80, 17, 31, 0.75, None),
    "8.6": (80, 68, 30, 80, 0.29, None),
    "9.0": (92, 77, 33, 44, 0.52, 1.26),
}
# The simulation orders kernels and finds what limits them; it is not exact.
WITHIN_POINTS, WITHIN_SHARE = 10, 0.15


def read_counters(path: Path) -> dict[str, float]:
    """The values of METRICS in the CSV that ncu wrote; empty without one. ncu's messages stand between the lines."""
    if not path.exists():
        return {}
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.startswith('"')]
    values = {row.get("Metric Name"): row.get("Metric Value", "") for row in csv.DictReader(lines)}
    found = {}
    for name, metric in METRICS.items():
        try:
            found[name] = float(values[metric].replace(",", ""))
        except (KeyError, ValueError):  # n/a, or a metric that this GPU lacks
            continue
    return found


def ratio(rows: dict[str, dict], name: str, other: str, field: str = "graph_ms") -> float | None:
    one, two = (rows.get(each, {}).get(field) for each in (name, other))
    return one / two if one and two else None


def prediction(capability: str, stem: Path) -> str:
    """The table that confirms or falsifies the simulation, as far as it was measured; empty if nothing was."""
    measured: dict[str, float | None] = dict(read_counters(Path(f"{stem}-counters.csv")))
    path = Path(f"{stem}.json")
    if path.exists():
        large = by_case(report.load(path)).get(Case(LARGE), {})
        for name, other in (
            ("forward + backward / nn.L1Loss", L1),
            ("forward + backward / compiled nn.L1Loss", COMPILED_L1),
        ):
            measured[name] = ratio(large, OURS, other)
    if not any(value is not None for value in measured.values()):
        return ""
    names = [*METRICS, "forward + backward / nn.L1Loss", "forward + backward / compiled nn.L1Loss"]
    lines = [
        "## Prediction",
        "",
        "Simulated, and scaled to the current instruction counts, against measured; float32, large images.",
        "",
        "| | predicted | measured | |",
        "|---|---|---|---|",
    ]
    for name, predicted in zip(names, PREDICTED.get(capability, (None,) * len(names)), strict=True):
        value = measured.get(name)
        if value is None or predicted is None:
            verdict = "not measured" if value is None else "not predicted"
        else:
            near = WITHIN_POINTS if name in METRICS else WITHIN_SHARE * predicted
            verdict = "confirmed" if abs(value - predicted) <= near else "**falsified**"
        unit = " %" if name in METRICS else ""
        shown = ["" if number is None else f"{number:.3g}{unit}" for number in (predicted, value)]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {verdict} |")
    return "\n".join(lines) + "\n"


def by_case(rows: list[dict]) -> dict[Case, dict[str, dict]]:
    """The rows of forward + backward that have a time, as ``[case][implementation]``."""
    found = report.timed(rows)
    return {
        case: {name: phases["forward_backward"] for name, phases in named.items() if "forward_backward" in phases}
        for case, named in found.items()
    }


# ---------------------------------------------------------------- the documentation

MARKS = ("<!-- python -m tools.gpu_check --publish -->", "<!-- end -->")


def table(rows: list[dict]) -> str:
    """docs/performance.md's table: times on the device alone, replayed from a CUDA graph, and ratios of them."""
    first = rows[0]
    lines = [
        "Forward + backward on {device}, torch {torch}, {date}: medians of graph replays over buffers larger than the L2 cache. "
        "A large copy runs at {copy_gb_s:.0f} GB/s. Training steps are timed as calls, and so is the official formula, which "
        "can't be captured.".format_map(first),
        "",
        "| images | PSPL | / `nn.L1Loss` | / compiled `nn.L1Loss` | share of a copy | charbonnier / l1 | official / PSPL |",
        "|---|---|---|---|---|---|---|",
    ]

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    for case, named in by_case(rows).items():
        field = "median_ms" if case.training else "graph_ms"
        # The rows of a network end in its name.
        for end in [name.removeprefix(OURS) for name in named if name.startswith(OURS) and name != CHARBONNIER]:
            ours = named[OURS + end]
            cells = (
                str(case).replace(" contiguous", "") + end,
                cell(ours.get(field), ".3g") + " ms" * (ours.get(field) is not None),
                cell(ratio(named, OURS + end, L1 + end, field), ".2f"),
                cell(ratio(named, OURS + end, COMPILED_L1 + end, field), ".2f"),
                cell(ours["copy_ms"] / ours["graph_ms"] if ours.get("graph_ms") else None, ".0%"),
                cell(ratio(named, CHARBONNIER, OURS + end, field), ".2f"),
                cell(ratio(named, OFFICIAL + end, OURS + end, "median_ms"), ".3g"),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def replace(page: Path, text: str) -> None:
    """Put ``text`` between the two MARKS of ``page``; ValueError if it has none."""
    before, first, rest = page.read_text().partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    if not second:
        raise ValueError(f"{page} lacks the lines {' and '.join(MARKS)}; expected the table between them.")
    page.write_text(f"{before}{first}\n{text}{second}{after}")


def publish(path: Path, root: Path) -> int:
    """Write the tables of README.md, docs/performance.md and the Markdown file beside ``path``."""
    try:
        rows = report.load(path)
        timed = [row for row in rows if row["median_ms"] is not None]
        if not timed:
            raise ValueError(f"{path} has no row with a time.")
        steps: list[tuple[Path, Callable[[Path], None]]] = [
            (root / "README.md", lambda page: report.into_readme(rows, page)),
            (root / "docs" / "performance.md", lambda page: replace(page, table(timed))),
        ]
        for page, write in steps:
            write(page)
            print(page)
        print("\n".join(map(str, report.publish(rows, path))))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--publish {path}: {error}") from None
    return 0
