"""experiments/programme.py: a queue that can be stopped, and continued by the same command."""

from __future__ import annotations

import fcntl

import pytest

pytest.importorskip("lightning", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("skimage", reason="experiments/ needs pip install 'pspl_cuda[examples]'")
pytest.importorskip("tensorboard", reason="experiments/ needs pip install 'pspl_cuda[examples]'")

import programme
from helpers.experiments import TINY, dataset, settings_of
from training.loop import CHECKPOINT, load_checkpoint


def test_every_job_is_a_run():
    """Their options are valid, no two share a folder, and a run that another begins with comes before it and has a plain arm."""
    before = {}
    for job in programme.JOBS:
        settings = settings_of(*job.options.split())
        assert before.setdefault((job.name, job.seed), settings) is settings
        if job.start:
            first = before[job.start, job.seed]
            assert (first.model, first.scale) == (settings.model, settings.scale)
            assert "plain" in first.arms


def test_queue_continues(tmp_path, monkeypatch, capsys):
    for name in ("train291", "Set5"):
        dataset(tmp_path / name)
    options = " ".join(TINY) + " --arms plain"
    jobs = [
        programme.Job("first", 3, options),
        programme.Job("broken", 0, "--model foo"),
        programme.Job("taken", 0, options),
        programme.Job("second", 3, options, start="first"),
    ]
    monkeypatch.setattr(programme, "JOBS", jobs)
    monkeypatch.setattr("os.nice", lambda step: 0)  # it could not be taken back
    arguments = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--jobs", "1"]
    (tmp_path / "runs" / "taken" / "0").mkdir(parents=True)
    with (tmp_path / "runs" / "taken" / "0" / "log.txt").open("w") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # as another queue does while it trains
        programme.main(arguments)
    state = load_checkpoint(tmp_path / "runs" / "second" / "3" / CHECKPOINT)["settings"]
    assert (state["seed"], state["pretrained"]) == (3, [str(tmp_path / "runs" / "first" / "3"), "plain"])
    assert "--model: invalid choice: 'foo'" in (tmp_path / "runs" / "broken" / "0" / "log.txt").read_text()
    capsys.readouterr()
    programme.main([*arguments, "--list"])
    states = ["first/3: done", "broken/0: not begun", "taken/0: not begun", "second/3: done"]
    assert capsys.readouterr().out.splitlines() == states

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob(CHECKPOINT)}
    programme.main(arguments)
    taken = tmp_path / "runs" / "taken" / "0" / CHECKPOINT
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob(CHECKPOINT) if path != taken} == stamps
    assert taken.exists()
