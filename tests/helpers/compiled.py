"""Compiles the C++ and CUDA sources that tests need, and keeps the results in the user's cache folder.

An object is stored under a hash of all that it depends on: compiler, flags, source, and the headers that it includes.
A fresh clone, a second process and a planted copy of the sources find what was compiled before. ``PSPL_TEST_CACHE`` names
another folder; files that no run has used for 30 days are removed.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROCESSES = min(len(os.sched_getaffinity(0)), 8) if hasattr(os, "sched_getaffinity") else 2
_KEEP_DAYS = 30
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*[<"]([^>"\n]+)[>"]', re.MULTILINE)


class CompileError(RuntimeError):
    """The message is the compiler's output."""


@functools.cache
def cache_folder() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("PSPL_TEST_CACHE") or Path(caches, "pspl_cuda", "tests"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that can't be written to
        return Path(tempfile.mkdtemp(prefix="pspl_cuda-tests-"))
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > _KEEP_DAYS * 86400:
            path.unlink(missing_ok=True)
    return folder


def compile_sources(
    compiler: Sequence[str],
    flags: Sequence[str],
    sources: Iterable[Path],
    *,
    include_dirs: Sequence[Path] = (),
    system_dirs: Sequence[Path] = (),
    first: Sequence[Path] = (),
    own_flags: dict[str, list[str]] | None = None,
) -> dict[str, Path]:
    """The objects of ``sources``, by the sources' names without suffix.

    ``include_dirs`` and ``system_dirs`` become -I and -isystem; ``first`` are headers that are included before each source.
    ``own_flags`` are additional flags by file name. What the compiler prints is kept beside the object, with the suffix ``.log``.

    Raises CompileError.
    """
    folders = [part for folder in include_dirs for part in ("-I", folder)]
    folders += [part for folder in system_dirs for part in ("-isystem", folder)]
    folders += [part for header in first for part in ("-include", header)]
    wanted = {}
    for source in sources:
        mine = [*flags, *(own_flags or {}).get(source.name, [])]
        identity = _identity(*compiler, *(flag for flag in mine if flag == "-march=native"))
        key = _hash([identity, *mine], _dependencies([*first, source], [*include_dirs, *system_dirs]))
        language = ["-x", "c++"] if source.suffix == ".cu" and Path(compiler[0]).name != "nvcc" else []
        wanted[source.stem] = f"{key}.o", [*compiler, *mine, *folders, *language, "-c", source]
    if missing := sum(not (cache_folder() / name).exists() for name, _ in wanted.values()):
        print(f"compiling {missing} of {len(wanted)} files with {' '.join(compiler)} ...", file=sys.stderr, flush=True)
    with ThreadPoolExecutor(PROCESSES) as pool:
        objects = pool.map(_make, *zip(*wanted.values(), strict=True))
        return dict(zip(wanted, objects, strict=True))


def link(compiler: Sequence[str], flags: Sequence[str], objects: Iterable[Path], suffix: str = "") -> Path:
    """The program or library of ``objects`` that compile_sources returned. Raises CompileError."""
    objects = list(objects)
    key = _hash([_identity(*compiler), *flags, suffix, *(path.name for path in objects)], [])
    return _make(key + suffix, [*compiler, *flags, *objects])


def _hash(texts: Iterable[str], files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for part in [
        *map(str.encode, texts),
        *(part for file in files for part in (file.name.encode(), file.read_bytes())),
    ]:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def _dependencies(files: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
    """``files`` and what they include from their own folders and ``folders``; the compiler's version stands for the rest."""
    found = dict.fromkeys(files)
    queue = list(files)
    while queue:
        file = queue.pop()
        for name in _INCLUDE.findall(file.read_bytes()):
            candidates = (Path(os.path.normpath(folder / os.fsdecode(name))) for folder in (file.parent, *folders))
            header = next(filter(Path.is_file, candidates), None)
            if header is not None and header not in found:
                found[header] = None
                queue.append(header)
    return list(found)


@functools.cache
def _identity(*command: str) -> str:
    """The compiler's version, and what -march=native means on this processor."""
    question = ["-E", "-v", "-x", "c++", os.devnull] if "-march=native" in command else ["--version"]
    result = subprocess.run([*command, *question], capture_output=True, text=True)
    return result.stderr if "-march=native" in command else result.stdout


def _make(name: str, command: list) -> Path:
    """The stored file of this name; unless it exists, ``command -o file`` makes it."""
    made, unfinished, log = (cache_folder() / part for part in (name, f"{name}.new", f"{Path(name).stem}.log"))
    import fcntl  # Windows has none, and conftest.py imports this file

    # Other processes may want it at the same time.
    with open(cache_folder() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            result = subprocess.run(
                [*map(str, command), "-o", str(unfinished)], capture_output=True, text=True, errors="replace"
            )
            if result.returncode != 0:
                raise CompileError((result.stdout + result.stderr)[-6000:])
            log.write_text(result.stdout + result.stderr)
            unfinished.replace(made)
    for used in (made, log):
        used.touch()
    return made
