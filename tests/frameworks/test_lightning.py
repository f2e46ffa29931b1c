"""Lightning's own Trainer: accumulation, a short last step, validation, resume, bfloat16, a GAN with manual optimisation."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from helpers.framework_docs import snippet
from pspl_cuda import PSPLLoss

pytestmark = pytest.mark.frameworks


class Module(pl.LightningModule):
    """A user's module; the iterations and dtypes that its loss saw."""

    def __init__(self):
        super().__init__()
        self.network = nn.Conv2d(3, 3, 3, padding=1)
        self.criterion = PSPLLoss(beta=1.0)
        self.seen, self.validated, self.dtypes = [], [], set()

    def training_step(self, batch, batch_idx):
        x = torch.full((1, 3, 8, 8), 0.5)
        sr = self.network(x)
        loss = self.criterion(sr, x)
        self.seen.append(self.criterion.iteration)
        self.dtypes.add((sr.dtype, loss.dtype))
        return loss

    def validation_step(self, batch, batch_idx):
        x = torch.full((1, 3, 8, 8), 0.5)
        self.criterion(self.network(x), x)
        self.validated.append(self.criterion.iteration)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=1e-3)


class Adversarial(Module):
    """Two optimizers, each stepped once in a batch."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.discriminator = nn.Conv2d(3, 1, 8)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=1e-3) for part in (self.network, self.discriminator)]


def fit(folder, epochs, module=None, *, batches=7, resume=None, schedule="PSPLSchedule()", **options):
    """A training with the callback of the docs, and a checkpoint of every optimizer step."""
    module = module or Module()

    def make_trainer(callbacks):
        checkpoints = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        return pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[*callbacks, checkpoints], **quiet, **options)

    names = {"Trainer": make_trainer}
    exec(snippet("Lightning", "py").replace("PSPLSchedule()", schedule), names)
    data = torch.utils.data.DataLoader(torch.zeros(batches, 1))
    names["trainer"].fit(module, data, torch.utils.data.DataLoader(torch.zeros(1, 1)), ckpt_path=resume)
    return module, names["trainer"]


def test_short_last_step_of_an_epoch(tmp_path):
    module, trainer = fit(tmp_path, 2, accumulate_grad_batches=3, num_sanity_val_steps=1)
    assert module.seen == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6]
    assert module.validated == [0, 3, 6]
    assert trainer.global_step == module.criterion.iteration == 6


def test_resume(tmp_path):
    fit(tmp_path, 2, accumulate_grad_batches=3)
    module, _ = fit(tmp_path, 3, resume=tmp_path / "step=6.ckpt", accumulate_grad_batches=3)
    assert module.seen == [7, 7, 7, 8, 8, 8, 9]


def test_resume_within_an_epoch(tmp_path):
    fit(tmp_path, 2, accumulate_grad_batches=3)
    module, _ = fit(tmp_path, 2, resume=tmp_path / "step=4.ckpt", accumulate_grad_batches=3)
    assert module.seen == [5, 5, 5, 6]


def test_bfloat16(tmp_path):
    module, _ = fit(tmp_path, 1, precision="bf16-mixed")
    assert module.seen == [1, 2, 3, 4, 5, 6, 7]
    assert module.dtypes == {(torch.bfloat16, torch.float32)}


def test_two_optimizers(tmp_path):
    module, trainer = fit(tmp_path, 1, Adversarial(), schedule="PSPLSchedule(2)", batches=3)
    assert module.seen == [1, 2, 3]
    assert trainer.global_step == 6
