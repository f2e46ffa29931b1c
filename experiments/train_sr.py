"""Train a super-resolution network with PSPL, with the plain loss, or with several losses side by side.

    python experiments/train_sr.py --iterations 1500 --lr 1e-3 --out runs/first            SRCNN x4 on bundled photographs
    python experiments/train_sr.py --data train291 --validate Set5 --arms plain pspl:1/3 --out runs/srcnn
    python experiments/train_sr.py --model edsr --data DIV2K --devices 4 --out runs/edsr

All losses of a run see the same batches and begin with the same weights. --out gets checkpoint.pt, metrics.csv and TensorBoard
logs at each validation. A run that was stopped, by Ctrl-C or otherwise, continues from there by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.files import writable_folder
from training.loop import CHECKPOINT, Run, make_fabric
from training.settings import add_options, number, resolve

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; a run in it is continued")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)")
    parser.add_argument("--devices", type=number(int, 1), default=1, help="GPUs, or processes on a CPU (default: 1)")
    add_options(parser)
    options = parser.parse_args(arguments)
    settings = resolve(options)
    try:
        fabric = make_fabric(settings, options.device, options.devices)
        run = Run(settings, fabric, writable_folder(options.out))
        network = next(iter(run.trained.values())).network
        fabric.print(
            f"{settings.model} x{settings.scale}, {sum(p.numel() for p in network.parameters()):,} parameters, "
            f"{settings.distance}: {', '.join(settings.arms)}. {len(run.training)} images to train on, {len(run.validation)} to "
            f"validate on, batches of {settings.batch} HR patches of {settings.patch} pixels, {fabric.world_size} process(es) "
            f"on {fabric.device.type}, iteration {run.iteration} of {settings.iterations}."
        )
        run.train()
    except KeyboardInterrupt:
        print(
            f"Stopped. {options.out / CHECKPOINT} is the last validation; the same command continues.", file=sys.stderr
        )
        return INTERRUPTED
    seconds = {name: trained.seconds for name, trained in run.trained.items()}
    waited = run.data_seconds / (run.data_seconds + sum(seconds.values()))
    fabric.print(
        f"{options.out / CHECKPOINT}: iteration {run.iteration}. Reading batches took {waited:.1%} of the time."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
