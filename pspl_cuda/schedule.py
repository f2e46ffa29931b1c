"""The training schedule: which iteration a call of the loss belongs to, and Eq. 8's step in it."""

from __future__ import annotations

import warnings
from array import array
from typing import Any

import torch
from torch import Tensor

from . import _ops, _torch
from .config import MAX_COUNT, check_count, check_flag, check_scalar

AUTHORS_ITERATIONS_PER_STEP = 1000
# Attention is uniform to 1 % from step 20 on, with the default alpha, beta and mu. 60 steps in a run reach it after a third.
STEPS_OF_A_RUN = 60
# Where the step of such a run begins. From 0 the gradient would be exactly 0 at first, and then grow by orders of magnitude in a
# few iterations: Adam's steps become several times the learning rate. Beginning later loses what the growth gains.
FIRST_STEP_OF_A_RUN = 0.8


class Schedule:
    """Counts the calls of a loss and turns the count into Eq. 8's ``step``.

    A call is counted in three steps, so that one that raises does not count::

        calls = schedule.calls_with_next(training)
        ...  # the loss at schedule.step_of(calls)
        schedule.record(calls)

    The keywords are those of :class:`pspl_cuda.PSPLLoss`.

    The count is a 64-bit integer on the CPU. Python and torch share its memory: eager code uses a plain integer, which ambient
    modes of torch (``inference_mode``, FakeTensorMode, ``torch.func``) do not concern; compiled code uses a tensor, which is an
    input of its graph instead of a constant. The count of a ``capturable`` schedule moves to the images' device, as a tensor.

    Raises:
        TypeError, ValueError: a keyword of the wrong type or out of range, or ``total_iterations`` with ``iterations_per_step``.
    """

    def __init__(
        self,
        *,
        total_iterations: int | None = None,
        iterations_per_step: float | None = None,
        calls_per_iteration: int = 1,
        start_iteration: int = 0,
        capturable: bool = False,
    ) -> None:
        if total_iterations is not None:
            self.total_iterations = total_iterations
            if iterations_per_step is not None:
                raise ValueError(
                    f"total_iterations is {total_iterations} and iterations_per_step was given; expected one of them. "
                    f"total_iterations sets iterations_per_step to total_iterations / {STEPS_OF_A_RUN}."
                )
        else:
            self.iterations_per_step = (
                AUTHORS_ITERATIONS_PER_STEP if iterations_per_step is None else iterations_per_step
            )
        self._calls_per_iteration = check_count("calls_per_iteration", calls_per_iteration, least=1)
        self.capturable = check_flag("capturable", capturable)
        # On the module's device, where the state is saved from: Lightning loads a model to the device of its first saved tensor.
        # An empty tensor, because copies, pickling and map_location treat it as they treat the weights.
        self._place = torch.empty(0, device="cpu")
        # The schedule of the module that nn.DataParallel made this one's module from.
        self._original: Schedule | None = None
        most = MAX_COUNT // self._calls_per_iteration
        iteration = check_count("start_iteration", start_iteration, least=0, most=most)
        self._keep(iteration * self._calls_per_iteration)

    # ---- the step

    def step_of(self, calls: int | Tensor) -> float | Tensor:
        """Eq. 8's step of the last of so many calls; a 0-dim float64 tensor for a count that is one."""
        if isinstance(calls, Tensor):
            calls = calls.reshape(())
        iteration = -(-calls // self._calls_per_iteration)
        if isinstance(iteration, Tensor):
            iteration = iteration.to(torch.float64)
        return iteration / self._iterations_per_step + self._first_step

    @property
    def step(self) -> float:
        """Eq. 8's step at the current iteration."""
        step = self.step_of(self.calls)
        assert not isinstance(step, Tensor)
        return step

    @property
    def iterations_per_step(self) -> float:
        """Iterations that make one unit of Eq. 8's step. Settable: ``total_iterations`` becomes None."""
        return self._iterations_per_step

    @iterations_per_step.setter
    def iterations_per_step(self, value: float) -> None:
        self._iterations_per_step = check_scalar("iterations_per_step", value, above=0)
        self._first_step = 0.0
        self._total_iterations: int | None = None

    @property
    def total_iterations(self) -> int | None:
        """Length of the run that the schedule was made for, or None. Settable: the steps follow."""
        return self._total_iterations

    @total_iterations.setter
    def total_iterations(self, value: int) -> None:
        total = check_count("total_iterations", value, least=1)
        self.iterations_per_step = total / STEPS_OF_A_RUN
        self._first_step = FIRST_STEP_OF_A_RUN
        self._total_iterations = total

    # ---- the count

    def calls_with_next(self, training: bool) -> int | Tensor:
        """The number of calls with the next one, which counts in training.

        It does not count while a backward pass runs: activation checkpointing then repeats a call that has been counted.
        A tensor in compiled code and where the count is on another device than the CPU.
        """
        if torch.compiler.is_compiling():
            if not training:
                return self._tensor
            # A program of torch.export does not count: its step is the one after the export.
            return self._tensor + (1 if _torch.is_exporting() else _ops.increment(self._tensor))
        calls = self._memory[0] if self._memory is not None else self._tensor
        return calls + 1 if training and not _torch.in_backward() else calls

    @property
    def calls(self) -> int:
        """Calls counted so far. Reading it synchronises with the device of the count."""
        return int(self._tensor) if self._memory is None else self._memory[0]

    @calls.setter
    def calls(self, value: int) -> None:
        if self._memory is None:
            self._tensor.fill_(value)  # in place, because a captured graph uses this memory
        else:
            self._memory[0] = value

    def record(self, calls: int | Tensor) -> None:
        """Set the count to ``calls``, a result of :meth:`calls_with_next`."""
        if isinstance(calls, Tensor):
            # In place, as above. An assignment would also leave what an ambient mode makes of a tensor.
            if not _torch.is_exporting():
                self._tensor.fill_(calls.reshape(()))
            return
        self.calls = calls
        if self._original is not None:
            self._original.calls = max(self._original.calls, calls)

    @property
    def iteration(self) -> int:
        """Iterations begun so far. After ``iteration = n`` the next call in training is iteration n + 1."""
        return -(-self.calls // self._calls_per_iteration)

    @iteration.setter
    def iteration(self, value: int) -> None:
        most = MAX_COUNT // self._calls_per_iteration
        self.calls = check_count("iteration", value, least=0, most=most) * self._calls_per_iteration

    @property
    def calls_per_iteration(self) -> int:
        """Calls that make one iteration. Settable: the iteration stays, and the next call in training begins another one."""
        return self._calls_per_iteration

    @calls_per_iteration.setter
    def calls_per_iteration(self, value: int) -> None:
        value = check_count("calls_per_iteration", value, least=1)
        iteration = check_count("iteration", self.iteration, least=0, most=MAX_COUNT // value)
        self._calls_per_iteration = value
        self.iteration = iteration

    # ---- where the count is

    def _keep(self, calls: int) -> None:
        """Keep the count on the CPU, beginning with ``calls``."""
        self._memory: array[int] | None = array("q", [calls])
        # [1]. An inference tensor could not be changed in place outside inference mode.
        with torch.inference_mode(False):
            self._tensor = torch.frombuffer(self._memory, dtype=torch.int64)

    def to(self, device: torch.device) -> None:
        """The module was moved to ``device``. The count follows if it is capturable; the meta device can't hold it."""
        if device.type == "meta":
            return
        self._place = torch.empty(0, device=device)
        if not self.capturable or device == self._tensor.device:
            return
        calls = self.calls
        if device.type == "cpu":
            self._keep(calls)
        else:
            self._memory, self._tensor = None, torch.full((1,), calls, dtype=torch.int64, device=device)
            _torch.mark_static_address(self._tensor)

    def move_to(self, image: Any) -> None:
        """Before a call: move a capturable count to the device of ``image``, if that is a tensor.

        Raises:
            RuntimeError: a CUDA graph is being captured, which would copy the count again at every replay.
        """
        if not isinstance(image, Tensor) or image.device == self._tensor.device or image.is_meta:
            return
        if torch.compiler.is_compiling():
            self._memory, self._tensor = None, self._tensor.to(image.device)
            return
        if image.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"PSPLLoss(capturable=True) has its count on {self._tensor.device}, but a CUDA graph is being captured on "
                f"{image.device}. Call the module once on images of that device before the capture, as a warm-up."
            )
        self.to(image.device)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("_memory", "_tensor")}
        return {**kept, "_original": None, "calls": self.calls}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep(vars(self).pop("calls"))

    def replica(self) -> Schedule:
        """The schedule of a replica that nn.DataParallel makes of the module for one batch.

        All replicas begin with this count, and each raises it to its own: the calls of one batch count once.

        Raises:
            RuntimeError: the schedule is capturable.
        """
        if self.capturable:
            raise RuntimeError(
                "PSPLLoss(capturable=True) is inside nn.DataParallel, whose replicas can't share a count on a device. Construct "
                "it without capturable, call it outside of the wrapped module, or use DistributedDataParallel."
            )
        replica = Schedule.__new__(Schedule)
        replica.__setstate__(self.__getstate__())
        replica._original = self
        return replica

    # ---- the saved state

    def get_state(self) -> Tensor:
        """``[iteration, calls made in it, calls_per_iteration, total_iterations or 0]``, int64, on the module's device.

        A tensor, because frameworks move the values of a state dict to the CPU; of one size, because
        torch.distributed.checkpoint loads into it.
        """
        iteration = self.iteration
        started = max(iteration - 1, 0) * self._calls_per_iteration
        state = [iteration, self.calls - started, self._calls_per_iteration, self._total_iterations or 0]
        # frombuffer makes a tensor with data on the CPU whatever the default device, and inside FakeTensorMode as well.
        return torch.frombuffer(array("q", state), dtype=torch.int64).to(self._place.device)

    def set_state(self, state: Any) -> None:
        """Continue after the saved iteration, also with another ``calls_per_iteration``.

        The schedule stays this one. With another ``total_iterations`` than the saved one the step changes at once, which a
        warning tells. States of earlier versions had one number, the calls, or three, without ``total_iterations``.
        """
        integers = isinstance(state, Tensor) and not (
            state.is_floating_point() or state.is_complex() or state.dtype == torch.bool or state.is_meta
        )
        values = state.reshape(-1).tolist() if integers else []
        if len(values) == 1:
            self.calls = check_count("the saved count of calls", values[0], least=0)
            saved_total = None
        elif len(values) in (3, 4):
            iteration, calls, per_iteration = values[:3]
            saved_total = values[3] or None if len(values) == 4 else None
            if not (0 <= calls <= per_iteration and (calls == 0) == (iteration == 0)) or (saved_total or 1) < 1:
                raise _malformed(state)
            self.iteration = iteration
            if iteration > 0 and per_iteration == self._calls_per_iteration:
                self.calls -= per_iteration - calls
        else:
            raise _malformed(state)
        if saved_total != self._total_iterations:
            described = [
                "no total_iterations" if t is None else f"total_iterations={t}"
                for t in (saved_total, self._total_iterations)
            ]
            warnings.warn(
                f"The saved PSPLLoss has {described[0]}, and this one has {described[1]}: at iteration {self.iteration} its step "
                f"is now {self.step:g}. To go on as before, pass the saved run's total_iterations= or iterations_per_step=.",
                stacklevel=3,
            )


def _malformed(state: Any) -> ValueError:
    described = type(state).__name__
    if isinstance(state, Tensor):
        described = repr(state) if state.numel() <= 4 else f"a tensor of shape {tuple(state.shape)}"
    return ValueError(
        f"The saved state of PSPLLoss is {described}; expected the int64 tensor that its state_dict() holds under "
        "'_extra_state'. Remove that key from the checkpoint and pass start_iteration instead."
    )
