"""Bad input and the sentence that must come with its refusal."""

from __future__ import annotations

import re

import pytest
import torch


def image(*shape, dtype=torch.float32):
    return torch.zeros(shape or (1, 3, 8, 8), dtype=dtype)


def refused(kind, fragments, function, *args, **kwargs):
    """The sentence that comes with the promised exception; not with a subclass, and not from deep inside torch."""
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        function(*args, **kwargs)
    assert caught.type is kind, f"{caught.type.__name__} instead of {kind.__name__}: {caught.value}"
    sentence = str(caught.value)
    for fragment in fragments:
        assert fragment in sentence
    assert re.search(r"expected|Call|[Pp]ass ", sentence), sentence
    assert sentence.endswith("."), sentence
    return sentence
