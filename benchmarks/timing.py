"""Times of single calls, measured in turns so that noise affects all implementations alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch

Call = Callable[[], object]

MIN_ROUNDS = 5
MAX_ROUNDS = 200


class Times(NamedTuple):
    """Milliseconds per call: ``warm`` back to back, ``cold`` after the GPU's L2 cache was overwritten."""

    warm: list[float]
    cold: list[float]


class Summary(NamedTuple):
    median: float
    p20: float
    p80: float


def summary(values: list[float]) -> Summary:
    """Median and percentiles, within the range of ``values``."""
    if len(values) == 1:
        return Summary(values[0], values[0], values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Summary(statistics.median(values), tenths[1], tenths[7])


class Clock:
    """Times one call: with events on a GPU, else with the processor's clock. The GPU part has never run on a GPU."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        if self.cuda:
            size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(max(size, 2**26), dtype=torch.uint8, device=device)

    def milliseconds(self, call: Call, prepare: Call | None = None) -> float:
        """The time of ``call``; ``prepare`` runs before it, and is not counted."""
        if prepare is not None:
            prepare()
        if not self.cuda:
            start = time.perf_counter()
            call()
            return (time.perf_counter() - start) * 1e3
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def cold_milliseconds(self, call: Call, prepare: Call | None = None) -> float:
        return self.milliseconds(call, lambda: (prepare and prepare(), self._flush.zero_()))


def copy_bytes_per_ms(device: torch.device, clock: Clock) -> float:
    """Bytes read and written per millisecond by a large copy: the bandwidth of the memory floor."""
    source = torch.empty(2**26 if clock.cuda else 2**24, device=device).normal_()
    target = torch.empty_like(source)
    times = [clock.milliseconds(lambda: target.copy_(source)) for _ in range(12)]
    return 2 * source.numel() * 4 / statistics.median(times[2:])


def interleave(
    calls: dict[Hashable, Call],
    clock: Clock,
    seconds: float,
    times: dict[Hashable, Times],
    preparations: dict[Hashable, Call] | None = None,
) -> None:
    """Time ``calls`` in rounds for about ``seconds``, each at least MIN_ROUNDS times, adding to ``times``.

    ``preparations`` run before the calls of the same key and are not counted. After an interrupt, ``times`` holds what was
    measured until then.
    """
    before = preparations or {}
    first = {key: clock.milliseconds(call, before.get(key)) for key, call in calls.items()}
    # Fast calls are repeated within a round: a median of few short times is noise.
    slowest = max(first.values())
    repeats = {key: max(1, min(8, int(slowest / max(first[key], 1e-3) / 8))) for key in calls}
    times.update({key: Times([], []) for key in calls})
    end = time.monotonic() + seconds
    rounds = 0
    while rounds < MIN_ROUNDS or (time.monotonic() < end and rounds < MAX_ROUNDS):
        rounds += 1
        for key, call in calls.items():
            times[key].warm.extend(clock.milliseconds(call, before.get(key)) for _ in range(repeats[key]))
            if clock.cuda:
                times[key].cold.extend(clock.cold_milliseconds(call, before.get(key)) for _ in range(repeats[key]))
