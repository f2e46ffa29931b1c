"""Builds pspl_cuda's kernel libraries: _cpu if there is a C++ compiler, _cuda if torch is a CUDA build and there is an nvcc.

A missing compiler or toolkit does not stop an installation: the package then uses PyTorch operators, says so here and at its
first use, and pspl_cuda.backend_info() gives the reason. A compiler that passes its trial (build_tools/compilers.py) and then
fails on a kernel is an error. Environment:

PSPL_CPU              auto (default): CPU kernels if there is a C++ compiler for them. force: fail if there is none. off: no CPU
                      kernels.
PSPL_CUDA             auto (default): CUDA kernels if torch is a CUDA build and there is an nvcc of its major version or a later
                      one; no GPU is needed. force: fail if they can't be built. off: no CUDA kernels.
TORCH_CUDA_ARCH_LIST  architectures to compile for, for example "8.6;9.0+PTX". Default: 7.5 to 12.0+PTX, those that nvcc knows.
CUDA_HOME             the CUDA toolkit. Default: that of the nvcc on the PATH, /usr/local/cuda, or PyPI's, which the backend adds.
CXX, CC               the C++ compiler, and the one that nvcc uses.
MAX_JOBS              number of compilers that run at once.

The decisions are printed (pip shows them with -v) and recorded in pspl_cuda/_build.json. Metadata is in pyproject.toml.
"""

import json
import os
import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

sys.path.insert(0, str(Path(__file__).parent / "build_tools"))

from compilers import compile_flags, cxx_compiler, program_and_options
from decisions import decide
from installed_torch import BUILD, find_torch

ROOT = Path(__file__).parent
TORCH = find_torch()
if TORCH is not None:
    from torch.utils import cpp_extension

# Files of the CPU kernel for more than the baseline; csrc/cpu/dispatch.cpp chooses at run time.
INSTRUCTION_SETS = {
    "csrc/cpu/kernel_avx2.cpp": ["-mavx2", "-mfma"],
    "csrc/cpu/kernel_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
# csrc/bindings/torch_api.h chooses by it. The stable ABI then has nothing that the oldest torch of it lacks.
STABLE = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*BUILD["STABLE_TORCH"])


def sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


# Without torch, setuptools' build_ext: enough for metadata and source distributions.
Base = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True) if TORCH is not None else build_ext


class Build(Base):
    """Decides what to build, compiles the sources that need other flags or another compiler, and records the decisions."""

    def run(self):
        decision = decide(TORCH)
        cpu, cuda = self.extensions
        flags = {
            kind: [*flags, *([STABLE] if TORCH.has_stable_abi() else [])] for kind, flags in compile_flags().items()
        }
        link_flags = cxx_compiler()[1:]
        for name in ("CXX", "CC"):
            program, _ = program_and_options(name)  # its options are in the flags
            if program is not None:
                os.environ[name] = program
        os.environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"  # the compiler has passed the trials of decide()
        if decision.why_no_cpu is None:
            arguments = {"extra_compile_args": {"cxx": flags["cxx"]}, "extra_link_args": link_flags}
            self._complete(cpu, cpp_extension.CppExtension, **arguments)
        else:
            self._leave_out(cpu)
        if decision.why_no_cuda is None:
            os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = decision.toolkit.home
            self._complete(
                cuda,
                cpp_extension.CUDAExtension,
                extra_compile_args={kind: [*flags, "-DUSE_CUDA"] for kind, flags in flags.items()},
                extra_link_args=link_flags,
                include_dirs=decision.toolkit.include_dirs,
                library_dirs=decision.toolkit.library_dirs,
            )
            # With a runtime of its own the library serves a torch of any CUDA version: streams and pointers are the driver's.
            cuda.libraries[cuda.libraries.index("cudart")] = "cudart_static"
            cuda.libraries += ["rt", "dl", "pthread"] if os.name != "nt" else []
        else:
            self._leave_out(cuda)
        super().run()
        package = Path(self.get_ext_fullpath(cpu.name)).parent
        package.mkdir(parents=True, exist_ok=True)
        record = decision.record(TORCH)
        for library in ("_cpu", "_cuda"):
            record[library]["sources"] = BUILD["fingerprint"](ROOT / "csrc", library)
        (package / "_build.json").write_text(json.dumps(record, indent=2) + "\n")

    def _complete(self, extension, kind, **arguments):
        """Add to ``extension`` what torch's ``kind`` of extension has."""
        made = kind(extension.name, extension.sources, depends=extension.depends, **arguments)
        made.libraries.remove("torch_python")  # the libraries use nothing of Python
        vars(extension).update(vars(made))

    def get_export_symbols(self, extension):
        """None: torch loads the libraries, which are no Python modules and have no PyInit function."""
        return []

    def _leave_out(self, extension):
        self.extensions.remove(extension)
        # A library left by an earlier build would be loaded.
        Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)

    def build_extension(self, extension):
        kind = extension.name.rsplit("_", 1)[1].upper()
        try:
            if kind == "CUDA":
                self._compile(extension, sources("csrc/cuda/**/*.cu"), extension.extra_compile_args)
            else:
                for source, flags in INSTRUCTION_SETS.items():
                    flags = flags if platform.machine().lower() in ("x86_64", "amd64") else []
                    self._compile(extension, [source], [*extension.extra_compile_args["cxx"], *flags])
            super().build_extension(extension)
        except Exception as error:
            raise CompileError(
                f"pspl_cuda: the {kind} kernels did not compile ({error}); the compiler's message is above. If it was "
                "killed, there was too little memory for so many compilers at once: set MAX_JOBS=1. "
                f"PSPL_{kind}=off installs without the {kind} kernels."
            ) from error

    def _compile(self, extension, files, flags):
        """Compile ``files`` with ``flags`` in addition to the sources of ``extension``."""
        extension.extra_objects += self.compiler.compile(
            files,
            output_dir=str(Path(self.build_temp) / Path(files[0]).stem),
            include_dirs=extension.include_dirs,
            extra_postargs=flags,
        )


class Wheel(bdist_wheel):
    """One wheel for every Python: the libraries do not use its ABI."""

    def get_tag(self):
        return ("py3", "none", super().get_tag()[2])


HEADERS = sources("csrc/**/*.h", "csrc/**/*.cuh")

setup(
    # Names and the sources that need nothing special; Build adds the others and what depends on torch. The CUDA sources are not
    # listed, because torch refuses an extension that has some if nvcc's version is not its own.
    ext_modules=[
        Extension(
            "pspl_cuda._cpu",
            [file for file in sources("csrc/bindings/ops_cpu.cpp", "csrc/cpu/*.cpp") if file not in INSTRUCTION_SETS],
            depends=HEADERS,
        ),
        Extension("pspl_cuda._cuda", ["csrc/bindings/ops_cuda.cpp"], depends=HEADERS),
    ],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
