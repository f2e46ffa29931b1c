"""What is measured: the fused loss, its reference, the official formula, the price to beat, and PSPL on other people's SSIM."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

import pspl_cuda

from . import official

# delta = 1, where the paper's schedule is after 1000 iterations and an error in the map weighs most.
STEP = 1.0

Loss = Callable[[Tensor, Tensor], Tensor]


class Claim(NamedTuple):
    """What an implementation says that it computes, and how far off float32 may leave it."""

    padding: str | None
    """What its similarity map takes to lie outside the image; None for the plain L1 loss."""
    loss: float
    """Relative error of the loss."""
    gradient: float
    """Relative L2 error of the gradient."""


# The error budget of this package.
BUDGET = Claim("zeros", loss=1e-6, gradient=1e-5)
# E[x^2] - mu^2 in float32: a moment adds up 121 products, whose roundings of 2^-24 grow like the square root of their number;
# with those of the squares, 16 of them. In flat parts Eq. 5 divides that by C2, and at delta = 1 the weight changes by up to 4
# times as much.
_TEXTBOOK = 4 * 16 * 2.0**-24 / 0.03**2


def textbook(padding: str) -> Claim:
    """The claim of an implementation of the formula as it stands in the books."""
    return Claim(padding, loss=_TEXTBOOK, gradient=_TEXTBOOK)


class Implementation(NamedTuple):
    key: str
    """Its name on the command line."""
    name: str
    """Its name in results."""
    loss: Loss
    claim: Claim
    ours: bool = False
    """Whether a wrong result is this package's fault."""


L1 = Implementation("l1", "nn.L1Loss", nn.L1Loss(), Claim(None, loss=1e-6, gradient=1e-6))
REFERENCE = Implementation(
    "reference",
    "PSPL reference, eager",
    lambda sr, hr: pspl_cuda.pspl_loss(sr, hr, STEP, backend="reference"),
    BUDGET,
    ours=True,
)
OFFICIAL = Implementation(
    "official", "official formula, eager", lambda sr, hr: official.loss(sr, hr, STEP), textbook("zeros")
)


class UnavailableError(Exception):
    """Says in a sentence why an implementation is not measured here."""


def fused(device: torch.device) -> Implementation:
    info = pspl_cuda.backend_info()[device.type]
    if not info["available"]:
        raise UnavailableError(info["reason"])
    return Implementation(
        "fused",
        "PSPL fused",
        lambda sr, hr: pspl_cuda.pspl_loss(sr, hr, STEP, backend=device.type),
        BUDGET,
        ours=True,
    )


def compiled(device: torch.device) -> Implementation:
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UnavailableError("torch.compile needs a C++ compiler on the PATH")
    loss = torch.compile(REFERENCE.loss, dynamic=False)
    return Implementation("compile", "PSPL reference, torch.compile", loss, BUDGET, ours=True)


# ``similarity(sr, hr)`` of a peer: its own full map where it has one; else Eq. 5 with its own Gaussian filter, as who builds PSPL
# on it has to write. Nothing is padded, cropped or resized to make definitions agree, except where a comment says so.


def _fussim() -> Loss:
    from fussim import FusedSSIMMap

    return lambda sr, hr: FusedSSIMMap.apply(0.01**2, 0.03**2, sr.contiguous(), hr.contiguous(), "same", False)


def _fused_ssim() -> Loss:
    from fused_ssim import FusedSSIMMap

    return lambda sr, hr: FusedSSIMMap.apply(0.01**2, 0.03**2, sr.contiguous(), hr.contiguous(), "same", False)


def _pytorch_msssim() -> Loss:
    from pytorch_msssim.ssim import _fspecial_gauss_1d, gaussian_filter

    line = _fspecial_gauss_1d(11, 1.5)

    def similarity(sr: Tensor, hr: Tensor) -> Tensor:
        window = line.to(sr).repeat(sr.shape[1], 1, 1, 1)
        # It filters the inside only: with zeros around the image, the inside is the image.
        return official.similarity_of(lambda image: gaussian_filter(F.pad(image, (5, 5, 5, 5)), window), sr, hr)

    return similarity


def _torchmetrics() -> Loss:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return lambda sr, hr: structural_similarity_index_measure(
        sr, hr, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )[1]


def _kornia() -> Loss:
    from kornia.metrics import ssim

    return lambda sr, hr: ssim(sr, hr, window_size=11, max_val=1.0)


def _piqa() -> Loss:
    from piqa.utils.functional import channel_convs, gaussian_kernel, kernel_views

    line = gaussian_kernel(11, 1.5)

    def similarity(sr: Tensor, hr: Tensor) -> Tensor:
        window = kernel_views(line.repeat(sr.shape[1], 1, 1).to(sr), 2)
        return official.similarity_of(lambda image: channel_convs(image, window, 5), sr, hr)

    return similarity


class Peer(NamedTuple):
    distribution: str
    padding: str = "zeros"
    similarity: Callable[[], Loss] | None = None
    cuda_only: bool = False
    why_not: str | None = None


PEERS = {
    "fussim": Peer("fussim", similarity=_fussim, cuda_only=True),
    "fused_ssim": Peer("fused-ssim", similarity=_fused_ssim, cuda_only=True),
    "pytorch_msssim": Peer("pytorch-msssim", similarity=_pytorch_msssim),
    "torchmetrics": Peer("torchmetrics", padding="reflect", similarity=_torchmetrics),
    "kornia": Peer("kornia", padding="reflect", similarity=_kornia),
    "piqa": Peer("piqa", similarity=_piqa),
    "piq": Peer(
        "piq",
        why_not="it returns means only, and its filter is the official formula's: one F.conv2d with 121 taps",
    ),
}


def on_peer(key: str, device: torch.device) -> Implementation:
    """PSPL composed on a peer's map: attention and weighted L1 in eager PyTorch, a gradient through the residual only."""
    peer = PEERS[key]
    if peer.why_not:
        raise UnavailableError(peer.why_not)
    try:
        importlib.import_module(key)
    except ModuleNotFoundError as error:
        if error.name == key:
            raise UnavailableError("it is not installed") from None
        raise UnavailableError(f"it can't be imported: {error}") from None
    except Exception as error:  # a peer built for another torch may raise anything
        raise UnavailableError(f"it can't be imported: {type(error).__name__}: {error}") from None
    if peer.cuda_only and device.type != "cuda":
        raise UnavailableError("it has a CUDA kernel only")
    try:
        similarity = peer.similarity()
    except (ImportError, AttributeError) as error:
        raise UnavailableError(f"this version of it differs from the one the benchmark knows: {error}") from None

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            attention = 2 * torch.exp(-((similarity(sr, hr) + 1) ** 2) / STEP**2)
        return (attention * (sr - hr).abs()).mean()

    return Implementation(
        key, f"PSPL on {peer.distribution} {_version(peer.distribution)}", loss, textbook(peer.padding)
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(unknown version)"


KEYS = ("l1", "fused", "compile", "reference", "official", *PEERS)


def make(key: str, device: torch.device) -> Implementation:
    """The implementation called ``key``; UnavailableError if it can't run here."""
    if key in PEERS:
        return on_peer(key, device)
    if key == "fused":
        return fused(device)
    if key == "compile":
        return compiled(device)
    return {"l1": L1, "reference": REFERENCE, "official": OFFICIAL}[key]


def available(device: torch.device, keys: tuple[str, ...] = KEYS) -> tuple[list[Implementation], dict[str, str]]:
    """What can be measured here, and for the rest ``{name: why not}``."""
    found, missing = [], {}
    for key in keys:
        try:
            found.append(make(key, device))
        except UnavailableError as error:
            missing[f"PSPL on {PEERS[key].distribution}" if key in PEERS else f"PSPL {key}"] = str(error)
    return found, missing
