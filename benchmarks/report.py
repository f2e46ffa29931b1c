"""From rows to files and back: json, a Markdown table, and pictures. The rows are all that it needs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from .cases import PATCHES, Case
from .implementations import L1

PRICE_TO_BEAT = L1.name
OURS = "PSPL fused"
TABLE_HEAD = (
    "",
    "ms",
    "20-80 %",
    "forward ms",
    f"x {PRICE_TO_BEAT}",
    "share of the memory floor",
    "share of the FMA peak (forward)",
    "peak extra MiB",
    "loss error",
    "gradient error",
)
COLOURS = {OURS: "#d62728", PRICE_TO_BEAT: "#111111"}
OTHER_COLOURS = ("#1f77b4", "#2ca02c", "#9467bd", "#8c564b", "#17becf", "#bcbd22", "#ff7f0e", "#7f7f7f", "#e377c2")


def slug(name: str) -> str:
    """``name`` as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def busy(load: float | None) -> bool:
    """Whether others want the cores, too: ``load`` is how many programs did before the run."""
    return load is not None and load > 1


def save(rows: list[dict], path: Path) -> None:
    """Write ``rows`` as json, all or nothing: a reader, and who interrupts, finds either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(draft, path)


def load(path: Path) -> list[dict]:
    """The rows of a json file; ValueError if it holds something else."""
    try:
        rows = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not json: {error}") from None
    needed = {"device", "torch", "impl", "phase", "shape", "dtype", "layout", "median_ms", "date"}
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and needed <= row.keys() for row in rows)
    ):
        raise ValueError(
            f"{path} holds no benchmark rows; expected a list of objects with {', '.join(sorted(needed))}."
        )
    return rows


def publish(rows: list[dict], stem: Path) -> list[Path]:
    """Write ``<stem>.md`` and, where matplotlib is installed, the pictures that it shows; return all paths."""
    pictures = draw(rows, stem)
    document = stem.with_name(stem.name + ".md")
    document.parent.mkdir(parents=True, exist_ok=True)
    document.write_text(markdown(rows, [path.name for path in pictures]))
    return [document, *pictures]


def case_of(row: dict) -> Case:
    return Case(tuple(row["shape"]), row["dtype"], row["layout"])


def measured(rows: list[dict]) -> dict[Case, dict[str, dict[str, dict]]]:
    """``[case][implementation][phase]``: the rows with a time, in their order."""
    found: dict[Case, dict[str, dict[str, dict]]] = {}
    for row in rows:
        if row["median_ms"] is not None:
            found.setdefault(case_of(row), {}).setdefault(row["impl"], {})[row["phase"]] = row
    return found


def markdown(rows: list[dict], pictures: list[str]) -> str:
    """A table per case, times as multiples of the price to beat, and who was skipped."""
    first = rows[0]
    lines = [f"# {first['device']}", "", f"torch {first['torch']}, {first['date']}. Written by `python -m benchmarks`:"]
    lines += [
        "medians of one run with interleaved repeats, forward + backward unless it says forward; images of 0..1, delta = 1.",
        "Errors are relative, against float64 on the same images. Peak extra memory is beside the gradient itself.",
    ]
    copy, peak = first.get("copy_gb_s"), first.get("peak_gfma_s")
    if copy:
        lines.append(
            f"The memory floor is 20 bytes per element (float32) at the {copy:.1f} GB/s that a large copy reached."
        )
    if peak:
        lines.append(
            f"The FMA peak is the {peak:.1f} G/s that `benchmarks/peak_fma.cpp` reached; the loss needs 88 per element."
        )
    if busy(first.get("load")):
        lines += ["", f"**Other programs used the machine (load {first['load']:g} at the start): the ratios are off.**"]
    lines += ["", *(f"![{name}]({name})\n" for name in pictures)]
    for case, implementations in measured(rows).items():
        price = implementations.get(PRICE_TO_BEAT, {}).get("forward_backward")
        lines += [f"## {str(case).replace(' ', ', ')}", "", _line(TABLE_HEAD), "|---" * len(TABLE_HEAD) + "|"]
        lines += [_line(_cells(name, phases, price)) for name, phases in implementations.items()]
        lines.append("")
    skipped = [row for row in rows if row.get("skipped")]
    if skipped:
        lines += ["## Skipped", "", "| | size | why |", "|---|---|---|"]
        lines += [
            _line((row["impl"], str(case_of(row)) if row["shape"] else "all", row["skipped"].replace("|", "/")))
            for row in skipped
        ]
        lines.append("")
    return "\n".join(lines)


def _line(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(name: str, phases: dict[str, dict], price: dict | None) -> tuple[str, ...]:
    forward, both = phases.get("forward", {}), phases.get("forward_backward", {})

    def cell(row: dict, field: str, form: str, factor: float = 1.0) -> str:
        value = row.get(field)
        return "" if value is None else format(value * factor, form)

    ratio = both["median_ms"] / price["median_ms"] if both and price else None
    return (
        name,
        cell(both, "median_ms", ".3f"),
        f"{both['p20_ms']:.3f}-{both['p80_ms']:.3f}" if both else "",
        cell(forward, "median_ms", ".3f"),
        "" if ratio is None else f"{ratio:.2f}",
        cell(both, "floor_fraction", ".0%"),
        cell(forward, "fma_fraction", ".0%"),
        cell(both, "peak_extra_bytes", ".1f", 2**-20),
        cell(both, "loss_error", ".0e"),
        cell(both, "gradient_error", ".0e"),
    )


def draw(rows: list[dict], stem: Path) -> list[Path]:
    """Write ``<stem>-time.png``, ``-speed.png`` and ``-memory.png``, as far as there are rows for them."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")

    cases: dict[Case, dict] = {}
    for case, found in measured(rows).items():
        whole = {name: phases for name, phases in found.items() if "forward_backward" in phases}
        if case.plain and whole:
            cases[case] = whole
    if not cases:
        return []
    # The size of a training batch if it is there, else the one that most implementations were measured at.
    case = Case(PATCHES) if Case(PATCHES) in cases else max(cases, key=lambda each: len(cases[each]))
    where = f"{rows[0]['device']}, torch {rows[0]['torch']}"
    drawn = {
        "time": _draw_time(cases, where),
        "speed": _draw_speed(case, cases[case], where),
        "memory": _draw_memory(case, cases[case], where),
    }
    paths = []
    for name, figure in drawn.items():
        if figure is not None:
            paths.append(stem.with_name(f"{stem.name}-{name}.png"))
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[-1], dpi=110)
    return paths


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw_time(cases: dict[Case, dict], where: str):
    figure, axes = _figure(9, 5.5)
    names = list(dict.fromkeys(name for found in cases.values() for name in found))
    ordered = sorted(cases, key=lambda case: case.numel)
    others = iter(OTHER_COLOURS * len(names))
    for name in names:
        # By rank, not by elements: sizes of as many elements would hide each other.
        rows = [(x, cases[case][name]["forward_backward"]) for x, case in enumerate(ordered) if name in cases[case]]
        style = {
            "color": COLOURS.get(name) or next(others),
            "zorder": 3 if name == OURS else 2,
            "marker": "o",
            "markersize": 4,
        }
        style |= {"linewidth": 2.6 if name == OURS else 1.4, "linestyle": "--" if name == PRICE_TO_BEAT else "-"}
        (line,) = axes.plot([x for x, _ in rows], [row["median_ms"] for _, row in rows], label=name, **style)
        if name in COLOURS:
            low, high = [row["p20_ms"] for _, row in rows], [row["p80_ms"] for _, row in rows]
            axes.fill_between([x for x, _ in rows], low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.set_xticks(
        range(len(ordered)), [f"{'x'.join(map(str, case.shape))}\n{case.numel / 1e6:.2g} M" for case in ordered]
    )
    axes.minorticks_off()
    axes.set_xlabel("images, and their elements")
    axes.grid(axis="y", alpha=0.3)
    axes.set_ylabel("forward + backward, ms (band: 20-80 %)")
    axes.yaxis.set_major_formatter("{x:g}")
    figure.suptitle(f"Time of the loss, float32\n{where}", fontsize=11)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _bars(title: str, values: dict[str, float], form: str, label: str, log: bool):
    figure, axes = _figure(9, 1.3 + 0.42 * len(values))
    names = sorted(values, key=values.get, reverse=True)
    colours = [COLOURS.get(name, "#7f9bb3") for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(bars, [format(values[name], form) for name in names], padding=4, fontsize=9)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(min(values.values()) / 3, max(values.values()) * 2)
    else:
        axes.margins(x=0.12)
    axes.set_xlabel(label)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_speed(case: Case, found: dict, where: str):
    times = {name: phases["forward_backward"]["median_ms"] for name, phases in found.items()}
    if PRICE_TO_BEAT not in times:
        return None
    ratios = {name: time / times[PRICE_TO_BEAT] for name, time in times.items()}
    title = f"Loss forward + backward, {case}\n{where}"
    label = f"time as a multiple of {PRICE_TO_BEAT} ({times[PRICE_TO_BEAT]:.2f} ms), log scale; shorter is better"
    return _bars(title, ratios, ".3g", label, log=True)


def _draw_memory(case: Case, found: dict, where: str):
    image = case.numel * 4
    peaks = {name: phases["forward_backward"].get("peak_extra_bytes") for name, phases in found.items()}
    sizes = {name: peak / image for name, peak in peaks.items() if peak is not None}
    if not sizes:
        return None
    title = f"Peak memory of forward + backward beside the gradient, {case}\n{where}"
    label = f"in tensors of the images' size ({image / 2**20:.1f} MiB)"
    return _bars(title, sizes, ".1f", label, log=False)
