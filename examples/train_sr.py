"""Train a super-resolution network with PSPL or without, as in the paper's experiments.

    python examples/train_sr.py --out runs/first                    SRCNN on bundled photographs, a demonstration
    python examples/train_sr.py --model edsr-baseline --data DIV2K --out runs/edsr
    torchrun --nproc-per-node 4 examples/train_sr.py --model edsr --data DIV2K --out runs/edsr-large

--out gets checkpoint.pt, best.pt, metrics.csv, curves.png, attention.png and TensorBoard logs. Ctrl-C saves and stops; --resume
goes on as if nothing had happened.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training import checkpoint
from training.process import Process
from training.settings import add_options, resolve
from training.trainer import Trainer

INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out; its options are remembered")
    add_options(parser)
    options = parser.parse_args(arguments)

    path = Path(options.out) / checkpoint.NAME
    if path.exists() and not options.resume:
        raise SystemExit(f"{options.out} holds a run already: add --resume to go on with it, or choose another --out.")
    state = checkpoint.load(path) if options.resume else None
    settings = resolve(options, state and state["settings"])
    process = Process(settings.device)
    try:
        return train(Trainer(settings, process, state))
    except KeyboardInterrupt:
        print(f"Stopped at once. {path} is the last checkpoint, if there is one.", file=sys.stderr)
        return INTERRUPTED
    finally:
        process.close()


def train(trainer: Trainer) -> int:
    """Run to the end or to Ctrl-C, and draw."""
    s, say = trainer.settings, trainer.process.say
    parameters = sum(p.numel() for p in trainer.network.parameters())
    say(
        f"{s.label()}: {parameters:,} parameters, {len(trainer.training)} images to train on, {len(trainer.validation)} held "
        f"out, batches of {s.batch} HR patches of {s.patch} pixels, {trainer.process.world} process(es) on "
        f"{trainer.process.device.type}"
        + (f", one step is {s.iterations_per_step:g} iterations" if s.loss == "pspl" else "")
    )
    if trainer.finished:
        say(f"The run is at iteration {trainer.iteration} of {s.iterations} already: raise --iterations to go on.")
    try:
        complete = trainer.run()
    finally:
        trainer.close()
    for picture in trainer.draw():
        say(f"Picture: {picture}")
    say(f"Checkpoint: {trainer.out / checkpoint.NAME}, iteration {trainer.iteration}")
    if not complete:
        say(f"Interrupted. To go on: train_sr.py --resume --out {s.out}")
    return 0 if complete else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
