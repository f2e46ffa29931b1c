"""Everything that needs a GPU, in one command: ``python -m tools.gpu_check``. It has never run on a GPU.

It builds and installs the package in place, runs compute-sanitizer's four tools on a short list of cases, runs the tests on the
CUDA kernel, and measures the speed. ``benchmarks/results/<device>-check.md`` lists the result of each part and is updated after
each; the output of a part is in ``<device>-<part>.log``. It needs torch, nvcc, ninja, numpy and pytest, and no network. Parts
can be run one by one: ``python -m tools.gpu_check build tests``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


def commands(out: Path) -> dict[str, list[str]]:
    """The parts, in the order in which they run."""
    python = [sys.executable, "-m"]
    tests = [*python, "pytest", "-q", "-p", "no:cacheprovider"]
    return {
        "build": [*python, "pip", "install", "--no-build-isolation", "--no-deps", "--editable", str(ROOT)],
        **{
            name: ["compute-sanitizer", "--tool", name, "--error-exitcode", "9", *python, "tools.sanitizer_cases"]
            for name in SANITIZERS
        },
        "tests": [*tests, "tests"],
        "large-tests": [*tests, "-m", "large", *map(str, ROOT.glob("tests/**/test_gpu.py"))],
        "benchmark": [*python, "benchmarks", "--device", "cuda", "--out", str(out)],
    }


def environment() -> dict[str, str]:
    major, minor = torch.cuda.get_device_capability()
    return {
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        **os.environ,
        "PSPL_CUDA": "force",
        "PSPL_TEST_BACKENDS": "cuda,reference",
    }


def run(command: list[str], log: Path, environment: dict[str, str], timeout: float) -> tuple[str, str]:
    """Run one command, with its output in ``log``: (result, detail)."""
    if shutil.which(command[0]) is None:
        return "skipped", f"{command[0]} is not on the PATH"
    if command[0] == "compute-sanitizer":
        # With the caching allocator, the tool would see large blocks instead of the bounds of each tensor.
        environment = {**environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=timeout,
                check=False,
            ).returncode
            result = "passed" if code == 0 else f"failed, exit code {code}"
        except subprocess.TimeoutExpired:
            result = f"failed, stopped after {timeout:g} s"
    printed = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return result, printed[-1] if printed else ""


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if no part failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", choices=[[], *commands(RESULTS)], help="the parts to run (default: all)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="output folder (default: benchmarks/results)")
    parser.add_argument("--timeout", type=float, default=900, help="for each part, in seconds (default: %(default)s)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU, and every part of this check needs one. Run pytest instead.")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name()
    stem = machine.slug(name)
    lines = [
        f"# GPU check: {name}",
        "",
        f"{datetime.date.today().isoformat()}, torch {torch.__version__}, Python {sys.version.split()[0]}, compute capability "
        f"{'.'.join(map(str, torch.cuda.get_device_capability()))}",
        "",
        "| part | result | last line of its output |",
        "|---|---|---|",
    ]
    failed = False
    for part, command in commands(out).items():
        if options.parts and part not in options.parts:
            continue
        print(f"{part} ...", flush=True)
        result, detail = run(command, out / f"{stem}-{part}.log", environment(), options.timeout)
        failed |= result.startswith("failed")
        print(f"{part}: {result}. {detail}", flush=True)
        lines.append(f"| {part} | {result} | {detail.replace('|', '/')} |")
        (out / f"{stem}-check.md").write_text("\n".join(lines) + "\n")
        if part == "build" and failed:  # the other parts would check an earlier build
            break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
