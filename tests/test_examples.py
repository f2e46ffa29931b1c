"""examples/: the training loop, evaluation and the comparison, each as a user runs it, on tiny data."""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="examples/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("tensorboard", reason="examples/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("tqdm", reason="examples/ needs pip install 'pspl_cuda[examples]'")

from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch._dynamo.utils import counters

import compare_convergence
import evaluate_sr
import train_sr
from examples_helpers import EXAMPLES, TINY, dataset, photograph, run, save, shrunken, train
from networks import NETWORKS, build
from training import checkpoint, data, images, records
from training.settings import LOSSES

TIMES = {"seconds", "images_per_second"}


@pytest.fixture(autouse=True)
def _one_thread():
    """The work is tiny, and threads that wait for each other on a busy machine are not."""
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path):
    return dataset(tmp_path / "data")


def rows(out, without=TIMES):
    with (out / records.NAME).open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in without} for row in csv.DictReader(file)]


def state_of(out):
    return torch.load(out / checkpoint.NAME, weights_only=True)


def assert_same(found, expected, where="checkpoint"):
    """Bit by bit, through dicts and lists; only the clock may differ."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds", "settings"}:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


# Training


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", list(NETWORKS))
def test_every_model_trains_with_every_loss(folder, tmp_path, model, loss, monkeypatch):
    if model == "edsr":
        # Half a gigabyte that says nothing more than the baseline's.
        monkeypatch.setattr(checkpoint, "save", lambda state, path: None)
    out = tmp_path / "run"
    torch.manual_seed(0)
    start = [p.detach().clone() for p in build(model, 2).parameters()] if model != "edsr" else None
    draw = model in ("srcnn", "edsr-baseline")  # of one channel and of three
    # With the authors' 1000 iterations a step, PSPL's first weights are too small to train anything.
    options = ["--model", model, "--loss", loss, "--iterations-per-step", "1"]
    assert train(folder, out, *options, draw=draw) == 0
    logged = rows(out)
    assert [row["iteration"] for row in logged] == ["1", "2"]
    for row in logged:
        assert 0 < float(row["loss"]) < 10
        assert 0 < float(row["l1"]) < 10
        assert bool(row["step"]) == bool(row["attention"]) == (loss == "pspl")
    assert float(logged[-1]["validation_psnr"]) > 0
    if draw:
        assert images.read(out / "curves.png").std() > 10
        assert (out / "attention.png").exists() == (loss == "pspl")
    if start is not None:
        network = build(model, 2)
        network.load_state_dict(state_of(out)["network"])
        assert any(not torch.equal(a, b) for a, b in zip(start, network.parameters(), strict=True))


def test_lapsrn_supervises_both_outputs(folder, tmp_path):
    """At x4 the loss is that of both levels; its l1 column is that of the full size."""
    out = tmp_path / "run"
    train(folder, out, "--model", "lapsrn", "--scale", "4", "--loss", "l1")
    first = rows(out)[0]
    assert float(first["loss"]) > 1.2 * float(first["l1"])


@pytest.mark.parametrize("loss", ["pspl", "l1"])
def test_resume_is_exact(folder, tmp_path, loss):
    """Interrupted after 3 of 5 iterations and resumed: every bit as if it had not been; the PSPL schedule included."""
    options = [
        "--loss",
        loss,
        "--model",
        "vdsr",
        "--checkpoint-every",
        "1",
        "--validate-every",
        "1",
        "--halve-every",
        "2",
    ]
    options += ["--iterations-per-step", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *options, "--iterations", "5")
    train(folder, parts, *options, "--iterations", "3")
    assert state_of(parts)["iteration"] == 3
    torch.manual_seed(99)  # whatever another process has drawn
    assert run("--resume", "--out", str(parts), "--iterations", "5") == 0
    assert rows(parts) == rows(whole)
    assert [float(row["lr"]) for row in rows(parts)] == [1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5]
    if loss == "pspl":
        assert [float(row["step"]) for row in rows(parts)] == [0.5, 1.0, 1.5, 2.0, 2.5]
    found, expected = state_of(parts), state_of(whole)
    for state in (found, expected):  # the shorter run also drew its own last iteration
        state["snapshots"] = [s for s in state["snapshots"] if s["iteration"] != 3]
    assert_same(found, expected)


def test_resume_drops_what_came_after_the_checkpoint(folder, tmp_path):
    """Also a row that was cut short."""
    out = tmp_path / "run"
    train(folder, out)
    with (out / records.NAME).open("a") as file:
        file.write("3,0.5,0.1,0.1,20.0,0.003,0.9,0.0,0.0001,9.0,,\n1")
    run("--resume", "--out", str(out), "--iterations", "3")
    assert [row["iteration"] for row in rows(out)] == ["1", "2", "3"]
    assert rows(out)[2]["psnr"] != "20.0"


def test_resume_refuses_another_run(folder, tmp_path):
    out = tmp_path / "run"
    train(folder, out)
    with pytest.raises(SystemExit, match="--model was srcnn and is now vdsr"):
        train_sr.main(["--resume", "--out", str(out), "--model", "vdsr"])
    with pytest.raises(SystemExit, match="holds a run already: add --resume"):
        train(folder, out)


def test_interrupt_keeps_a_checkpoint(folder, tmp_path):
    """SIGINT to the command: a checkpoint of the iteration, a sentence, no traceback; then it goes on."""
    out = tmp_path / "run"
    command = [sys.executable, str(EXAMPLES / "train_sr.py"), "--data", str(folder), "--out", str(out), *TINY]
    command += ["--iterations", "1000000", "--validate-every", "1000000"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        end = time.monotonic() + 120
        while not (out / records.NAME).exists() or len(rows(out)) < 3:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == train_sr.INTERRUPTED, errors
    assert "To go on: train_sr.py --resume" in printed
    assert "Traceback" not in errors
    state = checkpoint.load(out / checkpoint.NAME)
    assert state["iteration"] == int(rows(out)[-1]["iteration"])
    assert int(state["criterion"]["pspl._extra_state"]) == state["iteration"]
    assert not list(out.glob("*.part"))
    assert run("--resume", "--out", str(out), "--iterations", str(state["iteration"] + 1)) == 0


def test_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / checkpoint.NAME
    checkpoint.save({"iteration": 0}, path)
    first = path.stat().st_ino
    checkpoint.save({"iteration": 1}, path)
    assert path.stat().st_ino != first, "the old checkpoint was written over, not replaced"

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(SystemExit, match="can't be written: No space left"):
        checkpoint.save({"iteration": 2}, path)
    assert checkpoint.load(path)["iteration"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.NAME]


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or no checkpoint"),
        (flip_a_byte, "is damaged or no checkpoint .*wrong checksum"),
        (lambda path: path.write_bytes(b""), "is damaged or no checkpoint"),
        (lambda path: torch.save({"weights": 1}, path), "is no checkpoint of this version"),
        (lambda path: path.unlink(), "doesn't exist"),
    ],
    ids=["cut", "flipped", "empty", "foreign", "missing"],
)
def test_damaged_checkpoint_is_named(tmp_path, damage, message):
    path = tmp_path / checkpoint.NAME
    checkpoint.save({"iteration": 1, "network": {"weight": torch.rand(64, 64)}}, path)
    damage(path)
    with pytest.raises(SystemExit, match=message) as caught:
        train_sr.main(["--resume", "--out", str(tmp_path)])
    assert str(path) in str(caught.value)


def test_best_network_is_no_run_to_resume(folder, tmp_path):
    out = tmp_path / "run"
    train(folder, out)
    (out / checkpoint.BEST).replace(out / checkpoint.NAME)
    with pytest.raises(SystemExit, match=r"is it a best\.pt"):
        train_sr.main(["--resume", "--out", str(out)])


@pytest.mark.parametrize(
    "options",
    [
        ["--amp", "bf16"],
        ["--amp", "fp16"],
        ["--channels-last"],
        ["--amp", "bf16", "--channels-last", "--model", "lapsrn"],
    ],
    ids=" ".join,
)
def test_precision_and_layout(folder, tmp_path, options):
    """Close to float32, contiguous: as far as the precision of the first outputs allows. And resumable."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    model = options[options.index("--model") :] if "--model" in options else []
    train(folder, plain, *model)
    train(folder, other, *options)
    for expected, found in zip(rows(plain), rows(other), strict=True):
        # 8 bits of mantissa, of outputs that are no larger than the error itself
        tolerance = 2**-7 if "--amp" in options else 1e-5
        assert float(found["l1"]) == pytest.approx(float(expected["l1"]), rel=tolerance)
    assert rows(other) != rows(plain) or "--amp" not in options
    assert run("--resume", "--out", str(other), "--iterations", "3") == 0
    weights = state_of(other)["network"].values()
    # A weight of one channel is both contiguous and channels_last.
    channels_last = [
        w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.dim() == 4 and w.shape[1] > 1
    ]
    assert all(channels_last) if "--channels-last" in options else not any(channels_last)
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights)


def test_compile(folder, tmp_path):
    """The same run, and its checkpoint has the network's own names."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    train(folder, plain)
    counters.clear()
    train(folder, compiled, "--compile")
    assert counters["frames"]["ok"] >= 1
    assert state_of(plain)["network"].keys() == state_of(compiled)["network"].keys()
    for expected, found in zip(rows(plain), rows(compiled), strict=True):
        assert float(found["l1"]) == pytest.approx(float(expected["l1"]), rel=1e-4)


def test_workers_change_nothing(folder, tmp_path):
    train(folder, tmp_path / "alone")
    train(folder, tmp_path / "workers", "--workers", "2")
    assert rows(tmp_path / "workers") == rows(tmp_path / "alone")


def test_contradicting_options_are_named(tmp_path):
    for options, message in [
        (["--loss", "l1", "--distance", "l2"], "--distance l2 is an option of --loss pspl"),
        (["--model", "lapsrn", "--scale", "3"], "scale is 3; LapSRN doubles the size"),
        (["--data", str(tmp_path / "missing")], "is not a folder"),
        (["--device", "cuda:77"], "--device cuda:77"),
        (["--patch", "1"], "--patch 1 is smaller than --scale 2"),
        (["--patch", "4000"], "smaller than a patch"),
    ]:
        with pytest.raises(SystemExit, match=message):
            train_sr.main(["--out", str(tmp_path / "run"), *options])


# Several processes


def test_two_processes_train_as_one(folder, tmp_path):
    """torchrun with two gloo processes: same schedule, gradients of the joint batch, one log and one bar."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--batch", "4", "--iterations", "3", "--iterations-per-step", "1.5"]
    train(folder, one, *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(EXAMPLES / "train_sr.py"), "--data", str(folder), "--out", str(two), *TINY, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 process(es)") == 1
    assert result.stderr.count("| 0/3 [") == 1, "each bar begins so"
    assert (result.stderr + result.stdout).count("iteration 3: validation PSNR") == 1
    assert len(list((two / "tensorboard").glob("events*"))) == 1
    assert len(rows(two)) == 3

    # The gradient of a weight is a sum over the batch's pixels; two orders of a float32 sum of n terms differ by at most
    # (n - 1) roundings of the sum of their magnitudes, and by far less for a whole tensor.
    n = 4 * 16 * 16
    tolerance = n * 2**-24
    for joint, shared in zip(rows(one), rows(two), strict=True):
        assert shared["step"] == joint["step"]
        assert shared["lr"] == joint["lr"]
        for name in ("loss", "l1", "similarity", "attention"):
            assert float(shared[name]) == pytest.approx(float(joint[name]), rel=tolerance)
    found, expected = state_of(two), state_of(one)
    assert torch.equal(found["criterion"]["pspl._extra_state"], expected["criterion"]["pspl._extra_state"])
    for index, moments in expected["optimizer"]["state"].items():
        average = found["optimizer"]["state"][index]["exp_avg"]
        assert (average - moments["exp_avg"]).norm() <= tolerance * moments["exp_avg"].norm()
    for name, weight in expected["network"].items():
        assert (found["network"][name] - weight).norm() <= tolerance * weight.norm()


def test_batch_must_be_shared_evenly():
    settings = train_sr.resolve(train_sr_options("--batch", "3"))
    with pytest.raises(SystemExit, match="--batch 3 can't be shared by 2 processes"):
        data.Batches([], settings, channels=1, rank=0, world=2)


def train_sr_options(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="run")
    train_sr.add_options(parser)
    return parser.parse_args(list(options))


# Data


def test_shares_make_the_joint_batch():
    settings = train_sr.resolve(train_sr_options("--batch", "6", "--patch", "12", "--seed", "5"))
    pairs = [data.Pair(str(i), hr := photograph(30, 34, seed=i), images.shrink(hr, 2)) for i in range(2)]
    joint = data.Batches(pairs, settings, 3)[7]
    shares = [data.Batches(pairs, settings, 3, rank, 3)[7] for rank in range(3)]
    for part, whole in enumerate(joint):
        assert torch.equal(torch.cat([share[part] for share in shares]), whole)
    assert not torch.equal(data.Batches(pairs, settings, 3)[8][0], joint[0])


def test_patches_fit_together():
    """Each HR patch shrinks to its LR patch, turned alike; away from the border, where bicubic sees outside."""
    settings = train_sr.resolve(train_sr_options("--batch", "16", "--patch", "32"))
    hr = photograph(64, 70)
    lr, hr = data.Batches([data.Pair("", hr, images.shrink(hr, 2))], settings, 3)[1]
    again = data.images.bicubic.shrink(hr, 2)
    inside = (..., slice(2, -2), slice(2, -2))
    # Two roundings to 8 bits: one of lr, one that `again` lacks.
    assert (again[inside] - lr[inside]).abs().max() <= 1 / 255
    assert len({patch.sum().item() for patch in lr}) > 12


def test_demonstration_holds_out_whole_images():
    trained, held_out = (data.demonstration(3, held_out=flag) for flag in (False, True))
    assert len(trained) >= 5
    assert len(held_out) >= 3
    assert not {pair.name for pair in trained} & {pair.name for pair in held_out}
    for pair in trained + held_out:
        assert pair.hr.shape == (3 * pair.lr.shape[0], 3 * pair.lr.shape[1], 3)
        assert np.ptp(pair.hr.astype(int), axis=2).mean() > 5, f"{pair.name} is colourless"
    china = next(pair for pair in held_out if pair.name == "china")
    assert china.hr.shape[:2] == (213, 318), "JPEGs are halved"


def test_unreadable_image_is_named(folder, tmp_path):
    bad = folder / "0001.png"
    bad.write_bytes(bad.read_bytes()[:400])
    with pytest.raises(SystemExit, match=r"0001\.png can't be read as an image"):
        train(folder, tmp_path / "run")
    bad.write_bytes(b"no image")
    with pytest.raises(SystemExit, match=r"0001\.png can't be read as an image"):
        evaluate_sr.main(["--scale", "2", "--data", str(folder), "--out", str(tmp_path / "out")])


def test_lr_images_are_read_where_there_are_some(tmp_path):
    """DIV2K's layout, with LR images that bicubic would not make."""
    folder = tmp_path / "DIV2K"
    for part, names in (("train", ("0001", "0002")), ("valid", ("0801",))):
        for name in names:
            hr = photograph(33, 40, seed=int(name))
            save(hr, folder / f"DIV2K_{part}_HR" / f"{name}.png")
            save(255 - shrunken(hr, 3), folder / f"DIV2K_{part}_LR_bicubic" / "X3" / f"{name}x3.png")
    trained, held_out = (data.split(folder, 3, held_out=flag) for flag in (False, True))
    assert [source.hr.name for source in trained] == ["0001.png", "0002.png"]
    assert [source.lr.name for source in held_out] == ["0801x3.png"]
    pair = data.load(trained[0], 3)
    assert pair.hr.shape == (33, 39, 3)
    assert np.array_equal(pair.lr, 255 - shrunken(pair.hr, 3))
    assert train(folder, tmp_path / "run", "--scale", "3", "--patch", "15") == 0
    with pytest.raises(SystemExit, match="expected 2 times it"):
        data.load(trained[0], 2)
    trained[1].lr.unlink()
    with pytest.raises(SystemExit, match="has no LR image for 0002"):
        data.split(folder, 3, held_out=False)


def test_last_images_are_held_out(tmp_path):
    folder = dataset(tmp_path / "data", count=12)
    assert [source.hr.stem for source in data.split(folder, 2, held_out=True)] == ["0011"]
    assert len(data.split(folder, 2, held_out=False)) == 11
    with pytest.raises(SystemExit, match="holds one image"):
        data.split(dataset(tmp_path / "one", count=1), 2, held_out=True)


# Evaluation


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


def table_scores(out, method):
    """Of each image, from the second table."""
    _, table = (out / "results.md").read_text().split("| image |")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(float(row[4]), float(row[5])) for row in cells if len(row) == 6 and row[3] == method]


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
    found = table_scores(out, "bicubic")
    assert len(found) == 2
    for column, rounding in enumerate((0.005, 0.00005)):
        np.testing.assert_allclose(
            np.array(found)[:, column], np.array(expected)[:, column], rtol=0, atol=1.01 * rounding
        )
    means = next(line for line in (out / "results.md").read_text().splitlines() if "| 2 | bicubic" in line)
    psnr, ssim = np.mean(expected, axis=0)
    assert f"| {psnr:.2f} | {ssim:.4f} |" in means
    assert ("made by antialiased bicubic" in (out / "results.md").read_text()) == (layout == "flat")


@pytest.mark.parametrize("model", ["srcnn", "edsr-baseline"])
def test_network_scores(folder, tmp_path, model):
    """From a checkpoint: the table agrees with the images that it wrote, and with the run's own validation."""
    trained, out = tmp_path / "run", tmp_path / "out"
    train(folder, trained, "--model", model)
    evaluate_sr.main(["--checkpoint", str(trained / checkpoint.BEST), "--data", str(folder), "--out", str(out)])
    distance = "l2" if model == "srcnn" else "l1"
    found = table_scores(out, f"{model}, PSPL {distance}, 2 iterations")
    assert len(found) == 3
    assert found[-1][0] == pytest.approx(float(rows(trained)[-1]["validation_psnr"]), abs=0.005)
    hr = images.read(folder / "0000.png")[:36, :40]
    if model == "edsr-baseline":
        written = images.read(out / "data" / "x2" / "network-1" / "0000.png")
        psnr, _ = expected_scores(written, hr, 2, rgb=False)
    else:  # the luma itself is measured, before colours are added
        network = build(model, 2)
        network.load_state_dict(torch.load(trained / checkpoint.BEST, weights_only=True)["network"])
        y_lr, y_hr = (rgb2ycbcr(image)[..., 0] for image in (shrunken(hr, 2), hr))
        y = network(torch.from_numpy(y_lr / 255).float()[None, None]).detach().clamp(0, 1).numpy()[0, 0] * 255
        shaved = (image.round().astype(np.uint8)[2:-2, 2:-2] for image in (y_hr, y))
        psnr = peak_signal_noise_ratio(*shaved, data_range=255)
    assert found[0][0] == pytest.approx(psnr, abs=0.0051)
    assert (out / "data" / "x2" / "compare-0000.png").stat().st_size > 5000


def test_identical_images_are_perfect():
    image = photograph(20, 24)
    assert images.psnr_and_ssim(image, image, 2) == (float("inf"), 1.0)
    with pytest.raises(SystemExit, match="SSIM needs 11"):
        images.psnr_and_ssim(image, image, 5)


# The comparison


def test_quick_comparison(folder, tmp_path, monkeypatch):
    """All of it, and again without training anything twice."""
    monkeypatch.setattr(compare_convergence, "NETWORKS", {"srcnn": NETWORKS["srcnn"]})
    options = ["--quick", "--data", str(folder), "--model", "lapsrn", "--out", str(tmp_path / "out"), "--device", "cpu"]
    options += ["--iterations-per-step", "1", "2"]
    assert compare_convergence.main(options) == 0
    out = tmp_path / "out"
    written = list(csv.DictReader((out / "convergence.csv").open(newline="")))
    assert {(row["loss"], row["seed"]) for row in written} == {
        (arm, seed) for arm in ("l1", "pspl-step-1", "pspl-step-2") for seed in ("0", "1")
    }
    assert [row["iteration"] for row in written[:2]] == ["2", "4"]
    plain, weighted = (
        torch.load(out / "runs" / f"{arm}-seed0" / checkpoint.NAME, weights_only=True) for arm in ("l1", "pspl-step-1")
    )
    assert plain["settings"]["loss"] == "l1"
    assert rows(out / "runs" / "l1-seed0") != rows(out / "runs" / "l1-seed1")
    for seed in (0, 1):
        assert {state_of(run)["settings"]["seed"] for run in (out / "runs").glob(f"*-seed{seed}")} == {seed}
    assert weighted["settings"]["distance"] == "l1"
    shares = list(csv.DictReader((out / "loss_share.csv").open(newline="")))
    assert {row["loss"] for row in shares} >= {"nn.L1Loss", "PSPL, reference"}
    for picture in ("convergence.png", "runs/pspl-step-2-seed1/attention.png"):
        assert images.read(out / picture).std() > 10

    def no_training(*_):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(compare_convergence.Trainer, "_step", no_training)
    before = (out / "convergence.csv").read_bytes()
    assert compare_convergence.main([*options, "--no-share"]) == 0
    assert (out / "convergence.csv").read_bytes() == before
