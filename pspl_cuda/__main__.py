"""``python -m pspl_cuda``: the self-check, and the first thing to run after an installation.

On a real photograph, degraded by bicubic x4, it shows which kernels are there, holds each of them against the float64
reference, times a training step's loss, and draws the maps.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from . import attention_map, backend_info, pspl_loss, reference, similarity_map

SCALE = 4
STEP = 1.0
DRAWN_STEPS = (0.5, 1.0, 2.0, 8.0)
# Against the float64 reference, for float32 images of range 0..1 (docs: the numerics budget).
BUDGET = {"similarity": 2e-5, "loss": 1e-6, "gradient": 1e-5}
BATCH, PATCH = 16, 192
SECONDS_PER_TIMING = 6.0


class Photograph(NamedTuple):
    """``hr`` and its degraded copy ``sr``, float32 ``[1, 3, H, W]`` in 0..1."""

    name: str
    hr: Tensor
    sr: Tensor


@contextlib.contextmanager
def progress(what: str):
    """A line on stderr that lives while ``what`` takes longer than a moment."""
    done = threading.Event()

    def spin() -> None:
        start = time.monotonic()
        if done.wait(0.5):
            return
        if not sys.stderr.isatty():
            print(f"{what} ...", file=sys.stderr, flush=True)
            return
        for mark in itertools.cycle("|/-\\"):
            print(f"\r{mark} {what} ({time.monotonic() - start:.0f} s)", end="", file=sys.stderr, flush=True)
            if done.wait(0.2):
                print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
                return

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def photograph(path: Path | None) -> Photograph:
    """scikit-image's photograph of Eileen Collins (NASA, public domain), or the image at ``path``."""
    try:
        from skimage import data, io
    except ImportError as error:
        raise SystemExit(
            f"The self-check needs scikit-image ({error}). Install it with pip install scikit-image."
        ) from None
    if path is None:
        name, pixels = "scikit-image's astronaut", data.astronaut()
    else:
        try:
            name, pixels = path.name, io.imread(path)
        except Exception as error:
            raise SystemExit(f"--image {path} can't be read as an image: {error}") from None
        if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype.name != "uint8":
            raise SystemExit(f"--image {path} has shape {pixels.shape} and dtype {pixels.dtype}; expected 8-bit RGB.")
        if min(pixels.shape[:2]) < PATCH:
            raise SystemExit(
                f"--image {path} is {pixels.shape[1]}x{pixels.shape[0]}; expected at least {PATCH}x{PATCH}."
            )
    height, width = (size // SCALE * SCALE for size in pixels.shape[:2])
    hr = torch.from_numpy(pixels[:height, :width, :3].copy()).permute(2, 0, 1)[None].float() / 255
    small = F.interpolate(hr, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    sr = F.interpolate(small, size=(height, width), mode="bicubic")
    return Photograph(name, hr, sr)


def report_kernels() -> None:
    """Print what :func:`backend_info` knows."""
    info = backend_info()
    print(f"torch {info['torch']} (built with {info['torch_built_with'] or 'nothing: no kernels were built'})")
    cpu, cuda = info["cpu"], info["cuda"]
    print(f"CPU kernel:  {'yes, ' + cpu['instruction_set'] if cpu['available'] else 'no: ' + cpu['reason']}")
    built = f"yes, nvcc {cuda['toolkit']} for {', '.join(cuda['architectures'])}"
    print(f"CUDA kernel: {built if cuda['available'] else 'no: ' + cuda['reason']}")
    if torch.cuda.is_available():
        print(f"GPU:         {torch.cuda.get_device_name()}")
    else:
        print("GPU:         none that torch sees")


def usable_backends() -> dict[str, torch.device]:
    """The backends that can run here, with the device that each takes."""
    info = backend_info()
    devices = {"reference": torch.device("cpu")}
    if info["cpu"]["available"]:
        devices["cpu"] = torch.device("cpu")
    if info["cuda"]["available"] and torch.cuda.is_available():
        devices["cuda"] = torch.device("cuda")
    return devices


def loss_and_gradient(sr: Tensor, hr: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The loss at STEP and its gradient to ``sr``, float64 on the CPU."""
    sr = sr.detach().requires_grad_()
    loss = pspl_loss(sr, hr, STEP, backend=backend)
    (gradient,) = torch.autograd.grad(loss, sr)
    return loss.detach().double().cpu(), gradient.double().cpu()


def check_agreement(photo: Photograph) -> bool:
    """Print how far each backend is from the float64 reference; True if all are within BUDGET."""
    with progress("float64 reference"):
        exact_map = reference.similarity_map(photo.sr.double(), photo.hr.double())
        exact_loss, exact_gradient = loss_and_gradient(photo.sr.double(), photo.hr.double(), "reference")
    print(f"\nAgreement with the float64 reference on {photo.name}, {tuple(photo.hr.shape)} float32, step {STEP:g}:")
    print(f"{'backend':12}{'similarity map':>16}{'loss':>12}{'gradient':>12}")
    print(f"{'':12}{'largest error':>16}{'relative':>12}{'relative':>12}")
    fine = True
    for backend, device in usable_backends().items():
        sr, hr = photo.sr.to(device), photo.hr.to(device)
        with progress(backend):
            found_map = similarity_map(sr, hr, backend=backend).double().cpu()
            loss, gradient = loss_and_gradient(sr, hr, backend)
        errors = {
            "similarity": (found_map - exact_map).abs().max().item(),
            "loss": ((loss - exact_loss) / exact_loss).abs().item(),
            "gradient": ((gradient - exact_gradient).norm() / exact_gradient.norm()).item(),
        }
        within = all(errors[name] <= BUDGET[name] for name in BUDGET)
        fine &= within
        print(
            f"{backend:12}{errors['similarity']:16.1e}{errors['loss']:12.1e}{errors['gradient']:12.1e}"
            f"   {'ok' if within else 'OUTSIDE THE BUDGET'}"
        )
    print(f"{'budget':12}{BUDGET['similarity']:16.1e}{BUDGET['loss']:12.1e}{BUDGET['gradient']:12.1e}")
    return fine


def patches(photo: Photograph, device: torch.device) -> tuple[Tensor, Tensor]:
    """A training batch of random crops, ``[BATCH, 3, PATCH, PATCH]`` each."""
    generator = torch.Generator().manual_seed(0)
    height, width = photo.hr.shape[-2:]
    rows = torch.randint(0, height - PATCH + 1, (BATCH,), generator=generator).tolist()
    columns = torch.randint(0, width - PATCH + 1, (BATCH,), generator=generator).tolist()
    corners = list(zip(rows, columns, strict=True))
    return tuple(
        torch.cat([image[..., r : r + PATCH, c : c + PATCH] for r, c in corners]).to(device)
        for image in (photo.sr, photo.hr)
    )


def time_training_step(photo: Photograph, device: torch.device, fused: str | None) -> None:
    """Print the time of the loss forward and backward, as multiples of ``nn.L1Loss``, interleaved so that noise hits all."""
    sr, hr = patches(photo, device)
    sr.requires_grad_()
    l1 = nn.L1Loss()
    losses = {"nn.L1Loss": lambda: l1(sr, hr), "PSPL, reference": lambda: pspl_loss(sr, hr, STEP, backend="reference")}
    if fused is not None:
        losses[f"PSPL, fused ({fused})"] = lambda: pspl_loss(sr, hr, STEP, backend=fused)

    def once(name: str) -> float:
        sr.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        losses[name]().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds: dict[str, list[float]] = {name: [] for name in losses}
    with progress(f"timing on the {device.type}"):
        for name in losses:
            once(name)
        end = time.monotonic() + SECONDS_PER_TIMING
        while time.monotonic() < end:
            for name in losses:
                # The fast ones more often: a median of few short times is noise.
                seconds[name] += [once(name) for _ in range(1 if name == "PSPL, reference" else 5)]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"\nForward and backward of {tuple(sr.shape)} float32 on the {device.type}{threads} (medians of one run):")
    for name, value in middle.items():
        print(f"{name:22}{value * 1e3:9.2f} ms{value / middle['nn.L1Loss']:9.2f} x nn.L1Loss")


def draw(photo: Photograph, path: Path) -> None:
    """Write the photograph, its degraded copy, the similarity map and attention maps at DRAWN_STEPS to ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def over_channels(image: Tensor) -> Tensor:
        return image[0].mean(0)

    error = over_channels((photo.sr - photo.hr).abs())
    similarity = over_channels(similarity_map(photo.sr, photo.hr))
    figure, axes = pyplot.subplots(2, 4, figsize=(17, 8.6), layout="constrained")
    panels = [
        ("HR: the photograph", photo.hr[0].permute(1, 2, 0), {}),
        (f"SR: bicubic x{SCALE}", photo.sr[0].permute(1, 2, 0).clamp(0, 1), {}),
        ("|SR - HR|", error, {"cmap": "gray", "vmin": 0, "vmax": torch.quantile(error, 0.995).item()}),
        ("similarity map $M_s$ (SSIM)", similarity, {"cmap": "viridis", "vmin": similarity.min().item(), "vmax": 1}),
    ]
    for step in DRAWN_STEPS:
        attention = over_channels(attention_map(photo.sr, photo.hr, step))
        title = f"attention map $M_a$ at step {step:g}, mean {attention.mean():.2g}"
        panels.append((title, attention, {"cmap": "magma", "vmin": 0, "vmax": 2}))
    for axis, (title, image, style) in zip(axes.flat, panels, strict=True):
        shown = axis.imshow(image.numpy(), interpolation="nearest", **style)
        axis.set_title(title, fontsize=11)
        axis.set_axis_off()
        if style:
            figure.colorbar(shown, ax=axis, fraction=0.046, pad=0.02)
    figure.suptitle(
        f"PSPL on {photo.name}: pixels unlike the target are learned first, all of them in the end (1 step = 1000 iterations)"
    )
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run the self-check; 0 if every backend agrees with the reference."""
    parser = argparse.ArgumentParser(prog="python -m pspl_cuda", description=__doc__)
    parser.add_argument("--image", type=Path, help="an 8-bit RGB image instead of scikit-image's photograph")
    parser.add_argument(
        "--out", type=Path, default=Path("pspl_self_check.png"), help="the picture (default: %(default)s)"
    )
    parser.add_argument("--no-timing", action="store_true", help="leave out the timing")
    options = parser.parse_args(arguments)

    report_kernels()
    photo = photograph(options.image)
    fine = check_agreement(photo)
    if not options.no_timing:
        backends = usable_backends()
        time_training_step(photo, torch.device("cpu"), "cpu" if "cpu" in backends else None)
        if "cuda" in backends:
            time_training_step(photo, torch.device("cuda"), "cuda")
    try:
        with progress("drawing"):
            draw(photo, options.out)
        print(f"\nPicture: {options.out}")
    except ImportError as error:
        print(f"\nNo picture: matplotlib is missing ({error}). Install it with pip install matplotlib.")
    except OSError as error:
        print(f"\nNo picture: --out {options.out} can't be written: {error}")
        fine = False
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
