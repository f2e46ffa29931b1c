"""``python -m pspl_cuda`` as a user runs it."""

import json
import subprocess
import sys

import pytest
import torch

import pspl_cuda
from helpers.images import save_deep_rgb
from pspl_cuda import __main__ as self_check


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(self_check, "SECONDS", 0.1)


@pytest.fixture
def io():
    return pytest.importorskip("skimage.io", reason="the photograph comes with scikit-image")


def test_draws_and_agrees(io, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    picture = tmp_path / "check.png"
    assert self_check.main(["--out", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "CPU kernel:" in printed
    assert "CUDA kernel:" in printed
    assert printed.count(" ok\n") == len(self_check.runnable_backends())
    assert "nn.L1Loss" in printed
    assert "PSPL, reference" in printed
    pixels = io.imread(picture)
    assert pixels.shape[0] > 300
    assert pixels.std() > 20, "the picture is blank"


def test_quick_draws_and_times_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert self_check.main(["--quick"]) == 0
    assert "nn.L1Loss" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--quick"], ["--quick", "--json"]])
def test_a_backend_that_disagrees_fails(options, capsys, monkeypatch):
    original = self_check.pspl_loss

    def wrong(sr, hr, step, backend):
        return original(sr, hr, step, backend=backend) * (1 + 1e-4 * (sr.dtype == torch.float32))

    monkeypatch.setattr(self_check, "pspl_loss", wrong)
    assert self_check.main(options) == 1
    printed = capsys.readouterr().out
    if "--json" in options:
        agreement = json.loads(printed)["agreement"]
        assert [result["ok"] for result in agreement.values()] == [False] * len(agreement)
    else:
        assert "DISAGREES" in printed


def test_a_backend_that_raises_fails(capsys, monkeypatch):
    original = self_check.similarity_map

    def broken(sr, hr, backend):
        if sr.dtype == torch.float32:
            raise RuntimeError("no kernel image is available")
        return original(sr, hr, backend=backend)

    monkeypatch.setattr(self_check, "similarity_map", broken)
    assert self_check.main(["--quick"]) == 1
    assert "FAILED: no kernel image is available" in capsys.readouterr().out


def test_json_has_what_a_bug_report_needs(capsys):
    assert self_check.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    found = report["environment"]
    assert found["pspl_cuda"] == pspl_cuda.__version__
    assert found["torch"] == torch.__version__
    assert found["cpu"] == pspl_cuda.backend_info()["cpu"]
    assert report["agreement"].keys() == self_check.runnable_backends().keys()
    assert report["milliseconds"]["cpu"]["nn.L1Loss"] > 0


def test_runs_with_torch_alone(tmp_path, capsys, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "skimage"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    assert self_check.main([]) == 0
    printed = capsys.readouterr().out
    assert "a synthetic image (scikit-image is not installed)" in printed
    assert "No picture: matplotlib is not installed. Install it with pip install matplotlib." in printed
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="--image needs scikit-image"):
        self_check.main(["--image", "photo.png"])


def image_module():
    return pytest.importorskip("PIL.Image", reason="comes with scikit-image")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda io, path: path.write_bytes(b"no image"), "can't be read as an image"),
        (
            lambda io, path: io.imsave(path, torch.zeros(300, 300, dtype=torch.uint8).numpy(), check_contrast=False),
            "8-bit RGB",
        ),
        (
            lambda io, path: io.imsave(path, torch.zeros(20, 300, 3, dtype=torch.uint8).numpy(), check_contrast=False),
            "at least 192x192",
        ),
        # skimage reads both as arrays of uint8 with three or four channels.
        (lambda io, path: save_deep_rgb(path, 300, 300), "8-bit RGB, not CMYK or 16-bit"),
        (lambda io, path: image_module().new("CMYK", (300, 300)).save(path, "tiff"), "8-bit RGB, not CMYK or 16-bit"),
    ],
)
def test_bad_image_is_named(io, tmp_path, make, message):
    path = tmp_path / "image.png"
    make(io, path)
    with pytest.raises(SystemExit, match=message):
        self_check.main(["--quick", "--image", str(path)])


def test_unwritable_picture_is_named(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    assert self_check.main(["--out", str(tmp_path / "missing" / "check.png")]) == 1
    assert "can't be written" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["noext", "check.xyz", "."])
def test_a_picture_of_no_known_format_is_refused_before_the_check(tmp_path, capsys, name):
    """matplotlib would write noext.png."""
    pytest.importorskip("matplotlib", reason="draws with matplotlib")
    with pytest.raises(SystemExit, match=r"--out .* expected a file that ends in .*png"):
        self_check.main(["--out", str(tmp_path / name)])
    assert not capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_an_interrupt_ends_with_a_sentence(capsys, monkeypatch):
    def interrupted(images):
        raise KeyboardInterrupt

    monkeypatch.setattr(self_check, "compare", interrupted)
    assert self_check.main(["--quick"]) == 130
    assert capsys.readouterr().err == "\nInterrupted.\n"


def test_runs_as_a_module(tmp_path):
    command = [sys.executable, "-m", "pspl_cuda", "--quick", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["environment"]["pspl_cuda"] == pspl_cuda.__version__
