"""Tables and figures of runs: the paper's Table 1, Fig. 3 and Fig. 4.

    python experiments/evaluate_sr.py --run runs/srcnn-seed* --data Set5 Set14 BSD100 --out runs/srcnn-scores
    python experiments/report_sr.py --run runs/srcnn-seed* --scores runs/srcnn-scores/means.csv --out results

The runs differ in their seeds only. --out gets convergence.csv and .png (PSNR of the validation images), attention.png of one
arm, and with --scores table.csv and .md: PSNR and SSIM of each dataset, mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path

import numpy as np

from training import data, figures, images
from training.files import atomic
from training.loop import CHECKPOINT, PROBE, load_checkpoint, write_csv
from training.losses import Arm
from training.settings import Settings


def read_runs(folders: list[Path]) -> list[dict]:
    """The checkpoints of ``folders``.

    Raises:
        SystemExit: runs that differ in more than the seed, or did not end.
    """
    states = [load_checkpoint(folder / CHECKPOINT) for folder in folders]
    same = ("model", "scale", "arms", "distance", "iterations", "batch", "patch", "optimizer", "lr", "halve_every")
    for folder, state in zip(folders, states, strict=True):
        for name in same:
            first, other = states[0]["settings"][name], state["settings"][name]
            if other != first:
                raise SystemExit(
                    f"{folder} has {name} {other}, {folders[0]} has {first}: expected runs that differ in the seed."
                )
        if state["iteration"] < state["settings"]["iterations"]:
            raise SystemExit(
                f"{folder} is at iteration {state['iteration']} of {state['settings']['iterations']}: let it end."
            )
    seeds = [state["settings"]["seed"] for state in states]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"The runs have the seeds {seeds}: expected different ones.")
    return states


def read_csv(path: Path) -> list[dict]:
    """The rows of a csv file.

    Raises:
        SystemExit: it can't be read.
    """
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise SystemExit(f"{path} can't be read: {error.strerror}.") from None


def psnrs(states: list[dict]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The validated iterations, and the PSNR ``[seeds, points]`` of each arm."""
    validated = [[row for row in state["rows"] if "validation_psnr" in row] for state in states]
    iterations = sorted({row["iteration"] for row in validated[0]})
    by_arm = {
        arm: np.array([[row["validation_psnr"] for row in rows if row["arm"] == arm] for rows in validated])
        for arm in states[0]["settings"]["arms"]
    }
    return np.array(iterations), by_arm


def table_rows(means: list[dict], arms: list[str]) -> list[dict]:
    """One row per dataset and arm: mean and standard deviation over the seeds, and the gain over the first arm by seed."""
    rows = []
    for dataset in dict.fromkeys(row["dataset"] for row in means):
        mine = [row for row in means if row["dataset"] == dataset]
        rows.append(
            {"dataset": dataset, "arm": "bicubic", **_stats([r for r in mine if r["model"] == "bicubic"][:1], [])}
        )
        plain = [row for row in mine if row["arm"] == arms[0]]
        for arm in arms:
            scores = [row for row in mine if row["arm"] == arm]
            rows.append({"dataset": dataset, "arm": arm, **_stats(scores, plain if arm != arms[0] else [])})
    return rows


def _stats(rows: list[dict], plain: list[dict]) -> dict:
    """Of the seeds' scores; ``plain`` has the same seeds in the same order."""
    found: dict = {"seeds": len(rows)}
    for name in ("psnr", "ssim"):
        values = np.array([float(row[name]) for row in rows])
        found[name] = values.mean()
        found[f"{name}_std"] = values.std(ddof=1) if len(values) > 1 else math.nan
        gains = values - [float(row[name]) for row in plain] if plain else np.array([])
        found[f"{name}_gain"] = gains.mean() if plain else math.nan
        found[f"{name}_gain_std"] = gains.std(ddof=1) if len(gains) > 1 else math.nan
        found[f"{name}_gains"] = " ".join(f"{gain:+.{4 if name == 'ssim' else 3}f}" for gain in gains)
    return found


def table(rows: list[dict]) -> str:
    """Markdown, like Table 1."""
    lines = ["| dataset | loss | PSNR | gain | by seed | SSIM | gain |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        psnr, ssim = f"{row['psnr']:.2f}", f"{row['ssim']:.4f}"
        if row["seeds"] > 1:
            psnr, ssim = f"{psnr} ± {row['psnr_std']:.2f}", f"{ssim} ± {row['ssim_std']:.4f}"
        compared = row["psnr_gain"] == row["psnr_gain"]
        cells = (
            (f"{row['psnr_gain']:+.2f}", row["psnr_gains"], f"{row['ssim_gain']:+.4f}") if compared else ("", "", "")
        )
        lines.append(f"| {row['dataset']} | {row['arm']} | {psnr} | {cells[0]} | {cells[1]} | {ssim} | {cells[2]} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, nargs="+", required=True, help="folders of train_sr.py, one per seed")
    add(
        "--scores",
        type=Path,
        nargs="+",
        default=[],
        help="means.csv of evaluate_sr.py on the same runs; several: one per run",
    )
    add("--attention", metavar="ARM", help="arm whose attention is drawn (default: the first of kind pspl)")
    add("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)

    states = read_runs(options.run)
    settings = Settings(**{**states[0]["settings"], "arms": tuple(states[0]["settings"]["arms"])})
    described = (
        f"{settings.model} x{settings.scale}, {settings.distance}, {settings.iterations} iterations of {settings.batch} patches "
        f"of {settings.patch} pixels, {settings.optimizer} {settings.lr:g}, {len(states)} seed{'s' * (len(states) > 1)}"
    )
    iterations, psnr = psnrs(states)
    write_csv(
        [
            {"arm": arm, "seed": state["settings"]["seed"], "iteration": iteration, "psnr": f"{value:.4f}"}
            for arm, lines in psnr.items()
            for state, line in zip(states, lines, strict=True)
            for iteration, value in zip(iterations, line, strict=True)
        ],
        options.out / "convergence.csv",
    )
    pairs = data.validation_pairs(settings)
    baseline = np.mean(
        [
            images.psnr(
                images.as_result(images.enlarge(p.lr, settings.scale)).y, images.as_result(p.hr).y, settings.scale
            )
            for p in pairs
        ]
    )
    figures.convergence(iterations, psnr, float(baseline), described, options.out / "convergence.png")
    scheduled = [arm for arm in settings.arms if Arm.parse(arm).kind == "pspl"]
    if scheduled:
        arm = options.attention or scheduled[0]
        snapshots = [snapshot for snapshot in states[0]["snapshots"] if snapshot["arm"] == arm]
        if not snapshots:
            raise SystemExit(f"--attention {arm}: expected one of {', '.join(scheduled)}.")
        probe = data.centre(pairs[0], settings.scale, PROBE)
        title = f"{settings.model} x{settings.scale}, {arm}, {settings.iterations} iterations"
        figures.attention(snapshots, probe, title, options.out / "attention.png")
    if options.scores:
        means = [row for path in options.scores for row in read_csv(path)]
        rows = table_rows(means, list(settings.arms))
        write_csv(rows, options.out / "table.csv")
        text = f"{described}; PSNR in dB, SSIM, gains over {settings.arms[0]}.\n\n{table(rows)}"
        with atomic(options.out / "table.md") as file:
            file.write(text.encode())
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
