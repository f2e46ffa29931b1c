"""experiments/training/resize.py: the field's LR images and baseline, bit for bit."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("lightning", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

import check_published
from helpers.experiments import photograph
from networks import bicubic
from training.resize import resize


def resampled_line(line: list[int], new: int) -> list[int]:
    """One line of pixels, one sum per new pixel: the definition, written out."""

    def cubic(x):
        x = abs(x)
        return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    scale = new / len(line)
    width = max(1.0, 1 / scale)
    pixels = []
    for index in range(new):
        centre = (index + 0.5) / scale - 0.5
        near = range(math.floor(centre - 2 * width), math.ceil(centre + 2 * width) + 1)
        weights = [cubic((centre - old) / width) for old in near]
        total = sum(
            weight * line[min(max(old, 0), len(line) - 1)] for weight, old in zip(weights, near, strict=True)
        ) / sum(weights)
        pixels.append(min(max(math.floor(total + 0.5), 0), 255))
    return pixels


@pytest.mark.parametrize("size", [(3, 5), (24, 20), (12, 10)], ids=["shrunk by 4", "enlarged by 2", "as it is"])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_definition(size, channels):
    """Rows first, uint8 between the passes; random pixels, so that borders, rounding and clipping all matter."""
    image = np.random.default_rng(0).choice([0, 40, 255], (12, 10 if size != (3, 5) else 20, channels)).astype(np.uint8)
    expected = np.empty((*size, channels), np.uint8)
    for channel in range(channels):
        tall = np.array([resampled_line(column.tolist(), size[0]) for column in image[..., channel].T]).T
        expected[..., channel] = [resampled_line(row.tolist(), size[1]) for row in tall]
    assert np.array_equal(resize(image, *size), expected)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_away_from_the_border_it_is_torch(scale):
    """Torch rounds once, this twice: half a level each, the first enlarged by the second pass, whose weights sum to 1.19."""
    image = photograph(24 * scale, 20 * scale)
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].double()
    expected = bicubic.shrink(tensor, scale)[0].permute(1, 2, 0).numpy()
    inside = slice(2, -2)
    assert np.abs(resize(image, 24, 20) - expected)[inside, inside].max() <= 0.5 * 1.2 + 0.5 + 1e-6


def test_published_table_is_whole():
    """A dozen of the published values, from the original table; how many there are; and their means, as papers print them."""
    table = check_published.published()
    found = {(image.dataset, image.scale, int(image.name[4:7])): image.psnr for image in table}
    assert len(table) == len(found) == 138
    for key, psnr in {
        ("Set5", 2, 1): 37.02632,
        ("Set5", 2, 3): 27.42976,
        ("Set5", 4, 1): 31.77105,
        ("Set5", 4, 3): 22.09917,
        ("Set5", 4, 5): 26.46451,
        ("Set14", 2, 1): 24.85768,
        ("Set14", 4, 1): 22.43675,
        ("Set14", 4, 3): 23.14589,
        ("Set14", 4, 14): 24.05921,
        ("BSD100", 4, 1): 23.07482,
        ("BSD100", 4, 50): 30.87565,
        ("BSD100", 4, 100): 23.36070,
    }.items():
        assert found[key] == psnr
    for dataset, scale, mean in (("Set5", 2, 33.64), ("Set5", 4, 28.42), ("Set14", 4, 25.99), ("BSD100", 4, 25.96)):
        scores = [image.psnr for image in table if (image.dataset, image.scale) == (dataset, scale)]
        assert np.mean(scores) == pytest.approx(mean, abs=0.005)


@pytest.mark.skipif("PSPL_IMAGES" not in os.environ, reason="PSPL_IMAGES names no folder of Set5, Set14 and BSD100")
def test_published_images():
    assert check_published.main(["--data", os.environ["PSPL_IMAGES"]]) == 0


def test_a_difference_is_found(tmp_path, capsys, monkeypatch):
    """On an image of our own with a table of our own: agreement, another LR pixel, another score."""
    from helpers.experiments import save, shrunken
    from training import images

    folder = tmp_path / "Set1" / "image_SRF_2"
    hr = photograph(40, 48)
    save(hr, folder / "img_001_SRF_2_HR.png")
    lr = shrunken(hr, 2)
    lr_path = save(lr, folder / "img_001_SRF_2_LR.png")
    y, expected = (images.as_result(image).y for image in (images.enlarge(lr, 2), hr))
    scores = images.psnr(y, expected, 2), images.ssim(y, expected, 2)

    def published(*changes):
        rows = [check_published.Image("Set1", 2, "img_001_SRF_2_HR", *np.add(scores, changes))]
        monkeypatch.setattr(check_published, "published", lambda: rows)
        return check_published.main(["--data", str(tmp_path)])

    assert published(4e-5, 4e-6) == 0
    assert published(6e-5, 0) == 1
    assert published(0, 6e-6) == 1
    lr[5, 5] += 1
    save(lr, lr_path)
    capsys.readouterr()
    assert published(0, 0) == 1
    assert "LR differs" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has none of"):
        check_published.main(["--data", str(Path(tmp_path) / "missing")])
