"""How a launch is divided among the multiprocessors of a GPU (csrc/cuda/strip_plan.h): a table of the picks, and a check of the
model behind them against blocks that are scheduled one by one."""

from __future__ import annotations

import collections
import heapq

import pytest

from tools.cuda_resources import GPUS, shared_bytes

try:
    from emulation import kernels
except ImportError as error:
    if type(error).__name__ != "UnavailableError":
        raise
    pytest.skip(f"no emulation: {error}", allow_module_level=True)

SHAPES = {
    "16x3x48x48": (48, 48, 48),
    "16x3x192x192": (48, 192, 192),
    "8x3x512x512": (24, 512, 512),
    "1x3x64x64": (3, 64, 64),
    "1x3x1080x1920": (3, 1080, 1920),
    "1x3x2160x3840": (3, 2160, 3840),
}
BLOCK_BYTES = shared_bytes()["strip_forward<5>"]
# Rows per strip and blocks of the l1 float32 kernel, in the order of SHAPES.
PICKS = {
    "T4": [(8, 72), (64, 108), (171, 144), (8, 6), (155, 158), (309, 315)],
    "A100 80GB": [(8, 72), (32, 216), (57, 432), (8, 6), (78, 315), (309, 315)],
    "RTX 3090": [(8, 72), (32, 216), (103, 240), (8, 6), (78, 315), (309, 315)],
    "RTX 4090": [(8, 72), (28, 252), (64, 384), (8, 6), (64, 383), (197, 495)],
    "L40S": [(8, 72), (18, 396), (64, 384), (8, 6), (60, 405), (240, 405)],
    "H100 SXM": [(8, 72), (18, 396), (64, 384), (8, 6), (64, 383), (197, 495)],
    "H200": [(8, 72), (18, 396), (64, 384), (8, 6), (64, 383), (197, 495)],
    "B200": [(8, 72), (24, 288), (57, 432), (8, 6), (57, 428), (167, 585)],
    "RTX 5090": [(8, 72), (22, 324), (52, 480), (8, 6), (50, 495), (144, 675)],
}


def _resident(gpu) -> int:
    """Blocks of the l1 float32 kernel: 128 registers leave room for four."""
    return kernels.resident_blocks(4, BLOCK_BYTES, gpu.shared_bytes)


def _plan(gpu, shape, resident):
    planes, height, width = shape
    return kernels.plan_strips(planes, height, width, 5, resident, gpu.multiprocessors)


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_picks(gpu):
    assert [_plan(gpu, shape, _resident(gpu)) for shape in SHAPES.values()] == PICKS[gpu.name]


def test_residency():
    """Shared memory leaves room for the four blocks that registers allow, on sm_75 with 64 KiB too."""
    assert {_resident(gpu) for gpu in GPUS} == {4}
    assert kernels.resident_blocks(4, 10**6, 1000) == 1


def _makespan(gpu, shape, rows, resident) -> float:
    """The time of a launch. The blocks of a multiprocessor share its speed. They are handed out one per multiprocessor in turn,
    and then to the multiprocessor that has room first."""
    planes, height, width = shape
    blocks = -(-planes * -(-width // 64) * -(-height // rows) // 4)
    least = kernels.busy_warps
    work = rows + 10
    # By multiprocessor: when its blocks end, in rows that each of its blocks has walked; how many it has walked, at what time.
    ends = [collections.deque() for _ in range(gpu.multiprocessors)]
    walked = [0.0] * gpu.multiprocessors
    since = [0.0] * gpu.multiprocessors
    first = min(blocks, resident * gpu.multiprocessors)
    for block in range(first):
        ends[block % gpu.multiprocessors].append(work)

    def next_end(i):
        return since[i] + (ends[i][0] - walked[i]) * max(4 * len(ends[i]), least)

    waiting = blocks - first
    events = [(next_end(i), i) for i in range(gpu.multiprocessors) if ends[i]]
    heapq.heapify(events)
    now = 0.0
    while events:
        now, i = heapq.heappop(events)
        walked[i], since[i] = ends[i].popleft(), now
        if waiting:
            waiting -= 1
            ends[i].append(walked[i] + work)
        if ends[i]:
            heapq.heappush(events, (next_end(i), i))
    return now


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_picks_are_near_the_best(gpu, shape):
    """Within 2 % of the best height when the blocks are scheduled one by one."""
    resident = _resident(gpu)
    rows, blocks = _plan(gpu, shape, resident)
    planes, height, width = shape
    assert blocks == -(-planes * -(-width // 64) * -(-height // rows) // 4)
    heights = {-(-height // cuts) for cuts in range(1, max(2, height // 8 + 1))}
    best = min(_makespan(gpu, shape, other, resident) for other in heights)
    assert _makespan(gpu, shape, rows, resident) <= 1.02 * best


def test_residency_matters():
    """The check above finds a plan that takes a T4 that holds three blocks for one that holds four."""
    (gpu,) = (gpu for gpu in GPUS if gpu.name == "T4")
    shape = SHAPES["8x3x512x512"]
    right, wrong = (_makespan(gpu, shape, _plan(gpu, shape, resident)[0], 3) for resident in (3, 4))
    assert wrong > 1.5 * right
