"""README and docs are true: their Python blocks run, their commands and options exist, their links resolve.

The Python blocks of a page run in order in one namespace, in an empty folder. Those of README run separately, as users copy
them. Code that cannot run here is in ```py and ```text blocks. tests/frameworks runs those of docs/frameworks.md.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pspl_cuda

ROOT = Path(__file__).parents[2]
FOLDERS = (".", "docs", "docs/dev", "examples", "experiments", "benchmarks/results")
PAGES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """``(line number, text)`` of the page's code blocks."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start()) + 2, match[1]) for match in found]


def without_blocks(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def execute(page, line, source, names):
    # Empty lines before it, so that an error names the line of the page.
    exec(compile("\n" * (line - 1) + source, name_of(page), "exec"), names)


README = ROOT / "README.md"


@pytest.mark.parametrize("index", range(len(blocks(README, "python"))))
def test_readme_block_runs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    execute(README, *blocks(README, "python")[index], {})


def outputs():
    """The Python blocks whose output the page shows: ``(page, line, source, output)``."""
    pattern = r"^```python\n(.*?)^```\n\nprints\n\n```text\n(.*?)^```"
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
            yield page, text.count("\n", 0, match.start()) + 2, match[1], match[2]


def test_readme_shows_what_its_example_prints():
    assert any(page == README for page, *_ in outputs())


@pytest.mark.parametrize(
    ("page", "line", "source", "output"), list(outputs()), ids=lambda value: str(value)[-12:].strip()
)
def test_a_shown_output_is_what_the_block_prints(page, line, source, output, tmp_path, monkeypatch, capsys):
    """The words agree, and the numbers to 5 %: processors round differently, and the loop amplifies that."""
    monkeypatch.chdir(tmp_path)
    execute(page, line, source, {})
    shown, printed = output.split(), capsys.readouterr().out.split()
    number = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?")
    assert [number.sub("0", word) for word in printed] == [number.sub("0", word) for word in shown]
    for one, other in zip(printed, shown, strict=True):
        if found := number.search(one):
            assert float(found[0]) == pytest.approx(float(number.search(other)[0]), rel=0.05, abs=0.02)


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


def test_the_repository_has_one_address():
    """Pages name the repository as pyproject.toml does, where a release fills in the owner."""
    address = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"git clone {address}.git\n" in README.read_text()
    for page in PAGES:
        for named in re.findall(r"https://github\.com/[\w-]+/pspl_cuda", page.read_text()):
            assert named == address, f"{name_of(page)} names {named}"


def commands(page):
    """The bash blocks and the inline code of a page, one command or more a line."""
    bash = [source.replace("\\\n", " ") for _, source in blocks(page, "bash")]
    return "\n".join([*bash, *re.findall(r"`([^`\n]+)`", without_blocks(page))])


@functools.cache
def help_of(*program):
    """What ``python program --help`` prints."""
    environment = os.environ | {"COLUMNS": "200"}
    command = [sys.executable, *program, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert result.returncode == 0, f"{' '.join(program)} --help fails: {result.stderr}"
    return result.stdout


PROGRAM = re.compile(r"\b(?:python3?|torchrun\b[^\n]*?) (-m [\w.]+|[\w/]+\.py)([^\n|;&]*)")


@pytest.mark.parametrize("page", [page for page in PAGES if PROGRAM.search(commands(page))], ids=name_of)
def test_programs_and_their_options_exist(page):
    for program, arguments in PROGRAM.findall(commands(page)):
        if program in ("-m pip", "-m pytest", "-m venv", "-m build"):
            continue
        path = ROOT / (program[3:].replace(".", "/") if program.startswith("-m ") else program)
        assert path.exists() or path.with_suffix(".py").exists(), f"{program} is not in this repository"
        for option in re.findall(r" (--[\w-]+)", arguments):
            known = re.search(rf"{option}(?![\w-])", help_of(*program.split()))
            assert known, f"python {program} has no option {option}"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (r"(?:\.|pspl_cuda)\[([\w,]+)\]", r"^(\w+) = \["),  # extras
        (r"\bnox -s ((?:[a-z_]+ ?)+)", r"^def (\w+)\(session"),
    ],
    ids=["extras", "nox sessions"],
)
def test_names_exist(pattern, names):
    sources = (ROOT / "pyproject.toml").read_text() + (ROOT / "noxfile.py").read_text()
    existing = set(re.findall(names, sources, re.MULTILINE))
    used = {
        name for page in PAGES for found in re.findall(pattern, commands(page)) for name in re.split("[ ,]+", found)
    }
    assert len(used) > 3
    assert used - {""} <= existing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_pytest_exist(page):
    for path in re.findall(r"\bpytest(?: -\S+)* ([\w./]+/[\w./]+)", commands(page)):
        assert (ROOT / path).exists(), f"{path} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_sources_exist(page):
    """Paths such as `csrc/pspl_math.h` and, in design.md, `cuda/kernels.h`."""
    if page.name == "CHANGELOG.md":
        pytest.skip("it names files of other versions")
    for path in re.findall(
        r"`((?:csrc|pspl_cuda|bindings|cuda|cpu|tests|tools|build_tools)/[\w./]*\.\w+)`", without_blocks(page)
    ):
        assert (ROOT / path).exists() or (ROOT / "csrc" / path).exists(), f"{path} does not exist"


def test_the_calls_of_a_step_exist():
    """The block of calls in design.md names functions and files of the sources."""
    text = (ROOT / "docs" / "dev" / "design.md").read_text()
    (block,) = re.findall(r"^```text\n(forward   pspl_loss.*?)^```", text, re.MULTILINE | re.DOTALL)
    paths = [path for folder in ("pspl_cuda", "csrc") for path in (ROOT / folder).rglob("*.*") if path.suffix != ".so"]
    sources = "".join(path.read_text() for path in paths if path.suffix in (".py", ".h", ".cuh", ".cpp", ".cu"))
    for name in re.findall(r"\w+", re.sub(r"torch's dispatcher|[\w/]+\.\w+(?=,|$)", "", block, flags=re.MULTILINE)):
        assert re.search(rf"\b{name}\b", sources), f"design.md names {name}, which is nowhere in the sources"
    for name in re.findall(r"[\w/]+\.(?:py|h|cuh|cpp|cu)\b", block):
        assert any(path.as_posix().endswith("/" + name) for path in paths), f"design.md names {name}"


def test_where_to_change_names_what_is_there():
    """Each row of the table in CONTRIBUTING names files, and after a colon what they define."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (section,) = re.findall(r"^## Where would I change.*?(?=^## )", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\|[^|]*\| (`.*) \|$", section, re.MULTILINE)
    assert len(rows) > 10
    for part in (part for row in rows for part in row.split("; ")):
        file, *names = re.findall(r"`([^`]+)`", part)
        if ":" in part:
            source = (ROOT / file).read_text()
            for name in names:
                assert re.search(rf"\b{name}\b", source), f"CONTRIBUTING names {name}, which {file} lacks"


def anchors(page):
    """GitHub's names of the page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`\n]*`", "", without_blocks(page))
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
