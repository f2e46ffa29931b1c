"""The keywords of PSPL with their defaults, and the checks of all arguments.

The checks are shared by all backends, so that bad input gives the same message everywhere. A message names the argument, the
value received, what is expected and, where there is one, the remedy. ``ValueError`` is for shapes and values, ``TypeError`` for
types and dtypes. Pixel values are not checked: outputs of a network may overshoot, and checking would synchronise with the
device.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The position in each tuple is the number that the kernels use (csrc/pspl_params.h).
DISTANCES = ("l1", "l2", "charbonnier")
PADDINGS = ("zeros", "reflect", "replicate")
REDUCTIONS = ("mean", "sum", "none")
OUTPUTS = (*REDUCTIONS, "similarity", "attention")
BACKENDS = ("auto", "cuda", "cpu", "reference")

# kMaxRadius of csrc/pspl_params.h, as a window.
MAX_WINDOW_SIZE = 511

# The largest count: far beyond any training, and exact in float64.
MAX_COUNT = 2**53

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Config(NamedTuple):
    """The constants of one loss. Defaults are the paper's; :func:`pspl_cuda.pspl_loss` documents each for users."""

    alpha: float = 1.0  # growth of delta per step (Eq. 8), at least 0
    beta: float = 0.0  # initial delta (Eq. 8), at least 0
    gamma: float = 2.0  # largest attention (Eq. 7), at least 0
    mu: float = -1.0  # similarity with the largest attention (Eq. 7)
    distance: str = "l1"  # Eq. 10, one of DISTANCES
    data_range: float = 1.0  # L in C1 = (k1 L)^2 and C2 = (k2 L)^2 (Eq. 5), above 0
    window_size: int = 11  # width of the Gaussian window (Eq. 4) in pixels, odd, 1 to MAX_WINDOW_SIZE
    sigma: float = 1.5  # standard deviation of the window in pixels, above 0
    k1: float = 0.01  # luminance constant of Eq. 5, above 0
    k2: float = 0.03  # contrast constant of Eq. 5, above 0
    padding: str = "zeros"  # outside the image, one of PADDINGS
    eps: float = 1e-3  # of the charbonnier distance, in pixel units, above 0
    reduction: str = "mean"  # over all elements, one of REDUCTIONS

    @property
    def constants(self) -> tuple[float, ...]:
        """The numbers of the kernels' formulas: struct Constants of csrc/pspl_params.h, in its order."""
        return tuple(getattr(self, name) for name in CONSTANTS)

    @property
    def c1(self) -> float:
        """C1 of Eq. 5."""
        return (self.k1 * self.data_range) ** 2

    @property
    def c2(self) -> float:
        """C2 of Eq. 5."""
        return (self.k2 * self.data_range) ** 2


# The source of every default in the public signatures.
DEFAULTS = Config()

# The names of Config.constants.
CONSTANTS = tuple(name for name, default in DEFAULTS._asdict().items() if isinstance(default, float))


def _shown(value: object) -> str:
    # repr() of an integer of thousands of digits is an error in Python.
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer outside the range of float64
        return math.inf if value > 0 else -math.inf


def check_scalar(name: str, value: object, *, above: float | None = None, least: float | None = None) -> float:
    """Return ``value`` as a float if it is a finite number above ``above`` and of at least ``least``; raise otherwise."""
    expected = "a finite number"
    if above is not None:
        expected += f" above {above:g}"
    if least is not None:
        expected += f" of at least {least:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected {expected}.")
    number = _as_float(value)
    finite = -math.inf < number < math.inf  # math.isfinite cannot be compiled for a float that changes
    ok = finite and (above is None or number > above) and (least is None or number >= least)
    if not ok:
        raise ValueError(f"{name} is {_shown(value)}; expected {expected}.")
    return number


def check_count(name: str, value: object, *, least: int, most: int = MAX_COUNT) -> int:
    """Return ``value`` if it is an integer from ``least`` to ``most``; raise otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected an integer of at least {least}.")
    if value < least:
        raise ValueError(f"{name} is {_shown(value)}; expected an integer of at least {least}.")
    if value > most:
        raise ValueError(f"{name} is {_shown(value)}; expected an integer from {least} to {most}.")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return ``value`` if it is True or False; raise otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected True or False.")
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the strings ``choices``; raise otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is of type {type(value).__name__}; expected one of {', '.join(map(repr, choices))}.")
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    return value


def _check_magnitude(what: str, value: float, least: float, most: float) -> None:
    # The kernels compute in float32, with a reciprocal that treats subnormal numbers as zero.
    if not least <= abs(value) <= most:
        raise ValueError(
            f"{what} is {value!r}, which leaves the range of float32; expected a magnitude from {least:g} to {most:g}."
        )


def _check_config(*constants: Any) -> Config:
    config = Config(*constants)
    size = config.window_size
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"window_size is of type {type(size).__name__}; expected an odd integer.")
    if not (1 <= size <= MAX_WINDOW_SIZE and size % 2 == 1):
        raise ValueError(f"window_size is {_shown(size)}; expected an odd integer from 1 to {MAX_WINDOW_SIZE}.")
    config = Config(
        alpha=check_scalar("alpha", config.alpha, least=0),
        beta=check_scalar("beta", config.beta, least=0),
        gamma=check_scalar("gamma", config.gamma, least=0),
        mu=check_scalar("mu", config.mu),
        distance=check_choice("distance", config.distance, DISTANCES),
        data_range=check_scalar("data_range", config.data_range, above=0),
        window_size=size,
        sigma=check_scalar("sigma", config.sigma, above=0),
        k1=check_scalar("k1", config.k1, above=0),
        k2=check_scalar("k2", config.k2, above=0),
        padding=check_choice("padding", config.padding, PADDINGS),
        eps=check_scalar("eps", config.eps, above=0),
        reduction=check_choice("reduction", config.reduction, REDUCTIONS),
    )
    for name in ("alpha", "beta", "gamma"):
        if getattr(config, name) != 0:
            _check_magnitude(name, getattr(config, name), 1e-37, 1e37)
    _check_magnitude("mu", config.mu, 0, 1e37)
    # The kernels use the squares of these.
    for what, root in (
        ("k1 * data_range", config.k1 * config.data_range),
        ("k2 * data_range", config.k2 * config.data_range),
        ("eps", config.eps),
    ):
        _check_magnitude(what, root, math.sqrt(1e-37), math.sqrt(1e37))
    return config


# typed: True must not match a cached 1.0.
_cached_check_config = functools.lru_cache(maxsize=256, typed=True)(_check_config)


def check_config(config: Config) -> Config:
    """Return ``config`` with every field checked. The result is cached, because a training loop passes the same values again."""
    if torch.compiler.is_compiling():
        return _check_config(*config)
    try:
        return _cached_check_config(*config)
    except TypeError:  # a wrong type, or one that cannot be hashed; the check below names the argument
        return _check_config(*config)


def compute_dtype(sr: Tensor, hr: Tensor) -> torch.dtype:
    """float64 if either image is float64, else float32."""
    return torch.float64 if torch.float64 in (sr.dtype, hr.dtype) else torch.float32


def _check_plain(name: str, tensor: Tensor) -> None:
    if hasattr(tensor, "to_local"):
        raise TypeError(
            f"{name} is a DTensor; expected a plain tensor. Pass {name}.to_local() or {name}.full_tensor()."
        )
    if tensor.is_nested:
        raise TypeError(f"{name} is a nested tensor; expected one size. Pass its tensors one by one.")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}; expected a dense tensor. Call {name}.to_dense() first.")


def check_images(sr: Tensor, hr: Tensor) -> None:
    """Raise unless ``sr`` and ``hr`` are two images, or batches of images, that can be compared pixel by pixel."""
    for name, image in (("sr", sr), ("hr", hr)):
        if not isinstance(image, Tensor):
            raise TypeError(
                f"{name} is of type {type(image).__name__}; expected a torch.Tensor of shape [..., C, H, W]."
            )
        _check_plain(name, image)
        if image.dtype not in DTYPES:
            raise TypeError(
                f"{name} has dtype {image.dtype}; expected float32, float16, bfloat16 or float64. "
                f"Convert it first, for example with {name}.float() / 255."
            )
    if sr.shape != hr.shape:
        raise ValueError(
            f"sr has shape {tuple(sr.shape)} and hr has shape {tuple(hr.shape)}; expected the same shape. "
            "Broadcasting is not supported."
        )
    if not 3 <= sr.dim() <= 5:
        raise ValueError(
            f"sr and hr have {sr.dim()} dimensions, shape {tuple(sr.shape)}; expected 3 to 5: [..., C, H, W]."
        )
    if sr.numel() == 0:
        raise ValueError(f"sr and hr are empty, shape {tuple(sr.shape)}; expected at least one pixel.")
    if sr.device != hr.device:
        raise ValueError(f"sr is on {sr.device} and hr is on {hr.device}; expected the same device.")


def check_step(step: float | Tensor, device: torch.device) -> float | Tensor:
    """Check Eq. 8's ``step`` and return it as a float, or as a 0-dim float32 or float64 tensor (always so under compile).

    The value of a tensor is not checked, because that would synchronise with the device: a negative step gives the delta of
    Eq. 8, and NaN gives a NaN loss.
    """
    if isinstance(step, Tensor):
        if step.dim() != 0:
            raise ValueError(f"step is a tensor of shape {tuple(step.shape)}; expected a number or a 0-dim tensor.")
        _check_plain("step", step)
        if step.dtype == torch.bool or step.is_complex() or step.is_quantized:
            raise TypeError(f"step has dtype {step.dtype}; expected a real number.")
        if step.requires_grad:
            raise ValueError("step requires a gradient, but the loss has no gradient to it; pass step.detach().")
        if step.device != device and step.device.type != "cpu":
            raise ValueError(f"step is on {step.device}; expected the images' device, {device}, or the CPU.")
        if step.dtype not in (torch.float32, torch.float64):
            step = step.to(torch.float64)
        return step
    if isinstance(step, bool) or not isinstance(step, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"step is of type {type(step).__name__}; expected a number or a 0-dim tensor.")
    if not step >= 0:
        raise ValueError(f"step is {_shown(step)}; expected a number of at least 0.")
    if torch.compiler.is_compiling():
        # An operator's float argument is a constant of the compiled graph: each new step would compile again.
        return torch.ones((), dtype=torch.float64, device=device) * step
    return _as_float(step)
