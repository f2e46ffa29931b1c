"""Tensors that are not dense and plain: quantized, nested, and of a subclass."""

from __future__ import annotations

import warnings

import torch


def quietly(make, *args, **kwargs):
    """Without the warning that the kind of tensor is deprecated, or in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def quantized(tensor):
    return quietly(torch.quantize_per_tensor, tensor, 0.1, 0, torch.quint8)


def nested(layout):
    return quietly(torch.nested.nested_tensor, [torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)], layout=layout)


class Subclass(torch.Tensor):
    pass
