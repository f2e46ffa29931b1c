"""The machine code that nvcc makes of the kernels, executed on the CPU (emulation/sass.py), against the formula in float64."""

from __future__ import annotations

import re

import pytest
import torch

from helpers.cases import LAYOUTS, check_against_oracle, smooth_pair
from tools import cuda_resources

try:
    import emulation
    from emulation import sass
except ImportError as error:
    if type(error).__name__ != "UnavailableError":
        raise
    pytest.skip(f"no emulation: {error}", allow_module_level=True)

missing = [tool for tool in ("nvcc", "cuobjdump", "nvdisasm") if cuda_resources.find_tool(tool) is None]
pytestmark = [pytest.mark.deep, pytest.mark.skipif(bool(missing), reason=f"there is no {' and no '.join(missing)}")]

# Shape, dtype of sr, layout and other arguments of a call, and the kernel that it needs. Odd sizes end within a strip, and within
# the two columns of a lane; three planes of two strips fill more than a block.
F32 = torch.float32
CASES = {
    "l1": ((1, 3, 12, 70), F32, "contiguous", {}, "kUnit, kL1"),
    "stats": ((1, 1, 12, 70), F32, "contiguous", {"with_stats": True}, "kUnit, kL1Stats"),
    "charbonnier": ((1, 1, 12, 70), F32, "contiguous", {"distance": "charbonnier"}, "kUnit, kDistance"),
    "odd": ((1, 1, 13, 67), F32, "contiguous", {}, "kSpaced, kL1"),
    "mixed": ((1, 3, 13, 33), torch.float16, "channels_last", {}, "kSpaced, kL1"),
}


def _execute(case, architecture, plant=None):
    """Checks the results of a case, and returns the instructions. ``plant``: a pattern of one of them, and its replacement."""
    shape, dtype, layout, keywords, kernel = CASES[case]
    kernel = f"strip_forward<{'float' if dtype == F32 else '__half'}, float, 5, {kernel}>"
    listing = [text for _, text in cuda_resources.machine_code(kernel, architecture)]
    if plant:
        places = [i for i, text in enumerate(listing) if re.match(plant[0], text)]
        place = places[len(places) // 2]
        listing[place] = re.sub(*plant, listing[place])
    code = []

    def driver(name, *launch, memory):
        assert cuda_resources.readable(name) == kernel
        code.extend(sass.run(architecture, listing, *launch, memory))

    images = smooth_pair(shape, dtypes=(dtype, F32))
    for image in images:
        image[..., 3:9, :] /= 8  # two edges, which the pivots follow
    # With this sigma the outermost taps are large, so that windows begin again where pivots move.
    keywords = {"with_stats": False, "sigma": 3.0, **keywords}
    with emulation.device(driver=driver):
        check_against_oracle(emulation, *map(LAYOUTS[layout], images), **keywords)
    return code


@pytest.mark.parametrize("architecture", cuda_resources.ARCHITECTURES)
@pytest.mark.parametrize("case", CASES)
def test_machine_code(case, architecture):
    code = [instruction for instruction in _execute(case, architecture) if instruction.kind[0] in ("FFMA", "FFMA2")]
    assert len(code) > 88
    # All the arithmetic of training was executed, moves of pivots included.
    assert [instruction.text for instruction in code if not instruction.executed] == []


@pytest.mark.parametrize(
    "plant",
    [
        (r"(FMUL .*), 1\.2011224.*", r"\1, 1.2012"),
        (r"(FFMA R\d+), (R\d+.*)", r"\1, -\2"),
        (r"(.*LDG\.E .*)\+0x80\]", r"\1+0x80000000]"),
    ],
    ids=["number", "sign", "address"],
)
def test_a_wrong_instruction_is_found(plant):
    with pytest.raises((AssertionError, MemoryError), match=r"the (loss|gradient) is|outside of the launch's memory"):
        _execute("l1", 90, plant)
