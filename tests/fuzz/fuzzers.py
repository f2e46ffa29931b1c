"""Each fuzzer is a function of a seed and a case number that raises if the case fails."""

from __future__ import annotations

import ctypes
import math
import mmap
import random
import subprocess
import sys
from pathlib import Path

import torch

import pspl_cuda
from helpers import backends
from helpers.cases import LAYOUTS, check_against_oracle
from helpers.tolerances import compute_dtype, largest_exponent, rounded_delta
from pspl_cuda.config import DISTANCES, PADDINGS

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def _random(name: str, seed: int, case: int) -> random.Random:
    return random.Random(f"{name} {seed} {case}")


def _generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(32))


def _shape(rng: random.Random, largest: int = 48) -> tuple[int, ...]:
    leading = rng.choice([(1,), (3,), (1, 1), (2, 3), (1, 4), (1, 2, 3), (2, 1, 1)])
    return (*leading, rng.randint(1, largest), rng.randint(1, largest))


def _images(rng: random.Random, shape: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]) -> list[torch.Tensor]:
    """Noise, smooth or flat images in 0..1 with an error of any size; some pixels equal."""
    generator = _generator(rng)
    hr = torch.rand(shape, generator=generator, dtype=torch.float64)
    kind = rng.choice(["noise", "smooth", "flat", "two levels"])
    if kind == "smooth":
        rows, columns = torch.arange(shape[-2])[:, None], torch.arange(shape[-1])
        hr = 0.5 + 0.4 * torch.sin(rows / 5 + hr[..., :1, :1]) * torch.cos(columns / 7) + 0.01 * hr
    elif kind == "flat":
        hr = torch.full_like(hr, rng.random())
    elif kind == "two levels":
        hr = (hr > 0.5).double()
    error = 10 ** rng.uniform(-3, 0) * torch.randn(shape, generator=generator, dtype=torch.float64)
    sr = torch.where(torch.rand(shape, generator=generator) < rng.choice([0, 0.1, 1]), hr, hr + error)
    narrow = min(dtypes, key=lambda dtype: torch.finfo(dtype).bits)
    return [image.to(narrow).to(dtype) for image, dtype in zip((sr, hr), dtypes, strict=True)]


def _laid_out(rng: random.Random, image: torch.Tensor) -> torch.Tensor:
    name = rng.choice([*LAYOUTS, "expanded", "flipped"])
    if name == "expanded":
        return image[..., :1, :].expand(image.shape)
    if name == "flipped":  # torch has no negative strides; this is a gather
        return image.flip(-1)
    return LAYOUTS[name](image) if not (name == "batch_last" and image.dim() == 3) else image.contiguous()


def _keywords(rng: random.Random) -> dict:
    """Some of the keywords, with ordinary values."""
    drawn = {
        "alpha": rng.uniform(0.2, 2),
        "beta": rng.uniform(0.5, 2),
        "gamma": rng.uniform(0.1, 4),
        "mu": rng.uniform(-1, 1),
        "distance": rng.choice(DISTANCES),
        "window_size": rng.choice([1, 3, 5, 7, 9, 11, 13, 17, 31]),
        "sigma": rng.uniform(*rng.choice([(0.15, 0.6), (0.6, 3)])),
        "padding": rng.choice(PADDINGS),
        "eps": 10 ** rng.uniform(-4, -1),
        "reduction": rng.choice(REDUCTIONS),
    }
    return {name: value for name, value in drawn.items() if rng.random() < 0.5}


# ---------------------------------------------------------------- oracle


def oracle(seed: int, case: int) -> None:
    """Loss, gradients, statistics and maps of random images, layouts and keywords against the float64 oracle."""
    rng = _random("oracle", seed, case)
    dtypes = (rng.choice(DTYPES), rng.choice(DTYPES))
    pair = [_laid_out(rng, image) for image in _images(rng, _shape(rng), dtypes)]
    keywords, step = _keywords(rng), rng.choice([0.7, 1.0, 3.0, torch.tensor(1.5), math.inf])
    torch.set_num_threads(rng.choice([1, 2, 3]))
    for name in ("cpu", "reference"):
        if backends.why_not(name) is None:
            check_against_oracle(
                backends.Backend(name), *pair, step, upstream=rng.choice([1.0, 0.25]), maps=True, **keywords
            )


# ---------------------------------------------------------------- autograd


def autograd(seed: int, case: int) -> None:
    """A random graph around several losses (shared images, accumulation, hooks, retain_graph, create_graph). Every gradient is
    the one that the same graph has with backend="reference"."""
    results = [_run_graph(_random("autograd", seed, case), name) for name in ("auto", "reference")]
    for got, wanted in zip(*results, strict=True):
        scale = wanted.abs().max().item() if wanted.numel() else 0.0
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10 * scale + 1e-15)


def _run_graph(rng: random.Random, backend: str) -> list[torch.Tensor]:
    """Draws the same graph for every backend. float64, so that only errors of the graph are seen."""
    shape, generator = (1, 2, rng.randint(3, 9), rng.randint(3, 9)), _generator(rng)
    leaves = [torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    nodes, seen = list(leaves), []
    for _ in range(rng.randint(1, 4)):
        a, b = rng.choice(nodes), rng.choice(nodes)
        operation = rng.choice(["scale", "add", "multiply", "flip", "detach", "sine"])
        result = {
            "scale": lambda a, b: 0.7 * a + 0.1,
            "add": lambda a, b: 0.5 * a + 0.4 * b,
            "multiply": lambda a, b: a * b,
            "flip": lambda a, b: a.flip(-1),
            "detach": lambda a, b: a.detach() + 0.1 * b,
            "sine": lambda a, b: a.sin(),
        }[operation](a, b)
        if result.requires_grad and rng.random() < 0.3:
            result.register_hook(lambda gradient: seen.append(gradient.detach().clone()))
        if result.requires_grad and rng.random() < 0.2:
            result.register_hook(lambda gradient: 0.5 * gradient)
        nodes.append(result)
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(rng.randint(1, 3)):
        keywords = {"distance": rng.choice(DISTANCES), "reduction": rng.choice(REDUCTIONS), "eps": 0.1}
        # l1 has a corner where images are equal.
        a, b = rng.choice(nodes), rng.choice(nodes)
        loss = pspl_cuda.pspl_loss(a, b, rng.uniform(0.8, 2), backend=backend, **keywords)
        loss = loss.mean() if loss.dim() else loss
        total = total + rng.choice([1.0, 1.0, -0.5]) * (loss if rng.random() < 0.7 else loss.square())
    if not total.requires_grad:
        return []
    values = [total.detach()]
    for _ in range(rng.randint(0, 2)):
        inputs = rng.sample(leaves, rng.randint(1, 3))
        gradients = torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
        values += [gradient.clone() for gradient in gradients]
    if rng.random() < 0.5:
        inputs = rng.sample(leaves, rng.randint(1, 3))
        gradients = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
        values += [gradient.detach().clone() for gradient in gradients]
        total = total + sum(gradient.square().sum() for gradient in gradients)
    for retain in [True] * rng.randint(0, 1) + [False]:
        total.backward(retain_graph=retain)
    return values + [torch.zeros(shape) if leaf.grad is None else leaf.grad for leaf in leaves] + seen


# ---------------------------------------------------------------- guard pages


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


def guard_pages(seed: int, case: int) -> None:
    """50 pairs of images against pages that may not be read, in one process: a read out of bounds ends it by a signal."""
    _in_child("guarded_case", seed, 50 * case, 50)


def guarded_case(seed: int, case: int) -> None:
    rng = _random("guard pages", seed, case)
    dtypes = (rng.choice(DTYPES), rng.choice(DTYPES))
    pair = [_laid_out(rng, image) for image in _images(rng, _shape(rng, 70), dtypes)]
    keywords = _keywords(rng)
    memory, guarded = [], []
    for image in pair:
        memory.append(
            GuardedMemory(image.element_size() * (image.untyped_storage().nbytes() // image.element_size() + 1))
        )
        guarded.append(memory[-1].image(image, at_end=rng.random() < 0.5).requires_grad_())
    torch.set_num_threads(rng.choice([1, 2]))
    loss = pspl_cuda.pspl_loss(*guarded, 1.0, **keywords)
    loss.sum().backward()
    if loss.dim() == 0 and dtypes[0] == dtypes[1] and 0 not in pair[0].stride() + pair[1].stride():
        plain = pspl_cuda.pspl_loss(*pair, 1.0, **keywords)
        assert torch.equal(loss.detach(), plain), (loss, plain)
    pspl_cuda.attention_map(*guarded, 1.0)


def _in_child(function: str, seed: int, case: int, count: int) -> None:
    tests = Path(__file__).resolve().parents[1]
    code = (
        f"import sys; sys.path[:0] = {[str(tests.parent), str(tests)]!r}\n"
        f"from tests.fuzz import fuzzers\n"
        f"for case in range({case}, {case + count}):\n"
        f"    print(case, flush=True)\n"
        f"    fuzzers.{function}({seed}, case)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, (
        f"{function}({seed}, {result.stdout.split()[-1:]}) ended with {result.returncode} (negative: by a signal)\n"
        f"{result.stderr[-2000:]}"
    )


# ---------------------------------------------------------------- NaN

# Patterns of a NaN's bits, as integers of the dtype's width: quiet and signalling, both signs, payloads in every position.
_MANTISSA = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7, torch.float64: 52}
_INTEGERS = {
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float64: torch.int64,
}


def _nan(rng: random.Random, dtype: torch.dtype) -> torch.Tensor:
    bits, mantissa = torch.finfo(dtype).bits, _MANTISSA[dtype]
    payload = rng.choice(
        [
            1,
            (1 << mantissa) - 1,
            1 << (mantissa - 1),
            (1 << (mantissa - 1)) | 1,
            (1 << (mantissa - 1)) - 1,
            1 << rng.randrange(mantissa),
            rng.randrange(1, 1 << mantissa),
        ]
    )
    exponent = ((1 << (bits - 1 - mantissa)) - 1) << mantissa
    pattern = exponent | payload
    if rng.random() < 0.5:
        pattern -= 1 << (bits - 1)  # the sign, in two's complement
    value = torch.tensor(pattern, dtype=_INTEGERS[dtype]).view(dtype)
    assert value.isnan()
    return value


def nan(seed: int, case: int) -> None:
    """Any NaN stays one: in all 121 pixels whose window holds it, in the loss, in the gradient, and nowhere else."""
    rng = _random("nan", seed, case)
    dtypes = (rng.choice(DTYPES), rng.choice(DTYPES))
    height, width = rng.randint(24, 60), rng.randint(24, 60)
    hr = torch.rand((1, 1, height, width), generator=_generator(rng))
    sr = rng.choice([0.9, 1.0]) * hr  # l1 has a corner where they are equal
    pair = [sr.to(dtypes[0]), hr.to(dtypes[1])]
    row, column = rng.randint(6, height - 7), rng.randint(6, width - 7)
    which = rng.choice([[0], [1], [0, 1]])
    for i in which:
        # Through integers: a floating-point copy may change the payload.
        integers = pair[i].view(_INTEGERS[dtypes[i]])
        integers[0, 0, row, column] = _nan(rng, dtypes[i]).view(_INTEGERS[dtypes[i]])
    expected = torch.zeros(1, 1, height, width, dtype=torch.bool)
    expected[..., row - 5 : row + 6, column - 5 : column + 6] = True
    assert expected.sum() == 121
    distance, reduction = rng.choice(DISTANCES), rng.choice(REDUCTIONS)
    for name in ("cpu", "reference"):
        if backends.why_not(name):
            continue
        backend = backends.Backend(name)
        similarity = backend.similarity_map(*pair)
        assert torch.equal(similarity.isnan(), expected), f"{name}: {similarity.isnan().sum()} NaNs in M_s"
        assert not similarity.isinf().any()
        attention = backend.attention_map(*pair, 1.0)
        assert torch.equal(attention.isnan(), expected), f"{name}: {attention.isnan().sum()} NaNs in M_a"
        sr, target = (image.clone().requires_grad_() for image in pair)
        loss = backend.pspl_loss(sr, target, 1.0, distance=distance, reduction=reduction)
        if reduction == "none":
            assert torch.equal(loss.isnan(), expected), f"{name}: {loss.isnan().sum()} NaNs in the loss"
        else:
            assert loss.isnan(), f"{name}: the loss is {loss.item()}"
        loss.sum().backward()
        for gradient in (sr.grad, target.grad):
            assert torch.equal(gradient.isnan(), expected), f"{name}: {gradient.isnan().sum()} NaNs in the gradient"


# ---------------------------------------------------------------- compile


def compiled(seed: int, case: int) -> None:
    """Random layouts, dtypes and keywords through torch.compile: values, dtypes and strides of eager mode."""
    rng = _random("compile", seed, case)
    dtypes = (rng.choice(DTYPES), rng.choice(DTYPES))
    pair = [_laid_out(rng, image) for image in _images(rng, _shape(rng, 20), dtypes)]
    keywords, needs_hr = _keywords(rng), rng.random() < 0.5
    through_network = rng.random() < 0.5

    def function(a, b):
        return pspl_cuda.pspl_loss(0.9 * a if through_network else a, b, 1.0, **keywords)

    torch._dynamo.reset()
    results = []
    for run in (
        function,
        torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=rng.choice([None, True])),
    ):
        a, b = pair[0].detach().requires_grad_(), pair[1].detach().requires_grad_(needs_hr)
        loss = run(a, b)
        inputs = [a, b][: 1 + needs_hr]
        gradients = torch.autograd.grad(loss, inputs, torch.full_like(loss, 3.0))
        results.append([loss.detach(), *gradients])
    # A compiled graph computes alpha * step + beta in float64: delta, 1 / delta and its product with the constant then have 3
    # roundings of the kernel's 6. Where they differ, so do, in both, the roundings at a pixel of the exponent's root, which
    # counts twice, and of its square. Together 12 + 6 + 2 * 3 roundings in the exponent, twice those of delta.
    delta, compute = keywords.get("alpha", 1.0) + keywords.get("beta", 0.0), compute_dtype(*pair)
    exponent = largest_exponent(delta, keywords.get("mu", -1.0)) * (1 if keywords.get("distance", "l1") == "l1" else 2)
    delta_error = 2 * exponent * rounded_delta(delta, compute)
    for i, (got, wanted) in enumerate(zip(*reversed(results), strict=True)):
        assert got.dtype == wanted.dtype
        assert i > 0 or got.stride() == wanted.stride(), (got.stride(), wanted.stride())
        # A product of 3 and the gradient is rounded in another order.
        tolerance = 4 * torch.finfo(got.dtype).eps + delta_error
        torch.testing.assert_close(
            got,
            wanted,
            rtol=tolerance,
            atol=tolerance * wanted.abs().max().item() + torch.finfo(got.dtype).tiny,
            equal_nan=True,
        )


FUZZERS = {"oracle": oracle, "autograd": autograd, "guard-pages": guard_pages, "nan": nan, "compile": compiled}
