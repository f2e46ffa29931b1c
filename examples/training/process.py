"""This process among those that torchrun started; alone, everything here does nothing."""

from __future__ import annotations

import datetime
import gc
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# The first process may decode and validate for long while the others wait.
PATIENCE = datetime.timedelta(hours=2)


class Process:
    """``rank`` of ``world`` processes, ``local_rank`` of ``local_world`` on this machine, on ``device``.

    Raises:
        SystemExit: a device that torch doesn't see.
    """

    def __init__(self, device: str):
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.distributed = "RANK" in os.environ
        try:
            self.device = torch.device(device)
            if self.device.type == "cuda" and self.device.index is None:
                self.device = torch.device("cuda", self.local_rank)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise SystemExit(f"--device {device}: {str(error).splitlines()[0]}") from None
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.distributed:
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """True in the one process that writes, logs and shows a bar."""
        return self.rank == 0

    def say(self, sentence: str) -> None:
        """Print, once."""
        if self.first:
            print(sentence, flush=True)

    def wait(self) -> None:
        """Until every process is here."""
        if self.distributed:
            dist.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over the processes."""
        if self.distributed:
            dist.all_reduce(values)
            values /= self.world
        return values

    def any(self, flag: bool) -> bool:
        """True if ``flag`` is in any process."""
        if not self.distributed:
            return flag
        seen = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
        return bool(seen.item())

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all processes, one after the other."""
        if not self.distributed:
            return items
        gathered: list[list[Any]] = [[] for _ in range(self.world)]
        dist.all_gather_object(gathered, items)
        return [item for items in gathered for item in items]

    def close(self) -> None:
        """Leave the group."""
        if self.distributed and dist.is_initialized():
            # DistributedDataParallel is part of reference cycles: left to the interpreter's end, it would take the group's
            # threads down with it, which once aborted a run that was complete.
            gc.collect()
            dist.destroy_process_group()
