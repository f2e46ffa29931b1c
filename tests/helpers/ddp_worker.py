"""The DistributedDataParallel processes of tests/torch_features/test_distributed.py, in a module that imports fast."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pspl_cuda import PSPLLoss

ITERATIONS = 3
# Late enough that every pixel has weight.
KEYWORDS = {"beta": 1.0, "iterations_per_step": 2}


class NetworkAndLoss(nn.Module):
    """A model that owns its loss, as in Lightning and MMEngine."""

    def __init__(self, **keywords):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Conv2d(3, 3, 3, padding=1)
        self.criterion = PSPLLoss(**KEYWORDS, **keywords)

    def forward(self, low, high):
        return self.criterion(self.network(low), high)


def joint_batch(iteration):
    """(low, high) of both processes together; each has one half of it."""
    generator = torch.Generator().manual_seed(iteration)
    return torch.rand((2, 4, 3, 12, 13), generator=generator).unbind()


def train(module, share, accumulate=1, validate=False):
    """Train ``module(low, high)`` on ``share(batch)`` and return, per iteration, the loss's iteration and the weights."""
    model = getattr(module, "module", module)
    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.5)
    seen = []
    for iteration in range(ITERATIONS):
        for _ in range(accumulate):
            (module(*map(share, joint_batch(iteration))) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        if validate:
            model.criterion.eval()
            model.criterion(*joint_batch(iteration))
            model.criterion.train()
        seen.append((model.criterion.iteration, copy.deepcopy(model.network.state_dict())))
    return seen


def run(rank: int, folder: str) -> None:
    """Train with the loss inside and outside of the wrapped module, and save the records as ``rank<n>.pt``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)

    def half(batch):
        return batch[2 * rank : 2 * rank + 2]

    inside = DistributedDataParallel(NetworkAndLoss())
    seen = {"inside": train(inside, half)}
    state = inside.state_dict()

    outside = NetworkAndLoss()
    outside.network = DistributedDataParallel(outside.network)
    # Only the first process validates, as is usual.
    seen["outside"] = [
        (iteration, {name.removeprefix("module."): value for name, value in weights.items()})
        for iteration, weights in train(outside, half, validate=rank == 0)
    ]

    accumulated = DistributedDataParallel(NetworkAndLoss(calls_per_iteration=2))
    seen["accumulated"] = train(accumulated, half, accumulate=2)

    resumed = DistributedDataParallel(NetworkAndLoss())
    resumed.load_state_dict(state)
    seen["resumed"] = resumed.module.criterion.iteration
    seen["buffers"] = len(list(inside.buffers()))
    torch.save(seen, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
