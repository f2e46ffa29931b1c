"""Several networks in one table and one figure, each loss at its best learning rate: the paper's Table 1 and Fig. 4.

    python experiments/evaluate_sr.py --run runs/*/* --data Set5 Set14 BSD100 --out scores
    python experiments/compare_sr.py --run runs/*/* --scores scores/means.csv --out results

Runs that differ in their seeds, arms and learning rates only belong together. The best learning rate of an arm is the one with
the highest PSNR on the validation images at the end, mean over the seeds. Only there are scores needed. --out gets table.md,
scores.csv, validation.csv (every run, whatever its rate) and convergence.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from report_sr import (
    bicubic_psnr,
    comparable,
    iterations_until,
    psnrs,
    read_runs,
    read_scores,
    settings_of,
    table_rows,
)
from training import figures
from training.files import atomic, writable_folder
from training.loop import CHECKPOINT, load_checkpoint, write_csv
from training.settings import Settings

PLAIN = "plain"


class Tuned(NamedTuple):
    """One arm at its best learning rate. ``psnr``: of the validation images, ``[seeds, points]``."""

    lr: float
    iterations: np.ndarray
    psnr: np.ndarray
    runs: dict[tuple[str, int], dict]


class Experiment(NamedTuple):
    """Runs of one network that differ in seeds, arms and learning rates. ``rates``: those of each arm."""

    title: str
    settings: Settings
    arms: dict[str, Tuned]
    rates: dict[str, list[float]]
    runs: list[dict]


def experiments_of(folders: list[Path], arms: list[str] | None) -> list[Experiment]:
    """The runs of ``folders``, in the order of their first; of ``arms`` only, in this order.

    Raises:
        SystemExit: runs that did not end, an experiment without the plain loss, or two of one title.
    """
    by_rate: dict[str, dict[float, list[Path]]] = {}
    for folder in folders:
        settings = load_checkpoint(folder / CHECKPOINT)["settings"]
        shared = {name: value for name, value in comparable(settings).items() if name != "lr"}
        by_rate.setdefault(json.dumps(shared), {}).setdefault(settings["lr"], []).append(folder)
    experiments = [_experiment(group, arms) for group in by_rate.values()]
    titles = [experiment.title for experiment in experiments]
    for title in titles:
        if titles.count(title) > 1:  # their rows would be taken for each other's
            raise SystemExit(f"--run has {titles.count(title)} experiments {title} with other settings: expected one.")
    return experiments


def _experiment(by_rate: dict[float, list[Path]], arms: list[str] | None) -> Experiment:
    tuned: dict[str, Tuned] = {}
    rates: dict[str, list[float]] = {}
    states = []
    for lr, folders in sorted(by_rate.items()):
        runs = read_runs(folders)
        states += list({id(state): state for state in runs.values()}.values())
        iterations, psnr = psnrs(runs)
        for arm, lines in psnr.items():
            rates.setdefault(arm, []).append(lr)
            if arm not in tuned or lines[:, -1].mean() > tuned[arm].psnr[:, -1].mean():
                mine = {key: state for key, state in runs.items() if key[0] == arm}
                tuned[arm] = Tuned(lr, iterations, lines, mine)
    settings = settings_of(states[0])
    if PLAIN not in tuned:
        raise SystemExit(f"{states[0]['folder']}: expected a run with the arm {PLAIN} too, to compare with.")
    title = f"{settings.model} x{settings.scale}"
    title += f", clipped at {settings.clip:g}" if settings.clip else ""
    title += ", pretrained" if settings.pretrained else ""
    order = [PLAIN, *(arm for arm in arms or tuned if arm != PLAIN)]
    return Experiment(title, settings, {arm: tuned[arm] for arm in order if arm in tuned}, rates, states)


def score_rows(experiment: Experiment, paths: list[Path]) -> list[dict]:
    """A row per dataset and arm, as :func:`report_sr.table_rows`; the arms of one seed have been trained at different rates."""
    runs = {key: state for tuned in experiment.arms.values() for key, state in tuned.runs.items()}
    rows = table_rows(read_scores(paths, runs), PLAIN)
    lr = {arm: f"{tuned.lr:g}" for arm, tuned in experiment.arms.items()}
    return [{"network": experiment.title, "lr": lr.get(row["arm"], ""), **row} for row in rows]


def table(experiments: list[Experiment], rows: list[dict]) -> str:
    """Markdown, like Table 1: a row per network and loss, the datasets side by side."""
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    header = ["network", "loss", "learning rate", *(cell for name in datasets for cell in (name, "gain"))]
    lines = [header, ["---"] * len(header)]
    for experiment in experiments:
        for arm in ("bicubic", *experiment.arms):
            mine = {r["dataset"]: r for r in rows if (r["network"], r["arm"]) == (experiment.title, arm)}
            cells = []
            for name in datasets:
                row = mine.get(name)
                cells.append(f"{row['psnr']:.2f} / {row['ssim']:.4f}" if row else "")
                gains = " ".join(f"{float(gain):+.2f}" for gain in row["psnr_gains"].split()) if row else ""
                cells.append(f"{row['psnr_gain']:+.2f} ({gains})" if gains else "")
            lr = ""
            if arm in experiment.arms:
                tried = [f"{rate:g}" for rate in experiment.rates[arm]]
                lr = f"{experiment.arms[arm].lr:g}" + (f" of {', '.join(tried)}" if len(tried) > 1 else "")
            lines.append([experiment.title, arm, lr, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def described(experiment: Experiment) -> str:
    """What was trained, how long it took, and when each arm had what the plain loss had at the end."""
    s = experiment.settings
    end = experiment.arms[PLAIN].psnr[:, -1].mean()
    reached = {
        arm: iterations_until(end, tuned.iterations, tuned.psnr.mean(0)) for arm, tuned in experiment.arms.items()
    }
    until = ", ".join(f"{arm} {'never' if np.isnan(at) else round(at)}" for arm, at in reached.items())
    seconds = [value for state in experiment.runs for value in state["seconds"].values()]
    return (
        f"- {experiment.title}: {s.distance}, {s.iterations} iterations of {s.batch} patches of {s.patch} pixels, {s.optimizer}, "
        f"rate halved every {s.halve_every}. {len(seconds)} trainings of {np.median(seconds):.0f} s (median). Iterations until "
        f"the plain loss's final PSNR on the validation images: {until}."
    )


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, nargs="+", required=True, help="folders of train_sr.py")
    add("--scores", type=Path, nargs="+", required=True, help="means.csv of evaluate_sr.py on these runs")
    add("--arms", nargs="+", help="only these, besides the plain loss (default: all)")
    add("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    writable_folder(options.out)

    experiments = experiments_of(options.run, options.arms)
    rows = [row for experiment in experiments for row in score_rows(experiment, options.scores)]
    write_csv(rows, options.out / "scores.csv")
    write_csv(
        [
            {
                "network": experiment.title,
                "lr": state["settings"]["lr"],
                "seed": state["settings"]["seed"],
                **{name: row[name] for name in ("arm", "iteration")},
                "psnr": f"{row['validation_psnr']:.4f}",
            }
            for experiment in experiments
            for state in experiment.runs
            for row in state["rows"]
            if "validation_psnr" in row
        ],
        options.out / "validation.csv",
    )
    text = "PSNR in dB / SSIM, mean over the seeds; gains over the plain loss in dB, mean (by seed).\n\n"
    text += table(experiments, rows) + "\n" + "\n".join(map(described, experiments)) + "\n"
    with atomic(options.out / "table.md") as file:
        file.write(text.encode())
    curves = {
        experiment.title: (
            {arm: (tuned.iterations, tuned.psnr) for arm, tuned in experiment.arms.items()},
            bicubic_psnr(experiment.settings),
        )
        for experiment in experiments
    }
    figures.networks(curves, options.out / "convergence.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
