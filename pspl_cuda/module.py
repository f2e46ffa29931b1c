"""PSPLLoss: the loss as a module that counts its own iterations."""

from __future__ import annotations

import ctypes
import struct
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _library
from .config import BACKENDS, DEFAULTS, Config, check_choice, check_config, check_flag, check_scalar, is_a, refusal
from .functional import loss as functional_loss
from .functional import unavailable_reason
from .stats import PSPLStats

AUTHORS_ITERATIONS_PER_STEP = 1000
# Attention is uniform to 1 % from step 20 on, with the default alpha, beta and mu. 60 steps in a run reach it after a third.
STEPS_OF_A_RUN = 60
# The largest count: far beyond any training, and exact in float64.
MAX_COUNT = 2**53


def check_count(name: str, value: Any, *, least: int, most: int = MAX_COUNT) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most``; raise otherwise."""
    if is_a(value, int) and least <= value <= most:
        return value
    too_large = is_a(value, int) and value > most
    raise refusal(name, value, int, f"an integer {f'from {least} to {most}' if too_large else f'of at least {least}'}")


def _int64_tensor(*values: int) -> Tensor:
    """A one-dimensional CPU tensor. It holds data inside FakeTensorMode as well."""
    return torch.frombuffer(bytearray(struct.pack(f"={len(values)}q", *values)), dtype=torch.int64)


class _Constant:
    """An attribute of PSPLLoss for one field of its Config. Assigning to it checks the value and replaces the Config."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, module: PSPLLoss | None, owner: type | None = None) -> Any:
        return self if module is None else getattr(module.config, self.name)

    def __set__(self, module: PSPLLoss, value: Any) -> None:
        module.config = check_config(module.config._replace(**{self.name: value}))


class PSPLLoss(nn.Module):
    """:func:`pspl_cuda.pspl_loss` as a module that follows the training schedule.

    The module counts its calls: the first call in training mode is iteration 1, and Eq. 8's step is
    ``iteration / iterations_per_step``. In eval mode it uses the current step without advancing. A call that raises does not
    count. The count is on the CPU and is neither parameter nor buffer: it needs no device synchronisation, is not changed by
    ``.half()`` and ``.to()``, is copied by ``deepcopy``, pickling and EMA, and is saved in ``state_dict`` as extra state. A
    checkpoint without it loads and leaves the count unchanged. A captured CUDA graph replays the step it was captured with,
    unless the module is ``capturable``. Threads that call one module at the same time may lose counts: use one module per thread.

    All keywords of :func:`pspl_cuda.pspl_loss`, each also an attribute that can be assigned, and:

    Args:
        loss_weight: factor on the loss.
        total_iterations: length of the run. The schedule then reaches step 20, from which the weights are uniform to 1 % with
            the default ``alpha``, ``beta`` and ``mu``, after a third of it, and step 60 at its end: ``iterations_per_step`` is
            ``total_iterations / 60``. A longer run goes on to larger steps. In the project's experiment (SRCNN x4, Adam, 7200
            iterations, three seeds; ``experiments/README.md``) this schedule ended 0.05 to 0.27 dB above the plain loss on
            Set5, 0.16 dB on average, and above the schedule over the whole run. Its lead over the paper's 300 steps in a run is
            within the noise, and uniform weights of the same mean gained as much. Long runs are untested.
        iterations_per_step: iterations that make one unit of Eq. 8's step, instead of ``total_iterations``. Default: the
            authors' unit, 1000.
        calls_per_iteration: calls that make one iteration: micro-batches under gradient accumulation, or several outputs that
            call the loss one by one.
        start_iteration: iterations already done, for resuming where the loss's state is not saved: the next call is
            ``start_iteration + 1``.
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
        RuntimeError: an explicit ``backend`` that is unavailable; a capture before the first call of a ``capturable`` module.
    """

    alpha, beta, gamma, mu = _Constant(), _Constant(), _Constant(), _Constant()
    distance, eps, reduction = _Constant(), _Constant(), _Constant()
    data_range, window_size, sigma, k1, k2, padding = (_Constant() for _ in range(6))

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
        self.backend = check_choice("backend", backend, BACKENDS)
        if backend in _library.reasons and (reason := unavailable_reason(backend)):
            raise RuntimeError(f"backend is {backend!r}, but {reason}")
        self.return_stats = check_flag("return_stats", return_stats)
        self.loss_weight = check_scalar("loss_weight", loss_weight)
        if total_iterations is None:
            self.iterations_per_step = (
                AUTHORS_ITERATIONS_PER_STEP if iterations_per_step is None else iterations_per_step
            )
        else:
            self.total_iterations = total_iterations
            if iterations_per_step is not None:
                raise ValueError(
                    f"total_iterations is {total_iterations} and iterations_per_step was given; expected one of them. "
                    f"total_iterations sets iterations_per_step to total_iterations / {STEPS_OF_A_RUN}."
                )
        self._calls_per_iteration = check_count("calls_per_iteration", calls_per_iteration, least=1)
        self.capturable = check_flag("capturable", capturable)
        # [1]. A tensor, because torch.compile treats a module's integers as constants and would compile again at every call.
        self._calls = _int64_tensor(0)
        self.iteration = start_iteration

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._calls = _int64_tensor(self._read_calls())  # copy.copy() would share the memory

    # Eager code reads and writes the memory of a count on the CPU: a tensor operation would be subject to ambient modes
    # (FakeTensorMode, torch.func).

    def _read_calls(self) -> int:
        if self._calls.device.type == "cpu":
            return ctypes.c_int64.from_address(self._calls.data_ptr()).value
        return int(self._calls)

    def _write_calls(self, calls: int) -> None:
        if self._calls.device.type == "cpu":
            ctypes.c_int64.from_address(self._calls.data_ptr()).value = calls
        else:
            self._calls.fill_(calls)  # in place, because a captured graph uses this memory

    @property
    def iteration(self) -> int:
        """Iterations begun so far. After ``loss.iteration = n`` the next training call is iteration n + 1."""
        return -(-self._read_calls() // self.calls_per_iteration)

    @iteration.setter
    def iteration(self, value: int) -> None:
        most = MAX_COUNT // self.calls_per_iteration
        self._write_calls(check_count("iteration", value, least=0, most=most) * self.calls_per_iteration)

    @property
    def calls_per_iteration(self) -> int:
        """Calls that make one iteration. Settable: the iteration stays, and the next training call begins another one."""
        return self._calls_per_iteration

    @calls_per_iteration.setter
    def calls_per_iteration(self, value: int) -> None:
        value = check_count("calls_per_iteration", value, least=1)
        iteration = check_count("iteration", self.iteration, least=0, most=MAX_COUNT // value)
        self._calls_per_iteration = value
        self.iteration = iteration

    @property
    def iterations_per_step(self) -> float:
        """Iterations that make one unit of Eq. 8's step. Settable: ``total_iterations`` becomes None."""
        return self._iterations_per_step

    @iterations_per_step.setter
    def iterations_per_step(self, value: float) -> None:
        self._iterations_per_step = check_scalar("iterations_per_step", value, above=0)
        self._total_iterations: int | None = None

    @property
    def total_iterations(self) -> int | None:
        """Length of the run that the schedule was made for, or None. Settable: ``iterations_per_step`` follows."""
        return self._total_iterations

    @total_iterations.setter
    def total_iterations(self, value: int) -> None:
        self.iterations_per_step = check_count("total_iterations", value, least=1) / STEPS_OF_A_RUN
        self._total_iterations = value

    @property
    def step(self) -> float:
        """Eq. 8's step at the current iteration."""
        return self.iteration / self.iterations_per_step

    @property
    def delta(self) -> float:
        """Eq. 8's delta at the current iteration."""
        return self.config.alpha * self.step + self.config.beta

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
            if self.total_iterations is not None:
                raise ValueError(
                    f"total_iterations is {self.total_iterations} and step was given in a call; expected one of them. Leave out "
                    "step, or construct PSPLLoss without total_iterations."
                )
            return self._loss(sr, hr, step)
        advance = 1 if self.training else 0
        if self.capturable:
            self._move_calls(sr)
        if self.capturable or torch.compiler.is_compiling():
            calls = self._calls + advance
            iteration = -(-calls.reshape(()) // self.calls_per_iteration)
            result = self._loss(sr, hr, iteration.to(torch.float64) / self.iterations_per_step)
            # In place: an assignment would leave what an ambient mode makes of a tensor. An exported program does not count.
            if advance and (self.capturable or not torch.compiler.is_exporting()):
                self._calls.add_(advance)
            return result
        count = self._read_calls() + advance
        result = self._loss(sr, hr, -(-count // self.calls_per_iteration) / self.iterations_per_step)
        self._write_calls(count)
        return result

    def _move_calls(self, sr: Tensor | Sequence[Tensor]) -> None:
        image = sr[0] if isinstance(sr, (list, tuple)) and sr else sr
        if not isinstance(image, Tensor) or image.device == self._calls.device:
            return
        if torch.compiler.is_compiling():
            self._calls = self._calls.to(image.device)
            return
        if image.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"PSPLLoss(capturable=True) has its count on {self._calls.device}, but a CUDA graph is being captured on "
                f"{image.device}. Call the module once on images of that device before the capture, as a warm-up."
            )
        self.to(image.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PSPLLoss:
        super()._apply(fn, recurse)
        if self.capturable:
            self._calls = fn(self._calls)
            # Inductor's CUDA graphs accept an input that is changed in place only if its address is fixed.
            torch._dynamo.mark_static_address(self._calls)
        return self

    @property
    def _applied_weight(self) -> float:
        return self.loss_weight

    def _loss(self, sr: Any, hr: Any, step: float | Tensor) -> Any:
        if isinstance(sr, (list, tuple)) or isinstance(hr, (list, tuple)):
            return self._several(sr, hr, step)
        return functional_loss(sr, hr, step, self.config, self.return_stats, self.backend, self._applied_weight)

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
        """``[iteration, calls made in it, calls_per_iteration]``, and ``total_iterations`` if there is one; int64. A tensor,
        because frameworks move a state dict's values to the CPU."""
        started = max(self.iteration - 1, 0) * self.calls_per_iteration
        total = [] if self.total_iterations is None else [self.total_iterations]
        return _int64_tensor(self.iteration, self._read_calls() - started, self.calls_per_iteration, *total)

    def set_extra_state(self, state: Any) -> None:
        """Continue after the saved iteration, also with another ``calls_per_iteration``.

        The schedule stays this module's. With another ``total_iterations`` than the saved one the step changes at once, which a
        warning tells.
        """
        integers = isinstance(state, Tensor) and not (
            state.is_floating_point() or state.is_complex() or state.dtype == torch.bool or state.is_meta
        )
        values = state.reshape(-1).tolist() if integers else []
        saved_total = values[3] if len(values) == 4 else None
        if len(values) == 1:  # written by 0.1.0: the number of calls
            self._write_calls(check_count("the saved count of calls", values[0], least=0))
        elif len(values) not in (3, 4) or (saved_total is not None and saved_total < 1):
            raise self._malformed(state)
        else:
            iteration, calls, per_iteration = values[:3]
            if not (0 <= calls <= per_iteration and (calls == 0) == (iteration == 0)):
                raise self._malformed(state)
            self.iteration = iteration
            if iteration > 0 and per_iteration == self.calls_per_iteration:
                self._write_calls(self._read_calls() - (per_iteration - calls))
        if saved_total != self.total_iterations:
            described = [
                "no total_iterations" if t is None else f"total_iterations={t}"
                for t in (saved_total, self.total_iterations)
            ]
            warnings.warn(
                f"The saved PSPLLoss has {described[0]}, and this one has {described[1]}: at iteration {self.iteration} its step "
                f"is now {self.step:g}. To go on as before, pass the saved run's total_iterations= or iterations_per_step=.",
                stacklevel=2,
            )

    @staticmethod
    def _malformed(state: Any) -> ValueError:
        described = type(state).__name__
        if isinstance(state, Tensor):
            described = repr(state) if state.numel() <= 4 else f"a tensor of shape {tuple(state.shape)}"
        return ValueError(
            f"The saved state of PSPLLoss is {described}; expected the int64 tensor that its state_dict() holds under "
            "'_extra_state'. Remove that key from the checkpoint and pass start_iteration instead."
        )

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
        changed = [
            f"{name}={value!r}" for name, value in self.config._asdict().items() if value != getattr(DEFAULTS, name)
        ]
        if self.loss_weight != 1:
            changed.append(f"loss_weight={self.loss_weight:g}")
        if self.total_iterations is None:
            schedule = f"iterations_per_step={self.iterations_per_step:g}"
        else:
            schedule = f"total_iterations={self.total_iterations}"
        return ", ".join([*changed, f"iteration={self.iteration}", schedule])
