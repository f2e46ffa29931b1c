"""Checks an installed package: ``python check_installation.py --cuda yes``. The nox sessions run it in fresh environments.

It needs no GPU and no pytest.
"""

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import torch

import pspl_cuda

OPERATORS = ("loss", "loss_and_gradient", "map", "scale_gradient", "scale_gradient_")


def find_cuobjdump() -> str | None:
    """From the PATH, or from PyPI's nvidia-cuda-cuobjdump."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/**/bin/cuobjdump"))
    return shutil.which("cuobjdump") or next(map(str, packaged), None)


def check_kernels(name: str, info: dict, expected: bool) -> None:
    assert info["available"] == expected, f"{name} kernels: {info}; expected available = {expected}"
    for operator in OPERATORS:
        found = torch._C._dispatch_has_kernel_for_dispatch_key(f"pspl_cuda::{operator}", name)
        assert found == expected, f"{operator} has {'a' if found else 'no'} {name} kernel"


def check_architectures(architectures: list[str]) -> None:
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        print("cuobjdump was not found: the architectures are not checked", file=sys.stderr)
        return
    library = next(Path(pspl_cuda.__file__).parent.glob("_cuda.*"))
    listed = subprocess.run([cuobjdump, "--list-elf", library], capture_output=True, text=True, check=True).stdout
    found = set(re.findall(r"\.sm_(\d+)\.cubin", listed))
    expected = {architecture.removesuffix("+PTX").replace(".", "") for architecture in architectures}
    assert found == expected, f"the library contains {sorted(found)}, but {sorted(expected)} were requested"


def check_loss(cpu: bool, reason: str) -> None:
    """The default backend agrees with the reference, and warns once if it falls back."""
    sr, hr = torch.rand(2, 3, 32, 40), torch.rand(2, 3, 32, 40)
    expected = pspl_cuda.pspl_loss(sr, hr, 1.0, backend="reference")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.testing.assert_close(pspl_cuda.pspl_loss(sr, hr, 1.0), expected, rtol=2e-6, atol=0)
    messages = [str(warning.message) for warning in caught if "pspl_cuda" in str(warning.message)]
    assert len(messages) == (0 if cpu else 1), messages
    assert all(reason in message for message in messages), messages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", choices=("yes", "no"), default="yes", help="whether CPU kernels are expected")
    parser.add_argument("--cuda", choices=("yes", "no"), required=True, help="whether CUDA kernels are expected")
    parser.add_argument("--reason", default="", help="part of the reason why kernels are not available")
    parser.add_argument("--torch-built-with", help="the torch that the kernels were built with; default: the installed")
    options = parser.parse_args()

    info = pspl_cuda.backend_info()
    print(info)
    check_kernels("CPU", info["cpu"], options.cpu == "yes")
    check_kernels("CUDA", info["cuda"], options.cuda == "yes")
    if options.cuda == "yes":
        check_architectures(info["cuda"]["architectures"])
    for name in ("cpu", "cuda"):
        assert info[name]["available"] or options.reason in info[name]["reason"], info[name]["reason"]
    built_with = options.torch_built_with or info["torch"]
    assert info["torch_built_with"].startswith(built_with), f"{info['torch_built_with']}; expected {built_with}"
    check_loss(options.cpu == "yes", options.reason)
    assert (Path(pspl_cuda.__file__).parent / "py.typed").is_file(), "type checkers ignore a package without py.typed"
    print("the installation is correct")


if __name__ == "__main__":
    main()
