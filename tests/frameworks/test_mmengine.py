"""MMEngine's own registry and runner, which MMagic uses: training with an EMA copy, resume, a model built as in MMagic."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, Registry
from mmengine.runner import Runner
from torch import nn

from helpers.framework_docs import snippet
from pspl_cuda import PSPLLoss, pspl_loss

pytestmark = pytest.mark.frameworks


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config in the docs, which imports the plug-in."""
    # MMEngine 0.10.7 loads its own checkpoints only so (docs/frameworks.md).
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "base.py").write_text(
        "model = dict(pixel_loss=dict(type='L1Loss', loss_weight=1.0, sample_wise=True))\n"
    )
    (tmp_path / "config.py").write_text("_base_ = ['base.py']\n" + snippet("MMagic", "py"))
    return Config.fromfile(tmp_path / "config.py")


def test_loss_of_the_config(config):
    """Nothing is left of the loss that the config inherits, and a child registry finds the new one."""
    assert config.model.pixel_loss == {"type": "PSPLLoss", "loss_weight": 1.0, "reduction": "mean"}
    child = Registry("model", parent=MODELS, locations=[], scope="mmagic")
    loss = child.build(config.model.pixel_loss | {"loss_weight": 0.5, "start_iteration": 999})
    assert isinstance(loss, PSPLLoss)
    sr, hr = torch.rand(2, 2, 3, 12, 13)
    assert torch.equal(loss(sr, hr), 0.5 * pspl_loss(sr, hr, 1.0))


class Editor(BaseModel):
    """mmagic's BaseEditModel in short."""

    def __init__(self, pixel_loss):
        super().__init__()
        self.generator = nn.Conv2d(3, 3, 3, padding=1)
        self.pixel_loss = MODELS.build(pixel_loss)
        self.seen = []

    def forward(self, inputs, data_samples=None, mode="tensor"):
        feats = self.generator(torch.stack(inputs))
        if mode == "predict":
            self.pixel_loss(feats, torch.stack(inputs))
            return []
        loss = self.pixel_loss(feats, torch.stack(data_samples))
        self.seen.append(self.pixel_loss.iteration)
        return {"loss": loss}


def train(folder, pixel_loss, iterations, accumulate=1, **keywords):
    lq, gt = torch.rand(2, 3, 12, 13)
    loader = {"batch_size": 2, "num_workers": 0, "sampler": {"type": "DefaultSampler", "shuffle": False}}
    runner = Runner(
        Editor(pixel_loss),
        str(folder),
        train_dataloader={"dataset": [{"inputs": lq, "data_samples": gt}] * 4, **loader},
        train_cfg={"by_epoch": False, "max_iters": iterations},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 1e-3}, "accumulative_counts": accumulate},
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 2, "by_epoch": False}},
        custom_hooks=[{"type": "EMAHook"}],
        default_scope="mmengine",
        log_level="ERROR",
        experiment_name=f"pspl_{iterations}_{accumulate}",
        **keywords,
    )
    runner.train()
    return runner.model


def test_training_and_resume(config, tmp_path):
    """The count is in the checkpoint."""
    assert train(tmp_path, config.model.pixel_loss, 4).seen == [1, 2, 3, 4]
    assert train(tmp_path, config.model.pixel_loss, 6, resume=True).seen == [5, 6]


def test_accumulation(config, tmp_path):
    """MMEngine accumulates over epochs: a step never has fewer batches, except the last of a training."""
    pixel_loss = config.model.pixel_loss | {"calls_per_iteration": 2}
    assert train(tmp_path, pixel_loss, 5, accumulate=2).seen == [1, 1, 2, 2, 3]
