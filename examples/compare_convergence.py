"""The paper's Fig. 4 on this machine: how fast training with PSPL converges, held against the plain loss.

    python examples/compare_convergence.py --model edsr-baseline --data DIV2K --seeds 3 --out results
    python examples/compare_convergence.py --quick --out /tmp/quick                 a minute, to see that it works

All runs of a seed begin with the same weights and see the same batches. They take turns, a stretch of iterations each, so that
what else the machine does hits all. Every run is resumed where it was left; finished ones are only read. Then the loss is timed
beside each network. --out gets convergence.png, .csv and .md, loss_share.csv and .md, and the runs as train_sr.py writes them.
"""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import pspl_cuda
from networks import NETWORKS, build
from networks.bicubic import enlarge
from training import checkpoint, pictures, records
from training.files import atomic
from training.process import Process
from training.settings import RECIPES, add_options, resolve
from training.trainer import Trainer

PSPL = "pspl"
COLOURS = (pictures.BLUE, pictures.ORANGE, pictures.GREEN, "#7b3fa0", "#a02c2c", "#555555")
INTERRUPTED = 130

Curves = dict[str, list[dict[str, np.ndarray]]]


class Arm(NamedTuple):
    """One side of the comparison; ``name`` also names the folders of its runs."""

    name: str
    loss: str
    iterations_per_step: float | None


def arms_of(options: argparse.Namespace) -> list[Arm]:
    """The plain loss first, then PSPL, once for each schedule."""
    schedules = options.schedules or [None]
    names = [PSPL] if len(schedules) == 1 else [f"{PSPL}-step-{unit:g}" for unit in schedules]
    return [
        Arm(options.against, options.against, None),
        *(Arm(name, PSPL, unit) for name, unit in zip(names, schedules, strict=True)),
    ]


def trainer_of(options: argparse.Namespace, arm: Arm, seed: int, process: Process) -> Trainer:
    """The run of one arm and seed, where it was left."""
    out = options.out / "runs" / f"{arm.name}-seed{seed}"
    path = out / checkpoint.NAME
    state = checkpoint.load(path) if path.exists() else None
    chosen = {"loss": arm.loss, "iterations_per_step": arm.iterations_per_step, "seed": seed, "out": str(out)}
    run = argparse.Namespace(**{**vars(options), **chosen})
    if arm.loss != PSPL:
        run.distance = None
    return Trainer(resolve(run, state and state["settings"]), process, state, quiet=True)


def train(options: argparse.Namespace, process: Process) -> bool:
    """Train the runs of all seeds, those of one seed in turns; False after Ctrl-C."""
    for seed in range(options.seeds):
        trainers = [trainer_of(options, arm, seed, process) for arm in arms_of(options)]
        s = trainers[0].settings
        units = " and ".join(f"{t.settings.iterations_per_step:g}" for t in trainers[1:])
        print(
            f"Seed {seed}: {s.model} x{s.scale}, {s.iterations} iterations of {s.batch} patches of {s.patch} pixels, "
            f"{options.against} and PSPL ({options.distance}) with one step = {units} iterations",
            flush=True,
        )
        try:
            with tqdm(total=sum(t.settings.iterations for t in trainers), desc=f"seed {seed}", unit="it") as bar:
                bar.update(sum(t.iteration for t in trainers))
                while not all(t.finished for t in trainers):
                    # Whoever is behind; so a resumed comparison takes turns again.
                    trainer = min(trainers, key=lambda t: t.iteration)
                    before = trainer.iteration
                    stretch = trainer.settings.validate_every
                    complete = trainer.run((before // stretch + 1) * stretch)
                    bar.update(trainer.iteration - before)
                    if not complete:
                        return False
        finally:
            for trainer in trainers:
                trainer.close()
        for trainer in trainers:
            trainer.draw()
    return True


def read(options: argparse.Namespace) -> Curves:
    """The validated rows of every run, by arm; all have the same iterations."""
    curves: Curves = {}
    for arm in arms_of(options):
        for seed in range(options.seeds):
            metrics = records.read(options.out / "runs" / f"{arm.name}-seed{seed}" / records.NAME)
            validated = np.isfinite(metrics["validation_psnr"])
            curves.setdefault(arm.name, []).append({name: column[validated] for name, column in metrics.items()})
    return curves


def write_csv(rows: list[dict], path: Path) -> None:
    """``rows`` as csv."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode())


def as_rows(curves: Curves) -> list[dict]:
    """One row per arm, seed and validation."""
    names = ("iteration", "seconds", "validation_psnr", "validation_ssim")
    return [
        {"loss": arm, "seed": seed, **{name: f"{run[name][index]:.6g}" for name in names}}
        for arm, runs in curves.items()
        for seed, run in enumerate(runs)
        for index in range(len(run["iteration"]))
    ]


def psnrs(curves: Curves) -> dict[str, np.ndarray]:
    """``[seeds, validations]`` of each arm."""
    return {arm: np.array([run["validation_psnr"] for run in runs]) for arm, runs in curves.items()}


def summary(curves: Curves) -> str:
    """What came out, in Markdown: PSNR during training, and when each arm reached what the plain loss ended with."""
    psnr = psnrs(curves)
    plain, *others = curves
    iterations = curves[plain][0]["iteration"]
    lines = [
        "Mean PSNR of the held-out images in dB, mean and standard deviation over the seeds; in brackets the difference from "
        f"{plain}, seed by seed.",
        "",
        f"| iteration | {' | '.join(curves)} |",
        f"|---|{'---|' * len(curves)}",
    ]
    for index in sorted({round(fraction * (len(iterations) - 1)) for fraction in (0, 0.07, 0.14, 0.25, 0.5, 0.75, 1)}):
        cells = [f"{psnr[plain][:, index].mean():.2f} ± {psnr[plain][:, index].std():.2f}"]
        for arm in others:
            values = psnr[arm][:, index]
            differences = ", ".join(f"{d:+.2f}" for d in values - psnr[plain][:, index])
            cells.append(f"{values.mean():.2f} ± {values.std():.2f} ({differences})")
        lines.append(f"| {iterations[index]:.0f} | {' | '.join(cells)} |")
    lines += [
        "",
        f"When each seed first reached the PSNR that its {plain} run ended with, and its seconds of training:",
        "",
    ]
    lines += ["| seed | PSNR | " + " | ".join(curves) + " |", f"|---|---|{'---|' * len(curves)}"]
    for seed in range(len(curves[plain])):
        target = psnr[plain][seed, -1]
        cells = []
        for runs in curves.values():
            run = runs[seed]
            reached = np.flatnonzero(run["validation_psnr"] >= target)
            cells.append(
                f"iteration {run['iteration'][reached[0]]:.0f}, {run['seconds'][reached[0]]:.0f} s of {run['seconds'][-1]:.0f}"
                if len(reached)
                else f"not in {run['seconds'][-1]:.0f} s; ended at {run['validation_psnr'][-1]:.2f} dB"
            )
        lines.append(f"| {seed} | {target:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(curves: Curves, title: str, bicubic: float, path: Path) -> None:
    """PSNR against iterations and against seconds, and its difference: each run thin, the mean of the seeds thick, their range
    shaded."""
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, 3)
    psnr = psnrs(curves)
    plain, *others = curves
    colours = dict(zip(curves, COLOURS * len(curves), strict=False))
    for axis, x in zip(axes, ("iteration", "seconds"), strict=False):
        # Each run has its own seconds; one that has ended keeps its PSNR.
        begin = max(run[x][0] for runs in curves.values() for run in runs)
        end = max(run[x][-1] for runs in curves.values() for run in runs)
        common = np.linspace(begin, end, 200)
        for arm, runs in curves.items():
            for run in runs:
                axis.plot(run[x], run["validation_psnr"], color=colours[arm], alpha=0.35, linewidth=0.7)
            lines = np.array([np.interp(common, run[x], run["validation_psnr"]) for run in runs])
            _band(axis, common, lines, colours[arm], f"{arm}, mean of {len(runs)} seeds")
        axis.axhline(bicubic, color=pictures.GREY, linestyle="--", label="bicubic")
        axis.set_xlabel("iteration" if x == "iteration" else "seconds of training, without validation")
        axis.set_ylabel("PSNR of held-out images, dB (luma)")
        best = max(lines.max() for lines in psnr.values())
        axis.set_ylim(min(bicubic, np.median(psnr[plain])) - 2.5, max(best, bicubic) + 0.4)
        axis.legend(loc="lower right")
    for arm in others:
        difference = psnr[arm] - psnr[plain]
        iterations = curves[plain][0]["iteration"]
        for line in difference:
            axes[2].plot(iterations, line, color=colours[arm], alpha=0.35, linewidth=0.7)
        _band(axes[2], iterations, difference, colours[arm], f"{arm} - {plain}")
    axes[2].axhline(0, color="black", linewidth=0.8)
    axes[2].set_yscale("symlog", linthresh=0.2)
    axes[2].set_xlabel("iteration")
    axes[2].set_ylabel("difference of PSNR in dB, linear within ±0.2")
    axes[2].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    pictures.save(figure, path)


def _band(axis: Axes, x: np.ndarray, lines: np.ndarray, colour: str, label: str) -> None:
    axis.fill_between(x, lines.min(0), lines.max(0), color=colour, alpha=0.15, linewidth=0)
    axis.plot(x, lines.mean(0), color=colour, linewidth=2, label=label)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """One call, until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def loss_share(model: str, patch: int, batch: int, repeats: int, device: torch.device) -> list[dict]:
    """How much of a training step at x2 the loss takes: rows for plain L1, fused PSPL and its reference.

    The network's part is forward, backward from a given gradient, and Adam; the loss's part is its forward and backward. All
    parts take turns, and medians are compared.
    """
    scale = 2
    network = build(model, scale).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    lr = torch.rand(batch, network.channels, patch // scale, patch // scale, device=device)
    sr = enlarge(lr, scale).requires_grad_()
    hr = torch.rand_like(sr).detach()

    def step_without_loss() -> None:
        outputs = network(lr)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, [torch.full_like(output, 1e-6) for output in outputs])
        optimizer.step()

    def with_backward(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def call() -> None:
            sr.grad = None
            loss(sr, hr).backward()

        return call

    fused = pspl_cuda.backend_info()[device.type]["available"]
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"nn.L1Loss": nn.L1Loss()}
    if fused:
        losses["PSPL, fused"] = lambda sr, hr: pspl_cuda.pspl_loss(sr, hr, 1.0, backend=device.type)
    losses["PSPL, reference"] = lambda sr, hr: pspl_cuda.pspl_loss(sr, hr, 1.0, backend="reference")
    calls = {"network": step_without_loss, **{name: with_backward(loss) for name, loss in losses.items()}}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds_of(call, device))
    medians = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    return [
        {
            "model": model,
            "batch": batch,
            "patch": patch,
            "channels": network.channels,
            "loss": name,
            "network_ms": f"{medians['network']:.1f}",
            "loss_ms": f"{medians[name]:.2f}",
            "share": f"{medians[name] / (medians['network'] + medians[name]):.4f}",
        }
        for name in losses
    ]


def share_table(rows: list[dict], device: torch.device) -> str:
    """Markdown, one line per network."""
    names = list(dict.fromkeys(row["loss"] for row in rows))
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    lines = [
        "# The loss's share of a training step",
        "",
        f"x2, float32, {device.type}{threads}, torch {torch.__version__}; medians of one interleaved run. The network's part is "
        "forward, backward and Adam; a share is loss / (network + loss).",
        "",
        f"| network | batch x channels x patch | network, ms | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["loss"]: row for row in rows if row["model"] == model}
        first = next(iter(mine.values()))
        shares = " | ".join(f"{float(mine[name]['share']):.1%} ({mine[name]['loss_ms']} ms)" for name in names)
        size = f"{first['batch']} x {first['channels']} x {first['patch']}²"
        lines.append(f"| {model} | {size} | {first['network_ms']} | {shares} |")
    return "\n".join(lines) + "\n"


def measure_shares(options: argparse.Namespace, device: torch.device) -> None:
    """loss_share.csv and loss_share.md, for every network with its recipe's patch."""
    rows: list[dict] = []
    for model in tqdm(NETWORKS, desc="timing the losses", unit="network"):
        recipe = RECIPES[model]
        patch = (recipe.patch * 2 if recipe.lr_patch else recipe.patch) // 2 * 2
        if options.quick:
            patch = 16
        # The share hardly depends on the batch, the time for this table does.
        rows += loss_share(model, patch, options.share_batch, options.share_repeats, device)
    write_csv(rows, options.out / "loss_share.csv")
    text = share_table(rows, device)
    with atomic(options.out / "loss_share.md") as file:
        file.write(text.encode())
    print(text)


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, conflict_handler="resolve"
    )
    add_options(parser)
    add = parser.add_argument
    add(
        "--iterations-per-step",
        dest="schedules",
        type=float,
        nargs="+",
        help="of PSPL; several: one run each. The paper's training has 300 steps (default: as train_sr.py)",
    )
    add("--out", type=Path, required=True, help="folder of the results; runs in it are resumed")
    add("--seeds", type=int, default=3, help="runs of each loss (default: %(default)s)")
    add("--against", choices=("l1", "l2", "charbonnier"), default="l1", help="the plain loss (default: %(default)s)")
    add("--quick", action="store_true", help="two seeds, a few iterations of small patches: only to see that it works")
    add(
        "--share-batch",
        type=int,
        default=2,
        help="images per step in the table of the loss's share (default: %(default)s)",
    )
    add("--share-repeats", type=int, default=7, help="steps timed for it (default: %(default)s)")
    add("--no-share", action="store_true", help="leave that table out")
    options = parser.parse_args(arguments)
    if options.loss is not None or options.seed is not None:
        parser.error("--loss and --seed are chosen by the comparison: see --against and --seeds")
    if options.quick:
        quick = {
            "seeds": 2,
            "iterations": 4,
            "batch": 2,
            "patch": 16,
            "validate_every": 2,
            "share_batch": 1,
            "share_repeats": 2,
        }
        for name, value in quick.items():
            setattr(options, name, value)
    if options.distance is None:
        options.distance = options.against  # the same distance, weighted or not

    process = Process(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if process.distributed:
        raise SystemExit("compare_convergence.py runs in one process; start it without torchrun.")
    if not train(options, process):
        print(
            f"Interrupted; the same command goes on: {shlex.join(['compare_convergence.py', *(arguments or sys.argv[1:])])}"
        )
        return INTERRUPTED
    curves = read(options)
    write_csv(as_rows(curves), options.out / "convergence.csv")
    plain, *others = [trainer_of(options, arm, 0, process) for arm in arms_of(options)]
    s = plain.settings
    title = (
        f"{s.model} x{s.scale}, data {s.data}, batch {s.batch}, HR patch {s.patch}, Adam {s.lr:g}; PSPL ({options.distance}), "
        f"one step = {' or '.join(f'{t.settings.iterations_per_step:g}' for t in others)} iterations"
    )
    draw(curves, title, plain.bicubic[0], options.out / "convergence.png")
    for trainer in (plain, *others):
        trainer.close()
    text = summary(curves)
    with atomic(options.out / "convergence.md") as file:
        file.write(text.encode())
    print(text)
    if not options.no_share:
        measure_shares(options, process.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
