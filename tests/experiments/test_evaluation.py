"""experiments/evaluate_sr.py and report_sr.py, as a user runs them, on tiny data."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

pytest.importorskip("lightning", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import compare_sr
import evaluate_sr
import report_sr
from helpers.experiments import dataset, photograph, save, shrunken, train
from networks import build
from training import figures, images
from training.loop import CHECKPOINT, load_checkpoint, write_csv

TEXTS = ("experiments.csv", "validation.csv", "scores.csv", "table.md")  # of compare_sr.py


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
    assert text.splitlines()[-1] == f"| Set2 | 2 |  | bicubic |  |  | {psnr:.2f} / {ssim:.4f} |", "means are last"
    assert ("made as MATLAB's imresize makes them" in text) == (layout == "flat")


def test_scales_stand_side_by_side(folder, tmp_path):
    evaluate_sr.main(["--scale", "2", "3", "--data", str(folder), "--out", str(tmp_path / "out")])
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert lines[-3] == "| dataset | images | run | model | arm | seed | x2 | x3 |"
    means = read_csv(tmp_path / "out" / "means.csv")
    assert [row["scale"] for row in means] == ["2", "3"]
    for row in means:
        assert f"{float(row['psnr']):.2f} / {float(row['ssim']):.4f}" in lines[-1]


def test_scores_of_a_run_in_mixed_precision(folder, tmp_path):
    """The network runs as it did in training and in its own validation."""
    trained, out = tmp_path / "run", tmp_path / "out"
    train(
        folder, trained, "--model", "edsr-baseline", "--arms", "plain", "--precision", "bf16-mixed", "--channels-last"
    )
    evaluate_sr.main(["--run", str(trained), "--data", str(folder), "--out", str(out)])
    validated = [row for row in load_checkpoint(trained / CHECKPOINT)["rows"] if "validation_psnr" in row]
    assert float(read_csv(out / "results.csv")[-1]["psnr"]) == pytest.approx(validated[-1]["validation_psnr"], rel=1e-6)


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
        name = str(trained).strip("/").replace("/", "_")
        written = images.read(out / "data" / "x2" / f"{name}-pspl-1_3" / "0000.png")
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


class Compared(NamedTuple):
    """Two experiments of two seeds, the first at two learning rates, and what compare_sr.py made of them in ``out``."""

    folder: Path
    runs: dict[tuple[str, str], Path]
    scores: Path
    out: Path

    def compare(self, out: Path, *names: str) -> None:
        """Of the runs of these names."""
        runs = [str(run) for (name, _), run in self.runs.items() if name in names]
        compare_sr.main([*(["--run", *runs, "--scores", str(self.scores)] if runs else []), "--out", str(out)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    place = tmp_path_factory.mktemp("compared")
    runs = {(name, seed): place / f"{name}-{seed}" for name in ("1e-4", "1e-3", "start") for seed in "01"}
    found = Compared(dataset(place / "data"), runs, place / "means.csv", place / "out")
    for (name, seed), run in runs.items():
        options = ["--pretrained", str(runs["1e-4", seed]), "plain"] if name == "start" else ["--lr", name]
        arms = ["plain"] if name == "1e-4" else ["plain", "pspl:1/3"]
        train(found.folder, run, *options, "--seed", seed, "--arms", *arms)
    evaluate_sr.main(["--run", *map(str, runs.values()), "--data", str(found.folder), "--out", str(place)])
    found.compare(found.out, "1e-4", "1e-3", "start")
    return found


def test_compare(compared):
    """Each arm at its own best rate; other networks in rows of their own; the numbers are those of the evaluation."""
    ends = {}
    for row in read_csv(compared.out / "validation.csv"):
        ends.setdefault((row["network"], row["arm"], float(row["lr"])), []).append(float(row["psnr"]))
    best = max((1e-4, 1e-3), key=lambda lr: sum(ends["srcnn x2", "plain", lr]))
    kept = {
        (row["network"], row["arm"], float(row["lr"] or 0), row["seed"]): float(row["psnr"])
        for row in read_csv(compared.out / "scores.csv")
    }
    means = {(row["run"], row["arm"]): float(row["psnr"]) for row in read_csv(compared.scores)}
    text = (compared.out / "table.md").read_text()
    # The network, and for both losses the name of the runs that stand in its row, and their rate.
    for network, rates, plain, pspl in (
        ("srcnn x2", f"{best:g} of 0.0001, 0.001", (f"{best:.0e}".replace("-0", "-"), best), ("1e-3", 1e-3)),
        ("srcnn x2, pretrained", "0.0001", ("start", 1e-4), ("start", 1e-4)),
    ):
        psnr = {}
        for arm, (name, lr) in (("plain", plain), ("pspl:1/3", pspl)):
            psnr[arm] = [means[str(compared.runs[name, seed]), arm] for seed in "01"]
            assert [kept[network, arm, lr, seed] for seed in "01"] == pytest.approx(psnr[arm], abs=6e-5)
        gains = np.subtract(psnr["pspl:1/3"], psnr["plain"])
        (shown,) = re.findall(rf"\| {network} \| plain \| {rates} \| ([\d.]+) / ", text)
        assert float(shown) == pytest.approx(np.mean(psnr["plain"]), abs=0.0052)
        (shown,) = re.findall(rf"\| {network} \| pspl:1/3 \| .* \| ([^|]* \(.*\)) \|", text)
        assert [*map(float, re.findall(r"[-+.\d]+", shown))] == pytest.approx([gains.mean(), *gains], abs=0.0052)
    assert images.read(compared.out / "convergence.png").std() > 10


def test_compare_adds_to_what_it_finds(compared, tmp_path):
    """Other learning rates of an experiment and other experiments, with the same rows as at once; runs replace themselves."""

    def rows(out):
        table = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
        return table, sorted((out / "validation.csv").read_text().splitlines())

    for names in (("1e-4",), ("1e-3",), ("start",)):
        compared.compare(tmp_path, *names)
    assert rows(tmp_path) == rows(compared.out)
    for names in (("1e-3",), ()):
        compared.compare(tmp_path, *names)
        assert rows(tmp_path) == rows(compared.out)


def test_compare_replaces_an_experiment_of_other_settings(compared, tmp_path):
    compared.compare(tmp_path, "1e-4", "1e-3", "start")
    train(compared.folder, tmp_path / "longer", "--iterations", "4", "--arms", "plain")
    options = ["--run", str(tmp_path / "longer")]
    evaluate_sr.main([*options, "--data", str(compared.folder), "--out", str(tmp_path / "scores")])
    compare_sr.main([*options, "--scores", str(tmp_path / "scores" / "means.csv"), "--out", str(tmp_path)])
    for name in ("validation.csv", "scores.csv"):
        found = {(row["network"], row["arm"]) for row in read_csv(tmp_path / name) if row["arm"] != "bicubic"}
        assert found == {("srcnn x2", "plain"), ("srcnn x2, pretrained", "plain"), ("srcnn x2, pretrained", "pspl:1/3")}


def test_compare_refuses(compared, tmp_path):
    """Two experiments of one name, runs without the plain loss, a loss without scores at its best rate."""
    train(compared.folder, tmp_path / "longer", "--iterations", "4", "--arms", "plain")
    both = [str(compared.runs["1e-4", "0"]), str(tmp_path / "longer")]
    with pytest.raises(SystemExit, match="2 experiments srcnn x2 with other settings"):
        compare_sr.main(["--run", *both, "--scores", str(compared.scores), "--out", str(tmp_path)])
    train(compared.folder, tmp_path / "alone", "--arms", "pspl:1/3")
    options = ["--run", str(tmp_path / "alone"), "--scores", str(compared.scores), "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="expected a run with the arm plain"):
        compare_sr.main(options)
    compared.compare(tmp_path, "1e-3", "start")
    rows = read_csv(tmp_path / "scores.csv")
    write_csv([row for row in rows if (row["network"], row["arm"]) != ("srcnn x2", "plain")], tmp_path / "scores.csv")
    message = (
        "srcnn x2: plain is best at the learning rate 0.001, and has 0 scores there on data: expected 2, one per seed."
    )
    with pytest.raises(SystemExit, match=re.escape(message)):
        compare_sr.main(["--out", str(tmp_path)])


def test_compare_needs_something(tmp_path):
    with pytest.raises(SystemExit, match=r"has no experiments\.csv: expected runs"):
        compare_sr.main(["--out", str(tmp_path)])


def test_compared_rates_have_the_same_seeds():
    rows = [
        {"arm": arm, "lr": lr, "seed": seed, "iteration": "2", "psnr": "28"}
        for arm, lr, seed in [("plain", "0.001", "0"), ("plain", "0.001", "1"), ("pspl", "0.002", "1")]
    ]
    with pytest.raises(
        SystemExit, match=r"srcnn x2: pspl has seeds \[1\] at the learning rate 0.002, plain has \[0, 1\]"
    ):
        compare_sr.tuned("srcnn x2", rows)


def test_the_compared_networks_in_the_repository_are_made_from_their_rows(tmp_path):
    results = Path(compare_sr.__file__).parent / "results" / "networks"
    for name in TEXTS[:-1]:
        shutil.copy(results / name, tmp_path)
    compare_sr.main(["--out", str(tmp_path)])
    for name in TEXTS:
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes()


def test_arms_of_runs(folder, tmp_path):
    train(folder, tmp_path / "run", "--arms", "plain", "pspl:1/3")
    options = ["--run", str(tmp_path / "run"), "--data", str(folder), "--out", str(tmp_path / "out")]
    evaluate_sr.main([*options, "--arms", "pspl:1/3"])
    assert [row["arm"] for row in read_csv(tmp_path / "out" / "means.csv")] == ["", "pspl:1/3"]
    with pytest.raises(SystemExit, match=r"--arms pspl: .*run has plain, pspl:1/3"):
        evaluate_sr.main([*options, "--arms", "pspl"])


def test_iterations_until():
    iterations = np.array([100, 200, 300])
    assert report_sr.iterations_until(29.0, iterations, np.array([28.0, 28.8, 29.2])) == pytest.approx(250)
    assert report_sr.iterations_until(29.0, iterations, np.array([29.1, 28.0, 29.2])) == 100
    assert np.isnan(report_sr.iterations_until(29.0, iterations, np.array([28.0, 28.8, 28.9])))


def test_report_refuses_different_runs(folder, tmp_path):
    train(folder, tmp_path / "a")
    for index, (options, message) in enumerate(
        [
            (["--batch", "3"], "has batch 3, .*a has 2"),
            (["--lr", "2e-4"], "has lr 0.0002, .*a has 0.0001"),
            (["--clip", "1"], "has clip 1.0, .*a has None"),
            ([], "both have arm pspl of seed 0"),
            (["--arms", "plain", "--seed", "1"], "lack plain of seed 0, pspl of seed 1"),
        ]
    ):
        other = tmp_path / f"b{index}"
        train(folder, other, *options)
        with pytest.raises(SystemExit, match=message):
            report_sr.main(["--run", str(tmp_path / "a"), str(other), "--out", str(tmp_path / "out")])


def test_arms_of_a_seed_may_be_in_several_runs(folder, tmp_path):
    """The tables are those of one run with all arms."""
    joint, apart = tmp_path / "joint", [tmp_path / "plain", tmp_path / "pspl"]
    train(folder, joint, "--arms", "plain", "pspl")
    for run in apart:
        train(folder, run, "--arms", run.name)
    for runs, name in (([joint], "one"), (apart, "two")):
        scores = tmp_path / f"{name}-scores"
        evaluate_sr.main(["--run", *map(str, runs), "--data", str(folder), "--out", str(scores)])
        options = ["--run", *map(str, runs), "--scores", str(scores / "means.csv")]
        report_sr.main([*options, "--out", str(tmp_path / name)])
    for file in ("table.md", "table.csv", "convergence.csv"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "two" / file).read_text()
    report_sr.main([*options, "--arms", "pspl", "--out", str(tmp_path / "three")])
    assert {row["arm"] for row in read_csv(tmp_path / "three" / "table.csv")} == {"bicubic", "pspl"}


def test_runs_that_differ_are_never_averaged(folder, tmp_path):
    """Two learning rates of one model, loss and seed: a row each, which says whose it is."""
    runs = {rate: tmp_path / f"lr{rate}" for rate in ("1e-4", "1e-2")}
    for rate, run in runs.items():
        train(folder, run, "--lr", rate, "--arms", "plain")
    out = tmp_path / "out"
    evaluate_sr.main(["--run", *map(str, runs.values()), "--data", str(folder), "--out", str(out)])
    means = read_csv(out / "means.csv")
    assert [(row["run"], row["images"]) for row in means] == [("", "3"), *((str(run), "3") for run in runs.values())]
    assert means[1]["psnr"] != means[2]["psnr"]
    assert all(str(run) in (out / "results.md").read_text() for run in runs.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scale", "2", "--data", "{folder}", "{folder}/../other/data"], "--data has .* expected different ones"),
        (["--scale", "2", "--data", "{folder}", "--device", "foo"], "--device foo can't be used: "),
        (["--scale", "2", "--data", "{folder}", "--pictures", "1e3"], "1e3 is not an integer of at least 0"),
        (["--run", "{run}", "{run}/../run", "--data", "{folder}"], "--run has .* expected different ones"),
        (["--data", "{folder}"], "give either --run or"),
    ],
)
def test_bad_arguments_are_one_sentence(folder, tmp_path, capsys, options, message):
    dataset(tmp_path / "other" / "data")
    options = [option.format(folder=folder, run=tmp_path / "run") for option in options]
    with pytest.raises(SystemExit):
        evaluate_sr.main([*options, "--out", str(tmp_path / "out")])
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, last)


def test_out_that_is_a_file_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for command in (evaluate_sr, report_sr):
        source = ["--scale", "2", "--data", str(folder)] if command is evaluate_sr else ["--run", str(tmp_path)]
        with pytest.raises(SystemExit, match=r"--out .*file can't be written to \(.*expected a folder"):
            command.main([*source, "--out", str(tmp_path / "file")])


def test_full_disk_while_writing_images_is_named(folder, tmp_path, file_size_limit):
    file_size_limit(1500)
    with pytest.raises(SystemExit, match=r"0000\.png can't be written: File too large"):
        evaluate_sr.main(["--scale", "2", "--data", str(folder), "--write", "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").rglob("*.png*"))


def test_report_refuses_scores_of_other_runs(folder, tmp_path):
    """Of another learning rate with the same model, loss and seed; and of the run as it was before."""
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, rate in zip(runs, ("1e-4", "1e-2"), strict=True):
        train(folder, run, "--lr", rate)
    scores = tmp_path / "scores"
    evaluate_sr.main(["--run", str(runs[0]), "--data", str(folder), "--out", str(scores)])
    options = ["--scores", str(scores / "means.csv"), "--out", str(tmp_path / "out")]
    report_sr.main(["--run", str(runs[0]), *options])
    with pytest.raises(SystemExit, match=r"no scores of pspl of .*b; expected them"):
        report_sr.main(["--run", str(runs[1]), *options])
    means = scores / "means.csv"
    means.write_text(means.read_text().replace(",2,3,", ",1,3,"))  # iterations
    with pytest.raises(SystemExit, match="expected one, of the run as it is now"):
        report_sr.main(["--run", str(runs[0]), *options])


@pytest.mark.parametrize("model", ["srcnn", "edsr-baseline"])
def test_grey_images_are_measured_as_they_are(tmp_path, model):
    """Both lineages, bicubic and a network: the luma itself, or 16..235 of it."""
    hr = photograph(36, 40)[..., :1]
    save(hr[..., 0], tmp_path / "grey" / "1.png")
    run = tmp_path / "run"
    train(dataset(tmp_path / "data"), run, "--model", model)
    found = {}
    for lineage in ([], ["--grey-as-rgb"]):
        out = tmp_path / f"out{len(lineage)}"
        evaluate_sr.main(["--run", str(run), "--data", str(tmp_path / "grey"), "--out", str(out), *lineage])
        found[bool(lineage)] = {row["model"]: float(row["psnr"]) for row in read_csv(out / "means.csv")}
    enlarged = images.enlarge(shrunken(hr, 2), 2)[2:-2, 2:-2, 0]
    raw = peak_signal_noise_ratio(hr[2:-2, 2:-2, 0], enlarged, data_range=255)
    assert found[False]["bicubic"] == pytest.approx(raw)
    # Values of 219 / 255 the range have a PSNR that is higher by that factor, but for the roundings.
    for name in ("bicubic", model):
        expected = found[False][name] - 20 * np.log10(219 / 255)
        if name == "bicubic":
            assert found[True][name] == pytest.approx(expected, abs=0.1)
        assert found[True][name] != found[False][name]


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
    arms += ["warmup:1/3", "pspl:1/3:1", "pspl:1/3:2", "scale:1/3:2", "pspl:1/3:similarity"]
    for compared in (arms, ["plain", "pspl:1", "scale:1"], ["plain", "pspl:1/3"]):
        curves = {arm: np.full((2, 3), 28.0) + index for index, arm in enumerate(compared)}
        figures.convergence(np.arange(3), curves, 27.0, "", tmp_path / "convergence.png")
    assert len(set(drawn.values())) == len(arms)
