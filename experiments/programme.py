"""Train everything that README.md reports, in order of importance: what was begun is continued, what is done is skipped.

    OMP_NUM_THREADS=1 python experiments/programme.py --data DIR --runs runs          DIR holds train291 and Set5
    python experiments/programme.py --data DIR --runs runs --list                     how far each run is

Runs are independent processes, ``--jobs`` at a time; each writes a log beside its checkpoint. Ctrl-C, or the end of the
machine, loses no more than what was trained since the last validation.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
# Without these glibc gives the memory of each batch back to the system, which costs SRCNN two thirds of its time.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
}


class Job(NamedTuple):
    """A run of train_sr.py. Its folder is ``name/seed``; ``start`` names the run whose plain arm it begins with."""

    name: str
    seed: int
    options: str
    start: str = ""


SRCNN = "--model srcnn-915 --iterations 2400 --batch 8 --halve-every 600 --validate-every 600 --log-every 40"
EDSR = "--model edsr-baseline --batch 4 --patch 64 --log-every 20"
FROM_SCRATCH = f"{EDSR} --iterations 1200 --halve-every 300 --validate-every 200"
# bfloat16 makes VDSR and DRRN 3.6 times as fast on a CPU with AMX.
VDSR = (
    "--model vdsr --batch 4 --patch 41 --iterations 2000 --halve-every 500 --validate-every 250 --log-every 50"
    " --precision bf16-mixed"
)
LAPSRN = "--model lapsrn --batch 4 --patch 64 --iterations 1000 --halve-every 250 --validate-every 200 --log-every 20"
DRRN = (
    "--model drrn --batch 2 --patch 31 --iterations 1000 --halve-every 250 --validate-every 250 --log-every 20"
    " --precision bf16-mixed"
)
PRETRAINED = f"{EDSR} --iterations 800 --halve-every 200 --validate-every 100"
# What takes PSPL apart; and the schedule from the paper's start.
CONTROLS = "plain pspl pspl:1/3:0.8 scale:1/3:0.8 warmup:1/3"
ARMS = f"{CONTROLS} pspl:1/3"
FEW = "plain pspl:1/3:0.8 scale:1/3:0.8"
BOTH_STARTS = "plain pspl:1/3 pspl:1/3:0.8"
OTHER_STARTS = "pspl:1/3:1 pspl:1/3:2 pspl:1/3:similarity"

JOBS = [
    # The five networks.
    *[Job("srcnn-1e-3", seed, f"{SRCNN} --lr 1e-3 --arms {ARMS}") for seed in (0, 1, 2)],
    *[Job("edsr-4e-4", seed, f"{FROM_SCRATCH} --lr 4e-4 --arms {ARMS}") for seed in (0, 1)],
    *[Job("vdsr-2e-4", seed, f"{VDSR} --lr 2e-4 --arms {ARMS}") for seed in (0, 1)],
    *[Job("lapsrn-1e-3", seed, f"{LAPSRN} --lr 1e-3 --arms {ARMS}") for seed in (0, 1)],
    *[Job("drrn-1e-3", seed, f"{DRRN} --lr 1e-3 --arms {ARMS}") for seed in (0, 1)],
    # Other learning rates: each loss is compared at its own best one.
    *[Job("srcnn-2e-3", seed, f"{SRCNN} --lr 2e-3 --arms {ARMS}") for seed in (0, 1, 2)],
    *[Job("lapsrn-2e-3", seed, f"{LAPSRN} --lr 2e-3 --arms {FEW} pspl:1/3") for seed in (0, 1)],
    # In practice a network is trained already.
    *[Job("edsr-fine", seed, f"{PRETRAINED} --lr 1e-4 --arms {FEW}", start="edsr-4e-4") for seed in (0, 1)],
    *[Job("edsr-8e-4", seed, f"{FROM_SCRATCH} --lr 8e-4 --arms {FEW}") for seed in (0, 1)],
    *[Job("vdsr-4e-4", seed, f"{VDSR} --lr 4e-4 --arms {ARMS}") for seed in (0, 1)],
    *[Job("drrn-2e-3", seed, f"{DRRN} --lr 2e-3 --arms {FEW} pspl:1/3") for seed in (0, 1)],
    # Other starts of the schedule.
    *[Job("srcnn-starts", seed, f"{SRCNN} --lr 1e-3 --arms {OTHER_STARTS}") for seed in (0, 1, 2)],
    # Near the highest rate that VDSR stands, and what saves it.
    *[Job("vdsr-1e-3", seed, f"{VDSR} --lr 1e-3 --arms {BOTH_STARTS}") for seed in (0, 1)],
    *[Job("vdsr-1e-3-clip", seed, f"{VDSR} --lr 1e-3 --clip 0.4 --arms {BOTH_STARTS}") for seed in (0, 1)],
    *[Job("drrn-2e-3-clip", seed, f"{DRRN} --lr 2e-3 --clip 0.05 --arms {BOTH_STARTS}") for seed in (0, 1)],
    # The paper's Fig. 4.
    *[Job("edsr-x2", seed, f"{FROM_SCRATCH} --scale 2 --lr 4e-4 --arms plain pspl pspl:1/3:0.8") for seed in (0, 1)],
]


def _command(job: Job, data: Path, runs: Path) -> list[str]:
    start = ["--pretrained", str(runs / job.start / str(job.seed)), "plain"] if job.start else []
    folders = ["--data", str(data / "train291"), "--validate", str(data / "Set5")]
    out = ["--out", str(runs / job.name / str(job.seed)), "--seed", str(job.seed), "--channels-last"]
    return [sys.executable, str(HERE / "train_sr.py"), *job.options.split(), *folders, *start, *out]


def _train(job: Job, data: Path, runs: Path) -> None:
    folder = runs / job.name / str(job.seed)
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another programme.py trains it
            return
        print(f"{folder} ...", flush=True)
        finished = subprocess.run(
            _command(job, data, runs), stdout=log, stderr=log, env={**os.environ, **ENVIRONMENT}, check=False
        )
    if finished.returncode == 0:
        (folder / "done").touch()
    print(f"{folder} {'is done' if finished.returncode == 0 else 'failed, see its log.txt'}", flush=True)


def _state(folder: Path) -> str:
    if (folder / "done").exists():
        return "done"
    if not (folder / "metrics.csv").exists():
        return "not begun"
    return f"iteration {(folder / 'metrics.csv').read_text().splitlines()[-1].partition(',')[0]}"


def main(arguments: list[str] | None = None) -> None:
    """Train, or list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each (default: 2)")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    if options.list:
        for job in JOBS:
            print(f"{job.name}/{job.seed}: {_state(options.runs / job.name / str(job.seed))}")
        return
    os.nice(19 - os.nice(0))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: _train(job, options.data, options.runs), JOBS))


if __name__ == "__main__":
    main()
