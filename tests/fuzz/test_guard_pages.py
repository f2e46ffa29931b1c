"""Images against pages that nobody may touch: a read or write out of bounds ends the process by a signal.

The calls run in a process of their own, which prints each example before it: ``python tests/fuzz/test_guard_pages.py``.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import conftest  # noqa: F401 - the settings of hypothesis

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import pspl_cuda
from helpers import backends
from helpers.drawn import WINDOWS, pair_recipes
from pspl_cuda.config import DISTANCES


class GuardedMemory:
    """Memory that ends or begins at a page that nobody may touch."""

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, size: int):
        page = mmap.PAGESIZE
        self.size = -(-max(size, 1) // page) * page
        self._map = mmap.mmap(-1, self.size + 2 * page)
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + page
        for address in (self.begin - page, self.begin + self.size):
            if self._libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def image(self, source: torch.Tensor, at_end: bool) -> torch.Tensor:
        """A copy with the strides of ``source``, whose last element (or first) touches the guarded page."""
        span = 1 + sum((n - 1) * stride for n, stride in zip(source.shape, source.stride(), strict=True))
        width = source.element_size()
        offset = self.size - span * width if at_end else 0
        buffer = (ctypes.c_char * (span * width)).from_address(self.begin + offset)
        flat = torch.frombuffer(buffer, dtype=source.dtype)
        view = flat.as_strided(source.shape, source.stride())
        view.copy_(source) if 0 not in source.stride() else flat.fill_(0.5)
        return view


@settings(max_examples=2 * settings().max_examples)
@given(
    recipe=pair_recipes(largest=(2, 3, 70, 70)),
    window=WINDOWS,
    distance=st.sampled_from(DISTANCES),
    reduction=st.sampled_from(["mean", "none"]),
    at_end=st.tuples(st.booleans(), st.booleans()),
    threads=st.sampled_from([1, 2]),
)
def calls(recipe, window, distance, reduction, at_end, threads):
    print(recipe, window, distance, reduction, at_end, threads, flush=True)
    torch.set_num_threads(threads)
    pair = recipe.make()
    memory = [GuardedMemory(image.untyped_storage().nbytes()) for image in pair]
    guarded = [m.image(image, end).requires_grad_() for m, image, end in zip(memory, pair, at_end, strict=True)]
    loss = pspl_cuda.pspl_loss(*guarded, 1.0, distance=distance, reduction=reduction, backend="cpu", **window)
    loss.sum().backward()
    if not any("expanded" in layout for layout in recipe.layouts):
        plain = pspl_cuda.pspl_loss(*pair, 1.0, distance=distance, reduction=reduction, backend="cpu", **window)
        assert torch.equal(loss.detach(), plain)
    pspl_cuda.attention_map(*guarded, 1.0, backend="cpu", **window)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mprotect")


@pytest.mark.hypothesis
def test_no_call_touches_a_guard_page():
    if why_not := backends.why_not("cpu"):
        pytest.skip(why_not)
    result = run()
    assert result.returncode == 0, (
        f"{result.returncode} after {result.stdout.splitlines()[-1:]}\n{result.stderr[-2000:]}"
    )
    assert "PairRecipe" in result.stdout


@pytest.mark.parametrize("side", ["before", "after"])
def test_guard_pages_end_a_process(side):
    """One element past the image."""
    result = run(side)
    assert result.stdout == "inside\n", result.stderr
    assert result.returncode < 0


def main(side: str | None = None) -> None:
    if side is None:
        calls()
        return
    memory = GuardedMemory(4 * 100)
    image = memory.image(torch.rand(1, 10, 10), at_end=side == "after")
    image.sum()
    print("inside", flush=True)
    ctypes.string_at(image.data_ptr() + (400 if side == "after" else -4), 4)


if __name__ == "__main__":
    main(*sys.argv[1:])
