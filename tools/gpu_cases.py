"""Every CUDA kernel on small images, against the float64 oracle of the tests: ``python -m tools.gpu_cases``.

``--short`` has one case of each kind, for compute-sanitizer; ``--launches`` runs the forward kernel on large images, for ncu.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import traceback
from collections.abc import Iterator

import torch

from helpers import backends
from helpers.cases import LAYOUTS, check_against_oracle, smooth_pair

FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
# Those with kernels, and two that are converted first.
PAIRS = (
    *((FLOAT32, FLOAT32), (FLOAT16, FLOAT16), (BFLOAT16, BFLOAT16), (FLOAT16, FLOAT32), (BFLOAT16, FLOAT32)),
    *((FLOAT64, FLOAT64), (FLOAT32, FLOAT16), (FLOAT16, BFLOAT16)),
)
# Tails of strips and rows, one pixel, smaller than the window, many planes.
SHAPES = ((2, 3, 70, 130), (1, 1, 1, 1), (1, 3, 17, 65), (2, 1, 5, 127), (1, 2, 40, 41), (40, 3, 9, 8))


def cases(short: bool) -> Iterator[dict]:
    """Keywords of :func:`run`; those of ``short`` are a part of the others."""
    distances, layouts = ("l1", "l2", "charbonnier"), ("contiguous", "channels_last", "cropped")
    for i, (dtypes, distance, layout) in enumerate(itertools.product(PAIRS, distances, layouts)):
        if not short or i % 7 == 0:
            yield {
                "dtypes": dtypes,
                "layouts": (layout, layout),
                "shape": SHAPES[i % 3 if short else i % len(SHAPES)],
            } | {"distance": distance}
    for shape in SHAPES[: 2 if short else None]:
        yield {"shape": shape, "stats": True}
    for window, padding in itertools.product((1, 3, 5, 7, 9, 11, 13), ("zeros", "reflect", "replicate")):
        if not short or (window, padding) in ((1, "reflect"), (5, "zeros"), (7, "replicate"), (13, "reflect")):
            yield {"shape": (1, 2, 18, 35), "window_size": window, "padding": padding}
    for first, second in () if short else itertools.permutations(LAYOUTS, 2):
        yield {"shape": (2, 3, 14, 37), "layouts": (first, second), "reduction": "none"}


def run(backend, *, shape, dtypes=(FLOAT32, FLOAT32), layouts=("contiguous",) * 2, stats=False, **keywords) -> None:
    """Loss, both gradients and maps; with ``stats`` also those, and a step on the device."""
    pair = smooth_pair(shape, dtypes=dtypes, device=backend.device)
    sr, hr = (LAYOUTS[layout](image) for layout, image in zip(layouts, pair, strict=True))
    step = torch.tensor(0.8, device=backend.device) if stats else 1.2
    upstream = 1.0 if stats else -0.25
    check_against_oracle(backend, sr, hr, step, upstream, maps=True, with_stats=stats, **keywords)


def launches(backend) -> None:
    """Three launches of l1, float32; on a GPU with the same work for each multiprocessor, as in the simulation."""
    batch = 1
    if backend.device.type == "cuda":
        batch = torch.cuda.get_device_properties(backend.device).multi_processor_count // 6
    sr, hr = torch.rand(2, max(1, batch), 3, *((512, 512) if backend.device.type == "cuda" else (16, 16)))
    sr, hr = sr.to(backend.device).requires_grad_(), hr.to(backend.device)
    for _ in range(3):
        backend.pspl_loss(sr, hr, 1.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_cases", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--launches", action="store_true")
    options = parser.parse_args(arguments)
    if why_not := backends.why_not(options.device):
        raise SystemExit(f"The {options.device} kernels can't run: {why_not}")
    backend = backends.Backend(options.device)
    if options.launches:
        launches(backend)
        return 0
    failed = count = 0
    for case in cases(options.short):
        count += 1
        try:
            run(backend, **case)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"FAILED: {case}", flush=True)
    print(f"{count} cases, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
