"""Which sizes, dtypes, layouts and numbers of threads are measured, and on which images."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor

MIXED = "bfloat16+float32"
MIXED_HALF = "float16+float32"
# Of sr and of hr. Under autocast, sr is in 16 bits and hr in float32.
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    MIXED: (torch.bfloat16, torch.float32),
    MIXED_HALF: (torch.float16, torch.float32),
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

PATCHES = (16, 3, 192, 192)
SIZES = (
    (1, 3, 64, 64),
    PATCHES,
    (4, 3, 512, 512),
    (8, 3, 1080, 1920),
    (1, 3, 2160, 3840),
)
# float32, contiguous is measured with every implementation; large images and other cases with these, at these sizes.
OTHER_KEYS = ("l1", "l1_compile", "fused")
# traiNNer-redux's templates: float16 autocast, channels_last, charbonnier.
CHARBONNIER_KEYS = (*OTHER_KEYS, "charbonnier", "fused_charbonnier")
LARGE = 8 * 10**6
OTHER_SIZES = {"cpu": (PATCHES,), "cuda": (PATCHES, (8, 3, 1080, 1920))}
OTHERS = (
    ("float32", "channels_last"),
    ("bfloat16", "contiguous"),
    ("bfloat16", "channels_last"),
    ("float16", "contiguous"),
    (MIXED, "contiguous"),
    (MIXED, "channels_last"),
    (MIXED_HALF, "channels_last"),
)
# A whole training step: forward and backward of ESPCN x4 (Shi et al., CVPR 2016) and of the loss, and a step of Adam.
TRAINING_KEYS = ("l1", "fused", "official")
TRAINING_SCALE = 4


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    layout: str = "contiguous"
    threads: int | None = None  # None: all
    training: bool = False  # a whole training step instead of the loss alone

    @property
    def keys(self) -> tuple[str, ...] | None:
        """The implementations that are measured; None: all."""
        if self.training:
            return TRAINING_KEYS
        if self.plain and self.numel < LARGE:
            return None
        return CHARBONNIER_KEYS if self.dtype == MIXED_HALF else OTHER_KEYS

    @property
    def floor_bytes(self) -> int:
        """What must pass through memory: both images, and the gradient of sr. Backward needs no more."""
        sr, hr = DTYPES[self.dtype]
        return self.numel * (2 * sr.itemsize + hr.itemsize)

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def plain(self) -> bool:
        """Whether it differs in its size only."""
        return self == Case(self.shape)

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return (
            f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout}{threads}{', training step' * self.training}"
        )


def select(
    device_type: str,
    quick: bool,
    sizes: list[tuple[int, ...]] | None = None,
    dtypes: list[str] | None = None,
    layouts: list[str] | None = None,
) -> list[Case]:
    """The cases of a run: ``sizes`` x ``dtypes`` x ``layouts`` if sizes are given, else a selection of the standard list."""
    if sizes:
        return [
            Case(shape, dtype, layout)
            for shape in sizes
            for dtype in dtypes or ["float32"]
            for layout in layouts or ["contiguous"]
        ]
    plain = [Case(shape) for shape in SIZES]
    others = [Case(shape, *kind) for shape in OTHER_SIZES[device_type] for kind in OTHERS]
    others += [Case(PATCHES, threads=1)] * (device_type == "cpu") + [Case(PATCHES, training=True)]
    if quick:
        plain = [Case(SIZES[0]), Case(PATCHES)]
        others = [Case(PATCHES, *kind) for kind in OTHERS[:2]]
    return [
        case
        for case in plain + others
        if (not dtypes or case.dtype in dtypes) and (not layouts or case.layout in layouts)
    ]


def parse_size(text: str) -> tuple[int, ...]:
    """``NxCxHxW`` as four positive integers; ValueError otherwise."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        raise ValueError(f"the size is {text!r}; expected NxCxHxW, for example 16x3x192x192.")
    return tuple(map(int, text.split("x")))


def images(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """``(sr, hr)`` in 0..1: ``hr`` is smooth with some noise, ``sr`` a noisy copy that requires grad."""
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = case.shape
    coarse = torch.rand(batch, channels, -(-height // 16), -(-width // 16), generator=generator)
    hr = F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.02 * torch.randn(
        case.shape, generator=generator
    )
    sr = hr + 0.03 * torch.randn(case.shape, generator=generator)
    sr, hr = (
        image.clamp(0, 1).to(device, dtype).contiguous(memory_format=LAYOUTS[case.layout])
        for image, dtype in zip((sr, hr), DTYPES[case.dtype], strict=True)
    )
    return sr.requires_grad_(), hr
