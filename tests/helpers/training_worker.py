"""What the processes of tests/torch_features/test_distributed.py do, in a module that imports fast."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import pspl_cuda
from helpers.ddp_worker import NetworkAndLoss, joint_batch, train


def evaluate() -> tuple[float, torch.Tensor]:
    """Loss and gradient of fixed images."""
    low, high = joint_batch(0)
    low.requires_grad_()
    loss = pspl_cuda.pspl_loss(low, high, 1.0)
    loss.backward()
    return loss.item(), low.grad


def evaluate_to(file: str) -> None:
    torch.save(evaluate(), file)


def run_uneven(rank: int, folder: str) -> None:
    """DDP in which the second process has one batch fewer."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    module = DistributedDataParallel(NetworkAndLoss())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    with Join([module]):
        for iteration in range(3 - rank):
            module(*(image[2 * rank : 2 * rank + 2] for image in joint_batch(iteration))).backward()
            optimizer.step()
            optimizer.zero_grad()
    model = module.module
    torch.save((model.criterion.iteration, model.network.state_dict()), Path(folder) / f"uneven{rank}.pt")
    dist.destroy_process_group()


def run_sharded(rank: int, folder: str) -> None:
    """FSDP2: the network's parameters are sharded over both processes, the loss sees plain tensors."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/sharded", rank=rank, world_size=2)
    model = NetworkAndLoss()
    fully_shard(model.network, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.network.parameters(), lr=0.5)
    for iteration in range(3):
        model(*(image[2 * rank : 2 * rank + 2] for image in joint_batch(iteration))).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: value.full_tensor() for name, value in model.network.state_dict().items()}
    torch.save((model.criterion.iteration, weights), Path(folder) / f"sharded{rank}.pt")
    dist.destroy_process_group()


def expected_weights() -> dict[str, torch.Tensor]:
    """Of one process on the joint batch."""
    return train(NetworkAndLoss(), lambda batch: batch)[-1][1]
