"""The five networks of Table 1: as large as their papers say, and able to learn."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

from helpers.experiments import photograph
from networks import NETWORKS, bicubic, build
from networks.drrn import DRRN
from networks.edsr import DIV2K_MEAN, EDSR
from networks.lapsrn import LapSRN
from networks.vdsr import VDSR
from training.losses import final


def weights(network: nn.Module) -> int:
    """Weights of convolutions, without biases."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.dim() == 4)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_srcnn_count():
    """57,184 for 9-5-5 in the paper (TPAMI version, filter sizes): weights; 97 biases come on top."""
    assert weights(build("srcnn", 3)) == 57_184
    assert parameters(build("srcnn", 3)) == 57_184 + 64 + 32 + 1


def test_srcnn_first_version_count():
    """8,032 for 9-1-5 in the same paper."""
    assert weights(build("srcnn-915", 3)) == 8_032


def test_vdsr_count():
    """The paper gives the layers: 20 of 3x3 with 64 features. With biases, the 665K of later papers' tables (MemNet, CARN)."""
    network = build("vdsr", 2)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) == 20
    assert parameters(network) == (9 * 64 + 18 * 9 * 64 * 64 + 9 * 64) + (19 * 64 + 1) == 665_921


def test_drrn_count():
    """297K in the paper, for B1U9 and B1U25 alike, since units share their weights."""
    assert parameters(build("drrn", 4)) == 297_216
    assert parameters(DRRN(4, units=9)) == 297_216


def test_drrn_repeats_its_unit():
    """Each unit adds the block's input to two convolutions of what came before, with the same weights."""
    network = DRRN(2, units=3, features=4)
    calls = []
    network.unit[1].register_forward_hook(lambda _, inputs, output: calls.append(output))
    first = []
    network.first.register_forward_hook(lambda _, inputs, output: first.append(output))
    seen = []
    network.unit[0].register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    network(torch.rand(1, 1, 5, 5))
    assert len(calls) == 3
    for before, inputs in zip([first[0], first[0] + calls[0], first[0] + calls[1]], seen, strict=True):
        torch.testing.assert_close(inputs, before.clamp(min=0))


def test_lapsrn_count():
    """812K at x4 (the authors' TPAMI version, which lists both): weights. 814K with biases."""
    assert weights(build("lapsrn", 4)) == 812_768
    assert parameters(build("lapsrn", 4)) == 814_242


@pytest.mark.parametrize(("name", "millions"), [("edsr-baseline", 1.5), ("edsr", 43)])
def test_edsr_count(name, millions):
    """Table 1 of the paper, at x4, biases included; the mean shift isn't learned."""
    with torch.device("meta"):
        count = parameters(build(name, 4)) / 1e6
    assert round(count, 1 if millions < 2 else None) == millions


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "edsr"])
def test_output_sizes(name, scale):
    """LR in, HR out; LapSRN gives one output per level."""
    if name == "lapsrn" and scale == 3:
        with pytest.raises(ValueError, match="scale is 3; LapSRN doubles the size"):
            build(name, scale)
        return
    network = build(name, scale).eval()
    outputs = network(torch.rand(1, network.channels, 5, 7))
    expected = [2, 4][: scale // 2] if name == "lapsrn" else [scale]
    sizes = [tuple(output.shape) for output in (outputs if isinstance(outputs, list) else [outputs])]
    assert sizes == [(1, network.channels, 5 * factor, 7 * factor) for factor in expected]


def test_lapsrn_starts_from_bilinear():
    """Without residual, each level's image is the enlarged one: flat stays flat inside."""
    network = LapSRN(4)
    for level in network.levels:
        nn.init.zeros_(level.residual.weight)
    outputs = network(torch.full((1, 1, 8, 8), 0.6))
    for output in outputs:
        torch.testing.assert_close(output[..., 4:-4, 4:-4], torch.full_like(output[..., 4:-4, 4:-4], 0.6))


def test_edsr_shifts_the_mean():
    """The network sees colours around zero, and the mean comes back."""
    network = EDSR(2, blocks=1, features=4)
    seen = []
    network.head.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    nn.init.zeros_(network.tail[-1].weight)
    nn.init.zeros_(network.tail[-1].bias)
    mean = torch.tensor(DIV2K_MEAN).reshape(1, 3, 1, 1)
    output = network(mean.expand(1, 3, 4, 4))
    assert seen[0].abs().max() < 1e-6
    torch.testing.assert_close(output, mean.expand(1, 3, 8, 8))


# Each with enough iterations to learn a patch by heart, and fewer units or blocks where the full depth only costs time. Without
# skip from input to output (SRCNN, EDSR) the network first has to learn what bicubic knows.
OVERFIT = {
    "srcnn": (lambda: build("srcnn", 2), 1e-3, 500),
    "srcnn-915": (lambda: build("srcnn-915", 2), 2e-3, 700),
    "vdsr": (lambda: VDSR(2), 5e-4, 60),
    "drrn": (lambda: DRRN(2, units=3, features=32), 1e-3, 300),
    "lapsrn": (lambda: LapSRN(2), 2e-3, 120),
    "edsr-baseline": (lambda: build("edsr-baseline", 2), 1e-3, 100),
    "edsr": (lambda: EDSR(2, blocks=4, features=32), 2e-3, 150),
}


@pytest.mark.parametrize(
    "name", [name if name == "srcnn" else pytest.param(name, marks=pytest.mark.deep) for name in NETWORKS]
)
def test_overfits_one_patch(name):
    """It learns one patch better than bicubic ever gets it."""
    make, rate, iterations = OVERFIT[name]
    torch.manual_seed(0)
    network = make()
    image = torch.from_numpy(photograph(24, 24)).permute(2, 0, 1)[None].float() / 255
    hr = image if network.channels == 3 else image.mean(1, keepdim=True)
    lr = bicubic.shrink(hr, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(iterations):
        sr = final(network(lr))
        loss = (sr - hr).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    of_bicubic = (bicubic.enlarge(lr, 2) - hr).square().mean()
    assert (sr - hr).square().mean() < of_bicubic / 2
