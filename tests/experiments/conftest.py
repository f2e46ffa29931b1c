from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The work is tiny, and threads that wait for each other on a busy machine are not."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Decoded images stay out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Three small images."""
    from helpers.experiments import dataset

    return dataset(tmp_path / "data")


@pytest.fixture
def file_size_limit():
    """A function that lets files grow to so many bytes only, as a disk that is full: writing fails, the file stays cut."""
    resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
