"""experiments/train_sr.py: the loop, as a user runs it, on tiny data."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest
import torch
from torch._dynamo.utils import counters

pytest.importorskip("lightning", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("tensorboard", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

import train_sr
from helpers.experiments import ROOT, arguments, dataset, settings_of, train
from networks import NETWORKS, bicubic, build
from networks.vdsr import VDSR
from pspl_cuda import PSPLLoss, attention_map, pspl_loss
from training.loop import CHECKPOINT, METRICS, Run, load_checkpoint, make_fabric
from training.losses import PLAIN, Arm, Criterion

ARMS = ["plain", "warmup:1/3", "pspl:1/3", "scale:1/3:2", "attention:1/3:similarity"]


def rows(out):
    """Of metrics.csv, without the clock."""
    with (out / METRICS).open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same(found, expected, where="checkpoint"):
    """Bit by bit, through dicts and lists; only the clock may differ."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds", "data_seconds"}:
            assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{index}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected or (found != found and expected != expected), where


# The loop


@pytest.mark.parametrize("model", [name for name in NETWORKS if name != "edsr"])
def test_every_network_trains_with_every_loss(folder, tmp_path, model):
    out = tmp_path / "run"
    assert train(folder, out, "--model", model, "--arms", *ARMS) == 0
    logged = rows(out)
    assert [(row["iteration"], row["arm"]) for row in logged] == [(i, arm) for i in "12" for arm in ARMS]
    for row in logged:
        assert 0 < float(row["loss"]) < 10
        assert 0 < float(row["l1"]) < 10
        assert bool(row["delta"]) == bool(row["attention"]) == (row["arm"] not in ("plain", "warmup:1/3"))
        assert bool(row["validation_psnr"]) == (row["iteration"] == "2")
    state = load_checkpoint(out / CHECKPOINT)
    torch.manual_seed(0)
    start = build(model, 2).state_dict()
    for weights in state["networks"].values():
        assert any(not torch.equal(weights[name], value) for name, value in start.items())
    assert list((out / "tensorboard").glob("events*"))


def test_arms_share_weights_and_batches(folder, tmp_path):
    """Side by side or alone, in any order: the same bits."""
    for name, arms in (("both", ["pspl:1", "plain"]), ("pspl", ["pspl:1"]), ("plain", ["plain"])):
        train(folder, tmp_path / name, "--arms", *arms)
    both = load_checkpoint(tmp_path / "both" / CHECKPOINT)
    for name, arm in (("pspl", "pspl:1"), ("plain", "plain")):
        alone = load_checkpoint(tmp_path / name / CHECKPOINT)
        assert_same(alone["networks"][arm], both["networks"][arm])
        assert rows(tmp_path / name) == [row for row in rows(tmp_path / "both") if row["arm"] == arm]


def test_seeds_differ(folder, tmp_path):
    for seed in "01":
        train(folder, tmp_path / seed, "--seed", seed)
    assert [row["l1"] for row in rows(tmp_path / "0")] != [row["l1"] for row in rows(tmp_path / "1")]


def test_lapsrn_supervises_both_outputs(folder, tmp_path):
    """At x4 the loss is that of both levels; its l1 column is that of the full size."""
    out = tmp_path / "run"
    train(folder, out, "--model", "lapsrn", "--scale", "4", "--arms", "plain", "--distance", "l1")
    first = rows(out)[0]
    assert float(first["loss"]) > 1.2 * float(first["l1"])


@pytest.mark.parametrize("options", [["--model", "vdsr"], ["--precision", "16-mixed"]], ids=" ".join)
def test_resume_is_exact(folder, tmp_path, options):
    """Stopped after 3 of 5 iterations and continued: every bit as if it had not been; the PSPL schedule included."""
    options = [
        "--arms",
        "plain",
        "pspl:1",
        "--validate-every",
        "1",
        "--halve-every",
        "2",
        "--iterations",
        "5",
        *options,
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(folder, whole, *options)
    settings = settings_of(*arguments(folder, parts, *options)[6:], "--data", str(folder))
    Run(settings, make_fabric(settings, "cpu", 1), parts).train(until=3)
    assert load_checkpoint(parts / CHECKPOINT)["iteration"] == 3
    torch.manual_seed(99)  # whatever another process has drawn
    assert train(folder, parts, *options) == 0
    assert rows(parts) == rows(whole)
    assert [float(row["lr"]) for row in rows(parts)[::2]] == [1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5]
    assert [float(row["delta"]) for row in rows(parts)[1::2]] == [4, 8, 12, 16, 20]
    assert_same(load_checkpoint(parts / CHECKPOINT), load_checkpoint(whole / CHECKPOINT))


def test_resume_refuses_another_run(folder, tmp_path):
    train(folder, tmp_path / "run")
    with pytest.raises(SystemExit, match=r"holds another run: --arms was \['pspl'\] and is now \('plain',\)"):
        train(folder, tmp_path / "run", "--arms", "plain")


@pytest.mark.parametrize("option", ["--data", "--validate"])
def test_resume_refuses_other_images(folder, tmp_path, option, monkeypatch):
    """Folders of the same name; and the same folder by another path continues."""
    mine, other = dataset(tmp_path / "mine" / "images"), dataset(tmp_path / "other" / "images")
    train(folder, tmp_path / "run", option, str(mine))
    with pytest.raises(SystemExit, match=rf"holds another run: {option} was {mine} and is now {other}"):
        train(folder, tmp_path / "run", option, str(other))
    monkeypatch.chdir(tmp_path / "mine")
    assert train(folder, tmp_path / "run", option, "images") == 0


def test_a_run_without_the_newer_settings_continues(folder, tmp_path):
    out = tmp_path / "run"
    train(folder, out)
    state = load_checkpoint(out / CHECKPOINT)
    for name in ("clip", "pretrained"):
        del state["settings"][name]
    torch.save(state, out / CHECKPOINT)
    assert train(folder, out) == 0
    with pytest.raises(SystemExit, match=r"--clip was None and is now 1\.0"):
        train(folder, out, "--clip", "1")


def test_full_disk_keeps_the_checkpoint(folder, tmp_path, file_size_limit):
    """A checkpoint is written beside its place, which it takes when it is whole; the failure is a sentence."""
    out = tmp_path / "run"
    options = ["--iterations", "4", "--validate-every", "2"]
    settings = settings_of(*arguments(folder, out, *options)[6:], "--data", str(folder))
    Run(settings, make_fabric(settings, "cpu", 1), out).train(until=2)
    size = (out / CHECKPOINT).stat().st_size
    file_size_limit(size // 2)
    with pytest.raises(SystemExit, match=r"checkpoint\.pt can't be written: File too large"):
        train(folder, out, *options)
    assert load_checkpoint(out / CHECKPOINT)["iteration"] == 2
    assert not list(out.glob("*.part"))


def test_checkpoint_does_not_pass_through_the_temporary_folder(folder, tmp_path, monkeypatch):
    """Which may be another file system, from where a file is copied: neither at once nor whole."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert train(folder, tmp_path / "run") == 0
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT)["iteration"] == 2


def test_interrupt_keeps_the_last_validation(folder, tmp_path):
    """SIGINT to the command: exit code 130, a sentence, no traceback; then it continues from its checkpoint."""
    out = tmp_path / "run"
    options = ["--iterations", "1000000", "--validate-every", "2", "--workers", "1"]
    command = [sys.executable, str(ROOT / "experiments" / "train_sr.py"), *arguments(folder, out, *options)]
    # A shell starts its background jobs deaf to SIGINT, which the command would inherit; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        end = time.monotonic() + 120
        while not (out / CHECKPOINT).exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == train_sr.INTERRUPTED, errors
    assert "the same command continues" in errors
    assert "Traceback" not in errors
    settings = settings_of(*arguments(folder, out, *options)[6:], "--data", str(folder))
    run = Run(settings, make_fabric(settings, "cpu", 1), out)
    assert run.iteration == load_checkpoint(out / CHECKPOINT)["iteration"] > 0
    assert int(rows(out)[-1]["iteration"]) >= run.iteration - 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is damaged or not a checkpoint"),
        (lambda path: path.write_bytes(b""), "is damaged or not a checkpoint"),
        (lambda path: torch.save({"weights": 1}, path), "is damaged or not a checkpoint"),
    ],
    ids=["cut", "empty", "foreign"],
)
def test_damaged_checkpoint_is_named(folder, tmp_path, damage, message):
    train(folder, tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    damage(path)
    with pytest.raises(SystemExit, match=message) as caught:
        train(folder, tmp_path / "run")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [["--precision", "bf16-mixed"], ["--channels-last"]],
    ids=" ".join,
)
def test_precision_and_layout(folder, tmp_path, options):
    """Close to float32, contiguous: as far as the precision of the first outputs allows."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    train(folder, plain)
    train(folder, other, *options)
    for expected, found in zip(rows(plain), rows(other), strict=True):
        # 8 bits of mantissa, of outputs that are no larger than the error itself
        tolerance = 1e-5 if options == ["--channels-last"] else 2**-7
        assert float(found["l1"]) == pytest.approx(float(expected["l1"]), rel=tolerance)
    assert rows(other) != rows(plain) or options == ["--channels-last"]
    weights = load_checkpoint(other / CHECKPOINT)["networks"]["pspl"].values()
    # A weight of one channel is both contiguous and channels_last.
    channels_last = [
        w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.dim() == 4 and w.shape[1] > 1
    ]
    assert all(channels_last) if "--channels-last" in options else not any(channels_last)
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights)


def test_sgd(folder, tmp_path):
    """The first step of SGD with momentum is the rate times the gradient."""
    train(folder, tmp_path / "run", "--optimizer", "sgd", "--iterations", "1", "--lr", "0.01")
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    torch.manual_seed(0)
    start = build("srcnn", 2).state_dict()
    moments = state["optimizers"]["pspl"]["state"]
    for index, (name, weight) in enumerate(state["networks"]["pspl"].items()):
        torch.testing.assert_close(weight, start[name] - 0.01 * moments[index]["momentum_buffer"])


def test_low_precision_keeps_the_image(folder, tmp_path):
    """VDSR adds a residual to the bicubic image: with bfloat16 inputs it would lose half a grey level."""
    settings = settings_of(
        "--model", "vdsr", "--precision", "bf16-mixed", "--data", str(folder), "--scale", "2", "--patch", "16"
    )
    trained = Run(settings, make_fabric(settings, "cpu", 1), tmp_path).trained["pspl"]
    for parameter in trained.network.parameters():
        torch.nn.init.zeros_(parameter)
    lr = torch.rand(1, 1, 8, 8)
    enlarged = torch.nn.functional.interpolate(lr, scale_factor=2, mode="bicubic", antialias=True)
    torch.testing.assert_close(trained.model(lr), enlarged)


@pytest.mark.deep
def test_compile(folder, tmp_path):
    """The same run, and its checkpoint has the network's own names."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    train(folder, plain)
    counters.clear()
    train(folder, compiled, "--compile")
    assert counters["frames"]["ok"] >= 1
    names, expected = (load_checkpoint(out / CHECKPOINT)["networks"]["pspl"].keys() for out in (compiled, plain))
    assert names == expected
    for expected, found in zip(rows(plain), rows(compiled), strict=True):
        assert float(found["l1"]) == pytest.approx(float(expected["l1"]), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "-1"], "-1 is not an integer of at least 1"),
        (["--devices", "0"], "0 is not an integer of at least 1"),
        (["--seed", "18446744073709551616"], "is not an integer of at least 0 and at most 18446744073709551615"),
        (["--iterations", "1e3"], "1e3 is not an integer of at least 1"),
        (["--lr", "fast"], "fast is not a number above 0"),
        (["--lr", "nan"], "nan is not a number above 0"),
        (["--clip", "0"], "0 is not a number above 0"),
        (["--device", "foo"], "invalid choice: 'foo'"),
    ],
)
def test_bad_arguments_are_one_sentence(folder, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        train(folder, tmp_path / "run", *options)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_largest_seed(folder, tmp_path):
    assert train(folder, tmp_path / "run", "--seed", str(2**64 - 1)) == 0


def test_out_that_is_a_file_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SystemExit, match=r"--out .*file.* can't be written to \(.*expected a folder"):
            train(folder, out)


def test_warmup(folder, tmp_path):
    """The plain loss; its rate rises over a half of the run to --lr."""
    train(folder, tmp_path / "run", "--arms", "plain", "warmup:1/2", "--iterations", "8", "--halve-every", "7")
    logged = rows(tmp_path / "run")
    assert [float(row["lr"]) / 1e-4 for row in logged[1::2]] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5])
    assert {float(row["lr"]) for row in logged[::2]} == {1e-4, 5e-5}
    assert logged[0]["loss"] == logged[1]["loss"]
    assert logged[2]["loss"] != logged[3]["loss"]


def test_clip(folder, tmp_path):
    """SGD's first step is no longer than the rate times the norm; a norm that no gradient has changes nothing."""
    sgd = ["--optimizer", "sgd", "--iterations", "1", "--lr", "0.5"]
    for name, clip in (("free", []), ("long", ["--clip", "1e6"]), ("short", ["--clip", "0.001"])):
        train(folder, tmp_path / name, *sgd, *clip)
    weights = {
        name: load_checkpoint(tmp_path / name / CHECKPOINT)["networks"]["pspl"] for name in ("free", "long", "short")
    }
    assert_same(weights["long"], weights["free"])
    torch.manual_seed(0)
    start = build("srcnn", 2).state_dict()
    moved = {
        name: torch.cat([(weight - start[key]).flatten() for key, weight in mine.items()]).norm().item()
        for name, mine in weights.items()
    }
    # Differences of weights of order 0.1 in float32.
    assert moved["short"] == pytest.approx(0.5 * 0.001, rel=1e-2)
    assert moved["free"] > 10 * moved["short"]


def test_pretrained(folder, tmp_path):
    """A run that begins with the weights of another's arm."""
    train(folder, tmp_path / "first", "--arms", "plain", "pspl")
    options = ["--pretrained", str(tmp_path / "first"), "plain"]
    settings = settings_of("--data", str(folder), "--scale", "2", "--patch", "16", *options)
    run = Run(settings, make_fabric(settings, "cpu", 1), tmp_path / "second")
    weights = load_checkpoint(tmp_path / "first" / CHECKPOINT)["networks"]["plain"]
    assert_same(dict(run.trained["pspl"].network.state_dict()), dict(weights))
    for options, message in (
        (["--pretrained", str(tmp_path / "first"), "scale"], "expected one of its arms, plain, pspl"),
        (
            ["--pretrained", str(tmp_path / "first"), "plain", "--model", "vdsr"],
            "is a run of --model srcnn; expected vdsr",
        ),
        (["--pretrained", str(tmp_path / "none"), "plain"], "does not exist"),
    ):
        with pytest.raises(SystemExit, match=message):
            train(folder, tmp_path / "third", *options)


def test_workers_change_nothing(folder, tmp_path):
    train(folder, tmp_path / "alone")
    train(folder, tmp_path / "workers", "--workers", "2")
    assert rows(tmp_path / "workers") == rows(tmp_path / "alone")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "lapsrn", "--scale", "3"], "scale is 3; LapSRN doubles the size"),
        (["--patch", "1"], "--patch 1 is smaller than --scale 4"),
        (["--arms", "pspl:0"], "'pspl:0' is no loss; expected"),
        (["--arms", "l1"], "'l1' is no loss; expected"),
        (["--arms", "plain:1"], "'plain:1' is no loss; expected"),
        (["--arms", "warmup:1/3:1"], "'warmup:1/3:1' is no loss; expected"),
        (["--arms", "pspl:1/3:-1"], "'pspl:1/3:-1' is no loss; expected"),
        (["--arms", "pspl:1/3:nan"], "'pspl:1/3:nan' is no loss; expected"),
        (["--arms", "pspl:1/3:1:1"], "'pspl:1/3:1:1' is no loss; expected"),
        (["--arms", "pspl:1/3", "pspl:2/6"], "expected different ones"),
    ],
)
def test_contradicting_options_are_named(options, message):
    with pytest.raises(SystemExit, match=message):
        settings_of(*options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_device_is_named(folder, tmp_path):
    with pytest.raises(SystemExit, match="--device cuda --devices 1: "):
        train(folder, tmp_path / "run", "--device", "cuda")


# The losses


def test_schedules():
    """The paper's 300 steps in a run; a span ends at the delta from which attention is uniform to 1 %."""
    assert Arm.parse("pspl").delta(300, 300) == 300
    assert Arm.parse("pspl:1/3") == Arm("pspl", Fraction(1, 3))
    assert Arm.parse("pspl:1/3").delta(100, 300) == 20
    assert Arm.parse("pspl:1/3:0.8").delta(100, 300) == 20.8
    lowest, highest = attention_map(*(torch.tensor([1.0, x]).repeat(1, 1, 12, 6) for x in (0.0, 1.0)), 20.0).aminmax()
    assert 1 <= highest / lowest <= 1.011


@pytest.mark.parametrize("total", [7200, 2400, 500, 7])
def test_total_iterations_is_the_recommended_arm(total):
    """What the experiment recommends is what PSPLLoss does."""
    loss = PSPLLoss(total_iterations=total)
    for iteration in (1, total // 3, total - 1, total, 2 * total):
        loss.iteration = iteration
        assert loss.delta == pytest.approx(Arm.parse("pspl:1/3:0.8").delta(iteration, total), rel=1e-15)


@pytest.mark.parametrize("distance", list(PLAIN))
def test_controls_take_pspl_apart(distance):
    """'scale' has PSPL's mean weight and the plain loss's direction; 'attention' has PSPL's direction and mean weight 1."""
    torch.manual_seed(0)
    hr = torch.rand(2, 1, 16, 16)
    noise = torch.randn_like(hr)
    noise[..., :8] *= 0.05  # so that one half is far more similar than the other
    start = (hr + 0.4 * noise).clamp(0, 1)
    losses, gradients = {}, {}
    for arm in ("plain", "pspl:1", "scale:1", "attention:1"):
        sr = start.clone().requires_grad_()
        losses[arm], measures = Criterion(Arm.parse(arm), distance, iterations=20)(sr, hr, iteration=2)
        losses[arm].backward()
        gradients[arm] = sr.grad.flatten()
        assert measures[5].item() == 2 or arm == "plain"
    expected = pspl_loss(start, hr, 2.0, distance=distance)
    assert losses["pspl:1"].item() == pytest.approx(expected.item())
    weight = attention_map(start, hr, 2.0).pow(2 if distance == "l2" else 1).mean().item()
    for scaled, original, factor in (("scale:1", "plain", weight), ("pspl:1", "attention:1", weight)):
        torch.testing.assert_close(gradients[scaled], factor * gradients[original])
    cosine = torch.nn.functional.cosine_similarity(gradients["pspl:1"], gradients["plain"], dim=0)
    assert cosine < 0.99, "attention changes nothing here, so this test says nothing"


def test_a_start_by_similarity_gives_the_mean_half_the_peak():
    """Where every pixel has the same similarity, all weights are 1 of 2 until the schedule is beyond; then they follow it."""
    hr, sr = torch.full((1, 1, 16, 16), 0.8), torch.full((1, 1, 16, 16), 0.5)
    criterion = Criterion(Arm.parse("pspl:1:similarity"), "l1", iterations=20)
    early, late = (criterion(sr, hr, iteration)[1] for iteration in (1, 20))
    similarity = (2 * 0.8 * 0.5 + 1e-4) / (0.8**2 + 0.5**2 + 1e-4)
    assert early[5].item() == pytest.approx(
        (similarity + 1) / math.log(2) ** 0.5, rel=0.05
    )  # zero padding at the border
    assert early[4].item() == pytest.approx(1, abs=0.05)
    assert late[5].item() == 20


def edges(count, size):
    """``[count, 1, size, size]``: smooth shades, an edge, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    made = []
    for _ in range(count):
        coarse = torch.rand(1, 1, 4, 4, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]
        slope_x, slope_y, offset, height = torch.rand(4, generator=generator)
        edge = ((x * (slope_x - 0.5) + y * (slope_y - 0.5) + (offset - 0.5) * 6).sign() + 1) / 2
        noise = torch.rand(1, size, size, generator=generator)
        made.append((0.55 * smooth + 0.4 * edge * height + 0.02 * noise).clamp(0, 1))
    return torch.stack(made)


def test_a_deep_network_near_its_limit_survives_the_start():
    """A small VDSR at half the learning rate that the plain loss stands, in the beginning of a run of 30 000 iterations.

    With a schedule from step 0 Adam's steps are 3.6 times that rate, and the output ends as the same number everywhere.
    """
    torch.manual_seed(1)
    network = VDSR(4, layers=12, features=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1.5e-3)
    criterion = PSPLLoss(total_iterations=30_000)
    hr = edges(64, 16)
    lr = bicubic.shrink(hr, 4)
    lr = (lr * 255).round() / 255
    generator = torch.Generator().manual_seed(1)
    for _ in range(450):
        batch = torch.randint(0, 48, (2,), generator=generator)
        loss = criterion(network(lr[batch]), hr[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        enlarged = bicubic.enlarge(lr[48:], 4)
        residual = network(lr[48:]) - enlarged
    assert residual.std() > 0.01
    gain = 10 * torch.log10((enlarged - hr[48:]).square().mean() / (enlarged + residual - hr[48:]).square().mean())
    assert gain > 1, "dB over bicubic"


# Several processes


def test_two_processes_train_as_one(folder, tmp_path):
    """Two gloo processes: same schedule, gradients of the joint batch, one log and one bar."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = ["--batch", "4", "--iterations", "3", "--arms", "pspl:1", "plain"]
    train(folder, one, *options)
    command = [
        sys.executable,
        str(ROOT / "experiments" / "train_sr.py"),
        *arguments(folder, two, *options, "--devices", "2"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("2 process(es)") == 1
    assert result.stderr.count("| 0/3 [") == 1, "each bar begins so"
    assert len(list((two / "tensorboard").glob("events*"))) == 1
    assert len(rows(two)) == len(rows(one)) == 6

    # The gradient of a weight is a sum over the batch's pixels; two orders of a float32 sum of n terms differ by at most
    # (n - 1) roundings of the sum of their magnitudes, and by far less for a whole tensor.
    n = 4 * 16 * 16
    tolerance = n * 2**-24
    for joint, shared in zip(rows(one), rows(two), strict=True):
        assert shared["delta"] == joint["delta"]
        assert shared["lr"] == joint["lr"]
        for name in ("loss", "l1", "similarity", "attention", "validation_psnr"):
            if joint[name]:
                assert float(shared[name]) == pytest.approx(float(joint[name]), rel=tolerance)
    found, expected = (load_checkpoint(out / CHECKPOINT) for out in (two, one))
    for arm in ("pspl:1", "plain"):
        for index, moments in expected["optimizers"][arm]["state"].items():
            average = found["optimizers"][arm]["state"][index]["exp_avg"]
            assert (average - moments["exp_avg"]).norm() <= tolerance * moments["exp_avg"].norm()
        for name, weight in expected["networks"][arm].items():
            assert (found["networks"][arm][name] - weight).norm() <= tolerance * weight.norm()
