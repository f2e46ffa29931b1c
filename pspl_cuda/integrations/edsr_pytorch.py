"""EDSR-PyTorch and copies of its ``src/loss`` (RCAN): ``--loss 1*PSPL``, with one branch there."""

from __future__ import annotations

from .. import PSPLLoss


def build(args, **keywords) -> PSPLLoss:
    """Return the loss for images of 0 to ``args.rgb_range``; ``keywords`` as for PSPLLoss.

    The framework's ``Loss`` weights it, and saves and loads its state, so resuming needs no further step.
    """
    return PSPLLoss(**{"data_range": args.rgb_range, **keywords})
