"""The speed of the loss on a GPU in two minutes: ``python -m tools.gpu_speed --out rows.json losses training``.

Calls are timed in two ways, in interleaved rounds. *Calls*: CUDA events around calls that follow one another, each on the next of
several pairs of images that together exceed the L2 cache; for small images this is the time of the host. *Graph*: the same calls,
captured in a CUDA graph and replayed; this is the time of the device. A copy from device to device that moves the bytes of the
memory floor is timed in the same way. Rows have the fields of ``python -m benchmarks``, and are saved after each case.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from benchmarks import check, machine, report, timing
from benchmarks.cases import MIXED, MIXED_HALF, PATCHES, TRAINING_SCALE, Case, images
from benchmarks.implementations import Implementation, available, training_step
from networks.edsr import EDSR

# In the order of what they tell.
CASES = (
    *(Case(PATCHES), Case((8, 3, 512, 512)), Case((1, 3, 64, 64))),
    *(Case(PATCHES, MIXED), Case(PATCHES, MIXED_HALF), Case((1, 3, 2160, 3840))),
    *(Case(PATCHES, layout="channels_last"), Case((8, 3, 512, 512), MIXED, "channels_last")),
)
QUICK = (Case((1, 3, 16, 16)), Case((1, 3, 16, 16), MIXED, "channels_last"))
KEYS = ("l1", "l1_compile", "fused", "fused_charbonnier", "official", "fused_ssim", "compile")
QUICK_KEYS = KEYS[:5]
FIRST_CASE_ONLY = "compile"  # it takes long to compile
# The others copy from the host, or may: what a capture refuses.
CAPTURED = ("l1", "l1_compile", "fused", "fused_charbonnier")
BATCH_MS = 4.0  # of one measurement: far more than the resolution of events
MOST_PAIRS = 64
ROUNDS = 15

Call = Callable[[], object]


class Stopwatch:
    """Times sequences of calls, with CUDA events on a GPU."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"

    def milliseconds(self, calls: list[Call], repeats: int) -> float:
        """Per call, of ``repeats`` times all of ``calls``."""
        if not self.cuda:
            begin = time.perf_counter()
            self._run(calls, repeats)
            return (time.perf_counter() - begin) * 1e3 / (repeats * len(calls))
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        self._run(calls, repeats)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / (repeats * len(calls))

    @staticmethod
    def _run(calls: list[Call], repeats: int) -> None:
        for _ in range(repeats):
            for call in calls:
                call()


def capture(calls: list[Call]) -> Call:
    """A CUDA graph of ``calls``, warmed up on a side stream, as captures must be."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def pairs_of(case: Case, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Copies of the images that together exceed twice the L2 cache, as far as MOST_PAIRS reach."""
    sr, hr = images(case, device)
    count = 1
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        count = min(MOST_PAIRS, max(2, -(-2 * cache // case.floor_bytes)))
    return [(sr.detach().clone().requires_grad_(), hr.clone()) for _ in range(count)]


def gradient(loss: Callable, sr: Tensor, hr: Tensor) -> Call:
    return lambda: torch.autograd.grad(loss(sr, hr), sr)


def copy_of(size: int, device: torch.device) -> Call:
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def measure(calls: dict[str, list[Call]], watch: Stopwatch, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call, by name, in interleaved rounds after one that is left out."""
    once = {name: watch.milliseconds(each, 1) for name, each in calls.items()}
    repeats = {name: max(1, round(BATCH_MS / max(once[name] * len(each), 1e-3))) for name, each in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, each in calls.items():
            value = watch.milliseconds(each, repeats[name])
            if number:
                times[name].append(value)
    return times


class Rows:
    """The rows of a file: those of an earlier part stay, those of the same case are replaced."""

    def __init__(self, path: Path, device: torch.device):
        self.path = path
        self.rows = report.load(path) if path.exists() else []
        copy = timing.copy_bytes_per_ms(device, timing.Clock(device))
        self.facts = machine.facts(device, copy)
        print(f"{self.facts['device']}: a large copy runs at {self.facts['copy_gb_s']:.0f} GB/s", flush=True)

    def add(self, name: str, case: Case, values: list[float] | None, **fields) -> None:
        summary = timing.summary(values) if values else None
        row = self.facts | case._asdict() | {"shape": list(case.shape), "impl": name, "phase": "forward_backward"}
        for field in ("median", "p20", "p80"):
            row[f"{field}_ms"] = round(getattr(summary, field), 6) if summary else None
        self.rows = [
            old for old in self.rows if old["shape"] is None or (report.case_of(old), old["impl"]) != (case, name)
        ]
        self.rows.append(row | fields)
        report.save(self.rows, self.path)
        shown = f"{row['median_ms']:.4f} ms" if summary else f"skipped, {fields['skipped']}"
        graph = f", in a graph {fields['graph_ms']:.4f} ms" if fields.get("graph_ms") else ""
        print(f"{case}, {name}: {shown}{graph}", flush=True)


def losses(rows: Rows, device: torch.device, quick: bool) -> bool:
    """Each implementation that is accurate, on each case; True if ours are, and there is a kernel."""
    watch, rounds = Stopwatch(device), 3 if quick else ROUNDS
    found, missing = available(device, QUICK_KEYS if quick else KEYS)
    right = any(each.key == "fused" for each in found)
    print("\n".join(f"{name}: skipped, {reason}" for name, reason in missing.items()))
    cases = QUICK if quick else CASES
    for case in cases:
        torch.compiler.reset()  # the compiler gives up after a few shapes
        found = [each for each in found if case is cases[0] or each.key != FIRST_CASE_ONLY]
        pairs = pairs_of(case, device)
        oracle = check.Oracle(*pairs[0])
        calls: dict[str, list[Call]] = {}
        for each in found:
            if wrong := _inaccurate(each, *pairs[0], oracle):
                right &= not each.ours
                rows.add(each.name, case, None, skipped=wrong)
            else:
                calls[each.key] = [gradient(each.loss, sr, hr) for sr, hr in pairs]
        calls["copy"] = [copy_of(case.floor_bytes // 2, device) for _ in pairs]
        times, graphs = measure(calls, watch, rounds), {}
        _add(rows, case, found, times, graphs)
        if watch.cuda:
            replays = {key: [capture(calls[key])] for key in (*CAPTURED, "copy") if key in calls}
            replayed = measure(replays, watch, rounds)
            graphs = {key: timing.summary(values).median / len(pairs) for key, values in replayed.items()}
            _add(rows, case, found, times, graphs)
    return right


def _inaccurate(each: Implementation, sr: Tensor, hr: Tensor, oracle: check.Oracle) -> str | None:
    try:
        errors = check.measure(each, sr, hr, oracle)
        return check.failure(each.tolerance, errors, each.loss(sr, hr).dtype, sr.dtype)
    except Exception as error:
        return f"it fails: {type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _add(rows: Rows, case: Case, found: list[Implementation], times: dict, graphs: dict) -> None:
    for each in found:
        if each.key in times:
            rows.add(each.name, case, times[each.key], graph_ms=graphs.get(each.key), copy_ms=graphs.get("copy"))


class SpanLike(nn.Module):
    """The shape of SPAN's work (Wan et al., CVPRW 2024): six blocks of three convolutions with parameter-free attention."""

    def __init__(self, scale: int, features: int = 48):
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(layer for _ in range(3) for layer in (nn.Conv2d(features, features, 3, padding=1), nn.SiLU()))
            )
            for _ in range(6)
        )
        self.tail = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            y = block(x)
            x = (x + y) * (torch.sigmoid(y) - 0.5)
        return self.tail(x)


NETWORKS = {"EDSR baseline": EDSR.baseline, "SPAN-like": SpanLike}
QUICK_NETWORKS = {"EDSR baseline": lambda scale: EDSR(scale, blocks=1, features=4)}


def training(rows: Rows, device: torch.device, quick: bool) -> bool:
    """Steps of ESPCN as in ``python -m benchmarks``, and of larger networks under autocast."""
    watch, rounds = Stopwatch(device), 2 if quick else ROUNDS
    shape = (1, 3, 16, 16) if quick else PATCHES
    found, _ = available(device, ("l1", "official", "fused"))
    case = Case(shape, training=True)
    sr, hr = images(case, device)
    calls = {each.name: [training_step(each.loss, sr, hr, TRAINING_SCALE)] for each in found}
    for name, values in measure(calls, watch, rounds).items():
        rows.add(name, case, values)
    case = Case(shape, MIXED, training=True)
    for network, build in (QUICK_NETWORKS if quick else NETWORKS).items():
        steps = {
            f"{each.name}, {network}": [_step(build(TRAINING_SCALE).to(device), each.loss, sr, hr)] for each in found
        }
        for name, values in measure(steps, watch, rounds).items():
            rows.add(name, case, values)
    return True


def _step(network: nn.Module, loss: Callable, sr: Tensor, hr: Tensor) -> Call:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    lr = F.avg_pool2d(sr.detach(), TRAINING_SCALE)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(lr.device.type, torch.bfloat16):
            value = loss(network(lr), hr)
        value.backward()
        optimizer.step()

    return step


PARTS = {"losses": losses, "training": training}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a few calls on small images")
    parser.add_argument("--out", type=Path, required=True, help="the json file of the rows")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    rows = Rows(options.out, device)
    right = [PARTS[part](rows, device, device.type == "cpu") for part in options.parts]
    print(f"{len(rows.rows)} rows in {options.out}")
    return int(not all(right))


if __name__ == "__main__":
    sys.exit(main())
