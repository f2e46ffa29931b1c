"""What tests compile is compiled once (helpers/compiled.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers import compiled

COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "version 1" && exit
echo "$*" >> "{log}"
case "$*" in *broken*) echo "error: planted" >&2; exit 1 ;; esac
while [ "$1" != -o ]; do shift; done
echo object > "$2"
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path / "cache")
    folder = tmp_path / "sources"
    (folder / "include").mkdir(parents=True)
    (folder / "a.cpp").write_text('#include "near.h"\n#include <far.h>\n')
    (folder / "near.h").write_text("// near\n")
    (folder / "include" / "far.h").write_text('  #  include "farther.h"\n')
    (folder / "include" / "farther.h").write_text("// farther\n")
    return folder


@pytest.fixture
def calls(tmp_path):
    log = tmp_path / "calls"
    log.touch()
    (tmp_path / "compiler").write_text(COMPILER.format(log=log))
    (tmp_path / "compiler").chmod(0o755)
    return lambda: len(log.read_text().splitlines())


def compile_again(folder, name="a.cpp", flags=()):
    compiler = [str(folder.parent / "compiler")]
    found = compiled.compile_sources(compiler, flags, [folder / name], include_dirs=[folder / "include"])
    return found[Path(name).stem]


def test_an_object_is_compiled_once_wherever_its_sources_are(sources, calls, tmp_path):
    first = compile_again(sources)
    assert first.read_text() == "object\n"
    assert compile_again(sources) == first
    shutil.copytree(sources, tmp_path / "clone")
    assert compile_again(tmp_path / "clone") == first
    assert calls() == 1


@pytest.mark.parametrize("changed", ["a.cpp", "near.h", "include/far.h", "include/farther.h"])
def test_a_change_compiles_again(sources, calls, changed):
    first = compile_again(sources)
    (sources / changed).write_text((sources / changed).read_text() + "// changed\n")
    assert compile_again(sources) != first
    assert calls() == 2


def test_flags_and_compiler_compile_again(sources, calls):
    objects = {compile_again(sources), compile_again(sources, flags=["-O1"])}
    compiler = sources.parent / "compiler"
    compiler.write_text(compiler.read_text().replace("version 1", "version 2"))
    compiled._identity.cache_clear()
    objects.add(compile_again(sources))
    assert len(objects) == calls() == 3


def test_a_failure_is_not_kept(sources, calls):
    (sources / "broken.cpp").touch()
    for count in (1, 2):
        with pytest.raises(compiled.CompileError, match="error: planted"):
            compile_again(sources, "broken.cpp")
        assert calls() == count
