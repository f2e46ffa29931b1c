"""The keywords of PSPL with their defaults, and the checks of all arguments.

The checks are shared by all backends, so that bad input gives the same message everywhere. A message names the argument, the
value received, what is expected and, where there is one, the remedy. ``ValueError`` is for shapes and values, ``TypeError`` for
types and dtypes. Pixel values are not checked: outputs of a network may overshoot, and checking would synchronise with the
device.
"""

from __future__ import annotations

import functools
import math
import numbers
import sys
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The position in each tuple is the number that the kernels use (csrc/pspl_params.h).
DISTANCES = ("l1", "l2", "charbonnier")
PADDINGS = ("zeros", "reflect", "replicate")
REDUCTIONS = ("mean", "sum", "none")
BACKENDS = ("auto", "cuda", "cpu", "reference")

# The largest count: far beyond any training, and exact in float64.
MAX_COUNT = 2**53
# kMaxRadius of csrc/pspl_params.h, as a window.
MAX_WINDOW_SIZE = 511
MAX_FLOAT = sys.float_info.max

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Config(NamedTuple):
    """The constants of one loss. Defaults are the paper's; :func:`pspl_cuda.pspl_loss` documents each for users."""

    alpha: float = 1.0  # growth of delta per step (Eq. 8)
    beta: float = 0.0  # initial delta (Eq. 8)
    gamma: float = 2.0  # largest attention (Eq. 7)
    mu: float = -1.0  # similarity with the largest attention (Eq. 7)
    distance: str = "l1"  # Eq. 10
    data_range: float = 1.0  # L in C1 = (k1 L)^2 and C2 = (k2 L)^2 (Eq. 5)
    window_size: int = 11  # width of the Gaussian window (Eq. 4) in pixels
    sigma: float = 1.5  # standard deviation of the window in pixels
    k1: float = 0.01  # luminance constant of Eq. 5
    k2: float = 0.03  # contrast constant of Eq. 5
    padding: str = "zeros"  # outside the image
    eps: float = 1e-3  # of the charbonnier distance, in pixel units
    reduction: str = "mean"  # over all elements

    def constants(self) -> tuple[float, ...]:
        """The values of CONSTANTS, in its order. torch 2.4 compiles a method of a named tuple but no property."""
        return self.alpha, self.beta, self.gamma, self.mu, self.data_range, self.sigma, self.k1, self.k2, self.eps


# The source of every default in the public signatures.
DEFAULTS = Config()

# The numbers of the kernels' formulas with their ranges, in the order of struct Constants of csrc/pspl_params.h.
CONSTANTS: dict[str, dict[str, float]] = {
    **{name: {"least": 0} for name in ("alpha", "beta", "gamma")},
    "mu": {},
    **{name: {"above": 0} for name in ("data_range", "sigma", "k1", "k2", "eps")},
}
_CHOICES = {"distance": DISTANCES, "padding": PADDINGS, "reduction": REDUCTIONS}


def plain_number(value: Any) -> Any:
    """``value`` as an int or a float if it is another real number, such as NumPy's; else unchanged."""
    # float and int come first, because isinstance() of an abstract type is slow.
    if isinstance(value, (float, int)) or not isinstance(value, numbers.Real):
        return value
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def is_a(value: object, types: type | tuple[type, ...]) -> bool:
    """isinstance(), with bool not counted as a number."""
    return isinstance(value, types) and (types is bool or not isinstance(value, bool))


def refusal(name: str, value: object, types: type | tuple[type, ...], expected: str) -> TypeError | ValueError:
    """The error for an argument: a TypeError if its value is of none of ``types``, else a ValueError."""
    if not is_a(value, types):
        return TypeError(f"{name} is of type {type(value).__name__}; expected {expected}.")
    # repr() of an integer of thousands of digits is an error in Python.
    bits = value.bit_length() if isinstance(value, int) else 0
    return ValueError(f"{name} is {f'an integer of {bits} bits' if bits > 64 else repr(value)}; expected {expected}.")


def check_scalar(name: str, value: Any, *, above: float = -math.inf, least: float = -MAX_FLOAT) -> float:
    """Return ``value`` as a float if it is a finite number above ``above`` and of at least ``least``; raise otherwise."""
    value = plain_number(value)
    # math.isfinite cannot be compiled for a float that changes.
    if is_a(value, (int, float)) and value > above and least <= value <= MAX_FLOAT:
        return float(value)
    bound = f" above {above:g}" if above > -MAX_FLOAT else f" of at least {least:g}" if least > -MAX_FLOAT else ""
    raise refusal(name, value, (int, float), f"a finite number{bound}")


def check_count(name: str, value: Any, *, least: int, most: int = MAX_COUNT) -> int:
    """Return ``value`` as an int if it is a whole number from ``least`` to ``most``, such as the float 3.0e+5 of a YAML file."""
    value = plain_number(value)
    if is_a(value, (int, float)) and least <= value <= most and value == int(value):
        return int(value)
    too_large = is_a(value, (int, float)) and value > most
    raise refusal(
        name, value, (int, float), f"an integer {f'from {least} to {most}' if too_large else f'of at least {least}'}"
    )


def check_flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False; raise otherwise."""
    if isinstance(value, bool):
        return value
    raise refusal(name, value, bool, "True or False")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the strings ``choices``; raise otherwise."""
    if isinstance(value, str) and value in choices:
        return value
    raise refusal(name, value, str, f"one of {', '.join(map(repr, choices))}")


def _check_magnitude(what: str, value: float, least: float, most: float) -> None:
    # The kernels compute in float32, with a reciprocal that treats subnormal numbers as zero.
    if not least <= abs(value) <= most:
        raise ValueError(
            f"{what} is {value!r}, which leaves the range of float32; expected a magnitude from {least:g} to {most:g}."
        )


def check_weight(name: str, value: Any) -> float:
    """Return a factor on the loss as a float: 0, or of a magnitude that float32 has."""
    weight = check_scalar(name, value)
    if weight != 0:
        _check_magnitude(name, weight, 1e-37, 1e37)
    return weight


def _check_field(name: str, value: Any) -> Any:
    if name in _CHOICES:
        return check_choice(name, value, _CHOICES[name])
    if name == "window_size":
        value = plain_number(value)
        if is_a(value, int) and 1 <= value <= MAX_WINDOW_SIZE and value % 2 == 1:
            return value
        raise refusal(name, value, int, f"an odd integer from 1 to {MAX_WINDOW_SIZE}")
    return check_scalar(name, value, **CONSTANTS[name])


def _check_config(*constants: Any) -> Config:
    given = Config(*constants)
    config = Config(*[_check_field(name, getattr(given, name)) for name in Config._fields])
    for name in ("alpha", "beta", "gamma", "mu"):
        value = getattr(config, name)
        _check_magnitude(name, value, 0 if value == 0 or name == "mu" else 1e-37, 1e37)
    # The kernels use the squares of these.
    roots = {"k1 * data_range": config.k1 * config.data_range, "k2 * data_range": config.k2 * config.data_range}
    for what, root in {**roots, "eps": config.eps}.items():
        _check_magnitude(what, root, math.sqrt(1e-37), math.sqrt(1e37))
    if config.gamma > 0:
        peak = config.gamma * config.data_range
        if config.distance == "l1":
            _check_magnitude("gamma * data_range", peak, 0, 1e37)
        else:  # its square is used, also of errors beyond the data range
            _check_magnitude(f"gamma with distance {config.distance!r}", config.gamma, math.sqrt(1e-37), 1e37)
            _check_magnitude(f"gamma * data_range with distance {config.distance!r}", peak, 0, 1e15)
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
    if type(tensor) is not Tensor and hasattr(tensor, "to_local"):  # torch 2.4 compiles no hasattr() of a tensor
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
            raise refusal(name, image, Tensor, "a torch.Tensor of shape [..., C, H, W]")
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
    if sr.shape[-1] <= 4 < 16 <= min(sr.shape[-3:-1]) and not torch.compiler.is_compiling():
        warnings.warn(
            f"sr and hr have shape {tuple(sr.shape)}, which looks like channels last; the dimensions are [..., C, H, W]. "
            "Call .movedim(-1, -3) on both if the last dimension is the channels.",
            stacklevel=4,
        )
    if sr.device != hr.device:
        raise ValueError(f"sr is on {sr.device} and hr is on {hr.device}; expected the same device.")


def warn_of_iterations(step: Any) -> None:
    """Warn of a ``step`` that can only be a count of iterations. Larger ones ask for uniform weights."""
    if isinstance(plain_number(step), int) and 1000 <= step < 10**7 and not torch.compiler.is_compiling():
        warnings.warn(
            f"step is {step}, which is {step} thousand iterations in the authors' unit. Pass iteration / 1000, or let PSPLLoss "
            "count. A step that is meant can be passed as a float.",
            stacklevel=3,
        )


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
    step = plain_number(step)
    types = (float, int, torch.SymInt, torch.SymFloat)
    if not is_a(step, types):
        raise refusal("step", step, types, "a number or a 0-dim tensor")
    if not step >= 0:
        raise refusal("step", step, types, "a number of at least 0")
    if torch.compiler.is_compiling():
        # An operator's float argument is a constant of the compiled graph: each new step would compile again.
        return torch.ones((), dtype=torch.float64, device=device) * step
    return float(step) if step <= MAX_FLOAT else math.inf
