"""experiments/evaluate_sr.py and report_sr.py, as a user runs them, on tiny data."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

pytest.importorskip("lightning", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import evaluate_sr
import report_sr
from helpers.experiments import photograph, save, shrunken, train
from networks import build
from training import figures, images
from training.loop import CHECKPOINT, load_checkpoint


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected_scores(sr, hr, border, rgb):
    """Straight from scikit-image, as the field's MATLAB code has it."""
    if not rgb:
        sr, hr = (np.round(rgb2ycbcr(image)[..., 0]).astype(np.uint8) for image in (sr, hr))
    sr, hr = (image[border:-border, border:-border] for image in (sr, hr))
    ssim = structural_similarity(
        sr,
        hr,
        win_size=11,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1 if rgb else None,
    )
    return peak_signal_noise_ratio(hr, sr, data_range=255), ssim


@pytest.mark.parametrize("rgb", [False, True], ids=["luma", "rgb"])
@pytest.mark.parametrize("layout", ["flat", "HR", "image_SRF_2"])
def test_bicubic_scores(tmp_path, layout, rgb):
    """Every layout of the field, against metrics computed directly; LR made or read."""
    folder = tmp_path / "Set2"
    hrs = [photograph(40, 49, seed=3), photograph(37, 44, seed=4)]
    for index, hr in enumerate(hrs, 1):
        name = {"flat": f"{index}.png", "HR": f"HR/{index}.png"}.get(layout, f"image_SRF_2/img_{index:03}_SRF_2_HR.png")
        save(hr, folder / name)
        if layout == "HR":
            save(shrunken(hr, 2), folder / "LR_bicubic" / "X2" / f"{index}x2.png")
        if layout == "image_SRF_2":
            save(shrunken(hr, 2), folder / "image_SRF_2" / f"img_{index:03}_SRF_2_LR.png")
    out = tmp_path / "out"
    evaluate_sr.main(["--scale", "2", "--data", str(folder), "--out", str(out), *(["--rgb"] if rgb else [])])
    expected = []
    for hr in hrs:
        hr = hr[: hr.shape[0] // 2 * 2, : hr.shape[1] // 2 * 2]
        expected.append(expected_scores(images.enlarge(shrunken(hr, 2), 2), hr, 2, rgb))
    found = [(float(row["psnr"]), float(row["ssim"])) for row in read_csv(out / "results.csv")]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    psnr, ssim = np.mean(expected, axis=0)
    (mean,) = read_csv(out / "means.csv")
    assert (float(mean["psnr"]), float(mean["ssim"])) == pytest.approx((psnr, ssim))
    text = (out / "results.md").read_text()
    assert text.splitlines()[-1] == f"| Set2 | 2 | bicubic |  |  | {psnr:.2f} / {ssim:.4f} |", "means are last"
    assert ("made by antialiased bicubic" in text) == (layout == "flat")


def test_scales_stand_side_by_side(folder, tmp_path):
    evaluate_sr.main(["--scale", "2", "3", "--data", str(folder), "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[-3] == "| dataset | images | model | arm | seed | x2 | x3 |"
    means = read_csv(tmp_path / "out" / "means.csv")
    assert [row["scale"] for row in means] == ["2", "3"]
    for row in means:
        assert f"{float(row['psnr']):.2f} / {float(row['ssim']):.4f}" in lines[-1]


@pytest.mark.parametrize("model", ["srcnn", "edsr-baseline"])
def test_network_scores(folder, tmp_path, model):
    """From a run: the table agrees with the images that it wrote, and with the run's own validation."""
    trained, out = tmp_path / "run", tmp_path / "out"
    train(folder, trained, "--model", model, "--arms", "plain", "pspl:1/3")
    evaluate_sr.main(["--run", str(trained), "--data", str(folder), "--out", str(out), "--write", "--pictures", "1"])
    rows = read_csv(out / "results.csv")
    assert [row["arm"] for row in rows[:3]] == ["", "plain", "pspl:1/3"]
    mine = [row for row in rows if row["arm"] == "pspl:1/3"]
    assert len(mine) == 3
    validated = [row for row in load_checkpoint(trained / CHECKPOINT)["rows"] if "validation_psnr" in row]
    assert float(mine[-1]["psnr"]) == pytest.approx(validated[-1]["validation_psnr"], rel=1e-6)
    hr = images.read(folder / "0000.png")[:36, :40]
    if model == "edsr-baseline":
        written = images.read(out / "data" / "x2" / f"{model}-pspl-1_3-seed0" / "0000.png")
        psnr, _ = expected_scores(written, hr, 2, rgb=False)
    else:  # the luma itself is measured, before colours are added
        network = build(model, 2)
        network.load_state_dict(load_checkpoint(trained / CHECKPOINT)["networks"]["pspl:1/3"])
        y_lr, y_hr = (rgb2ycbcr(image)[..., 0] for image in (shrunken(hr, 2), hr))
        y = network(torch.from_numpy(y_lr / 255).float()[None, None]).detach().clamp(0, 1).numpy()[0, 0] * 255
        shaved = (image.round().astype(np.uint8)[2:-2, 2:-2] for image in (y_hr, y))
        psnr = peak_signal_noise_ratio(*shaved, data_range=255)
    assert float(mine[0]["psnr"]) == pytest.approx(psnr, rel=1e-6)
    assert images.read(out / "data" / "x2" / "compare-0000.png").std() > 10


def test_identical_images_are_perfect():
    image = photograph(20, 24)
    assert images.psnr(image, image, 2) == float("inf")
    assert images.ssim(image, image, 2) == 1
    with pytest.raises(SystemExit, match="SSIM needs 11"):
        images.ssim(image, image, 5)
    with pytest.raises(SystemExit, match="expected the same size"):
        images.psnr(image, image[1:], 2)


def test_damaged_image_is_refused(folder, tmp_path):
    (folder / "0001.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"0001\.png can't be read .* A mean without it would be another number"):
        evaluate_sr.main(["--scale", "2", "--data", str(folder), "--out", str(tmp_path / "out")])


def test_report(folder, tmp_path):
    """Tables and figures of two seeds; the numbers are those of the csv files."""
    runs = [tmp_path / f"run{seed}" for seed in range(2)]
    for seed, run in enumerate(runs):
        options = ["--arms", "plain", "pspl:1/3", "--iterations", "4", "--seed", str(seed)]
        train(folder, run, *options)
    scores, out = tmp_path / "scores", tmp_path / "out"
    evaluate_sr.main(["--run", *map(str, runs), "--data", str(folder), "--out", str(scores)])
    report_sr.main(["--run", *map(str, runs), "--scores", str(scores / "means.csv"), "--out", str(out)])
    curves = read_csv(out / "convergence.csv")
    assert [(row["arm"], row["seed"], row["iteration"]) for row in curves] == [
        (arm, seed, iteration) for arm in ("plain", "pspl:1/3") for seed in "01" for iteration in "24"
    ]
    means = {(row["arm"], row["seed"]): float(row["psnr"]) for row in read_csv(scores / "means.csv")}
    gains = np.array([means["pspl:1/3", seed] - means["plain", seed] for seed in "01"])
    row = next(row for row in read_csv(out / "table.csv") if row["arm"] == "pspl:1/3")
    assert float(row["psnr"]) == pytest.approx((means["pspl:1/3", "0"] + means["pspl:1/3", "1"]) / 2)
    assert float(row["psnr_gain"]) == pytest.approx(gains.mean())
    assert float(row["psnr_gain_std"]) == pytest.approx(gains.std(ddof=1))
    assert f"{gains[0]:+.3f} {gains[1]:+.3f}" in (out / "table.md").read_text()
    for picture in ("convergence.png", "attention.png"):
        assert images.read(out / picture).std() > 10


def test_report_refuses_different_runs(folder, tmp_path):
    train(folder, tmp_path / "a")
    train(folder, tmp_path / "b", "--batch", "3")
    with pytest.raises(SystemExit, match=r"b has batch 3, .*a has 2"):
        report_sr.main(["--run", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="expected different ones"):
        report_sr.main(["--run", str(tmp_path / "a"), str(tmp_path / "a"), "--out", str(tmp_path / "out")])


def test_an_arm_looks_the_same_in_every_figure(monkeypatch, tmp_path):
    """Whatever it is compared with; and no two arms of the experiment look alike."""
    drawn = {}

    def record(figure, path):
        axis = figure.axes[0]
        looks = {line.get_label(): (to_hex(line.get_color()), line.get_linestyle()) for line in axis.lines[:-1]}
        for arm, look in looks.items():
            assert drawn.setdefault(arm, look) == look
        assert to_hex(axis.collections[0].get_facecolor()[0]) == looks[axis.lines[0].get_label()][0]

    monkeypatch.setattr(figures, "save", record)
    arms = ["plain", "pspl", "pspl:1/10", "pspl:1/3", "pspl:1", "scale:1/3", "scale:1", "attention:1/3"]
    for compared in (arms, ["plain", "pspl:1", "scale:1"], ["plain", "pspl:1/3"]):
        curves = {arm: np.full((2, 3), 28.0) + index for index, arm in enumerate(compared)}
        figures.convergence(np.arange(3), curves, 27.0, "", tmp_path / "convergence.png")
    assert len(set(drawn.values())) == len(arms)
