"""A minimal training with PSPL: a small super-resolution network, on a photograph inside scikit-image. Half a minute on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from skimage.data import astronaut
from torch import nn

from pspl_cuda import PSPLLoss

SCALE, PATCH, BATCH = 2, 48, 8


class Network(nn.Module):
    """Three convolutions add detail to the bicubic enlargement."""

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
        self.detail = nn.Sequential(*layers, nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, lr):
        image = F.interpolate(lr, scale_factor=SCALE, mode="bicubic")
        return image + self.detail(image)


def main(iterations: int = 500) -> PSPLLoss:
    torch.manual_seed(0)
    image = torch.from_numpy(astronaut()).permute(2, 0, 1) / 255  # 0..255, [H, W, C] to 0..1, [C, H, W]
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    # The weights follow the length of the run: from a third of it on, they are uniform to 1 %.
    criterion = PSPLLoss(distance="l1", total_iterations=iterations, return_stats=True)
    for iteration in range(1, iterations + 1):
        corners = torch.randint(0, min(image.shape[1:]) - PATCH, (BATCH, 2)).tolist()
        hr = torch.stack([image[:, top : top + PATCH, left : left + PATCH] for top, left in corners])
        lr = F.interpolate(hr, scale_factor=1 / SCALE, mode="bicubic", antialias=True)
        loss, stats = criterion(network(lr), hr)  # counts the iteration
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % max(1, iterations // 10) == 0:
            # The weights grow, so the loss does not show how the network improves; the PSNR does.
            print(
                f"iteration {iteration}: loss {loss:.4f}, weight {stats.mean_attention:.2f}, PSNR {stats.psnr:.1f} dB"
            )
    return criterion


if __name__ == "__main__":
    main()
