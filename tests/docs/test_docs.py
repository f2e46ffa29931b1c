"""README and docs are true: their Python blocks run, their commands and options exist, their links resolve.

The Python blocks of a page run in order in one namespace, in an empty folder. Those of README run separately, as users copy
them. Code that cannot run here is in ```text blocks.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pspl_cuda

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "docs/dev", "examples", "experiments", "benchmarks/results")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
# Programs whose options are not checked.
KNOWN_PROGRAMS = {"cd", "git", "ruff", "clang-format", "apt-get", "nvidia-smi", "nvcc", "uv", "source", "export"}
KNOWN_MODULES = {"pip", "pytest", "venv", "build"}


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """``(line number, text)`` of the page's code blocks."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match[1]) for match in found]


def execute(page, line, source, names):
    # Empty lines before it, so that an error names the line of the page.
    exec(compile("\n" * (line - 1) + source, name_of(page), "exec"), names)


README = ROOT / "README.md"


@pytest.mark.parametrize("index", range(len(blocks(README, "python"))))
def test_readme_block_runs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(README, *blocks(README, "python")[index], {})


@pytest.mark.parametrize("page", [page for page in PAGES if page != README and blocks(page, "python")], ids=name_of)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for line, source in blocks(page, "python"):
        execute(page, line, source, names)


def test_readme_formula_is_the_loss():
    """README's PyTorch formula agrees with the loss up to the error of its float32 variances."""
    names: dict = {}
    execute(README, *next(block for block in blocks(README, "python") if "def pspl_l1" in block[1]), names)
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(1, 3, 24, 31, generator=generator)
    sr = (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
    torch.testing.assert_close(names["pspl_l1"](sr, hr, 1.5), pspl_cuda.pspl_loss(sr, hr, 1.5), rtol=1e-4, atol=0)


def commands(page):
    """The shell commands of the page, each a list of words: the lines of its bash blocks, and inline ``python``, ``pip``,
    ``pytest`` and ``nox`` commands."""
    lines = []
    for _, source in blocks(page, "bash"):
        lines += source.replace("\\\n", " ").splitlines()
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    lines += re.findall(r"(?<!`)`((?:[A-Z_]+=\S+ )*(?:python|pip|pytest|nox) [^`]*)`(?!`)", text)
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "||", ";", "|")), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.match(r"[A-Z_]+=", command[0]):
                command = command[1:]
            if command:
                found.append(command)
    return found


def extras():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = ", section, re.MULTILINE))


def sessions():
    return set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.MULTILINE))


@functools.cache
def help_of(*program):
    """What ``python program --help`` prints."""
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, *program, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 0, f"{' '.join(program)} --help fails: {result.stderr}"
    return result.stdout


def check_python(words):
    if words[0] == "-c":
        compile(words[1], "python -c", "exec")
    elif words[0] == "-m" and words[1] in KNOWN_MODULES:
        check_tool(words[1:])
    else:
        size = 2 if words[0] == "-m" else 1
        program, options = words[:size], words[size:]
        ours = (ROOT / program[-1].replace(".", "/")).exists() or (
            ROOT / f"{program[-1].replace('.', '/')}.py"
        ).exists()
        assert ours if size == 2 else (ROOT / program[0]).is_file(), f"{program[-1]} is not in this repository"
        for option in (word.split("=")[0] for word in options if word.startswith("--")):
            known = re.search(rf"{re.escape(option)}(?![\w-])", help_of(*program))
            assert known, f"python {' '.join(program)} has no option {option}"


def check_tool(words):
    if words[0] == "pytest":
        for word in words[1:]:
            if "/" in word:
                assert (ROOT / word.split("::")[0]).exists(), f"{word} does not exist"
    for word in words:
        wanted = re.search(r"^(?:\.|pspl_cuda|.*/dist/\S+)\[([\w,]+)\]$", word)
        if wanted:
            missing = set(wanted[1].split(",")) - extras()
            assert not missing, f"pyproject.toml has no extra {missing}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_exist(page):
    for words in commands(page):
        program = words[0]
        if program in ("python", "python3"):
            check_python(words[1:])
        elif program == "torchrun":
            script = next(
                i for i, word in enumerate(words) if word.endswith(".py")
            )  # before it, torchrun's own options
            check_python(words[script:])
        elif program in ("pip", "pytest"):
            check_tool(words)
        elif program == "nox":
            missing = {word for word in words[1:] if not word.startswith("-")} - sessions()
            assert not missing, f"noxfile.py has no session {missing}"
        else:
            assert program in KNOWN_PROGRAMS, (
                f"{name_of(page)} uses {program!r}: teach tests/docs/test_docs.py what that is"
            )


def anchors(page):
    """GitHub's names of the page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{target} leads nowhere"
        assert ROOT in linked.parents, f"{target} leads out of the repository"
        if anchor:
            assert anchor in anchors(linked), f"{linked.name} has no heading for #{anchor}"


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, f"docs/README.md does not list {name}"


def test_every_page_is_in_the_built_site():
    toctree = (ROOT / "docs" / "index.rst").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "README" or f"   {name}\n" in toctree, f"docs/index.rst does not list {name}"


def test_environment_variables_exist():
    """A PSPL_... that a page names is read somewhere."""
    code = ""
    for pattern in ("setup.py", "build_tools/*", "pspl_cuda/**/*.py", "csrc/**/*", "tests/**/*.py"):
        code += "".join(path.read_text() for path in ROOT.glob(pattern) if path.suffix in (".py", ".h", ".cpp", ".cu"))
    for page in PAGES:
        for name in set(re.findall(r"\bPSPL_[A-Z][A-Z_]+\b", page.read_text())):
            assert re.search(rf"\b{name}\b", code), f"{name_of(page)} names {name}, which nothing reads"
