"""Everything that needs a GPU, in one command that ends within nine minutes: ``python benchmarks/gpu_check.py``.

It builds and installs the package, runs the test suite on the CUDA kernel, runs compute-sanitizer's four tools over a short list
of cases, measures the speed, and writes ``benchmarks/results/<device>.md`` with versions, date and every verdict, and
``<device>.json`` with the measured rows. Results are written after each part, so that a run that is cut leaves what it had. It
needs a CUDA image with torch, nvcc, ninja, numpy and pytest, and no network. What is missing is said, and the rest is done.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TOTAL_SECONDS = 530
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# Small sizes that take every kernel: strips and windows cut by borders, all windows, paddings, distances, dtypes and layouts.
SANITIZER_CASES = """
import torch, pspl_cuda
torch.manual_seed(0)
def case(shape, dtype=torch.float32, layout=torch.contiguous_format, other=None, **keywords):
    sr, hr = (torch.rand(shape, device="cuda").to(kind).contiguous(memory_format=layout) for kind in (dtype, other or dtype))
    sr.requires_grad_()
    loss = pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cuda", **keywords)
    loss = loss[0] if isinstance(loss, tuple) else loss
    loss.sum().backward()
    assert torch.isfinite(sr.grad).all()
case((2, 3, 70, 130))
case((2, 3, 33, 65), return_stats=True)
case((2, 3, 20, 66), layout=torch.channels_last)
case((1, 1, 1, 1))
case((1, 2, 3, 7), padding="reflect")
case((1, 2, 40, 41), padding="replicate", distance="charbonnier", reduction="none")
for window in (1, 3, 5, 7, 9, 13):
    case((1, 2, 18, 35), window_size=window, distance="l2")
case((2, 3, 30, 34), dtype=torch.float16)
case((2, 3, 30, 34), dtype=torch.bfloat16, distance="l2")
case((2, 3, 30, 33), dtype=torch.bfloat16, other=torch.float32)
case((1, 3, 30, 33), dtype=torch.float64)
step = torch.tensor(1.0, device="cuda")
pspl_cuda.attention_map(torch.rand(1, 3, 40, 40, device="cuda"), torch.rand(1, 3, 40, 40, device="cuda"), step)
torch.cuda.synchronize()
print("cases done")
"""


def slug(text: str) -> str:
    """``text`` as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def speed_command(seconds_left: float, out: Path) -> list[str]:
    """The benchmark, measuring for a part of the seconds that are left: checks, compilation and memory take their time too."""
    seconds = min(100, max(20, (seconds_left - 60) / 2))
    return [sys.executable, "-m", "benchmarks", "--device", "cuda", "--seconds", f"{seconds:.0f}", "--out", str(out)]


class Verdict(NamedTuple):
    """One line of the report."""

    part: str
    outcome: str  # "passed", "failed", "skipped", "cut"
    detail: str


class Check:
    """Runs the parts, within one deadline, and keeps the report on disk up to date."""

    def __init__(self, out: Path, seconds: float):
        self._out = out
        self._deadline = time.monotonic() + seconds
        self._verdicts: list[Verdict] = []
        self._speed = ""
        self._stem = "no-gpu"
        self._head = [f"Date: {datetime.date.today().isoformat()}", f"Python: {sys.version.split()[0]}"]

    def left(self) -> float:
        return self._deadline - time.monotonic()

    def failed(self) -> bool:
        return any(verdict.outcome == "failed" for verdict in self._verdicts)

    def say(self, part: str, outcome: str, detail: str = "") -> None:
        self._verdicts.append(Verdict(part, outcome, detail))
        print(f"[{self.left():4.0f} s left] {part}: {outcome}. {detail}", flush=True)
        self.write()

    def write(self) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        lines = [f"# GPU check: {self._stem}", "", *(f"- {line}" for line in self._head), ""]
        lines += ["| part | outcome | detail |", "|---|---|---|"]
        lines += [f"| {v.part} | {v.outcome} | {v.detail.replace('|', '/')} |" for v in self._verdicts]
        (self._out / f"{self._stem}-check.md").write_text("\n".join([*lines, "", self._speed]))

    def run(self, part: str, command: list[str], limit: float, environment: dict | None = None) -> str | None:
        """Run one command; its output if it passed, else None. Either way there is a verdict."""
        limit = min(limit, self.left())
        if limit < 5:
            self.say(part, "cut", "no time left")
            return None
        try:
            result = subprocess.run(
                command,
                cwd=self._out,
                env={**os.environ, **(environment or {})},
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""  # bytes, even where text was asked for
            printed = printed if isinstance(printed, str) else printed.decode(errors="replace")
            self.say(part, "cut", f"after {limit:.0f} s: {' '.join(printed.strip().splitlines()[-1:])}")
            return None
        printed = result.stdout + result.stderr
        (self._out / f"{self._stem}-{slug(part)}.log").write_text(printed)
        last = next((line for line in reversed(printed.strip().splitlines()) if line.strip()), "")
        if result.returncode != 0:
            self.say(part, "failed", f"exit code {result.returncode}: {last.strip()}")
            return None
        self.say(part, "passed", last.strip())
        return printed

    # ---------------------------------------------------------------- parts

    def look_around(self) -> bool:
        """What is here; True if there is a GPU that torch sees."""
        try:
            import torch
        except ImportError as error:
            self.say("torch", "failed", f"it can't be imported: {error}")
            return False
        self._head.append(f"torch: {torch.__version__}")
        nvcc = shutil.which("nvcc")
        if nvcc:
            release = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
            self._head.append(f"nvcc: {next(iter(re.findall(r'release ([0-9.]+)', release)), 'unknown')}")
        else:
            self.say("nvcc", "skipped", "nvcc is not on the PATH; set CUDA_HOME, or the CUDA kernel can't be built")
        if not torch.cuda.is_available():
            self.say("GPU", "skipped", "torch sees none: only the build is checked")
            return False
        name = torch.cuda.get_device_name()
        major, minor = torch.cuda.get_device_capability()
        self._head.append(f"GPU: {name}, sm_{major}{minor}, {torch.cuda.device_count()} of them")
        driver = shutil.which("nvidia-smi")
        if driver:
            query = [driver, "--query-gpu=driver_version", "--format=csv,noheader"]
            self._head.append(
                f"driver: {subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()[0]}"
            )
        self._stem = slug(name)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
        return True

    def build(self, force: bool) -> bool:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--no-build-isolation",
            "--no-deps",
            "--force-reinstall",
            str(ROOT),
        ]
        return self.run("build", command, 240, {"PSPL_CUDA": "force"} if force else None) is not None

    def tests(self) -> None:
        tests = str(ROOT / "tests")
        command = [sys.executable, "-m", "pytest", tests, "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        # The large test of the GPU too, which a plain pytest leaves out; the CPU's would take all the time there is.
        command += [
            "-m",
            "large or not large",
            "--deselect",
            f"{tests}/test_known_failures.py::test_fused_ssim_index_overflow",
        ]
        command += ["--ignore", f"{tests}/test_cuda_compile.py", "--ignore", f"{tests}/test_emulation.py"]
        self.run("tests, cuda backend", command, 260, {"PSPL_TEST_BACKENDS": "cuda,reference"})

    def sanitizers(self) -> None:
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            self.say("compute-sanitizer", "skipped", "it is not on the PATH")
            return
        for name in SANITIZERS:
            command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-c", SANITIZER_CASES]
            # Torch's allocator hands out parts of blocks: without it, every tensor has bounds that the tool knows.
            self.run(name, command, 90, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})

    def speed(self) -> None:
        here = {"PYTHONPATH": str(ROOT)}
        rows = self._out / f"{self._stem}.json"
        started = time.time()
        whole = self.run("speed", speed_command(self.left(), self._out), self.left() - 15, here)
        if whole is None and rows.exists() and rows.stat().st_mtime > started:
            # Cut: the cases that were finished are in the json.
            self.run("speed, what there is of it", [sys.executable, "-m", "benchmarks", "--from", str(rows)], 15, here)
        if rows.exists() and rows.stat().st_mtime > started:
            self._speed = rows.with_suffix(".md").read_text()
            self.write()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: benchmarks/results)")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="to end within (default: %(default)s)")
    parser.add_argument("--no-build", action="store_true", help="check the package that is installed")
    options = parser.parse_args()
    check = Check(options.out.resolve(), options.seconds)
    gpu = check.look_around()
    built = options.no_build or check.build(force=gpu)
    if gpu and built:
        check.sanitizers()
        check.tests()
        check.speed()
    check.write()
    return 1 if check.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
