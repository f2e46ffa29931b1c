"""What hypothesis draws for the tests of all backends: pairs of images, windows, constants, steps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import torch
from skimage import data

from helpers.cases import LAYOUTS, to_tensors
from pspl_cuda.config import PADDINGS

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# Strides of 0 as well, which change the values: one row for all, one image for the batch.
STRIDES = {
    **LAYOUTS,
    "expanded rows": lambda x: x[..., :1, :].expand(x.shape),
    "expanded batch": lambda x: x[:1].expand(x.shape),
}


@functools.cache
def photo() -> np.ndarray:
    return data.camera() / 255.0


@dataclass(frozen=True)
class PairRecipe:
    """How to make a pair of images; small to look at when a test fails."""

    shape: tuple[int, ...]
    kind: str
    output: str
    seed: int
    error: float
    dtypes: tuple[torch.dtype, torch.dtype]
    layouts: tuple[str, str]

    def make(self, device="cpu", scale=1.0) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(self.seed)
        rows, columns = np.ogrid[: self.shape[-2], : self.shape[-1]]
        hr = {
            "noise": lambda: rng.random(self.shape),
            "smooth": lambda: 0.5 + 0.4 * np.sin(rows / 5 + rng.random()) * np.cos(columns / 7) + np.zeros(self.shape),
            "flat": lambda: np.full(self.shape, rng.random()),
            "edge": lambda: np.where(columns * 2 > self.shape[-1], 0.9, 0.1) + np.zeros(self.shape),
            "blocks": lambda: rng.integers(0, 3, (*self.shape[:-2], 5, 5))[..., rows // 7 % 5, columns // 9 % 5] / 2,
            "photo": lambda: photo()[rng.integers(300) + rows, rng.integers(300) + columns] + np.zeros(self.shape),
        }[self.kind]()
        # An output that is far from its target everywhere; what a network gives is near it, and equal here and there.
        near = np.where(rng.random(self.shape) < 0.1, hr, hr + self.error * rng.standard_normal(self.shape))
        sr = {"near": near, "nothing": self.error * hr, "opposite": 1 - near}[self.output]
        images = to_tensors((scale * sr, scale * hr), self.dtypes, device)
        return tuple(STRIDES[layout](image) for layout, image in zip(self.layouts, images, strict=True))


def pair_recipes(dtypes=DTYPES, largest=(2, 3, 24, 40)) -> st.SearchStrategy[PairRecipe]:
    """Shapes of 3 to 5 dimensions from one pixel up, all pairs of dtypes and layouts."""
    leading = st.lists(st.integers(1, max(largest[:2])), min_size=1, max_size=3).filter(
        lambda sizes: math.prod(sizes) <= 6
    )
    shape = st.tuples(leading, st.integers(1, largest[2]), st.integers(1, largest[3])).map(lambda s: (*s[0], *s[1:]))
    return st.builds(
        PairRecipe,
        shape=shape,
        kind=st.sampled_from(["noise", "smooth", "flat", "edge", "blocks", "photo"]),
        output=st.sampled_from(["near", "near", "nothing", "opposite"]),
        seed=st.integers(0, 10**6),
        error=st.sampled_from([0.0, 1e-3, 0.03, 0.3, 1.0]),
        dtypes=st.tuples(st.sampled_from(dtypes), st.sampled_from(dtypes)),
        layouts=st.tuples(st.sampled_from([*STRIDES]), st.sampled_from([*STRIDES])),
    )


WINDOWS = st.fixed_dictionaries(
    {
        "window_size": st.sampled_from([1, 3, 5, 7, 9, 11, 13, 21]),
        "sigma": st.floats(0.5, 6),
        "padding": st.sampled_from(PADDINGS),
        "data_range": st.sampled_from([1.0, 2.0]),
    }
)


PACES = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([1.0, 0.5, 3.0]),
        "beta": st.sampled_from([0.0, 0.2]),
        "gamma": st.sampled_from([2.0, 1.0, 0.25]),
        "mu": st.floats(-1, 1),
    }
)


STEPS = st.floats(0.7, 30)
