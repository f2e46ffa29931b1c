"""PSPLLoss: the loss as a module that counts its own iterations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import MOST_CALLS, check_config, check_count, check_flag, check_images, check_scalar, check_step
from .functional import checked_loss
from .ops import check_backend, choose_backend
from .stats import PSPLStats


class PSPLLoss(nn.Module):
    """:func:`pspl_cuda.pspl_loss` as a module that knows how far training is.

    No training framework tells its losses the iteration, so the module counts its calls: the first call in training mode is
    iteration 1, and Eq. 8's step is ``iteration / iterations_per_step``. In eval mode it uses the current step without
    advancing. The count lives on the CPU and is neither parameter nor buffer: it never waits for a device, is untouched by
    ``.half()`` and ``.to()``, is copied by ``deepcopy``, pickling and EMA, and travels in ``state_dict`` as extra state. A
    checkpoint without it loads, and leaves the count alone. A captured CUDA graph replays the step it was captured with:
    pass ``step`` as a tensor there.

    Args:
        alpha, beta, gamma, mu, distance, data_range, window_size, sigma, k1, k2, padding, eps, reduction, return_stats,
            backend: as in :func:`pspl_cuda.pspl_loss`.
        loss_weight: factor on the loss.
        iterations_per_step: iterations that make one unit of Eq. 8's step. The authors' unit is 1000.
        calls_per_iteration: calls that make one iteration: micro-batches under gradient accumulation, or several outputs that
            call the loss one by one.
        start_iteration: iterations already done, for resuming where loss state is not saved: the next call is
            ``start_iteration + 1``.

    Shape:
        ``sr``, ``hr``: ``[..., C, H, W]`` each, or two lists or tuples of such tensors, one per output of the network (the
        scales of LapSRN): their losses at one step are added, and count as one call.

    Raises:
        TypeError, ValueError: a keyword of the wrong type or out of range; see :func:`pspl_cuda.pspl_loss` for the images.
        RuntimeError: an explicit ``backend`` that is not built.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 2.0,
        mu: float = -1.0,
        distance: str = "l1",
        data_range: float = 1.0,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "zeros",
        eps: float = 1e-3,
        reduction: str = "mean",
        return_stats: bool = False,
        backend: str = "auto",
        loss_weight: float = 1.0,
        iterations_per_step: float = 1000,
        calls_per_iteration: int = 1,
        start_iteration: int = 0,
    ) -> None:
        super().__init__()
        self.config = check_config(
            alpha, beta, gamma, mu, distance, data_range, window_size, sigma, k1, k2, padding, eps, reduction
        )
        check_backend(backend)
        self.backend = backend
        self.return_stats = check_flag("return_stats", return_stats)
        self.loss_weight = check_scalar("loss_weight", loss_weight)
        self.iterations_per_step = check_scalar("iterations_per_step", iterations_per_step, above=0)
        self.calls_per_iteration = check_count("calls_per_iteration", calls_per_iteration, least=1)
        self.iteration = start_iteration

    @property
    def iteration(self) -> int:
        """Iterations begun so far. Settable: after ``loss.iteration = n`` the next training call is iteration n + 1."""
        return -(-int(self._calls) // self.calls_per_iteration)

    @iteration.setter
    def iteration(self, value: int) -> None:
        most = MOST_CALLS // self.calls_per_iteration
        self._set_calls(check_count("iteration", value, least=0, most=most) * self.calls_per_iteration)

    def _set_calls(self, calls: int) -> None:
        # A tensor, although a plain integer would do in eager mode: torch.compile takes a module's integers for constants, and
        # would compile again at every call.
        self._calls = torch.tensor(calls, dtype=torch.int64, device="cpu")

    def _current_step(self) -> float | Tensor:
        if not torch.compiler.is_compiling():
            return self.step
        iteration = -(-self._calls // self.calls_per_iteration)
        return iteration.to(torch.float64) / self.iterations_per_step

    @property
    def step(self) -> float:
        """Eq. 8's step at the current iteration."""
        return self.iteration / self.iterations_per_step

    @property
    def delta(self) -> float:
        """Eq. 8's width of the attention at the current iteration."""
        return self.config.alpha * self.step + self.config.beta

    def forward(
        self,
        sr: Tensor | Sequence[Tensor],
        hr: Tensor | Sequence[Tensor],
        step: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, PSPLStats | list[PSPLStats]]:
        """Return ``loss_weight`` times the loss; with ``return_stats`` also the statistics (a list for several outputs).

        A given ``step`` is used as it stands, and the count stays where it is.
        """
        if step is None:
            if self.training:
                self._calls = self._calls + 1
            step = self._current_step()
        if isinstance(sr, (list, tuple)) or isinstance(hr, (list, tuple)):
            return self._several(sr, hr, step)
        loss = self._one(sr, hr, step)
        if self.return_stats:
            return self._weighted(loss[0]), loss[1]
        return self._weighted(loss)

    def _one(self, sr: Tensor, hr: Tensor, step: float | Tensor) -> Tensor | tuple[Tensor, PSPLStats]:
        check_images(sr, hr)
        step = check_step(step, sr.device)
        backend = choose_backend(self.backend, sr.device)
        return checked_loss(sr, hr, step, self.config, self.return_stats, backend)

    def _weighted(self, loss: Tensor) -> Tensor:
        return loss if self.loss_weight == 1 else self.loss_weight * loss

    def _several(self, sr: Sequence[Tensor], hr: Sequence[Tensor], step: float | Tensor):
        if not isinstance(sr, (list, tuple)) or not isinstance(hr, (list, tuple)) or len(sr) != len(hr) or not sr:
            described = [f"{len(x)} tensors" if isinstance(x, (list, tuple)) else type(x).__name__ for x in (sr, hr)]
            raise ValueError(
                f"sr is {described[0]} and hr is {described[1]}; expected two lists or tuples of the same length, at least 1."
            )
        if self.config.reduction == "none":
            raise ValueError(
                "reduction is 'none', which gives one map per output; expected 'mean' or 'sum' for several."
            )
        terms = [self._one(*pair, step) for pair in zip(sr, hr, strict=True)]
        if self.return_stats:
            return self._weighted(sum(loss for loss, _ in terms)), [stats for _, stats in terms]
        return self._weighted(sum(terms))

    def get_extra_state(self) -> Tensor:
        """The count of calls, int64. A tensor, because frameworks call ``.cpu()`` on what they find in a state dict."""
        return self._calls.clone()

    def set_extra_state(self, state: Tensor) -> None:
        self._set_calls(check_count("the saved count of calls", int(state), least=0))

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
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
            f"{name}={value!r}"
            for name, value in self.config._asdict().items()
            if value != self.config._field_defaults[name]
        ]
        if self.loss_weight != 1:
            changed.append(f"loss_weight={self.loss_weight:g}")
        return ", ".join([*changed, f"iteration={self.iteration}", f"iterations_per_step={self.iterations_per_step:g}"])
