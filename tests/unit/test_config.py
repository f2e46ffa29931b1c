"""The keywords: each bad value is refused with a sentence, the same on every backend, in the functions and in PSPLLoss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.refusals import image, refused
from pspl_cuda import PSPLLoss

NOT_FINITE = [math.nan, math.inf]


POSITIVE = ["data_range", "sigma", "k1", "k2", "eps"]


NOT_NEGATIVE = ["alpha", "beta", "gamma"]


NUMBERS = [*POSITIVE, *NOT_NEGATIVE, "mu"]


CHOICES = {
    "distance": ["'l1'", "'l2'", "'charbonnier'"],
    "padding": ["'zeros'", "'reflect'", "'replicate'"],
    "reduction": ["'mean'", "'sum'", "'none'"],
}


BAD_KEYWORDS = [
    *((name, 0, ValueError, ["0", "above 0"]) for name in POSITIVE),
    *((name, -1.5, ValueError, ["-1.5", "above 0"]) for name in POSITIVE),
    *((name, -1.5, ValueError, ["-1.5", "at least 0"]) for name in NOT_NEGATIVE),
    *((name, bad, ValueError, [str(bad), "finite"]) for name in NUMBERS for bad in NOT_FINITE),
    *((name, 10**400, ValueError, ["an integer of 1329 bits", "finite"]) for name in NUMBERS),
    *((name, -(10**5000), ValueError, ["an integer of 16610 bits", "finite"]) for name in NUMBERS),
    *((name, np.float32("inf"), ValueError, ["inf", "finite"]) for name in NUMBERS),
    *((name, np.float16("nan"), ValueError, ["nan", "finite"]) for name in NUMBERS),
    *((name, np.bool_(True), TypeError, ["bool", "finite number"]) for name in NUMBERS),
    *((name, "1", TypeError, ["str", "finite number"]) for name in NUMBERS),
    *((name, True, TypeError, ["bool", "finite number"]) for name in NUMBERS),
    *((name, None, TypeError, ["NoneType", "finite number"]) for name in NUMBERS),
    *(("window_size", size, ValueError, [str(size), "odd", "511"]) for size in (0, -3, 2, 10, 513)),
    ("window_size", 10**5000 + 1, ValueError, ["an integer of 16610 bits", "odd", "511"]),
    *(("window_size", size, TypeError, [type(size).__name__, "odd integer"]) for size in (11.0, "11", True, None)),
    *((name, "L1", ValueError, ["'L1'", *choices]) for name, choices in CHOICES.items()),
    *((name, "", ValueError, ["''", *choices]) for name, choices in CHOICES.items()),
    *((name, 1, TypeError, ["int", *choices]) for name, choices in CHOICES.items()),
    *((name, None, TypeError, ["NoneType", *choices]) for name, choices in CHOICES.items()),
    # Squares that leave float32 would turn into zeros or infinities in the kernels.
    ("data_range", 1e-30, ValueError, ["k1 * data_range", "1e-32", "float32"]),
    ("data_range", 1e30, ValueError, ["k1 * data_range", "1e+28", "float32"]),
    ("k2", 1e-25, ValueError, ["k2 * data_range", "1e-25", "float32"]),
    ("eps", 1e-25, ValueError, ["eps", "1e-25", "float32"]),
    # So would the numbers themselves.
    *((name, value, ValueError, [str(value), "float32"]) for name in NOT_NEGATIVE for value in (1e39, 1e-300)),
    *(("mu", value, ValueError, [str(value), "float32"]) for value in (1e39, -1e39)),
]  # fmt: skip


MAP_KEYWORDS = {
    "similarity_map": {"data_range", "window_size", "sigma", "k1", "k2", "padding"},
    "attention_map": {
        *("alpha", "beta", "gamma", "mu"),
        *("data_range", "window_size", "sigma", "k1", "k2", "padding"),
    },
}


def shown(value):
    return "huge" if isinstance(value, int) and value.bit_length() > 64 else str(value)


@pytest.mark.parametrize(("name", "value", "kind", "fragments"), BAD_KEYWORDS, ids=lambda value: shown(value)[:30])
def test_keywords(backend, name, value, kind, fragments):
    x = image().to(backend.device)
    sentences = {refused(kind, [name, *fragments], backend.pspl_loss, x, x, 1.0, **{name: value})}
    if name in MAP_KEYWORDS["similarity_map"]:
        sentences.add(refused(kind, fragments, backend.similarity_map, x, x, **{name: value}))
    if name in MAP_KEYWORDS["attention_map"]:
        sentences.add(refused(kind, fragments, backend.attention_map, x, x, 1.0, **{name: value}))
    sentences.add(refused(kind, fragments, PSPLLoss, **{name: value}))
    assert len(sentences) == 1


def test_bad_keyword_is_refused_every_time(backend):
    """The checks are cached by value: True == 1 and 11.0 == 11 must not borrow a good one's result."""
    x = image().to(backend.device)
    backend.pspl_loss(x, x, 1.0, alpha=1, window_size=11)
    for _ in range(2):
        refused(TypeError, ["alpha"], backend.pspl_loss, x, x, 1.0, alpha=True)
        refused(TypeError, ["window_size"], backend.pspl_loss, x, x, 1.0, window_size=11.0)
    refused(TypeError, ["alpha"], backend.pspl_loss, x, x, 1.0, alpha=torch.tensor(1.0))
    refused(TypeError, ["distance"], backend.pspl_loss, x, x, 1.0, distance=["l1"])


def test_integers_are_numbers(backend):
    """int where a float is expected is no error."""
    x, y = image().to(backend.device), image().to(backend.device) + 0.5
    whole = backend.pspl_loss(x, y, 1, alpha=1, beta=0, gamma=2, mu=-1, data_range=1, sigma=2)
    assert torch.equal(whole, backend.pspl_loss(x, y, 1.0, sigma=2.0))


# gamma multiplies errors, and l2 and charbonnier square the product.
OUT_OF_RANGE = [
    ({"distance": "charbonnier", "gamma": 1e25}, ["gamma", "charbonnier", "1e+15"]),
    ({"distance": "l2", "gamma": 1e16}, ["gamma", "l2", "1e+15"]),
    ({"distance": "l2", "gamma": 1e13, "data_range": 255.0}, ["gamma * data_range", "l2", "1e+15"]),
    ({"distance": "l2", "gamma": 1e-30}, ["gamma", "l2", "3.16228e-19"]),
    ({"distance": "l1", "gamma": 1e36, "data_range": 255.0}, ["gamma * data_range", "1e+37"]),
]


@pytest.mark.parametrize(("keywords", "fragments"), OUT_OF_RANGE, ids=str)
def test_products_of_keywords(backend, keywords, fragments):
    """Out of the range of float32 they would turn into zeros and infinities, of either sign."""
    x = image().to(backend.device)
    refused(ValueError, [*fragments, "float32"], backend.pspl_loss, x, x, 1.0, **keywords)
    refused(ValueError, [*fragments, "float32"], PSPLLoss, **keywords)


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier"])
@pytest.mark.parametrize("gamma", [1e-15, 1e15])
def test_extreme_gamma_is_exact(backend, distance, gamma):
    """At the limits of its range, loss and gradient are gamma's (squared by l2), for errors of 100 data ranges."""
    x, y = (100 * image(1, 1, 4, 4)).to(backend.device).add_(100).requires_grad_(), image(1, 1, 4, 4).to(backend.device)
    loss = backend.pspl_loss(x, y, math.inf, gamma=gamma, distance=distance, reduction="sum", eps=1e-18)
    loss.backward()
    power = 2 if distance == "l2" else 1
    assert loss.item() == pytest.approx(16 * (100 * gamma) ** power, rel=1e-6)
    expected = {"l1": gamma, "l2": 200 * gamma**2, "charbonnier": gamma}[distance]
    assert x.grad.flatten().tolist() == pytest.approx([expected] * 16, rel=1e-6)


@pytest.mark.parametrize(
    "number", [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.int64(2), np.uint8(2)], ids=repr
)
def test_numbers_of_numpy(backend, number):
    """They mean what Python's do."""
    x, y = image().to(backend.device), image().to(backend.device) + 0.5
    with_numpy = backend.pspl_loss(x, y, number, alpha=number, sigma=number)
    assert torch.equal(with_numpy, backend.pspl_loss(x, y, number.item(), alpha=number.item(), sigma=number.item()))
