"""Training on Lightning's Fabric: several losses side by side, validated, logged and saved as they go."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import TensorBoardLogger
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn
from tqdm import tqdm

from networks import build

from . import data, images
from .files import atomic
from .losses import MEASURES, Arm, Criterion
from .settings import DECISIVE, Settings

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
COLUMNS = (
    "iteration",
    "arm",
    "seconds",  # of training this arm, without data, validation and writing
    "loss",
    "l1",  # unweighted, of the batch, in 0..1
    "psnr",  # of the batch, in dB
    "delta",
    "similarity",  # PSPL's mean over the batch
    "attention",
    "lr",
    "validation_psnr",  # mean over the images, on the luma
)
# Fig. 3: attention changes most while its delta doubles a few times.
DRAWN_DELTAS = (1, 2, 4, 8, 20)
PROBE = 96  # pixels of a validation image on which attention is drawn


class _Autocast(MixedPrecision):
    """Autocast alone: Fabric would also round the images to 16 bits, fewer than a residual of 8-bit images needs."""

    def convert_input(self, images):
        return images


def make_fabric(settings: Settings, device: str, devices: int) -> Fabric:
    """Fabric for ``device`` (``cpu``, ``cuda``, ``auto``); starts the other processes, if there are several."""
    accelerator = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    mixed = settings.precision != "32-true"
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            plugins=_Autocast(settings.precision, accelerator) if mixed else None,
        )
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"--device {device} --devices {devices}: {error}") from None
    fabric.launch()
    return fabric


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint to the CPU; nothing in it is executed.

    Raises:
        SystemExit: it is missing, damaged, or something else.
    """
    if not path.is_file():
        raise SystemExit(f"{path} does not exist; expected the folder of a run of train_sr.py.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["settings"], state["networks"], state["iteration"]
    except Exception as error:
        raise SystemExit(
            f"{path} is damaged or not a checkpoint of train_sr.py ({type(error).__name__}: {str(error).partition(chr(10))[0]}). "
            "Remove it to start again."
        ) from None
    return state


def _pretrained(run: str, arm: str, settings: Settings) -> dict:
    """The weights of an arm of another run of the same network."""
    state = load_checkpoint(Path(run) / CHECKPOINT)
    for name in ("model", "scale"):
        if state["settings"][name] != getattr(settings, name):
            raise SystemExit(
                f"--pretrained {run} is a run of --{name} {state['settings'][name]}; expected {getattr(settings, name)}."
            )
    if arm not in state["networks"]:
        raise SystemExit(f"--pretrained {run} {arm}: expected one of its arms, {', '.join(state['networks'])}.")
    return state["networks"][arm]


@dataclasses.dataclass
class _Trained:
    """One arm in training. ``network`` holds the weights; ``model`` is how the loop calls it."""

    name: str
    arm: Arm
    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    seconds: float = 0.0


class Run:
    """A run in the folder ``out``: from its beginning, or from its last checkpoint.

    Raises:
        SystemExit: the folder holds another run, or data that can't be used.
    """

    def __init__(self, settings: Settings, fabric: Fabric, out: Path):
        self.settings = s = settings
        self.fabric = fabric
        self.out = out
        self.iteration = 0
        self.rows: list[dict] = []
        self.snapshots: list[dict] = []
        self.data_seconds = 0.0
        self.trained = {name: self._start(name) for name in s.arms}
        if fabric.world_size > 1 and any(t.arm.kind in ("scale", "attention") for t in self.trained.values()):
            raise SystemExit(
                "The arms 'scale' and 'attention' need the whole batch in one process: choose --devices 1."
            )
        self.tensorboard = TensorBoardLogger(out, name="tensorboard", version="")
        if (out / CHECKPOINT).exists():
            self._restore(load_checkpoint(out / CHECKPOINT))

        with fabric.rank_zero_first(local=True):
            self.training = data.training_pairs(s, quiet=not fabric.is_global_zero)
            self.validation = data.validation_pairs(s, quiet=not fabric.is_global_zero)
        channels = next(iter(self.trained.values())).network.channels
        self.batches = data.Batches(self.training, s, channels, fabric.global_rank, fabric.world_size)
        self.probe = data.detail(self.validation, s.scale, PROBE)

    def _start(self, name: str) -> _Trained:
        s, arm = self.settings, Arm.parse(name)
        torch.manual_seed(s.seed)
        network = build(s.model, s.scale)
        if s.pretrained:
            network.load_state_dict(_pretrained(*s.pretrained, s))
        if s.channels_last:
            network.to(memory_format=torch.channels_last)
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        if s.optimizer == "adam":
            optimizer = torch.optim.Adam(network.parameters(), lr=s.lr)
        else:
            optimizer = torch.optim.SGD(network.parameters(), lr=s.lr, momentum=0.9)
        model = torch.compile(network) if s.compile else network
        model, optimizer = self.fabric.setup(model, optimizer)
        return _Trained(name, arm, network, model, optimizer, Criterion(arm, s.distance, s.iterations))

    def _restore(self, state: dict) -> None:
        saved, mine = state["settings"], dataclasses.asdict(self.settings)
        # A run of an older version has not all settings of this one; it was made without them.
        changed = [name for name in DECISIVE if _plain(mine[name]) != saved.get(name)]
        if changed:
            listed = ", ".join(f"--{n.replace('_', '-')} was {saved.get(n)} and is now {mine[n]}" for n in changed)
            raise SystemExit(f"{self.out} holds another run: {listed}. Choose another --out, or the same options.")
        for name, trained in self.trained.items():
            trained.network.load_state_dict(state["networks"][name])
            trained.optimizer.load_state_dict(state["optimizers"][name])
            trained.seconds = state["seconds"][name]
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.iteration, self.rows, self.snapshots = state["iteration"], state["rows"], state["snapshots"]
        self.data_seconds = state["data_seconds"]

    @property
    def finished(self) -> bool:
        """True when the last iteration is done."""
        return self.iteration >= self.settings.iterations

    @property
    def rate(self) -> float:
        """The learning rate of this iteration."""
        return self.settings.lr * 0.5 ** ((self.iteration - 1) // self.settings.halve_every)

    def train(self, until: int | None = None) -> None:
        """Train to the end, or to iteration ``until``."""
        s = self.settings
        until = min(until or s.iterations, s.iterations)
        loader = data.loader(self.batches, range(self.iteration + 1, until + 1), s, self.fabric.device)
        form = torch.channels_last if s.channels_last else torch.contiguous_format
        bar = tqdm(
            total=s.iterations,
            initial=self.iteration,
            desc=f"{s.model} x{s.scale}, seed {s.seed}",
            unit="it",
            disable=not self.fabric.is_global_zero,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # a log file needs few lines
        )
        with bar:
            clock = time.perf_counter()
            for batch in loader:
                self.iteration += 1
                lr, hr = (image.to(self.fabric.device, memory_format=form, non_blocking=True) for image in batch)
                self.data_seconds += time.perf_counter() - clock
                due = self.iteration % s.log_every == 0
                validate = self.iteration % s.validate_every == 0 or self.iteration == until
                for name, trained in self.trained.items():
                    clock = time.perf_counter()
                    measures = self._step(trained, lr, hr)
                    if due or validate:
                        row = self._row(trained, measures)  # waits for the device
                    trained.seconds += time.perf_counter() - clock
                    if due or validate:
                        row["seconds"] = trained.seconds
                        if validate:
                            row["validation_psnr"] = self._validate(trained)
                        self.rows.append(row)
                    self._snapshot(name, trained)
                bar.update()
                if validate:
                    bar.set_postfix_str(", ".join(f"{r['arm']} {r['validation_psnr']:.2f}" for r in self._latest()))
                    self._save()
                clock = time.perf_counter()

    def _step(self, trained: _Trained, lr: Tensor, hr: Tensor) -> Tensor:
        for group in trained.optimizer.param_groups:
            group["lr"] = self.rate * trained.arm.rate(self.iteration, self.settings.iterations)
        trained.model.train()
        outputs = trained.model(lr)
        loss, measures = trained.criterion(outputs, hr, self.iteration)
        trained.optimizer.zero_grad()
        self.fabric.backward(loss)
        if self.settings.clip:
            self.fabric.clip_gradients(trained.model, trained.optimizer, max_norm=self.settings.clip)
        trained.optimizer.step()
        return measures

    def _row(self, trained: _Trained, measures: Tensor) -> dict:
        row = dict(zip(MEASURES, self.fabric.all_reduce(measures).tolist(), strict=True))
        mse = row.pop("mse")
        row["psnr"] = -10 * math.log10(mse) if mse > 0 else math.inf
        return {"iteration": self.iteration, "arm": trained.name, "lr": trained.optimizer.param_groups[0]["lr"], **row}

    def _latest(self) -> list[dict]:
        return self.rows[-len(self.trained) :]

    def _validate(self, trained: _Trained) -> float:
        """Mean PSNR on the luma, in the precision of training, the images shared by the processes."""
        mine = self.validation[self.fabric.global_rank :: self.fabric.world_size]
        with self.fabric.autocast():
            results = [(images.super_resolve(trained.network, pair.lr).y, images.as_result(pair.hr).y) for pair in mine]
        scores = [images.psnr(sr, hr, self.settings.scale) for sr, hr in results]
        total = self.fabric.all_reduce(torch.tensor(sum(scores), dtype=torch.float64), reduce_op="sum")
        return float(total) / len(self.validation)

    def _snapshot(self, name: str, trained: _Trained) -> None:
        """Keep the probe's output, from which attention is drawn."""
        if trained.arm.kind != "pspl" or not self.fabric.is_global_zero:
            return
        total = self.settings.iterations
        delta, before = (trained.arm.delta(iteration, total) for iteration in (self.iteration, self.iteration - 1))
        if self.iteration != total and not any(before < drawn <= delta for drawn in DRAWN_DELTAS):
            return
        sr = images.enhanced(trained.network, images.network_input(self.probe.lr, trained.network.channels))
        # float16 resolves 8-bit images, and checkpoints stay small.
        self.snapshots.append({"arm": name, "iteration": self.iteration, "delta": delta, "sr": sr.cpu().half()})

    def _save(self) -> None:
        state = {
            "settings": {name: _plain(value) for name, value in dataclasses.asdict(self.settings).items()},
            "iteration": self.iteration,
            "networks": {name: trained.network.state_dict() for name, trained in self.trained.items()},
            "optimizers": {name: trained.optimizer.state_dict() for name, trained in self.trained.items()},
            "seconds": {name: trained.seconds for name, trained in self.trained.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "data_seconds": self.data_seconds,
            "rows": self.rows,
            "snapshots": self.snapshots,
            "probe": {"image": self.probe.name, "hr": torch.from_numpy(self.probe.hr.copy())},
        }
        # First: a run that is stopped in between has every row of its checkpoint.
        if self.fabric.is_global_zero:
            write_csv(self.rows, self.out / METRICS, COLUMNS)
            # Through memory: torch.save ends the process if the file that it writes to fails.
            saved = io.BytesIO()
            torch.save(state, saved)
            with atomic(self.out / CHECKPOINT) as file:
                file.write(saved.getbuffer())
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            for row in self._latest():
                scalars = {f"{name}/{row['arm']}": value for name, value in row.items() if isinstance(value, float)}
                self.tensorboard.log_metrics(scalars, self.iteration)
            self.tensorboard.save()


def write_csv(rows: list[dict], path: Path, columns: tuple[str, ...] | None = None) -> None:
    """``rows`` as csv; NaN and what is missing stay empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns or list(rows[0]))
    writer.writeheader()
    writer.writerows({name: value for name, value in row.items() if value == value} for row in rows)
    with atomic(path) as file:
        file.write(text.getvalue().encode())


def _plain(value):
    """As a checkpoint gives it back."""
    return list(value) if isinstance(value, tuple) else value
