"""One run: check, time, weigh, and keep the rows on disk up to date."""

from __future__ import annotations

import datetime
import gc
import os
import platform
import re
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch

from . import check, memory, peak_fma, report, timing
from .cases import OTHER_KEYS, Case, images
from .implementations import KEYS, Implementation, available
from .progress import bar

# Forward reads two images and writes the residual, backward reads it and writes the gradient.
FLOOR_BYTES = {"forward": 12, "forward_backward": 20}
# Sizes from this many elements on foretell the times of larger ones; below, overheads count.
LARGE = 10**6
FEWEST_SAMPLES = 3
PHASES = ("forward", "forward_backward")


class Machine(NamedTuple):
    """What the shares are shares of."""

    device: torch.device
    name: str
    copy_bytes_per_ms: float
    peak_gfma_s: float | None
    load: float | None
    """Programs that want a core, on average over the last minute; the benchmark has not begun yet."""

    @classmethod
    def look(cls, device: torch.device, clock: timing.Clock, tell: Callable[[str], object]) -> Machine:
        load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
        if report.busy(load):
            tell(f"Other programs use this machine (load {load}): the ratios will be off.")
        copy = timing.copy_bytes_per_ms(device, clock)
        peak = None
        if device.type == "cpu":
            try:
                peak = peak_fma.measure(torch.get_num_threads())
            except peak_fma.NoPeakError as error:
                tell(f"the share of the FMA peak: skipped, {error}")
        tell(f"{device_name(device)}: copies {copy / 1e6:.1f} GB/s" + (f", {peak:.1f} G FMA/s" if peak else ""))
        return cls(device, device_name(device), copy, peak, load)


class Run:
    """Measures ``cases`` on ``device``, with about ``seconds`` of timing per case.

    Who takes more than ``limit`` seconds for one call is not waited for again and again, but skipped. Rows go to ``path`` after
    each case, and on an interrupt: ``rows`` and the file are always alike.
    """

    def __init__(
        self, device: torch.device, path: Path, seconds: float, limit: float, keys: tuple[str, ...] | None = None
    ):
        self.rows: list[dict] = []
        self.wrong_ours: list[str] = []
        """What of this package was found incorrect."""
        self._device, self._path, self._seconds, self._limit, self._keys = device, path, seconds, limit, keys
        self._clock = timing.Clock(device)
        self._nanoseconds: dict[str, float] = {}  # per element, of one call at the last size

    def measure(self, cases: list[Case], with_memory: bool = True) -> list[dict]:
        """Measure all and return the rows."""
        keys = self._keys or KEYS
        found, missing = available(self._device, keys)
        with bar(len(cases)) as self._bar, ExitStack() as stack:
            self._machine = Machine.look(self._device, self._clock, self._bar.write)
            self._child = None
            if with_memory and self._device.type == "cpu":
                self._child = stack.enter_context(memory.Child())
            self._with_memory = with_memory
            for name, reason in missing.items():
                self._skip(name, None, reason)
            for case in cases:
                self._bar.set_description(str(case))
                wanted = keys if case.plain or self._keys else OTHER_KEYS
                try:
                    self._measure(case, [each for each in found if each.key in wanted])
                finally:
                    report.save(self.rows, self._path)
                self._bar.update()
        return self.rows

    def _measure(self, case: Case, implementations: list[Implementation]) -> None:
        torch.compiler.reset()  # every case compiles anew; else the compiler gives up after a few shapes
        self._bar.set_postfix_str("images")
        sr, hr = images(case, self._device)
        oracle = check.Oracle(sr, hr)
        errors = {}
        for each in implementations:
            self._bar.set_postfix_str(f"checking {each.name}")
            checked = self._check(each, case, sr, hr, oracle)
            if checked is not None:
                errors[each.name] = checked
        del oracle
        gc.collect()

        def forward_of(loss):
            return lambda: loss(sr, hr)

        def forward_backward_of(loss):
            def call() -> None:
                sr.grad = None
                loss(sr, hr).backward()

            return call

        calls = {}
        correct = [each for each in implementations if each.name in errors]
        for each in correct:
            calls[each.name, "forward"] = forward_of(each.loss)
            calls[each.name, "forward_backward"] = forward_backward_of(each.loss)
        if not calls:
            return
        times: dict = {}
        try:
            timing.interleave(
                calls, self._clock, self._seconds, times, lambda n: self._bar.set_postfix_str(f"timing, round {n}")
            )
        finally:  # on an interrupt too: what was measured is kept
            new = {
                key: self._row(case, *key, errors[key[0]], values)
                for key, values in times.items()
                if len(values.warm) >= FEWEST_SAMPLES
            }
            self.rows += new.values()
        if case.numel >= LARGE:
            for each in correct:
                self._nanoseconds[each.name] = min(times[each.name, "forward_backward"].warm) * 1e6 / case.numel
        if self._with_memory:
            for each in correct:
                self._bar.set_postfix_str(f"memory of {each.name}")
                for phase, peak in self._peaks(each, case, calls, sr).items():
                    new[each.name, phase]["peak_extra_bytes"] = peak

    def _check(self, each: Implementation, case: Case, sr, hr, oracle: check.Oracle) -> check.Errors | None:
        """The errors of an implementation that is correct and fast enough to be timed; for others a row says why not."""
        expected = self._nanoseconds.get(each.name, 0) * case.numel / 1e9
        slow = "one call takes {} {:.1f} s; --limit is {:g} s"
        if expected > self._limit:
            self._skip(each.name, case, slow.format("about", expected, self._limit))
            return None
        try:
            found = check.errors(each, sr, hr, oracle)
            refusal = check.refusal(each.claim, found, each.loss(sr, hr).dtype, sr.dtype)
            if refusal is None:
                took = min(self._clock.milliseconds(lambda: each.loss(sr, hr).backward()) for _ in range(2)) / 1e3
            sr.grad = None
        except Exception as error:
            sr.grad = None
            self._skip(each.name, case, f"it fails: {type(error).__name__}: {_first_line(error)}")
            if each.ours:
                self.wrong_ours.append(f"{each.name}, {case}: {type(error).__name__}: {_first_line(error)}")
            return None
        if refusal is not None:
            self._skip(each.name, case, refusal)
            if each.ours:
                self.wrong_ours.append(f"{each.name}, {case}: {refusal}")
            return None
        if took > self._limit:
            self._skip(each.name, case, slow.format("at least", took, self._limit))
            return None
        return found

    def _peaks(self, each: Implementation, case: Case, calls: dict, sr) -> dict[str, int]:
        if self._device.type == "cuda":
            sr.grad = None
            gradient = sr.numel() * sr.element_size()
            return {
                phase: memory.on_cuda(calls[each.name, phase], gradient if phase == "forward_backward" else 0)
                for phase in PHASES
            }
        try:
            return self._child.peak(each.key, case) or {}
        except BrokenProcessPool:
            self._bar.write(f"{each.name}, {case}: the process that measures memory died")
            return {}

    def _skip(self, name: str, case: Case | None, reason: str) -> None:
        self._bar.write(f"{name}{'' if case is None else f', {case}'}: skipped, {reason}")
        self.rows.append(self._facts(name, "forward_backward", case) | {"median_ms": None, "skipped": reason})

    def _facts(self, name: str, phase: str, case: Case | None) -> dict:
        return {
            "device": self._machine.name,
            "torch": torch.__version__,
            "impl": name,
            "phase": phase,
            "shape": list(case.shape) if case else None,
            "dtype": case.dtype if case else None,
            "layout": case.layout if case else None,
            "date": datetime.date.today().isoformat(),
            "copy_gb_s": round(self._machine.copy_bytes_per_ms / 1e6, 2),
            "peak_gfma_s": self._machine.peak_gfma_s,
            "load": self._machine.load,
        }

    def _row(self, case: Case, name: str, phase: str, errors: check.Errors, times: timing.Times) -> dict:
        warm = timing.summary(times.warm)
        itemsize = torch.empty((), dtype=getattr(torch, case.dtype)).element_size()
        floor_ms = FLOOR_BYTES[phase] * case.numel * itemsize / 4 / self._machine.copy_bytes_per_ms
        fma_fraction = None
        if name == report.OURS and phase == "forward" and self._machine.peak_gfma_s:
            fma_ms = peak_fma.FMA_PER_ELEMENT * case.numel / self._machine.peak_gfma_s / 1e6
            fma_fraction = round(fma_ms / warm.median, 4)
        return self._facts(name, phase, case) | {
            "median_ms": round(warm.median, 5),
            "p20_ms": round(warm.p20, 5),
            "p80_ms": round(warm.p80, 5),
            "cold_median_ms": round(timing.summary(times.cold).median, 5) if times.cold else None,
            "samples": len(times.warm),
            "peak_extra_bytes": None,
            "floor_fraction": round(floor_ms / warm.median, 4),
            "fma_fraction": fma_fraction,
            "loss_error": errors.loss,
            "gradient_error": errors.gradient,
            "skipped": None,
        }


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def device_name(device: torch.device) -> str:
    """A name for people; its slug names the result files."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE).group(1).strip()
    except (OSError, AttributeError):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads"
