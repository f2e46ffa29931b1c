"""What README shows must run."""

import re
from pathlib import Path

import pytest
import torch

import pspl_cuda

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_readme_block_runs(index):
    exec(compile(BLOCKS[index], f"README block {index}", "exec"), {})


def test_readme_formula_is_the_loss():
    """The PyTorch equivalent agrees with the loss as far as its own float32 variances allow."""
    source = next(block for block in BLOCKS if "def pspl_l1" in block)
    names: dict = {}
    exec(source, names)
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(1, 3, 24, 31, generator=generator)
    sr = (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
    torch.testing.assert_close(names["pspl_l1"](sr, hr, 1.5), pspl_cuda.pspl_loss(sr, hr, 1.5), rtol=1e-4, atol=0)
