"""Tables and figures of runs: the paper's Table 1, Fig. 3 and Fig. 4.

    python experiments/evaluate_sr.py --run runs/srcnn-seed* --data Set5 Set14 BSD100 --out runs/srcnn-scores
    python experiments/report_sr.py --run runs/srcnn-seed* --scores runs/srcnn-scores/means.csv --out results

The runs differ in their seeds and arms only. --out gets convergence.csv and .png (PSNR of the validation images), attention.png
of one arm, and with --scores table.csv and .md: PSNR and SSIM of each dataset, mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training import data, figures, images
from training.files import atomic, writable_folder
from training.loop import CHECKPOINT, load_checkpoint, write_csv
from training.losses import Arm
from training.settings import DECISIVE, Settings


class Score(NamedTuple):
    """Of one arm and seed on one dataset."""

    psnr: float
    ssim: float


def read_runs(folders: list[Path]) -> list[dict]:
    """The checkpoints of ``folders``.

    Raises:
        SystemExit: a run that can't be read or did not end.
    """
    states = [load_checkpoint(folder / CHECKPOINT) | {"folder": folder} for folder in folders]
    for state in states:
        if state["iteration"] < state["settings"]["iterations"]:
            raise SystemExit(
                f"{state['folder']} is at iteration {state['iteration']} of {state['settings']['iterations']}: let it end."
            )
    return states


def by_arm_and_seed(states: list[dict], arms: list[str] | None = None) -> dict[tuple[str, int], dict]:
    """Runs that belong together; of ``arms`` only, in this order. Runs of one seed may have different arms.

    Raises:
        SystemExit: runs that differ in more than the seed and the arms, or lack an arm of another seed.
    """
    found: dict[tuple[str, int], dict] = {}
    first = comparable(states[0]["settings"])
    for state in states:
        for name, value in comparable(state["settings"]).items():
            if value != first[name]:
                raise SystemExit(
                    f"{state['folder']} has {name} {state['settings'].get(name)}, {states[0]['folder']} has "
                    f"{states[0]['settings'].get(name)}: expected runs that differ in the seed or the arms."
                )
        for arm in state["settings"]["arms"]:
            if arms and arm not in arms:
                continue
            key = (arm, state["settings"]["seed"])
            if key in found:
                raise SystemExit(
                    f"{found[key]['folder']} and {state['folder']} both have arm {arm} of seed {key[1]}: expected different ones."
                )
            found[key] = state
    arms = arms or list(dict.fromkeys(arm for arm, _ in found))
    seeds = sorted({seed for _, seed in found})
    missing = [f"{arm} of seed {seed}" for arm in sorted(arms) for seed in seeds if (arm, seed) not in found]
    if missing:
        raise SystemExit(f"The runs lack {', '.join(missing)}: expected every arm with every seed.")
    return {(arm, seed): found[arm, seed] for arm in arms for seed in seeds}


def comparable(settings: dict) -> dict:
    """What runs must share to stand in one row; of the run that they begin with, the same."""
    shared = {name: settings.get(name) for name in DECISIVE if name not in ("seed", "arms")}
    if shared["pretrained"]:
        run, arm = shared["pretrained"]
        shared["pretrained"] = [comparable(load_checkpoint(Path(run) / CHECKPOINT)["settings"]), arm]
    return shared


def settings_of(state: dict) -> Settings:
    """The settings of a run, which an older version may have made."""
    known = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**{name: value for name, value in state["settings"].items() if name in known})


def bicubic_psnr(settings: Settings) -> float:
    """Of bicubic on the validation images, mean."""
    scale = settings.scale
    pairs = data.validation_pairs(settings)
    enlarged = [images.as_result(images.enlarge(pair.lr, scale)).y for pair in pairs]
    return float(
        np.mean([images.psnr(sr, images.as_result(pair.hr).y, scale) for sr, pair in zip(enlarged, pairs, strict=True)])
    )


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


def psnrs(runs: dict[tuple[str, int], dict]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The validated iterations, and the PSNR ``[seeds, points]`` of each arm."""
    curves: dict[str, list[dict[int, float]]] = {}
    for (arm, _), state in runs.items():
        rows = [row for row in state["rows"] if "validation_psnr" in row and row["arm"] == arm]
        curves.setdefault(arm, []).append({row["iteration"]: row["validation_psnr"] for row in rows})
    common = sorted(set.intersection(*(set(curve) for lines in curves.values() for curve in lines)))
    return np.array(common), {
        arm: np.array([[curve[iteration] for iteration in common] for curve in lines]) for arm, lines in curves.items()
    }


def iterations_until(psnr: float, iterations: np.ndarray, line: np.ndarray) -> float:
    """Where the curve ``line`` first reaches ``psnr``, between two validations by a straight line; NaN if it never does."""
    reached = np.flatnonzero(line >= psnr)
    if not len(reached):
        return math.nan
    after = reached[0]
    if after == 0:
        return float(iterations[0])
    return float(np.interp(psnr, line[after - 1 : after + 1], iterations[after - 1 : after + 1]))


def read_scores(paths: list[Path], runs: dict[tuple[str, int], dict]) -> dict[str, dict[str, list[Score]]]:
    """Dataset on which ``runs`` were evaluated -> arm, or ``bicubic`` -> a score per seed, in the order of ``runs``.

    Raises:
        SystemExit: the scores are not those of these runs.
    """
    rows = [row for path in paths for row in read_csv(path)]
    scale = next(iter(runs.values()))["settings"]["scale"]
    missing = [
        f"{arm} of {state['folder']}"
        for (arm, _), state in runs.items()
        if not any(row["arm"] == arm and _is_of(row, state) for row in rows)
    ]
    if missing:
        raise SystemExit(f"{', '.join(map(str, paths))}: no scores of {', '.join(missing)}; expected them.")
    scores: dict[str, dict[str, list[Score]]] = {}
    evaluated = [row for row in rows if any(_is_of(row, state) for state in runs.values())]
    for dataset in dict.fromkeys(row["dataset"] for row in evaluated):
        mine = scores[dataset] = {}
        sought = [("bicubic", "", None)] + [(arm, str(seed), state) for (arm, seed), state in runs.items()]
        for arm, seed, state in sought:
            found = [
                row
                for row in rows
                if (row["dataset"], int(row["scale"])) == (dataset, scale)
                and (row["arm"], row["seed"]) == ("" if state is None else arm, seed)
                and (state is None or _is_of(row, state))
            ]
            values = {(row["psnr"], row["ssim"], row["images"], row["iterations"]) for row in found}
            if len(values) != 1 or (state and int(found[0]["iterations"]) != state["iteration"]):
                whose = f"{arm} of {state['folder']}" if state else arm
                raise SystemExit(
                    f"{', '.join(map(str, paths))}: {len(values)} scores of {whose} on {dataset}; expected one, of the run "
                    "as it is now."
                )
            mine.setdefault(arm, []).append(Score(float(found[0]["psnr"]), float(found[0]["ssim"])))
    return scores


def _is_of(row: dict, state: dict) -> bool:
    return bool(row["run"]) and Path(row["run"]).resolve() == state["folder"].resolve()


def table_rows(scores: dict[str, dict[str, list[Score]]], plain: str) -> list[dict]:
    """One row per dataset and arm: mean and standard deviation over the seeds, and the gain over ``plain`` by seed."""
    return [
        {"dataset": dataset, "arm": arm, **_stats(mine, by_arm[plain] if arm not in (plain, "bicubic") else [])}
        for dataset, by_arm in scores.items()
        for arm, mine in by_arm.items()
    ]


def _stats(scores: list[Score], plain: list[Score]) -> dict:
    """Of the seeds' scores; ``plain`` has the same seeds in the same order."""
    found: dict = {"seeds": len(scores)}
    for name in ("psnr", "ssim"):
        values = np.array([getattr(score, name) for score in scores])
        found[name] = values.mean()
        found[f"{name}_std"] = values.std(ddof=1) if len(values) > 1 else math.nan
        gains = values - [getattr(score, name) for score in plain] if plain else np.array([])
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
        help="means.csv of evaluate_sr.py on these runs, all together or one by one",
    )
    add("--arms", nargs="+", help="only these, compared with the first (default: all)")
    add("--attention", metavar="ARM", help="arm whose attention is drawn (default: the first of kind pspl)")
    add("--out", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)
    writable_folder(options.out)

    runs = by_arm_and_seed(read_runs(options.run), options.arms)
    first = next(iter(runs.values()))
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    settings = settings_of(first)
    seeds = len(runs) // len(arms)
    described = (
        f"{settings.model} x{settings.scale}, {settings.distance}, {settings.iterations} iterations of {settings.batch} patches "
        f"of {settings.patch} pixels, {settings.optimizer} {settings.lr:g}, {seeds} seed{'s' * (seeds > 1)}"
    )
    iterations, psnr = psnrs(runs)
    write_csv(
        [
            {"arm": arm, "seed": seed, "iteration": iteration, "psnr": f"{value:.4f}"}
            for arm, lines in psnr.items()
            for seed, line in zip([seed for other, seed in runs if other == arm], lines, strict=True)
            for iteration, value in zip(iterations, line, strict=True)
        ],
        options.out / "convergence.csv",
    )
    figures.convergence(iterations, psnr, bicubic_psnr(settings), described, options.out / "convergence.png")
    scheduled = [arm for arm in arms if Arm.parse(arm).kind == "pspl"]
    if scheduled:
        arm = options.attention or scheduled[0]
        states = [state for (other, _), state in runs.items() if other == arm]
        if not states:
            raise SystemExit(f"--attention {arm}: expected one of {', '.join(scheduled)}.")
        title = f"{settings.model} x{settings.scale}, {arm}, {settings.iterations} iterations"
        snapshots = [snapshot for snapshot in states[0]["snapshots"] if snapshot["arm"] == arm]
        if "probe" in states[0]:  # a run of an older version has kept another part of the image
            figures.attention(snapshots, states[0]["probe"], title, options.out / "attention.png")
    if options.scores:
        rows = table_rows(read_scores(options.scores, runs), arms[0])
        write_csv(rows, options.out / "table.csv")
        end = psnr[arms[0]].mean(0)[-1]
        until = ", ".join(f"{arm} {iterations_until(end, iterations, psnr[arm].mean(0)):.0f}" for arm in arms)
        text = (
            f"{described}; PSNR in dB, SSIM, gains over {arms[0]}.\n\n{table(rows)}\n"
            f"Iterations until the PSNR on the validation images is that of {arms[0]} at the end: {until}.\n"
        )
        with atomic(options.out / "table.md") as file:
            file.write(text.encode())
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
