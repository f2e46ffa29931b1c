"""Installs the package as its users do, each time in a fresh environment, and looks at what came of it.

    python build_tools/check_environments.py               all checks
    python build_tools/check_environments.py cpu uv        some
    python build_tools/check_environments.py --list        what each is

Linux only. pip's index must be within reach; a CUDA build of torch takes 3 GB of download and 6 GB of disk. A check that can't be
made here is skipped with the reason. The exit code is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROBE = """
import importlib.metadata, json, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
import pspl_cuda
sr, hr = torch.rand(2, 3, 40, 44), torch.rand(2, 3, 40, 44)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loss = pspl_cuda.pspl_loss(sr, hr, 1.0).item()
try:
    pspl_cuda.pspl_loss(sr, hr, 1.0, backend="cpu")
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(json.dumps({
    "info": pspl_cuda.backend_info(),
    "torch_cuda": torch.version.cuda,
    "folder": pspl_cuda.__path__[0],
    "version": pspl_cuda.__version__,
    "off": abs(loss / pspl_cuda.reference.pspl_loss(sr, hr, 1.0).item() - 1),
    "warnings": [str(warning.message) for warning in caught if "pspl_cuda" in str(warning.message)],
    "refused": refused,
    "tag": importlib.metadata.distribution("pspl_cuda").read_text("WHEEL"),
}))
"""
FETCHED_NVCC = re.compile(r"Successfully installed .*\bnvidia-cuda-nvcc-.*")
CHECKS: dict[str, Callable[[Workshop], None]] = {}


class Skipped(Exception):  # noqa: N818  not an error
    """A check that can't be made on this machine."""


def check(function: Callable[[Workshop], None]) -> Callable[[Workshop], None]:
    CHECKS[function.__name__.replace("_", "-")] = function
    return function


class Environment:
    """A fresh virtual environment. Its packages are links to those of ``torch_from``'s, if that is given."""

    def __init__(self, folder: Path, torch_from: Path | None = None, variables: dict | None = None):
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder.with_suffix(".log")
        # Like an activated one, and with nothing that steers a build.
        steering = ("PSPL_", "TORCH_CUDA", "CUDA_", "PIP_REQUIRE", "PYTHON", "VIRTUAL_ENV", "CONDA")
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
        self.variables |= {
            "VIRTUAL_ENV": str(folder),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            **(variables or {}),
        }
        bare = [] if torch_from is None else ["--without-pip"]
        subprocess.run([sys.executable, "-m", "venv", *bare, str(folder)], check=True)
        if torch_from is not None:
            shutil.copytree(
                site_packages(torch_from),
                site_packages(folder),
                copy_function=link_or_copy,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("pspl_cuda*", "__editable__*"),
            )

    def run(self, *command: str | Path, prefix: list[str] | None = None, fails: bool = False, **variables: str) -> str:
        """What the command printed; ``prefix`` goes before it; AssertionError if it fails (or does not, where it should)."""
        words = [*(prefix or []), *map(str, command)]
        result = subprocess.run(
            words,
            cwd=self.folder,
            env={**self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{result.stdout}\n")
        tail = "\n".join(result.stdout.splitlines()[-25:])
        assert (result.returncode != 0) == fails, (
            f"{' '.join(words)} gave {result.returncode}:\n{tail}\n(all of it: {self.log})"
        )
        return result.stdout

    def pip(self, *arguments: str | Path, **options) -> str:
        return self.run(self.python, "-m", "pip", *arguments, **options)

    def probe(self) -> dict:
        """What the installed package says of itself, having computed a loss."""
        printed = json.loads(self.run(self.python, "-c", PROBE).splitlines()[-1])
        assert printed["off"] < 2e-6, printed
        assert not printed["folder"].startswith(str(ROOT)), "the checkout was imported"
        return printed

    def check_cuda(self) -> None:
        self.run(self.python, ROOT / "tests" / "check_cuda_build.py")


class Workshop:
    """Where the environments are made."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options = options
        self._folder = folder
        self._taken = dict(pair.split("=", 1) for pair in options.take)
        self._count = 0

    def path(self, name: str) -> Path:
        self._count += 1
        return self._folder / f"{self._count}-{name}"

    def environment(self, torch: str | None, **variables: str) -> Environment:
        """A fresh environment with that version of torch, downloaded once."""
        variables.setdefault("TORCH_CUDA_ARCH_LIST", self.options.architectures)
        if torch is None:
            return Environment(self.path("environment"), variables=variables)
        if torch not in self._taken:
            base = Environment(self.path(f"torch-{torch}"))
            base.pip("install", f"torch=={torch}", "numpy")
            self._taken[torch] = str(base.folder)
        return Environment(self.path("environment"), Path(self._taken[torch]), variables)

    def plain(self) -> Environment:
        """For what has nothing to do with CUDA."""
        return self.environment(self.options.cpu_torch, PSPL_CUDA="off")

    def sources(self) -> Path:
        """A copy of what git knows of the checkout, as it is now."""
        folder = self.path("sources")
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(lambda name: (ROOT / name).exists(), listed.splitlines()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        return folder


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def expect(condition: bool, what: str, found: object) -> None:
    assert condition, f"expected {what}; found {found}"


def expect_no_torch_fetched(log: str) -> None:
    fetched = re.findall(
        r"^.*(?:Collecting|Downloading|Installing collected packages:).*\btorch\b.*$", log, re.MULTILINE
    )
    expect(not fetched, "that no second torch comes into the build", fetched)


def expect_kernels(found: dict, cuda: bool) -> None:
    expect(found["info"]["cpu"]["available"] and not found["refused"], "the CPU kernels", found)
    expect(found["info"]["cuda"]["available"] == cuda, f"CUDA kernels: {cuda}", found)
    expect(not found["warnings"], "no warning", found["warnings"])


def namespace(*kinds: str) -> list[str]:
    """The command by which a command gets namespaces of its own: "mount", "net"."""
    for own_user in ([], ["--map-root-user"]):
        prefix = ["unshare", *own_user, *(f"--{kind}" for kind in kinds)]
        if (
            shutil.which("unshare")
            and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
        ):
            return prefix
    raise Skipped("unshare may not make namespaces here")


def without_toolkit() -> list[str]:
    """The command by which a command finds no CUDA toolkit: an empty folder over it, and no program where nvcc is."""
    found = [Path(folder, "nvcc") for folder in os.environ["PATH"].split(os.pathsep) if Path(folder, "nvcc").exists()]
    folders = {path.resolve() for path in Path("/usr/local").glob("cuda*")}
    if not found and not folders:
        return []
    mounts = [f"mount -t tmpfs none '{folder}'" for folder in sorted(folders)]
    mounts += [f"mount --bind /dev/null '{nvcc}'" for nvcc in found if nvcc.exists()]
    hidden = 'if command -v nvcc; then echo "nvcc is still there"; exit 1; fi'
    # Mounting a toolkit away may take an nvcc with it.
    script = "; ".join([*(f"({mount}) || true" for mount in mounts), hidden, 'exec "$@"'])
    return [*namespace("mount"), "sh", "-c", script, "sh"]


@check
def cpu(shop: Workshop) -> None:
    """pip install . where torch is a CPU build."""
    environment = shop.environment(shop.options.cpu_torch)
    expect_no_torch_fetched(environment.pip("install", "-v", shop.sources()))
    found = environment.probe()
    if found["torch_cuda"] is not None:
        raise Skipped(
            f"pip found no CPU build of torch {shop.options.cpu_torch}: name an index of them in PIP_EXTRA_INDEX_URL"
        )
    expect_kernels(found, cuda=False)
    expect("is not a CUDA build" in found["info"]["cuda"]["reason"], "the reason", found)
    expect("Tag: cp310-abi3-linux" in found["tag"], "an abi3 wheel", found["tag"])


@check
def cuda_nvcc(shop: Workshop) -> None:
    """pip install . where torch is a CUDA build, with nvcc and without a GPU, for the default list of architectures."""
    if shutil.which("nvcc") is None:
        raise Skipped("there is no nvcc here")
    environment = shop.environment(shop.options.cuda_torch, PSPL_CUDA="force", TORCH_CUDA_ARCH_LIST="")
    environment.pip("install", "nvidia-cuda-cuobjdump<14")
    log = environment.pip("install", "-v", shop.sources())
    expect_no_torch_fetched(log)
    expect(not FETCHED_NVCC.search(log), "that the toolkit here is used", FETCHED_NVCC.findall(log))
    expect_kernels(environment.probe(), cuda=True)
    environment.check_cuda()


@check
def cuda_no_toolkit(shop: Workshop) -> None:
    """pip install . where torch is a CUDA build and there is no CUDA toolkit: nvcc comes from PyPI."""
    environment = shop.environment(shop.options.cuda_torch, PSPL_CUDA="force")
    log = environment.pip("install", "-v", shop.sources(), prefix=without_toolkit())
    expect_no_torch_fetched(log)
    expect(FETCHED_NVCC.search(log) is not None, "that nvcc comes from PyPI", log[-2000:])
    expect_kernels(environment.probe(), cuda=True)
    environment.check_cuda()


@check
def no_torch(shop: Workshop) -> None:
    """pip install . where there is no torch: it comes as a dependency, and the build uses the same."""
    environment = shop.environment(None)
    environment.pip("install", shop.sources())
    found = environment.probe()
    expect_kernels(found, cuda=found["torch_cuda"] is not None)
    expect(found["info"]["torch"] == found["info"]["torch_built_with"], "one torch", found)


@check
def no_compiler(shop: Workshop) -> None:
    """pip install . without any compiler: a package that works, says what it lacks, and fails where it is ordered not to."""
    environment = shop.plain()
    programs = shop.path("programs")
    programs.mkdir()
    compiler = re.compile(r"(.*-)?(c\+\+|g\+\+|gcc|cc|c89|c99|clang|clang\+\+|nvcc)(-[\d.]+)?$")
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if not compiler.match(program.name) and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    path = f"{environment.folder / 'bin'}:{programs}"
    sources = shop.sources()
    log = environment.pip("install", "-v", sources, fails=True, PATH=path, PSPL_CPU="force")
    expect(
        "PSPL_CPU=force, but the CPU kernels can't be built: no C++ compiler was found" in log,
        "the sentence",
        log[-2000:],
    )
    log = environment.pip("install", "-v", sources, PATH=path)
    expect("THIS INSTALLATION HAS NO KERNELS" in log, "the sentence", log[-2000:])
    found = environment.probe()
    for said in (found["info"]["cpu"]["reason"], found["refused"], *found["warnings"]):
        expect("no C++ compiler was found" in said, "the reason", found)
    expect(len(found["warnings"]) == 1, "one warning", found["warnings"])


@check
def editable(shop: Workshop) -> None:
    """pip install -e ., and again without kernels, which must not leave the old ones in use."""
    environment = shop.plain()
    sources = shop.sources()
    expect_no_torch_fetched(environment.pip("install", "-v", "-e", sources))
    found = environment.probe()
    expect_kernels(found, cuda=False)
    expect(Path(found["folder"]) == sources / "pspl_cuda", "the sources", found["folder"])
    environment.pip("install", "-e", sources, PSPL_CPU="off")
    expect("PSPL_CPU=off" in environment.probe()["refused"], "no kernels", found)


@check
def uv(shop: Workshop) -> None:
    """uv pip install . in an active environment, beside a .venv that is not active, and with --no-build-isolation."""
    tool = shutil.which("uv")
    if tool is None:
        tools = Environment(shop.path("uv"))
        tools.pip("install", "uv")
        tool = str(tools.folder / "bin" / "uv")
    sources = shop.sources()
    environment = shop.plain()
    environment.run(tool, "pip", "install", sources)
    expect_same_torch(environment)

    environment = shop.plain()
    environment.pip("install", "setuptools>=77", "ninja")
    environment.run(tool, "pip", "install", "--no-build-isolation", sources)
    expect_same_torch(environment)

    inactive = shop.plain()
    home = shop.path("home")
    home.mkdir()
    (home / ".venv").symlink_to(inactive.folder)
    script = f'cd "{home}" && unset VIRTUAL_ENV && exec "{tool}" pip install "{sources}"'
    inactive.run("sh", "-c", script, PATH=os.environ["PATH"])
    expect_same_torch(inactive)


def expect_same_torch(environment: Environment) -> None:
    found = environment.probe()
    expect_kernels(found, cuda=False)
    expect(found["info"]["torch"] == found["info"]["torch_built_with"], "the build to see the installed torch", found)


@check
def offline(shop: Workshop) -> None:
    """pip install --no-build-isolation --no-deps . without a network."""
    environment = shop.plain()
    environment.pip("install", "setuptools>=77", "ninja")
    environment.pip("install", "--no-build-isolation", "--no-deps", shop.sources(), prefix=namespace("net"))
    expect_kernels(environment.probe(), cuda=False)


@check
def sdist(shop: Workshop) -> None:
    """python -m build makes a source distribution and a wheel out of it; the former installs too."""
    environment = shop.plain()
    environment.pip("install", "build")
    out = shop.path("dist")
    log = environment.run(environment.python, "-m", "build", "--outdir", out, shop.sources())
    expect_no_torch_fetched(log)
    wheel, archive = (next(out.glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    expect("-cp310-abi3-linux" in wheel.name, "an abi3 wheel", wheel.name)
    for packed in (wheel, archive):
        environment.pip("install", "--force-reinstall", "--no-deps", packed)
        expect_kernels(environment.probe(), cuda=False)
    names = environment.run("tar", "tf", archive)
    for name in (
        "csrc/pspl_math.h",
        "csrc/cuda/strip_kernel.cuh",
        "build_tools/backend.py",
        "tests/test_install.py",
        "LICENSE",
    ):
        expect(f"/{name}\n" in names, f"{name} in the archive", names)
    expect("_build.json" not in names and ".so\n" not in names, "nothing of a build in the archive", names)


@check
def wheel_on_other_torches(shop: Workshop) -> None:
    """One wheel, built with a CUDA build of torch, under every other torch; its CUDA kernels under those of its major version."""
    builder = shop.environment(shop.options.cuda_torch, PSPL_CUDA="force")
    out = shop.path("wheel")
    builder.pip("wheel", "--no-deps", "--wheel-dir", out, shop.sources())
    wheel = next(out.glob("*.whl"))
    for version in (shop.options.cuda_torch, *shop.options.other_torches.split(",")):
        environment = shop.environment(version)
        environment.pip("install", "--no-deps", wheel)
        found = environment.probe()
        expect_kernels(found, cuda=found["torch_cuda"] is not None)
        if found["torch_cuda"] is None:
            expect("is not a CUDA build: install one that is" in found["info"]["cuda"]["reason"], "the reason", found)
        else:
            environment.check_cuda()
        print(f"    torch {found['info']['torch']}: fine", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", choices=[[], *CHECKS], help="the checks to make; all, if none is named")
    parser.add_argument("--list", action="store_true", help="say what the checks are, and stop")
    parser.add_argument(
        "--cpu-torch", default="2.13.0", help="version for the checks on a CPU build (default: %(default)s)"
    )
    parser.add_argument(
        "--cuda-torch", default="2.14.1", help="version for the checks on a CUDA build (default: %(default)s)"
    )
    parser.add_argument(
        "--other-torches", default="2.11.0,2.13.0", help="versions for the wheel (default: %(default)s)"
    )
    parser.add_argument(
        "--architectures", default="9.0", help="what all but cuda-nvcc compile for (default: %(default)s)"
    )
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="VERSION=ENVIRONMENT",
        help="take that version of torch from a virtual environment instead of downloading it",
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments and logs")
    options = parser.parse_args()
    names = options.names or list(CHECKS)
    if options.list:
        print("\n".join(f"{name:24}{CHECKS[name].__doc__}" for name in names))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="pspl-environments-"))
    shop = Workshop(options, folder)
    failed = 0
    try:
        for number, name in enumerate(names, 1):
            print(f"[{number}/{len(names)}] {name}: {CHECKS[name].__doc__}", flush=True)
            start = time.monotonic()
            try:
                CHECKS[name](shop)
                outcome = "passed"
            except Skipped as reason:
                outcome = f"SKIPPED: {reason}"
            except AssertionError as error:
                failed += 1
                outcome = f"FAILED: {error}"
            print(f"    {outcome} ({time.monotonic() - start:.0f} s)", flush=True)
    finally:
        if options.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
