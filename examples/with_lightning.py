"""The training of minimal.py with Lightning. PSPLSchedule follows the trainer, so a resumed run continues the schedule."""

from __future__ import annotations

import lightning
import torch
import torch.nn.functional as F  # noqa: N812  its usual name
from minimal import BATCH, PATCH, SCALE, Network
from skimage.data import astronaut
from torch.utils.data import DataLoader, Dataset

from pspl_cuda import PSPLLoss
from pspl_cuda.integrations.lightning import PSPLSchedule


class Patches(Dataset):
    """Random patches of a photograph: LR and HR."""

    def __init__(self, count: int):
        self.image = torch.from_numpy(astronaut()).permute(2, 0, 1) / 255
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index: int):
        top, left = torch.randint(0, min(self.image.shape[1:]) - PATCH, (2,)).tolist()
        hr = self.image[:, top : top + PATCH, left : left + PATCH]
        return F.interpolate(hr[None], scale_factor=1 / SCALE, mode="bicubic", antialias=True)[0], hr


class Enlarger(lightning.LightningModule):
    """The network and its loss."""

    def __init__(self, iterations: int):
        super().__init__()
        self.network = Network()
        self.criterion = PSPLLoss(distance="l1", total_iterations=iterations, return_stats=True)

    def training_step(self, batch, index):
        lr, hr = batch
        loss, stats = self.criterion(self.network(lr), hr)
        self.log_dict({"step_pspl": self.criterion.step, "psnr": stats.psnr}, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), lr=1e-3)


def main(iterations: int = 500, **trainer_options) -> Enlarger:
    module = Enlarger(iterations)
    trainer = lightning.Trainer(
        max_steps=iterations, callbacks=[PSPLSchedule()], default_root_dir="runs", **trainer_options
    )
    trainer.fit(module, DataLoader(Patches(BATCH * iterations), batch_size=BATCH))
    return module


if __name__ == "__main__":
    main()
