"""BasicSR's and Real-ESRGAN's own training pipelines on four small images, with validation, EMA and their own resume.

Real-ESRGAN trains on the given pairs here, because its synthetic degradations need a GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import basicsr
import cv2
import numpy as np
import pytest
import realesrgan.models  # noqa: F401  registers its models
import torch
from basicsr.utils.registry import LOSS_REGISTRY
from torch import nn

from helpers.framework_docs import snippet
from pspl_cuda import PSPLLoss, pspl_loss

pytestmark = pytest.mark.frameworks

OPTIONS = """
name: tiny
model_type: {model}
scale: 2
num_gpu: 0
manual_seed: 0
high_order_degradation: false
l1_gt_usm: true
percep_gt_usm: true
gan_gt_usm: false
datasets:
  train: {{name: tiny, type: PairedImageDataset, dataroot_gt: {root}/gt, dataroot_lq: {root}/lq, io_backend: {{type: disk}},
    gt_size: 32, use_hflip: true, use_rot: true, num_worker_per_gpu: 0, batch_size_per_gpu: 2, dataset_enlarge_ratio: 100}}
  val: {{name: tiny, type: PairedImageDataset, dataroot_gt: {root}/gt, dataroot_lq: {root}/lq, io_backend: {{type: disk}}}}
network_g: {{type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 8, num_block: 1, upscale: 2}}
network_d: {{type: UNetDiscriminatorSN, num_in_ch: 3, num_feat: 4}}
path: {{pretrain_network_g: ~, strict_load_g: true, resume_state: ~}}
train:
{documented}
  ema_decay: 0.9
  optim_g: {{type: Adam, lr: !!float 1e-4}}
  optim_d: {{type: Adam, lr: !!float 1e-4}}
  scheduler: {{type: MultiStepLR, milestones: [100], gamma: 0.5}}
  total_iter: {iterations}
  warmup_iter: -1
  gan_opt: {{type: GANLoss, gan_type: vanilla, real_label_val: 1.0, fake_label_val: 0.0, loss_weight: !!float 0.1}}
  net_d_iters: {net_d_iters}
  net_d_init_iters: {net_d_init_iters}
val: {{val_freq: 2, save_img: false, metrics: {{psnr: {{type: calculate_psnr, crop_border: 2, test_y_channel: false}}}}}}
logger: {{print_freq: 1, save_checkpoint_freq: 4, use_tb_logger: false}}
"""


@pytest.fixture
def train(tmp_path, monkeypatch):
    """The function train(model, iterations, *arguments) -> the iterations that the loss saw; the train.py is that of the docs."""
    monkeypatch.chdir(tmp_path)
    for name, size in (("gt", 48), ("lq", 24)):
        (tmp_path / name).mkdir()
        for index in range(4):
            image = np.random.default_rng(index).integers(0, 256, (12, 12, 3)).astype(np.uint8)
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), cv2.resize(image, (size, size)))
    if not torch.cuda.is_available():
        # Real-ESRGAN moves two modules to the GPU, and BasicSR's resume takes every checkpoint there.
        monkeypatch.setattr(nn.Module, "cuda", lambda module: module)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.UntypedStorage, "cuda", lambda storage, device: storage)
    seen = []
    original = PSPLLoss.forward

    def forward(self, *images):
        loss = original(self, *images)
        assert torch.equal(loss, pspl_loss(*images, self.step))
        seen.append(self.iteration)
        return loss

    monkeypatch.setattr(PSPLLoss, "forward", forward)

    def run(model, iterations, *arguments, net_d_iters=1, net_d_init_iters=0, more=""):
        options = OPTIONS.format(
            root=tmp_path,
            model=model,
            iterations=iterations,
            net_d_iters=net_d_iters,
            net_d_init_iters=net_d_init_iters,
            documented=snippet("BasicSR", "yaml").replace("}", f"{more}}}"),
        )
        (tmp_path / "tiny.yml").write_text(options)
        monkeypatch.setattr(sys, "argv", ["train.py", "-opt", "tiny.yml", *arguments])
        seen.clear()
        exec(snippet("BasicSR", "py"), {"__name__": "__main__"})
        return list(seen)

    return run


@pytest.mark.parametrize("model", ["SRModel", "RealESRNetModel"])
def test_training_and_resume(train, model):
    """The last checkpoint is that of iteration 4."""
    assert train(model, 5) == [1, 2, 3, 4, 5]
    assert train(model, 6, "--auto_resume") == [5, 6]


@pytest.mark.parametrize("model", ["SRGANModel", "ESRGANModel", "RealESRGANModel"])
def test_resume_of_a_gan(train, model):
    """The generator is updated in the even iterations above 3; the last checkpoint is that of iteration 8."""
    rhythm = {"net_d_iters": 2, "net_d_init_iters": 3}
    assert train(model, 9, **rhythm) == [1, 2, 3]
    assert train(model, 12, "--auto_resume", **rhythm) == [4, 5]


def test_resume_of_a_late_start(train):
    """start_iteration is where the training began, and counts after a resume too."""
    start = ", start_iteration: 500"
    assert train("SRModel", 5, more=start) == [501, 502, 503, 504, 505]
    assert train("SRModel", 6, "--auto_resume", more=start) == [505, 506]


def test_file_in_a_clone(tmp_path):
    """The file that the docs add to a clone is imported with the models; it registers the loss and patches the resume."""
    content, file = re.search(r'echo "(.+)" > (\S+)', snippet("BasicSR", "py")).groups()
    shutil.copytree(Path(basicsr.__file__).parent, tmp_path / "basicsr")
    (tmp_path / file).write_text(content + "\n")
    script = (
        "import basicsr\n"
        "from basicsr.losses import build_loss\n"
        "from basicsr.models.base_model import BaseModel\n"
        f"assert basicsr.__file__.startswith({str(tmp_path)!r})\n"
        "print(build_loss({'type': 'PSPLLoss', 'loss_weight': 1.0}), BaseModel.resume_training.advances_pspl)"
    )
    command = [sys.executable, "-W", "error:PSPLLoss", "-c", script]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "PSPLLoss(" in printed
    assert "True" in printed


def test_the_line_for_real_esrgan_registers_the_loss():
    exec(snippet("Real-ESRGAN", "py"), {})
    assert LOSS_REGISTRY.get("PSPLLoss") is PSPLLoss
