"""The loop: train, validate, log, save, draw."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from networks import build
from pspl_cuda.config import Config

from . import checkpoint, images, pictures, records
from .data import Batches, Pair, loader, training_pairs, validation_pairs
from .images import final
from .interrupt import Interrupt
from .losses import MEASURES, Criterion
from .process import Process
from .settings import Settings

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Fig. 3: the attention changes most while its step doubles a few times.
DRAWN_STEPS = (0.5, 1, 2, 4, 8, 16)
PROBE = 128  # pixels of the held-out image on which the attention is drawn


class Trainer:
    """A run of ``settings``, from its beginning or from ``state``, what :func:`checkpoint.load` gave.

    ``run()`` trains to the end; ``run(until)`` to an iteration, and may be called again.
    """

    def __init__(self, settings: Settings, process: Process, state: dict | None = None, quiet: bool = False):
        self.settings = s = settings
        self.process = process
        self.quiet = quiet
        self.out = Path(s.out)
        self.iteration = 0
        self.seconds = 0.0
        self.best = -math.inf
        self.snapshots: list[dict] = []

        torch.manual_seed(s.seed)
        self.network = build(s.model, s.scale).to(process.device)
        if s.channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=s.lr)
        self.criterion = Criterion(s.loss, s.distance, s.iterations_per_step)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=s.amp == "fp16")
        if state is not None:
            self._restore(state)

        self.training = training_pairs(s, process)
        self.validation = validation_pairs(s, process)
        self.batches = Batches(self.training, s, self.network.channels, process.rank, process.world)
        border = s.scale
        self.bicubic = _mean(
            images.psnr_and_ssim(images.as_result(images.enlarge(pair.lr, s.scale)).y, _luma(pair.hr), border)
            for pair in self.validation
        )
        self.probe = _centre(self.validation[0], s.scale)
        self.drawn_iterations = {max(1, round(step * s.iterations_per_step)) for step in DRAWN_STEPS}
        self.model = self._wrapped()
        self.records = records.Records(self.out, self.iteration) if process.first else None

    def _wrapped(self) -> nn.Module:
        """The network as the loop calls it: on several processes, compiled."""
        model: nn.Module = self.network
        if self.process.distributed:
            cuda = self.process.device.type == "cuda"
            if cuda:
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            model = DistributedDataParallel(model, device_ids=[self.process.device] if cuda else None)
        return torch.compile(model) if self.settings.compile else model

    @property
    def finished(self) -> bool:
        """True when the last iteration is done."""
        return self.iteration >= self.settings.iterations

    def run(self, until: int | None = None) -> bool:
        """Train up to iteration ``until``, by default to the end; False if Ctrl-C came first. Either way all is saved."""
        s = self.settings
        until = min(until or s.iterations, s.iterations)
        bar = tqdm(
            total=s.iterations,
            initial=self.iteration,
            desc=s.label(),
            unit="it",
            disable=self.quiet or not self.process.first,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log file needs few lines
        )
        data = iter(loader(self.batches, range(self.iteration + 1, until + 1), s))
        self.model.train()
        stop = False
        with Interrupt() as interrupt, bar:
            clock = time.perf_counter()
            logged, timed = self.iteration, self.seconds
            while self.iteration < until and not stop:
                self.iteration += 1
                lr, hr = next(data)
                loss, outputs, hr = self._step(lr, hr)
                last = self.iteration == until
                due = last or self.iteration % s.log_every == 0
                validate = last or self.iteration % s.validate_every == 0
                if due or validate:
                    row = self._measure(loss, outputs, hr)
                now = time.perf_counter()
                self.seconds, clock = self.seconds + now - clock, now
                if due or validate:
                    speed = s.batch * (self.iteration - logged) / (self.seconds - timed)
                    logged, timed = self.iteration, self.seconds
                    row |= {"seconds": self.seconds, "images_per_second": speed}
                    bar.set_postfix_str(_postfix(row), refresh=False)
                    if validate:
                        row |= self._validate(bar)
                    if self.records:
                        self.records.row(row)
                if (
                    s.loss == "pspl"
                    and self.process.first
                    and (self.finished or self.iteration in self.drawn_iterations)
                ):
                    self._snapshot()
                # Processes must stop at the same iteration, and agreeing costs time.
                if not self.process.distributed or due:
                    stop = self.process.any(interrupt.requested)
                if self.process.first and (last or stop or self.iteration % s.checkpoint_every == 0):
                    self._save()
                bar.update()
                clock = time.perf_counter()
        return not stop

    def _step(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor | list[Tensor], Tensor]:
        """One iteration. The learning rate follows from its number."""
        s, device = self.settings, self.process.device
        form = torch.channels_last if s.channels_last else torch.contiguous_format
        lr, hr = (image.to(device, non_blocking=True).contiguous(memory_format=form) for image in (lr, hr))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        precision = torch.autocast(device.type, AMP[s.amp]) if s.amp else contextlib.nullcontext()
        with precision:
            outputs = self.model(lr)
        loss = self.criterion(outputs, hr)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, outputs, hr

    @property
    def rate(self) -> float:
        """The learning rate of this iteration."""
        return self.settings.lr * 0.5 ** ((self.iteration - 1) // self.settings.halve_every)

    def _measure(self, loss: Tensor, outputs: Tensor | list[Tensor], hr: Tensor) -> dict[str, float]:
        measures = self.process.mean(self.criterion.measures(loss, outputs, hr))
        row = dict(zip(MEASURES, measures.tolist(), strict=True))
        mse = row.pop("mse")
        row["psnr"] = -10 * math.log10(mse) if mse > 0 else math.inf
        return {"iteration": self.iteration, "step": self.criterion.step, "lr": self.rate, **row}

    def _validate(self, bar: tqdm) -> dict[str, float]:
        """Mean PSNR and SSIM on the luma of the held-out images, shared by the processes; keeps the best network."""
        s = self.settings
        mine = self.validation[self.process.rank :: self.process.world]
        found = [
            images.psnr_and_ssim(images.super_resolve(self.network, pair.lr).y, _luma(pair.hr), s.scale)
            for pair in mine
        ]
        psnr, ssim = _mean(self.process.gather(found))
        if self.process.first and not self.quiet:
            bar.write(
                f"iteration {self.iteration}: validation PSNR {psnr:.2f} dB, SSIM {ssim:.4f} "
                f"(bicubic {self.bicubic[0]:.2f} dB, {self.bicubic[1]:.4f})"
            )
        if psnr > self.best:
            self.best = psnr
            if self.process.first:
                checkpoint.save(self._described(), self.out / checkpoint.BEST)
        return {"validation_psnr": psnr, "validation_ssim": ssim}

    def _snapshot(self) -> None:
        """Keep the probe's output, and show it in TensorBoard."""
        self.network.eval()
        with torch.inference_mode():
            lr = images.network_input(self.probe.lr, self.network.channels).to(self.process.device)
            sr = final(self.network(lr)).float().cpu()
        self.network.train()
        # float16 resolves 8-bit images, and checkpoints stay small.
        self.snapshots.append({"iteration": self.iteration, "step": self.criterion.step, "sr": sr.half()})
        self.records.tensorboard.add_image("held-out image", sr[0].clamp(0, 1), self.iteration)

    def _described(self) -> dict:
        """What evaluation needs."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "iteration": self.iteration,
            "network": self.network.state_dict(),
        }

    def _save(self) -> None:
        state = {
            **self._described(),
            "optimizer": self.optimizer.state_dict(),
            "criterion": self.criterion.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if self.process.device.type == "cuda" else [],
            "seconds": self.seconds,
            "best": self.best,
            "snapshots": self.snapshots,
        }
        checkpoint.save(state, self.out / checkpoint.NAME)

    def _restore(self, state: dict) -> None:
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.criterion.load_state_dict(state["criterion"])
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["random"])
            if self.process.device.type == "cuda" and len(state["random_cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(state["random_cuda"])
            self.iteration, self.seconds, self.best = state["iteration"], state["seconds"], state["best"]
            self.snapshots = state["snapshots"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise SystemExit(
                f"The checkpoint doesn't fit {self.settings.label()} ({str(error).splitlines()[0]}); is it a best.pt?"
            ) from None

    def draw(self) -> list[Path]:
        """curves.png, and for PSPL attention.png; what was drawn."""
        if not self.process.first:
            return []
        drawn = [self.out / "curves.png"]
        metrics = records.read(self.out / records.NAME)
        pictures.curves(metrics, self.settings.label(), self.bicubic[0], drawn[0])
        if self.snapshots:
            drawn.append(self.out / "attention.png")
            hr = images.network_input(self.probe.hr, self.network.channels)
            constants: Config = self.criterion.pspl.config
            title = f"{self.settings.label()}: one step is {self.settings.iterations_per_step:g} iterations"
            pictures.attention(self.snapshots, hr, constants, title, drawn[1])
        return drawn

    def close(self) -> None:
        """Close the logs."""
        if self.records:
            self.records.close()


def _luma(image: np.ndarray) -> np.ndarray:
    return images.as_result(image).y


def _mean(scores: Iterable[tuple[float, float]]) -> tuple[float, float]:
    psnrs, ssims = zip(*scores, strict=True)
    return sum(psnrs) / len(psnrs), sum(ssims) / len(ssims)


def _centre(pair: Pair, scale: int) -> Pair:
    """The middle PROBE pixels of a pair."""
    size = PROBE // scale
    top, left = (max(0, (length - size) // 2) for length in pair.lr.shape[:2])
    lr = pair.lr[top : top + size, left : left + size]
    hr = pair.hr[top * scale : (top + size) * scale, left * scale : (left + size) * scale]
    return Pair(pair.name, hr, lr)


def _postfix(row: dict[str, float]) -> str:
    text = f"loss {row['loss']:.4f}, L1 {row['l1']:.4f}, PSNR {row['psnr']:.1f} dB"
    if row["step"] == row["step"]:
        text += f", step {row['step']:.3g}"
    return f"{text}, {row['images_per_second']:.0f} images/s"
