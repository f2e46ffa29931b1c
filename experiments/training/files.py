"""Folders and files to write: there whole, or not at all, or one sentence."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes ``path``'s place when all of it is on the disk.

    Raises:
        SystemExit: the file can't be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise SystemExit(f"{path} can't be written: {error.strerror or error}.") from None
    finally:
        part.unlink(missing_ok=True)


def writable_folder(path: Path) -> Path:
    """``path``, made if it is missing.

    Raises:
        SystemExit: it is no folder, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise SystemExit(f"--out {path} can't be written to ({error.strerror}); expected a folder.") from None
