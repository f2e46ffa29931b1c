"""Several threads, several processes, many calls: the loss has the same bits, and no memory leaks."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import pspl_cuda
from helpers import backends
from helpers.cases import leaf, smooth_pair

SHAPE = (3, 3, 120, 131)


@pytest.fixture
def cpu():
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    return backends.Backend("cpu")


def everything(backend, sr, hr, **keywords):
    """All that a call gives: loss, both gradients, statistics, both maps."""
    a, b = leaf(sr), leaf(hr)
    loss, stats = backend.pspl_loss(a, b, 1.0, return_stats=True, **keywords)
    maps = backend.similarity_map(sr, hr), backend.attention_map(sr, hr, 1.0)
    return [loss.detach(), *torch.autograd.grad(loss, (a, b)), *stats[:4], *maps]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
def test_any_number_of_threads_gives_the_same_bits(cpu, distance, dtype):
    """Also more threads than cores, and after the number has changed under way."""
    sr, hr = smooth_pair(SHAPE, dtypes=(dtype, dtype))
    torch.set_num_threads(1)
    alone = everything(cpu, sr, hr, distance=distance)
    for threads in (2, 8, 3, 1):
        torch.set_num_threads(threads)
        assert same(everything(cpu, sr, hr, distance=distance), alone)


@pytest.mark.parametrize(("dtype", "distance"), [(torch.float16, "l1"), (torch.float32, "l2")], ids=str)
def test_threads_that_flush_subnormal_numbers_give_the_same_bits(cpu, dtype, distance):
    """torch.set_flush_denormal changes the calling thread only. Subnormal numbers of ``dtype`` count on every thread."""
    loss = {"distance": distance, "reduction": "sum"}
    tiny = torch.finfo(dtype).tiny
    sr, hr = ((image * tiny).to(dtype) for image in smooth_pair(SHAPE, dtypes=(torch.float64, torch.float64)))
    expected = everything(cpu, sr, hr, **loss)
    assert expected[1].any()
    assert expected[2].any()
    try:
        assert torch.set_flush_denormal(True)
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            assert same(everything(cpu, sr, hr, **loss), expected)
    finally:
        torch.set_flush_denormal(False)


def test_concurrent_calls_give_the_same_bits(cpu):
    """Eight Python threads with images of their own, of different sizes and dtypes, let loose at once, over and over."""
    work = [
        smooth_pair((2, 3, 40 + 7 * i, 90 + 11 * i), seed=i, dtypes=(dtype, torch.float32))
        for i, dtype in enumerate([torch.float32, torch.float16, torch.bfloat16, torch.float64] * 2)
    ]
    alone = [everything(cpu, *pair) for pair in work]
    start = threading.Barrier(len(work))

    def repeat(index):
        start.wait()
        return all(same(everything(cpu, *work[index]), alone[index]) for _ in range(20))

    with ThreadPoolExecutor(len(work)) as pool:
        assert all(pool.map(repeat, range(len(work))))


def test_other_threads_run_meanwhile(cpu):
    """The kernel holds no lock of Python's: a thread goes on counting while a long call runs in another."""
    sr, hr = smooth_pair((1, 3, 700, 700))
    torch.set_num_threads(1)
    done = threading.Event()
    began, ended = [], []

    def call():
        began.append(time.monotonic())
        cpu.pspl_loss(sr, hr, 1.0, window_size=101, sigma=20.0)
        ended.append(time.monotonic())
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    ticks = []
    while not done.is_set():
        ticks.append(time.monotonic())
        time.sleep(0)
    thread.join()
    # Between two ticks lies a switch of threads, not the call.
    inside = [began[0], *(tick for tick in ticks if began[0] < tick < ended[0]), ended[0]]
    longest = max(b - a for a, b in itertools.pairwise(inside))
    assert longest < (ended[0] - began[0]) / 2


# ---------------------------------------------------------------- processes

FORKED = """
import sys
import torch
import pspl_cuda

def value():
    generator = torch.Generator().manual_seed(0)
    sr, hr = torch.rand(2, 3, 3, 97, 101, generator=generator)
    sr.requires_grad_()
    loss = pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu")
    (gradient,) = torch.autograd.grad(loss, sr)
    return loss.item(), gradient.double().sum().item()

class Dataset(torch.utils.data.Dataset):
    def __len__(self):
        return 6
    def __getitem__(self, index):
        return value()

def main():
    torch.set_num_threads(int(sys.argv[1]))
    before = value()
    loader = torch.utils.data.DataLoader(
        Dataset(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for _ in range(2):
        values = [tuple(sample) for sample in loader]
        assert values == [before] * 6, (values, before)
        assert value() == before
    print("the same")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_worker_processes_after_use(cpu, threads, tmp_path):
    """A DataLoader forks after the loss was used: its workers compute the same bits, and neither they nor the parent hang."""
    script = tmp_path / "forked.py"
    script.write_text(FORKED)
    command = [sys.executable, str(script), str(threads)]
    environment = {**os.environ, "PYTHONPATH": str(Path(pspl_cuda.__file__).parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "the same\n"


# ---------------------------------------------------------------- memory


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["cpu", pytest.param("reference", marks=pytest.mark.deep)])
def test_nothing_leaks(name):
    """10,000 training steps with all outputs on the kernel, 1,000 on the reference, and as many refused calls.

    The smallest thing that could be kept is a block of malloc, 32 bytes: with less than half a megabyte of growth allowed, a leak
    of one in every call is seen on the kernel, and one image of 3 KiB in every sixth call.
    """
    backend = backends.Backend(name)
    if why_not := backends.why_not(name):
        pytest.skip(why_not)
    calls = {"cpu": 10_000, "reference": 1_000}[name]
    torch.set_num_threads(1)
    sr, hr = smooth_pair((1, 3, 16, 16))
    bad = hr[:, :1]

    def many(count):
        for _ in range(count):
            a, b = leaf(sr), leaf(hr)
            loss, _ = backend.pspl_loss(a, b, 1.0, return_stats=True, distance="l2")
            loss.backward()
            backend.similarity_map(sr, hr)
            with pytest.raises(ValueError, match="same shape"):
                backend.pspl_loss(sr, bad, 1.0)
        gc.collect()

    many(1_000)  # malloc's arenas and torch's caches grow in the first hundreds
    before = resident_bytes()
    many(calls)
    grown = resident_bytes() - before
    assert grown < calls * 32, f"{grown} bytes in {calls} calls"
