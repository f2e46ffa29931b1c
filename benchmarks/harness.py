"""One benchmark run: check the accuracy, time, measure the memory, and save the rows after each case."""

from __future__ import annotations

import gc
import sys
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

import torch

from . import check, machine, memory, report, timing
from .cases import CHARBONNIER_KEYS, TRAINING_SCALE, Case, images
from .implementations import KEYS, Implementation, available, training_step

MIN_SAMPLES = 3


class Run:
    """Measures cases on ``device`` with about ``seconds`` of timing per case; skips calls that take more than ``limit`` seconds.

    ``rows`` is saved to ``path`` after each case and on an interrupt. ``failures`` lists wrong results of this package.
    """

    def __init__(
        self, device: torch.device, path: Path, seconds: float, limit: float, keys: tuple[str, ...] | None = None
    ):
        self.rows: list[dict] = []
        self.failures: list[str] = []
        self._device, self._path, self._seconds, self._limit, self._keys = device, path, seconds, limit, keys
        self._clock = timing.Clock(device)

    def measure(self, cases: list[Case], with_memory: bool = True) -> None:
        copy = timing.copy_bytes_per_ms(self._device, self._clock)
        self._facts = machine.facts(self._device, copy)
        _tell(f"{self._facts['device']}: a large copy runs at {copy / 1e6:.1f} GB/s")
        if machine.is_busy(self._facts["load"]):
            _tell(f"Other programs use this machine (load {self._facts['load']}): the ratios will be inaccurate.")
        keys = self._keys or KEYS
        implementations, missing = available(self._device, keys)
        for name, reason in missing.items():
            self._skip(name, None, reason)
        with ExitStack() as stack:
            child = None
            if with_memory and self._device.type == "cpu":
                child = stack.enter_context(memory.Child())
            for number, case in enumerate(cases, 1):
                _tell(f"[{number}/{len(cases)}] {case}")
                measured = keys if self._keys else case.keys or keys
                threads = torch.get_num_threads()
                torch.set_num_threads(case.threads or threads)
                try:
                    chosen = [each for each in implementations if each.key in measured]
                    self._measure(case, chosen, with_memory and not (case.threads or case.training), child)
                finally:
                    torch.set_num_threads(threads)
                    report.save(self.rows, self._path)

    def _measure(
        self, case: Case, implementations: list[Implementation], with_memory: bool, child: memory.Child | None
    ) -> None:
        torch.compiler.reset()  # the compiler gives up after a few shapes
        sr, hr = images(case, self._device)
        oracle = check.Oracle(sr, hr)
        errors = {}
        for each in implementations:
            try:
                errors[each] = self._check(each, sr, hr, oracle)
            except Exception as error:
                message = next(iter(str(error).strip().splitlines()), "")
                if not isinstance(error, _SkipError):
                    message = f"it fails: {type(error).__name__}: {message}"
                self._skip(each.name, case, message)
                if each.ours and not isinstance(error, _TooSlowError):
                    self.failures.append(f"{each.name}, {case}: {message}")
            sr.grad = None
        del oracle
        gc.collect()
        if not errors:
            return

        def forward_backward(loss) -> None:
            sr.grad = None
            loss(sr, hr).backward()

        def forward(loss) -> None:
            sr.grad = None
            kept[loss] = loss(sr, hr)

        calls, preparations, kept = {}, {}, {}
        for each in errors:
            if case.training:
                calls[each, "forward_backward"] = training_step(each.loss, sr, hr, TRAINING_SCALE)
                continue
            calls[each, "forward"] = lambda loss=each.loss: loss(sr, hr)
            calls[each, "forward_backward"] = lambda loss=each.loss: forward_backward(loss)
            if each.key in CHARBONNIER_KEYS:
                calls[each, "backward"] = lambda loss=each.loss: kept.pop(loss).backward()
                preparations[each, "backward"] = lambda loss=each.loss: forward(loss)
        times: dict = {}
        rows = {}
        try:
            timing.interleave(calls, self._clock, self._seconds, times, preparations)
        finally:  # also on an interrupt
            for (each, phase), values in times.items():
                if len(values.warm) >= MIN_SAMPLES:
                    rows[each, phase] = self._row(case, each.name, phase, errors[each], values)
            self.rows += rows.values()
        if not with_memory:
            return
        for each in errors:
            for phase, peak in self._peaks(each, case, calls, sr, child).items():
                rows[each, phase]["peak_extra_bytes"] = peak

    def _check(self, each: Implementation, sr, hr, oracle: check.Oracle) -> check.Errors:
        """The errors of an implementation; raises if it is inaccurate or too slow."""
        errors = check.measure(each, sr, hr, oracle)
        failure = check.failure(each.tolerance, errors, each.loss(sr, hr).dtype, sr.dtype)
        if failure is not None:
            raise _SkipError(failure)
        seconds = min(self._clock.milliseconds(lambda: each.loss(sr, hr).backward()) for _ in range(2)) / 1e3
        if seconds > self._limit:
            raise _TooSlowError(f"one call takes at least {seconds:.1f} s; --limit is {self._limit:g} s")
        return errors

    def _peaks(self, each: Implementation, case: Case, calls: dict, sr, child: memory.Child | None) -> dict[str, int]:
        if child is None:
            sr.grad = None
            gradient = {"forward": 0, "forward_backward": sr.numel() * sr.element_size()}
            return {phase: memory.on_cuda(calls[each, phase], size) for phase, size in gradient.items()}
        try:
            return child.peak(each.key, case) or {}
        except BrokenProcessPool:
            _tell(f"{each.name}, {case}: the process that measures the memory died")
            return {}

    def _skip(self, name: str, case: Case | None, reason: str) -> None:
        _tell(f"{name}{'' if case is None else f', {case}'}: skipped, {reason}")
        self.rows.append(self._base(name, "forward_backward", case) | {"median_ms": None, "skipped": reason})

    def _base(self, name: str, phase: str, case: Case | None) -> dict:
        return self._facts | {
            "impl": name,
            "phase": phase,
            "shape": list(case.shape) if case else None,
            "dtype": case.dtype if case else None,
            "layout": case.layout if case else None,
            "threads": case.threads if case else None,
            "training": case.training if case else False,
        }

    def _row(self, case: Case, name: str, phase: str, errors: check.Errors, times: timing.Times) -> dict:
        warm = timing.summary(times.warm)
        return self._base(name, phase, case) | {
            "median_ms": round(warm.median, 5),
            "p20_ms": round(warm.p20, 5),
            "p80_ms": round(warm.p80, 5),
            "cold_median_ms": round(timing.summary(times.cold).median, 5) if times.cold else None,
            "samples": len(times.warm),
            "peak_extra_bytes": None,
            "loss_error": errors.loss,
            "gradient_error": errors.gradient,
            "skipped": None,
        }


class _SkipError(Exception):
    """Says why an implementation is not timed."""


class _TooSlowError(_SkipError):
    pass


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
