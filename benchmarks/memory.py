"""Peak memory of a call, in addition to what was allocated before it, and without the gradient itself.

On a GPU, torch's allocator reports it (never run on a GPU). On a CPU only the resident set of a process includes the scratch
memory of the convolution libraries: a child process runs the call, after a warm-up, with a malloc that returns every freed
buffer to the system, and reads its high-water mark (Linux). The resolution is about 1 MiB.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from .cases import Case, images
from .implementations import Implementation, make

# For smaller images the resident set of a process is too coarse.
LEAST_BYTES = 4 * 2**20


def on_cuda(call, gradient_bytes: int) -> int:
    """The peak of ``call`` on the current GPU, in bytes."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - gradient_bytes


class Child:
    """A process that measures calls on the CPU; a context manager."""

    def __init__(self):
        self._pool = None

    def __enter__(self) -> Child:
        self._pool = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def peak(self, key: str, case: Case) -> dict[str, int] | None:
        """``{phase: bytes}`` for the implementation ``key``, or None where it can't be measured."""
        if torch.Size(case.shape).numel() * 4 < LEAST_BYTES or not Path("/proc/self/clear_refs").exists():
            return None
        before = os.environ.copy()
        # glibc reads these when the child starts, at the first submission.
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        try:
            future = self._pool.submit(_peaks, key, case)
        finally:
            os.environ.clear()
            os.environ |= before
        return future.result()


_implementations: dict[str, Implementation] = {}


def _peaks(key: str, case: Case) -> dict[str, int]:
    device = torch.device("cpu")
    if key not in _implementations:
        _implementations[key] = make(key, device)
    torch.compiler.reset()
    loss = _implementations[key].loss
    sr, hr = images(case, device)

    def forward_backward() -> None:
        loss(sr, hr).backward()

    peaks = {}
    for phase, call in (("forward", lambda: loss(sr, hr)), ("forward_backward", forward_backward)):
        call()
        sr.grad = None
        gc.collect()
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        result = call()
        peaks[phase] = _status("VmHWM") - before
        del result
    peaks["forward_backward"] -= sr.grad.numel() * sr.grad.element_size()
    return {phase: max(0, peak) for phase, peak in peaks.items()}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
