"""What the build decides, and what the package reports about it."""

import importlib
import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pspl_cuda
from pspl_cuda._build import fingerprint

ROOT = Path(__file__).parents[2]
NEEDS_SOURCES = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
NEEDS_SETUPTOOLS = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True, check=False).returncode != 0,
    reason="setuptools is not installed",
)


# Variables that change a build; the tests must not inherit them.
STEERING = (
    *(
        "PSPL_CPU",
        "PSPL_CUDA",
        "TORCH_CUDA_ARCH_LIST",
        "CUDA_HOME",
        "CUDA_PATH",
        "PIP_BUILD_TRACKER",
        "PIP_REQ_TRACKER",
    ),
    *("CXX", "CC", "CFLAGS", "CXXFLAGS", "LDFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"),
)


def run_setup(*arguments, folder=ROOT, **environment):
    """Run setup.py: (exit code, output)."""
    inherited = {name: value for name, value in os.environ.items() if name not in STEERING}
    result = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def build_tools(monkeypatch):
    """The modules of setup.py, without the caller's settings."""
    pytest.importorskip("setuptools")  # it adds to sys.path, which monkeypatch restores
    for name in STEERING:
        # Set before it is deleted: the fixture then also undoes what the code under test sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(ROOT / "build_tools"))
    names = ("installed_torch", "compilers", "decisions", "backend")
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def program(path: Path, script: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def fake_torch(build_tools, version="2.14.1+cu130", cuda="13.0", hip=None):
    return build_tools.installed_torch.Torch(version, cuda, hip, Path("site-packages/torch"))


def fake_toolkit(home: Path, version="13.0", compiles="exit 0", header=True) -> Path:
    """A CUDA toolkit as the build sees it: an nvcc that prints what the build reads, and a header."""
    answers = f"""case "$*" in
*--dryrun*) echo '#$ TOP={home}/bin/..' >&2; echo '#$ INCLUDES="-I{home}/bin/../include"  ' >&2
  echo '#$ LIBRARIES=  "-L{home}/bin/..//lib64"' >&2 ;;
*--version*) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;
*--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\nsm_120\\n' ;;
*) {compiles} ;;
esac"""
    program(home / "bin" / "nvcc", answers)
    if header:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime_api.h").touch()
    return home


def only_these(monkeypatch, *folders):
    """Hide all programs but those in ``folders`` and the shell's, and /usr/local/cuda."""
    for name in ("sh", "cat", "printf", "echo"):
        link = folders[0] / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    real = shutil.which

    def which(command, path=None):
        return None if path and path.startswith("/usr/local/cuda") else real(command, path=path)

    monkeypatch.setattr("shutil.which", which)


# What an isolated build of pip or uv sees: no site-packages, and none of the installer's PYTHONPATH.
ISOLATED = "import sys; sys.path[:] = [path for path in sys.path if not path.endswith('-packages')]"
FIND = (
    "import sys; sys.path.insert(0, 'build_tools'); from installed_torch import find_torch; found = find_torch(); "
    "print(found and [found.version, found.cuda, 'torch' in sys.modules])"
)


def find_in_isolation(tmp_path, code=FIND, **environment):
    """The output of ``code`` in an isolated build of an installer, which runs with the variables of ``environment``."""
    (tmp_path / "sitecustomize.py").write_text(ISOLATED)
    start = (
        f"import os, subprocess, sys; child = {{**os.environ, 'PYTHONPATH': {str(tmp_path)!r}}}; "
        f"sys.exit(subprocess.run([{sys.executable!r}, '-c', {code!r}], env=child).returncode)"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in (*STEERING, "VIRTUAL_ENV")}
    return subprocess.run(
        [sys.executable, "-c", start],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


FOUND = f"{[torch.__version__, torch.version.cuda, False]}\n"


@NEEDS_SOURCES
@pytest.mark.parametrize("tracker", ["PIP_BUILD_TRACKER", "PIP_REQ_TRACKER"])
def test_isolated_build_sees_the_installed_torch(tracker, tmp_path):
    """pip hides site-packages with a sitecustomize on PYTHONPATH; the build must still find torch there."""
    assert find_in_isolation(tmp_path) == "None\n"
    assert find_in_isolation(tmp_path, **{tracker: "x"}) == FOUND
    imports = f"{FIND}; import torch; print(torch.__version__)"
    assert find_in_isolation(tmp_path, imports, **{tracker: "x"}) == f"{FOUND}{torch.__version__}\n"


@NEEDS_SOURCES
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the environment of another process")
def test_isolated_build_sees_a_torch_on_pythonpath(tmp_path):
    """Clusters load torch as a module, and pip does not hand down its PYTHONPATH."""
    package = tmp_path / "modules" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "version.py").write_text("__version__ = '2.99.0'\ncuda = None\n")
    printed = find_in_isolation(tmp_path, PIP_BUILD_TRACKER="x", PYTHONPATH=str(package.parent))
    assert printed == "['2.99.0', None, False]\n"


@NEEDS_SOURCES
def test_python_that_prints_at_its_start_and_end(tmp_path):
    """A sitecustomize or a .pth file may print."""
    noisy = program(tmp_path / "python", f'echo hello; {shlex.quote(sys.executable)} "$@"; echo goodbye')
    code = f"import sys; sys.executable = {noisy!r}; {FIND}"
    assert find_in_isolation(tmp_path, code, PIP_BUILD_TRACKER="x") == FOUND


def uv(tmp_path, *words):
    """A program of that name, which starts an isolated build as uv does."""
    (tmp_path / "sitecustomize.py").write_text(ISOLATED)
    build = f"PYTHONPATH={shlex.quote(str(tmp_path))} {shlex.quote(sys.executable)} -c {shlex.quote(FIND)}"
    copy = tmp_path / "uv"
    shutil.copy(shutil.which("bash"), copy)
    script = program(tmp_path / "script", f"{build}\nexit $?")
    return [str(copy), script, *words]


@NEEDS_SOURCES
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the environment of another process")
@pytest.mark.parametrize(
    ("words", "variables", "found"),
    [
        ("pip install .", {"VIRTUAL_ENV": sys.prefix}, True),
        ("pip install .", {"CONDA_PREFIX": sys.prefix}, True),
        ("pip install .", {"VIRTUAL_ENV": "/no/such/folder"}, False),
        ("pip install --python 3.12 .", {"VIRTUAL_ENV": sys.prefix}, False),
        ("pip install --target folder .", {"VIRTUAL_ENV": sys.prefix}, False),
        ("pip install .", {"VIRTUAL_ENV": sys.prefix, "UV_PYTHON": "3.12"}, False),
        # For the project's environment, whatever is active.
        ("sync", {"VIRTUAL_ENV": sys.prefix}, False),
    ],
)
def test_uv_pip_builds_against_the_active_environment(words, variables, found, tmp_path):
    inherited = {name: value for name, value in os.environ.items() if name not in (*STEERING, "VIRTUAL_ENV")}
    command = uv(tmp_path, *words.split())
    result = subprocess.run(
        command, cwd=ROOT, env={**inherited, **variables}, capture_output=True, text=True, check=True
    )
    assert result.stdout == (FOUND if found else "None\n")


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_old_setuptools_is_named(build_tools, monkeypatch):
    """With --no-build-isolation it is the one of the environment, and says nothing of itself."""
    import setuptools

    monkeypatch.setattr(setuptools, "__version__", "68.1.2")
    with pytest.raises(SystemExit, match=r"setuptools is 68\.1\.2; .* pip install 'setuptools>=77'"):
        runpy.run_path(build_tools.backend.__file__)


@NEEDS_SOURCES
@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_uv_and_build_are_told_to_build_without_isolation(hook, build_tools, monkeypatch):
    """They do not say for which Python they build, so the torch to build against is unknown."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    with pytest.raises(SystemExit, match=r"(?s)none in this build environment.*--no-build-isolation"):
        getattr(build_tools.backend, hook)()
    # pip installs torch into its build environment.
    monkeypatch.setenv("PIP_BUILD_TRACKER", "x")
    monkeypatch.setattr(build_tools.installed_torch, "_search_path", lambda python, environment: [])
    monkeypatch.setenv("PSPL_CUDA", "off")
    assert build_tools.installed_torch.REQUIREMENT in getattr(build_tools.backend, hook)()


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("version", "cuda", "toolkit_here", "environment", "expected"),
    [
        ("2.13.0+cpu", None, False, {}, []),
        ("2.14.1+cu130", "13.0", True, {}, []),
        ("2.14.1+cu130", "13.0", False, {}, ["toolkit==13.0.*"]),
        ("2.15.0+cu132", "13.2", False, {}, ["toolkit==13.2.*"]),
        ("2.14.1+cu126", "12.6", True, {}, []),
        # PyPI has no nvcc for CUDA 12.
        ("2.10.0+cu128", "12.8", False, {}, ["toolkit==13.0.*"]),
        ("2.14.1+cu130", "13.0", False, {"PSPL_CUDA": "off"}, []),
        # The CUDA kernels do not need the CPU kernels.
        ("2.14.1+cu130", "13.0", False, {"PSPL_CPU": "off"}, ["toolkit==13.0.*"]),
        ("2.14.1+cu130", "13.0", False, {"CUDA_HOME": "/opt/cuda"}, []),
        ("2.14.1+cu130", "13.0", False, {"CXX": "/no/such/compiler"}, []),
        (None, None, True, {}, ["torch>="]),
        (None, None, False, {}, ["torch>=", "toolkit"]),
        (None, None, False, {"PSPL_CUDA": "off"}, ["torch>="]),
        ("2.4.1+cu121", "12.1", False, {}, ["toolkit==13.0.*"]),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="PyPI's nvcc is taken on Linux only")
def test_backend_asks_only_for_what_is_missing(
    version, cuda, toolkit_here, environment, expected, build_tools, tmp_path, monkeypatch
):
    found = fake_torch(build_tools, version, cuda) if version else None
    monkeypatch.setattr(build_tools.backend, "find_torch", lambda: found)
    monkeypatch.setenv("PIP_BUILD_TRACKER", "x")
    bin_folder = tmp_path / "bin"
    program(bin_folder / "c++", "exit 0")
    if toolkit_here:
        fake_toolkit(tmp_path)
    only_these(monkeypatch, bin_folder)
    monkeypatch.setattr(sys, "path", [])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wanted = [
        name.replace("toolkit", build_tools.backend.TOOLKIT).replace("torch>=", build_tools.installed_torch.REQUIREMENT)
        for name in expected
    ]
    assert build_tools.backend.requirements() == wanted


@NEEDS_SOURCES
def test_oldest_torch_is_written_down_once(build_tools):
    build = ROOT / "pspl_cuda" / "_build.py"
    code = [ROOT / "setup.py", *(ROOT / "build_tools").glob("*.py"), *(ROOT / "pspl_cuda").glob("*.py")]
    for path in {*code, ROOT / "pyproject.toml", ROOT / "noxfile.py"} - {build}:
        for version in ("MIN_TORCH", "STABLE_TORCH"):
            number = r"{}\.{}(\.0)?".format(*build_tools.installed_torch.BUILD[version])
            assert not re.search(rf'["=]{number}["\']', path.read_text()), path


@NEEDS_SOURCES
def test_any_torch_satisfies_the_package():
    """pip must not replace a torch that a framework pins."""
    assert '\ndependencies = ["torch"]\n' in (ROOT / "pyproject.toml").read_text()


@NEEDS_SOURCES
def test_toolkit_of_the_path_is_taken(build_tools, tmp_path, monkeypatch):
    home = fake_toolkit(tmp_path / "cuda")
    only_these(monkeypatch, home / "bin")
    toolkit, reason = build_tools.compilers.find_toolkit("13.0")
    assert reason is None
    assert (toolkit.home, toolkit.version, toolkit.include_dirs) == (str(home), "13.0", [str(home / "include")])
    assert toolkit.library_dirs == [str(home / "lib64"), str(home / "lib")]
    assert toolkit.architectures == ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"]


@NEEDS_SOURCES
def test_toolkit_behind_a_wrapper_is_found(build_tools, tmp_path, monkeypatch):
    """An nvcc that calls another one: the headers are those of the other one."""
    home = fake_toolkit(tmp_path / "cuda")
    program(tmp_path / "elsewhere" / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    only_these(monkeypatch, tmp_path / "elsewhere" / "bin")
    assert build_tools.compilers.find_toolkit("13.0")[0].home == str(home)


@NEEDS_SOURCES
def test_pypi_toolkit_stands_in_for_one_of_another_major_version(build_tools, tmp_path, monkeypatch):
    old = fake_toolkit(tmp_path / "cuda-12.4", version="12.4")
    only_these(monkeypatch, old / "bin")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert "nvcc is of CUDA 12.4 and torch of CUDA 13.0: install" in build_tools.compilers.find_toolkit("13.0")[1]
    packaged = fake_toolkit(tmp_path / "nvidia" / "cu13")
    assert build_tools.compilers.find_toolkit("13.0")[0].home == str(packaged)
    # An explicit CUDA_HOME takes precedence.
    monkeypatch.setenv("CUDA_HOME", str(old))
    toolkit, reason = build_tools.compilers.find_toolkit("13.0")
    assert toolkit is None
    assert "of CUDA 13.0: install a CUDA 13 toolkit" in reason
    assert reason.endswith(", or unset CUDA_HOME")


@NEEDS_SOURCES
def test_newer_toolkit_serves_an_older_torch(build_tools, tmp_path, monkeypatch):
    """The one of torch's major version if there is one."""
    new = fake_toolkit(tmp_path / "new", version="13.0")
    only_these(monkeypatch, new / "bin")
    monkeypatch.setattr(sys, "path", [])
    assert build_tools.compilers.find_toolkit("12.8")[0].home == str(new)
    old = fake_toolkit(tmp_path / "nvidia" / "cu13", version="12.4")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert build_tools.compilers.find_toolkit("12.8")[0].home == str(old)
    monkeypatch.setenv("CUDA_HOME", str(new))
    assert build_tools.compilers.find_toolkit("12.8")[0].home == str(new)


@NEEDS_SOURCES
def test_no_toolkit_has_a_remedy(build_tools, tmp_path, monkeypatch):
    only_these(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "platform", "linux")
    assert build_tools.compilers.find_toolkit("13.0")[1].endswith("which takes nvcc from PyPI")
    reason = build_tools.compilers.find_toolkit("12.8")[1]
    assert reason.startswith("no CUDA toolkit was found: install a CUDA 12 toolkit, set CUDA_HOME to it, and reinstall")
    assert reason.endswith("which takes nvcc 13.0 from PyPI, whose kernels need an NVIDIA driver for CUDA 13")
    monkeypatch.setattr(sys, "platform", "win32")
    assert "PyPI" not in build_tools.compilers.find_toolkit("12.8")[1]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert "CUDA_HOME is" in build_tools.compilers.find_toolkit("13.0")[1]


@NEEDS_SOURCES
def test_toolkit_that_refuses_the_host_compiler_is_not_taken(build_tools, tmp_path, monkeypatch):
    """A toolkit too new or too old for g++ fails on every file."""
    refuses = "echo 'host_config.h:143:2: error: #error -- unsupported GNU version!' >&2; exit 1"
    home = fake_toolkit(tmp_path / "cuda", compiles=refuses)
    only_these(monkeypatch, home / "bin")
    toolkit, reason = build_tools.compilers.find_toolkit("13.0")
    assert toolkit is None
    assert (
        "can't compile a small kernel (host_config.h:143:2: error: #error -- unsupported GNU version!): set CC"
        in reason
    )


@NEEDS_SOURCES
def test_cxx_compiler_is_tried(build_tools, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert "no C++ compiler was found (/no/such/compiler does not exist)" in build_tools.compilers.why_no_cxx()
    monkeypatch.setenv("CXX", program(tmp_path / "old", "echo \"error: unrecognized option '-std=c++20'\" >&2; exit 1"))
    assert "(error: unrecognized option '-std=c++20'): the kernels need g++ 11" in build_tools.compilers.why_no_cxx()


@NEEDS_SOURCES
def test_a_compiler_without_vector_types_builds_cuda_kernels_only(build_tools, tmp_path, monkeypatch, capsys):
    """MSVC compiles standard C++; the CPU kernels need more."""
    script = """case "$*" in *-std=*) exit 1 ;; esac
        if grep -q vector_size trial.cpp; then echo "error C2065: vector_size"; exit 1; fi"""
    cl = program(tmp_path / "bin" / "cl", script)
    monkeypatch.setenv("CXX", cl)
    assert build_tools.compilers.why_no_cxx(windows=True) is None
    reason = build_tools.compilers.why_no_vectors(windows=True)
    assert reason == (
        f"the C++ compiler {cl} lacks the vector types of g++ and clang (error C2065: vector_size): the CPU kernels need "
        "g++ 11 or clang 14 or later; set CXX to one and reinstall"
    )
    home = fake_toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(build_tools.compilers, "why_no_cxx", lambda: None)
    monkeypatch.setattr(build_tools.compilers, "why_no_vectors", lambda: reason)
    decision = build_tools.decisions.decide(fake_torch(build_tools))
    assert (decision.why_no_cpu, decision.why_no_cuda) == (reason, None)
    assert "CUDA kernels: yes" in capsys.readouterr().err


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("CXX", "", ["c++"]),
        ("CXX", "g++ -m64", ["g++", "-m64"]),
        ("CXX", "ccache g++", ["g++"]),
        ("CXX", "/usr/lib/distcc/distcc '/opt/my compilers/g++' -m64", ["/opt/my compilers/g++", "-m64"]),
    ],
)
def test_compiler_with_arguments_or_a_launcher(variable, value, expected, build_tools, monkeypatch):
    """torch's build takes the variable as the name of one program."""
    monkeypatch.setenv(variable, value)
    assert build_tools.compilers.cxx_compiler() == expected
    flags = build_tools.compilers.compile_flags(windows=False)["cxx"]
    assert flags[: len(expected) - 1] == expected[1:]


@NEEDS_SOURCES
@pytest.mark.parametrize(("value", "expected"), [("gcc -pthread", ["gcc", "-pthread"]), ("ccache gcc", ["gcc"])])
def test_host_compiler_of_nvcc_with_arguments_or_a_launcher(value, expected, build_tools, tmp_path, monkeypatch):
    arguments = tmp_path / "arguments"
    home = fake_toolkit(tmp_path / "cuda", compiles=f'for word in "$@"; do echo "$word"; done > {arguments}')
    monkeypatch.setenv("CC", value)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert build_tools.compilers.find_toolkit("13.0")[1] is None
    words = arguments.read_text().splitlines()
    assert words[:2] == ["-ccbin", expected[0]]
    options = [part for option in expected[1:] for part in ("-Xcompiler", option)]
    assert words[2 : 2 + len(options)] == options
    assert build_tools.compilers.compile_flags(windows=False)["nvcc"] == [*options, "-O3"]


@NEEDS_SOURCES
def test_flags_that_change_arithmetic_are_left_out(build_tools, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "exit 0") + " -ffast-math")
    monkeypatch.setenv("CFLAGS", "-Ofast -march=native -funsafe-math-optimizations")
    monkeypatch.setenv("LDFLAGS", "-ffast-math")
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "--use_fast_math -lineinfo -ftz=true")
    monkeypatch.setenv("CXXFLAGS", "-DNAME='a  b'")
    monkeypatch.setenv("PSPL_CUDA", "off")
    build_tools.decisions.decide(fake_torch(build_tools))
    printed = capsys.readouterr().err
    assert (
        "pspl_cuda: CFLAGS: -Ofast -funsafe-math-optimizations is left out, because it changes the results" in printed
    )
    assert "pspl_cuda: NVCC_APPEND_FLAGS: --use_fast_math -ftz=true is left out" in printed
    assert os.environ["CXX"] == str(tmp_path / "c++")
    assert os.environ["CFLAGS"] == "-march=native"
    assert "LDFLAGS" not in os.environ
    assert os.environ["NVCC_APPEND_FLAGS"] == "-lineinfo"
    assert os.environ["CXXFLAGS"] == "-DNAME='a  b'"


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_library_built_with_inherited_flags_does_not_flush(tmp_path):
    """A library linked with -Ofast sets the processor to flush subnormal numbers when it is loaded, for the whole process."""
    folder = broken_tree(tmp_path)
    for source in (folder / "csrc").rglob("*.cpp"):
        source.write_text("")
    arguments = ("build_ext", "--build-lib", "lib", "--build-temp", "temp")
    # Compilers with arguments and a launcher, as a whole.
    launcher = program(tmp_path / "ccache", 'exec "$@"')
    compiler = program(tmp_path / "g++", f'echo "$*" >> {tmp_path}/calls; exec g++ "$@"')
    flags = {"CXX": f"{launcher} {compiler} -m64", "CC": "gcc -pthread", "CFLAGS": "-Ofast", "LDFLAGS": "-ffast-math"}
    code, printed = run_setup(*arguments, folder=folder, PSPL_CUDA="off", **flags)
    assert code == 0, printed
    calls = (tmp_path / "calls").read_text().splitlines()
    assert any("_cpu.so" in call for call in calls), calls
    assert all("-m64" in call.split() for call in calls), calls
    library = folder / "lib" / "pspl_cuda" / "_cpu.so"
    script = f"import ctypes; ctypes.CDLL({str(library)!r}); print(5e-324 * 1.0 > 0)"
    loads = [sys.executable, "-c", f"import torch; {script}"]
    assert subprocess.run(loads, capture_output=True, text=True, check=True).stdout == "True\n"


@NEEDS_SOURCES
def test_message_of_a_compiler_in_another_encoding(build_tools, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "printf 'erreur: pr\\351nom error\\n'; exit 1"))
    assert "(erreur: pr\ufffdnom error)" in build_tools.compilers.why_no_cxx()


@NEEDS_SOURCES
def test_flags_for_msvc(build_tools):
    """cl.exe and the nvcc that calls it get no flag of g++."""
    flags = build_tools.compilers.compile_flags(windows=True)
    assert flags["cxx"][0] == "/O2"
    assert all(flag.startswith("/") for flag in flags["cxx"])
    # nvcc's own options are the same on every system; cl's follow -Xcompiler.
    passed = [flag for before, flag in zip(flags["nvcc"], flags["nvcc"][1:], strict=False) if before == "-Xcompiler"]
    assert passed == flags["cxx"][1:]
    assert [flag for flag in flags["nvcc"] if flag not in passed] == ["-O3", *["-Xcompiler"] * len(passed)]
    assert not any(
        flag.startswith("/") for kind in build_tools.compilers.compile_flags(windows=False).values() for flag in kind
    )


@NEEDS_SOURCES
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_this_cxx_compiler_passes_its_trial(build_tools):
    assert build_tools.compilers.why_no_cxx() is None


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("requested", "known", "expected"),
    [
        (None, "7.5 8.0 8.6 9.0 10.0 12.0", ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0+PTX"]),
        (None, "5.0 7.5 8.0 8.6 9.0", ["7.5", "8.0", "8.6", "9.0+PTX"]),
        ("9.0", "9.0", ["9.0"]),
        ("12.0+PTX 8.6", "8.6 12.0", ["8.6", "12.0+PTX"]),
        ("9.0a;8.0", "8.0 9.0", ["8.0", "9.0a"]),
        ("Hopper", "9.0", ["9.0+PTX"]),
    ],
)
def test_architectures(requested, known, expected, build_tools, monkeypatch):
    if requested:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    toolkit = build_tools.compilers.Toolkit("cuda", "13.0", known.split(), [], [])
    assert build_tools.decisions.choose_architectures(toolkit) == (expected, None)


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ("7.0;9.0", "nvcc 13.0 does not compile for 7.0; expected some of 7.5, 9.0"),
        ("banana", "TORCH_CUDA_ARCH_LIST is 'banana', which torch does not understand"),
    ],
)
def test_architectures_that_are_rejected(requested, message, build_tools, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    toolkit = build_tools.compilers.Toolkit("cuda", "13.0", ["7.5", "9.0"], [], [])
    architectures, reason = build_tools.decisions.choose_architectures(toolkit)
    assert architectures == []
    assert message in reason


@NEEDS_SOURCES
def test_force_fails_loudly(build_tools, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "exit 0"))
    monkeypatch.setenv("PSPL_CUDA", "force")
    for hip, message in (
        (None, "is not a CUDA build"),
        ("7.1", "is a ROCm build, which the CUDA kernels do not support"),
    ):
        found = fake_torch(build_tools, "2.13.0", None, hip)
        with pytest.raises(
            SystemExit, match=r"PSPL_CUDA=force, but the CUDA kernels can't be built: torch 2\.13\.0 " + message
        ):
            build_tools.decisions.decide(found)
    monkeypatch.setenv("PSPL_CUDA", "auto")
    monkeypatch.setenv("PSPL_CPU", "force")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(SystemExit, match=r"PSPL_CPU=force, but the CPU kernels can't be built: no C\+\+ compiler"):
        build_tools.decisions.decide(found)


@NEEDS_SOURCES
def test_off_is_printed_and_recorded(build_tools, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "exit 0"))
    monkeypatch.setenv("PSPL_CUDA", "off")
    found = fake_torch(build_tools)
    decision = build_tools.decisions.decide(found)
    assert "CUDA kernels: no, because PSPL_CUDA=off when it was built" in capsys.readouterr().err
    record = decision.record(found)
    assert record["_cpu"] == {}
    assert record["_cuda"] == {"reason": "PSPL_CUDA=off when it was built."}
    assert (record["torch"], record["machine"]) == ("2.14.1+cu130", platform.machine())
    monkeypatch.setenv("PSPL_CPU", "off")
    monkeypatch.setenv("CXX", "/no/such/compiler")
    decision = build_tools.decisions.decide(found)
    assert "THIS INSTALLATION HAS NO KERNELS" in capsys.readouterr().err
    assert decision.why_no_cpu == "PSPL_CPU=off when it was built"


@NEEDS_SOURCES
def test_cuda_kernels_are_built_without_cpu_kernels(build_tools, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "exit 0"))
    home = fake_toolkit(tmp_path / "cuda")
    only_these(monkeypatch, home / "bin")
    monkeypatch.setenv("PSPL_CPU", "off")
    monkeypatch.setenv("PSPL_CUDA", "force")
    decision = build_tools.decisions.decide(fake_torch(build_tools))
    assert decision.why_no_cpu == "PSPL_CPU=off when it was built"
    assert decision.why_no_cuda is None
    assert decision.toolkit.home == str(home)
    printed = capsys.readouterr().err
    assert "CUDA kernels: yes, with nvcc 13.0" in printed
    assert "NO KERNELS" not in printed
    # Without a C++ compiler there are none.
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(SystemExit, match=r"PSPL_CUDA=force, but the CUDA kernels can't be built: no C\+\+ compiler"):
        build_tools.decisions.decide(fake_torch(build_tools))


@NEEDS_SOURCES
@pytest.mark.parametrize("name", ["PSPL_CPU", "PSPL_CUDA"])
def test_unknown_switch_is_rejected(name, build_tools, monkeypatch):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(SystemExit, match=f"{name} is 'yes'; expected auto, force or off"):
        build_tools.decisions.decide(fake_torch(build_tools))


@NEEDS_SOURCES
@pytest.mark.parametrize("switch", ["auto", "off"])
def test_torch_too_old_or_missing(switch, build_tools, monkeypatch):
    """With one below 2.4 the package can't be imported: the installation stops, with or without kernels."""
    for name in ("PSPL_CPU", "PSPL_CUDA"):
        monkeypatch.setenv(name, switch)
    old = fake_torch(build_tools, "2.3.1+cu121", "12.1")
    message = r"^torch 2\.3\.1\+cu121 is older than 2\.4, which pspl_cuda needs: upgrade torch and reinstall\.$"
    with pytest.raises(SystemExit, match=message):
        build_tools.decisions.decide(old)
    monkeypatch.setattr(build_tools.backend, "find_torch", lambda: old)
    with pytest.raises(SystemExit, match=message):
        build_tools.backend.requirements()
    with pytest.raises(SystemExit, match="install torch first"):
        build_tools.decisions.decide(None)


@NEEDS_SOURCES
@pytest.mark.parametrize(("version", "stable"), [("2.4.1", False), ("2.9.1", False), ("2.10.0", True), ("3.0.0", True)])
def test_stable_abi_is_used_where_it_suffices(version, stable, build_tools, monkeypatch):
    monkeypatch.setenv("PSPL_CUDA", "off")
    found = fake_torch(build_tools, version, None)
    assert build_tools.decisions.decide(found).record(found)["stable_abi"] == stable


def broken_tree(folder: Path) -> Path:
    """The sources, with kernels that do not compile."""
    for name in ("build_tools", "pspl_cuda", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "_build.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for source in (folder / "csrc").rglob("*.cpp"):
        source.write_text("#error planted\n")
    return folder


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_kernel_that_does_not_compile_is_an_error(tmp_path):
    """A compiler that fails on a kernel must stop the installation."""
    folder = broken_tree(tmp_path)
    code, printed = run_setup("build_ext", "--build-lib", "lib", "--build-temp", "temp", folder=folder, PSPL_CUDA="off")
    assert code != 0
    assert "#error planted" in printed
    assert "the CPU kernels did not compile" in printed
    assert "MAX_JOBS=1" in printed


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_build_without_kernels(tmp_path):
    """No compiler is needed, the reason and the sources are recorded, and no library of an earlier build is left."""
    folder = broken_tree(tmp_path)
    package = folder / "lib" / "pspl_cuda"
    package.mkdir(parents=True)
    for name in ("_cpu.so", "_cuda.so"):
        (package / name).touch()
    arguments = ("build_ext", "--build-lib", "lib", "--build-temp", "temp")
    code, printed = run_setup(*arguments, folder=folder, CXX="/no/such/compiler")
    assert code == 0, printed
    assert "THIS INSTALLATION HAS NO KERNELS" in printed
    assert [path.name for path in package.iterdir()] == ["_build.json"]
    record = json.loads((package / "_build.json").read_text())
    assert "no C++ compiler was found" in record["_cpu"]["reason"]
    assert "no C++ compiler was found" in record["_cuda"]["reason"]
    for library in ("_cpu", "_cuda"):
        assert record[library]["sources"] == fingerprint(folder / "csrc", library) != ""


def test_package_is_typed():
    """Type checkers read the annotations of an installed package only if it has this file (PEP 561)."""
    assert (Path(pspl_cuda.__file__).parent / "py.typed").is_file()


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_typing_marker_is_installed(tmp_path):
    folder = broken_tree(tmp_path)
    code, printed = run_setup("build_py", "--build-lib", "lib", folder=folder)
    assert code == 0, printed
    assert (folder / "lib" / "pspl_cuda" / "py.typed").is_file()


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_clone_does_not_hide_its_editable_installation(tmp_path):
    """``pip install -e ./pspl_cuda``, then Python beside the clone: the current folder comes first on Python's path."""
    folder = broken_tree(tmp_path / "pspl_cuda")
    build = ("editable_wheel", "--dist-dir", str(tmp_path))
    code, printed = run_setup(*build, folder=folder, PSPL_CPU="off", PSPL_CUDA="off")
    assert code == 0, printed
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); from importlib.util import find_spec"
    # -S: without the site-packages that the tests run with.
    command = [sys.executable, "-S", "-c", f"{script}; print(find_spec('pspl_cuda').origin)"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(folder / "pspl_cuda" / "__init__.py")


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_one_wheel_serves_every_python(tmp_path):
    """The libraries use nothing of Python. Free-threaded Python refuses wheels of the tag abi3."""
    code, printed = run_setup("bdist_wheel", folder=broken_tree(tmp_path), PSPL_CPU="off", PSPL_CUDA="off")
    assert code == 0, printed
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.split("-")[2:4] == ["py3", "none"]


@NEEDS_SOURCES
def test_version_is_in_one_place():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert pspl_cuda.__version__ == version
    for path in [ROOT / "setup.py", *(ROOT / "pspl_cuda").glob("*.py")]:
        assert f'"{version}"' not in path.read_text(), path
