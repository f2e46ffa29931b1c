"""accelerate's own loop: accumulation, a short last batch, resume, bfloat16. The loop is that of docs/frameworks.md."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from helpers.framework_docs import PAGE, snippet
from pspl_cuda import PSPLLoss, pspl_loss
from pspl_cuda.integrations.accelerate import PSPLSchedule

pytestmark = pytest.mark.frameworks

BATCHES = 7  # no multiple of the 3 that make an optimizer step: each epoch has 3 steps, the last of one batch


class Recorded(PSPLLoss):
    """The loss, with the iteration and the value of each call."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.seen, self.dtypes = [], set()

    def forward(self, sr, hr):
        loss = super().forward(sr, hr)
        torch.testing.assert_close(loss, pspl_loss(sr, hr, self.step, beta=1.0))
        self.seen.append(self.iteration)
        self.dtypes.add((sr.dtype, hr.dtype, loss.dtype))
        return loss


class CountingSGD(torch.optim.SGD):
    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure)


def train(epochs, folder, *, resume=False, **options):
    """The loop in the docs, for some epochs; returns the loss and the user's optimizer."""
    AcceleratorState._reset_state(reset_partial_state=True)
    criterion = Recorded(beta=1.0)
    network = nn.Conv2d(3, 3, 3, padding=1)
    optimizer = CountingSGD(network.parameters(), lr=1e-3)
    pairs = [(torch.rand(3, 8, 8), torch.rand(3, 8, 8)) for _ in range(BATCHES)]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3, **options)
    prepared = accelerator.prepare(network, optimizer, torch.utils.data.DataLoader(pairs))
    names = {
        "accelerator": accelerator,
        "criterion": criterion,
        "resume_from": str(folder) if resume else None,
        "network": prepared[0],
        "optimizer": prepared[1],
        "loader": itertools.chain.from_iterable(prepared[2] for _ in range(epochs)),
    }
    exec(snippet("accelerate", "py"), names)
    accelerator.save_state(str(folder))
    return criterion, optimizer


def test_short_last_step_of_an_epoch(tmp_path):
    """The loss counts the optimizer's steps, and its own calls would drift from them."""
    criterion, optimizer = train(2, tmp_path)
    assert criterion.seen == [1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6]
    assert criterion.iteration == optimizer.steps == 6


def test_resume(tmp_path):
    train(2, tmp_path)
    criterion, _ = train(1, tmp_path, resume=True)
    assert criterion.seen == [7, 7, 7, 8, 8, 8, 9]


def test_bfloat16(tmp_path):
    criterion, _ = train(1, tmp_path, mixed_precision="bf16")
    assert criterion.seen == [1, 1, 1, 2, 2, 2, 3]
    # accelerate converts the outputs of a prepared network to float32.
    assert criterion.dtypes == {(torch.float32, torch.float32, torch.float32)}


def test_script_that_counts_its_steps():
    """As diffusers' scripts: the line of the docs before each call."""
    (line,) = re.findall(r"`(criterion\.iteration = global_step)`", PAGE.read_text())
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    network = nn.Conv2d(3, 3, 3, padding=1)
    pairs = [(torch.rand(3, 8, 8), torch.rand(3, 8, 8)) for _ in range(BATCHES)]
    network, optimizer, loader = accelerator.prepare(
        network, torch.optim.SGD(network.parameters(), lr=1e-3), torch.utils.data.DataLoader(pairs)
    )
    criterion, global_step = Recorded(beta=1.0), 10
    for _ in range(2):
        for lr_images, hr_images in loader:
            with accelerator.accumulate(network):
                exec(line)
                accelerator.backward(criterion(network(lr_images), hr_images))
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                global_step += 1
    assert criterion.seen == [11, 11, 11, 12, 12, 12, 13, 14, 14, 14, 15, 15, 15, 16]


def test_begins_where_the_loss_begins():
    criterion = PSPLLoss(start_iteration=500)
    schedule = PSPLSchedule(Accelerator(cpu=True), nn.Sequential(criterion))
    schedule.step()
    assert criterion.iteration == schedule.iteration == 501


def test_without_a_loss():
    with pytest.raises(ValueError, match="Conv2d contains no PSPLLoss; expected one as an attribute"):
        PSPLSchedule(Accelerator(cpu=True), nn.Conv2d(3, 3, 1))
