"""Several networks in one table and one figure, each loss at its best learning rate: the paper's Table 1 and Fig. 4.

    python experiments/evaluate_sr.py --run runs/*/* --data Set5 Set14 BSD100 --out scores
    python experiments/compare_sr.py --run runs/*/* --scores scores/means.csv --out results
    python experiments/compare_sr.py --out results                                              draws the kept rows again

Runs that differ in their seeds, arms and learning rates only belong together: an experiment. The best learning rate of an arm is
the one with the highest PSNR on the validation images at the end, mean over the seeds. Only there are scores needed.

--out gets experiments.csv, validation.csv (every run, whatever its rate), scores.csv (by seed), and table.md and convergence.png,
which are made from these three. Rows that --out already has stay. Runs are added to those of the same experiment, at other rates
for example. An experiment whose settings have changed replaces the one of its name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluate_sr import BICUBIC
from report_sr import (
    Score,
    bicubic_psnr,
    by_arm_and_seed,
    comparable,
    iterations_until,
    read_csv,
    read_runs,
    read_scores,
    settings_of,
    table_rows,
)
from training import figures
from training.files import atomic, writable_folder
from training.loop import write_csv

PLAIN = "plain"
# What the runs of an experiment share, as experiments.csv has it.
SHARED = ("distance", "iterations", "batch", "patch", "optimizer", "halve_every", "precision")


class Rows(NamedTuple):
    """What is kept of experiments, one csv file each; ``network`` is the experiment's title in all of them."""

    experiments: list[dict]
    validation: list[dict]
    scores: list[dict]

    @classmethod
    def read(cls, folder: Path) -> Rows:
        """Those of ``folder``; none where it has no file."""
        paths = [folder / f"{name}.csv" for name in cls._fields]
        return cls(*(read_csv(path) if path.exists() else [] for path in paths))

    def write(self, folder: Path) -> None:
        for name, rows in self._asdict().items():
            write_csv(rows, folder / f"{name}.csv")

    def of(self, network: str) -> Rows:
        return Rows(*([row for row in rows if row["network"] == network] for rows in self))

    @property
    def networks(self) -> list[str]:
        return [row["network"] for row in self.experiments]


class Tuned(NamedTuple):
    """One arm at its best learning rate of ``rates``. ``psnr``: of the validation images, ``[seeds, points]``."""

    lr: float
    rates: list[float]
    iterations: np.ndarray
    psnr: np.ndarray


def tuned(network: str, validation: list[dict]) -> dict[str, Tuned]:
    """Each arm of an experiment at its best learning rate: the plain loss, then the others by name.

    Raises:
        SystemExit: no plain loss, or other seeds at another rate, which would be compared.
    """
    curves: dict[str, dict[float, dict[int, dict[int, float]]]] = {}
    for row in validation:
        of_seed = curves.setdefault(row["arm"], {}).setdefault(float(row["lr"]), {}).setdefault(int(row["seed"]), {})
        of_seed[int(row["iteration"])] = float(row["psnr"])
    if PLAIN not in curves:
        raise SystemExit(f"{network}: expected a run with the arm {PLAIN} too, to compare with.")
    seeds = sorted(next(iter(curves[PLAIN].values())))
    for arm, by_rate in curves.items():
        for lr, by_seed in by_rate.items():
            if sorted(by_seed) != seeds:
                raise SystemExit(
                    f"{network}: {arm} has seeds {sorted(by_seed)} at the learning rate {lr:g}, {PLAIN} has {seeds}: expected "
                    "the same."
                )
    of_seeds = [of_seed for by_rate in curves.values() for by_seed in by_rate.values() for of_seed in by_seed.values()]
    iterations = sorted(set.intersection(*map(set, of_seeds)))
    found = {}
    for arm in (PLAIN, *sorted(curves.keys() - {PLAIN})):
        lines = {
            lr: np.array([[by_seed[seed][iteration] for iteration in iterations] for seed in seeds])
            for lr, by_seed in sorted(curves[arm].items())
        }
        best = max(lines, key=lambda lr: lines[lr][:, -1].mean())
        found[arm] = Tuned(best, list(lines), np.array(iterations), lines[best])
    return found


def experiments_of(states: list[dict]) -> dict[str, list[dict]]:
    """The runs ``states`` of each experiment, by its title.

    Raises:
        SystemExit: two experiments of one title, whose rows would be taken for each other's.
    """
    groups: dict[str, list[dict]] = {}
    for state in states:
        shared = {name: value for name, value in comparable(state["settings"]).items() if name != "lr"}
        groups.setdefault(json.dumps(shared), []).append(state)
    titles = [_title(group[0]) for group in groups.values()]
    for title in titles:
        if titles.count(title) > 1:
            raise SystemExit(f"--run has {titles.count(title)} experiments {title} with other settings: expected one.")
    return dict(zip(titles, groups.values(), strict=True))


def _title(state: dict) -> str:
    settings = settings_of(state)
    title = f"{settings.model} x{settings.scale}"
    title += f", clipped at {settings.clip:g}" if settings.clip else ""
    return title + (", pretrained" if settings.pretrained else "")


def with_runs(kept: Rows, title: str, states: list[dict], score_paths: list[Path]) -> Rows:
    """The rows of one experiment: those that are ``kept`` of it, and those of the runs ``states``, which replace their own.

    Raises:
        SystemExit: the plain loss, a seed or a score is missing.
    """
    s = settings_of(states[0])
    seconds = [value for state in states for value in state["seconds"].values()]
    facts = {
        "network": title,
        **{name: str(getattr(s, name)) for name in SHARED},
        "seconds": f"{np.median(seconds):.0f}",
        "bicubic": f"{bicubic_psnr(s):.4f}",
    }
    for before in kept.experiments:
        if any(before[name] != facts[name] for name in (*SHARED, "bicubic")):
            kept = Rows([], [], [])

    by_rate: dict[float, list[dict]] = {}
    for state in states:
        by_rate.setdefault(state["settings"]["lr"], []).append(state)
    runs = {(lr, *key): state for lr in sorted(by_rate) for key, state in by_arm_and_seed(by_rate[lr]).items()}
    validation = [row for row in kept.validation if _run_of(row) not in runs] + _validation(title, runs)
    arms = tuned(title, validation)
    best = {(arm, seed): state for (lr, arm, seed), state in runs.items() if lr == arms[arm].lr}
    scores = [row for row in kept.scores if _run_of(row) not in runs]
    known = {row["dataset"] for row in scores if row["arm"] == BICUBIC}
    if best:
        new = _scores(title, best, read_scores(score_paths, best))
        scores += [row for row in new if row["arm"] != BICUBIC or row["dataset"] not in known]
    return Rows([facts], validation, scores)


def _validation(title: str, runs: dict[tuple[float, str, int], dict]) -> list[dict]:
    return [
        {
            "network": title,
            "lr": lr,
            "seed": seed,
            "arm": arm,
            "iteration": row["iteration"],
            "psnr": f"{row['validation_psnr']:.4f}",
        }
        for (lr, arm, seed), state in runs.items()
        for row in state["rows"]
        if "validation_psnr" in row and row["arm"] == arm
    ]


def _scores(title: str, runs: dict[tuple[str, int], dict], scores: dict[str, dict[str, list[Score]]]) -> list[dict]:
    """One row per dataset and run, and for bicubic."""
    of_arm: dict[str, list[tuple[float | str, int | str]]] = {BICUBIC: [("", "")]}
    for (arm, seed), state in runs.items():
        of_arm.setdefault(arm, []).append((state["settings"]["lr"], seed))
    return [
        {
            "network": title,
            "lr": lr,
            "dataset": dataset,
            "arm": arm,
            "seed": seed,
            "psnr": f"{score.psnr:.4f}",
            "ssim": f"{score.ssim:.6f}",
        }
        for dataset, by_arm in scores.items()
        for arm, by_seed in by_arm.items()
        for (lr, seed), score in zip(of_arm[arm], by_seed, strict=True)
    ]


def _run_of(row: dict) -> tuple[float, str, int] | None:
    """The run of a row; bicubic has none."""
    return (float(row["lr"]), row["arm"], int(row["seed"])) if row["lr"] else None


def best_scores(network: str, scores: list[dict], arms: dict[str, Tuned]) -> dict[str, dict[str, list[Score]]]:
    """Dataset -> arm, or ``bicubic`` -> a score per seed, at the arm's best learning rate.

    Raises:
        SystemExit: a run has no score on one of the datasets.
    """
    found: dict[tuple[str, str, float | None], dict[str, Score]] = {}
    for row in scores:
        by_seed = found.setdefault((row["dataset"], row["arm"], float(row["lr"]) if row["lr"] else None), {})
        by_seed[row["seed"]] = Score(float(row["psnr"]), float(row["ssim"]))
    best: dict[str, dict[str, list[Score]]] = {}
    for dataset in dict.fromkeys(row["dataset"] for row in scores):
        best[dataset] = {BICUBIC: [*found[dataset, BICUBIC, None].values()]}
        for arm, each in arms.items():
            by_seed = found.get((dataset, arm, each.lr), {})
            if len(by_seed) != len(each.psnr):
                raise SystemExit(
                    f"{network}: {arm} is best at the learning rate {each.lr:g}, and has {len(by_seed)} scores there on "
                    f"{dataset}: expected {len(each.psnr)}, one per seed."
                )
            best[dataset][arm] = [by_seed[seed] for seed in sorted(by_seed, key=int)]
    return best


def table(rows: Rows, arms: dict[str, dict[str, Tuned]]) -> str:
    """Markdown, like Table 1: a row per network and loss, the datasets side by side."""
    datasets = list(dict.fromkeys(row["dataset"] for row in rows.scores))
    header = ["network", "loss", "learning rate", *(cell for name in datasets for cell in (name, "gain"))]
    lines = [header, ["---"] * len(header)]
    for network in rows.networks:
        best = best_scores(network, rows.of(network).scores, arms[network])
        scores = {(row["arm"], row["dataset"]): row for row in table_rows(best, PLAIN)}
        for arm in (BICUBIC, *arms[network]):
            cells = []
            for name in datasets:
                row = scores.get((arm, name))
                cells.append(f"{row['psnr']:.2f} / {row['ssim']:.4f}" if row else "")
                gains = " ".join(f"{float(gain):+.2f}" for gain in row["psnr_gains"].split()) if row else ""
                cells.append(f"{row['psnr_gain']:+.2f} ({gains})" if gains else "")
            lr = ""
            if arm in arms[network]:
                tried = [f"{rate:g}" for rate in arms[network][arm].rates]
                lr = f"{arms[network][arm].lr:g}" + (f" of {', '.join(tried)}" if len(tried) > 1 else "")
            lines.append([network, arm, lr, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def described(facts: dict, arms: dict[str, Tuned]) -> str:
    """What was trained, how long it took, and when each arm had what the plain loss had at the end."""
    end = arms[PLAIN].psnr[:, -1].mean()
    reached = {arm: iterations_until(end, each.iterations, each.psnr.mean(0)) for arm, each in arms.items()}
    until = ", ".join(f"{arm} {'never' if np.isnan(at) else round(at)}" for arm, at in reached.items())
    trainings = sum(len(each.rates) * len(each.psnr) for each in arms.values())
    return (
        "- {network}: {distance}, {iterations} iterations of {batch} patches of {patch} pixels, {optimizer}, rate halved every "
        "{halve_every}, {precision}. {trainings} trainings; {seconds} s (median of those added last). Iterations until the plain "
        "loss's final PSNR on the validation images: ".format(**facts, trainings=trainings)
        + f"{until}."
    )


def main(arguments: list[str] | None = None) -> int:
    """Return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, nargs="+", default=[], help="folders of train_sr.py (default: none, draw what --out has)")
    add("--scores", type=Path, nargs="+", default=[], help="means.csv of evaluate_sr.py on these runs")
    add("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    writable_folder(options.out)

    kept = Rows.read(options.out)
    parts = {network: kept.of(network) for network in kept.networks}
    for title, states in experiments_of(read_runs(options.run)).items():
        parts[title] = with_runs(kept.of(title), title, states, options.scores)
    if not parts:
        raise SystemExit(f"{options.out} has no experiments.csv: expected runs, as in --run runs/*/*.")
    Rows(*(list(itertools.chain(*lists)) for lists in zip(*parts.values(), strict=True))).write(options.out)

    rows = Rows.read(options.out)
    arms = {network: tuned(network, rows.of(network).validation) for network in rows.networks}
    text = "PSNR in dB / SSIM, mean over the seeds; gains over the plain loss in dB, mean (by seed).\n\n"
    text += table(rows, arms) + "\n"
    text += "\n".join(described(facts, arms[facts["network"]]) for facts in rows.experiments) + "\n"
    with atomic(options.out / "table.md") as file:
        file.write(text.encode())
    curves = {
        facts["network"]: (
            {arm: (each.iterations, each.psnr) for arm, each in arms[facts["network"]].items()},
            float(facts["bicubic"]),
        )
        for facts in rows.experiments
    }
    figures.networks(curves, options.out / "convergence.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
