"""Files of the project that must agree with each other."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def read(path: str) -> str:
    if not (ROOT / path).exists():
        pytest.skip(f"{path} is in the repository only")
    return (ROOT / path).read_text()


def test_pre_commit_has_the_linters_at_the_same_versions():
    pinned = re.search(r"^lint = \[(.+)\]$", PYPROJECT, re.MULTILINE).group(1)
    hooks = set(re.findall(r"additional_dependencies: \[(.+)\]", read(".pre-commit-config.yaml")))
    assert hooks
    assert hooks <= set(re.findall(r'"(.+?)"', pinned))


def test_version_is_repeated_correctly():
    version = re.search(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE).group(1)
    assert f"\nversion: {version}\n" in read("CITATION.cff")
    assert f"  version = {{{version}}},\n" in read("README.md")
    assert re.search(rf"^## ({re.escape(version)}|Unreleased)\b", read("CHANGELOG.md"), re.MULTILINE)


def test_ci_installs_the_tools_of_the_deep_session():
    tools = set(
        re.findall(r'"(.+?)"', re.search(r"^DEEP_TOOLS = \((.+)\)$", read("noxfile.py"), re.MULTILINE).group(1))
    )
    (line,) = re.findall(r"^pip install --quiet (clang-tidy.*)$", read(".ci/run"), re.MULTILINE)
    assert set(line.replace('"', "").split()) == tools


def test_nightly_tests_the_versions_of_torch():
    nox = dict(re.findall(r'^(TORCH\w*) = "(.+?)"', read("noxfile.py"), re.MULTILINE))
    stable = re.search(r"^STABLE_TORCH = \((\d+), (\d+)\)$", read("pspl_cuda/_build.py"), re.MULTILINE).groups()
    nox["TORCH_STABLE"] = "{}.{}.0".format(*stable)
    listed = re.search(r"^TORCH_VERSIONS = \((.+)\)$", read("noxfile.py"), re.MULTILINE).group(1)
    versions = [nox.get(name, name.strip('"')) for name in listed.split(", ")]
    assert f"version: {json.dumps(versions)}\n" in read(".github/workflows/nightly.yml")


def test_workflows_run_sessions_that_exist():
    noxfile = read("noxfile.py")
    sessions = set(re.findall(r"^def (\w+)\(session: nox.Session", noxfile, re.MULTILINE))
    read(".github/workflows/nightly.yml")
    workflows = "".join(path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml"))
    for command in re.findall(r"nox -s (.+)", workflows):
        assert {re.match(r"\w+", name.strip('"')).group() for name in re.findall(r'"[^"]+"|\w+', command)} <= sessions
    cases = re.findall(r"^          - (\w+)$", workflows, re.MULTILINE)
    cases += re.findall(r"install\(case='(\w+)'\)", read(".ci/run"))
    assert len(cases) > 5
    assert {f"install_{case}" for case in cases} <= sessions
