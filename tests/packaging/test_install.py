"""What the build decides, and what the package says of it."""

import ast
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pspl_cuda
from pspl_cuda import ops

ROOT = Path(__file__).parents[2]
NEEDS_SOURCES = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")
NEEDS_SETUPTOOLS = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True, check=False).returncode != 0,
    reason="setuptools is not installed",
)


# What steers a build, and must not come from who runs the tests.
STEERING = ("PSPL_CPU", "PSPL_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH", "CXX", "CC", "PIP_BUILD_TRACKER")


def run_setup(*arguments, folder=ROOT, **environment):
    """setup.py in a process of its own: (exit code, what it printed)."""
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
    """The modules behind setup.py, without the caller's settings."""
    for name in STEERING:
        # Set before it is deleted: what a test's code writes into the environment is then undone too.
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
    """A CUDA toolkit as the build sees it: an nvcc that answers its questions, and a header."""
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
    """No program but those in ``folders`` and the shell's; no /usr/local/cuda."""
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


@NEEDS_SOURCES
def test_isolated_build_sees_the_installed_torch(tmp_path):
    """pip takes site-packages away by a sitecustomize on PYTHONPATH, which must not blind the interpreter that is asked."""
    hide = "import sys; sys.path[:] = [path for path in sys.path if not path.endswith('-packages')]"
    (tmp_path / "sitecustomize.py").write_text(hide)
    code = (
        "import importlib.util, sys; print(importlib.util.find_spec('torch')); sys.path.insert(0, 'build_tools'); "
        "from installed_torch import find_torch; found = find_torch(); "
        "print(found.version, found.cuda, 'torch' in sys.modules); import torch; print(torch.__version__)"
    )
    environment = {**os.environ, "PIP_BUILD_TRACKER": "x", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    expected = ["None", torch.__version__, str(torch.version.cuda), "False", torch.__version__]
    assert result.stdout.split() == expected


def fake_python(folder: Path, site: Path, with_torch=True, version=None) -> Path:
    """An interpreter that tells installed_torch.py what it asks for."""
    if with_torch:
        (site / "torch").mkdir(parents=True)
        (site / "torch" / "__init__.py").touch()
        (site / "torch" / "version.py").write_text("__version__ = '2.12.0+cu130'\ncuda = '13.0'\nhip = None\n")
    origin = str(site / "torch" / "__init__.py") if with_torch else None
    answer = json.dumps([list(version or sys.version_info[:2]), [str(site)], origin])
    program(folder / "python", f"echo '{answer}'")
    return folder


@NEEDS_SOURCES
@pytest.mark.parametrize("place", ["active", "dotted", "path"])
def test_uv_and_build_are_guessed_to_install_for(place, build_tools, tmp_path, monkeypatch):
    """They build in an environment of their own; the torch of the one that is meant must be found all the same."""
    site = tmp_path / "site"
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "build-env"))
    monkeypatch.setattr(build_tools.installed_torch.importlib.util, "find_spec", find_spec_in(site))
    older = fake_python(tmp_path / "older" / "bin", tmp_path / "elsewhere", version=[2, 7])
    folders = [older]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    if place == "dotted":
        fake_python(tmp_path / ".venv" / Path(sys.executable).parent.name, site)
    else:
        folders.append(fake_python(tmp_path / place / "bin", site))
    if place == "active":
        (tmp_path / "active" / "pyvenv.cfg").touch()
        # An environment that is active decides, before one that is only there.
        fake_python(tmp_path / ".venv" / Path(sys.executable).parent.name, tmp_path / "not this one")
    only_these(monkeypatch, *folders)
    found = build_tools.installed_torch.find_torch()
    assert found == ("2.12.0+cu130", "13.0", None, site / "torch")
    assert str(site) in sys.path


def find_spec_in(site: Path):
    """importlib.util.find_spec of a process that can import torch only once ``site`` is on its path."""

    def find_spec(name):
        assert name == "torch"
        origin = str(site / "torch" / "__init__.py")
        return SimpleNamespace(origin=origin) if str(site) in sys.path else None

    return find_spec


@NEEDS_SOURCES
def test_target_without_torch_is_taken_at_its_word(build_tools, tmp_path, monkeypatch):
    """A torch of another environment must not decide what is built for one that has none."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "build-env"))
    monkeypatch.setattr(build_tools.installed_torch.importlib.util, "find_spec", find_spec_in(tmp_path / "site"))
    active = fake_python(tmp_path / "active" / "bin", tmp_path / "none", with_torch=False)
    (tmp_path / "active" / "pyvenv.cfg").touch()
    other = fake_python(tmp_path / "other" / "bin", tmp_path / "site")
    only_these(monkeypatch, active, other)
    assert build_tools.installed_torch.find_torch() is None


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("version", "cuda", "toolkit_here", "environment", "expected"),
    [
        ("2.13.0+cpu", None, False, {}, []),
        ("2.14.1+cu130", "13.0", True, {}, []),
        ("2.14.1+cu130", "13.0", False, {}, ["toolkit==13.0.*"]),
        ("2.15.0+cu132", "13.2", False, {}, ["toolkit==13.2.*"]),
        ("2.14.1+cu126", "12.6", False, {}, []),
        ("2.14.1+cu130", "13.0", False, {"PSPL_CUDA": "off"}, []),
        ("2.14.1+cu130", "13.0", False, {"PSPL_CPU": "off"}, []),
        ("2.14.1+cu130", "13.0", False, {"CUDA_HOME": "/opt/cuda"}, []),
        ("2.14.1+cu130", "13.0", False, {"CXX": "/no/such/compiler"}, []),
        (None, None, True, {}, ["torch>="]),
        (None, None, False, {}, ["torch>=", "toolkit"]),
        (None, None, False, {"PSPL_CUDA": "off"}, ["torch>="]),
        ("2.9.1+cu130", "13.0", False, {}, ["torch>=", "toolkit"]),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="PyPI's nvcc is taken on Linux only")
def test_backend_asks_only_for_what_is_missing(
    version, cuda, toolkit_here, environment, expected, build_tools, tmp_path, monkeypatch
):
    found = fake_torch(build_tools, version, cuda) if version else None
    monkeypatch.setattr(build_tools.backend, "find_torch", lambda: found)
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
    assert build_tools.backend.missing() == wanted


@NEEDS_SOURCES
def test_oldest_torch_is_named_once(build_tools):
    """Where the number stands again, it would be forgotten."""
    assert build_tools.installed_torch.REQUIREMENT in (ROOT / "pyproject.toml").read_text()
    for path in [ROOT / "setup.py", *(ROOT / "build_tools").glob("*.py"), *(ROOT / "pspl_cuda").glob("*.py")]:
        number = build_tools.installed_torch.REQUIREMENT.removeprefix("torch>=")
        assert f'"{number}"' not in path.read_text(), path
        assert f">={number}" not in path.read_text(), path


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
    """An nvcc in a folder of its own that calls the real one: the headers are where the real one says."""
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
    # An order is not replaced.
    monkeypatch.setenv("CUDA_HOME", str(old))
    toolkit, reason = build_tools.compilers.find_toolkit("13.0")
    assert toolkit is None
    assert "of CUDA 13.0, or unset it: install a CUDA 13 toolkit" in reason


@NEEDS_SOURCES
def test_no_toolkit_has_a_remedy(build_tools, tmp_path, monkeypatch):
    only_these(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "platform", "linux")
    assert "nvcc comes from PyPI" in build_tools.compilers.find_toolkit("13.0")[1]
    reason = build_tools.compilers.find_toolkit("12.8")[1]
    assert reason.startswith("no CUDA toolkit was found: install a CUDA 12 toolkit, set CUDA_HOME to it, and reinstall")
    assert "PyPI" not in reason
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    assert "CUDA_HOME is" in build_tools.compilers.find_toolkit("13.0")[1]


@NEEDS_SOURCES
def test_toolkit_that_refuses_the_host_compiler_is_not_taken(build_tools, tmp_path, monkeypatch):
    """A toolkit too new or too old for g++ fails on every file; a trial finds out before."""
    refuses = "echo 'host_config.h:143:2: error: #error -- unsupported GNU version!' >&2; exit 1"
    home = fake_toolkit(tmp_path / "cuda", compiles=refuses)
    only_these(monkeypatch, home / "bin")
    toolkit, reason = build_tools.compilers.find_toolkit("13.0")
    assert toolkit is None
    assert (
        "fails on a kernel of one line (host_config.h:143:2: error: #error -- unsupported GNU version!): set CC"
        in reason
    )


@NEEDS_SOURCES
def test_cxx_compiler_is_tried(build_tools, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert "no C++ compiler was found (/no/such/compiler does not exist)" in build_tools.compilers.why_no_cxx()
    monkeypatch.setenv("CXX", program(tmp_path / "old", "echo \"error: unrecognized option '-std=c++20'\" >&2; exit 1"))
    assert "(error: unrecognized option '-std=c++20'): the kernels need g++ 11" in build_tools.compilers.why_no_cxx()


@NEEDS_SOURCES
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_this_cxx_compiler_passes_its_trial(build_tools):
    assert build_tools.compilers.why_no_cxx() is None


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("ordered", "known", "expected"),
    [
        (None, "7.5 8.0 8.6 9.0 10.0 12.0", ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0+PTX"]),
        (None, "5.0 7.5 8.0 8.6 9.0", ["7.5", "8.0", "8.6", "9.0+PTX"]),
        ("9.0", "9.0", ["9.0"]),
        ("12.0+PTX 8.6", "8.6 12.0", ["8.6", "12.0+PTX"]),
        ("9.0a;8.0", "8.0 9.0", ["8.0", "9.0a"]),
        ("Hopper", "9.0", ["9.0+PTX"]),
    ],
)
def test_architectures(ordered, known, expected, build_tools, monkeypatch):
    if ordered:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", ordered)
    toolkit = build_tools.compilers.Toolkit("cuda", "13.0", known.split(), [], [])
    assert build_tools.decisions.choose_architectures(toolkit) == (expected, None)


@NEEDS_SOURCES
@pytest.mark.parametrize(
    ("ordered", "message"),
    [
        ("7.0;9.0", "nvcc 13.0 does not compile for 7.0; expected some of 7.5, 9.0"),
        ("banana", "TORCH_CUDA_ARCH_LIST is 'banana', which torch does not understand"),
    ],
)
def test_architectures_that_cannot_be(ordered, message, build_tools, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", ordered)
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
        ("7.1", "is a ROCm build, to which the CUDA kernels are not ported"),
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
def test_off_is_said_and_recorded(build_tools, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CXX", program(tmp_path / "c++", "exit 0"))
    monkeypatch.setenv("PSPL_CUDA", "off")
    found = fake_torch(build_tools)
    decision = build_tools.decisions.decide(found)
    assert "CUDA kernels: no, because PSPL_CUDA=off when it was built" in capsys.readouterr().err
    record = decision.record(found)
    assert record["_cpu"] == {}
    assert record["_cuda"] == {"reason": "PSPL_CUDA=off when it was built."}
    assert (record["torch"], record["machine"]) == ("2.14.1+cu130", platform.machine())
    # The CUDA library needs the CPU library.
    monkeypatch.setenv("PSPL_CUDA", "auto")
    monkeypatch.setenv("PSPL_CPU", "off")
    decision = build_tools.decisions.decide(found)
    assert "THIS INSTALLATION HAS NO KERNELS" in capsys.readouterr().err
    assert "PSPL_CPU=off" in decision.why_no_cuda
    monkeypatch.setenv("PSPL_CUDA", "force")
    with pytest.raises(SystemExit, match="PSPL_CUDA=force"):
        build_tools.decisions.decide(found)


@NEEDS_SOURCES
@pytest.mark.parametrize("name", ["PSPL_CPU", "PSPL_CUDA"])
def test_unknown_switch_is_refused(name, build_tools, monkeypatch):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(SystemExit, match=f"{name} is 'yes'; expected auto, force or off"):
        build_tools.decisions.decide(fake_torch(build_tools))


@NEEDS_SOURCES
def test_torch_too_old_or_missing(build_tools):
    with pytest.raises(SystemExit, match=r"or later, but 2\.9\.1 is installed\. Upgrade torch"):
        build_tools.decisions.decide(fake_torch(build_tools, "2.9.1"))
    with pytest.raises(SystemExit, match="install torch first"):
        build_tools.decisions.decide(None)


def broken_tree(folder: Path) -> Path:
    """The sources, with kernels that no compiler takes."""
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
    """A compiler that is there and fails is no reason to go on without kernels."""
    folder = broken_tree(tmp_path)
    code, printed = run_setup("build_ext", "--build-lib", "lib", "--build-temp", "temp", folder=folder, PSPL_CUDA="off")
    assert code != 0
    assert "#error planted" in printed
    assert "the CPU kernels did not compile" in printed
    assert "MAX_JOBS=1" in printed


@NEEDS_SOURCES
@NEEDS_SETUPTOOLS
def test_build_without_kernels(tmp_path):
    """No compiler is asked for, the reason is kept, and nothing is left of an earlier build."""
    folder = broken_tree(tmp_path)
    package = folder / "lib" / "pspl_cuda"
    package.mkdir(parents=True)
    for name in ("_cpu.abi3.so", "_cuda.abi3.so"):
        (package / name).touch()
    arguments = ("build_ext", "--build-lib", "lib", "--build-temp", "temp")
    code, printed = run_setup(*arguments, folder=folder, CXX="/no/such/compiler")
    assert code == 0, printed
    assert "THIS INSTALLATION HAS NO KERNELS" in printed
    assert [path.name for path in package.iterdir()] == ["_build.json"]
    record = json.loads((package / "_build.json").read_text())
    assert "no C++ compiler was found" in record["_cpu"]["reason"]
    assert "no C++ compiler was found" in record["_cuda"]["reason"]


@NEEDS_SOURCES
def test_version_is_in_one_place():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE).group(1)
    assert pspl_cuda.__version__ == version
    for path in [ROOT / "setup.py", *(ROOT / "pspl_cuda").glob("*.py")]:
        assert f'"{version}"' not in path.read_text(), path


def test_backend_info_is_plain_and_honest():
    info = pspl_cuda.backend_info()
    assert json.loads(json.dumps(info)) == info
    for name in ("cpu", "cuda"):
        assert info[name]["available"] == (info[name]["reason"] is None)
        assert info[name]["available"] == torch._C._dispatch_has_kernel_for_dispatch_key(
            "pspl_cuda::loss", name.upper()
        )
    if torch.version.cuda is None:
        assert not info["cuda"]["available"]
    if info["cpu"]["available"]:
        assert info["cpu"]["instruction_set"] in ("avx512", "avx2", "baseline")


def test_less_than_the_processor_has_can_be_asked_for():
    if not pspl_cuda.backend_info()["cpu"]["available"]:
        pytest.skip("the CPU kernel is not built")
    code = "import pspl_cuda; print(pspl_cuda.backend_info()['cpu']['instruction_set'])"
    environment = {**os.environ, "PSPL_CPU_ISA": "baseline"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "baseline"


def test_unknown_instruction_set_is_said():
    environment = {**os.environ, "PSPL_CPU_ISA": "avx3"}
    command = [sys.executable, "-c", "import pspl_cuda"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "PSPL_CPU_ISA is 'avx3'; expected one of avx512, avx2, baseline" in result.stderr


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ("8.0 9.0", (7, 5), False),
        ("8.0 9.0", (8, 0), True),
        ("8.0 9.0", (8, 9), True),
        ("8.6", (8, 0), False),
        ("8.0 9.0", (10, 0), False),
        ("8.0 9.0+PTX", (12, 0), True),
        ("12.0+PTX", (9, 0), False),
        ("7.5 12.0+PTX", (11, 0), False),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
    ],
)
def test_architecture_is_compared_with_the_gpu(architectures, capability, runs):
    assert (ops._why_not_on_gpu(architectures.split(), capability) is None) == runs


@pytest.fixture
def turing(monkeypatch):
    """A build for newer GPUs than the one here."""
    monkeypatch.setitem(ops._WHY_NOT, "cuda", None)
    monkeypatch.setattr(ops, "_BUILD", {"_cuda": {"toolkit": "13.0", "architectures": ["8.0", "9.0"]}})
    monkeypatch.setattr(ops, "_why_not_on", {})
    monkeypatch.setattr(ops, "_warned", set())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    return torch.device("cuda", 0)


WRONG_GPU = "it was built for sm_80, sm_90; this device is sm_75: reinstall with TORCH_CUDA_ARCH_LIST=7.5."


def test_gpu_without_its_architecture_falls_back_with_the_remedy(turing):
    with pytest.warns(UserWarning, match=re.escape(WRONG_GPU)):
        assert ops.choose_backend("auto", turing) == "reference"
    with pytest.raises(RuntimeError, match="does not run on cuda:0: " + re.escape(WRONG_GPU)):
        ops.choose_backend("cuda", turing)


def test_backend_info_speaks_of_the_gpu_that_is_here(turing, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    info = pspl_cuda.backend_info()["cuda"]
    assert (info["available"], info["reason"]) == (False, WRONG_GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pspl_cuda.backend_info()["cuda"]["available"]


@pytest.mark.parametrize(
    ("library", "version", "cuda", "machine", "message"),
    [
        ("_cpu", "2.14.1+cu130", "13.0", "x86_64", None),
        ("_cuda", "2.14.1+cu130", "13.2", "x86_64", None),
        ("_cpu", "2.13.0+cpu", None, "x86_64", None),
        ("_cpu", "2.9.1", None, "x86_64", "torch 2.9.1 is older than 2.11, which the kernels need: upgrade torch."),
        ("_cpu", "2.13.0", None, "aarch64", "it was built for x86_64, and this processor is aarch64: reinstall"),
        ("_cuda", "2.13.0+cpu", None, "x86_64", "torch 2.13.0+cpu is not a CUDA build: install one that is."),
        (
            "_cuda",
            "2.13.0+cu126",
            "12.6",
            "x86_64",
            "built for CUDA 13.0, and torch 2.13.0+cu126 is of CUDA 12.6: reinstall",
        ),
    ],
)
def test_library_of_another_machine_or_torch_is_refused(library, version, cuda, machine, message):
    build = {"machine": "x86_64", "needs_torch": "2.11", "_cuda": {"toolkit": "13.0"}}
    reason = ops._why_foreign(library, build, version, cuda, machine)
    assert reason is None if message is None else message in reason
    # A build of an earlier version recorded less.
    assert ops._why_foreign(library, {}, version, cuda, machine) is None


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 20, 24, generator=generator), torch.rand(2, 3, 20, 24, generator=generator)


def test_missing_kernel_falls_back_and_warns_once(monkeypatch, recwarn):
    """users.md: a missing or broken extension must fall back with one clear warning."""
    monkeypatch.setitem(ops._WHY_NOT, "cpu", "it was left out by this test.")
    monkeypatch.setattr(ops, "_warned", set())
    monkeypatch.delenv("PSPL_BACKEND", raising=False)
    sr, hr = images()
    expected = pspl_cuda.reference.pspl_loss(sr, hr, 1.0)
    for _ in range(3):
        assert torch.equal(pspl_cuda.pspl_loss(sr, hr, 1.0), expected)
    messages = [str(warning.message) for warning in recwarn if "pspl_cuda" in str(warning.message)]
    assert len(messages) == 1
    assert "it was left out by this test." in messages[0]
    assert 'backend="reference"' in messages[0]


def test_explicit_backend_never_falls_back(monkeypatch):
    monkeypatch.setitem(ops._WHY_NOT, "cpu", "it was left out by this test.")
    sr, hr = images()
    with pytest.raises(RuntimeError, match="it was left out by this test"):
        pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu")


def test_environment_variable_replaces_auto(monkeypatch, recwarn):
    monkeypatch.setenv("PSPL_BACKEND", "reference")
    monkeypatch.setattr(ops, "_warned", set())
    sr, hr = images()
    assert torch.equal(pspl_cuda.pspl_loss(sr, hr, 1.0), pspl_cuda.reference.pspl_loss(sr, hr, 1.0))
    assert not [warning for warning in recwarn if "pspl_cuda" in str(warning.message)]
    monkeypatch.setenv("PSPL_BACKEND", "tpu")
    with pytest.raises(ValueError, match="backend is 'tpu'"):
        pspl_cuda.pspl_loss(sr, hr, 1.0)


def test_source_folder_finds_the_installed_kernels(tmp_path):
    """After ``pip install .``, Python started in the source folder imports the sources, which hold no kernels."""
    if not pspl_cuda.backend_info()["cpu"]["available"]:
        pytest.skip("the CPU kernel is not built")
    if not Path(str(distribution("pspl_cuda").locate_file("pspl_cuda"))).exists():
        pytest.skip("installed in editable mode: source and installed package are one")
    copy = tmp_path / "pspl_cuda"
    copy.mkdir()
    for source in Path(ops.__file__).parent.glob("*.py"):
        (copy / source.name).write_text(source.read_text())
    # What pip install . leaves in the source folder, which stands for an installed distribution to who starts there.
    left = tmp_path / "pspl_cuda.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: pspl_cuda\nVersion: 0.1.0\n")
    code = "import pspl_cuda; print(pspl_cuda.__file__); print(pspl_cuda.backend_info()['cpu']['available'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    path, available = result.stdout.split()
    assert Path(path).parent == copy
    assert available == "True"


PLACEHOLDER = "\0"


def literals(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Every string of Python source, with PLACEHOLDER for what an f-string fills in."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values)
            found.append((node, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node, node.value))
    return found


SAYING = ["setup.py", "build_tools/compilers.py", "build_tools/decisions.py", "pspl_cuda/ops.py"]


@NEEDS_SOURCES
def test_troubleshooting_quotes_what_the_code_says():
    said = [text for name in SAYING for _, text in literals(ast.parse((ROOT / name).read_text()))]
    said += [re.sub(r'"\s*\n\s*"', "", path.read_text()) for path in (ROOT / "csrc").glob("ops_*.cpp")]
    quoted = re.findall(r"^> (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    for message in quoted:
        for fragment in filter(None, (part.strip() for part in message.split("..."))):
            # Brackets and the like around a placeholder say nothing.
            assert len(fragment) < 4 or any(fragment in text for text in said), f"{fragment!r} of {message!r}"


@NEEDS_SOURCES
def test_troubleshooting_knows_every_message():
    """What is raised, warned of, returned as a reason (a tuple ending in it), or shouted."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    for name in SAYING:
        tree = ast.parse((ROOT / name).read_text())
        roots: list[ast.AST] = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
        roots += [node.value for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value]
        roots += [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn"
        ]
        within = {id(child) for root in roots for child in ast.walk(root)}
        for node, text in literals(tree):
            # A sentence has several words; its longest piece between placeholders stands for it.
            piece = max(text.split(PLACEHOLDER), key=len).strip(" ,:;()'")
            if id(node) in within and len(text.split()) > 4:
                assert piece in page, f"{name}:{node.lineno}: {piece!r}"
