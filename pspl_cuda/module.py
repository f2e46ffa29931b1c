"""PSPLLoss: the loss as a module that counts its own iterations."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _library
from .config import (
    BACKENDS,
    DEFAULTS,
    Config,
    check_choice,
    check_config,
    check_flag,
    check_weight,
    warn_of_iterations,
)
from .functional import unavailable_reason, weighted_loss
from .schedule import Schedule
from .stats import PSPLStats

# forward() reads no attribute of the next two classes, because torch.compile of torch 2.4 and 2.6 can't.


class _Constant:
    """An attribute of PSPLLoss for one field of its Config. Assigning to it checks the value and replaces the Config."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: PSPLLoss | None, owner: type | None = None) -> Any:
        return self if module is None else getattr(module.config, self.name)

    def __set__(self, module: PSPLLoss, value: Any) -> None:
        module.config = check_config(module.config._replace(**{self.name: value}))


class _OfSchedule:
    """An attribute of PSPLLoss that its schedule has, with its checks."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.__doc__ = getattr(Schedule, name).__doc__

    def __get__(self, module: PSPLLoss | None, owner: type | None = None) -> Any:
        return self if module is None else getattr(module.schedule, self.name)

    def __set__(self, module: PSPLLoss, value: Any) -> None:
        setattr(module.schedule, self.name, value)


def _check_backend(name: str, value: Any) -> str:
    backend = check_choice(name, value, BACKENDS)
    if backend in _library.reasons and (reason := unavailable_reason(backend)):
        raise RuntimeError(f"{name} is {backend!r}, but {reason}")
    return backend


# The checks of the attributes that are neither in the config nor in the schedule.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "return_stats": check_flag,
    "backend": _check_backend,
    "loss_weight": check_weight,
}
# The attributes that can't be assigned, and what to do instead.
_FIXED = {
    "start_iteration": "Assign iteration.",
    "capturable": "Pass it to the constructor, because a captured graph has the address of the count.",
    "step": "Assign iteration, or pass step in a call.",
    "delta": "Assign iteration, or pass step in a call.",
}


class PSPLLoss(nn.Module):
    """:func:`pspl_cuda.pspl_loss` as a module that follows the training schedule.

    The module counts its calls: the first call in training mode is iteration 1, and Eq. 8's step is
    ``iteration / iterations_per_step``. In eval mode it uses the current step without advancing. A call that raises does not
    count, nor does one that activation checkpointing repeats in backward. The replicas of ``nn.DataParallel`` count one call per
    batch. ``docs/definition.md`` has a table of what counts.

    The count is on the CPU and is neither parameter nor buffer: it needs no device synchronisation and is not changed by
    ``.half()`` and ``.to()``. ``state_dict`` has it as extra state; a checkpoint without it loads and leaves it unchanged.
    ``deepcopy`` and pickling copy it, so an EMA copy of a model keeps the count of the moment it was made. A captured CUDA graph
    replays the step it was captured with, unless the module is ``capturable``. Threads that call one module at the same time may
    lose counts: use one module per thread.

    Every keyword but ``start_iteration`` and ``capturable`` is an attribute that can be assigned, with the checks of the
    constructor.

    Args:
        alpha: growth rate of delta per step (Eq. 8).
        beta: initial delta (Eq. 8). With 0, the first steps have weights near zero wherever the images agree.
        gamma: the largest attention (Eq. 7), reached as delta grows.
        mu: similarity that gets the largest attention (Eq. 7); -1 is the least similar.
        distance: ``"l1"``, ``"l2"`` or ``"charbonnier"`` (Eq. 10).
        data_range: range of the pixel values: 1.0 for 0..1, 255 for 0..255.
        window_size: odd width of the Gaussian window in pixels, 1 to 511.
        sigma: standard deviation of the window in pixels.
        k1: constant of the luminance term of Eq. 5.
        k2: constant of the contrast term of Eq. 5.
        padding: values outside the image: ``"zeros"``, ``"reflect"`` or ``"replicate"``.
        eps: the charbonnier distance's eps, in pixel units.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the loss per pixel).
        return_stats: also return :class:`PSPLStats`.
        backend: ``"auto"``, ``"cuda"``, ``"cpu"`` or ``"reference"``. :func:`pspl_cuda.pspl_loss` says more on these keywords.
        loss_weight: factor on the loss: 0, or of a magnitude from 1e-37 to 1e37.
        total_iterations: length of the run. Eq. 8's step is then ``0.8 + 60 * iteration / total_iterations``: all pixels have
            weight from the first iteration, and after a third of the run the weights are uniform to 1 % with the default
            ``alpha``, ``beta`` and ``mu``. A longer run goes on to larger steps. ``experiments/README.md`` has the evidence.
        iterations_per_step: iterations that make one unit of Eq. 8's step, instead of ``total_iterations``. Default: the
            authors' unit, 1000.
        calls_per_iteration: calls that make one iteration: micro-batches under gradient accumulation, or several outputs that
            call the loss one by one.
        start_iteration: iterations already done, for resuming where the loss's state is not saved: the next call is
            ``start_iteration + 1``. Afterwards, assign ``iteration``.
        capturable: keep the count on the images' device and advance it there, as in ``torch.optim``, so that a CUDA graph
            (captured explicitly or by ``torch.compile(mode="reduce-overhead")``) follows the schedule. The count moves there
            with ``.to()``, or at the first call, which must come before a capture. Reading ``iteration`` then synchronises with
            the device.

    Shape:
        ``sr``, ``hr``: ``[..., C, H, W]`` each, or two lists or tuples of such tensors, one per output of the network (the
        scales of LapSRN): their losses at one step are added, and count as one call.

    Raises:
        TypeError, ValueError: a keyword of the wrong type or out of range; ``total_iterations`` together with
            ``iterations_per_step`` or, in a call, with ``step``; see :func:`pspl_cuda.pspl_loss` for the images.
        RuntimeError: an explicit ``backend`` that is unavailable; a capture before the first call of a ``capturable`` module, or
            one inside ``nn.DataParallel``.
    """

    alpha, beta, gamma, mu = _Constant(), _Constant(), _Constant(), _Constant()
    distance, eps, reduction = _Constant(), _Constant(), _Constant()
    data_range, window_size, sigma, k1, k2, padding = (_Constant() for _ in range(6))
    iteration, calls_per_iteration = _OfSchedule(), _OfSchedule()
    total_iterations, iterations_per_step = _OfSchedule(), _OfSchedule()

    def __init__(
        self,
        *,
        alpha: float = DEFAULTS.alpha,
        beta: float = DEFAULTS.beta,
        gamma: float = DEFAULTS.gamma,
        mu: float = DEFAULTS.mu,
        distance: str = DEFAULTS.distance,
        data_range: float = DEFAULTS.data_range,
        window_size: int = DEFAULTS.window_size,
        sigma: float = DEFAULTS.sigma,
        k1: float = DEFAULTS.k1,
        k2: float = DEFAULTS.k2,
        padding: str = DEFAULTS.padding,
        eps: float = DEFAULTS.eps,
        reduction: str = DEFAULTS.reduction,
        return_stats: bool = False,
        backend: str = "auto",
        loss_weight: float = 1.0,
        total_iterations: int | None = None,
        iterations_per_step: float | None = None,
        calls_per_iteration: int = 1,
        start_iteration: int = 0,
        capturable: bool = False,
    ) -> None:
        super().__init__()
        self.config = check_config(
            Config(alpha, beta, gamma, mu, distance, data_range, window_size, sigma, k1, k2, padding, eps, reduction)
        )
        self.backend = backend
        self.return_stats = return_stats
        self.loss_weight = loss_weight
        self.schedule = Schedule(
            total_iterations=total_iterations,
            iterations_per_step=iterations_per_step,
            calls_per_iteration=calls_per_iteration,
            start_iteration=start_iteration,
            capturable=capturable,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED:
            raise AttributeError(f"{name} of PSPLLoss can't be assigned. {_FIXED[name]}")
        if name in _CHECKS:
            value = _CHECKS[name](name, value)
        if hasattr(type(self), name):  # nn.Module would register a Parameter or a Module past the attribute's check
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.schedule = copy.copy(self.schedule)  # copy.copy() of the module would share it

    @property
    def capturable(self) -> bool:
        """Whether the count moves to the images' device."""
        return self.schedule.capturable

    @property
    def step(self) -> float:
        """Eq. 8's step at the current iteration."""
        return self.schedule.step

    @property
    def delta(self) -> float:
        """Eq. 8's delta at the current iteration."""
        return self.config.alpha * self.step + self.config.beta

    # TorchScript compiles the modules inside a module, whether it calls them or not.
    __jit_unused_properties__ = ("capturable", "step", "delta", "_applied_weight")

    @torch.jit.unused
    def forward(
        self,
        sr: Tensor | Sequence[Tensor],
        hr: Tensor | Sequence[Tensor],
        step: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, PSPLStats | list[PSPLStats]]:
        """Return ``loss_weight`` times the loss; with ``return_stats`` also the statistics (a list for several outputs).

        An explicit ``step`` is used unchanged, and the count does not change.
        """
        if step is not None:
            total = self.schedule.total_iterations
            if total is not None:
                raise ValueError(
                    f"total_iterations is {total} and step was given in a call; expected one of them. Leave out "
                    "step, or construct PSPLLoss without total_iterations."
                )
            warn_of_iterations(step)
            return self._loss(sr, hr, step)
        if self.schedule.capturable:
            self.schedule.move_to(sr[0] if isinstance(sr, (list, tuple)) and sr else sr)
        calls = self.schedule.calls_with_next(self.training)
        result = self._loss(sr, hr, self.schedule.step_of(calls))
        if self.training:
            self.schedule.record(calls)
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PSPLLoss:
        super()._apply(fn, recurse)
        self.schedule.to(fn(torch.empty(0, device="cpu")).device)
        return self

    def _replicate_for_data_parallel(self) -> PSPLLoss:
        replica = super()._replicate_for_data_parallel()
        replica.schedule = self.schedule.replica()
        return replica

    @property
    def _applied_weight(self) -> float:
        return self.loss_weight

    def _loss(self, sr: Any, hr: Any, step: float | Tensor) -> Any:
        if isinstance(sr, (list, tuple)) or isinstance(hr, (list, tuple)):
            return self._several(sr, hr, step)
        return weighted_loss(sr, hr, step, self.config, self.return_stats, self.backend, self._applied_weight)

    def _several(self, sr: Any, hr: Any, step: float | Tensor) -> Any:
        if not isinstance(sr, (list, tuple)) or not isinstance(hr, (list, tuple)) or len(sr) != len(hr) or not sr:
            described = [f"{len(x)} tensors" if isinstance(x, (list, tuple)) else type(x).__name__ for x in (sr, hr)]
            raise ValueError(
                f"sr is {described[0]} and hr is {described[1]}; expected two lists or tuples of the same length, at least 1."
            )
        if self.config.reduction == "none":
            raise ValueError(
                "reduction is 'none', which gives one map per output; expected 'mean' or 'sum' for several."
            )
        terms = [self._loss(*pair, step) for pair in zip(sr, hr, strict=True)]
        if self.return_stats:
            return sum(loss for loss, _ in terms), [stats for _, stats in terms]
        return sum(terms)

    def get_extra_state(self) -> Tensor:
        """The state of the schedule: four int64 numbers."""
        return self.schedule.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Continue after the saved iteration; see :meth:`Schedule.set_state`."""
        self.schedule.set_state(state)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        # A checkpoint from before the loss was used must still load strictly.
        key = f"{prefix}_extra_state"
        if key in missing_keys:
            missing_keys.remove(key)

    def extra_repr(self) -> str:
        """The keywords that differ from the defaults, and the current iteration."""
        described_last = ("start_iteration", "total_iterations", "iterations_per_step")
        keywords = inspect.signature(PSPLLoss).parameters.values()
        changed = [k.name for k in keywords if k.name not in described_last and getattr(self, k.name) != k.default]
        total = self.total_iterations
        schedule = f"iterations_per_step={self.iterations_per_step:g}" if total is None else f"total_iterations={total}"
        return ", ".join([f"{name}={getattr(self, name)!r}" for name in (*changed, "iteration")] + [schedule])
