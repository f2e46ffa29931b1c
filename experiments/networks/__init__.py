"""The five networks of the paper's Table 1, as their own papers describe them.

Every network takes low-resolution images ``[N, C, h, w]`` in 0..1 and returns ``[N, C, scale h, scale w]``, or a list of such
tensors from coarse to fine if its intermediate outputs are supervised too (LapSRN). ``channels`` says what C is: 1 for the
networks that their papers train on the luma (Y of BT.601), 3 for RGB.
"""

from __future__ import annotations

from torch import nn

from .drrn import DRRN
from .edsr import EDSR
from .lapsrn import LapSRN
from .srcnn import SRCNN
from .vdsr import VDSR

NETWORKS = {
    "srcnn": SRCNN,
    "srcnn-915": SRCNN.first_version,
    "vdsr": VDSR,
    "drrn": DRRN,
    "lapsrn": LapSRN,
    "edsr-baseline": EDSR.baseline,
    "edsr": EDSR,
}


def build(name: str, scale: int) -> nn.Module:
    """The network ``name`` of NETWORKS for one ``scale``.

    Raises:
        ValueError: the network doesn't know the scale.
    """
    return NETWORKS[name](scale)
