"""``python -m pspl_cuda`` as a user runs it."""

import subprocess
import sys

import pytest
import torch

from pspl_cuda import __main__ as self_check

pytest.importorskip("skimage", reason="the self-check's photograph comes with scikit-image")
io = pytest.importorskip("skimage.io")


def test_draws_and_agrees(tmp_path, capsys):
    picture = tmp_path / "check.png"
    assert self_check.main(["--no-timing", "--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "CPU kernel:" in printed
    assert "CUDA kernel:" in printed
    assert printed.count(" ok\n") == len(self_check.usable_backends())
    pixels = io.imread(picture)
    assert pixels.shape[0] > 300
    assert pixels.std() > 20, "the picture is blank"


def test_disagreement_fails(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(self_check.BUDGET, "loss", -1.0)
    assert self_check.main(["--no-timing", "--out", str(tmp_path / "check.png")]) == 1
    assert "OUTSIDE THE BUDGET" in capsys.readouterr().out


def test_timing_names_what_it_timed(capsys, monkeypatch):
    monkeypatch.setattr(self_check, "SECONDS_PER_TIMING", 0.1)
    photo = self_check.photograph(None)
    self_check.time_training_step(photo, torch.device("cpu"), None)
    printed = capsys.readouterr().out
    assert "nn.L1Loss" in printed
    assert "PSPL, reference" in printed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no image"), "can't be read as an image"),
        (
            lambda path: io.imsave(path, torch.zeros(300, 300, dtype=torch.uint8).numpy(), check_contrast=False),
            "8-bit RGB",
        ),
        (
            lambda path: io.imsave(path, torch.zeros(20, 300, 3, dtype=torch.uint8).numpy(), check_contrast=False),
            "at least 192x192",
        ),
    ],
)
def test_bad_image_is_named(tmp_path, make, message):
    path = tmp_path / "image.png"
    make(path)
    with pytest.raises(SystemExit, match=message):
        self_check.main(["--no-timing", "--image", str(path)])


def test_unwritable_picture_is_named(tmp_path, capsys):
    assert self_check.main(["--no-timing", "--out", str(tmp_path / "missing" / "check.png")]) == 1
    assert "can't be written" in capsys.readouterr().out


def test_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "pspl_cuda", "--no-timing", "--out", str(tmp_path / "check.png")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert "Picture:" in result.stdout
