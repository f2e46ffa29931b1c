"""Reads and writes the rows: json, Markdown tables, and plots made from the rows alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .cases import MIXED, PATCHES, SIZES, Case
from .machine import is_busy

BASELINE = "nn.L1Loss"
OURS = "PSPL fused"
COLOURS = {OURS: "#d62728", BASELINE: "#111111"}
OTHER_COLOURS = ["#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#bcbd22", "#ff7f0e", "#7f7f7f", "#e377c2"]
COLUMNS = (
    "",
    "ms",
    "20-80 %",
    "forward ms",
    "backward ms",
    f"x {BASELINE}",
    "share of the memory floor",
    "peak extra MiB",
    "loss error",
    "gradient error",
)
README_MARKS = ("<!-- python -m benchmarks --readme -->", "<!-- end -->")
REQUIRED = {"device", "torch", "impl", "phase", "shape", "dtype", "layout", "median_ms", "date"}


def save(rows: list[dict], path: Path) -> None:
    """Write ``rows`` as json. The file is replaced atomically: an interrupt leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(draft, path)


def load(path: Path) -> list[dict]:
    """The rows of a json file; ValueError if it contains something else."""
    try:
        rows = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not json: {error}") from None
    if not (isinstance(rows, list) and rows and all(isinstance(row, dict) and row.keys() >= REQUIRED for row in rows)):
        raise ValueError(
            f"{path} contains no benchmark rows; expected a list of objects with {', '.join(sorted(REQUIRED))}."
        )
    return rows


def publish(rows: list[dict], path: Path) -> list[Path]:
    """Write the Markdown file next to the json ``path`` and, if matplotlib is installed, the plots that it shows."""
    plots = draw(rows, path.with_suffix(""))
    document = path.with_suffix(".md")
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(markdown(rows, [plot.name for plot in plots]))
    return [document, *plots]


def case_of(row: dict) -> Case:
    return Case(tuple(row["shape"]), row["dtype"], row["layout"], row.get("threads"), row.get("training", False))


def timed(rows: list[dict]) -> dict[Case, dict[str, dict[str, dict]]]:
    """The rows with a time, as ``[case][implementation][phase]``, in their order."""
    found: dict[Case, dict[str, dict[str, dict]]] = {}
    for row in rows:
        if row["median_ms"] is not None:
            found.setdefault(case_of(row), {}).setdefault(row["impl"], {})[row["phase"]] = row
    return found


def markdown(rows: list[dict], plots: list[str]) -> str:
    """One table per case with times as multiples of the baseline, and the list of skipped implementations."""
    first = rows[0]
    lines = [
        f"# {first['device']}",
        "",
        f"torch {first['torch']}, {first['date']}. Written by `python -m benchmarks`. Medians of one run with interleaved "
        "repeats, forward + backward unless stated otherwise; images in 0..1, delta = 1. Errors are relative, against float64 "
        "on the same images. The peak extra memory does not include the gradient itself.",
    ]
    if first.get("copy_gb_s"):
        lines.append(
            "The memory floor is reading both images and writing the gradient (12 bytes per float32 element) at "
            f"{first['copy_gb_s']:.1f} GB/s, the speed of a large copy; with it, the backward pass has nothing left to move. A "
            "training step is that of ESPCN x4 with Adam."
        )
    if is_busy(first.get("load")):
        lines += ["", f"**Other programs used the machine (load {first['load']:g}): the ratios are inaccurate.**"]
    lines += ["", *(f"![{name}]({name})\n" for name in plots)]
    for case, implementations in timed(rows).items():
        baseline = implementations.get(BASELINE, {}).get("forward_backward")
        lines += [f"## {str(case).replace(' ', ', ', 2)}", "", _line(COLUMNS), "|---" * len(COLUMNS) + "|"]
        lines += [_line(_cells(name, phases, baseline)) for name, phases in implementations.items()]
        lines.append("")
    skipped = [row for row in rows if row.get("skipped")]
    if skipped:
        lines += ["## Skipped", "", "| | size | reason |", "|---|---|---|"]
        for row in skipped:
            size = str(case_of(row)) if row["shape"] else "all"
            lines.append(_line((row["impl"], size, row["skipped"].replace("|", "/"))))
        lines.append("")
    return "\n".join(lines)


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, phases: dict[str, dict], baseline: dict | None) -> tuple[str, ...]:
    forward, both = phases.get("forward", {}), phases.get("forward_backward", {})

    def cell(row: dict, field: str, form: str, factor: float = 1.0) -> str:
        value = row.get(field)
        return "" if value is None else format(value * factor, form)

    return (
        name,
        cell(both, "median_ms", ".3f"),
        f"{both['p20_ms']:.3f}-{both['p80_ms']:.3f}" if both else "",
        cell(forward, "median_ms", ".3f"),
        cell(phases.get("backward", {}), "median_ms", ".3f"),
        cell(both, "median_ms", ".2f", 1 / baseline["median_ms"]) if baseline else "",
        format(_floor_ms(both) / both["median_ms"], ".0%") if both and _floor_ms(both) else "",
        cell(both, "peak_extra_bytes", ".1f", 2**-20),
        cell(both, "loss_error", ".0e"),
        cell(both, "gradient_error", ".0e"),
    )


def _floor_ms(row: dict) -> float | None:
    case = case_of(row)
    return None if case.training or not row.get("copy_gb_s") else case.floor_bytes / row["copy_gb_s"] / 1e6


README_CASES = {
    "16x3x192x192": Case(PATCHES),
    "bfloat16 `sr`, float32 `hr`": Case(PATCHES, MIXED),
    "1x3x64x64": Case(SIZES[0]),
    "training step of ESPCN x4": Case(PATCHES, training=True),
}
OFFICIAL = "official formula, eager"


def readme(rows: list[dict]) -> str:
    """README's table: the fused loss and the official formula beside the baseline, in a few cases, and the range of all."""
    cases = timed(rows)
    both = {case: {name: row.get("forward_backward") for name, row in found.items()} for case, found in cases.items()}

    def multiples(found: dict[str, dict]) -> tuple[str, str, str]:
        """The baseline's time, and the others as multiples of it: the median, and for the fused loss 20 to 80 %."""
        baseline, ours, official = (found.get(name) for name in (BASELINE, OURS, OFFICIAL))
        if not baseline or not ours:
            return "", "", ""
        median, p20, p80 = (ours[name] / baseline["median_ms"] for name in ("median_ms", "p20_ms", "p80_ms"))
        official = f"{official['median_ms'] / baseline['median_ms']:.3g}" if official else ""
        return f"{baseline['median_ms']:.2g} ms", f"**{median:.2f}** ({p20:.2f}-{p80:.2f})", official

    ratios = {
        str(case).replace(" float32", "").replace(" contiguous", ""): found[OURS]["median_ms"]
        / found[BASELINE]["median_ms"]
        for case, found in both.items()
        if found.get(OURS) and found.get(BASELINE)
    }
    lines = [
        "Forward + backward on {device}, torch {torch}, {date}. Images are float32 unless named. PSPL and the official formula "
        "are multiples of `nn.L1Loss`: the median, and 20-80 % of the calls.".format_map(rows[0]),
        "",
        _line(["", f"`{BASELINE}`", "PSPL", "official formula"]),
        "|---" * 4 + "|",
        *(_line([label, *multiples(both[case])]) for label, case in README_CASES.items() if case in both),
    ]
    if ratios:
        least, most = (choose(ratios, key=ratios.__getitem__) for choose in (min, max))
        lines += [
            "",
            f"Over all {len(ratios)} cases the multiple is {ratios[least]:.2f} ({least}) to {ratios[most]:.2f} ({most}).",
        ]
    measured = both.get(Case(PATCHES), {})
    peaks = [(measured.get(name) or {}).get("peak_extra_bytes") for name in (OURS, BASELINE, OFFICIAL)]
    if None not in peaks:
        images = [f"{peak / 4 / Case(PATCHES).numel:.0f}" for peak in peaks]
        lines[-1] += (
            f" Peak memory beyond the gradient in the first case, in units of one batch of images: {images[0]} for PSPL, "
            f"{images[1]} for `{BASELINE}`, {images[2]} for the official formula."
        )
    return "\n".join(lines) + "\n"


def into_readme(rows: list[dict], page: Path) -> None:
    """Replace what stands between the two README_MARKS in ``page``; ValueError if it has none."""
    before, first, rest = page.read_text().partition(README_MARKS[0])
    _, second, after = rest.partition(README_MARKS[1])
    if not second:
        raise ValueError(f"{page} lacks the lines {' and '.join(README_MARKS)}; expected the table between them.")
    page.write_text(f"{before}{first}\n{readme(rows)}{second}{after}")


def draw(rows: list[dict], stem: Path) -> list[Path]:
    """Write ``<stem>-time.png``, ``-speed.png`` and ``-memory.png``, those that there are rows for."""
    try:
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError:
        return []
    cases: dict[Case, dict[str, dict]] = {}
    for case, implementations in timed(rows).items():
        if case.plain:
            both = {name: phases.get("forward_backward") for name, phases in implementations.items()}
            cases[case] = {name: row for name, row in both.items() if row}
    if not any(cases.values()):
        return []
    # The size of a training batch if it was measured, else the one with the most implementations.
    case = Case(PATCHES) if cases.get(Case(PATCHES)) else max(cases, key=lambda each: len(cases[each]))
    machine = f"{rows[0]['device']}, torch {rows[0]['torch']}"
    figures = {
        "time": _draw_time(cases, machine),
        "speed": _draw_speed(case, cases[case], machine),
        "memory": _draw_memory(case, cases[case], machine),
    }
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = {name: stem.with_name(f"{stem.name}-{name}.png") for name, figure in figures.items() if figure is not None}
    for name, path in paths.items():
        figures[name].savefig(path, dpi=110)
    return list(paths.values())


def _axes(height: float, title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return axes


def _draw_time(cases: dict[Case, dict[str, dict]], machine: str):
    axes = _axes(5.5, f"Time of the loss, float32\n{machine}")
    axes.set_prop_cycle(color=OTHER_COLOURS)
    ordered = sorted(cases, key=lambda case: case.numel)
    for name in dict.fromkeys(name for found in cases.values() for name in found):
        points = [(x, cases[case][name]) for x, case in enumerate(ordered) if name in cases[case]]
        xs, rows = zip(*points, strict=True)
        (line,) = axes.plot(
            xs,
            [row["median_ms"] for row in rows],
            "o--" if name == BASELINE else "o-",
            label=name,
            color=COLOURS.get(name),
            linewidth=2.6 if name == OURS else 1.4,
            markersize=4,
        )
        if name in COLOURS:
            low, high = ([row[field] for row in rows] for field in ("p20_ms", "p80_ms"))
            axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    labels = [f"{'x'.join(map(str, case.shape))}\n{case.numel / 1e6:.2g} M" for case in ordered]
    axes.set_xticks(range(len(ordered)), labels)
    axes.set_xlabel("images, and their number of elements")
    axes.set_ylabel("forward + backward, ms (band: 20-80 %)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return axes.figure


def _draw_bars(title: str, values: dict[str, float], form: str, label: str):
    axes = _axes(1.3 + 0.42 * len(values), title)
    names = sorted(values, key=values.get, reverse=True)
    bars = axes.barh(names, [values[name] for name in names], color=[COLOURS.get(name, "#7f9bb3") for name in names])
    axes.bar_label(bars, [format(values[name], form) for name in names], padding=4, fontsize=9)
    axes.margins(x=0.12)
    axes.set_xlabel(label)
    return axes


def _draw_speed(case: Case, rows: dict[str, dict], machine: str):
    if BASELINE not in rows:
        return None
    baseline = rows[BASELINE]["median_ms"]
    ratios = {name: row["median_ms"] / baseline for name, row in rows.items()}
    label = f"time as a multiple of {BASELINE} ({baseline:.2f} ms), log scale; shorter is better"
    axes = _draw_bars(f"Loss forward + backward, {case}\n{machine}", ratios, ".3g", label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min(ratios.values()) / 3, max(ratios.values()) * 2)
    return axes.figure


def _draw_memory(case: Case, rows: dict[str, dict], machine: str):
    image = case.numel * 4
    peaks = {name: row.get("peak_extra_bytes") for name, row in rows.items()}
    sizes = {name: peak / image for name, peak in peaks.items() if peak is not None}
    if not sizes:
        return None
    title = f"Peak memory of forward + backward, without the gradient, {case}\n{machine}"
    return _draw_bars(title, sizes, ".1f", f"in tensors of the images' size ({image / 2**20:.1f} MiB)").figure
