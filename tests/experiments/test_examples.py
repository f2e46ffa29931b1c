"""examples/: both loops run, and their schedule ends where they say."""

from __future__ import annotations

import re
import sys

import pytest
import torch

pytest.importorskip("skimage", reason="examples/ needs pip install 'pspl_cuda[examples]'")

from helpers.experiments import ROOT


@pytest.fixture(autouse=True)
def _examples(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    for name in ("minimal", "with_lightning"):
        sys.modules.pop(name, None)


def test_minimal_loop(capsys):
    import minimal

    criterion = minimal.main(iterations=20)
    assert criterion.iteration == criterion.total_iterations == 20
    assert criterion.step == pytest.approx(60.8)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    first, last = (float(line.split("PSNR ")[1].split()[0]) for line in (lines[0], lines[-1]))
    assert 5 < first < 60
    assert 5 < last < 60


@pytest.mark.deep
def test_minimal_loop_prints_what_the_page_shows(capsys):
    """To 5 %: processors round differently, and the training amplifies that."""
    import minimal

    minimal.main()
    shown = re.search(r"```text\n(.*?)```", (ROOT / "examples" / "README.md").read_text(), re.DOTALL)[1]
    printed = capsys.readouterr().out
    number = r"\d[\d.]*"
    assert re.sub(number, "0", printed) == re.sub(number, "0", shown)
    numbers = [list(map(float, re.findall(number, text))) for text in (printed, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.05)


def test_lightning():
    pytest.importorskip("lightning", reason="examples/with_lightning.py needs pip install lightning")
    import with_lightning

    module = with_lightning.main(iterations=4, logger=False, enable_checkpointing=False, accelerator="cpu")
    assert module.criterion.iteration == module.criterion.total_iterations == 4
    assert module.criterion.step == pytest.approx(60.8)
