"""The self-check, to be run after an installation and for bug reports: ``python -m pspl_cuda``.

It reports which kernels are available, compares each with the float64 reference on a degraded photograph, times the loss of a
training step, and draws the maps. The exit code is 1 if a kernel disagrees with the reference. Only torch is required;
scikit-image provides the photograph and matplotlib the picture (``pip install "pspl_cuda[demo]"``).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from torch import Tensor, nn

from . import __version__, attention_map, backend_info, pspl_loss, similarity_map

SCALE = 4
STEP = 1.0
DRAWN_STEPS = (0.5, 1.0, 2.0, 8.0)
# Largest errors against the float64 reference for float32 images in 0..1 (docs/numerics.md): absolute, relative, relative L2.
BUDGET = {"similarity": 2e-5, "loss": 1e-6, "gradient": 1e-5}
BATCH, PATCH = 16, 192
SECONDS = 6.0


class Images(NamedTuple):
    """``hr`` and ``sr``, its bicubic x4 reconstruction: float32 ``[1, 3, H, W]``, 0..1."""

    name: str
    hr: Tensor
    sr: Tensor


def load_images(path: Path | None) -> Images:
    """The image at ``path``, or scikit-image's photograph of Eileen Collins (NASA, public domain), or a synthetic image."""
    try:
        from skimage import data, io
    except ImportError:
        if path is not None:
            raise SystemExit("--image needs scikit-image. Install it with pip install scikit-image.") from None
        generator = torch.Generator().manual_seed(0)
        layers = [torch.rand(1, 3, size, size, generator=generator) for size in (8, 32, 128, 512)]
        hr = torch.stack([F.interpolate(layer, size=(512, 512), mode="bicubic") for layer in layers]).mean(0)
        return _degrade("a synthetic image (scikit-image is not installed)", hr.clamp(0, 1))
    if path is None:
        name, pixels = "scikit-image's astronaut", data.astronaut()
    else:
        try:
            name, pixels = path.name, io.imread(path)
        except Exception as error:
            raise SystemExit(f"--image {path} can't be read as an image: {error}") from None
        if pixels.ndim != 3 or pixels.shape[2] < 3 or pixels.dtype.name != "uint8" or not _is_8_bit_rgb(path):
            raise SystemExit(
                f"--image {path} has shape {pixels.shape} and dtype {pixels.dtype}; expected an image stored as 8-bit RGB, not "
                "CMYK or 16-bit."
            )
        if min(pixels.shape[:2]) < PATCH:
            raise SystemExit(
                f"--image {path} is {pixels.shape[1]}x{pixels.shape[0]}; expected at least {PATCH}x{PATCH}."
            )
    return _degrade(name, torch.from_numpy(pixels[..., :3].copy()).permute(2, 0, 1)[None].float() / 255)


def _is_8_bit_rgb(path: Path) -> bool:
    """False for CMYK, whose array has four channels as RGBA's, and for 16-bit RGB, of which Pillow keeps 8 bits.

    A file that Pillow cannot read is judged by its array alone.
    """
    from PIL import Image, UnidentifiedImageError  # a requirement of scikit-image

    try:
        with Image.open(path) as image:
            return image.mode in ("RGB", "RGBA", "P") and ";16" not in "".join(str(tile[3]) for tile in image.tile)
    except UnidentifiedImageError:
        return True


def _degrade(name: str, hr: Tensor) -> Images:
    height, width = (size // SCALE * SCALE for size in hr.shape[-2:])
    hr = hr[..., :height, :width]
    small = F.interpolate(hr, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
    return Images(name, hr, F.interpolate(small, size=(height, width), mode="bicubic"))


def environment() -> dict:
    """Versions, hardware and kernels."""
    return {
        "pspl_cuda": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **backend_info(),
    }


def runnable_backends() -> dict[str, torch.device]:
    """The backends that can run on this machine, and their devices."""
    info = backend_info()
    devices = {"reference": torch.device("cpu")}
    if info["cpu"]["available"]:
        devices["cpu"] = torch.device("cpu")
    if info["cuda"]["available"] and torch.cuda.is_available():
        devices["cuda"] = torch.device("cuda")
    return devices


def evaluate(sr: Tensor, hr: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity map, loss at STEP, and its gradient with respect to ``sr``: float64 on the CPU."""
    sr = sr.detach().requires_grad_()
    loss = pspl_loss(sr, hr, STEP, backend=backend)
    assert isinstance(loss, Tensor)
    (gradient,) = torch.autograd.grad(loss, sr)
    similarity = similarity_map(sr, hr, backend=backend)
    return similarity.double().cpu(), loss.detach().double().cpu(), gradient.double().cpu()


def compare(images: Images) -> dict[str, dict]:
    """The errors of each runnable backend against the float64 reference, and whether they are within BUDGET."""
    exact_map, exact_loss, exact_gradient = evaluate(images.sr.double(), images.hr.double(), "reference")
    found = {}
    for backend, device in runnable_backends().items():
        try:
            similarity, loss, gradient = evaluate(images.sr.to(device), images.hr.to(device), backend)
        except RuntimeError as error:
            found[backend] = {"ok": False, "error": str(error)}
            continue
        errors = {
            "similarity": (similarity - exact_map).abs().max().item(),
            "loss": ((loss - exact_loss) / exact_loss).abs().item(),
            "gradient": ((gradient - exact_gradient).norm() / exact_gradient.norm()).item(),
        }
        found[backend] = {"ok": all(errors[name] <= BUDGET[name] for name in BUDGET), **errors}
    return found


def random_patches(images: Images, device: torch.device) -> tuple[Tensor, Tensor]:
    """A training batch, ``[BATCH, 3, PATCH, PATCH]`` each."""
    generator = torch.Generator().manual_seed(0)
    height, width = images.hr.shape[-2:]
    tops = torch.randint(0, height - PATCH + 1, (BATCH,), generator=generator).tolist()
    lefts = torch.randint(0, width - PATCH + 1, (BATCH,), generator=generator).tolist()

    def crop(image: Tensor) -> Tensor:
        corners = zip(tops, lefts, strict=True)
        return torch.cat([image[..., top : top + PATCH, left : left + PATCH] for top, left in corners]).to(device)

    return crop(images.sr), crop(images.hr)


def time_losses(images: Images, device: torch.device) -> dict[str, float]:
    """Median milliseconds of forward + backward, measured in interleaved rounds."""
    sr, hr = random_patches(images, device)
    sr.requires_grad_()
    losses: dict[str, Callable] = {"nn.L1Loss": nn.L1Loss()}
    losses["reference"] = lambda sr, hr: pspl_loss(sr, hr, STEP, backend="reference")
    if device.type in runnable_backends():
        losses[device.type] = lambda sr, hr: pspl_loss(sr, hr, STEP, backend=device.type)
    times: dict[str, list[float]] = {name: [] for name in losses}
    end = time.monotonic() + SECONDS
    while len(times["reference"]) < 2 or time.monotonic() < end:
        for name, loss in losses.items():
            # The fast ones more often: a median of few short times is noise.
            for _ in range(1 if name == "reference" else 5):
                sr.grad = None
                start = time.perf_counter()
                loss(sr, hr).backward()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(each[1:]) for name, each in times.items()}  # the first call is a warm-up


def check_picture(path: Path) -> None:
    """SystemExit if matplotlib has no format for ``path``, so that nothing is computed first."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        return
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.is_dir() or path.suffix[1:].lower() not in formats:
        raise SystemExit(f"--out is {path}; expected a file that ends in {', '.join(f'.{name}' for name in formats)}.")


def draw(images: Images, path: Path) -> None:
    """Write the images, the similarity map and attention maps at DRAWN_STEPS to ``path``."""
    from matplotlib.figure import Figure

    def channel_mean(image: Tensor) -> Tensor:
        return image[0].mean(0)

    error = channel_mean((images.sr - images.hr).abs())
    similarity = channel_mean(similarity_map(images.sr, images.hr))
    figure = Figure(figsize=(17, 8.6), layout="constrained")
    panels: list[tuple[str, Tensor, dict]] = [
        ("HR", images.hr[0].permute(1, 2, 0), {}),
        (f"SR: bicubic x{SCALE}", images.sr[0].permute(1, 2, 0).clamp(0, 1), {}),
        ("|SR - HR|", error, {"cmap": "gray", "vmin": 0, "vmax": torch.quantile(error, 0.995).item()}),
        ("similarity map $M_s$ (SSIM)", similarity, {"cmap": "viridis", "vmin": similarity.min().item(), "vmax": 1}),
    ]
    for step in DRAWN_STEPS:
        attention = channel_mean(attention_map(images.sr, images.hr, step))
        title = f"attention map $M_a$ at step {step:g}, mean {attention.mean():.2g}"
        panels.append((title, attention, {"cmap": "magma", "vmin": 0, "vmax": 2}))
    for axes, (title, image, style) in zip(figure.subplots(2, 4).flat, panels, strict=True):
        shown = axes.imshow(image.numpy(), interpolation="nearest", **style)
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
        if style:
            figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.02)
    figure.suptitle(
        f"PSPL on {images.name}: training first emphasises pixels that are dissimilar to the target, "
        "then weights all pixels equally (1 step = 1000 iterations)"
    )
    figure.savefig(path, dpi=80)


def print_environment(found: dict) -> None:
    print(f"pspl_cuda {found['pspl_cuda']}, Python {found['python']}, {found['platform']}")
    print(f"torch {found['torch']} (kernels built with {found['torch_built_with'] or 'none: no kernels were built'})")
    cpu, cuda = found["cpu"], found["cuda"]
    print(f"CPU kernel:  {'yes, ' + cpu['instruction_set'] if cpu['available'] else 'no: ' + cpu['reason']}")
    built = f"yes, nvcc {cuda['toolkit']} for {', '.join(cuda['architectures'])}"
    print(f"CUDA kernel: {built if cuda['available'] else 'no: ' + cuda['reason']}")
    print(f"GPU:         {', '.join(found['gpus']) or 'not found by torch'}")


def print_agreement(images: Images, found: dict[str, dict]) -> None:
    shape = "x".join(map(str, images.hr.shape))
    print(f"\nErrors against the float64 reference on {images.name}, {shape} float32, step {STEP:g}:")
    print(f"{'backend':12}{'similarity map':>16}{'loss':>12}{'gradient':>12}")
    for backend, result in found.items():
        if "error" in result:
            print(f"{backend:12}FAILED: {result['error']}")
        else:
            print(_error_line(backend, result) + ("   ok" if result["ok"] else "   DISAGREES"))
    print(_error_line("allowed", BUDGET))


def _error_line(name: str, errors: dict) -> str:
    return f"{name:12}{errors['similarity']:16.1e}{errors['loss']:12.1e}{errors['gradient']:12.1e}"


def print_times(device: str, found: dict[str, float]) -> None:
    print(f"\nForward + backward of {BATCH}x3x{PATCH}x{PATCH} float32 on the {device}, median:")
    for name, value in found.items():
        label = name if name == "nn.L1Loss" else f"PSPL, {name}"
        print(f"{label:18}{value:9.2f} ms{value / found['nn.L1Loss']:9.2f} x nn.L1Loss")


def main(arguments: list[str] | None = None) -> int:
    """Run the self-check; 0 if every backend agrees with the reference, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m pspl_cuda", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the kernels and their errors: no times, no picture")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, for a bug report; no picture")
    parser.add_argument("--image", type=Path, help="an 8-bit RGB image instead of the photograph")
    parser.add_argument(
        "--out", type=Path, default=Path("pspl_self_check.png"), help="the picture (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not (options.json or options.quick):
        check_picture(options.out)
    try:
        return self_check(options)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130


def self_check(options: argparse.Namespace) -> int:
    report: dict[str, dict] = {"environment": environment()}
    if not options.json:
        print_environment(report["environment"])
    images = load_images(options.image)
    report["agreement"] = compare(images)
    agrees = all(result["ok"] for result in report["agreement"].values())
    if not options.json:
        print_agreement(images, report["agreement"])
    if not options.quick:
        report["milliseconds"] = {}
        for device in dict.fromkeys(runnable_backends().values()):
            report["milliseconds"][device.type] = time_losses(images, device)
            if not options.json:
                print_times(device.type, report["milliseconds"][device.type])
    if options.json:
        print(json.dumps(report, indent=1))
    elif not options.quick:
        try:
            draw(images, options.out)
            print(f"\nPicture: {options.out}")
        except ImportError:
            print("\nNo picture: matplotlib is not installed. Install it with pip install matplotlib.")
        except OSError as error:
            print(f"\nNo picture: --out {options.out} can't be written: {error}")
            return 1
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
