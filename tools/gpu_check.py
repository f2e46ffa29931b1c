"""Everything that needs a GPU, in one command: ``python -m tools.gpu_check --minutes 9``. It has never run on a GPU.

The parts run in the order of what they tell: the build, for this GPU only; results against the float64 oracle; streams and
graphs; speed; training steps; two of compute-sanitizer's tools; the tests; counters of ncu beside the prediction; then the rest.
Each part has a time limit, and all together have ``--minutes``. ``benchmarks/results/<device>-check.md`` says after each part
how it ended, and what was not reached; its output is in ``<device>-<part>.log``. The check needs torch, nvcc, ninja, setuptools,
numpy, pytest, hypothesis, and no network; without compute-sanitizer or ncu, their parts are skipped. Parts can be named:
``python -m tools.gpu_check build speed``.

``--dry-run`` starts every part on the CPU. ``--publish`` runs nothing: it puts the measured rows into README.md and
docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import machine
from tools import gpu_report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PYTHON = (sys.executable, "-m")
PATIENCE_SECONDS = 10
TESTS = ("tests/kernels", "tests/unit", "tests/torch_features")


class Device(NamedTuple):
    name: str
    kind: str  # cuda, or cpu in a dry run
    capability: str


class Part(NamedTuple):
    seconds: float
    command: tuple[str, ...]
    tool: tuple[str, ...] = ()  # what the command runs under on a GPU

    def words(self, device: Device) -> list[str]:
        return [*(self.tool if device.kind == "cuda" else ()), *self.command]


def parts(device: Device, out: Path) -> dict[str, Part]:
    """In the order in which they run."""
    stem = out / machine.slug(device.name)
    on_device = ("--device", device.kind)
    gpu = device.kind == "cuda"
    pytest = (*PYTHON, "pytest", "-q", "-p", "no:cacheprovider", *(() if gpu else ("--collect-only",)))
    cases = (*PYTHON, "tools.gpu_cases", *on_device, "--short")
    where = ("--inplace",) if gpu else ("--build-lib", f"{stem}-build", "--build-temp", f"{stem}-build")
    speed = (*PYTHON, "tools.gpu_speed", *on_device, "--out", f"{stem}.json")
    # One large launch, after two that warm up.
    counters = (
        "ncu",
        "--csv",
        "--log-file",
        f"{stem}-counters.csv",
        "--metrics",
        ",".join(gpu_report.METRICS.values()),
    )
    counters += ("--kernel-name", "regex:strip_forward", "--launch-skip", "2", "--launch-count", "1")

    def sanitizer(name: str) -> Part:
        return Part(60, cases, ("compute-sanitizer", "--tool", name, "--error-exitcode", "9"))

    return {
        "build": Part(240, (sys.executable, "setup.py", "build_ext", *where)),
        "correctness": Part(60, (*PYTHON, "tools.gpu_cases", *on_device)),
        "graphs": Part(90, (*pytest, "tests/cuda/test_gpu.py")),
        "speed": Part(150, (*speed, "losses")),
        "training": Part(60, (*speed, "training")),
        "memcheck": sanitizer("memcheck"),
        "racecheck": sanitizer("racecheck"),
        "tests": Part(180, (*pytest, "--maxfail=20", "-k", device.kind, *TESTS)),
        "counters": Part(60, (*PYTHON, "tools.gpu_cases", *on_device, "--launches"), counters),
        "initcheck": sanitizer("initcheck"),
        "synccheck": sanitizer("synccheck"),
        "large": Part(120, (*pytest, "-m", "large", "tests/cuda/test_gpu.py", "tests/kernels/test_known_failures.py")),
    }


def environment(device: Device) -> dict[str, str]:
    gpu = device.kind == "cuda"
    return {
        **os.environ,
        "TORCH_CUDA_ARCH_LIST": device.capability,
        # A dry run only decides what it would build.
        "PSPL_CUDA": "force" if gpu else "off",
        "PSPL_CPU": os.environ.get("PSPL_CPU", "auto") if gpu else "off",
        "PSPL_TEST_BACKENDS": device.kind,
        "PYTHONUNBUFFERED": "1",  # a log keeps what was printed before an end by force
    }


def run(words: list[str], log: Path, env: dict[str, str], seconds: float) -> str:
    """Run one command in a process group of its own, with its output in ``log``: how it ended."""
    if shutil.which(words[0]) is None:
        return f"skipped: {words[0]} is not on the PATH"
    if words[0] == "compute-sanitizer":
        # With the caching allocator, the tool would see large blocks instead of the bounds of each tensor.
        env = {**env, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"stopped after {seconds:.0f} s"
        except BaseException:
            _end(process)
            raise
    return "passed" if code == 0 else f"failed, exit code {code}"


def _end(process: subprocess.Popen) -> None:
    """An interrupt first, after which pytest still lists its failures. A process that hangs in the driver is left behind."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_SECONDS)
            return


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    told = (line.strip() for line in reversed(lines) if line.strip() and not line.startswith("Tests left out"))
    return next(told, "")


def find_device(dry_run: bool) -> Device:
    if dry_run:
        return Device("dry run", "cpu", "9.0")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU, and every part of this check needs one. Pass --dry-run, or run pytest.")
    # In a process of its own: a context here would keep memory, and others off a GPU in exclusive mode.
    code = "import torch; print(torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), sep='\\n')"
    printed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    name, major, minor = printed.splitlines()[-3:]
    return Device(name, "cuda", f"{major}.{minor}")


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if every part that ran has passed, 1 if one has not, 130 after an interrupt."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="part", help="the parts to run (default: all)")
    add("--minutes", type=float, default=float("inf"), help="for all parts together (default: no limit)")
    add("--out", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    add("--dry-run", action="store_true", help="start every part on the CPU; --out is then required")
    add("--publish", type=Path, metavar="JSON", help="put the rows of this file into README.md and docs/performance.md")
    options = parser.parse_args(arguments)
    if options.publish is not None:
        return gpu_report.publish(options.publish, ROOT)
    if options.dry_run and options.out == RESULTS:
        parser.error("--dry-run needs --out: its results are not of a GPU.")
    device, out = find_device(options.dry_run), options.out.resolve()
    chosen = parts(device, out)
    if unknown := set(options.parts) - set(chosen):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; expected some of {', '.join(chosen)}.")
    out.mkdir(parents=True, exist_ok=True)
    return check(
        device, {name: part for name, part in chosen.items() if name in (options.parts or chosen)}, out, options.minutes
    )


def check(device: Device, chosen: dict[str, Part], out: Path, minutes: float) -> int:
    # A shell starts its background jobs deaf to SIGINT, which the parts would inherit; a handler is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stem, end = machine.slug(device.name), time.monotonic() + 60 * minutes
    results = dict.fromkeys(chosen, ("not reached", 0.0))
    interrupted = False
    for name, part in chosen.items():
        begin, log = time.monotonic(), out / f"{stem}-{name}.log"
        left = end - begin - PATIENCE_SECONDS
        if left < 1:
            break
        print(f"{name} ...", flush=True)
        try:
            result = run(part.words(device), log, environment(device), min(part.seconds, left))
        except KeyboardInterrupt:
            result, interrupted = "interrupted", True
        results[name] = (result, time.monotonic() - begin)
        print(f"{name}: {result}. {last_line(log)}", flush=True)
        logs = {
            name: last_line(out / f"{stem}-{name}.log")
            for name, (result, _) in results.items()
            if result != "not reached"
        }
        (out / f"{stem}-check.md").write_text(report(device, results, logs, out / stem))
        if interrupted or (name == "build" and result != "passed"):  # the other parts would check an earlier build
            break
    ended = [result for result, _ in results.values() if result != "not reached" and not result.startswith("skipped")]
    return 130 if interrupted else int(any(result != "passed" for result in ended) or not ended)


def report(device: Device, results: dict[str, tuple[str, float]], logs: dict[str, str], stem: Path) -> str:
    lines = [
        f"# GPU check: {device.name}",
        "",
        f"{datetime.date.today().isoformat()}, torch {torch.__version__}, Python {sys.version.split()[0]}, compute capability "
        f"{device.capability}.",
        "",
        "| part | result | seconds | last line of its output |",
        "|---|---|---|---|",
    ]
    for name, (result, seconds) in results.items():
        lines.append(f"| {name} | {result} | {seconds:.0f} | {logs.get(name, '').replace('|', '/')} |")
    return "\n".join([*lines, "", gpu_report.prediction(device.capability, stem)])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the report is then complete, too
    sys.exit(main())
