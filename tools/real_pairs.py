"""The errors of a backend on high-resolution images and the bicubic copies of their low-resolution versions.

    python tools/real_pairs.py --backend emulated data/Set5 data/Set14 data/BSD100

A folder holds, at any depth, files ``*_HR.png`` and ``*_LR.png`` of the same name. Each pair is taken in 0..1 with the constants
of the paper, and in 0..255 with those of the official code, where the column ``formula`` is the error of the official formula in
float32. The result is a table of comma-separated values, and the exit status 1 if a budget is exceeded (docs/numerics.md).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "cuda")]

import numpy as np
import torch
from skimage import io
from torch.nn.functional import interpolate

from benchmarks import official
from helpers import backends, oracle, tolerances


def pairs(folder: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, bicubic copy, image) of a folder, ``[1, 3, H, W]`` in 0..1."""
    for path in sorted(folder.rglob("*_HR.png")):
        hr, lr = (
            torch.from_numpy(np.atleast_3d(io.imread(file))[..., :3].copy()).permute(2, 0, 1)[None] / 255.0
            for file in (path, path.with_name(path.name.replace("_HR", "_LR")))
        )
        sr = interpolate(lr, scale_factor=round(hr.shape[-1] / lr.shape[-1]), mode="bicubic")
        rows, columns = (min(sizes) for sizes in zip(sr.shape[-2:], hr.shape[-2:], strict=True))
        yield f"{folder.name}/{path.stem}", sr[..., :rows, :columns], hr[..., :rows, :columns]


def errors(backend: backends.Backend, sr: torch.Tensor, hr: torch.Tensor) -> dict[str, float]:
    """Of the map, largest of a pixel; of loss and gradient, relative; with data_range 1."""
    exact = oracle.pspl(sr.double().numpy(), hr.double().numpy(), 1.0)
    leaf = sr.clone().requires_grad_()
    loss = backend.pspl_loss(leaf, hr, 1.0)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {
        "map": np.abs(backend.similarity_map(sr, hr).double().numpy() - exact.similarity).max(),
        "loss": abs(loss.item() - exact.loss) / exact.loss,
        "gradient": np.linalg.norm(gradient.double().numpy() - exact.grad_sr) / np.linalg.norm(exact.grad_sr),
        "formula": np.abs(official.similarity(sr, hr).double().numpy() - exact.similarity).max(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--backend", default="emulated")
    arguments = parser.parse_args()
    reason = backends.why_not(arguments.backend)
    if reason:
        parser.error(f"--backend {arguments.backend} can't be measured: {reason}.")
    backend = backends.Backend(arguments.backend)
    writer = csv.writer(sys.stdout)
    writer.writerow(["pair", "range", "map", "loss", "gradient", "formula"])
    exceeded = False
    for folder in arguments.folders:
        for name, sr, hr in pairs(folder):
            for scale in (1.0, 255.0):
                found = errors(backend, sr * scale, hr * scale)
                writer.writerow([name, f"{scale:g}", *(f"{value:.1e}" for value in found.values())])
                sys.stdout.flush()
                share = found["formula"] * tolerances.OFFICIAL_SHARE if scale > 1 else 0.0
                exceeded |= found["map"] > max(tolerances.SIMILARITY[torch.float32], share)
                if scale == 1:
                    exceeded |= found["loss"] > tolerances.LOSS[torch.float32]
                    exceeded |= found["gradient"] > tolerances.GRADIENT[torch.float32]
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
