"""Decides which kernels are built, and gives the reason for those that are not. setup.py documents the environment variables."""

import os
import platform
import re
import sys
from typing import NamedTuple

import compilers
from compilers import Toolkit
from installed_torch import Torch

# A cubin runs on all later minor versions of its major version, the PTX of the last entry on all later GPUs. Architectures that
# the toolkit does not know are left out.
DEFAULT_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")


class Decision(NamedTuple):
    why_no_cpu: str | None
    why_no_cuda: str | None
    toolkit: Toolkit | None
    architectures: list[str]  # ["9.0", "12.0+PTX"]

    def record(self, torch: Torch) -> dict:
        """The contents of pspl_cuda/_build.json, which pspl_cuda/_library.py reads."""
        cuda = {"reason": f"{self.why_no_cuda}."} if self.why_no_cuda else {}
        if self.toolkit is not None:
            cuda = {"toolkit": self.toolkit.version, "architectures": self.architectures}
        return {
            "torch": torch.version,
            "stable_abi": torch.has_stable_abi(),
            "machine": platform.machine(),
            "_cpu": {"reason": f"{self.why_no_cpu}."} if self.why_no_cpu else {},
            "_cuda": cuda,
        }


def switch(name: str) -> str:
    """The value of PSPL_CPU or PSPL_CUDA."""
    value = os.environ.get(name, "auto")
    if value not in ("auto", "force", "off"):
        raise SystemExit(f"{name} is {value!r}; expected auto, force or off.")
    return value


def decide(torch: Torch | None) -> Decision:
    """Decide what to build against ``torch`` and print it; SystemExit if torch is too old or a forced kernel can't be built."""
    if torch is None:
        raise SystemExit("pspl_cuda is built against torch, but none was found: install torch first.")
    torch.check()
    _print(f"building against torch {torch.version} of {torch.folder.parent}")
    for change in compilers.clean_environment():
        _print(change)
    off = {kind: switch(f"PSPL_{kind}") == "off" for kind in ("CPU", "CUDA")}
    common = None if all(off.values()) else compilers.why_no_cxx()
    cpu = "PSPL_CPU=off when it was built" if off["CPU"] else common or compilers.why_no_vectors()
    toolkit, architectures, cuda = None, [], "PSPL_CUDA=off when it was built" if off["CUDA"] else common
    if cuda is None:
        toolkit, architectures, cuda = _decide_cuda(torch)
    _report("CPU", cpu, "with " + " ".join(compilers.cxx_compiler()))
    _report("CUDA", cuda, f"with nvcc {toolkit.version} for {';'.join(architectures)}" if toolkit else "")
    if cpu is not None and cuda is not None:
        _print("THIS INSTALLATION HAS NO KERNELS: it uses PyTorch operators, which are correct but slow")
    else:
        minutes = "some minutes (TORCH_CUDA_ARCH_LIST names fewer GPUs)" if cuda is None else "about a minute"
        _print(f"compiling takes {minutes}; MAX_JOBS is the number of compilers at once")
    return Decision(cpu, cuda, toolkit, architectures)


def _print(message: str) -> None:
    print(f"pspl_cuda: {message}", file=sys.stderr, flush=True)


def _report(kind: str, reason: str | None, how: str) -> None:
    if reason is None:
        _print(f"{kind} kernels: yes, {how}")
    elif switch(f"PSPL_{kind}") == "force":
        raise SystemExit(f"PSPL_{kind}=force, but the {kind} kernels can't be built: {reason}.")
    else:
        _print(f"{kind} kernels: no, because {reason}")


def _decide_cuda(torch: Torch) -> tuple[Toolkit | None, list[str], str | None]:
    """(toolkit, architectures, None), or (None, [], the reason)."""
    if torch.hip is not None:
        return None, [], f"torch {torch.version} is a ROCm build, which the CUDA kernels do not support"
    if torch.cuda is None:
        return None, [], f"torch {torch.version} is not a CUDA build"
    toolkit, reason = compilers.find_toolkit(torch.cuda)
    if toolkit is None:
        return None, [], reason
    architectures, reason = choose_architectures(toolkit)
    return (toolkit, architectures, None) if reason is None else (None, [], reason)


def choose_architectures(toolkit: Toolkit) -> tuple[list[str], str | None]:
    """(the architectures torch compiles for, None), or ([], the reason). Sets TORCH_CUDA_ARCH_LIST if it is not set."""
    requested = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not requested:
        known = [architecture for architecture in DEFAULT_ARCHITECTURES if architecture in toolkit.architectures]
        os.environ["TORCH_CUDA_ARCH_LIST"] = requested = ";".join(known) + "+PTX"
    from torch.utils.cpp_extension import _get_cuda_arch_flags

    try:
        flags = " ".join(_get_cuda_arch_flags())
    except (ValueError, IndexError) as error:
        return [], (
            f"TORCH_CUDA_ARCH_LIST is {requested!r}, which torch does not understand ({error}); expected numbers, as in "
            "'8.6;9.0+PTX'"
        )
    cubins = [f"{tens}.{ones}" for tens, ones in re.findall(r"code=sm_(\d+)(\d[af]?)\b", flags)]
    virtual = {f"{tens}.{ones}" for tens, ones in re.findall(r"code=compute_(\d+)(\d[af]?)\b", flags)}
    unknown = [cubin for cubin in cubins if cubin.rstrip("af") not in toolkit.architectures]
    if unknown:
        return [], (
            f"TORCH_CUDA_ARCH_LIST is {requested!r}, but nvcc {toolkit.version} does not compile for {', '.join(unknown)}; "
            f"expected some of {', '.join(toolkit.architectures)}"
        )
    cubins.sort(key=lambda cubin: float(cubin.rstrip("af")))
    return [cubin + "+PTX" * (cubin in virtual) for cubin in cubins], None
