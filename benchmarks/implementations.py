"""What is measured: the fused loss, its reference, the official formula, ``nn.L1Loss``, and PSPL on other SSIM packages."""

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

# delta = 1: the paper's schedule after 1000 iterations, where an error in the similarity map matters most.
STEP = 1.0
# Charbonnier's, as in the training frameworks.
EPS = 1e-6

Loss = Callable[[Tensor, Tensor], Tensor]


class Tolerance(NamedTuple):
    """The definition that an implementation follows, and the relative errors that float32 may cause."""

    padding: str | None
    """How its similarity map extends the image; None for the plain L1 loss."""
    loss: float
    gradient: float
    """In the L2 norm."""
    distance: str = "l1"


# The error budget of this package (docs/numerics.md).
BUDGET = Tolerance("zeros", loss=1e-6, gradient=1e-5)
# E[x^2] - mu^2 in float32: a moment adds 121 products whose rounding errors of 2^-24 grow like the square root of their number;
# with those of the squares, 16 of them. In flat regions Eq. 5 divides them by C2, and at delta = 1 the weight changes by up to 4
# times as much.
_TEXTBOOK_ERROR = 4 * 16 * 2.0**-24 / 0.03**2


def textbook(padding: str) -> Tolerance:
    """The tolerance of the formula as SSIM packages usually implement it."""
    return Tolerance(padding, loss=_TEXTBOOK_ERROR, gradient=_TEXTBOOK_ERROR)


class Implementation(NamedTuple):
    key: str
    """Its name on the command line."""
    name: str
    """Its name in results."""
    loss: Loss
    tolerance: Tolerance
    ours: bool = False
    """Whether a wrong result is an error of this package."""


class UnavailableError(Exception):
    """Says in a sentence why an implementation can't be measured here."""


def _pspl(backend: str, distance: str = "l1") -> Loss:
    return lambda sr, hr: pspl_cuda.pspl_loss(sr, hr, STEP, distance=distance, eps=EPS, backend=backend)


def plain(sr: Tensor, hr: Tensor, distance: str) -> Tensor:
    """The unweighted loss of each pixel."""
    return (sr - hr).abs() if distance == "l1" else ((sr - hr).square() + EPS**2).sqrt()


def _l1(device: torch.device) -> Implementation:
    return Implementation("l1", "nn.L1Loss", nn.L1Loss(), Tolerance(None, loss=1e-6, gradient=1e-6))


def _charbonnier(device: torch.device) -> Implementation:
    tolerance = Tolerance(None, loss=1e-6, gradient=1e-6, distance="charbonnier")
    return Implementation(
        "charbonnier", "charbonnier, eager", lambda sr, hr: plain(sr, hr, "charbonnier").mean(), tolerance
    )


def _fused(device: torch.device) -> Implementation:
    info = pspl_cuda.backend_info()[device.type]
    if not info["available"]:
        raise UnavailableError(info["reason"])
    return Implementation("fused", "PSPL fused", _pspl(device.type), BUDGET, ours=True)


def _fused_charbonnier(device: torch.device) -> Implementation:
    return _fused(device)._replace(
        key="fused_charbonnier",
        name="PSPL fused, charbonnier",
        loss=_pspl(device.type, "charbonnier"),
        tolerance=BUDGET._replace(distance="charbonnier"),
    )


def _compile(loss: Loss, device: torch.device) -> Loss:
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UnavailableError("torch.compile needs a C++ compiler on the PATH")
    return torch.compile(loss, dynamic=False)


def _l1_compiled(device: torch.device) -> Implementation:
    loss = _compile(nn.L1Loss(), device)
    return _l1(device)._replace(key="l1_compile", name="nn.L1Loss, torch.compile", loss=loss)


def _compiled(device: torch.device) -> Implementation:
    loss = _compile(_pspl("reference"), device)
    return Implementation("compile", "PSPL reference, torch.compile", loss, BUDGET, ours=True)


def _reference(device: torch.device) -> Implementation:
    return Implementation("reference", "PSPL reference, eager", _pspl("reference"), BUDGET, ours=True)


def _official(device: torch.device) -> Implementation:
    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        return official.loss(sr, hr, STEP)

    return Implementation("official", "official formula, eager", loss, textbook("zeros"))


# ``similarity(sr, hr)`` of another package: its own full map if it has one, else Eq. 5 with its Gaussian filter.


def _fused_map(module: str) -> Loss:
    fused_map = importlib.import_module(module).FusedSSIMMap
    return lambda sr, hr: fused_map.apply(0.01**2, 0.03**2, sr.contiguous(), hr.contiguous(), "same", False)


def _pytorch_msssim() -> Loss:
    from pytorch_msssim.ssim import _fspecial_gauss_1d, gaussian_filter

    line = _fspecial_gauss_1d(11, 1.5)

    def similarity(sr: Tensor, hr: Tensor) -> Tensor:
        window = line.to(sr).repeat(sr.shape[1], 1, 1, 1)
        # It filters without padding; padded with zeros, the result has the image's size.
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
    similarity: Callable[[], Loss]
    padding: str = "zeros"
    cuda_only: bool = False


PEERS = {
    "fussim": Peer("fussim", lambda: _fused_map("fussim"), cuda_only=True),
    "fused_ssim": Peer("fused-ssim", lambda: _fused_map("fused_ssim"), cuda_only=True),
    "pytorch_msssim": Peer("pytorch-msssim", _pytorch_msssim),
    "torchmetrics": Peer("torchmetrics", _torchmetrics, padding="reflect"),
    "kornia": Peer("kornia", _kornia, padding="reflect"),
    "piqa": Peer("piqa", _piqa),
}


def _on_peer(key: str, device: torch.device) -> Implementation:
    """PSPL with a peer's similarity map; attention and weighted L1 in eager PyTorch."""
    peer = PEERS[key]
    if peer.cuda_only and device.type != "cuda":
        raise UnavailableError("it has a CUDA kernel only")
    try:
        similarity = peer.similarity()
        installed = version(peer.distribution)
    except PackageNotFoundError:
        installed = "(unknown version)"
    except Exception as error:  # a peer built for another torch may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == key:
            raise UnavailableError("it is not installed") from None
        raise UnavailableError(f"it can't be used: {type(error).__name__}: {error}") from None

    def loss(sr: Tensor, hr: Tensor) -> Tensor:
        with torch.no_grad():
            attention = 2 * torch.exp(-((similarity(sr, hr) + 1) ** 2) / STEP**2)
        return (attention * (sr - hr).abs()).mean()

    return Implementation(key, f"PSPL on {peer.distribution} {installed}", loss, textbook(peer.padding))


_OWN = {
    "l1": _l1,
    "l1_compile": _l1_compiled,
    "fused": _fused,
    "charbonnier": _charbonnier,
    "fused_charbonnier": _fused_charbonnier,
    "compile": _compiled,
    "reference": _reference,
    "official": _official,
}
KEYS = (*_OWN, *PEERS)


def training_step(loss: Loss, sr: Tensor, hr: Tensor, scale: int) -> Callable[[], None]:
    """A call that trains ESPCN x ``scale`` once: from the shrunken ``sr`` to ``hr``."""
    channels = hr.shape[1]
    features = [nn.Conv2d(channels, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
    enlarge = [nn.Conv2d(32, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale)]
    network = nn.Sequential(*features, *enlarge).to(hr.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    lr = F.avg_pool2d(sr.detach(), scale)

    def step() -> None:
        optimizer.zero_grad()
        loss(network(lr), hr).backward()
        optimizer.step()

    return step


def make(key: str, device: torch.device) -> Implementation:
    """The implementation called ``key``; raises UnavailableError if it can't run here."""
    return _OWN[key](device) if key in _OWN else _on_peer(key, device)


def available(device: torch.device, keys: tuple[str, ...] = KEYS) -> tuple[list[Implementation], dict[str, str]]:
    """The implementations that can be measured here, and ``{name: reason}`` for the others."""
    found, missing = [], {}
    for key in keys:
        try:
            found.append(make(key, device))
        except UnavailableError as error:
            missing[f"PSPL on {PEERS[key].distribution}" if key in PEERS else f"PSPL {key}"] = str(error)
    return found, missing
